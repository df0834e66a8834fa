"""The train step: what it minimises, against numpy and against plain Keras on one device."""

import numpy as np
import pytest
import tensorflow as tf
import toy

from tfdet import schema
from tfdet.compat import keras
from tfdet.config import ConfigError, TrainConfig
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
