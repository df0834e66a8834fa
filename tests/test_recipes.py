"""Recipes are configs; their stages run one after the other, and a run cut short in either is the whole run."""

import csv
import fnmatch
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import toy

from tfdet import configs
from tfdet.compat import keras
from tfdet.config import Config, ConfigError, StageConfig, TrainConfig, from_json, override, to_json
from tfdet.configs import recipes
from tfdet.models import darknet
from tfdet.train import checkpoints, loop, optimizers, setup, stages

ONE = tf.distribute.get_strategy()

# --- the configs --------------------------------------------------------------------------------


def test_the_seeds_ssd():
    config = recipes.apply(configs.load("ssd300_vgg16"), "ssd")
    train = config.train
    assert (config.detector.neg_pos_ratio, config.detector.priors) == (2, "ssd300_7308")  # those of its weights
    assert recipes.apply(configs.load("ssd512_vgg16"), "ssd").detector.priors == "ssd512"
    assert (train.optimizer, train.epochs, train.frozen) == ("adam", 50, ("conv1_*", "conv2_*", "conv3_*"))
    assert (train.epoch_files, train.epoch_files_every) == ("weights.{epoch:02d}-{val_loss:.2f}.h5", 1)
    assert not train.stages
    assert from_json(to_json(config)) == config


def test_the_seeds_yolo():
    config = recipes.apply(configs.load("yolov3_416"), "yolo")
    first, last = stages.parts(config.train)
    assert (first.optimizer, first.learning_rate, first.epochs, first.batch_size) == ("adam", 1e-3, 50, 32)
    assert (first.plateau_patience, first.stopping_patience) == (0, 0)
    assert (last.optimizer, last.learning_rate, last.epochs, last.batch_size) == ("adam", 1e-4, 100, 32)
    assert (last.plateau_patience, last.plateau_factor, last.stopping_patience) == (3, 0.1, 10)
    assert (first.saved_as, last.saved_as) == ("trained_weights_stage_1.h5", "trained_weights_final.h5")
    assert {(p.epoch_files, p.epoch_files_every) for p in (first, last)} == {
        ("ep{epoch:03d}-loss{loss:.3f}-val_loss{val_loss:.3f}.h5", 3)
    }
    assert last.frozen == ()
    assert from_json(to_json(config)) == config


def test_modern():
    config = recipes.apply(configs.load("yolov3_416"), "modern")
    train = config.train
    assert (train.optimizer, train.schedule, train.plateau_patience) == ("adamw", "cosine", 0)
    assert min(train.warmup_steps, train.weight_decay, train.ema_decay, train.clip_norm, config.augment.mosaic) > 0
    assert train.accumulate > 1
    assert config.detector.multi_scale == tuple(range(320, 609, 32))  # the paper's, about 416
    ssd = recipes.apply(configs.load("ssd300_mobilenetv2"), "modern", epochs=7)
    assert (ssd.train.epochs, ssd.augment.mosaic) == (7, 0.8)


def test_a_shorter_run_halves_its_stages():
    train = recipes.apply(configs.load("yolov3_tiny"), "yolo", epochs=5).train
    assert [part.epochs for part in stages.parts(train)] == [2, 5]


def frozen_in(model, patterns):
    names = [layer.name for layer in model.layers if layer.weights]
    assert all(fnmatch.filter(names, pattern) for pattern in patterns)
    return {name for pattern in patterns for name in fnmatch.filter(names, pattern)}


@pytest.mark.parametrize(
    ("preset", "body", "outputs"),
    [("yolov3_416", 52, {59, 67, 75}), ("yolov3_tiny", 5, {10, 13})],
)
def test_what_freeze_body_freezes(preset, body, outputs):
    config = configs.load(preset)
    model = darknet.build(replace(config.detector, image_size=(32, 32), width_multiplier=0.03), num_classes=1)
    stage = lambda level: recipes.apply(config, "yolo", freeze_body=level).train.stages[0]  # noqa: E731
    assert stage(0).frozen == ()
    expected = {f"{kind}_{n + 1}" for n in range(body) for kind in ("conv2d", "batch_normalization")}
    assert frozen_in(model, stage(1).frozen) == expected
    rest = {layer.name for layer in model.layers if layer.weights} - frozen_in(model, stage(2).frozen)
    assert rest == {f"conv2d_{n}" for n in outputs}
    assert recipes.apply(config, "yolo").train.stages[0] == stage(2)


