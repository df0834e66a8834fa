"""1, 2 and 4 replicas with the same global batch train the same model."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import toy
from datasets import make_records

from tfdet import detectors, schema
from tfdet.compat import keras
from tfdet.config import PRIOR_LAYOUTS, Config, TrainConfig
from tfdet.data import pipeline
from tfdet.train import devices, optimizers, setup, step

BATCH = 8


def strategy_of(replicas):
    return devices.choose_strategy(replicas=replicas) if replicas > 1 else tf.distribute.get_strategy()


def train(replicas, steps, config, detector, dataset):
    """The weights before the first step, after it and after the last one, and the metrics of every step."""
    strategy = strategy_of(replicas)
    model = setup.build_model(detector, config, strategy)
    with strategy.scope():
        optimizer = optimizers.build_optimizer(config, steps, model)
    update = step.make_train_step(
        model, detector, optimizer, weight_decay=optimizers.l2(config), clip_norm=config.clip_norm
    )
    data = iter(step.distribute(dataset, strategy, BATCH))
    weights, metrics = [values(model)], []
    for number in range(steps):
        metrics.append({name: float(value) for name, value in update(next(data)).items()})
        if number in (0, steps - 1):
            weights.append(values(model))
    return weights, metrics


def values(model):
    return {v.name: v.numpy() for v in model.variables}


def augmented(detector):
    """Batches of eight, images with 0, 1 or no counted objects among them, stateless flips by row."""
    rows = tf.data.Dataset.from_tensor_slices(toy.batch(40, detector, seed=3)).repeat().enumerate()

    def change(number, row):
        noise = tf.random.stateless_uniform([2], [7, number])
        flipped = tf.where(noise[0] < 0.5, row[schema.IMAGE][..., ::-1], row[schema.IMAGE])  # red <-> blue
        empty = tf.fill(tf.shape(row[schema.TARGET_LABELS]), schema.BACKGROUND)
        labels = tf.where(noise[1] < 0.3, empty, row[schema.TARGET_LABELS])
        return {**row, schema.IMAGE: flipped, schema.TARGET_LABELS: labels}

    return rows.map(change).batch(BATCH)


def assert_close(actual, expected, rtol, name):
    """Equal to `rtol` of the longest of the two, as vectors."""
    assert np.linalg.norm(actual - expected) <= rtol * np.linalg.norm(expected) + 1e-9, name


SGD = TrainConfig(optimizer="sgd", learning_rate=0.005)
CASES = {
    "sgd": (SGD, None, (2, 4)),
    "l2_and_clipping": (replace(SGD, learning_rate=0.02, weight_decay=0.01, clip_norm=2.0), None, (2,)),
    "batch_norm_made_synchronised": (SGD, "sync", (2,)),
    "batch_norm_synchronised_later": (replace(SGD, sync_batch_norm=True), "plain", (2, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_replicas_train_the_same_model(name):
    config, batch_norm, all_replicas = CASES[name]
    detector = toy.Toy(batch_norm)
    metrics = compare(all_replicas, config, detector, augmented(detector))
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]


def compare(all_replicas, config, detector, dataset):
    """Asserts that all numbers of replicas train as one does; returns its metrics."""
    (start, first, last), metrics = train(1, 20, config, detector, dataset)
    # Keras' fused kernel, which only the single replica uses, keeps the unbiased variance for inference
    compared = [n for n in start if "moving_variance" not in n]
    for replicas in all_replicas:
        (other_start, other_first, other_last), other_metrics = train(replicas, 20, config, detector, dataset)
        for n in compared:
            np.testing.assert_array_equal(other_start[n], start[n])
            # the first update of SGD is rate * gradient: compare updates, not weights
            assert_close(other_first[n] - start[n], first[n] - start[n], 1e-5, n)
            assert_close(other_last[n], last[n], 1e-4, n)
        for one, many in zip(metrics, other_metrics):
            np.testing.assert_allclose(list(many.values()), list(one.values()), rtol=1e-3)
    return metrics


class SmallSsd(detectors.ssd.Ssd):
    """SSD300 with all of its priors, targets and losses, on a network of a few thousand weights."""

    def build_model(self):
        layers, layout, shape = keras.layers, PRIOR_LAYOUTS["ssd300"], (300, 300, 3)
        images = keras.Input(shape, dtype="uint8")
        x = layers.AveragePooling2D(8, padding="same")(layers.Rescaling(1 / 127.5, -1.0)(images))
        x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(x)
        heads = {schema.BOX_DELTAS: 4, schema.CLASS_LOGITS: self.num_classes + 1}
        outputs = {name: [] for name in heads}
        for level, side in enumerate(layout.feature_maps):
            seen = layers.Resizing(side, side)(x)
            for name, width in heads.items():
                head = layers.Conv2D(layout.boxes_per_cell(level) * width, 1, name=f"{name}_{level}")(seen)
                outputs[name].append(layers.Reshape((-1, width))(head))
        return keras.Model(images, {name: layers.Concatenate(1)(maps) for name, maps in outputs.items()})


def test_replicas_train_the_same_ssd_on_augmented_records(tmp_path):
    record_set = make_records(tmp_path, 20)
    config = Config(train=replace(SGD, batch_size=BATCH, learning_rate=0.002), class_names=record_set.class_names)
    detector = SmallSsd(config.detector, config.num_classes)
    metrics = compare((2, 4), config.train, detector, pipeline.train_dataset(record_set, config, detector.encode))
    assert metrics[-1]["loss"] < metrics[0]["loss"]


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_an_epoch_whose_last_batch_is_smaller_than_the_replicas_finishes(replicas):
    config = TrainConfig(optimizer="sgd", learning_rate=0.02)
    strategy, detector = strategy_of(replicas), toy.Toy()
    model = setup.build_model(detector, config, strategy)
    with strategy.scope():
        optimizer = optimizers.build_optimizer(config, 3, model)
    update = step.make_train_step(model, detector, optimizer)
    data = step.distribute(toy.dataset(9, BATCH), strategy, BATCH)  # batches of 8 and 1
    metrics = [update(batch) for batch in data]
    assert [float(m["images"]) for m in metrics] == [8, 1]
    assert all(np.isfinite(float(m["loss"])) for m in metrics)
    assert all(np.isfinite(v.numpy()).all() for v in model.variables)


def test_replicas_get_neighbouring_rows():
    strategy = strategy_of(4)
    batch = next(iter(step.distribute(toy.dataset(BATCH, BATCH), strategy, BATCH)))
    whole = toy.batch(BATCH)[schema.IMAGE].numpy()
    for replica, images in enumerate(strategy.experimental_local_results(batch[schema.IMAGE])):
        np.testing.assert_array_equal(images, whole[2 * replica : 2 * replica + 2])


def test_float16_trains_on_replicas():
    """Overflow depends on each replica's own sums, so the skipped steps differ; both learn."""
    config = TrainConfig(precision="mixed_float16", learning_rate=5e-3)
    detector = toy.Toy()
    _, metrics = train(2, 10, config, detector, augmented(detector))
    _, reference = train(1, 1, replace(config, precision="float32"), detector, augmented(detector))
    np.testing.assert_allclose(metrics[0]["loss"], reference[0]["loss"], rtol=1e-2)
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]


@pytest.mark.parametrize("replicas", [1, 2])
def test_batches_padded_to_different_numbers_of_boxes_are_traced_once(replicas):
    strategy, detector = strategy_of(replicas), Counting()
    model = setup.build_model(detector, SGD, strategy)
    more = lambda boxes: {schema.BOXES: tf.repeat(boxes, 5, 1), schema.LABELS: tf.fill([BATCH, 5], -1)}  # noqa: E731
    batches = toy.dataset(BATCH, BATCH).concatenate(
        toy.dataset(BATCH, BATCH).map(lambda batch: {**batch, **more(batch[schema.BOXES])})
    )
    data = step.distribute(batches, strategy, BATCH)
    evaluate = step.make_eval_step(model, detector, data.element_spec)
    losses = [float(evaluate(batch)["loss"]) for batch in data]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    assert detector.traces == replicas


class Counting(toy.Toy):
    """Counts how often its loss is traced, and insists on rows it can count."""

    traces = 0

    def loss(self, batch, predictions):
        self.traces += 1
        assert batch[schema.IMAGE].shape[0] is not None
        return super().loss(batch, predictions)
