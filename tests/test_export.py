"""Exports, loaded again and compared with what they were made of, on photos; SavedModel in a process without tfdet."""

import importlib.util
import io
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdet import configs, detectors, export, nms, schema
from tfdet.config import ConfigError, NmsConfig, to_json
from tfdet.detectors import postprocess
from tfdet.nms.plain import plain_nms
from tfdet.predict import Predictor

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("one", "two", "three")


def build(kind):
    """A small detector with random weights, and a threshold that lets through some of what it finds on noise."""
    name, size, width = {"yolo": ("yolov3_tiny", (64, 96), 0.125), "ssd": ("demo", (300, 300), 0.35)}[kind]
    config = replace(configs.load(name), class_names=NAMES)
    config = replace(config, train=replace(config.train, batch_size=4))
    config = replace(config, detector=replace(config.detector, image_size=size, width_multiplier=width))
    detector = detectors.build(config.detector, len(NAMES))
    model, rng = detector.build_model(), np.random.default_rng(3)
    fan_in = lambda w: np.prod(w.shape[:2]) if w.shape[-1] == 1 else np.prod(w.shape[:-1])  # noqa: E731
    spread = lambda w: rng.normal(0, np.sqrt(2 / fan_in(w)), w.shape).astype(np.float32)  # noqa: E731
    model.set_weights([spread(w) if w.ndim > 1 else w for w in model.get_weights()])
    images = np.concatenate([noise(rng, (8, 12)).repeat(s, 1).repeat(s, 2)[:, : size[0], : size[1]] for s in [38] * 4])
    scores = detector.decode(model(images, training=False))[1].numpy()
    limits = NmsConfig(score_threshold=float(np.quantile(scores, 0.9)), iou_threshold=0.45, max_detections=20)
    return replace(config, detector=replace(config.detector, nms=limits)), detector, model


def noise(rng, size):
    return rng.integers(0, 256, (1, *size, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["yolo", "ssd"])
def trained(request):
    return build(request.param)


@pytest.fixture(scope="module")
def yolo():
    return build("yolo")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Paths of drawn JPEGs of several shapes; one is large enough to be decoded at a fraction of its size."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate([(480, 640), (200, 90), (64, 96), (1300, 1900)]):
        small = Image.fromarray(noise(rng, (12, 16))[0])
        small.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=95)
        paths.append(folder / f"{number}.jpg")
    return paths


def in_process(trained, paths):
    """What the predictor finds, as exports give it: boxes relative to the photos, padded."""
    config = trained[0]
    limits = config.detector.nms
    found = Predictor(*trained).predict([str(path) for path in paths], min_score=limits.score_threshold)
    rows = {"boxes": [], "scores": [], "labels": [], "num_detections": []}
    for one in found:
        n, fill = len(one.scores), limits.max_detections - len(one.scores)
        rows["boxes"].append(np.pad(one.boxes / np.tile(one.size[::-1], 2), [(0, fill), (0, 0)]))
        rows["scores"].append(np.pad(one.scores, (0, fill)))
        rows["labels"].append(np.pad(one.labels, (0, fill), constant_values=-1))
        rows["num_detections"].append(n)
    assert sum(rows["num_detections"]) > 5 * len(paths), "too little is found to compare"
    return {key: np.stack(value) for key, value in rows.items()}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(np.asarray(found[key]), value, rtol=0, atol=1e-4, err_msg=key)


# --- SavedModel ---------------------------------------------------------------------------------


def encoded(paths):
    return tf.constant([path.read_bytes() for path in paths])


def test_a_saved_model_finds_what_the_predictor_finds(trained, photos, tmp_path):
    written = export.export(*trained, tmp_path, min_score=trained[0].detector.nms.score_threshold)
    assert written == {"saved_model": tmp_path / "saved_model"}
    signature = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    assert_same(signature(images=encoded(photos)), in_process(trained, photos))
    assert (tmp_path / "classes.txt").read_text() == (tmp_path / "saved_model/assets/classes.txt").read_text()
    about = json.loads((tmp_path / "export.json").read_text())
    assert about["class_names"] == list(NAMES)