@pytest.mark.parametrize(
    ("name", "preset", "options", "message"),
    [
        ("ssd", "ssd300_mobilenetv2", {}, "freezes layers of VGG16; take it with the presets ssd300_vgg16"),
        ("yolo", "ssd300_vgg16", {}, "the recipe yolo is for YOLOv3; take it with the presets yolov3_416"),
        ("yolo", "yolov3_tiny", {"epochs": 1}, "has two stages, so it takes at least 2 epochs"),
        ("modern", "yolov3_tiny", {"freeze_body": 1}, "--freeze-body is for the recipe yolo, not for modern"),
        ("fast", "yolov3_tiny", {}, "no recipe 'fast'; there are ssd, yolo, modern"),
    ],
)
def test_recipes_that_do_not_fit(name, preset, options, message):
    with pytest.raises(ConfigError, match=message):
        recipes.apply(configs.load(preset), name, **options)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.epochs=50", r"end after epochs \[50, 50\]; they must rise"),
        ("train.warmup_steps=5", "train.plateau_patience is 3; it lowers a constant rate without a warm-up"),
        ("train.plateau_factor=1", r"train.plateau_factor is 1.0; it lies in \(0, 1\)"),
        ("train.epoch_files_every=0", "train.epoch_files_every is 0; it must be positive"),
        ('train.stages=[{"epochs": 0, "learning_rate": 0.1}]', "train.stages has 0 epochs"),
    ],
)
def test_stages_that_cannot_be(assignment, message):
    with pytest.raises(ConfigError, match=message):
        override(recipes.apply(configs.load("yolov3_416"), "yolo"), assignment)


# --- the runs -----------------------------------------------------------------------------------

TOY = Config(
    train=TrainConfig(
        batch_size=8, epochs=8, learning_rate=1e-3, plateau_patience=1, stopping_patience=4,
        stages=(StageConfig(2, 1e-2, ("conv*", "norm1"), saved_as="stage_1.h5"),), saved_as="final.h5",
        epoch_files="ep{epoch:03d}-val_loss{val_loss:.3f}.h5", epoch_files_every=2, keep_checkpoints=3,
    ),
    class_names=("red", "green"),
)  # fmt: skip


def endless(step):
    return toy.dataset(40, 8, start_step=step, epochs=None)


def fit(run, config=TOY, **options):
    detector = toy.Toy("plain")
    model = setup.build_model(detector, config.train, ONE)
    options = {"steps_per_epoch": 3, "progress": False, "validation": toy.dataset(11, 8, seed=1), **options}
    return model, loop.fit(model, detector, endless, config, run, **options)


class Watch(keras.callbacks.Callback):
    """What is trained in each epoch, and at which rate; makes val_loss rise from an epoch on."""

    def __init__(self, worse_from=10**9, kill_at=None):
        super().__init__()
        self.rows, self._worse_from = [], worse_from
        self._kill_at = kill_at and iter(range(1, kill_at))  # a counter that no checkpoint remembers

    def on_epoch_end(self, epoch, logs=None):
        if epoch >= self._worse_from:
            logs["val_loss"] = 100.0 + epoch
        self.rows.append((epoch, round(logs["learning_rate"], 9), len(self.model.trainable_variables)))

    def on_train_batch_end(self, batch, logs=None):
        if self._kill_at and next(self._kill_at, None) is None:
            raise Killed


class Killed(BaseException):
    pass


def history(run):
    with open(run / "history.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


WORSE = 3  # from the fourth epoch on: the rate falls after the first of these, and the run ends after the fourth


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run, watch = tmp_path_factory.mktemp("runs") / "whole", Watch(WORSE)
    return run, *fit(run, callbacks=[watch]), watch.rows


def test_both_stages_in_one_call(whole):
    run, _, summary, rows = whole
    # 4 tensors of the heads and 2 of norm2; then 6 of the body more. The rate is lowered in epochs 4, 5, ...
    assert [(epoch, count) for epoch, _, count in rows] == [(0, 6), (1, 6), *[(epoch, 12) for epoch in range(2, 7)]]
    assert [rate for _, rate, _ in rows] == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-5, 1e-6])
    assert (summary["steps"], summary["epochs"]) == (21, 7)
    assert [row["step"] for row in history(run)] == ["3", "6", "9", "12", "15", "18", "21"]
    assert from_json((run / "config.json").read_text()) == TOY


