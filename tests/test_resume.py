"""A run that is cut short and resumed is the run that was not cut short."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
import toy
from datasets import make_records
from worker import KillAt

from tfdet.compat import keras
from tfdet.config import Config, TrainConfig
from tfdet.train import checkpoints, loop, memory, setup, signals
from tfdet.train.meters import EpochMean

WORKER = Path(__file__).with_name("worker.py")
CONFIG = Config(train=TrainConfig(batch_size=8, epochs=3, learning_rate=5e-3, ema_decay=0.9), class_names=("a", "b"))


def endless(step):
    return toy.dataset(40, 8, start_step=step, epochs=None)


def fit(run, config=CONFIG, **options):
    detector = toy.Toy()
    model = setup.build_model(detector, config.train, tf.distribute.get_strategy())
    options = {"steps_per_epoch": 5, "progress": False, **options}
    return model, loop.fit(model, detector, endless, config, run, **options)


def rows(run):
    with open(run / "history.csv", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


def assert_same_weights(model, other):
    for value, expected in zip(model.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(value, expected)


def test_200_steps_are_100_steps_then_kill_9_then_100_steps(tmp_path):
    """Augmented records, EMA, Adam, a falling rate and patience counters, bit for bit, in other processes."""
    make_records(tmp_path, 30, shards=1)
    records, run, whole = (str(tmp_path / name) for name in ("records", "run", "whole"))
    options = {
        "epochs": 8, "steps_per_epoch": 25, "checkpoint_every": 20, "deterministic": True, "batch_norm": "plain",
        "train": {"ema_decay": 0.95, "on_nan": "skip", "clip_norm": 5.0, "learning_rate": 2e-3},
    }  # fmt: skip
    killed = subprocess.run([sys.executable, WORKER, records, run, json.dumps({**options, "kill_at": 100})])
    assert killed.returncode == -signal.SIGKILL
    # of step 100 there is no checkpoint yet: epoch 4 had trained, not ended
    assert checkpoints.latest_step(run) == 80
    resumed = {**options, "resume": True, "copy": whole}
    subprocess.run([sys.executable, WORKER, records, run, json.dumps(resumed)], check=True)
    with np.load(Path(run) / "result_0.npz") as left, np.load(Path(whole) / "result_0.npz") as right:
        result, expected = dict(left), dict(right)
    assert len(expected["losses"]) == 200  # of every step, the replayed ones as the killed process had them
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(result[name], value, name)
    assert expected["rate"] < 2e-3
    assert rows(Path(run)) == rows(Path(whole))
    with h5py.File(Path(run) / "weights.h5") as left, h5py.File(Path(whole) / "weights.h5") as right:
        averages, same = left["conv1/conv1/kernel:0"][:], right["conv1/conv1/kernel:0"][:]
    np.testing.assert_array_equal(averages, same)  # EMA
    assert np.abs(averages - expected["weight/conv1/kernel:0"]).max() > 0


def test_sigterm_writes_a_checkpoint_and_ends_with_code_0(tmp_path):
    with pytest.raises(signals.Terminated) as ended:
        fit(tmp_path, callbacks=[KillAt(7, signal.SIGTERM)])
    assert (ended.value.code, ended.value.step) == (0, 7)
    assert isinstance(ended.value, SystemExit)
    assert checkpoints.latest_step(tmp_path) == 7
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert_same_weights(fit(tmp_path, resume=True)[0], fit(tmp_path / "whole")[0])
    assert rows(tmp_path) == rows(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_last_evaluation_does_not_lose_it(tmp_path, number):
    def interrupted(model):
        os.kill(os.getpid(), number)
        time.sleep(60)

    with pytest.raises((signals.Terminated, KeyboardInterrupt)):
        fit(tmp_path, evaluate=interrupted, evaluate_every=0)
    assert checkpoints.latest_step(tmp_path) == 15
    model, summary = fit(tmp_path, evaluate=lambda model: {"map50": 0.75}, evaluate_every=0, resume=True)
    assert (summary["map50"], summary["epochs"]) == (0.75, 3)
    assert summary["loss"] > 0  # of the whole epoch, though no step of it was left
    whole, expected = fit(tmp_path / "whole", evaluate=lambda model: {"map50": 0.75}, evaluate_every=0)
    assert_same_weights(model, whole)
    assert rows(tmp_path) == rows(tmp_path / "whole")
    assert expected["loss"] == summary["loss"]
    assert (tmp_path / "best.h5").exists()


def test_the_best_score_survives_whatever_the_last_checkpoint_knew(tmp_path):
    """Time is up in the middle of an epoch, right after a checkpoint; what is evaluated then is not forgotten."""
    stop = keras.callbacks.LambdaCallback()
    stop.on_train_batch_end = lambda number, logs=None: setattr(stop.model, "stop_training", number == 2)
    fit(tmp_path, evaluate=lambda model: {"map50": 0.9}, evaluate_every=0, checkpoint_every=3, callbacks=[stop])
    assert checkpoints.latest_step(tmp_path) == 3
    before = (tmp_path / "best.h5").read_bytes()
    model, summary = fit(tmp_path, evaluate=lambda model: {"map50": 0.5}, resume=True)
    assert summary["steps"] == 15
    assert (tmp_path / "best.h5").read_bytes() == before
    assert_same_weights(model, fit(tmp_path / "whole", evaluate=lambda model: {"map50": 0.5})[0])
    assert [row["loss"] for row in rows(tmp_path)] == [row["loss"] for row in rows(tmp_path / "whole")]


def test_checkpoints_by_the_clock(tmp_path):
    fit(tmp_path, replace(CONFIG, train=replace(CONFIG.train, keep_checkpoints=99)), checkpoint_minutes=1e-9)
    # after each of 15 steps and each of 3 epochs, whose last steps are not saved twice
    assert len(list((tmp_path / "checkpoints").glob("*.index"))) == 15


def test_a_run_that_early_stopping_ended_stays_ended(tmp_path):
    stopping = lambda: keras.callbacks.EarlyStopping("loss", patience=1, min_delta=1e9)  # noqa: E731
    _, summary = fit(tmp_path, callbacks=[stopping()])
    assert summary["epochs"] == 2
    _, summary = fit(tmp_path, callbacks=[stopping()], resume=True)
    assert (summary["epochs"], summary["steps"]) == (2, 10)


def test_what_callbacks_remember():
    """Counters and arrays come back; settings that the user changed since stay changed."""

    class Counting(keras.callbacks.Callback):
        def __init__(self, patience):
            self.patience, self.wait, self.best, self.weights, self.function = patience, 0, None, [], print

    old, new, other = Counting(3), Counting(5), keras.callbacks.LambdaCallback()
    remembered = memory.Memory([other, old])
    old.wait, old.best, old.weights = 2, np.float32(0.25), [np.arange(6.0).reshape(2, 3)]
    stored = json.loads(json.dumps(remembered.take()))
    memory.Memory([new]).give_back(stored)
    assert (new.patience, new.wait, new.best) == (5, 2, np.float32(0.25))
    assert new.best.dtype == np.float32
    np.testing.assert_array_equal(new.weights[0], [[0, 1, 2], [3, 4, 5]])


def test_the_mean_of_an_epoch_goes_on_exactly():
    values = [{"loss": 1 / n, "box_loss": 0.1, "normalizer": n, "images": 8.0} for n in range(1, 9)]
    whole, first = EpochMean(), EpochMean()
    for row in values:
        whole.add(row)
    for row in values[:5]:
        first.add(row)
    second = EpochMean(json.loads(json.dumps(first.state)))
    for row in values[5:]:
        second.add(row)
    assert second.result() == whole.result()
    # (1 * 1 + 2 * 1/2 + ... + 8 * 1/8) / (1 + ... + 8) = 8 / 36
    np.testing.assert_allclose(whole.result()["loss"], 8 / 36)
