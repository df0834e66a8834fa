"""Evaluation with a detector that answers what the test wants: order, filling, ignored boxes, letterbox, the tool."""

import argparse
import contextlib
import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import tensorflow as tf
import yolo_twin
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tfdet import configs, detectors, metrics, nms, schema
from tfdet import evaluate as evaluation
from tfdet.boxes import letterbox_window, to_window
from tfdet.config import (
    NMS_KERNELS,
    NMS_METHODS,
    Config,
    ConfigError,
    DataConfig,
    NmsConfig,
    SsdConfig,
    YoloConfig,
    to_json,
)
from tfdet.data import pipeline
from tfdet.data.formats import results
from tfdet.data.images import ImageOptions
from tfdet.data.records import open_split
from tfdet.detectors import postprocess, runs

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("red", "green", "blue")


class Parrot:
    """Model and detector in one: the "image" of each row carries its number, by which the answer is looked up."""

    def __init__(self, boxes, scores):
        self.boxes, self.scores = tf.constant(boxes, tf.float32), tf.constant(scores, tf.float32)

    def __call__(self, images, training):
        return {"row": tf.cast(images[:, 0, 0, 0], tf.int32)}

    def decode(self, predictions):
        return tf.gather(self.boxes, predictions["row"]), tf.gather(self.scores, predictions["row"])


def batches(boxes, labels, sizes, batch_size=2, difficult=None):
    """Rows with given boxes [N, M, 4], labels [N, M], sizes [N, 2]; the last batch filled up as the pipeline does."""
    number = len(boxes)
    fill = -number % batch_size
    rows = {
        schema.IMAGE: np.arange(number).reshape(-1, 1, 1, 1).astype(np.uint8) + np.zeros((1, 2, 2, 3), np.uint8),
        schema.TRUE_BOXES: np.float32(boxes),
        schema.TRUE_LABELS: np.int32(labels),
        schema.TRUE_DIFFICULT: np.zeros(np.shape(labels), bool) if difficult is None else np.array(difficult),
        schema.IMAGE_ID: np.array([f"image {i}" for i in range(number)]),
        schema.IMAGE_SIZE: np.int32(sizes),
    }
    rows = {key: np.concatenate([value, value[:1].repeat(fill, 0)]) for key, value in rows.items()}
    rows[schema.IMAGE_ID][number:] = ""
    return tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)


def one_hot(labels, score=0.9):
    return (np.asarray(labels)[..., None] == np.arange(len(NAMES))) * score


@pytest.fixture
def scene(rng):
    """Five images of different shapes, three boxes each of which the last may be padding."""
    low = rng.random((5, 3, 2)) * 0.5
    boxes = np.concatenate([low, low + 0.2 + rng.random((5, 3, 2)) * 0.3], -1)
    labels = rng.integers(0, 3, (5, 3))
    labels[::2, 2] = schema.BACKGROUND
    return boxes, labels, rng.integers(100, 500, (5, 2))


def run(parrot, data, config=Config()):  # noqa: B008
    return evaluation.evaluate(parrot, parrot, data, config, NAMES)


def test_a_perfect_detector(scene):
    boxes, labels, sizes = scene
    out = run(Parrot(boxes, one_hot(labels)), batches(boxes, labels, sizes))
    for key in ("map50", "map50_voc07", "coco_ap", "coco_ap50", "coco_ap75"):
        assert out[key] == pytest.approx(1.0)
    assert out["num_images"] == 5  # not the row that fills up
    assert sum(row["boxes"] for row in out["per_class"].values()) == (labels >= 0).sum()
    assert set(out["per_class"]) == set(NAMES)


def test_figures_are_those_of_the_flat_arrays(scene, rng):
    """The same boxes given to metrics by hand, in pixels."""
    boxes, labels, sizes = scene
    answers = np.clip(boxes + rng.normal(0, 0.03, boxes.shape), 0, 1)
    scores = one_hot(labels) * rng.random(labels.shape)[..., None]
    out = run(Parrot(answers, scores), batches(boxes, labels, sizes))
    pixels = np.tile(sizes[:, None, ::-1], 2).astype(float)
    image, slot = np.nonzero(labels >= 0)
    truth = metrics.GroundTruth(image, labels[image, slot], (boxes * pixels)[image, slot], np.zeros(len(image), bool))
    found = metrics.Detections(image, truth.label, (answers * pixels)[image, slot], scores[image, slot].max(-1))
    np.testing.assert_allclose(out["map50"], metrics.mean_ap(metrics.voc_ap(truth, found, 3)), rtol=1e-9)
    np.testing.assert_allclose(out["coco_ap"], metrics.coco_ap(truth, found, 3)["ap"], rtol=1e-9)


