"""Two processes on this machine train as one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from datasets import make_records

from tfdet.config import ConfigError
from tfdet.train import devices, workers

WORKER = Path(__file__).with_name("worker.py")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(records, run, options, index=0, ports=()):
    cluster = {
        "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
        "task": {"type": "worker", "index": index},
    }
    environment = {**os.environ, "WORKER": str(index), **({"TF_CONFIG": json.dumps(cluster)} if ports else {})}
    command = [sys.executable, str(WORKER), str(records), str(run), json.dumps(options)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(*processes):
    try:
        for process in processes:
            _, err = process.communicate(timeout=240)
            assert process.returncode == 0, err[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_two_workers_train_as_one_process(tmp_path):
    """20 steps of SGD with the same global batches of 8; the last batch of an epoch is filled. One writes."""
    make_records(tmp_path, 20, shards=1)
    options = {
        "epochs": 2, "steps_per_epoch": 10, "val": True,
        "train": {"optimizer": "sgd", "learning_rate": 1e-3, "ema_decay": 0.9, "clip_norm": 10.0},
    }  # fmt: skip
    records, together, alone = (tmp_path / name for name in ("records", "together", "alone"))
    ports = free_ports(2)
    many = {**options, "multiworker": True}
    finish(*(start(records, together, many, index, ports) for index in range(2)))
    finish(start(records, alone, options))
    results = [dict(np.load(together / f"result_{index}.npz")) for index in range(2)]
    expected = dict(np.load(alone / "result_0.npz"))
    assert len(expected["losses"]) == 20
    assert expected["losses"][-1] < expected["losses"][0]
    for result in results:
        np.testing.assert_allclose(result["losses"], expected["losses"], rtol=1e-4)
        for name in (name for name in expected if name.startswith("weight/")):
            np.testing.assert_array_equal(result[name], results[0][name])
            np.testing.assert_allclose(result[name], expected[name], rtol=1e-3, atol=1e-5)
    names = {path.name for path in together.iterdir()}
    assert names - {"result_0.npz", "result_1.npz"} == {
        "config.json", "weights.h5", "best.h5", "history.csv", "checkpoints", "logs",
    }  # fmt: skip
    val_losses = [line.split(",") for line in (together / "history.csv").read_text().splitlines()]
    alone_rows = [line.split(",") for line in (alone / "history.csv").read_text().splitlines()]
    column = val_losses[0].index("val_loss")
    for row, other in zip(val_losses[1:], alone_rows[1:], strict=True):
        np.testing.assert_allclose(float(row[column]), float(other[column]), rtol=1e-3)


def test_two_workers_train_in_stages(tmp_path):
    """As the recipe yolo does: the body frozen, then all, by an optimizer of its own; batch normalisation by worker.

    Stopped after two epochs of three and resumed, which on TensorFlow 2.15 hides the count of rows from the step.
    """
    make_records(tmp_path, 16, shards=1)
    stage = {"epochs": 1, "learning_rate": 0.01, "frozen": ["conv*", "norm1"], "saved_as": "stage_1.h5"}
    options = {
        "steps_per_epoch": 3, "val": True, "batch_norm": "plain", "multiworker": True, "set": [
            f"train.stages=[{json.dumps(stage)}]", "train.optimizer=sgd", "train.saved_as=final.h5",
            "train.plateau_patience=1", "train.stopping_patience=9", "train.epoch_files=ep{epoch:03d}.h5",
        ],
    }  # fmt: skip
    records, run = tmp_path / "records", tmp_path / "run"
    for more, steps in (({"epochs": 2}, 6), ({"epochs": 3, "resume": True}, 9)):  # a resumed run knows those before
        ports = free_ports(2)
        finish(*(start(records, run, {**options, **more}, index, ports) for index in range(2)))
        one, other = (dict(np.load(run / f"result_{index}.npz")) for index in range(2))
        assert len(one["losses"]) == steps
    for name in (name for name in one if "moving" not in name):  # each worker has its own statistics
        np.testing.assert_array_equal(one[name], other[name], name)
    assert {path.name for path in run.iterdir() if not path.name.startswith("ep")} == {
        "config.json", "weights.h5", "best.h5", "stage_1.h5", "final.h5", "history.csv", "checkpoints", "logs",
        "result_0.npz", "result_1.npz",
    }  # fmt: skip
    assert (run / "ep001.h5").exists()
    assert (run / "checkpoints" / "stage_2" / "checkpoint").exists()
    assert len((run / "history.csv").read_text().splitlines()) == 4


def test_without_tf_config_workers_are_an_error(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ConfigError, match=r"several workers need TF_CONFIG in the environment, e\.g\. \{"):
        devices.choose_strategy(gpus=0, multiworker=True)
    monkeypatch.setenv("TF_CONFIG", "{nonsense")
    with pytest.raises(ConfigError, match="TF_CONFIG in the environment is damaged"):
        devices.choose_strategy(gpus=0, multiworker=True)


def test_one_process_agrees_with_itself():
    strategy = tf.distribute.get_strategy()
    assert workers.is_chief(strategy)
    assert not workers.is_one_of_many(strategy)
    assert workers.Agreement(strategy).on([True, False]) == [True, False]


def test_a_workers_batch_is_cut_for_its_replicas():
    rows = tf.data.Dataset.from_tensors({"image": tf.reshape(tf.range(12), [6, 2]), "boxes": tf.zeros([6, 3, 4])})
    parts = list(workers._by_replica(rows, 3))
    np.testing.assert_array_equal(parts[1]["image"], [[4, 5], [6, 7]])
    assert len(parts) == 3
