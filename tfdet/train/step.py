"""One training step and one validation step under `tf.distribute`; the only place where losses are reduced.

A detector's losses are named sums per image. Here they are summed over the images and divided by the
normalizer of the GLOBAL batch, all replicas together. So however a batch is split over replicas,
the same number is minimised and the same gradient is applied.
"""

import tensorflow as tf

from tfdet import schema
from tfdet.compat import keras
from tfdet.config import ConfigError

SUM = tf.distribute.ReduceOp.SUM
IMAGES = "images"  # metric: images of the batch that were trained on, filled rows not counted


def make_train_step(model, detector, optimizer, *, weight_decay=0.0, clip_norm=0.0, element_spec=None):
    """A `tf.function` from a (distributed) batch to the metrics of the update it made.

    Args:
        model: keras.Model, built under the strategy it is to run on.
        detector: follows `detectors.base.Detector`.
        optimizer: a Keras 2 optimizer made under the same strategy.
        weight_decay: L2 factor d; adds d/2 * |w|^2 of every kernel to the objective. The reported losses leave it out.
        clip_norm: longest gradient in the 2-norm over all weights; 0 does not clip.
        element_spec: of the data set that `distribute` gave. With it the step is traced once, though batches
            differ in the number of boxes that they are padded to.
    Returns:
        function: batch -> dict of float32 scalars: the named losses and their sum "loss", "normalizer",
        "images" and, where gradients are clipped, "gradient_norm".
    """
    scaling = isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer)

    def replica_step(batch):
        variables = model.trainable_variables
        with tf.GradientTape() as tape:
            metrics = _metrics(model, detector, batch, training=True)
            # regularization losses see no images: each replica takes its share of them
            loss = metrics["loss"] + sum(model.losses) / _num_replicas()
            loss = optimizer.get_scaled_loss(loss) if scaling else loss
        gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = _all_reduce(gradients)
        gradients = optimizer.get_unscaled_gradients(gradients) if scaling else gradients
        gradients = _decay(gradients, variables, weight_decay) if weight_decay else gradients
        metrics = _all_reduce(metrics)
        if clip_norm:  # after the all-reduce: the norm of the global gradient, the same on every replica
            gradients, metrics["gradient_norm"] = tf.clip_by_global_norm(gradients, clip_norm)
        # this spelling of "already aggregated" is understood by new, legacy and loss-scaling optimizers
        optimizer.apply_gradients(zip(gradients, variables), experimental_aggregate_gradients=False)
        return metrics

    return _distributed(replica_step, model.distribute_strategy, element_spec)


def make_eval_step(model, detector, element_spec=None):
    """As `make_train_step`, without training: a `tf.function` from a batch to its metrics."""

    def replica_step(batch):
        return _all_reduce(_metrics(model, detector, batch, training=False))

    return _distributed(replica_step, model.distribute_strategy, element_spec)


def distribute(dataset, strategy, batch_size):
    """The dataset as the steps want it: tensors that a device can hold, whole batches, split over the replicas.

    Strings (image ids) stay behind. A batch with fewer than `batch_size` rows is filled with copies of
    its rows that count for nothing (all labels -2), so no replica is ever left without a row. Replica r
    of R gets rows [r * B / R, (r + 1) * B / R).

    Raises:
        ConfigError: `batch_size` cannot be split evenly.
    """
    require_even_split(batch_size, strategy)
    dataset = dataset.map(lambda batch: _fill(_without_strings(batch), batch_size))
    return strategy.experimental_distribute_dataset(dataset)


def require_even_split(batch_size, strategy):
    """Raises ConfigError where the replicas cannot get equally many rows of a global batch."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise ConfigError(
            f"train.batch_size is {batch_size}, which {replicas} replicas cannot share evenly; "
            f"take {max(batch_size // replicas, 1) * replicas}"
        )


def _distributed(replica_step, strategy, element_spec):
    @tf.function(input_signature=element_spec and [element_spec], reduce_retracing=True)
    def step(batch):
        metrics = strategy.run(replica_step, args=(batch,))
        # all-reduced, so every replica has the same; take the first's
        return {name: strategy.experimental_local_results(value)[0] for name, value in metrics.items()}

    return step


def _metrics(model, detector, batch, training):
    """This replica's part of every metric; their sum over the replicas is the metric."""
    predictions = model(batch[schema.IMAGE], training=training)
    predictions = {name: tf.cast(value, tf.float32) for name, value in predictions.items()}
    sums = {name: tf.reduce_sum(value) for name, value in detector.loss(batch, predictions).items()}
    normalizer = tf.stop_gradient(sums.pop(schema.NORMALIZER))
    divisor = tf.maximum(_all_reduce(normalizer), 1.0)
    losses = {name: value / divisor for name, value in sums.items()}
    real = tf.reduce_any(batch[schema.TARGET_LABELS] != schema.IGNORE, axis=1)
    images = tf.reduce_sum(tf.cast(real, tf.float32))
    return {**losses, "loss": tf.add_n(list(losses.values())), schema.NORMALIZER: normalizer, IMAGES: images}


def _decay(gradients, variables, weight_decay):
    """The gradients with those of L2 decay added, for kernels only: biases and scales have one dimension."""
    return [
        gradient + weight_decay * variable if len(variable.shape) > 1 else gradient
        for gradient, variable in zip(gradients, variables)
    ]


def _num_replicas():
    return tf.distribute.get_replica_context().num_replicas_in_sync


def _all_reduce(values):
    """Tensors of any structure, summed over the replicas."""
    return values if _num_replicas() == 1 else tf.distribute.get_replica_context().all_reduce(SUM, values)


def _without_strings(batch):
    return {name: value for name, value in batch.items() if value.dtype != tf.string}


def _fill(batch, batch_size):
    """A batch of `batch_size` rows; the rows that are added repeat the others and are ignored."""
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