def test_batch_size_and_order_do_not_matter(scene, rng):
    boxes, labels, sizes = scene
    answers = np.clip(boxes + rng.normal(0, 0.05, boxes.shape), 0, 1)
    scores = one_hot(labels) * rng.random(labels.shape)[..., None]
    parrot = Parrot(answers, scores)
    want = run(parrot, batches(boxes, labels, sizes))["map50"]
    assert run(parrot, batches(boxes, labels, sizes, batch_size=4))["map50"] == pytest.approx(want)
    order = rng.permutation(5)
    mixed = run(Parrot(answers[order], scores[order]), batches(boxes[order], labels[order], sizes[order]))
    assert mixed["map50"] == pytest.approx(want)


def test_a_difficult_box_is_ignored_for_its_class_alone():
    """A box to find, and a difficult green one that is found as green, which is no mistake, and as red, which is."""
    boxes = [[[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.9, 0.9], [0.5, 0.5, 0.9, 0.9]]]
    answers = Parrot(boxes, [np.stack([one_hot(0, 0.5), one_hot(1, 0.9), one_hot(0, 0.8)])])
    truth, difficult = [[0, 1, schema.BACKGROUND]], [[False, True, False]]
    out = run(answers, batches(boxes, truth, [[100, 100]], 1, difficult))
    assert [row["boxes"] for row in out["per_class"].values()] == [1, 0, 0]
    assert out["per_class"]["red"]["ap50"] == 0.5  # the mistake scores higher than what is right
    assert np.isnan(out["per_class"]["green"]["ap50"])
    assert out["coco_ap"] == pytest.approx(0.5)


def test_the_pipeline_hands_annotations_through_untouched(tmp_path):
    """A box of less than a pixel at the network's size, and a difficult one: both are in the truth."""
    from tfdet.data.annotations import Listing
    from tfdet.data.convert import convert
    from tfdet.data.formats.common import make_listing

    Image.new("RGB", (3000, 1000), "gray").save(tmp_path / "a.jpg")
    rows = [[10, 10, 19, 12, 1], [1000, 100, 2000, 900, 0]]
    listing: Listing = make_listing(
        "test", str(tmp_path / "a.jpg"), "a.jpg", rows, [1, 2], in_pixels=True, difficult=[False, True]
    )
    convert({"val": [listing]}, tmp_path / "out", "t", NAMES)
    config = configs.load("ssd300_mobilenetv2")
    (batch,) = pipeline.eval_dataset(open_split(tmp_path / "out", "val"), config).take(1)
    assert batch[schema.LABELS][0, :2].numpy().tolist() == [schema.BACKGROUND, schema.IGNORE]
    assert batch[schema.TRUE_LABELS][0, :3].numpy().tolist() == [1, 0, schema.BACKGROUND]
    assert batch[schema.TRUE_DIFFICULT][0, :3].numpy().tolist() == [False, True, False]
    np.testing.assert_allclose(batch[schema.TRUE_BOXES][0, 0] * [3000, 1000, 3000, 1000], rows[0][:4], atol=1e-2)


def test_nothing_annotated_and_nothing_found():
    boxes = np.zeros((1, 1, 4))
    out = run(Parrot(boxes, np.zeros((1, 1, 3))), batches(boxes, [[schema.BACKGROUND]], [[100, 100]], 1))
    assert np.isnan(out["map50"])
    assert out["num_images"] == 1
    assert out["detections"][0]["boxes"].shape == (0, 4)


def test_letterboxed_boxes_come_back_to_the_photo(rng):
    """A 100x400 photo (h, w) in 416x416: shown 104 pixels high from row 156 on."""
    config = Config(detector=YoloConfig(), data=DataConfig(resize="letterbox"))
    sizes = np.int32([[100, 400], [300, 200]])
    low = rng.random((2, 3, 2)) * 0.5
    boxes = np.float32(np.concatenate([low, low + 0.3], -1))
    seen = to_window(boxes, letterbox_window(sizes, (416, 416))[:, None])
    np.testing.assert_allclose(seen[0, 0, 1] * 416, 156 + boxes[0, 0, 1] * 104, rtol=1e-5)
    np.testing.assert_allclose(postprocess.to_photo(seen, config, sizes), boxes, atol=1e-6)
    labels = rng.integers(0, 3, (2, 3))
    out = run(Parrot(seen, one_hot(labels)), batches(boxes, labels, sizes), config)
    assert out["coco_ap"] == pytest.approx(1.0)
    np.testing.assert_allclose(out["detections"][0]["true_boxes"], boxes[0] * [400, 100, 400, 100], atol=1e-3)


