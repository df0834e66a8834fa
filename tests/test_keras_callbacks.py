"""Keras' own callbacks in the custom loop, and what the run itself gives TensorBoard."""

from dataclasses import replace

import numpy as np
import tensorflow as tf
import toy

from tfdet.compat import keras
from tfdet.config import Config, TrainConfig
from tfdet.train import loop, setup

CONFIG = Config(train=TrainConfig(batch_size=8, epochs=2, learning_rate=5e-3), class_names=("red", "green"))


def fit(run, config=CONFIG, **options):
    detector = toy.Toy()
    model = setup.build_model(detector, config.train, tf.distribute.get_strategy())
    endless = lambda step: toy.dataset(40, 8, start_step=step, epochs=None)  # noqa: E731
    return model, loop.fit(model, detector, endless, config, run, steps_per_epoch=5, progress=False, **options)


def tags(folder):
    """{tag: steps} of all event files below a folder, and whether one holds a graph."""
    found, graph = {}, False
    for path in folder.rglob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            graph |= bool(event.graph_def)
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found, graph


def test_tensorboard_with_histograms_graph_and_images(tmp_path):
    board = keras.callbacks.TensorBoard(
        str(tmp_path / "board"), histogram_freq=1, write_graph=True, write_images=True, update_freq=2,
        write_steps_per_second=True,  # without, Keras calls it at epochs only, and writes no graph of the step
    )  # fmt: skip
    fit(tmp_path / "run", callbacks=[board], validation=toy.dataset(8, 8))
    found, graph = tags(tmp_path / "board" / "train")
    assert graph
    assert "keras" in found  # the layers' graph
    assert found["epoch_loss"] == [0, 1]
    assert tags(tmp_path / "board" / "validation")[0]["epoch_loss"] == [0, 1]
    assert found["conv1/kernel_0/histogram"] == [0, 1]
    assert any(name.endswith("/image") for name in found)  # of what Keras can draw: a kernel of a convolution is not
    assert found["batch_loss"] == [2, 4, 6, 8, 10]


def test_model_checkpoint_keeps_the_best_and_names_it(tmp_path):
    pattern = str(tmp_path / "ep{epoch:03d}-loss{loss:.3f}-val_loss{val_loss:.3f}.h5")
    keep = keras.callbacks.ModelCheckpoint(pattern, save_weights_only=True, save_best_only=True)
    model, summary = fit(tmp_path / "run", callbacks=[keep], validation=toy.dataset(8, 8))
    last = tmp_path / f"ep002-loss{summary['loss']:.3f}-val_loss{summary['val_loss']:.3f}.h5"
    assert last.exists()
    again = toy.Toy().build_model()
    again.load_weights(last)
    for value, expected in zip(again.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(value, expected)


def test_hooks_come_in_keras_order(tmp_path):
    calls = []
    names = ("train_begin", "epoch_begin", "train_batch_end", "test_begin", "test_end", "epoch_end", "train_end")
    user = keras.callbacks.Callback()
    for name in names:
        setattr(user, f"on_{name}", lambda *_, name=name, **__: calls.append(name))
    fit(tmp_path, replace(CONFIG, train=replace(CONFIG.train, epochs=1)), callbacks=[user])
    assert calls == ["train_begin", "epoch_begin", *["train_batch_end"] * 5, *names[3:]]


def test_the_board_has_classes_and_pictures(tmp_path):
    evaluate = lambda model: {"map50": 0.5, "per_class": {"red": {"ap50": 0.25}, "green": {"ap50": 0.75}}}  # noqa: E731
    pictures = lambda model: np.zeros((3, 16, 36, 3), np.uint8)  # noqa: E731
    fit(tmp_path, evaluate=evaluate, pictures=pictures)
    found, _ = tags(tmp_path / "logs")
    assert found["epoch/ap50/red"] == [5, 10]
    assert found["val"] == [5, 10]
    assert {"train/data_wait", "train/learning_rate", "train/images_per_second", "train/box_loss"} <= set(found)
