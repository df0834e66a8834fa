"""One of the processes that tests/test_workers.py and tests/test_resume.py start; trains the toy on records.

Usage: python worker.py RECORDS RUN JSON, where JSON has: epochs, steps_per_epoch, kill_at (a step, 0: none), resume,
multiworker, train (fields of TrainConfig), set (assignments for the config), copy (a second run without interruption,
compared by the caller).
"""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tensorflow as tf
import toy

from tfdet.compat import keras
from tfdet.config import AugmentConfig, Config, SsdConfig, TrainConfig, override
from tfdet.data import pipeline
from tfdet.data.records import open_split
from tfdet.train import devices, loop, optimizers, setup

CALLBACKS = (
    lambda: keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=2, min_delta=1e9),
    lambda: keras.callbacks.EarlyStopping("loss", patience=100),
)


class KillAt(keras.callbacks.Callback):
    """kill -9 after so many steps; no step is missing, no step is waited for."""

    def __init__(self, step, number=signal.SIGKILL):
        super().__init__()
        self._at, self._signal = step, number

    def on_train_batch_end(self, batch, logs=None):
        if self._at and int(self.model._train_counter) == self._at:
            os.kill(os.getpid(), self._signal)
            time.sleep(60 * (self._signal == signal.SIGKILL))


class Losses(keras.callbacks.Callback):
    """The loss of every step."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(float(logs["loss"]))


def train(records, run, options):
    """What the run ends with, by name."""
    strategy = devices.choose_strategy(gpus=0, multiworker=options.get("multiworker", False))
    record_set = open_split(records, "train")
    config = Config(
        detector=SsdConfig(image_size=(toy.SIDE, toy.SIDE)), augment=AugmentConfig(),
        train=replace(TrainConfig(batch_size=8, epochs=options["epochs"]), **options.get("train", {})),
        class_names=record_set.class_names,
    )  # fmt: skip
    for assignment in options.get("set", ()):
        config = override(config, assignment)
    detector = toy.Toy(options.get("batch_norm"))
    model = setup.build_model(detector, config.train, strategy)
    callbacks = [make() for make in CALLBACKS] + [KillAt(options.get("kill_at", 0)), Losses()]
    validation = pipeline.eval_dataset(record_set, config, few_classes(detector.encode)) if "val" in options else None
    loop.fit(
        model, detector, partial(pipeline.train_dataset, record_set, config, few_classes(detector.encode)), config, run,
        steps_per_epoch=options["steps_per_epoch"], resume=options.get("resume", False), callbacks=callbacks,
        checkpoint_every=options.get("checkpoint_every", 0), progress=False, log_every=5, validation=validation,
        evaluate=(lambda model: {"map50": 0.5}) if "val" in options else None,
    )  # fmt: skip
    plateau, stopping, _, losses = callbacks
    return {
        **{f"weight/{v.name}": v.numpy() for v in model.variables},
        **{f"slot/{number}/{v.name}": v.numpy() for number, v in enumerate(model.optimizer.variables)},
        "rate": np.float64(optimizers.rate_of(model.optimizer).numpy()),
        "plateau": [plateau.wait, plateau.best], "stopping": [stopping.wait, stopping.best], "losses": losses.values,
    }  # fmt: skip


def few_classes(encode):
    """The drawn shapes have four classes, the toy knows two."""
    return lambda boxes, labels: encode(boxes, tf.minimum(labels, toy.CLASSES - 1))


if __name__ == "__main__":
    records, run, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    if options.get("deterministic"):
        setup.enable_determinism()
    name = f"result_{os.environ.get('WORKER', 0)}.npz"
    result = train(records, run, options)
    if "copy" in options:
        copy = train(records, Path(options["copy"]), {**options, "kill_at": 0, "resume": False})
        np.savez(Path(options["copy"]) / name, **copy)
    np.savez(run / name, **result)
