"""One training step and one validation step under `tf.distribute`; the only place where losses are reduced.

A detector's losses are named sums per image. Here they are summed over the images and divided by the
normalizer of the GLOBAL batch, all replicas and parts together. So however a batch is split over replicas
and parts, the same number is minimised and the same gradient is applied.
"""

import tensorflow as tf

from tfdet import schema
from tfdet.compat import keras
from tfdet.config import ConfigError
from tfdet.train.optimizers import counters

SUM = tf.distribute.ReduceOp.SUM
IMAGES = "images"  # metric: images of the batch that were trained on, filled rows not counted
SKIPPED = "skipped"  # metric: 1 where the update was left out


def make_train_step(
    model, detector, optimizer, *, weight_decay=0.0, clip_norm=0.0, accumulate=1, xla=False, skip_nonfinite=False,
    averages=None, element_spec=None,
):  # fmt: skip
    """A `tf.function` from a (distributed) batch to the metrics of the update it made.

    Args:
        model: keras.Model, built under the strategy it is to run on.
        detector: follows `detectors.base.Detector`.
        optimizer: a Keras 2 optimizer made under the same strategy.
        weight_decay: L2 factor d; adds d/2 * |w|^2 of every kernel to the objective. The reported losses leave it out.
        clip_norm: longest gradient in the 2-norm over all weights; 0 does not clip.
        accumulate: parts that a replica takes its rows in, one after the other. Only batch normalisation sees
            the difference: it has a part's rows, as it has a replica's.
        xla: compile the forward and backward pass, for each count of boxes that batches are padded to.
        skip_nonfinite: leave out an update whose loss or gradients are not finite, and the batch normalisation
            statistics of its batch; the step counts.
        averages: `averages.MovingAverages` to move after every update.
        element_spec: of the data set that `distribute` gave. With it the step is traced once, though batches
            differ in the number of boxes that they are padded to.
    Returns:
        function: batch -> dict of float32 scalars: the named losses and their sum "loss", "normalizer",
        "images" and, where gradients are clipped, "gradient_norm", where updates may be left out, "skipped".
    """
    strategy = model.distribute_strategy
    scaling = isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer)
    compute = _in_parts(_make_compute(model, detector, optimizer.get_scaled_loss if scaling else None), accumulate)
    compute = tf.function(compute, jit_compile=True) if xla else compute
    # of batch normalisation, which the forward pass moves; frozen weights do not move
    statistics = [v for v in model.non_trainable_variables if not v.trainable] if skip_nonfinite else []

    def gradients_of(batch):
        before = [tf.identity(variable) for variable in statistics]
        variables, rows = model.trainable_variables, tf.cast(_rows(batch) // accumulate, tf.float32)
        gradients, sums = _all_reduce(compute(batch))
        metrics = _metrics(sums)
        gradients = optimizer.get_unscaled_gradients(gradients) if scaling else gradients
        factor = rows / tf.maximum(sums[schema.NORMALIZER], 1.0)
        gradients = [factor * gradient for gradient in gradients]
        gradients = _add(gradients, _penalty_gradients(model))
        gradients = _decay(gradients, variables, weight_decay) if weight_decay else gradients
        if skip_nonfinite:  # float16 gradients that overflow are the loss-scaling optimizer's affair
            metrics[SKIPPED] = 1.0 - tf.cast(
                _all_finite([metrics["loss"], *([] if scaling else gradients)]), tf.float32
            )
        if clip_norm:  # after the all-reduce: the norm of the global gradient, the same on every replica
            gradients, metrics["gradient_norm"] = tf.clip_by_global_norm(gradients, clip_norm)
        return gradients, metrics, before

    def apply(gradients):
        # this spelling of "already aggregated" is understood by new, legacy and loss-scaling optimizers
        optimizer.apply_gradients(zip(gradients, model.trainable_variables), experimental_aggregate_gradients=False)

    def put_back(before):
        for variable, value in zip(statistics, before):
            variable.assign(value)

    def update(gradients):
        strategy.run(apply, args=(gradients,))
        if averages is not None:
            averages.update(optimizer.iterations)

    def leave_out(before):
        strategy.run(put_back, args=(before,))
        for counter in counters(optimizer):
            counter.assign_add(1)

    def step(batch):
        gradients, metrics, before = strategy.run(gradients_of, args=(batch,))
        metrics = _first(strategy, metrics)
        if skip_nonfinite:
            tf.cond(metrics[SKIPPED] > 0, lambda: _done(leave_out(before)), lambda: _done(update(gradients)))
        else:
            update(gradients)
        return metrics

    return _function(step, element_spec)


def make_eval_step(model, detector, element_spec=None):
    """As `make_train_step`, without training: a `tf.function` from a batch to its metrics."""
    strategy = model.distribute_strategy

    def metrics_of(batch):
        return _metrics(_all_reduce(_sums(model, detector, batch, training=False)))

    return _function(lambda batch: _first(strategy, strategy.run(metrics_of, args=(batch,))), element_spec)


def distribute(dataset, strategy, batch_size):
    """The dataset as the steps want it: tensors that a device can hold, whole batches, split over the replicas.

    Strings (image ids) stay behind. A batch with fewer than `batch_size` rows is filled with copies of
    its rows that count for nothing (all labels -2), so no replica is ever left without a row. Replica r
    of R gets rows [r * B / R, (r + 1) * B / R).

    The rows that fill a batch, here as in the records' pipeline, show real images of the epoch: a loss never sees
    them, but batch normalisation takes its statistics over them too, at most in one batch an epoch.

    Raises:
        ConfigError: `batch_size` cannot be split evenly.
    """
    require_even_split(batch_size, strategy)
    dataset = dataset.map(lambda batch: fill(batch, batch_size))
    return strategy.experimental_distribute_dataset(dataset)


def require_even_split(batch_size, strategy, accumulate=1):
    """Raises ConfigError where the replicas cannot get equally many rows of a global batch, in equal parts."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise ConfigError(
            f"train.batch_size is {batch_size}, which {replicas} replicas cannot share evenly; "
            f"take {max(batch_size // replicas, 1) * replicas}"
        )
    pieces = replicas * accumulate
    if batch_size % pieces:
        raise ConfigError(
            f"train.batch_size is {batch_size}, which {replicas} replicas cannot take in {accumulate} equal parts "
            f"(train.accumulate); take {max(batch_size // pieces, 1) * pieces}"
        )


# --- forward and backward -----------------------------------------------------------------------


def _make_compute(model, detector, scaled):
    """batch -> gradients of the mean loss of its rows, and the sums over them. No replica talks to another here,
    synchronised batch normalisation aside, so that XLA can compile it."""

    def compute(batch):
        with tf.GradientTape() as tape:
            sums = _sums(model, detector, batch, training=True)
            losses = [value for name, value in sums.items() if name not in (schema.NORMALIZER, IMAGES)]
            loss = tf.add_n(losses) / tf.cast(_rows(batch), tf.float32)
            loss = scaled(loss) if scaled else loss
        none = tf.UnconnectedGradients.ZERO
        return tape.gradient(loss, model.trainable_variables, unconnected_gradients=none), sums

    return compute


def _in_parts(compute, parts):
    """`compute` for a batch in equal parts, one after the other: the sums of what it gives for each."""
    if parts == 1:
        return compute

    def loop(batch):
        split = {name: tf.reshape(value, _in_front(parts, value)) for name, value in batch.items()}
        part = lambda number: {name: value[number] for name, value in split.items()}  # noqa: E731
        add = lambda number, sums: (number + 1, tf.nest.map_structure(tf.add, sums, compute(part(number))))  # noqa: E731
        first = tf.constant(1), compute(part(0))  # outside: its result says what is summed
        return tf.while_loop(lambda number, _: number < parts, add, first, parallel_iterations=1)[1]

    return loop


def _in_front(parts, value):
    """The shape of a batch's entry in `parts`: [parts, B / parts, ...]; all but the count of boxes is static."""
    sizes = [size if size is not None else tf.shape(value)[axis] for axis, size in enumerate(value.shape)]
    return [parts, sizes[0] // parts, *sizes[1:]]


def _rows(batch):
    """Images of a batch; a tensor where TensorFlow 2.15 has lost count of them, as in a resumed run of many workers."""
    images = batch[schema.IMAGE]
    return tf.shape(images)[0] if images.shape[0] is None else images.shape[0]


def _sums(model, detector, batch, training):
    """This replica's sums over its images: the named losses, "normalizer" and "images", float32 scalars."""
    predictions = model(batch[schema.IMAGE], training=training)
    predictions = {name: tf.cast(value, tf.float32) for name, value in predictions.items()}
    sums = {name: tf.reduce_sum(value) for name, value in detector.loss(batch, predictions).items()}
    real = tf.reduce_any(batch[schema.TARGET_LABELS] != schema.IGNORE, axis=1)
    normalizer = tf.stop_gradient(sums.pop(schema.NORMALIZER))
    return {**sums, schema.NORMALIZER: normalizer, IMAGES: tf.reduce_sum(tf.cast(real, tf.float32))}


def _metrics(sums):
    """The sums over the global batch as losses of the objective."""
    losses = {name: value for name, value in sums.items() if name not in (schema.NORMALIZER, IMAGES)}
    losses = {name: value / tf.maximum(sums[schema.NORMALIZER], 1.0) for name, value in losses.items()}
    counts = {name: sums[name] for name in (schema.NORMALIZER, IMAGES)}
    return {**losses, "loss": tf.add_n(list(losses.values())), **counts}


# --- gradients ----------------------------------------------------------------------------------


def _penalty_gradients(model):
    """Gradients of the layers' regularizers of weights, which see no images; None where there are none."""
    with tf.GradientTape() as tape:
        penalties = model.losses
        total = tf.add_n(penalties) if penalties else None
    return None if total is None else tape.gradient(total, model.trainable_variables)


def _add(gradients, more):
    return gradients if more is None else [a if b is None else a + b for a, b in zip(gradients, more)]


def _decay(gradients, variables, weight_decay):
    """The gradients with those of L2 decay added, for kernels only: biases and scales have one dimension."""
    return [
        gradient + weight_decay * variable if len(variable.shape) > 1 else gradient
        for gradient, variable in zip(gradients, variables)
    ]


def _all_finite(values):
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in values])


