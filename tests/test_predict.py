"""Prediction on files: pixels of the photo, order, damaged files, the tool."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdet import configs, detectors, predict
from tfdet.config import Config, DataConfig, TrainConfig, YoloConfig, to_json
from tfdet.data.errors import ImageError

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("bright", "dark")


class BrightnessDetector:
    """Model and detector in one: always the same two boxes, of class 0 in bright images, of class 1 in dark ones."""

    def __call__(self, images, training):
        return {"brightness": tf.reduce_mean(tf.cast(images, tf.float32), [1, 2, 3])}

    def decode(self, predictions):
        bright = predictions["brightness"] > 100
        boxes = tf.constant([[0.25, 0.5, 0.75, 1.25], [0.0, 0.0, 0.125, 0.125]])
        scores = tf.where(bright[:, None], [0.9, 0.0], [0.0, 0.9])
        scores = tf.stack([scores, scores / 3], 1)
        return tf.broadcast_to(boxes, [len(scores), 2, 4]), scores


@pytest.fixture(scope="module")
def predictor():
    config = Config(detector=YoloConfig(image_size=(64, 64)), train=TrainConfig(batch_size=3), class_names=NAMES)
    return predict.Predictor(config, BrightnessDetector(), BrightnessDetector())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four images, bright and dark in turn, of two kinds, one of them turned by EXIF; and what is no image."""
    directory = tmp_path_factory.mktemp("photos")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (200, 100), "white").save(directory / "a.jpg")
    Image.new("RGB", (80, 160), "black").save(directory / "b.png")
    Image.new("RGB", (120, 60), "white").save(directory / "c.jpg", exif=turned)
    (directory / "deeper").mkdir()
    Image.new("L", (50, 50), 0).save(directory / "deeper" / "a.jpg")
    (directory / "notes.txt").write_text("no image")
    return directory


def test_boxes_are_pixels_of_each_photo_clipped_to_it(predictor, folder):
    """0.25, 0.5, 0.75, 1.25 of 200x100 (w, h): 50, 50, 150, and 100, where the photo ends."""
    found = predictor.predict([folder / "a.jpg"])[0]
    assert found.size == (100, 200)
    np.testing.assert_allclose(found.boxes, [[50, 50, 150, 100]], atol=1e-3)
    assert found.names == ("bright",)
    assert found.to_dict()["detections"] == [
        {"class": "bright", "label": 0, "score": 0.9, "box": [50.0, 50.0, 150.0, 100.0]}
    ]


def test_many_files_in_their_order(predictor, folder):
    """More than a batch; the image turned by EXIF is 60 wide and 120 high."""
    files = predict.find_images([folder])
    found = predictor.predict(files * 2)
    assert [Path(item.path) for item in found] == files * 2
    assert [item.names for item in found[:4]] == [("bright",), ("dark",), ("bright",), ("dark",)]
    assert found[2].size == (120, 60)
    np.testing.assert_allclose(found[2].boxes, [[15, 60, 45, 120]], atol=1e-3)


def test_min_score(predictor, folder):
    assert [len(item.scores) for item in predictor.predict([folder / "a.jpg"], min_score=0.2)] == [2]
    assert [len(item.scores) for item in predictor.predict([folder / "a.jpg"], min_score=0.95)] == [0]
    assert predictor.predict([]) == []


def test_letterbox_is_undone(predictor, folder):
    """200x100 in 64x64: shown 32 pixels high from row 16 on, so a box from 0.5 to the bottom covers 0.5 to 1 of it."""
    config = replace(predictor.config, data=DataConfig(resize="letterbox"))
    found = predict.Predictor(config, BrightnessDetector(), BrightnessDetector()).predict([folder / "a.jpg"])[0]
    np.testing.assert_allclose(found.boxes, [[50, 50, 150, 100]], atol=1e-3)


