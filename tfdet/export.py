"""A trained detector for other programs: as SavedModel, TFLite and ONNX, decoding and suppression inside.

SavedModel: "serving_default" takes encoded images, "pixels" takes uint8 images of any size; both prepare images with
the pipeline's own functions and give boxes relative to the photo. TFLite and ONNX take uint8 images of the network's
size, and give boxes relative to those: whoever prepares the images knows where they were put. Nothing exported needs
tfdet, Keras or XLA.
"""

import importlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfdet import boxes as boxlib
from tfdet import schema
from tfdet.config import NO_AUGMENT, Config, ConfigError
from tfdet.data import image_ops
from tfdet.data.stages import Stages, without_boxes
from tfdet.detectors import postprocess
from tfdet.nms.plain import plain_nms

__all__ = ["KINDS", "export", "fixed_size_module", "serving_module"]

KINDS = {"saved_model": "saved_model", "tflite": "model.tflite", "onnx": "model.onnx"}  # -> file name
CANDIDATES = 1000  # (box, class) pairs of an image that TFLite and ONNX look at, the best
OPSET = 17  # of ONNX
CLASSES, ABOUT = "classes.txt", "export.json"


def export(config: Config, detector, model, directory, kinds=("saved_model",), min_score=None) -> dict:
    """Writes a detector in some forms, and beside them classes.txt and export.json, which says what goes in and out.

    Args:
        config: with class_names. detector: see detectors/base.py. model: uint8 [B, H, W, 3] -> predictions.
        kinds: keys of KINDS.
        min_score: lowest score of a detection; None: that of `config.detector.nms`.
    Returns:
        kind -> path.
    Raises:
        ConfigError: a form that this detector, or what is installed, does not allow.
    """
    _require_possible(config, kinds)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if min_score is not None:
        limits = replace(config.detector.nms, score_threshold=min_score)
        config = replace(config, detector=replace(config.detector, nms=limits))
    (directory / CLASSES).write_text("".join(f"{name}\n" for name in config.class_names), encoding="utf-8")
    writers = {"saved_model": _write_saved_model, "tflite": _write_tflite, "onnx": _write_onnx}
    written = {}
    for kind in kinds:
        path = directory / KINDS[kind]
        writers[kind](config, detector, model, path)
        written[kind] = path
    about = _describe(config, {kind: path.name for kind, path in written.items()})
    (directory / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return written


def _require_possible(config, kinds):
    """Raises ConfigError before anything is written."""
    method = config.detector.nms.method
    if {"tflite", "onnx"} & set(kinds) and method != "hard":
        raise ConfigError(f"TFLite and ONNX know hard suppression only, not {method}; choose --nms hard")
    if "onnx" in kinds:
        try:
            importlib.import_module("tf2onnx")
        except (ImportError, AttributeError) as error:  # AttributeError: its parts do not go together
            reason = f"tf2onnx cannot be imported ({error})"
            raise ConfigError(f'{reason}; for ONNX install it: pip install "tfdet[onnx]"') from error


def _describe(config, files):
    limits, (height, width) = config.detector.nms, config.detector.image_size
    return {
        "files": files,
        "class_names": list(config.class_names),
        "image_size": [height, width],
        "resize": config.data.resize,
        "score_threshold": limits.score_threshold,
        "iou_threshold": limits.iou_threshold,
        "max_detections": limits.max_detections,
        "nms": limits.method,
        **({} if limits.method == "hard" else {"nms_kernel": limits.kernel, "nms_sigma": limits.sigma}),
        "inputs": {
            "saved_model": "serving_default: images string [N], encoded; pixels: images uint8 [N, H, W, 3] RGB, any "
            "size. EXIF orientation is not applied.",
            "tflite": f"images uint8 [1, {height}, {width}, 3] RGB, already of this size",
            "onnx": f"images uint8 [1, {height}, {width}, 3] RGB, already of this size",
        },
        "outputs": "boxes float32 [N, K, 4] x_min, y_min, x_max, y_max, relative to the photo (TFLite, ONNX: to the "
        "input), in [0, 1]; scores float32 [N, K], falling; labels int32 [N, K] from 0, -1 where there is "
        "nothing; num_detections int32 [N]",
    }


# --- SavedModel ---------------------------------------------------------------------------------


def serving_module(config: Config, detector, model) -> tf.Module:
    """A module with the functions `encoded` (string [N]) and `pixels` (uint8 [N, H, W, 3]), each -> detections as
    `postprocess.detect` gives them."""
    stages = Stages("jpeg", 0, config, NO_AUGMENT, None, 1)

    def detect(images, sizes):
        predictions = model(images, training=False)
        return postprocess.detect(detector, config, predictions, sizes, compiled=False)

    def prepare(encoded):
        return tf.cond(
            tf.io.is_jpeg(encoded), lambda: _prepare_jpeg(encoded, stages), lambda: _prepare_other(encoded, stages)
        )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "images")], autograph=False)
    def encoded(images):
        kinds = tf.TensorSpec([*config.detector.image_size, 3], tf.uint8), tf.TensorSpec([2], tf.int32)
        return detect(*tf.map_fn(prepare, images, fn_output_signature=kinds))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")], autograph=False)
    def pixels(images):
        kind = tf.TensorSpec([*config.detector.image_size, 3], tf.uint8)
        resized = tf.map_fn(lambda image: _resize(image, stages)[0], images, fn_output_signature=kind)
        return detect(resized, tf.tile(tf.shape(images)[None, 1:3], [tf.shape(images)[0], 1]))

    return _module(model, encoded=encoded, pixels=pixels)