def test_pixels_of_any_size(trained, photos):
    config, detector, model = trained
    module = export.serving_module(*trained)
    for path in photos[:3]:
        with Image.open(path) as image:
            pixels = np.asarray(image)
        found = module.pixels(tf.constant(pixels[None]))
        expected = postprocess.detect(detector, config, model(by_hand(pixels, config)), [pixels.shape[:2]])
        assert_same(found, {key: value.numpy() for key, value in expected.items()})
    two = module.pixels(tf.constant(np.stack([pixels, pixels[::-1]])))
    assert_same({key: value[:1] for key, value in two.items()}, found)


def by_hand(pixels, config):
    """uint8 [H, W, 3] -> [1, *image_size, 3], by TensorFlow's resize."""
    height, width = config.detector.image_size
    target = height, width
    if config.data.resize == "letterbox":
        scale = min(height / pixels.shape[0], width / pixels.shape[1])
        target = int(pixels.shape[0] * scale + 1e-9), int(pixels.shape[1] * scale + 1e-9)
    top, left = (height - target[0]) // 2, (width - target[1]) // 2
    image = np.full((height, width, 3), 128, np.uint8)
    resized = np.floor(tf.image.resize(pixels, target).numpy() + 0.5).astype(np.uint8)
    image[top : top + target[0], left : left + target[1]] = resized
    return image[None]


def test_png_is_taken_too(yolo, photos):
    module = export.serving_module(*yolo)
    with Image.open(photos[1]) as image:
        pixels, stream = np.asarray(image), io.BytesIO()
        image.save(stream, "PNG")
    assert_same(module.encoded(tf.constant([stream.getvalue()])), module.pixels(pixels[None]))


LOAD = """
import sys
sys.modules["tfdet"] = sys.modules["tf_keras"] = None  # importing them fails
import numpy as np, tensorflow as tf
detect = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
found = detect(images=tf.constant([open(name, "rb").read() for name in sys.argv[3:]]))
np.savez(sys.argv[2], **{key: value.numpy() for key, value in found.items()})
"""


def test_real_photos_in_a_process_without_tfdet(yolo, shared, tmp_path):
    folder = shared / "data" / "raccoon" / "JPEGImages"
    paths = sorted(folder.glob("*.jpg"))[:6] + sorted((shared / "data/bccd/JPEGImages").glob("*.jpg"))[:2]
    export.export(*yolo, tmp_path)
    command = [sys.executable, "-c", LOAD, tmp_path / "saved_model", tmp_path / "found.npz", *paths]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    with np.load(tmp_path / "found.npz") as found:
        assert_same(dict(found), in_process(yolo, paths))


# --- TFLite and ONNX ----------------------------------------------------------------------------


def expected_at_input(trained, images):
    config, detector, model = trained
    stretched = replace(config, data=replace(config.data, resize="stretch"))  # relative to the input
    found = postprocess.detect(detector, stretched, model(images), [images.shape[1:3]] * len(images))
    assert found["num_detections"].numpy().min() > 3
    return {key: value.numpy() for key, value in found.items()}


def at_input(config, shared):
    """Real photos, as the network sees them."""
    paths = sorted((shared / "data" / "raccoon" / "JPEGImages").glob("*.jpg"))[:3]
    for path in paths:
        with Image.open(path) as image:
            yield by_hand(np.asarray(image.convert("RGB")), config)


