"""Prediction on files: pixels of the photo, order, damaged files, the tool."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from datasets import make_records
from PIL import Image

import tfdet
from tfdet import configs, detectors, predict
from tfdet.config import Config, ConfigError, DataConfig, TrainConfig, YoloConfig, to_json
from tfdet.data import formats
from tfdet.data.annotations import to_annotation
from tfdet.data.errors import ImageError
from tfdet.data.formats.results import whole_pixels

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
        return tf.broadcast_to(boxes, [tf.shape(scores)[0], 2, 4]), scores


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
    files = [photo.path for photo in predict.find_images([folder])]
    found = predictor.predict(files * 2)
    assert [item.path for item in found] == files * 2
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
        predictor.predict([files[0], tmp_path])
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        predictor.predict(files[2:])
    skipped = []
    found = list(predictor.stream(files, skip=skipped.append))
    assert [Path(item.path).name for item in found] == ["a.jpg", "b.png"]
    assert [Path(error.where).name for error in skipped] == ["cut.jpg", "gone.jpg"]
    assert list(predictor.stream(files[1:3], skip=skipped.append)) == []


def test_some_classes_only(predictor, folder):
    found = predictor.predict([folder / "a.jpg", folder / "b.png"], min_score=0.2, classes=["dark"])
    assert [item.names for item in found] == [(), ("dark", "dark")]
    with pytest.raises(ConfigError, match="there is no class 'gray'; the run has bright, dark"):
        predictor.predict([folder], classes=["gray"])


def test_rows_are_those_of_detection_out(predictor, folder):
    """Label from 1, score, corners relative to the image: the box of the detector, cut at the bottom."""
    rows = predictor.predict([folder / "a.jpg"], min_score=0.2)[0].to_rows()
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[1, 0.9, 0.25, 0.5, 0.75, 1], [1, 0.3, 0, 0, 0.125, 0.125]], atol=1e-6)
    assert predictor.predict([folder / "a.jpg"], min_score=0.95)[0].to_rows().shape == (0, 6)


def test_boxes_in_whole_pixels():
    """Rounded, inside 30 x 20 (w, h), and at least a pixel wide wherever they are."""
    boxes = [[1.4, 2.6, 10.5, 9.5], [-1, -1, 31, 21], [5.1, 5.1, 5.3, 5.4], [30, 20, 30, 20]]
    want = [[1, 3, 10, 10], [0, 0, 30, 20], [5, 5, 6, 6], [29, 19, 30, 20]]
    np.testing.assert_array_equal(whole_pixels(boxes, (20, 30)), want)
    assert whole_pixels(np.zeros((0, 4)), (20, 30)).shape == (0, 4)


# --- inputs -------------------------------------------------------------------------------------


def test_find_images(folder):
    names = lambda inputs: [Path(photo.path).name for photo in predict.find_images(inputs)]  # noqa: E731
    assert names([folder]) == ["a.jpg", "b.png", "c.jpg", "a.jpg"]
    assert names([folder / "*.jpg", folder / "a.jpg"]) == ["a.jpg", "c.jpg"]
    assert names([folder / "notes.txt"]) == ["notes.txt"]  # named as such: reported later if it is no image
    with pytest.raises(ImageError, match="no such file, folder or pattern"):
        predict.find_images([folder / "*.tif"])


def test_frames_of_a_video_come_in_their_order(tmp_path):
    for name in ("frame10", "frame9", "frame100", "²", "frame9b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    want = ["frame9.png", "frame9b.png", "frame10.png", "frame100.png", "².png"]
    for inputs in ([tmp_path], [tmp_path / "*.png"]):
        assert [Path(photo.path).name for photo in predict.find_images(inputs)] == want


def test_converted_records(predictor, tmp_path):
    """A folder of records, and one of its files: the detections are those of the image files."""
    record_set = make_records(tmp_path, 6, shards=2)
    by_name = {Path(item.path).name: item for item in predictor.predict([tmp_path / "drawn" / "images"])}
    found = predictor.predict([tmp_path / "records"])
    assert {item.name for item in found} == set(by_name)
    assert len(predictor.predict(record_set.shard_paths[:1])) == 3
    for item in found:
        np.testing.assert_array_equal(item.boxes, by_name[item.name].boxes)
        entry = item.to_dict()
        assert entry["file"] in record_set.shard_paths
        assert entry["image_id"] == item.name
        assert predictor.draw(item).size == item.size[::-1]


@pytest.fixture(scope="module")
def foreign(folder, tmp_path_factory):
    """Records that hold little more than a picture, one of them a PNG; and one that holds none."""
    path = tmp_path_factory.mktemp("foreign") / "photos.record"
    text = lambda value: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))  # noqa: E731
    with tf.io.TFRecordWriter(str(path)) as writer:
        for features in (
            {"image/encoded": text((folder / "a.jpg").read_bytes())},
            {"image/encoded": text((folder / "b.png").read_bytes()), "image/filename": text(b"../b.png")},
            {"image/filename": text(b"nothing.jpg")},
        ):
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return path


def test_records_from_elsewhere(predictor, foreign):
    skipped = []
    photos = predict.find_images([foreign], skipped.append)
    assert [item.names for item in predictor.stream(photos)] == [("bright",), ("dark",)]
    assert "record 3: the record holds no image" in str(skipped[0])
    with pytest.raises(ImageError, match="record 3"):
        predictor.predict([foreign])


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
        (["--max-detections", "0"], "--max-detections is 0; it must be positive"),
        (["--batch-size", "-1"], "--batch-size is -1; it must be positive"),
        (["--classes", "gray"], "there is no class 'gray'; the run has bright, dark"),
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


@pytest.mark.parametrize("kind, name", [("voc", "annotations"), ("lines", "annotations.txt")])
def test_predictions_become_annotations(tool, run, folder, tmp_path, capsys, kind, name):
    """What is written is read again: whole pixels next to those of the JSON file, the same classes, every image."""
    out = tmp_path / "out"
    arguments = [str(folder), "--run", str(run), "--out", str(out), "--min-score", "0.0001", "--no-pictures"]
    assert tool.main([*arguments, "--format", kind, "json", "coco"]) == 0
    printed = capsys.readouterr().out
    assert f"tfdet convert {out / name} --images {folder} --classes {out / 'classes.txt'}" in printed
    written = json.loads((out / "detections.json").read_text())["images"]
    assert sum(len(entry["detections"]) for entry in written) > 10
    source = formats.read(out / name, images=folder, class_names=formats.read_class_names(out / "classes.txt"))
    assert not source.problems
    listings = {Path(item.image_path): item for item in source.listings}
    for entry in written:
        listing = listings[Path(entry["file"])]
        assert [NAMES[label] for label in listing.labels] == [item["class"] for item in entry["detections"]]
        boxes = np.reshape([item["box"] for item in entry["detections"]], (-1, 4))
        assert (listing.boxes % 1 == 0).all()
        assert np.abs(listing.boxes - boxes).max(initial=0) <= 1.01
        assert not to_annotation(listing, (entry["height"], entry["width"]))[1]
    results = json.loads((out / "coco_results.json").read_text())
    assert len(results) == sum(len(entry["detections"]) for entry in written)
    assert tool.main([*arguments, "--format", kind]) == 2
    assert f"{out / name} is there already; choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["voc", "lines"])
def test_annotations_of_images_elsewhere_are_refused(tool, run, folder, tmp_path, capsys, kind):
    with tf.io.gfile.GFile("ram://photos/a.jpg", "wb") as file:
        file.write((folder / "a.jpg").read_bytes())
    arguments = ["ram://photos", "--run", str(run), "--out", str(tmp_path / "out"), "--format", "json"]
    assert tool.main([*arguments, kind]) == 2
    captured = capsys.readouterr()
    text = "ram://photos/a.jpg is not on this machine; --format voc and lines need a copy of it here"
    assert (captured.out, captured.err) == ("", f"predict: {text}\n")
    assert not (tmp_path / "out").exists()
    assert tool.main(arguments) == 0
    written = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    assert [(item["file"], item["picture"]) for item in written] == [("ram://photos/a.jpg", "a.jpg")]


def test_annotations_of_records_come_with_their_images(tool, run, foreign, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(foreign), "--run", str(run), "--out", str(out), "--min-score", "0.0001"]
    assert tool.main([*arguments, "--format", "voc", "lines", "--max-detections", "3", "--nms", "soft"]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert (summary["images"], summary["skipped"]) == (2, 1)
    assert 0 < summary["detections"] <= 6
    assert "record 3: the record holds no image" in captured.err
    names = sorted(path.name for path in (out / "images").iterdir())
    assert names == ["b.jpg", "photos.record: record 1.jpg"]
    for name in ("annotations", "annotations.txt"):
        source = formats.read(out / name, images=out / "images", class_names=NAMES)
        assert not source.problems
        assert sorted(Path(item.image_path).name for item in source.listings) == names
    assert not list(tmp_path.glob("*.jpg"))  # whatever a record calls itself


def test_two_lines_are_enough(run, folder):
    detector = tfdet.load(run, nms="matrix", max_detections=2, batch_size=2)
    found = detector.predict([folder / "a.jpg", folder / "b.png", folder / "c.jpg"], min_score=0.0001)
    assert [len(item.scores) for item in found] == [2, 2, 2]
    assert detector.config.detector.nms.method == "matrix"
    (alone,) = detector.predict(str(folder / "a.jpg"), min_score=0.0001)  # not letter by letter
    assert alone.path == found[0].path
    with pytest.raises(TypeError, match="given by their paths, not as ndarray"):
        detector.predict([np.zeros((9, 9, 3), np.uint8)])
    limits = tfdet.load(run, nms={"method": "soft", "kernel": "linear", "sigma": 0.4}).config.detector.nms
    assert (limits.method, limits.kernel, limits.sigma) == ("soft", "linear", 0.4)
