"""Finds objects in images: pictures with the boxes drawn, and the detections as JSON or as annotations."""

import argparse
import collections
import json
import os
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from tfdet import quiet

quiet.import_tensorflow()

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tfdet import predict
from tfdet.config import ConfigError
from tfdet.data import embedded, files, formats
from tfdet.data.address import as_path
from tfdet.data.errors import DataError
from tfdet.data.formats.results import coco_image_ids, coco_results
from tfdet.models.weights import WeightsError
from tools import nms_options

OUTPUTS = {"json": "detections.json", "coco": "coco_results.json", "voc": "annotations", "lines": "annotations.txt"}
CLASSES, IMAGES = "classes.txt", "images"
WRITERS = os.cpu_count() or 1  # threads that draw and write pictures

EPILOG = """
examples:
  python tools/predict.py photos/ --run runs/mine --out predictions
  python tools/predict.py a.jpg b.png "holiday/*.jpg" --run runs/mine --out predictions --min-score 0.4
  python tools/predict.py tfrecords/other --run runs/mine --out predictions --no-pictures --format coco
  # predictions as annotations, to correct them or to train on them
  python tools/predict.py photos/ --run runs/mine --out labelled --format voc

An input is an image file, a folder (all images below it, numbered frames in their order), a pattern in quotes, a
TFRecord file, or a folder of them. The output folder gets one JPEG for each image and, by --format:
  json   detections.json: for every image its file, height and width, and for every detection class, score and box
         (x_min, y_min, x_max, y_max) in pixels of the image as it is displayed
  coco   coco_results.json: a list of image_id, category_id (from 1), bbox (x, y, width, height) and score
  voc    annotations/: an XML file an image, and classes.txt
  lines  annotations.txt: `path xmin,ymin,xmax,ymax,class ...` an image, and classes.txt
tools/make_tfrecords.py reads the last two, of images on this machine or in records; the command is printed. An image
that cannot be read is reported and left out. The last line on standard output is one JSON object.
"""


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="images, folders, patterns in quotes, TFRecords")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="what tools/train.py wrote")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="default: best.h5 of the run, else weights.h5")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images at a time (default: as in training)")

    group = parser.add_argument_group("what is found")
    group.add_argument(
        "--min-score", type=float, default=0.6, metavar="S", help="show what scores higher (default: %(default)s)"
    )
    nms_options.add_options(group)
    group.add_argument("--max-detections", type=int, metavar="N", help="in an image (default: as in training)")
    group.add_argument("--classes", nargs="+", metavar="NAME", help="look for these only (default: all)")

    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for pictures and files")
    group.add_argument("--format", nargs="+", choices=OUTPUTS, default=["json"], help="see below (default: json)")
    group.add_argument("--no-pictures", action="store_true", help="write no pictures")
    return parser.parse_args(arguments)


# --- before anything takes time -----------------------------------------------------------------


