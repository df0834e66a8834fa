"""How long evaluation takes beside the model, and how close prediction on files comes to the model alone."""

import argparse
import itertools
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from tfdet import quiet

quiet.import_tensorflow()

import numpy as np
import report
import tensorflow as tf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tfdet import configs, detectors, evaluate, metrics, predict, timing
from tfdet.config import ConfigError
from tfdet.data import synthetic
from tfdet.metrics.coco import faster_coco_eval

CASES = ("figures", "prediction")
BOXES = 7  # annotated in an image, as in COCO

EPILOG = """
figures: 5,000 images with 100 detections each, half of them near one of the 7 annotated boxes. `tfdet` is all of
tfdet.evaluate.summarise, with VOC and COCO figures; pycocotools and faster_coco_eval are COCO's figures alone, by
tfdet.metrics.coco_ap. CPU seconds are those of all threads. pycocotools takes about a minute (--skip-slow).

prediction: `files` is Predictor.stream on drawn photos (JPEG, 640 pixels), from the files to boxes in their pixels;
`model` is the same model, decoding and suppression on one batch that is in memory, with random weights.
"""


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=" or ".join(CASES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    group = parser.add_argument_group("figures")
    group.add_argument("--images", type=int, default=5000, metavar="N", help="(default: %(default)s)")
    group.add_argument("--detections", type=int, default=100, metavar="N", help="an image (default: %(default)s)")
    group.add_argument("--classes", type=int, default=20, metavar="N", help="(default: %(default)s)")
    group.add_argument("--skip-slow", action="store_true", help="without pycocotools")
    group = parser.add_argument_group("prediction")
    group.add_argument("--preset", default="ssd300_mobilenetv2", help="(default: %(default)s)")
    group.add_argument("--photos", type=int, default=128, metavar="N", help="a pass (default: %(default)s)")
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="(default: %(default)s)")
    group.add_argument("--passes", type=int, default=5, metavar="N", help="counted ones (default: %(default)s)")
    options = parser.parse_args(arguments)
    numbers = ("images", "detections", "classes", "photos", "batch_size", "passes")
    if min(getattr(options, name) for name in numbers) < 1:
        parser.error("all numbers must be positive")
    return options


# --- figures ------------------------------------------------------------------------------------


def random_images(options) -> list[dict]:
    """What `evaluate.collect` could have given."""
    rng = np.random.default_rng(0)
    return [random_image(rng, number, options) for number in range(options.images)]


def random_image(rng, number, options):
    truth, labels = random_boxes(rng, BOXES), rng.integers(0, options.classes, BOXES)
    source, near = rng.integers(0, BOXES, options.detections), rng.random(options.detections) < 0.5
    boxes = truth[source] + rng.normal(0, 10, (options.detections, 4))
    return {
        "image_id": f"{number:012d}.jpg",
        "size": (480, 640),
        "boxes": np.where(near[:, None], boxes, random_boxes(rng, options.detections)),
        "scores": rng.random(options.detections, np.float32),
        "labels": np.where(near, labels[source], rng.integers(0, options.classes, options.detections)),
        "true_boxes": truth,
        "true_labels": labels,
        "true_difficult": rng.random(BOXES) < 0.03,
    }


def random_boxes(rng, count):
    low = rng.random((count, 2)) * 400
    return np.concatenate([low, low + 5 + rng.random((count, 2)) * 200], 1)


def measure_figures(options) -> dict:
    images, names = random_images(options), [f"class {label}" for label in range(options.classes)]
    flat = evaluate.flat_arrays(images)
    work = {"tfdet": lambda: evaluate.summarise(images, names)["coco_ap"]}
    if faster_coco_eval:
        work["faster_coco_eval"] = lambda: metrics.coco_ap(*flat, options.classes, fast=True)["ap"]
    if not options.skip_slow:
        work["pycocotools"] = lambda: metrics.coco_ap(*flat, options.classes, fast=False)["ap"]
    seconds, found = {}, {}
    for name, call in work.items():
        wall, cpu = time.perf_counter(), time.process_time()
        found[name] = call()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        seconds[name] = {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}
    assert np.ptp(list(found.values())) < 1e-9, f"COCO AP differs: {found}"
    return seconds


def show_figures(result, options):
    title = f"{options.images:,} images x {options.detections} detections, {options.classes} classes"
    table = Table(title=title)
    for heading in ("", "seconds", "CPU seconds"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in result.items():
        table.add_row(name, f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}")
    Console(file=sys.stderr, width=100).print(table)


# --- prediction ---------------------------------------------------------------------------------


class Again:
    """Iterates over what a function gives, as often as asked."""

    def __init__(self, function):
        self._function = function

    def __iter__(self):
        return iter(self._function())


def measure_prediction(options) -> dict:
    config = configs.load(options.preset)
    config = replace(config, class_names=tuple(f"class {label}" for label in range(20)))
    config = replace(config, train=replace(config.train, batch_size=options.batch_size))
    detector = detectors.build(config.detector, config.num_classes)
    predictor = predict.Predictor(config, detector, detector.build_model())
    steps = max(1, options.photos // options.batch_size)
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as bar:
        synthetic.make_photos(Path(folder) / "drawn", min(options.photos, 256))
        photos = predict.find_images([Path(folder) / "drawn" / synthetic.IMAGES])
        # one batch before the clock starts, and what may be read ahead at its end
        enough = list(itertools.islice(itertools.cycle(photos), (steps + 8) * options.batch_size))
        images = tf.zeros([options.batch_size, *config.detector.image_size, 3], tf.uint8)
        size = tf.fill([options.batch_size, 2], 640)
        work = {
            "model": (Again(lambda: (predictor.detect(images, size) for _ in itertools.count())), options.batch_size),
            "files": (Again(lambda: predictor.stream(enough)), 1),
        }
        task = bar.add_task("measuring", total=2 * (options.passes + 1))
        work = {name: (source, steps * options.batch_size, count) for name, (source, count) in work.items()}
        rates = timing.compare(work, options.passes, progress=lambda: bar.advance(task))
    share = rates["files"].median / rates["model"].median
    return {name: rate.to_dict() for name, rate in rates.items()} | {"share_of_model": round(share, 4)}


def show_prediction(result, options):
    table = Table(title=f"{options.preset}, batches of {options.batch_size}, 640-pixel photos")
    for heading in ("", "images/s", "min", "max", "core-ms an image"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in ("model", "files"):
        rate = [result[name][f"images_per_second{end}"] for end in ("", "_min", "_max")]
        table.add_row(name, *(f"{value:,.1f}" for value in rate), f"{result[name]['core_ms']:.2f}")
    table.caption = f"prediction on files reaches {result['share_of_model']:.2f} of the model alone"
    Console(file=sys.stderr, width=100).print(table)


@quiet.program(ConfigError, OSError)
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    results = {}
    if "figures" in options.only:
        results["figures"] = measure_figures(options)
        show_figures(results["figures"], options)
    if "prediction" in options.only:
        results["prediction"] = measure_prediction(options)
        show_prediction(results["prediction"], options)
    names = ("images", "detections", "classes", "preset", "photos", "batch_size", "passes")
    results["config"] = {name: getattr(options, name) for name in names}
    report.publish(results, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