def test_unreadable_files_raise_or_are_skipped(predictor, folder, tmp_path):
    whole = (folder / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    files = [folder / "a.jpg", tmp_path / "cut.jpg", tmp_path / "gone.jpg", folder / "b.png"]
    with pytest.raises(ImageError, match=r"cut\.jpg"):
        predictor.predict(files)
    skipped = []
    found = list(predictor.stream(files, skip=skipped.append))
    assert [Path(item.path).name for item in found] == ["a.jpg", "b.png"]
    assert [Path(error.where).name for error in skipped] == ["cut.jpg", "gone.jpg"]
    assert list(predictor.stream(files[1:3], skip=skipped.append)) == []


def test_find_images(folder, monkeypatch):
    names = lambda inputs: [path.name for path in predict.find_images(inputs)]  # noqa: E731
    assert names([folder]) == ["a.jpg", "b.png", "c.jpg", "a.jpg"]
    assert names([folder / "*.jpg", folder / "a.jpg"]) == ["a.jpg", "c.jpg"]
    assert names([folder / "notes.txt"]) == ["notes.txt"]  # named as such: reported later if it is no image
    with pytest.raises(ImageError, match="no such file, folder or pattern"):
        predict.find_images([folder / "*.tif"])


def test_damaged_and_unusual_files(predictor, shared):
    """Every file of the torture folder is either predicted or skipped with a reason; none ends the stream."""
    files, skipped = predict.find_images([shared / "torture" / "img" / "*"]), []
    found = list(predictor.stream(files, skip=skipped.append))
    assert len(found) + len(skipped) == len(files)
    assert {"zero_byte.jpg", "text_named.jpg", "truncated_half.jpg"} <= {Path(e.where).name for e in skipped}
    upright = {item.size for item in found if Path(item.path).name.startswith("exif_")}
    assert len(upright) == 1


# --- the tool, on a real detector ---------------------------------------------------------------


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("predict_tool", ROOT / "tools" / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a model that has learnt nothing."""
    config = configs.load("yolov3_tiny")
    detector = replace(config.detector, image_size=(64, 64), width_multiplier=0.125)
    config = replace(config, detector=detector, class_names=NAMES)
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(to_json(config))
    model = detectors.build(config.detector, config.num_classes).build_model()
    model.save_weights(str(folder / "best.h5"), save_format="h5")
    return folder


def test_the_tool_writes_pictures_and_json(tool, run, folder, tmp_path, capsys):
    (tmp_path / "empty.jpg").write_bytes(b"")
    arguments = [str(folder), str(tmp_path / "empty.jpg"), "--run", str(run), "--out", str(tmp_path / "out")]
    assert tool.main([*arguments, "--min-score", "0.0001"]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert summary["images"] == 4
    assert summary["skipped"] == 1
    assert summary["detections"] > 0
    assert "empty.jpg" in captured.err
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [entry["picture"] for entry in written["images"]] == ["a.jpg", "b.jpg", "c.jpg", "a-2.jpg"]
    for entry in written["images"]:
        with Image.open(tmp_path / "out" / entry["picture"]) as picture:
            assert picture.size == (entry["width"], entry["height"])
        for found in entry["detections"]:
            x0, y0, x1, y1 = found["box"]
            assert 0 <= x0 <= x1 <= entry["width"]
            assert 0 <= y0 <= y1 <= entry["height"]
            assert found["class"] in NAMES
            assert 0 <= found["score"] <= 1


@pytest.mark.parametrize(
    "change, text",
    [
        (["--run", "nowhere"], "nowhere: no such folder"),
        (["--min-score", "2"], "--min-score is 2.0; it lies in [0, 1)"),
        (["gone.jpg"], "gone.jpg: no such file, folder or pattern"),
    ],
)
def test_mistakes_are_one_line(tool, run, folder, tmp_path, capsys, change, text):
    arguments = [str(folder), "--run", str(run), "--out", str(tmp_path / "out")]
    arguments = [*change, *arguments] if change[0] == "gone.jpg" else [*arguments, *change]
    assert tool.main(arguments) == 2
    captured = capsys.readouterr()
    assert text in captured.err.splitlines()[-1]
    assert not captured.out