def _all_reduce(values):
    """Tensors of any structure, summed over the replicas."""
    context = tf.distribute.get_replica_context()
    return values if context.num_replicas_in_sync == 1 else context.all_reduce(SUM, values)


# --- functions and batches ----------------------------------------------------------------------


def _function(step, element_spec):
    return tf.function(step, input_signature=element_spec and [element_spec], reduce_retracing=True, autograph=False)


def _first(strategy, metrics):
    """All-reduced, every replica has the same: the first's."""
    return {name: strategy.experimental_local_results(value)[0] for name, value in metrics.items()}


def _done(_):
    """Both branches of a `tf.cond` have to return something."""
    return tf.constant(0)


def _without_strings(batch):
    return {name: value for name, value in batch.items() if value.dtype != tf.string}


def fill(batch, batch_size):
    """A batch of `batch_size` rows without strings; the rows that are added repeat the others and are ignored."""
    batch = _without_strings(batch)
    if all(value.shape[0] == batch_size for value in batch.values()):
        return batch
    rows = tf.shape(batch[schema.IMAGE])[0]
    too_many = tf.debugging.assert_less_equal(rows, batch_size, "a batch has more rows than train.batch_size")
    with tf.control_dependencies([too_many]):
        index = tf.range(batch_size) % rows
    filled = {name: tf.gather(value, index) for name, value in batch.items()}
    added = tf.range(batch_size) >= rows
    for name in {schema.LABELS, schema.TARGET_LABELS} & set(batch):
        filled[name] = tf.where(added[:, None], schema.IGNORE, filled[name])
    return filled