def test_detections_are_clipped_to_the_photo():
    parrot = Parrot([[[-0.5, 0.2, 1.5, 0.4]]], [[[0.9, 0, 0]]])
    out = run(parrot, batches([[[0.0, 0.2, 1.0, 0.4]]], [[0]], [[50, 200]], 1))
    np.testing.assert_allclose(out["detections"][0]["boxes"], [[0, 10, 200, 20]], atol=1e-4)


def test_coco_results(scene):
    boxes, labels, sizes = scene
    images = run(Parrot(boxes, one_hot(labels)), batches(boxes, labels, sizes))["detections"]
    rows = evaluation.coco_results(images)
    assert len(rows) == (labels >= 0).sum()
    first = images[0]["boxes"][0]
    assert rows[0]["image_id"] == "image 0"
    assert rows[0]["category_id"] == images[0]["labels"][0] + 1
    np.testing.assert_allclose(rows[0]["bbox"], [*first[:2], *(first[2:] - first[:2])], atol=1e-3)


# --- the tool, on a real detector ---------------------------------------------------------------


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("evaluate_tool", ROOT / "tools" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with a model that has learnt nothing, and records."""
    folder = tmp_path_factory.mktemp("evaluate")
    records = datasets.make_records(folder, num_images=7, val=5, shards=1)[1]
    config = configs.load("yolov3_tiny")
    detector = replace(config.detector, image_size=(64, 64), width_multiplier=0.125)
    config = replace(config, detector=detector, class_names=records.class_names)
    config = replace(config, train=replace(config.train, batch_size=4))
    run = folder / "run"
    run.mkdir()
    (run / "config.json").write_text(to_json(config))
    model = detectors.build(config.detector, config.num_classes).build_model()
    model.save_weights(str(run / "weights.h5"), save_format="h5")
    return run, folder / "records"


def test_the_tool_prints_json_and_writes_its_files(tool, trained, tmp_path, capsys):
    run, records = trained
    arguments = ["--run", str(run), "--data", str(records)]
    files = ["--json", str(tmp_path / "all.json"), "--coco-results", str(tmp_path / "coco.json")]
    assert tool.main([*arguments, *files]) == 0
    output = capsys.readouterr().out
    figures = json.loads(output.splitlines()[-1])
    assert figures["num_images"] == 5
    assert 0 <= figures["map50"] <= 1
    assert "AP@0.5" in output
    assert json.loads((tmp_path / "all.json").read_text()) == figures
    assert all(set(row) == {"image_id", "category_id", "bbox", "score"}
               for row in json.loads((tmp_path / "coco.json").read_text()))  # fmt: skip
    assert tool.main([*arguments, "--batch-size", "2"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["map50"] == pytest.approx(figures["map50"], abs=1e-6)


def test_coco_files_give_the_same_figures(scene, rng):
    """What is written is loaded by pycocotools, and gives what the evaluation gave."""
    boxes, labels, sizes = scene
    answers = np.clip(boxes + rng.normal(0, 0.03, boxes.shape), 0, 1)
    out = run(Parrot(answers, one_hot(labels)), batches(boxes, labels, sizes, difficult=labels == 1))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(evaluation.coco_truth(out["detections"], NAMES)))
        truth.createIndex()
        found = truth.loadRes(json.loads(json.dumps(evaluation.coco_results(out["detections"]))))
        again = COCOeval(truth, found, "bbox")
        again.evaluate()
        again.accumulate()
        again.summarize()
    assert again.stats[0] == pytest.approx(out["coco_ap"], abs=1e-6)
    assert [image["file_name"] for image in truth.dataset["images"]] == [f"image {i}" for i in range(5)]


def test_coco_ids_are_numbers_where_the_names_are():
    assert results.coco_image_ids(["000000000139.jpg", "val/285.jpg"]) == [139, 285]
    for names in (["a1.jpg", "2.jpg"], ["1.jpg", "001.png"], ["²"]):
        assert results.coco_image_ids(names) == names


def test_the_tool_writes_plots(tool, trained, tmp_path, capsys):
    run, records = trained
    plots = tmp_path / "deep" / "plots"
    arguments = ["--plots", str(plots), "--min-score", "0.001", "--nms", "matrix"]
    truth = ["--coco-truth", str(tmp_path / "truth.json")]
    assert tool.main(["--run", str(run), "--data", str(records), *arguments, *truth]) == 0
    paths = json.loads(capsys.readouterr().out.splitlines()[-1])["plots"]
    for name in ("precision_recall", "confusion", "mistakes"):
        assert paths[name] == str(plots / f"{name}.png")
        with Image.open(plots / f"{name}.png") as picture:
            assert min(picture.size) > 200
            assert picture.convert("L").getextrema()[0] < 100  # something is drawn
    assert len(json.loads((tmp_path / "truth.json").read_text())["images"]) == 5


@pytest.mark.parametrize("store", ["jpeg", "raw"])
def test_the_photo_of_a_record(tmp_path, store):
    record_set = datasets.make_records(tmp_path, 5, shards=2, options=ImageOptions(store=store))
    for number, batch in enumerate(pipeline.eval_dataset(record_set, Config()).unbatch().take(5)):
        photo = evaluation.read_photo(record_set, number)
        assert photo.size == tuple(batch[schema.IMAGE_SIZE].numpy()[::-1])
        small = tf.image.resize(np.asarray(photo, np.float32), (300, 300))
        assert np.abs(small - tf.cast(batch[schema.IMAGE], tf.float32)).mean() < 3


@pytest.mark.parametrize(
    "change, text",
    [
        (["--min-score", "1"], "--min-score is 1.0; it lies in [0, 1)"),
        (["--run", "nowhere"], "nowhere: no such folder; give the folder that training made, its --run"),
        (["--split", "test"], "there is no split 'test'; choose one of"),
        (["--batch-size", "0"], "--batch-size is 0; it must be positive"),
        (["--weights", "missing.h5"], "missing.h5"),
    ],
)
def test_mistakes_are_one_line(tool, trained, capsys, change, text):
    run, records = trained
    assert tool.main(["--run", str(run), "--data", str(records), *change]) == 2
    captured = capsys.readouterr()
    assert text in captured.err.splitlines()[-1]
    assert not captured.out


def test_weights_of_another_model_are_refused(trained, tmp_path):
    run, _ = trained
    config = json.loads((run / "config.json").read_text())
    config["detector"]["width_multiplier"] = 0.25
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit|no layer of it fits"):
        runs.load(tmp_path, run / "weights.h5")


def test_ssd_and_yolo_decode_into_detections():
    """Static shapes and no NaN for both, from random predictions."""
    for config in (Config(detector=SsdConfig()), Config(detector=YoloConfig(image_size=(64, 96)))):
        detector = detectors.build(config.detector, 3)
        number, background = len(detector.anchors), config.detector.kind == "ssd"
        predictions = {
            schema.BOX_DELTAS: tf.random.stateless_normal([2, number, 4], [1, 2]),
            schema.CLASS_LOGITS: tf.random.stateless_normal([2, number, 3 + background], [3, 4]),
            schema.OBJECTNESS_LOGITS: tf.random.stateless_normal([2, number], [5, 6]),
        }
        out = postprocess.detect(detector, config, predictions, tf.constant([[100, 200], [300, 50]]), compiled=False)
        assert out["boxes"].shape == (2, config.detector.nms.max_detections, 4)
        assert np.isfinite(out["boxes"]).all()
        assert (out["num_detections"].numpy() > 0).all()


def nms_config(**fields):
    return Config(detector=SsdConfig(nms=NmsConfig(score_threshold=0.1, iou_threshold=0.5, **fields)))


@pytest.mark.parametrize(
    "limits, want",
    [
        # two boxes with IoU 0.8, scores 0.9 and 0.8; gaussian penalty with sigma 0.5: 0.8 * exp(-0.64 / 0.5) = 0.2224
        # with sigma 1: 0.8 * exp(-0.64) = 0.4218; linear: 0.8 * (1 - 0.8) = 0.16
        ({"method": "hard"}, [0.9]),
        ({"method": "soft"}, [0.9, 0.2224]),
        ({"method": "soft", "sigma": 1.0}, [0.9, 0.4218]),
        ({"method": "soft", "kernel": "linear"}, [0.9, 0.16]),
        ({"method": "matrix"}, [0.9, 0.2224]),
        ({"method": "matrix", "sigma": 1.0}, [0.9, 0.4218]),
        ({"method": "matrix", "kernel": "linear"}, [0.9, 0.16]),
    ],
)
def test_the_config_chooses_the_suppression(limits, want):
    parrot = Parrot([[[0, 0, 1, 1], [0, 0, 0.8, 1]]], [[[0.9, 0, 0], [0.8, 0, 0]]])
    data = batches([[[0, 0, 1, 1]]], [[0]], [[100, 100]], 1)
    found = run(parrot, data, nms_config(**limits))["detections"][0]
    np.testing.assert_allclose(found["scores"], want, atol=1e-4)


def test_an_unknown_suppression_is_refused():
    assert (NMS_METHODS, NMS_KERNELS) == (nms.METHODS, nms.KERNELS)
    with pytest.raises(ConfigError, match=r"nms.kernel is 'cubic'; choose one of gaussian, linear"):
        nms_config(kernel="cubic")
    with pytest.raises(ConfigError, match=r"nms.sigma is 0; it must be positive"):
        nms_config(sigma=0)
    with pytest.raises(ConfigError, match=r"nms.method is 'greedy'; choose one of hard, soft, matrix"):
        nms_config(method="greedy")


@pytest.mark.parametrize(
    "method, given, message",
    [
        ("hard", ["--nms-sigma", "0.2"], "this is hard"),
        ("hard", ["--nms-kernel", "linear"], "this is hard"),
        ("soft", ["--nms-kernel", "linear", "--nms-sigma", "1"], "this one is linear"),
        ("soft", ["--nms-sigma", "1"], None),
        ("matrix", ["--nms-kernel", "linear"], None),
        ("hard", [], None),
    ],
)
def test_options_of_the_suppression_are_not_dropped_in_silence(method, given, message):
    from tools import nms_options

    parser = argparse.ArgumentParser()
    nms_options.add_options(parser)
    options = parser.parse_args(given)
    limits = NmsConfig(**{"method": method, **nms_options.chosen(options)})
    if message is None:
        nms_options.require_use(limits, options)
    else:
        with pytest.raises(ConfigError, match=message):
            nms_options.require_use(limits, options)


def test_other_classes_count_as_never_scored():
    """One detection an image: the best box is red, and the best of the others is kept where red is not wanted."""
    parrot = Parrot([[[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.5, 0, 1, 1]]], [[[0.9, 0.3, 0], [0, 0.4, 0.2], [0, 0, 0.5]]])
    config, predictions = nms_config(max_detections=1), {"row": tf.constant([0])}
    for classes, want in ((None, 0), ([0, 1, 2], 0), ([1, 2], 2), ([1], 1)):
        found = postprocess.detect(parrot, config, predictions, tf.constant([[10, 10]]), classes=classes)
        assert found["labels"].numpy().tolist() == [[want]]


class Learnt:
    """A network that has learnt its data by heart: rows are told apart by the mean of the image."""

    def __init__(self, detector, batches, predict):
        self.keys = tf.concat([self._key(batch[schema.IMAGE]) for batch in batches], 0)
        self.predictions = [predict(detector, batch) for batch in batches]
        self.predictions = {k: tf.concat([p[k] for p in self.predictions], 0) for k in self.predictions[0]}

    def __call__(self, images, training):
        row = tf.argmin(tf.abs(self._key(images)[:, None] - self.keys), -1)
        return {name: tf.gather(value, row) for name, value in self.predictions.items()}

    @staticmethod
    def _key(images):
        return tf.reduce_mean(tf.cast(images, tf.float64), [1, 2, 3])


def perfect_ssd(detector, batch):
    one_hot = tf.one_hot(batch[schema.TARGET_LABELS] + 1, detector.num_classes + 1)
    return {schema.BOX_DELTAS: batch[schema.TARGET_BOXES], schema.CLASS_LOGITS: 30 * one_hot}


@pytest.mark.parametrize(
    "config, perfect",
    [
        (Config(detector=SsdConfig()), perfect_ssd),
        (Config(detector=YoloConfig(), data=DataConfig(resize="letterbox")), yolo_twin.perfect_predictions),
    ],
    ids=["ssd", "yolo letterboxed"],
)
def test_what_encode_makes_of_records_is_detected_again(trained, config, perfect):
    """Records, resizing, encoding, decoding, suppression, and the way back to the photo: nothing is lost."""
    record_set = open_split(trained[1], "train")
    config = replace(config, train=replace(config.train, batch_size=2), class_names=record_set.class_names)
    detector = detectors.build(config.detector, config.num_classes)
    encoded = list(pipeline.eval_dataset(record_set, config, detector.encode))
    model = Learnt(detector, encoded, perfect)
    seen = pipeline.eval_dataset(record_set, config)
    out = evaluation.evaluate(model, detector, seen, config, config.class_names)
    assert out["num_images"] == record_set.num_images
    assert sum(row["boxes"] for row in out["per_class"].values()) == record_set.num_boxes
    assert out["map50"] == pytest.approx(1.0)
    assert out["coco_ap"] == pytest.approx(1.0, abs=0.01)
