"""When a run looks at its losses, when it saves, and when it ends; several workers do so at the same steps."""

import math
import time

from tfdet.train import workers


class Pace:
    """The clock of a part of a run.

    Args:
        strategy: tf.distribute.Strategy. train: TrainConfig.
        first: int, the step at which this process starts. start: float, `time.perf_counter()` when the call began.
        log_every, checkpoint_every, checkpoint_minutes: as in `loop.fit`.

    Attributes:
        is_late: whether the time given was over at the last `ended`.
        agrees: whether several workers train, which have to ask at the same steps.
    """

    def __init__(
        self, strategy, train, steps_per_epoch, *, first, start, log_every, checkpoint_every, checkpoint_minutes
    ):
        self._agreement = workers.Agreement(strategy)
        self._first = first
        self._steps_per_epoch = steps_per_epoch
        self._log_every = log_every
        self._checkpoint_every = checkpoint_every
        self._checkpoint_minutes = checkpoint_minutes
        self._deadline = start + 60 * train.max_minutes if train.max_minutes else math.inf
        self.is_late = False
        self.agrees = self._agreement.is_needed
        self.saved()

    def saved(self):
        """A checkpoint was written now."""
        self._saved_at = time.perf_counter()

    def is_time_to_look(self, step) -> bool:
        return step % self._log_every == 0 or step == self._first + 1

    def is_time_to_save(self, step) -> bool:
        if self._checkpoint_every and step % self._checkpoint_every == 0:
            return True
        if not self._checkpoint_minutes or (self.agrees and step % self._log_every):
            return False
        return self._agreement.on([time.perf_counter() - self._saved_at >= 60 * self._checkpoint_minutes])[0]

    def ended(self, step, stopped, signalled) -> tuple:
        """Whether to end at this step because somebody stopped the training or time is over, and whether because of a
        signal; of several workers, if one of them has to: (bool, bool)."""
        if self.agrees and step % self._log_every and step % self._steps_per_epoch:
            return False, False
        is_late = step > self._first and time.perf_counter() >= self._deadline  # after one step at least
        stopped, self.is_late, signalled = self._agreement.on([stopped, is_late, signalled])
        return stopped or self.is_late, signalled