def _module(model, **functions) -> tf.Module:
    """A module that owns the variables of a model, but nothing of Keras: so loading it needs no Keras."""
    module = tf.Module()
    module.variables_of_model = list(model.weights)
    for name, function in functions.items():
        setattr(module, name, function)
    return module


def _prepare_jpeg(encoded, stages):
    """As the pipeline: string [] -> uint8 [H, W, 3] of the network's size, int32 [2] size of the photo."""
    row = without_boxes(tf.constant(""), encoded, tf.constant(True))
    planned = stages.plan({key: value[None] for key, value in row.items()})
    image = stages.decode({key: value[0] for key, value in planned.items()})[schema.IMAGE]
    return image, row[schema.IMAGE_SIZE]


def _prepare_other(encoded, stages):
    """PNG, GIF, BMP: decoded whole."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return _resize(tf.ensure_shape(image, [None, None, 3]), stages)


def _resize(image, stages):
    """uint8 [H, W, 3] -> the same of the network's size, stretched or letterboxed, and int32 [2] what it was."""
    output, size = stages.config.detector.image_size, tf.shape(image)[:2]
    window = tf.constant([[0.0, 0.0, 1.0, 1.0]])
    if stages.config.data.resize == "letterbox":
        window = boxlib.letterbox_window(size[None], output)
    _, target, _, _ = image_ops.place(window, size[None], output, allow_ratio=False)
    return image_ops.resize_into(image, target[0], output, stages.fill), size


def _write_saved_model(config, detector, model, path):
    module = serving_module(config, detector, model)
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder) / CLASSES
        names.write_text("".join(f"{name}\n" for name in config.class_names), encoding="utf-8")
        module.class_names = tf.saved_model.Asset(str(names))
        signatures = {"serving_default": module.encoded, "pixels": module.pixels}
        tf.saved_model.save(module, str(path), signatures=signatures)


# --- images of the network's size ---------------------------------------------------------------


def fixed_size_module(config: Config, detector, model) -> tf.Module:
    """A module whose `detect` takes one uint8 image [1, H, W, 3] of the network's size; all its shapes are static.

    Suppression is hard, whatever the config says: TFLite and ONNX have an operation for that alone.
    """
    limits = config.detector.nms

    @tf.function(
        input_signature=[tf.TensorSpec([1, *config.detector.image_size, 3], tf.uint8, "images")], autograph=False
    )
    def detect(images):
        boxes, scores = detector.decode(model(images, training=False))
        found = plain_nms(
            boxes,
            scores,
            score_threshold=limits.score_threshold,
            iou_threshold=limits.iou_threshold,
            max_per_class=limits.max_per_class,
            max_detections=limits.max_detections,
            class_agnostic=limits.class_agnostic,
            max_candidates=CANDIDATES,
        )
        return {**found, schema.BOXES: boxlib.clip(found[schema.BOXES])}

    return _module(model, detect=detect)


def _write_tflite(config, detector, model, path):
    module = fixed_size_module(config, detector, model)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": module.detect})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
        path.write_bytes(converter.convert())


def _write_onnx(config, detector, model, path):
    import tf2onnx  # optional

    function = fixed_size_module(config, detector, model).detect.get_concrete_function()
    graph, outputs = _frozen(function)
    tf2onnx.convert.from_graph_def(
        graph,
        name="tfdet",
        input_names=["images:0"],
        output_names=list(outputs),
        tensors_to_rename={"images:0": "images", **outputs},
        opset=OPSET,
        output_path=str(path),
    )


def _frozen(function):
    """A GraphDef without variables or captured tensors, and {tensor in it: name of an output}."""
    frozen = convert_variables_to_constants_v2(function)
    captured = {inner.op.name: outer for outer, inner in frozen.graph.captures}
    graph = frozen.graph.as_graph_def()
    for node in graph.node:
        if node.name in captured:
            value = tf.make_tensor_proto(captured[node.name].numpy())
            node.op = "Const"
            node.attr.clear()
            node.attr["dtype"].type = value.dtype
            node.attr["value"].tensor.CopyFrom(value)
    names = sorted(function.structured_outputs)  # the order of flat outputs
    return graph, dict(zip([tensor.name for tensor in frozen.outputs], names))
