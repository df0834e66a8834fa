import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import make_records

from tfdet.data.records import open_split

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def restart(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import restart

    yield restart
    sys.modules.pop("restart")


def test_a_multiplied_set_opens_and_repeats_its_records(tmp_path, restart):
    small = make_records(tmp_path, 6, shards=1)
    large = tmp_path / "large"
    large.mkdir()
    count = len(small.index)
    images = -(-20 // count) * count
    assert restart.multiply(tmp_path / "records", large, 20) == images
    records = open_split(large, "train")
    assert records.num_images == len(records.index) == images
    assert records.index[:, 0].max() + 1 == len(records.shard_paths) == images // count
    np.testing.assert_array_equal(records.index[-count:, 1:], small.index[:, 1:])


def test_the_first_batch_is_timed_at_both_steps(tmp_path, restart):
    make_records(tmp_path, 6, shards=1)
    seconds = restart.first_batches(tmp_path / "records", "demo")
    assert list(seconds) == ["first batch, step 0", "first batch, step 10,000,000"]
    assert all(value > 0 for value in seconds.values())
