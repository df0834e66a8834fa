"""The rows of train_step.py: each a function from (steps, seconds) to the times of its steps.

A row makes at most so many steps, and no further one once the seconds are over. Call each once before it counts: its
first step compiles. Steps that live on batches made before the clock ran are left out. Reading a step's loss waits for
the step.
"""

import time
from functools import partial

import tensorflow as tf

from tfdet import detectors, schema
from tfdet.compat import keras
from tfdet.data import pipeline
from tfdet.train import devices, optimizers, setup
from tfdet.train.step import distribute, make_train_step

MEANING = {
    "forward_backward": "plain tf.function: losses and gradients, no update",
    "bare": "the same with the optimizer's update: what any loop has to do",
    "keras_fit": "the same in keras.Model.fit",
    "cached": "tfdet's step on a cached batch",
    "cached_xla": "the same with --xla",
    "real": "tfdet's step on records, augmented and encoded",
}


def make_rows(record_set, config, names, replicas) -> dict:
    """name -> row, for the rows that were asked for; all work on batches of the same size.

    A row returns two lists of floats, a step each: seconds, and the seconds of these that it waited for its batch.
    """
    detector = detectors.build(config.detector, config.num_classes)
    real = partial(pipeline.train_dataset, record_set, config, detector.encode)
    cached = next(iter(distribute(real(), tf.distribute.get_strategy(), config.train.batch_size)))
    makers = {
        "forward_backward": lambda: _on_a_batch(_plain(detector, config, update=False), cached),
        "bare": lambda: _on_a_batch(_plain(detector, config, update=True), cached),
        "keras_fit": lambda: _fitting(_Fitted(detector, config), cached),
        "cached": lambda: _on_a_batch(_ours(detector, config), cached),
        "cached_xla": lambda: _on_a_batch(_ours(detector, config, xla=True), cached),
        "real": lambda: _on_records(_ours(detector, config), real(), config),
    }
    rows = {name: makers[name]() for name in names}
    for number in replicas:
        if number > 1:
            rows[f"replicas {number}"] = _on_replicas(number, detector, config, cached)
    return rows


# --- steps --------------------------------------------------------------------------------------


def _built(detector, config, strategy=None):
    """A model and its optimizer."""
    strategy = strategy or tf.distribute.get_strategy()
    model = setup.build_model(detector, config.train, strategy)
    with strategy.scope():
        return model, optimizers.build_optimizer(config.train, 1000, model)


def _ours(detector, config, strategy=None, xla=False):
    model, optimizer = _built(detector, config, strategy)
    return make_train_step(
        model, detector, optimizer, xla=xla, weight_decay=optimizers.l2(config.train),
        clip_norm=config.train.clip_norm,
    )  # fmt: skip


def _loss(model, detector, batch):
    """The objective of one device, written as anybody would."""
    sums = detector.loss(batch, model(batch[schema.IMAGE], training=True))
    losses = [tf.reduce_sum(value) for name, value in sums.items() if name != schema.NORMALIZER]
    return tf.add_n(losses) / tf.maximum(tf.reduce_sum(sums[schema.NORMALIZER]), 1.0)


def _plain(detector, config, update):
    model, optimizer = _built(detector, config)

    @tf.function
    def step(batch):
        with tf.GradientTape() as tape:
            loss = _loss(model, detector, batch)
        gradients = tape.gradient(loss, model.trainable_variables)
        if update:
            optimizer.apply_gradients(zip(gradients, model.trainable_variables))
            return {"loss": loss}
        # one number that needs every gradient, or they would not be computed
        return {"loss": loss + 0.0 * tf.add_n([tf.reduce_sum(gradient[..., :1]) for gradient in gradients])}

    return step


class _Fitted(keras.Model):
    """The detector's model and loss for `fit`."""

    def __init__(self, detector, config):
        super().__init__()
        self.detector = detector
        self.net, optimizer = _built(detector, config)
        self.compile(optimizer=optimizer)

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = _loss(self.net, self.detector, batch)
        variables = self.net.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return {"loss": loss}


# --- rows ---------------------------------------------------------------------------------------


def _timed(step, iterator, warm_up):
    def run(steps, seconds):
        for _ in range(warm_up):
            float(step(next(iterator))["loss"])
        times, waits, end = [], [], time.perf_counter() + seconds
        while len(times) < steps and (not times or time.perf_counter() < end):
            begin = time.perf_counter()
            batch = next(iterator)
            waits.append(time.perf_counter() - begin)
            float(step(batch)["loss"])
            times.append(time.perf_counter() - begin)
        return times, waits

    return run


def _on_a_batch(step, batch):
    return _timed(step, iter(lambda: batch, None), warm_up=0)


def _on_records(step, dataset, config):
    """Only steps whose batches are made while other steps run: those that were prefetched in a pause come first."""
    data = distribute(dataset, tf.distribute.get_strategy(), config.train.batch_size)
    return _timed(step, iter(data), warm_up=1 + config.data.prefetch)


def _on_replicas(number, detector, config, cached):
    strategy = devices.choose_strategy(replicas=number)
    data = distribute(tf.data.Dataset.from_tensors(cached), strategy, config.train.batch_size)
    return _on_a_batch(_ours(detector, config, strategy), next(iter(data)))


class _Clock(keras.callbacks.Callback):
    """The seconds of each step but the first; ends the training when time is over."""

    def __init__(self, seconds):
        super().__init__()
        self.times, self._seconds = [], seconds

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if batch == 0:
            self._end = now + self._seconds
        else:
            self.times.append(now - self._before)
        self._before = now
        self.model.stop_training = bool(self.times) and now >= self._end


def _fitting(model, cached):
    data = tf.data.Dataset.from_tensors(cached).repeat()

    def run(steps, seconds):
        clock = _Clock(seconds)
        model.fit(data, steps_per_epoch=steps + 1, epochs=1, verbose=0, callbacks=[clock])
        return clock.times, [0.0] * len(clock.times)

    return run
