"""Several processes that train one model: who feeds what, who writes, and how they agree to end."""

import tensorflow as tf

from tfdet import schema
from tfdet.train.step import distribute, fill, require_even_split


def is_one_of_many(strategy) -> bool:
    """Whether other processes take part."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and count(strategy) > 1


def count(strategy) -> int:
    """Processes that train together."""
    cluster = getattr(strategy.cluster_resolver, "cluster_spec", dict)()
    cluster = cluster.as_dict() if cluster else {}
    return max(1, sum(len(cluster.get(kind, [])) for kind in ("chief", "worker")))


def is_chief(strategy) -> bool:
    """Whether this process is the one that writes."""
    if not is_one_of_many(strategy):
        return True
    resolver = strategy.cluster_resolver
    has_chief = "chief" in resolver.cluster_spec().as_dict()
    return resolver.task_type == "chief" or (not has_chief and resolver.task_id == 0)


def feed(make_dataset, step, strategy, batch_size):
    """The training data from a step on, distributed.

    Args:
        make_dataset: see `loop.fit`; where there are several workers it is called as `make_dataset(step, shard=(i, n))`
            and gives the i-th of n equal slices of every global batch.
    """
    if not is_one_of_many(strategy):
        return distribute(make_dataset(step), strategy, batch_size)
    return _by_worker(lambda shard: make_dataset(step, shard=shard), strategy, batch_size)


class Batches:
    """The batches of a data set; where it ends, as the epoch of a data service does, those of the one made next.

    Args:
        data: a distributed data set; reopen: () -> another one, made for the step that training has come to.
    """

    def __init__(self, data, reopen):
        self._iterator, self._reopen = iter(data), reopen

    def __next__(self):
        try:
            return next(self._iterator)
        except StopIteration:
            self._iterator = iter(self._reopen())
            return next(self._iterator)


def feed_whole(dataset, strategy, batch_size):
    """A data set of global batches, distributed; every worker reads all of it and takes its slice of each batch."""
    if not is_one_of_many(strategy):
        return distribute(dataset, strategy, batch_size)

    def slices(shard):
        rows = batch_size // shard[1]
        part = lambda value: value[shard[0] * rows : (shard[0] + 1) * rows]  # noqa: E731
        return dataset.map(lambda batch: {name: part(value) for name, value in fill(batch, batch_size).items()})

    return _by_worker(slices, strategy, batch_size)


def _by_worker(make_slice, strategy, batch_size):
    require_even_split(batch_size, strategy)

    def pipeline(context):
        workers, replicas = context.num_input_pipelines, context.num_replicas_in_sync
        data = make_slice((context.input_pipeline_id, workers))
        data = data.map(lambda batch: fill(batch, batch_size // workers))
        return data if replicas == workers else _by_replica(data, replicas // workers)

    return strategy.distribute_datasets_from_function(pipeline)


def _by_replica(data, replicas):
    """Batches of a worker cut into one for each of its replicas."""

    def cut(batch):
        rows = batch[schema.IMAGE].shape[0] // replicas
        front = lambda value: tf.concat([[replicas, rows], tf.shape(value)[1:]], 0)  # noqa: E731
        shaped = {name: tf.reshape(value, front(value)) for name, value in batch.items()}
        return {name: tf.ensure_shape(v, [replicas, rows, *batch[name].shape[1:]]) for name, v in shaped.items()}

    return data.map(cut).unbatch()


class Agreement:
    """Makes workers do the same thing at the same step, though a signal or a clock reaches each at another time.

    One process agrees with itself at once. Several add up their wishes; all have to ask at the same steps.
    """

    def __init__(self, strategy):
        self.is_needed = is_one_of_many(strategy)

        def sum_of(values):  # the identity lies on this replica's device, which the sum asks for
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(values))

        @tf.function(autograph=False)
        def add(wishes):
            return strategy.experimental_local_results(strategy.run(sum_of, args=(wishes,)))[0]

        self._add = add

    def on(self, wishes) -> list:
        """Which of the wishes at least one worker has: list of bool -> list of bool."""
        if not self.is_needed:
            return list(wishes)
        return [value > 0 for value in self._add(tf.constant([float(wish) for wish in wishes])).numpy()]
