"""Writes a trained detector for other programs: SavedModel, TFLite, ONNX, with decoding and suppression inside."""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from tfdet import quiet

quiet.import_tensorflow()

from tfdet.config import ConfigError
from tfdet.data.errors import DataError
from tfdet.detectors import runs
from tfdet.export import KINDS, export
from tfdet.models.weights import WeightsError
from tools import nms_options

EPILOG = """
examples:
  python tools/export.py --run runs/mine --out exported
  python tools/export.py --run runs/mine --out exported --format saved_model tflite onnx --min-score 0.3

saved_model  OUT/saved_model, for TensorFlow and TensorFlow Serving; loads without tfdet and without Keras:
               detect = tf.saved_model.load("exported/saved_model").signatures["serving_default"]
               detect(images=tf.constant([open("a.jpg", "rb").read()]))
             takes encoded JPEG, PNG, GIF or BMP; the signature "pixels" takes uint8 [N, H, W, 3] of any size. Boxes are
             relative to the photo as it is stored; EXIF orientation is not applied.
tflite       OUT/model.tflite, float32, builtin operations only
onnx         OUT/model.onnx, through tf2onnx: pip install "tfdet[onnx]"
             The last two take one uint8 RGB image [1, H, W, 3] of the network's size, which the caller resizes
             (bilinear; stretched or letterboxed on gray 128, as export.json says), boxes are relative to it; they look
             at the 1,000 best candidates of an image, and know hard suppression only.
All give boxes (x_min, y_min, x_max, y_max in [0, 1]), scores, labels (-1: nothing there) and num_detections. OUT gets
classes.txt and export.json, too. The last line on standard output is one JSON object.
"""


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="what tools/train.py wrote")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="default: best.h5 of the run, else weights.h5")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; new or empty")
    parser.add_argument(
        "--format", nargs="+", choices=KINDS, default=["saved_model"], help="see below (default: saved_model)"
    )
    parser.add_argument(
        "--min-score", type=float, metavar="S", help="give what scores higher (default: as in training)"
    )
    nms_options.add_options(parser)
    parser.add_argument("--max-detections", type=int, metavar="N", help="in an image (default: as in training)")
    return parser.parse_args(arguments)


def check(options):
    if options.min_score is not None and not 0 <= options.min_score < 1:
        raise ConfigError(f"--min-score is {options.min_score}; it lies in [0, 1)")
    if options.max_detections is not None and options.max_detections < 1:
        raise ConfigError(f"--max-detections is {options.max_detections}; it must be positive")
    if options.out.exists() and not (options.out.is_dir() and not any(options.out.iterdir())):
        raise ConfigError(f"--out {options.out} is there already, and not an empty folder; choose another")


def adapt(config, options):
    """The run's config with what the options change."""
    limits = replace(config.detector.nms, **nms_options.chosen(options))
    nms_options.require_use(limits, options)
    if options.max_detections:
        most = options.max_detections
        limits = replace(limits, max_detections=most, max_per_class=max(most, limits.max_per_class))
    return replace(config, detector=replace(config.detector, nms=limits))


@quiet.program(ConfigError, DataError, WeightsError, OSError)
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    start = time.perf_counter()
    check(options)
    config, detector, model = runs.load(options.run, options.weights)
    written = export(adapt(config, options), detector, model, options.out, options.format, options.min_score)
    for kind, path in written.items():
        print(f"{kind}: {path}")
    files = {kind: str(path) for kind, path in written.items()}
    print(json.dumps({"out": str(options.out), "files": files, "seconds": round(time.perf_counter() - start, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(quiet.until_unread(main))
