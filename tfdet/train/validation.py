"""What is measured at the end of an epoch: the validation loss, and whatever the caller evaluates."""

import numpy as np

from tfdet.train.meters import EpochMean, to_floats
from tfdet.train.step import make_eval_step
from tfdet.train.workers import feed_whole

SCORE = "map50"  # the figure by which evaluated epochs are compared
PER_CLASS, CLASS_SCORE = "per_class", "ap50"


class Validation:
    """Args as in `loop.fit`; `dataset` and `evaluate` may be None.

    Attributes:
        evaluated: whether the last `measure` called `evaluate`.
        by_class: the AP of each class it gave, by name.
    """

    def __init__(self, model, detector, dataset, batch_size, evaluate, evaluate_every):
        self._model, self._evaluate, self._every = model, evaluate, evaluate_every
        self._data, self.by_class, self.evaluated = None, {}, False
        if dataset is not None:
            self._data = feed_whole(dataset, model.distribute_strategy, batch_size)
            self._step = make_eval_step(model, detector, self._data.element_spec)

    def measure(self, epoch, is_last):
        """The figures of an epoch, and the score by which epochs are compared: higher is better, None: no verdict.

        is_last: () -> bool, whether training ends with this epoch, which is then evaluated whatever its number.
        """
        self.by_class, self.evaluated = {}, False
        losses = {f"val_{name}": value for name, value in self._losses().items()}
        if self._evaluate is None:
            return losses, -losses["val_loss"] if losses else None
        if not ((self._every and (epoch + 1) % self._every == 0) or is_last()):
            return losses, None
        found, self.evaluated = self._evaluate(self._model), True
        measured = {name: float(value) for name, value in found.items() if _is_figure(value)}
        self.by_class = {name: float(row[CLASS_SCORE]) for name, row in found.get(PER_CLASS, {}).items()}
        return losses | measured, measured.get(SCORE)

    def _losses(self):
        mean = EpochMean()
        if self._data is not None:
            for metrics in [self._step(batch) for batch in self._data]:  # all are queued before the first is read
                mean.add(to_floats(metrics))
        return mean.result()


def _is_figure(value):
    """Whether it can be drawn as a curve; counts and lists cannot."""
    return isinstance(value, float | np.floating)
