"""How fast something yields: the stopwatch of the benchmarks."""

import os
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Rate:
    """Rates of repeated passes over the same work: images a second and CPU milliseconds an image, all threads."""

    images_per_second: tuple[float, ...]
    core_ms: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.images_per_second)

    @property
    def median_core_ms(self) -> float:
        return statistics.median(self.core_ms)

    def to_dict(self) -> dict:
        return {
            "images_per_second": round(self.median, 1),
            "core_ms": round(self.median_core_ms, 3),
            "images_per_second_min": round(min(self.images_per_second), 1),
            "images_per_second_max": round(max(self.images_per_second), 1),
        }


def measure(iterator, steps: int, images_per_step: int) -> tuple[float, float]:
    """Pulls `steps` elements and times just them.

    Args:
        iterator: yields elements of `images_per_step` images.
    Returns:
        images a second of wall time, and CPU milliseconds an image over all threads of the process and its children.
    """
    wall, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(steps):
        next(iterator)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    images = steps * images_per_step
    return images / wall, 1e3 * cpu / images


def compare(work: dict, passes: int = 5, warmup: int = 1, progress=None) -> dict:
    """Measures several sources in turn, A B C A B C ..., so that a drifting machine treats all alike.

    Every pass takes a fresh iterator and pulls one element before the clock starts, so that neither set-up counts
    nor work that another pass left in a buffer.

    Args:
        work: name -> (iterable that does not end, images a pass, images an element holds).
        passes: counted passes each; warmup: passes before them that do not count.
        progress: called after every pass.
    Returns:
        Rate by name.
    """
    figures = {name: [] for name in work}
    for number in range(warmup + passes):
        for name, (source, images, images_per_step) in work.items():
            iterator = iter(source)
            next(iterator)
            pair = measure(iterator, max(1, images // images_per_step), images_per_step)
            del iterator  # its threads end here, not in another's pass
            if number >= warmup:
                figures[name].append(pair)
            if progress:
                progress()
    return {name: Rate(*zip(*pairs)) for name, pairs in figures.items()}


def cpu_seconds() -> float:
    """CPU time of all threads of this process and of its child processes, those that ended and, on Linux, those that
    still run."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(map(_cpu_seconds_of, _children()))


def _children() -> list[str]:
    """The process ids of the children that run."""
    return " ".join(_read(task / "children") for task in Path("/proc/self/task").glob("*")).split()


def _cpu_seconds_of(process) -> float:
    # the 14th and 15th field, user and system, counted behind the name, which may hold spaces
    fields = _read(Path(f"/proc/{process}/stat")).rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _read(path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # a thread or process that has just ended, or no Linux
        return ""


def peak_rss_mb() -> float:
    """The largest memory this process has held, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
