"""Averages of a model's weights over the steps of a run: evaluated and saved in the place of the weights."""

import contextlib

import tensorflow as tf


class WeightAverages:
    """Averages that somebody keeps, e.g. an optimizer's slots.

    Args:
        pairs: list of (variable of the model, variable with its average).
    """

    def __init__(self, pairs):
        self._pairs = list(pairs)

    @property
    def values(self) -> list:
        """The averages, in the order of the model's variables."""
        return [average for _, average in self._pairs]

    @property
    def saved(self) -> list:
        """The variables that a checkpoint has to hold besides: none where the optimizer holds them."""
        return []

    @contextlib.contextmanager
    def swapped(self):
        """Inside, the model has the averages for weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def update(self, iterations):
        """Whoever keeps the averages moves them."""

    def _swap(self):
        for variable, average in self._pairs:
            # of a statistic that each replica keeps for itself this is the replicas' mean
            value, other = tf.identity(variable), tf.identity(average)
            variable.assign(other)
            average.assign(value)


class MovingAverages(WeightAverages):
    """Exponential moving averages of all weights and batch normalisation statistics, kept after every update.

    average <- d * average + (1 - d) * value with d = min(decay, (1 + t) / (10 + t)) after t updates, so that early
    averages do not hold on to the initial weights (the ramp of `tf.train.ExponentialMovingAverage`).

    Args:
        model: keras.Model; its strategy is taken. decay: float in (0, 1).
    """

    def __init__(self, model, decay):
        self._strategy, self._decay = model.distribute_strategy, decay
        floating = [variable for variable in model.variables if variable.dtype.is_floating]
        with self._strategy.scope():
            super().__init__(
                (variable, tf.Variable(tf.identity(variable), trainable=False, name="average")) for variable in floating
            )

    @property
    def saved(self):
        return self.values

    def update(self, iterations):
        """Moves the averages towards the weights; call it outside of the replicas, once an update.

        Args:
            iterations: int [], updates so far.
        """
        updates = tf.cast(iterations, tf.float32)
        share = 1.0 - tf.minimum(self._decay, (1.0 + updates) / (10.0 + updates))
        for variable, average in self._pairs:
            # what replicas mirror is read where it is; of a statistic that each has for itself, the mean
            value = variable if variable.trainable else tf.identity(variable)
            self._strategy.extended.update(average, _move, args=(value, share))


def _move(average, value, share):
    average.assign_add(share * (tf.cast(value, average.dtype) - average))