def check(options):
    """Raises ConfigError for numbers that cannot be, and where annotations would replace others."""
    if not 0 <= options.min_score < 1:
        raise ConfigError(f"--min-score is {options.min_score}; it lies in [0, 1)")
    for name in ("batch_size", "max_detections"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be positive")
    for kind in {"voc", "lines"} & set(options.format):
        if os.path.lexists(options.out / OUTPUTS[kind]):
            raise ConfigError(f"{options.out / OUTPUTS[kind]} is there already; choose another --out")


def keep_originals(photos, out):
    """Raises ConfigError where a picture could take the place of an input."""
    inside = [photo.path for photo in photos if as_path(photo.path).resolve().parent == out.resolve()]
    if inside:
        raise ConfigError(f"--out {out} holds {inside[0]}, which is an input; choose another folder for the pictures")


def check_reachable(photos):
    """Raises ConfigError for an image at an address, which annotations on this machine could not name."""
    remote = [photo.path for photo in photos if files.is_remote(photo.path) and not embedded.is_embedded(photo.path)]
    if remote:
        raise ConfigError(f"{remote[0]} is not on this machine; --format voc and lines need a copy of it here")


# --- the work -----------------------------------------------------------------------------------


def predict_all(options) -> dict:
    """The whole job; returns what the last line of output says."""
    check(options)
    skipped = []
    photos = predict.find_images(options.inputs, skipped.append)
    if not options.no_pictures:
        keep_originals(photos, options.out)
    if {"voc", "lines"} & set(options.format):
        check_reachable(photos)
    predictor = predict.load(
        options.run, options.weights, nms=nms_options.chosen(options), max_detections=options.max_detections,
        batch_size=options.batch_size,
    )  # fmt: skip
    nms_options.require_use(predictor.config.detector.nms, options)
    options.out.mkdir(parents=True, exist_ok=True)
    found, pictures, rate = stream(predictor, photos, options, skipped)
    for error in skipped:
        quiet.tell(f"skipped {error}")
    write(found, pictures, predictor, skipped, options)
    return {
        "images": len(found),
        "detections": sum(len(prediction.scores) for prediction in found),
        "skipped": len(skipped),
        "images_per_second": rate,
        "out": str(options.out),
        "files": [str(options.out / OUTPUTS[kind]) for kind in options.format],
    }


def stream(predictor, photos, options, skipped):
    """All predictions without their JPEGs, the names of their pictures, and images a second behind the first batch."""
    copies = bool({"voc", "lines"} & set(options.format))  # of images in records, which have no files to annotate
    found, pictures, names = [], [], set()
    batch, start = min(predictor.config.train.batch_size, max(len(photos), 1)), None
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar, Writer(predictor, options.out) as writer:
        task = bar.add_task("", total=len(photos))

        def skip(error):
            skipped.append(error)
            bar.advance(task)

        for prediction in predictor.stream(
            photos, options.min_score, skip, options.classes, keep_images=copies or not options.no_pictures
        ):
            pictures.append(picture_name(prediction.name, names))
            if not options.no_pictures:
                writer.draw(prediction, pictures[-1])
            if copies and embedded.is_embedded(prediction.path):
                writer.copy(prediction, pictures[-1])
            found.append(replace(prediction, encoded=None))
            bar.advance(task)
            if len(found) == batch:
                start = time.perf_counter()
    seconds = time.perf_counter() - start if start else 0.0
    rate = round((len(found) - batch) / seconds, 1) if len(found) > batch else None
    return found, pictures, rate


class Writer:
    """Draws and writes pictures in threads, while the model works; at most a few wait in memory."""

    def __init__(self, predictor, out):
        self._predictor, self._out = predictor, out
        self._pool, self._waiting = ThreadPoolExecutor(WRITERS), collections.deque()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self._wait(0)
        self._pool.shutdown(cancel_futures=True)

    def draw(self, prediction, name):
        self._submit(lambda: self._predictor.draw(prediction).save(self._out / name, quality=92))

    def copy(self, prediction, name):
        (self._out / IMAGES).mkdir(exist_ok=True)
        self._submit((self._out / IMAGES / name).write_bytes, prediction.encoded)

    def _submit(self, function, *arguments):
        self._waiting.append(self._pool.submit(function, *arguments))
        self._wait(8 * WRITERS)

    def _wait(self, most):
        while len(self._waiting) > most:
            self._waiting.popleft().result()


def picture_name(path, taken) -> str:
    """The file's own name as a JPEG; a second file of that name gets a number."""
    stem, number = "".join(sign if sign.isprintable() else "_" for sign in Path(path).stem), 1
    name = f"{stem}.jpg"
    while name in taken:
        number += 1
        name = f"{stem}-{number}.jpg"
    taken.add(name)
    return name


# --- the files ----------------------------------------------------------------------------------


def write(found, pictures, predictor, skipped, options):
    """What --format asks for."""
    out = options.out
    if "json" in options.format:
        content = {"classes": list(predictor.class_names), "min_score": options.min_score, "images": []}
        for prediction, picture in zip(found, pictures):
            content["images"].append(prediction.to_dict() | ({} if options.no_pictures else {"picture": picture}))
        content["skipped"] = [{"file": error.where, "reason": error.reason} for error in skipped]
        (out / OUTPUTS["json"]).write_text(json.dumps(content, indent=1), encoding="utf-8")
    if "coco" in options.format:
        ids = coco_image_ids([prediction.name for prediction in found])
        rows = [coco_results(number, p.boxes, p.labels, p.scores) for number, p in zip(ids, found)]
        (out / OUTPUTS["coco"]).write_text(json.dumps([row for image in rows for row in image]), encoding="utf-8")
    if {"voc", "lines"} & set(options.format):
        write_annotations(found, pictures, predictor.class_names, options)


def write_annotations(found, pictures, class_names, options):
    """Predictions as annotations; says how to convert them."""
    out = options.out
    paths = [
        (out / IMAGES / picture if embedded.is_embedded(prediction.path) else Path(prediction.path)).resolve()
        for prediction, picture in zip(found, pictures)
    ]
    root = Path(os.path.commonpath([path.parent for path in paths])) if paths else out
    (out / CLASSES).write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
    for kind in [kind for kind in ("voc", "lines") if kind in options.format]:
        names = paths if kind == "lines" else [path.relative_to(root).as_posix() for path in paths]
        entries = [(p.to_annotation(path, name), p.size) for p, path, name in zip(found, paths, names)]
        formats.save(out / OUTPUTS[kind], kind, class_names, entries)
        command = ["tfdet", "convert", out / OUTPUTS[kind], "--images", root, "--classes", out / CLASSES]
        print(f"to make records of them: {shlex.join(map(str, command))} --out tfrecords/NAME")


@quiet.program(ConfigError, DataError, WeightsError, OSError)
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be printable
    summary = predict_all(options)
    over = f"with scores over {options.min_score:g} (--min-score)"
    print(f"{summary['detections']} detections {over} in {summary['images']} images: {summary['out']}")
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(quiet.until_unread(main))
