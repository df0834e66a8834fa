import itertools
import subprocess
import sys
import time

import pytest

from tfdet import timing


def test_measure_counts_images():
    pulled = []
    source = (pulled.append(number) for number in itertools.count())
    rate, core_ms = timing.measure(source, 7, 4)
    assert len(pulled) == 7
    assert rate > 0
    assert core_ms >= 0


def test_compare_takes_turns_and_leaves_warm_up_out():
    order = []

    class Source:
        def __init__(self, name):
            self.name = name

        def __iter__(self):
            order.append(self.name)
            return itertools.count()

    rates = timing.compare({"a": (Source("a"), 8, 4), "b": (Source("b"), 8, 1)}, passes=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert all(len(rate.images_per_second) == 3 for rate in rates.values())


def test_a_rate_as_a_dict():
    rate = timing.Rate((100.0, 300.0, 200.0), (1.0, 2.0, 9.0))
    assert rate.median == 200
    assert rate.to_dict() == {
        "images_per_second": 200.0,
        "core_ms": 2.0,
        "images_per_second_min": 100.0,
        "images_per_second_max": 300.0,
    }


def test_peak_memory_is_that_of_a_process():
    assert timing.peak_rss_mb() == pytest.approx(timing.peak_rss_mb(), rel=0.5)
    assert 10 < timing.peak_rss_mb() < 100_000


def test_the_time_of_child_processes_counts():
    before = timing.cpu_seconds()
    work = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        if sys.platform == "linux":
            assert 0.4 < timing.cpu_seconds() - before < 5  # it still runs
        child.communicate(b"\n")
    assert 0.4 < timing.cpu_seconds() - before < 5
    own = time.process_time()
    assert timing.cpu_seconds() >= own
