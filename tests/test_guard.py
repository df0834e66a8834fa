"""A loss that is not finite: which batch, what is written, and going on without it."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import toy

from tfdet import schema
from tfdet.config import Config, TrainConfig
from tfdet.train import checkpoints, devices, guard, loop, setup

ROOT = Path(__file__).resolve().parents[1]
CONFIG = Config(train=TrainConfig(batch_size=8, epochs=2, learning_rate=1e-3), class_names=("a", "b"))


def spoiled(*numbers):
    """Batches of which some have targets that are not finite."""

    def spoil(number, row):
        boxes = tf.where(tf.reduce_any(number == numbers), np.nan, row[schema.TARGET_BOXES])
        return {**row, schema.TARGET_BOXES: boxes}

    return lambda step: toy.dataset(40, 8, epochs=None).enumerate().map(spoil).skip(step)


def fit(run, config=CONFIG, strategy=None, progress=False, batch_norm="plain", **options):
    detector = toy.Toy(batch_norm)
    model = setup.build_model(detector, config.train, strategy or tf.distribute.get_strategy())
    return model, loop.fit(model, detector, config=config, run=run, steps_per_epoch=5, progress=progress, **options)


def skipping(**changes):
    return replace(CONFIG, train=replace(CONFIG.train, on_nan="skip", **changes))


def test_the_run_stops_and_leaves_the_batch(tmp_path):
    dump = tmp_path / "nan" / "step_000004.npz"
    text = rf"not finite at step 4 \(.*box_loss nan.*images: toy-24, .*toy-31\. Try .*the batch: tfdet inspect {dump}$"
    with pytest.raises(loop.TrainingError, match=text):
        fit(tmp_path, make_dataset=spoiled(3), checkpoint_every=2, log_every=100)
    assert checkpoints.latest_step(tmp_path) == 2
    dump = guard.read_dump(dump)
    assert dump["step"] == 4
    assert np.isnan(dump["losses"]["loss"])
    assert dump["batch"][schema.IMAGE].shape == (8, toy.SIDE, toy.SIDE, 3)
    np.testing.assert_array_equal(dump["batch"][schema.IMAGE], toy.batch(40)[schema.IMAGE][24:32])
    lines = guard.describe_dump(dump).splitlines()
    assert lines[0].startswith("step 4: ")
    assert lines[1] == "toy-24: 1 boxes, 1 matched anchors, target_boxes not finite"


def test_inspect_dataset_opens_the_dump(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("inspect_tool", ROOT / "tools" / "inspect_dataset.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    path = guard.write_dump(tmp_path / "step_000004.npz", 4, {"loss": np.nan}, toy.batch(2))
    assert tool.main([str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["step 4: loss nan", "toy-0: 1 boxes, 1 matched anchors"]
    assert json.loads(lines[-1]) == {"dump": str(path), "step": 4, "losses": {"loss": None}, "healthy": False}
    assert tool.main([str(tmp_path / "none.npz")]) == 2
    assert "none.npz: cannot be read as the dump of a batch" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:200])
    assert tool.main([str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("step_000004.npz: cannot be read as the dump of a batch: File is not a zip file; "
                         "take it from nan/ again")  # fmt: skip


def test_a_skipped_batch_is_counted_and_named(tmp_path, capsys):
    model, _ = fit(tmp_path, skipping(), make_dataset=spoiled(3, 4, 6), progress=True)
    assert all(np.isfinite(v.numpy()).all() for v in model.variables)
    history = (tmp_path / "history.csv").read_text().splitlines()
    column = history[0].split(",").index("skipped")
    assert [float(row.split(",")[column]) for row in history[1:]] == [2, 1]
    err = capsys.readouterr().err
    assert "not finite at step 4" in err
    assert "toy-24" in err
    assert f"toy-31: skipped; look at the batch: tfdet inspect {tmp_path}" in err.replace("\n", "")
    assert "not finite at step 5" in err
    assert (tmp_path / "nan" / "step_000004.npz").exists()


def test_all_replicas_skip_alike(tmp_path):
    """Two replicas, of which only the second has rows that are spoiled."""

    def second_half(step):
        def spoil(number, row):
            hit = (number == 2) & (tf.range(8) >= 4)
            boxes = tf.where(hit[:, None, None], np.nan, row[schema.TARGET_BOXES])
            return {**row, schema.TARGET_BOXES: boxes}

        return toy.dataset(40, 8, epochs=None).enumerate().map(spoil).skip(step)

    config = skipping(optimizer="sgd", ema_decay=0.9, epochs=1)
    options = {"make_dataset": second_half, "batch_norm": None}
    two, _ = fit(tmp_path / "two", config, devices.choose_strategy(replicas=2), **options)
    one, _ = fit(tmp_path / "one", config, **options)
    for variable, other in zip(two.trainable_variables, one.trainable_variables):
        np.testing.assert_array_equal(*(part.numpy() for part in variable.values))
        np.testing.assert_allclose(variable.numpy(), other.numpy(), rtol=1e-4, atol=1e-6)
    assert all(np.isfinite(v.numpy()).all() for v in two.variables)


def test_an_epoch_of_which_nothing_is_left_ends_the_run(tmp_path):
    with pytest.raises(loop.TrainingError, match="no step of epoch 1 had a loss that is finite"):
        fit(tmp_path, skipping(), make_dataset=spoiled(*range(5)))


def test_a_file_that_is_no_dump_is_an_error(tmp_path):
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(ValueError, match="holds no batch"):
        guard.read_dump(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="cannot be read"):
        guard.read_dump(tmp_path / "none.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="holds no batch"):
        guard.read_dump(tmp_path / "one.npy")


@pytest.mark.parametrize(
    "change",
    [{"step": [4, 5]}, {"step": 4.5}, {"loss/loss": [1.0, 2.0]}, {"loss/loss": "low"}, {schema.IMAGE: 1},
     {schema.LABELS: np.zeros((1, 3), np.int32)}],
)  # fmt: skip
def test_arrays_that_are_no_dump_are_an_error(tmp_path, change):
    arrays = {"step": 4, "loss/loss": 0.5, schema.IMAGE: np.zeros((2, 4, 4, 3)), schema.LABELS: np.zeros((2, 3), int)}
    np.savez(tmp_path / "whole.npz", **arrays)
    assert guard.read_dump(tmp_path / "whole.npz")["losses"] == {"loss": 0.5}
    np.savez(tmp_path / "other.npz", **arrays | change)
    with pytest.raises(ValueError, match=r"other\.npz: holds no batch"):
        guard.read_dump(tmp_path / "other.npz")


def test_any_damage_to_a_dump_is_an_error_or_not_seen(tmp_path, rng):
    """Cut anywhere, and with a bit turned anywhere: 700 files."""
    batch = {schema.IMAGE: rng.integers(0, 256, (2, 4, 4, 3), np.uint8), schema.IMAGE_ID: ["a", "b"]}
    whole = guard.write_dump(tmp_path / "whole.npz", 4, {"loss": np.nan}, batch).read_bytes()
    cut = [whole[:size] for size in range(0, len(whole), 3)]
    places = range(0, len(whole), 2)
    changed = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in places]
    refused = []
    for content in (*cut, *changed):
        (tmp_path / "damaged.npz").write_bytes(content)
        try:
            guard.describe_dump(guard.read_dump(tmp_path / "damaged.npz"))
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > len(cut)
    for text in refused:
        assert text.startswith(f"{tmp_path / 'damaged.npz'}: ")
        assert "\n" not in text


def test_rows_that_fill_a_batch_and_ids_that_are_no_ascii():
    batch = {
        schema.IMAGE: np.zeros((2, 4, 4, 3), np.uint8),
        schema.IMAGE_ID: np.array(["naïve.jpg".encode(), b""], object),
    }
    assert guard.image_ids(batch) == "naïve.jpg"
