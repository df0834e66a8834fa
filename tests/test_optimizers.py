"""What tensorflow-addons gives to training, where it is installed; a clear error elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import toy

from tfdet import addons, detectors
from tfdet.compat import keras
from tfdet.config import Config, ConfigError, SsdConfig, TrainConfig, YoloConfig
from tfdet.train import devices, loop, optimizers, setup, step

ONE = tf.distribute.get_strategy()
EXTRAS = {
    "lamb": {"optimizer": "lamb", "weight_decay": 0.01},
    "radam": {"optimizer": "radam"},
    "lookahead": {"optimizer": "sgd", "lookahead": True},
    "moving average": {"optimizer": "adam", "averaging": "moving_average"},
    "swa": {"optimizer": "adam", "averaging": "swa"},
    "slow layers": {"optimizer": "adam", "slow_layers": ("conv*",)},
}
needs_addons = pytest.mark.skipif(not addons.available(), reason="tensorflow-addons is not installed")


def config_of(name, **changes):
    return TrainConfig(**{"batch_size": 8, "epochs": 3, "learning_rate": 2e-3, **EXTRAS[name], **changes})


def endless(number):
    return toy.dataset(40, 8, start_step=number, epochs=None)


def fit(run, train, strategy=ONE, **options):
    detector, config = toy.Toy(), Config(train=train, class_names=("a", "b"))
    model = setup.build_model(detector, train, strategy)
    return model, loop.fit(model, detector, endless, config, run, steps_per_epoch=5, progress=False, **options)


@pytest.mark.skipif(addons.available(), reason="tensorflow-addons is installed")
@pytest.mark.parametrize("name", EXTRAS)
def test_without_the_package_the_error_says_how_to_get_it(tmp_path, name):
    with pytest.raises(ConfigError, match=r"tensorflow-addons is not installed.*pip install -e"):
        fit(tmp_path, config_of(name))


@needs_addons
@pytest.mark.parametrize("name", EXTRAS)
def test_each_learns_and_resumes(tmp_path, name):
    train = config_of(name)
    whole, summary = fit(tmp_path / "whole", train)
    first = float((tmp_path / "whole" / "history.csv").read_text().splitlines()[1].split(",")[2])
    assert summary["loss"] < first
    fit(tmp_path / "run", replace(train, epochs=1))
    resumed, _ = fit(tmp_path / "run", train, resume=True)
    for value, expected in zip(resumed.get_weights(), whole.get_weights()):
        np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(float(optimizers.rate_of(resumed.optimizer)), 2e-3, rtol=1e-6)


@needs_addons
def test_the_averages_are_evaluated_and_saved(tmp_path):
    seen = []
    look = lambda model: seen.append(model.get_weights()) or {"map50": 0.5}  # noqa: E731
    model, _ = fit(tmp_path, config_of("moving average"), evaluate=look, evaluate_every=0)
    saved = toy.Toy().build_model()
    saved.load_weights(tmp_path / "weights.h5")
    for value, expected in zip(saved.get_weights(), seen[0]):
        np.testing.assert_array_equal(value, expected)
    assert any(np.abs(a - b).max() > 0 for a, b in zip(model.get_weights(), seen[0]))


@needs_addons
def test_slow_layers_take_a_tenth_of_the_step():
    """The first step of SGD is rate * gradient."""
    steps = {}
    for slow in ((), ("conv*",)):
        train = TrainConfig(optimizer="sgd", learning_rate=0.1, slow_layers=slow, slow_factor=0.1)
        detector = toy.Toy()
        model = setup.build_model(detector, train, ONE)
        before = {v.name: v.numpy() for v in model.variables}
        update = step.make_train_step(model, detector, optimizers.build_optimizer(train, 10, model))
        update(step.fill(toy.batch(4), 4))
        steps[slow] = {v.name: v.numpy() - before[v.name] for v in model.variables}
    for name, full in steps[()].items():
        factor = 0.1 if name.startswith("conv") else 1.0
        np.testing.assert_allclose(steps[("conv*",)][name], factor * full, rtol=1e-3, atol=1e-6)


@needs_addons
def test_lamb_spares_biases_on_replicas():
    train = config_of("lamb", weight_decay=0.1)
    detector = toy.Toy()
    strategy = devices.choose_strategy(replicas=2)
    model = setup.build_model(detector, train, strategy)
    with strategy.scope():
        optimizer = optimizers.build_optimizer(train, 10, model)
    batch = toy.batch(8)
    batch["target_labels"] = tf.fill([8, 16], -2)  # no gradient at all: what moves is decay
    before = {v.name: v.numpy() for v in model.variables}
    data = step.distribute(tf.data.Dataset.from_tensors(batch), strategy, 8)
    step.make_train_step(model, detector, optimizer)(next(iter(data)))
    for variable in model.variables:
        moved = np.abs(variable.numpy() - before[variable.name]).max() > 0
        assert moved == ("kernel" in variable.name), variable.name


@needs_addons
def test_a_skipped_step_counts_in_every_part():
    train = config_of("slow layers", on_nan="skip")
    detector = toy.Toy()
    model = setup.build_model(detector, train, ONE)
    optimizer = optimizers.build_optimizer(train, 10, model)
    batch = step.fill(toy.batch(4), 4)
    batch["target_boxes"] *= np.nan
    step.make_train_step(model, detector, optimizer, skip_nonfinite=True)(batch)
    assert [int(counter) for counter in optimizers.counters(optimizer)] == [1, 1, 1]


FOCAL = SsdConfig(backbone="mobilenetv2", width_multiplier=0.35, priors="ssd300_7308", class_loss="sigmoid_focal")


@pytest.mark.skipif(addons.available(), reason="tensorflow-addons is installed")
def test_without_the_package_the_focal_loss_fails_before_anything_is_written(tmp_path):
    detector = detectors.build(FOCAL, 2)
    model = setup.build_model(toy.Toy(), TrainConfig(batch_size=8), ONE)
    config = Config(detector=FOCAL, train=TrainConfig(batch_size=8), class_names=("a", "b"))
    with pytest.raises(ConfigError, match=r"class_loss=sigmoid_focal needs .*pip install -e"):
        loop.fit(model, detector, endless, config, tmp_path / "run", steps_per_epoch=5, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("config", [SsdConfig(), YoloConfig(), YoloConfig(multi_scale=(320, 416))])
def test_what_needs_no_package_can_be_trained_anywhere(config):
    setup.require_possible(detectors.build(config, 2), TrainConfig(), ONE)


@needs_addons
def test_ssd_learns_by_the_focal_loss(rng):
    detector, train = detectors.build(FOCAL, 2), TrainConfig(learning_rate=2e-3, batch_size=2)
    model = setup.build_model(detector, train, ONE)
    boxes, labels = tf.constant([[[0.1, 0.1, 0.4, 0.5]], [[0.5, 0.2, 0.9, 0.9]]]), tf.constant([[0], [1]])
    batch = {"image": tf.constant(rng.integers(0, 256, (2, 300, 300, 3), np.uint8)), **detector.encode(boxes, labels)}
    update = step.make_train_step(model, detector, optimizers.build_optimizer(train, 10, model))
    losses = [float(update(batch)["class_loss"]) for _ in range(4)]
    assert losses[-1] < 0.8 * losses[0] < 5  # all begin near 0.01: a match with 0.25 * log 100, background with 0
    _, scores = detector.decode(model(batch["image"], training=False))
    assert scores.shape == (2, 7308, 2)


def test_parts_that_do_not_go_together_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="optimizer=adamw cannot be wrapped"):
        fit(tmp_path, TrainConfig(batch_size=8, optimizer="adamw", lookahead=True))
    with pytest.raises(ConfigError, match="slow_layers cannot be combined"):
        fit(tmp_path, TrainConfig(batch_size=8, lookahead=True, slow_layers=("conv1",)))
    with pytest.raises(ConfigError, match="cannot wrap each other"):
        fit(tmp_path, TrainConfig(batch_size=8, lookahead=True, averaging="swa"))
    with pytest.raises(ConfigError, match="both average the weights"):
        TrainConfig(ema_decay=0.9, averaging="swa")
    sync = TrainConfig(batch_size=8, sync_batch_norm=True, accumulate=2)
    with pytest.raises(ConfigError, match=r"train\.accumulate keeps replicas from talking"):
        fit(tmp_path, sync, devices.choose_strategy(replicas=2))


def test_loss_scaling_wraps_them():
    train = TrainConfig(precision="mixed_float16", ema_decay=0.9)
    model = setup.build_model(toy.Toy(), train, ONE)
    optimizer = optimizers.build_optimizer(train, 10, model)
    assert isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer)
    assert optimizers.make_averages(train, model, optimizer).values