def test_the_files_of_a_staged_run(whole):
    run, model, _, _ = whole
    epochs = sorted(path.name[:5] for path in run.glob("ep*.h5"))
    assert epochs == ["ep002"]  # every second epoch is asked, and from the fourth on none is the best
    first, last, final = (toy.Toy("plain").build_model() for _ in range(3))
    first.load_weights(run / "stage_1.h5")
    last.load_weights(run / "weights.h5")
    final.load_weights(run / "final.h5")
    initial = setup.build_model(toy.Toy("plain"), TOY.train, ONE)
    np.testing.assert_array_equal(first.get_layer("conv1").kernel, initial.get_layer("conv1").kernel)
    assert np.abs(final.get_layer("conv1").kernel - initial.get_layer("conv1").kernel).max() > 1e-4
    for value, other, expected in zip(final.get_weights(), last.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(value, expected)
        np.testing.assert_array_equal(other, expected)
    assert len(list((run / "checkpoints").glob("*.index"))) == 2
    assert len(list((run / "checkpoints" / "stage_2").glob("*.index"))) == 3
    assert checkpoints.latest_step(run) == 21


@pytest.mark.parametrize("steps", [4, 7, 14], ids="killed in step {}".format)
def test_a_run_killed_in_either_stage_is_the_whole_run(whole, tmp_path, steps):
    """Patience, the lowered rate and the best value so far go on: the resumed run ends at the same step and weights."""
    _, expected, summary, rows = whole
    with pytest.raises(Killed):
        fit(tmp_path, callbacks=[Watch(WORSE, kill_at=steps)])
    watch = Watch(WORSE)
    model, resumed = fit(tmp_path, callbacks=[watch], resume=True)
    assert (resumed["steps"], resumed["epochs"]) == (summary["steps"], summary["epochs"])
    done = (steps - 1) // 3  # epochs that ended before the kill
    assert watch.rows == rows[done:]
    for value, other in zip(model.get_weights(), expected.get_weights()):
        np.testing.assert_array_equal(value, other)
    for value, other in zip(model.optimizer.variables, expected.optimizer.variables):
        np.testing.assert_array_equal(value.numpy(), other.numpy())
    assert sorted(path.name[:5] for path in tmp_path.glob("ep*.h5")) == ["ep002"]
    assert [row["step"] for row in history(tmp_path)] == [row["step"] for row in history(whole[0])]


def test_a_finished_staged_run_has_nothing_left_to_train(whole):
    run, _, summary, _ = whole
    before = (run / "history.csv").read_text()
    _, again = fit(run, resume=True)
    assert again["steps"] == summary["steps"]
    assert (run / "history.csv").read_text() == before


def test_time_that_runs_out_in_the_first_stage_ends_the_run(tmp_path):
    slow = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_: time.sleep(0.3))
    config = replace(TOY, train=replace(TOY.train, max_minutes=1 / 60))
    fit(tmp_path, config, callbacks=[slow], steps_per_epoch=1000)
    assert (tmp_path / "weights.h5").exists()
    assert not (tmp_path / "stage_1.h5").exists()
    assert not (tmp_path / "checkpoints" / "stage_2").exists()


def test_patience_needs_a_validation_split(tmp_path):
    with pytest.raises(ConfigError, match="go by val_loss, and there is no validation split"):
        fit(tmp_path, validation=None)


def test_stages_make_their_optimizers(tmp_path):
    with pytest.raises(ConfigError, match="an optimizer for each part, so fit takes none"):
        fit(tmp_path, optimizer=keras.optimizers.SGD())


def test_the_modern_recipe_trains(tmp_path):
    """Everything of it that the loop does, on the toy."""
    config = recipes.apply(configs.load("ssd300_mobilenetv2"), "modern", epochs=3)
    config = replace(TOY, train=replace(config.train, batch_size=8, warmup_steps=2, learning_rate=5e-3))
    model, _ = fit(tmp_path, config, steps_per_epoch=4)
    losses = [float(row["val_loss"]) for row in history(tmp_path)]
    assert losses[-1] < losses[0]
    assert type(model.optimizer).__name__ == "AdamW"
    assert optimizers.l2(config.train) == 0
    assert json.loads((tmp_path / "config.json").read_text())["train"]["ema_decay"] == 0.999
