"""Figures of a run: losses averaged rightly, images a second, and the share of time spent waiting for data."""

import time

from tfdet import schema
from tfdet.train.step import IMAGES, SKIPPED


class EpochMean:
    """Losses of many batches as if they were one batch: weighted by their normalizers.

    Args:
        state: what `state` of an earlier one gave, to go on from there.

    Attributes:
        skipped: int, batches whose update was left out; they do not count.
    """

    def __init__(self, state=None):
        state = state or {"sums": {}, "weight": 0.0, "skipped": 0}
        self._sums, self._weight, self.skipped = dict(state["sums"]), state["weight"], state["skipped"]

    @property
    def state(self) -> dict:
        """All of it as JSON can hold it, exactly."""
        return {"sums": dict(self._sums), "weight": self._weight, "skipped": self.skipped}

    def add(self, metrics):
        """metrics: dict of floats, as a step returns them."""
        if metrics.get(SKIPPED):
            self.skipped += 1
            return
        weight = max(metrics[schema.NORMALIZER], 1.0)
        self._weight += weight
        for name, value in metrics.items():
            if name not in (schema.NORMALIZER, IMAGES, SKIPPED):
                self._sums[name] = self._sums.get(name, 0.0) + weight * value

    def result(self) -> dict:
        """The mean "loss", then its parts by name; empty where nothing was added."""
        names = sorted(self._sums, key=lambda name: (name != "loss", name))
        return {name: self._sums[name] / self._weight for name in names}


class Meter:
    """Keeps the metrics of steps on the device until they are read, since reading waits for the device.

    `images` and `seconds` add up all reads but the first, whose step was traced and compiled.
    """

    def __init__(self):
        self.images, self.seconds = 0.0, 0.0
        self._pending, self._warm = [], False
        self.restart()

    def restart(self):
        """Forgets the time since the last read; for whatever is not training."""
        self._begin, self._waited = time.perf_counter(), 0.0

    def next(self, data):
        """The next batch, with the time it takes counted as waiting."""
        begin = time.perf_counter()
        batch = next(data)
        self._waited += time.perf_counter() - begin
        return batch

    def add(self, metrics):
        self._pending.append(metrics)

    def read(self):
        """The metrics of each step since the last read as floats, and the speed over these steps."""
        rows = [to_floats(metrics) for metrics in self._pending]
        seconds = time.perf_counter() - self._begin
        images = sum(row[IMAGES] for row in rows)
        speed = {"images_per_second": images / seconds, "data_wait": self._waited / seconds}
        if self._warm and rows:  # without steps it was not training that took the time
            self.images, self.seconds = self.images + images, self.seconds + seconds
        self._pending, self._warm = [], self._warm or bool(rows)
        self.restart()
        return rows, speed

    def images_per_second(self, since=(0.0, 0.0)) -> float:
        """Over everything counted after `since`, an earlier (images, seconds); 0 where nothing was."""
        images, seconds = self.images - since[0], self.seconds - since[1]
        return images / seconds if seconds else 0.0


def to_floats(metrics) -> dict:
    return {name: float(value) for name, value in metrics.items()}
