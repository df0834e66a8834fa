"""The train step: what it minimises, against numpy and against plain Keras on one device."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import toy

from tfdet import configs, detectors, schema
from tfdet.compat import keras
from tfdet.config import ConfigError, TrainConfig, override
from tfdet.train import optimizers, setup, step

ONE = tf.distribute.get_strategy()


def toy_model(config=None, **options):
    detector = toy.Toy(**options)
    return detector, setup.build_model(detector, config or TrainConfig(), ONE)


def one_update(optimizer, batch, detector, model, **options):
    """Metrics of one step and the weights before and after it, by name."""
    before = {v.name: v.numpy() for v in model.trainable_variables}
    metrics = step.make_train_step(model, detector, optimizer, **options)(step._without_strings(batch))
    after = {v.name: v.numpy() for v in model.trainable_variables}
    return {name: float(value) for name, value in metrics.items()}, before, after


def plain_gradients(model, detector, batch):
    """The objective written out: all sums over all images, divided by the sum of the normalizers."""
    with tf.GradientTape() as tape:
        sums = detector.loss(batch, model(batch[schema.IMAGE], training=True))
        total = tf.reduce_sum(sums["box_loss"]) + tf.reduce_sum(sums["class_loss"])
        loss = total / tf.reduce_sum(sums[schema.NORMALIZER])
    variables = model.trainable_variables
    return float(loss), {v.name: g.numpy() for v, g in zip(variables, tape.gradient(loss, variables))}


def test_an_update_is_the_gradient_of_the_sums_over_the_normalizer():
    detector, model = toy_model()
    batch = toy.batch(6)
    loss, gradients = plain_gradients(model, detector, batch)
    metrics, before, after = one_update(keras.optimizers.SGD(0.5), batch, detector, model)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["box_loss"] + metrics["class_loss"], loss, rtol=1e-6)
    assert metrics["images"] == 6
    assert metrics[schema.NORMALIZER] == 6  # one object an image, one anchor an object
    for name, gradient in gradients.items():
        np.testing.assert_allclose(before[name] - after[name], 0.5 * gradient, rtol=1e-4, atol=1e-7)


def test_a_batch_without_objects_is_divided_by_one():
    detector, model = toy_model()
    batch = toy.batch(4)
    batch[schema.TARGET_LABELS] = tf.fill([4, 16], schema.BACKGROUND)
    sums = detector.loss(batch, model(batch[schema.IMAGE]))
    metrics, _, _ = one_update(keras.optimizers.SGD(0.1), batch, detector, model)
    np.testing.assert_allclose(metrics["loss"], np.sum(sums["class_loss"]), rtol=1e-5)
    assert metrics["images"] == 4


def test_l2_decays_kernels_and_spares_biases():
    detector, model = toy_model()
    batch = toy.batch(4)
    _, gradients = plain_gradients(model, detector, batch)
    _, before, after = one_update(keras.optimizers.SGD(1.0), batch, detector, model, weight_decay=0.1)
    for name, gradient in gradients.items():
        decay = 0.1 * before[name] if "kernel" in name else 0.0  # the gradient of 0.1 / 2 * w^2
        np.testing.assert_allclose(before[name] - after[name], gradient + decay, rtol=1e-4, atol=1e-6)


def test_adamw_decays_kernels_only_and_by_itself():
    config = TrainConfig(optimizer="adamw", weight_decay=0.5, learning_rate=0.1)
    detector, model = toy_model(config)
    optimizer = optimizers.build_optimizer(config, 10, model)
    for variable in model.trainable_variables:
        if "bias" in variable.name:
            variable.assign(tf.ones_like(variable))
    batch = toy.batch(4)
    batch[schema.TARGET_LABELS] = tf.fill([4, 16], schema.IGNORE)  # no gradient at all: what moves is decay
    metrics, before, after = one_update(optimizer, batch, detector, model, weight_decay=optimizers.l2(config))
    assert metrics["loss"] == 0
    assert metrics["images"] == 0
    for name, value in before.items():
        kept = 1 - 0.5 * 0.1 if "kernel" in name else 1.0  # w - rate * decay * w
        np.testing.assert_allclose(after[name], kept * value, rtol=1e-6)


def test_clipping_shortens_the_whole_gradient_and_reports_its_length():
    detector, model = toy_model()
    batch = toy.batch(4)
    _, gradients = plain_gradients(model, detector, batch)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradients.values()))
    metrics, before, after = one_update(keras.optimizers.SGD(1.0), batch, detector, model, clip_norm=float(norm) / 4)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(before[name] - after[name], gradient / 4, rtol=1e-4, atol=1e-6)


def test_regularization_losses_are_trained_and_not_reported():
    detector, model = toy_model(regularizer=keras.regularizers.L2(0.05))  # 0.05 * w^2, gradient 0.1 * w
    batch = toy.batch(4)
    loss, gradients = plain_gradients(model, detector, batch)
    metrics, before, after = one_update(keras.optimizers.SGD(1.0), batch, detector, model)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    name = "conv1/kernel:0"
    np.testing.assert_allclose(before[name] - after[name], gradients[name] + 0.1 * before[name], rtol=1e-4, atol=1e-6)


def test_the_eval_step_changes_nothing():
    detector, model = toy_model(batch_norm="plain")
    before = [v.numpy() for v in model.variables]
    batch = step._without_strings(toy.batch(4))
    metrics = step.make_eval_step(model, detector)(batch)
    sums = detector.loss(batch, model(batch[schema.IMAGE], training=False))
    np.testing.assert_allclose(metrics["box_loss"], np.sum(sums["box_loss"]) / 4, rtol=1e-5)
    for variable, value in zip(model.variables, before):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_learns_and_keeps_float32_weights(precision):
    config = TrainConfig(precision=precision, learning_rate=5e-3, clip_norm=10.0)
    detector, model = toy_model(config)
    assert model.get_layer("conv1").compute_dtype == precision.removeprefix("mixed_")
    assert keras.mixed_precision.global_policy().name == "float32"
    optimizer = optimizers.build_optimizer(config, 10, model)
    train = step.make_train_step(model, detector, optimizer, clip_norm=config.clip_norm)
    batch = step._without_strings(toy.batch(8))
    losses = [float(train(batch)["loss"]) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]
    assert {v.dtype for v in model.trainable_variables} == {tf.float32}


def test_float16_gradients_that_overflow_skip_the_update_but_count_the_step():
    config = TrainConfig(precision="mixed_float16")
    detector, model = toy_model(config)
    optimizer = optimizers.build_optimizer(config, 10, model)
    batch = toy.batch(4)
    batch[schema.TARGET_BOXES] *= 1e4  # losses near 1e8 times the scale leave float16
    before_scale = float(optimizer.loss_scale)
    _, before, after = one_update(optimizer, batch, detector, model)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert float(optimizer.loss_scale) == before_scale / 2
    assert int(optimizer.iterations) == 1


def test_a_partial_batch_is_filled_with_rows_that_count_for_nothing():
    detector, model = toy_model()
    full = list(step.distribute(toy.dataset(7, 4), ONE, 4))
    assert [b[schema.IMAGE].shape for b in full] == [(4, 16, 16, 3)] * 2
    assert schema.IMAGE_ID not in full[1]
    np.testing.assert_array_equal(full[1][schema.LABELS][:, 0] == schema.IGNORE, [False, False, False, True])
    np.testing.assert_array_equal(full[1][schema.IMAGE][3], full[1][schema.IMAGE][0])
    partial = list(toy.dataset(7, 4))[1]
    filled_loss = step.make_eval_step(model, detector)(full[1])
    partial_loss = step.make_eval_step(model, detector)(step._without_strings(partial))
    for name, value in partial_loss.items():
        np.testing.assert_allclose(filled_loss[name], value, rtol=1e-6)
    assert partial_loss["images"] == 3


def test_a_batch_larger_than_agreed_is_an_error():
    with pytest.raises(tf.errors.InvalidArgumentError, match="more rows than"):
        list(step.distribute(toy.dataset(8, 5), ONE, 4))


def test_a_batch_that_replicas_cannot_share_is_an_error():
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with pytest.raises(ConfigError, match="batch_size is 5, which 2 replicas cannot share evenly; take 4"):
        step.distribute(toy.dataset(8, 5), two, 5)


# --- parts, XLA, averages, the guard ------------------------------------------------------------


SGD = TrainConfig(optimizer="sgd", learning_rate=0.02)


def trained(steps, config=SGD, batch=8, spoil=(), precision="float32", **options):
    """Weights by name and metrics after some steps on the same batches, however they are computed."""
    detector, model = toy_model(config, **{k: options.pop(k) for k in ("batch_norm",) if k in options})
    optimizer = optimizers.build_optimizer(config, steps, model)
    averages = optimizers.make_averages(config, model, optimizer)
    update = step.make_train_step(model, detector, optimizer, averages=averages, **options)
    rows = []
    for number in range(steps):
        data = step.fill(toy.batch(batch, seed=number), batch)
        if number in spoil:
            data[schema.TARGET_BOXES] *= np.nan
        rows.append({name: float(value) for name, value in update(data).items()})
    return {v.name: v.numpy() for v in model.variables}, rows, averages, optimizer, model


def test_xla_compiles_the_step_of_yolo(rng):
    """All of its gradients, on a CPU too, and the same numbers as without."""
    config = override(override(configs.load("yolov3_tiny"), "detector.width_multiplier=0.125"), "train.optimizer=sgd")
    config = override(config, "detector.image_size=[64,96]")
    detector = detectors.build(config.detector, 2)
    boxes, labels = tf.constant([[[0.1, 0.2, 0.5, 0.6]], [[0.3, 0.3, 0.9, 0.8]]]), tf.constant([[0], [1]])
    images = tf.constant(rng.integers(0, 256, (2, 64, 96, 3), np.uint8))
    batch = {"image": images, "boxes": boxes, "labels": labels, **detector.encode(boxes, labels)}
    losses = {}
    for xla in (False, True):
        model = setup.build_model(detector, config.train, ONE)
        update = step.make_train_step(model, detector, optimizers.build_optimizer(config.train, 9, model), xla=xla)
        losses[xla] = [float(update(batch)["loss"]) for _ in range(3)]
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-3)
    assert losses[True][-1] < losses[True][0]


@pytest.mark.parametrize(("parts", "xla"), [(4, False), (2, True)])
def test_a_batch_in_parts_is_one_step_of_the_whole_batch(parts, xla):
    expected, metrics, *_ = trained(3)
    weights, in_parts, *_ = trained(3, accumulate=parts, xla=xla)
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    for one, many in zip(metrics, in_parts):
        assert one.keys() == many.keys()
        np.testing.assert_allclose(list(many.values()), list(one.values()), rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_count_of_rows_need_not_be_known_when_a_step_is_traced(parts):
    data = step.fill(toy.batch(8), 8)
    spec = {name: tf.TensorSpec([None, *value.shape[1:]], value.dtype) for name, value in data.items()}
    weights, metrics, *_ = trained(2, accumulate=parts, element_spec=spec)
    expected, known, *_ = trained(2, accumulate=parts)
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
    for one, other in zip(metrics, known, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-6)


def test_parts_take_their_statistics_one_after_the_other():
    weights, *_ = trained(2, accumulate=2, batch_norm="plain")
    whole, *_ = trained(2, batch_norm="plain")
    assert np.abs(weights["norm1/moving_mean:0"]).max() > 0
    # two parts move the statistics twice a step: 1 - 0.9^4 of the way instead of 1 - 0.9^2
    ratio = weights["norm1/moving_mean:0"] / whole["norm1/moving_mean:0"]
    np.testing.assert_allclose(np.median(ratio), (1 - 0.9**4) / (1 - 0.9**2), rtol=0.1)


def test_float16_in_parts():
    config = TrainConfig(precision="mixed_float16", learning_rate=5e-3)
    detector, model = toy_model(config)
    optimizer = optimizers.build_optimizer(config, 10, model)
    update = step.make_train_step(model, detector, optimizer, accumulate=2)
    data = step.fill(toy.batch(8), 8)
    losses = [float(update(data)["loss"]) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def test_rows_that_cannot_be_cut_into_parts_are_an_error():
    with pytest.raises(ConfigError, match=r"8, which 1 replicas cannot take in 3 equal parts .*take 6"):
        step.require_even_split(8, ONE, 3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_skipped_step_changes_nothing_but_the_count(optimizer):
    """Weights, slots, batch normalisation and averages stay, as if the batch had not been there."""
    config = replace(SGD, optimizer=optimizer, ema_decay=0.5)
    options = {"batch_norm": "plain", "skip_nonfinite": True, "clip_norm": 1.0}
    weights, metrics, averages, used, _ = trained(3, config, spoil=(2,), **options)
    expected, _, kept, _, _ = trained(2, config, **options)
    assert [row["skipped"] for row in metrics] == [0, 0, 1]
    assert np.isnan(metrics[2]["loss"])
    assert int(used.iterations) == 3
    for name, value in expected.items():
        np.testing.assert_array_equal(weights[name], value, name)
    for value, other in zip(averages.values, kept.values):
        np.testing.assert_array_equal(value.numpy(), other.numpy())


def test_the_moving_average_by_hand():
    """With d = min(0.5, (1 + t) / (10 + t)): 2/11 after the first update, 3/12 after the second."""
    config = replace(SGD, ema_decay=0.5)
    start = trained(0, config)[0]
    first = trained(1, config)[0]
    second, _, averages, _, model = trained(2, config)
    name = "conv1/kernel:0"
    expected = start[name] * 2 / 11 + first[name] * 9 / 11
    expected = expected * 3 / 12 + second[name] * 9 / 12
    with averages.swapped():
        np.testing.assert_allclose(model.get_layer("conv1").kernel.numpy(), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(model.get_layer("conv1").kernel.numpy(), second[name])


@pytest.mark.parametrize("name", ["adamw", "sgdw"])
def test_decoupled_decay_is_the_rate_times_the_decay_and_spares_what_has_one_dimension(name):
    config = TrainConfig(optimizer=name, weight_decay=0.5, learning_rate=0.1)
    detector, model = toy_model(config, batch_norm="plain")
    optimizer = optimizers.build_optimizer(config, 10, model)
    for variable in model.trainable_variables:
        if len(variable.shape) < 2:
            variable.assign(tf.ones_like(variable))
    batch = toy.batch(4)
    batch[schema.TARGET_LABELS] = tf.fill([4, 16], schema.IGNORE)
    _, before, after = one_update(optimizer, batch, detector, model, weight_decay=optimizers.l2(config))
    for key, value in before.items():
        np.testing.assert_allclose(after[key], (0.95 if "kernel" in key else 1.0) * value, rtol=1e-6)
