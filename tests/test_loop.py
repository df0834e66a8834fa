"""The loop on the toy detector: it learns, resumes bit for bit, and ends in order whatever happens."""

import csv
import time
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import toy

from tfdet import schema
from tfdet.compat import keras
from tfdet.config import Config, ConfigError, TrainConfig, from_json
from tfdet.train import checkpoints, devices, loop, optimizers, setup

ONE = tf.distribute.get_strategy()
CONFIG = Config(
    train=TrainConfig(batch_size=8, epochs=3, learning_rate=5e-3, schedule="cosine", warmup_steps=2),
    class_names=("red", "green"),
)


def endless(step):
    return toy.dataset(40, 8, start_step=step, epochs=None)


def train_config(**changes):
    return replace(CONFIG, train=replace(CONFIG.train, **changes))


def fit(run, config=CONFIG, strategy=ONE, **options):
    detector = toy.Toy()
    model = setup.build_model(detector, config.train, strategy)
    options = {"steps_per_epoch": 5, "progress": False, "make_dataset": endless, **options}
    return model, loop.fit(model, detector, config=config, run=run, **options)


def history(run):
    with open(run / "history.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run: the folder, the model and what `fit` returned."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    scores = iter([0.25, 0.75, 0.5])
    evaluate = lambda model: {"map50": next(scores), "by_class": [1, 2]}  # noqa: E731
    return run, *fit(run, validation=toy.dataset(11, 8, seed=1), evaluate=evaluate)


def test_it_learns_and_says_so(finished):
    run, _, summary = finished
    assert summary["steps"] == 15
    assert summary["epochs"] == 3
    assert summary["map50"] == 0.5
    assert summary["images_per_second"] > 0
    rows = history(run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["5", "10", "15"]
    for name in ("loss", "val_loss"):
        assert float(rows[2][name]) < 0.8 * float(rows[0][name])
        np.testing.assert_allclose(float(rows[2][name]), summary[name], rtol=1e-5)
    assert {"box_loss", "class_loss", "val_box_loss", "learning_rate", "images_per_second"} <= set(rows[0])


def test_the_run_folder_is_complete(finished):
    run, model, _ = finished
    names = {path.name for path in run.iterdir()}
    assert names == {"config.json", "weights.h5", "best.h5", "history.csv", "checkpoints", "logs"}
    assert from_json((run / "config.json").read_text()) == CONFIG
    assert checkpoints.latest_step(run) == 15
    assert len(list((run / "checkpoints").glob("*.index"))) == CONFIG.train.keep_checkpoints
    again = toy.Toy().build_model()
    again.load_weights(run / "weights.h5", by_name=True)
    for value, expected in zip(again.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(value, expected)


def test_tensorboard_has_the_curves(finished):
    run, _, _ = finished
    tags = set()
    for path in (run / "logs").glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            tags |= {value.tag for value in event.summary.value}
    assert {"train/loss", "train/box_loss", "train/learning_rate", "train/images_per_second"} <= tags
    assert {"train/data_wait", "epoch/val_loss", "epoch/map50"} <= tags


def test_the_best_epoch_is_kept(tmp_path):
    """With `evaluate` by map50, highest first; without it by validation loss, lowest first."""
    weights = []
    remember = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: weights.append(model_of[0].get_weights()))
    detector = toy.Toy()
    model_of = [setup.build_model(detector, CONFIG.train, ONE)]
    scores = iter([0.25, 0.75, 0.5])
    loop.fit(
        model_of[0], detector, endless, CONFIG, tmp_path, steps_per_epoch=2, progress=False,
        evaluate=lambda model: {"map50": np.float32(next(scores))}, callbacks=[remember],
    )  # fmt: skip
    best = toy.Toy().build_model()
    best.load_weights(tmp_path / "best.h5")
    for value, expected in zip(best.get_weights(), weights[1]):
        np.testing.assert_array_equal(value, expected)


def test_the_validation_loss_is_that_of_one_whole_batch(finished):
    """11 images in batches of 8 and a filled one of 3, against all in one go."""
    _, model, summary = finished
    detector, batch = toy.Toy(), toy.batch(11, seed=1)
    sums = detector.loss(batch, model(batch[schema.IMAGE], training=False))
    expected = (np.sum(sums["box_loss"]) + np.sum(sums["class_loss"])) / np.sum(sums[schema.NORMALIZER])
    np.testing.assert_allclose(summary["val_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("stop", ["between epochs", "inside an epoch"])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(finished, tmp_path, stop):
    _, whole, _ = finished
    if stop == "between epochs":
        fit(tmp_path, callbacks=[StopAfter(5)])
    else:  # killed after step 7: the checkpoint of step 6 is what is left
        with pytest.raises(Killed):
            fit(tmp_path, callbacks=[KillAfter(7)], checkpoint_every=3)
        assert checkpoints.latest_step(tmp_path) == 6
    resumed, summary = fit(tmp_path, resume=True)
    assert summary["steps"] == 15
    assert [row["step"] for row in history(tmp_path)] == ["5", "10", "15"]
    for value, expected in zip(resumed.get_weights(), whole.get_weights()):
        np.testing.assert_array_equal(value, expected)
    for value, expected in zip(resumed.optimizer.variables, whole.optimizer.variables):
        np.testing.assert_array_equal(value.numpy(), expected.numpy())


class StopAfter(keras.callbacks.Callback):
    """Ends the training in order after so many steps."""

    def __init__(self, steps):
        super().__init__()
        self._left = steps

    def on_train_batch_end(self, batch, logs=None):
        self._left -= 1
        self.model.stop_training = self._left == 0


class Killed(BaseException):
    pass


class KillAfter(StopAfter):
    """Ends it as a signal would: nothing after it runs."""

    def on_train_batch_end(self, batch, logs=None):
        self._left -= 1
        if self._left == 0:
            raise Killed


class Interrupt(KillAfter):
    def on_train_batch_end(self, batch, logs=None):
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt


def test_an_interrupt_leaves_a_checkpoint_of_that_step(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, callbacks=[Interrupt(3)])
    assert checkpoints.latest_step(tmp_path) == 3


def test_a_finished_run_has_nothing_left_to_train(finished):
    run, _, _ = finished
    before = (run / "history.csv").read_text()
    _, summary = fit(run, resume=True)
    assert summary["steps"] == 15
    assert (run / "history.csv").read_text() == before


def test_a_run_is_not_written_over(finished):
    run, _, _ = finished
    with pytest.raises(
        ConfigError, match="already holds a run at step 15; go on with --resume, or choose another folder"
    ):
        fit(run)


def test_a_checkpoint_of_another_model_is_an_error(finished):
    run, _, _ = finished

    class Wider(toy.Toy):
        def build_model(self):
            model = super().build_model()
            more = keras.layers.Conv2D(9, 1, name="more")(model.get_layer("conv2").output)
            return keras.Model(model.input, {**model.output, "more": more})

    model = setup.build_model(Wider(), CONFIG.train, ONE)
    with pytest.raises(ConfigError, match="does not fit this model and optimizer"):
        loop.fit(model, Wider(), endless, CONFIG, run, steps_per_epoch=5, resume=True, progress=False)


def test_time_ends_a_run_in_order(tmp_path):
    slow = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_: time.sleep(0.3))
    scores = []
    _, summary = fit(
        tmp_path, train_config(max_minutes=1 / 60, epochs=1000), callbacks=[slow],
        evaluate=lambda model: scores.append(1) or {"map50": 0.5}, evaluate_every=0,
    )  # fmt: skip
    assert 1 <= summary["steps"] < 100
    assert scores == [1]
    assert summary["map50"] == 0.5
    assert (tmp_path / "weights.h5").exists()
    assert checkpoints.latest_step(tmp_path) == summary["steps"]


def test_keras_callbacks_have_their_usual_meaning(tmp_path):
    """A loss that cannot improve: the rate is cut after one epoch of patience, and training ends after two."""
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=1e9)
    stopping = keras.callbacks.EarlyStopping("loss", patience=2, min_delta=1e9)
    log = keras.callbacks.CSVLogger(str(tmp_path / "keras.csv"))
    config = train_config(schedule="constant", warmup_steps=0, epochs=50)
    model, summary = fit(tmp_path, config, callbacks=[plateau, stopping, log], steps_per_epoch=2)
    assert summary["epochs"] == 3
    np.testing.assert_allclose(float(model.optimizer.learning_rate.numpy()), 5e-3 * 0.1**2, rtol=1e-5)
    assert len((tmp_path / "keras.csv").read_text().splitlines()) == 4


def test_a_loss_that_is_not_finite_names_the_step_and_the_images(tmp_path):
    def spoiled(step):
        def spoil(number, row):
            boxes = tf.where(number == 3, np.nan, row[schema.TARGET_BOXES])
            return {**row, schema.TARGET_BOXES: boxes}

        return toy.dataset(40, 8, epochs=None).enumerate().map(spoil).skip(step)

    with pytest.raises(loop.TrainingError, match=r"not finite at step 4 \(.*box_loss nan.*images: toy-24, .*toy-31"):
        fit(tmp_path, make_dataset=spoiled, checkpoint_every=2, log_every=100)
    assert checkpoints.latest_step(tmp_path) == 2


def test_data_that_ends_is_an_error(tmp_path):
    with pytest.raises(loop.TrainingError, match="ended at step 5; make_dataset has to repeat it"):
        fit(tmp_path, make_dataset=lambda step: toy.dataset(40, 8, start_step=step), steps_per_epoch=6)


def test_one_epoch_of_a_data_set_that_ends_needs_no_repeating(tmp_path):
    _, summary = fit(tmp_path, train_config(epochs=1), make_dataset=lambda step: toy.dataset(37, 8))
    assert summary["steps"] == 5


def test_an_epoch_without_steps_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="0 steps an epoch"):
        fit(tmp_path, steps_per_epoch=0)


def test_two_replicas_train_validate_and_resume(finished, tmp_path):
    _, _, reference = finished
    two = devices.choose_strategy(replicas=2)
    options = {"strategy": two, "validation": toy.dataset(11, 8, seed=1)}
    fit(tmp_path, callbacks=[StopAfter(5)], **options)
    _, summary = fit(tmp_path, resume=True, **options)
    np.testing.assert_allclose(summary["val_loss"], reference["val_loss"], rtol=1e-3)
    np.testing.assert_allclose(summary["loss"], reference["loss"], rtol=1e-3)


def test_without_a_terminal_every_epoch_is_one_line(tmp_path, capsys):
    fit(tmp_path, train_config(epochs=2), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert lines[1].startswith("epoch 2/2: loss ")


# --- setup --------------------------------------------------------------------------------------


def test_the_seed_decides_the_weights():
    first, same, other = (
        setup.build_model(toy.Toy(), TrainConfig(seed=seed), ONE).get_weights()[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-3


def test_frozen_layers_stay_as_they_are(tmp_path):
    detector = toy.Toy("plain")
    config = train_config(frozen=("conv*", "norm1"), epochs=1)
    model = setup.build_model(detector, config.train, ONE)
    before = {v.name: v.numpy() for v in model.variables}
    loop.fit(model, detector, endless, config, tmp_path, steps_per_epoch=3, progress=False)
    for variable in model.variables:
        same = np.array_equal(variable.numpy(), before[variable.name])
        assert same == variable.name.startswith(("conv", "norm1")), variable.name


def test_a_pattern_that_freezes_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"no layer is called 'conf1'; near it: .*conv1"):
        setup.build_model(toy.Toy(), TrainConfig(frozen=("conf1",)), ONE)


def test_freezing_everything_is_an_error():
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        setup.build_model(toy.Toy(), TrainConfig(frozen=("*",)), ONE)


# --- devices ------------------------------------------------------------------------------------


def test_more_gpus_than_there_are_is_an_error_that_lists_them():
    with pytest.raises(ConfigError, match=r"64 GPUs asked for, but this machine has (no GPU|\d+ GPUs?: GPU:0)"):
        devices.choose_strategy(gpus=64)


def test_devices_in_words():
    assert devices.describe(devices.choose_strategy(gpus=0)) == "1 replica on CPU:0"
    assert devices.describe(devices.choose_strategy(replicas=2)) == "2 replicas on CPU:0, CPU:1"


def test_replicas_after_the_start_are_an_error():
    with pytest.raises(ConfigError, match="9 CPU replicas asked for after TensorFlow has started with fewer"):
        devices.choose_strategy(replicas=9)


def test_gpus_and_replicas_exclude_each_other():
    with pytest.raises(ConfigError, match="not both"):
        devices.choose_strategy(gpus=1, replicas=2)


def test_a_users_optimizer_is_used(tmp_path):
    detector = toy.Toy()
    model = setup.build_model(detector, CONFIG.train, ONE)
    optimizer = keras.optimizers.RMSprop(1e-3)
    optimizer.build(model.trainable_variables)
    loop.fit(
        model, detector, endless, train_config(epochs=1), tmp_path, steps_per_epoch=2, progress=False,
        optimizer=optimizer,
    )  # fmt: skip
    assert int(optimizer.iterations.numpy()) == 2
    assert optimizers.l2(CONFIG.train) == 0.0
