"""Training batches from a tf.data service on this machine: a dispatcher and two workers in processes of their own."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import make_records

from tfdet import schema
from tfdet.config import Config, ConfigError, DataConfig, SsdConfig, TrainConfig
from tfdet.data import pipeline, service

TOOL = Path(__file__).resolve().parents[1] / "tools" / "data_service.py"
NUMBER, BATCH = 22, 4
STEPS = 6  # an epoch: 22 images in fours, the last batch with two rows that fill up


@contextlib.contextmanager
def process(*arguments):
    """A running process of the service and its address."""
    with subprocess.Popen([sys.executable, TOOL, *arguments], stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running, json.loads(running.stdout.readline())["address"]
        finally:
            running.terminate()


@pytest.fixture(scope="module")
def address():
    """A dispatcher that counts a worker as dead after two seconds."""
    with process("dispatcher", "--worker-timeout", "2") as (_, address):
        yield address


@pytest.fixture(scope="module")
def lasting_worker(address):
    with process("worker", "--dispatcher", address) as (running, _):
        yield running


@pytest.fixture(scope="module")
def record_set(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("service"), NUMBER)


def make_config(**data):
    return Config(detector=SsdConfig(image_size=(60, 80)), data=DataConfig(**data), train=TrainConfig(batch_size=BATCH))


def rows_of(batches):
    """image id -> its rows' pixels, sorted, so that the order of batches does not matter."""
    return sorted(
        (row_id, image.tobytes()) for batch in batches for row_id, image in zip(batch["image_id"], batch["image"])
    )


def test_an_epoch_from_two_workers_is_the_epoch(address, lasting_worker, record_set):
    config = make_config()
    with process("worker", "--dispatcher", address):
        served = [list(service.served_dataset(record_set, config, None, address, start).as_numpy_iterator())
                  for start in (0, STEPS, 2 * STEPS + 4)]  # fmt: skip
    local = list(pipeline.train_dataset(record_set, config).take(3 * STEPS).as_numpy_iterator())
    assert [len(epoch) for epoch in served] == [STEPS, STEPS, 2]  # the third is resumed at its fifth step
    for epoch, expected in zip(served, (local[:STEPS], local[STEPS : 2 * STEPS], local[2 * STEPS + 4 :])):
        assert rows_of(epoch) == rows_of(expected)
    ids = [name for batch in served[0] for name in batch["image_id"]]
    assert ids.count(b"") == STEPS * BATCH - NUMBER
    assert len(set(ids)) == NUMBER + 1
    assert all((batch["labels"][batch["image_id"] == b""] == schema.IGNORE).all() for batch in served[0])


def test_training_goes_on_when_a_worker_dies(address, lasting_worker, record_set):
    config = make_config()
    with process("worker", "--dispatcher", address) as (victim, _):
        batches = iter(service.served_dataset(record_set, config, None, address, endless=True))
        seen = [next(batches) for _ in range(2 * STEPS)]
        victim.kill()
        victim.wait()
        seen += [next(batches) for _ in range(5 * STEPS)]
        del batches
    ids = [name for batch in seen for name in batch["image_id"].numpy() if name]
    counts = np.unique(ids, return_counts=True)[1]
    assert len(counts) == NUMBER
    # seven epochs' worth: what the dead worker had in work is missing, nothing comes twice for that
    assert counts.max() <= 10
    assert counts.min() >= 3


def test_an_epoch_ends_when_a_worker_dies_in_it(address, lasting_worker, record_set):
    config = make_config()
    with process("worker", "--dispatcher", address) as (victim, _):
        batches = iter(service.served_dataset(record_set, config, None, address))
        first = next(batches)
        victim.kill()
        victim.wait()
        rest = list(batches)
    ids = [name for batch in [first, *rest] for name in batch["image_id"].numpy() if name]
    assert len(ids) == len(set(ids))  # at most once
    assert len(rest) <= STEPS - 1


@pytest.mark.parametrize("address", ["localhost:5050", "grpc://localhost", "http://a:1", "grpc://:1"])
def test_addresses_that_cannot_be(address):
    with pytest.raises(ConfigError, match="grpc://host:port"):
        service.check_address(address)


def test_sequential_reading_is_refused(record_set):
    with pytest.raises(ConfigError, match="sequential"):
        service.served_dataset(record_set, make_config(shuffle="sequential"), None, "grpc://localhost:1")


def test_a_mistake_is_one_line():
    command = [sys.executable, TOOL, "worker", "--dispatcher", "nowhere"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "grpc://host:port" in ran.stderr
    assert "Traceback" not in ran.stderr
