"""Anchors: IoU by hand and beside the reference, k-means for many seeds, the file, the tool, training with them."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfdet import anchors, configs
from tfdet.config import COCO_ANCHORS, ConfigError
from tfdet.data import synthetic
from tfdet.data.statistics import Facts

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "kmeans_anchors.py"


def load_tool(name):
    spec = importlib.util.spec_from_file_location(f"{name}_tool", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool():
    return load_tool("kmeans_anchors")


def iou_twin(a, b):
    """Two boxes around one centre, one pair after the other."""
    shared = min(a[0], b[0]) * min(a[1], b[1])
    return shared / (a[0] * a[1] + b[0] * b[1] - shared)


def best_twin(sides, centres):
    rows = [[iou_twin(side, centre) for centre in centres] for side in sides]
    return np.max(rows, 1), np.argmax(rows, 1)


# --- boxes at the input -------------------------------------------------------------------------


def test_sides_are_those_the_model_sees():
    sizes = np.array([[100, 200], [50, 50], [300, 100]], np.int32)  # height, width
    boxes = np.array([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 1.0, 1.0], [0.5, 0.0, 1.0, 0.5]], np.float32)
    facts = Facts(sizes, np.array([1, 0, 2], np.int32), boxes, np.zeros(3, np.int32))
    # 200 x 100 letterboxed into 416 x 416 is shown as 416 x 208, 100 x 300 as 138.67 x 416
    expected = [[0.5 * 416, 0.5 * 208], [416 / 3, 416], [0.5 * 416 / 3, 0.5 * 416]]
    np.testing.assert_allclose(anchors.sides_at_input(facts, (416, 416), True), expected, rtol=1e-6)
    # stretched over height 320, width 640
    expected = [[0.5 * 640, 0.5 * 320], [640, 320], [0.5 * 640, 0.5 * 320]]
    np.testing.assert_allclose(anchors.sides_at_input(facts, (320, 640), False), expected, rtol=1e-6)
    none = Facts.join([])
    assert anchors.sides_at_input(none, (416, 416), True).shape == (0, 2)


def test_iou_by_hand_and_beside_the_twin(rng):
    # 10x20 beside 20x10: 10*10 shared of 200 + 200 - 100; beside 10x10: 100 of 200
    iou, which = anchors.best_iou(np.array([[10.0, 20.0]]), np.array([[20.0, 10.0], [10.0, 10.0]]))
    assert (iou[0], which[0]) == (0.5, 1)
    sides, centres = rng.uniform(1, 400, (50, 2)), rng.uniform(1, 400, (7, 2))
    expected, nearest = best_twin(sides, centres)
    iou, which = anchors.best_iou(sides, centres)
    np.testing.assert_allclose(iou, expected, rtol=1e-12)
    np.testing.assert_array_equal(which, nearest)


def test_iou_is_that_of_the_reference(golden):
    data = golden("kmeans")
    iou, which = anchors.best_iou(data["iou_boxes"], data["iou_clusters"])
    np.testing.assert_allclose(iou, data["iou"].max(1), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(which, data["iou"].argmax(1))


def test_chunks_do_not_show(rng, monkeypatch):
    sides, centres = rng.uniform(1, 400, (100, 2)), rng.uniform(1, 400, (3, 2))
    whole = anchors.best_iou(sides, centres)
    monkeypatch.setattr(anchors, "_CHUNK", 7)
    np.testing.assert_array_equal(whole, anchors.best_iou(sides, centres))


def test_average_and_recall_by_hand():
    # against 10x10: IoU 1, 100 / 200 = 0.5, 100 / 400 = 0.25
    figures = anchors.measure(np.array([[10.0, 10.0], [10.0, 20.0], [20.0, 20.0]]), [(10, 10)])
    assert figures == {"average_iou": pytest.approx(1.75 / 3), "recall": pytest.approx(2 / 3)}


# --- k-means ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_every_seed_reaches_the_reference(golden, seed):
    sides = golden("kmeans")["letterbox416_wh"]
    found = anchors.kmeans(sides, 9, seed)
    assert anchors.measure(sides, found)["average_iou"] >= 0.857  # the median of its seeds
    assert anchors.measure(sides, anchors.rounded(found))["average_iou"] >= 0.857
    assert np.all(np.diff(found.prod(1)) >= 0)


def test_clear_clusters_are_found(rng):
    middles = np.array([[20.0, 30.0], [100.0, 60.0], [50.0, 200.0]])
    sides = np.repeat(middles, 51, 0) + rng.uniform(-2, 2, (153, 2))
    found = anchors.kmeans(sides, 3, seed=1)
    medians = [np.median(part, 0) for part in np.split(sides, 3)]
    np.testing.assert_allclose(found, sorted(medians, key=np.prod), atol=0.3)


def test_the_seed_decides(rng):
    sides = rng.uniform(1, 400, (300, 2))
    np.testing.assert_array_equal(anchors.kmeans(sides, 5, 3, restarts=2), anchors.kmeans(sides, 5, 3, restarts=2))
    orders = [anchors.kmeans(sides[rng.permutation(300)], 5, 3, restarts=2) for _ in range(2)]
    np.testing.assert_array_equal(*orders)  # nor does the order of the boxes


def test_equal_boxes_weigh_as_many_as_they_are():
    # one centre: the median of eight 10x10 and one 100x100 is 10x10
    sides = np.array([[10.0, 10.0]] * 8 + [[100.0, 100.0]])
    np.testing.assert_array_equal(anchors.kmeans(sides, 1), [[10.0, 10.0]])
    np.testing.assert_array_equal(anchors.kmeans(sides, 2), [[10.0, 10.0], [100.0, 100.0]])


def test_a_centre_without_boxes_starts_anew():
    sides = np.array([[10.0, 10.0], [11.0, 10.0], [200.0, 300.0]])
    far = np.array([[10.0, 10.0], [5000.0, 5000.0], [6000.0, 6000.0]])  # the last gets no box
    centres, score = anchors._lloyd(sides, np.ones(3), far)
    assert score == 1.0
    np.testing.assert_array_equal(sorted(centres.tolist()), sorted(sides.tolist()))


def test_a_sample_finds_what_all_do(rng, monkeypatch):
    sides = np.exp(rng.normal([4, 4], 0.7, (3000, 2)))
    best = anchors.measure(sides, anchors.kmeans(sides, 4))["average_iou"]
    monkeypatch.setattr(anchors, "SAMPLE", 300)
    assert anchors.measure(sides, anchors.kmeans(sides, 4))["average_iou"] > best - 0.003


def test_boxes_without_area_are_left_out_and_too_few_are_named():
    sides = np.array([[10.0, 10.0], [20.0, 20.0], [0.0, 5.0], [np.nan, 5.0], [np.inf, 1.0]])
    np.testing.assert_array_equal(anchors.kmeans(sides, 2), [[10.0, 10.0], [20.0, 20.0]])
    with pytest.raises(ConfigError, match="3 anchors of 2 different boxes"):
        anchors.kmeans(sides, 3)
    with pytest.raises(ConfigError, match="of 0 different boxes"):
        anchors.kmeans(np.zeros((0, 2)), 1)


# --- the file -----------------------------------------------------------------------------------


def test_the_file_is_that_of_keras_yolo3(tmp_path):
    text = anchors.to_text(COCO_ANCHORS)
    assert text == "10,13, 16,30, 33,23, 30,61, 62,45, 59,119, 116,90, 156,198, 373,326"
    path = tmp_path / "anchors.txt"
    path.write_text(text)
    assert anchors.read(path) == COCO_ANCHORS
    path.write_text("10,13,\n 16.5,30\n")
    assert anchors.read(path) == ((10.0, 13.0), (16.5, 30.0))


@pytest.mark.parametrize(
    "text, says",
    [("10,13, 16", "3 numbers"), ("10,x", "could not convert"), ("", "one line such as"), ("10,-3", "positive"),
     ("nan,3", "positive")],
)  # fmt: skip
def test_a_wrong_file_is_named(tmp_path, text, says):
    path = tmp_path / "anchors.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"anchors\.txt: .*{says}"):
        anchors.read(path)


def test_anchors_go_into_a_config():
    config = configs.load("yolov3_tiny")
    six = tuple((float(i), 2.0 * i) for i in range(1, 7))
    assert anchors.use(config, six).detector.anchors == six
    with pytest.raises(ConfigError, match=r"there are 9 anchors; detector\.anchor_masks shares out 6"):
        anchors.use(config, COCO_ANCHORS)
    with pytest.raises(ConfigError, match="for YOLO"):
        anchors.use(configs.load("ssd300_vgg16"), COCO_ANCHORS)


# --- the tool -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    synthetic.make_shapes(root, 12, 0)
    return root


def last_line(out):
    return json.loads(out.strip().splitlines()[-1])


def test_the_tool_writes_file_and_plot_from_annotations_and_records(tool, drawn, tmp_path, capsys):
    from datasets import make_records

    names = ["--classes", str(drawn / synthetic.CLASSES), "--workers", "1"]
    out, plot = tmp_path / "anchors.txt", tmp_path / "anchors.png"
    command = [str(drawn / synthetic.LINES), *names, "-k", "3", "--out", str(out), "--plot", str(plot)]
    assert tool.main(command) == 0
    printed = capsys.readouterr().out
    summary = last_line(printed)
    assert out.read_text().strip() in printed
    np.testing.assert_array_equal(anchors.read(out), summary["anchors"])
    assert summary["average_iou"] > summary["preset_anchors"]["average_iou"]
    with Image.open(plot) as image:
        assert (np.asarray(image.convert("L")) < 40).sum() > 300  # black centres
    assert tool.main([str(drawn / synthetic.PICKLE), "--images", str(drawn / synthetic.IMAGES), *names, "-k", "3"]) == 0
    assert last_line(capsys.readouterr().out)["anchors"] == summary["anchors"]
    make_records(tmp_path, 12, shards=1)
    assert tool.main([str(tmp_path / "records"), "-k", "3", "--workers", "1"]) == 0
    np.testing.assert_allclose(last_line(capsys.readouterr().out)["anchors"], summary["anchors"], atol=0.2)


@pytest.mark.parametrize(
    "extra, says", [(["-k", "5000"], "5000 anchors of"), (["--plot", "nowhere/a.png"], "folder does not exist")]
)
def test_a_mistake_is_one_line(tool, drawn, capsys, extra, says):
    command = [str(drawn / synthetic.LINES), "--classes", str(drawn / synthetic.CLASSES), "--workers", "1", *extra]
    assert tool.main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("kmeans_anchors: ")
    assert says in error


def test_the_tool_needs_no_tensorflow():
    code = "import sys, tools.kmeans_anchors; print('tensorflow' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False"]


def test_training_takes_the_file(tmp_path):
    train = load_tool("train")
    path = tmp_path / "anchors.txt"
    path.write_text("1,2, 3,4, 5,6, 7,8, 9,10, 11,12")
    options = train.parse_arguments(["--data", "x", "--preset", "yolov3_tiny", "--anchors", str(path)])
    options.run = tmp_path
    config = train.make_config(options, ("a",))
    assert config.detector.anchors == tuple((i, i + 1.0) for i in range(1, 12, 2))
    assert replace(config, class_names=()).data == configs.load("yolov3_tiny").data


def test_a_real_set_has_better_anchors_than_coco(tool, shared, tmp_path, capsys):
    root = shared / "data" / "raccoon"
    command = [str(root / "train.txt"), "--classes", str(root / "classes.txt"), "--preset", "yolov3_tiny"]
    assert tool.main([*command, "--workers", "1"]) == 0
    summary = last_line(capsys.readouterr().out)
    assert summary["average_iou"] > 0.8 > summary["preset_anchors"]["average_iou"]
    assert summary["images"] == 160