def test_tflite(yolo, shared, tmp_path):
    export.export(*yolo, tmp_path, ["tflite"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow announces that its interpreter moves to a package of its own
        interpreter = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
    run = interpreter.get_signature_runner()
    for images in at_input(yolo[0], shared):
        assert_same(run(images=images), expected_at_input(yolo, images))


def test_onnx(yolo, shared, tmp_path):
    pytest.importorskip("tf2onnx", reason="pip install tfdet[onnx]", exc_type=ImportError)
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install tfdet[onnx]")
    export.export(*yolo, tmp_path, ["onnx"])
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for images in at_input(yolo[0], shared):
        found = dict(zip(names, session.run(None, {"images": images})))
        assert_same(found, expected_at_input(yolo, images))


def test_onnx_says_what_is_missing(yolo, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ConfigError, match=r"tfdet\[onnx\]"):
        export.export(*yolo, tmp_path, ["onnx"])


def test_only_hard_suppression_leaves_tensorflow(yolo, tmp_path):
    config = replace(yolo[0], detector=replace(yolo[0].detector, nms=NmsConfig(method="soft")))
    with pytest.raises(ConfigError, match="hard suppression only, not soft"):
        export.export(config, *yolo[1:], tmp_path / "out", ["tflite"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("limits", [(100, 50), (3, 7), (100, 200)])
def test_plain_suppression_is_the_ordinary_one(rng, agnostic, limits):
    low, sides = rng.uniform(0, 0.8, (1, 120, 2)), rng.uniform(0.05, 0.4, (1, 120, 2))
    boxes = np.concatenate([low, low + sides], -1).astype(np.float32)
    scores = rng.uniform(0, 1, (1, 120, 3)).astype(np.float32)
    options = {"score_threshold": 0.3, "iou_threshold": 0.4, "max_per_class": limits[0], "max_detections": limits[1],
               "class_agnostic": agnostic, "max_candidates": 360}  # fmt: skip
    expected = nms.non_max_suppression(boxes, scores, **options)
    assert_same(plain_nms(tf.constant(boxes), tf.constant(scores), **options), expected)
    nothing = plain_nms(tf.constant(boxes), tf.zeros_like(scores), **options)
    assert int(nothing[schema.NUM_DETECTIONS][0]) == 0
    assert set(nothing[schema.LABELS].numpy().ravel()) == {-1}


# --- the tool -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("export_tool", ROOT / "tools" / "export.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(yolo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(to_json(yolo[0]))
    yolo[2].save_weights(folder / "weights.h5")
    return folder


def test_soft_suppression_goes_into_the_saved_model(tool, run, yolo, photos, tmp_path, capsys):
    """The module finds what `detect` finds with the kernel and sigma of the command, and another sigma finds else."""
    out = tmp_path / "out"
    soft = ["--nms", "soft", "--nms-kernel", "gaussian", "--nms-sigma", "0.2"]
    assert tool.main(["--run", str(run), "--out", str(out), *soft]) == 0
    about = json.loads((out / "export.json").read_text())
    assert (about["nms"], about["nms_kernel"], about["nms_sigma"]) == ("soft", "gaussian", 0.2)
    config, detector, model = yolo
    found = tf.saved_model.load(str(out / "saved_model")).signatures["serving_default"](images=encoded(photos[:1]))
    for sigma, same in ((0.2, True), (0.9, False)):
        limits = replace(config.detector.nms, method="soft", sigma=sigma)
        changed = replace(config, detector=replace(config.detector, nms=limits))
        scores = in_process((changed, detector, model), photos[:1])["scores"]
        assert np.allclose(found["scores"], scores, atol=1e-4) == same


def test_the_tool_writes_what_loads(tool, run, yolo, photos, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["--run", str(run), "--out", str(out), "--max-detections", "3", "--min-score"]
    assert tool.main([*command, str(yolo[0].detector.nms.score_threshold)]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["files"] == {"saved_model": str(out / "saved_model")}
    found = tf.saved_model.load(str(out / "saved_model")).signatures["serving_default"](images=encoded(photos[:1]))
    expected = in_process(yolo, photos[:1])
    assert_same(found, {key: value if value.ndim < 2 else value[:, :3] for key, value in expected.items()}
                | {"num_detections": [3]})  # fmt: skip
    assert tool.main([*command, "0.2"]) == 2
    assert "not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--nms-sigma", "0"], "must be positive"),
        (["--min-score", "2"], "lies in"),
        (["--max-detections", "0"], "positive"),
        (["--run", "nowhere"], "no such"),
    ],
)
def test_a_mistake_is_one_line(tool, run, tmp_path, capsys, arguments, says):
    assert tool.main(["--run", str(run), "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("export: ")
    assert says in error
    assert "\n" not in error
