"""Measures a trained detector on a split of a data set: VOC and COCO average precision, per class and overall."""

import argparse
import json
import math
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from tfdet import quiet

quiet.import_tensorflow()

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tfdet.config import ConfigError
from tfdet.data import faults, pipeline
from tfdet.data.errors import DataError
from tfdet.data.records import open_split
from tfdet.detectors import runs
from tfdet.evaluate import coco_results, coco_truth, collect, read_photo, save_plots, summarise
from tfdet.models.weights import WeightsError
from tools import bad_records, nms_options, places

EPILOG = """
examples:
  python tools/evaluate.py --run runs/mine --data tfrecords/mine
  python tools/evaluate.py --run runs/mine --data tfrecords/mine --split test --plots plots
  python tools/evaluate.py --run runs/mine --data tfrecords/mine --coco-results found.json --coco-truth truth.json

map50 is the mean over the classes of VOC's average precision at IoU 0.5, the area under the curve; voc07 its
11-point form; coco_ap is COCO's mean over the IoUs 0.5, 0.55, ... 0.95. Boxes marked difficult count neither
for nor against. A class without boxes in the split has no figure and is left out of the means.
--plots writes precision_recall.png, confusion.png (which class is taken for which), and mistakes.png: the wrong
detections with the best scores, and the boxes that were missed.
The last line on standard output is one JSON object.
"""


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="what tools/train.py wrote")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="what tools/make_tfrecords.py wrote")
    parser.add_argument("--split", default="val", help="split to measure on (default: %(default)s)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="default: best.h5 of the run, else weights.h5")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images at a time (default: as in training)")
    nms_options.add_options(parser)
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write charts and a contact sheet of mistakes there")
    parser.add_argument(
        "--min-score", type=float, default=0.6, metavar="S",
        help="what counts as found in the plots, not in the figures (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--coco-results", type=Path, metavar="FILE", help="write the detections as COCO results")
    parser.add_argument("--coco-truth", type=Path, metavar="FILE", help="write the annotations to score them with")
    return parser.parse_args(arguments)


def measure(options) -> dict:
    """All figures; writes what else was asked for."""
    if options.batch_size is not None and options.batch_size < 1:
        raise ConfigError(f"--batch-size is {options.batch_size}; it must be positive")
    if not 0 <= options.min_score < 1:
        raise ConfigError(f"--min-score is {options.min_score}; it lies in [0, 1)")
    places.require_parents(options.json, options.coco_results, options.coco_truth)
    places.require_folder(options.plots)
    records = open_split(options.data, options.split)
    config, detector, model = runs.load(options.run, options.weights)
    config = adapt(config, records, options)
    records = bad_records.without_bad(records, config)
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with faults.named(records), Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=records.num_images)
        dataset = pipeline.eval_dataset(records, config)
        images = collect(model, detector, dataset, config, lambda rows: bar.advance(task, rows))
    figures = summarise(images, config.class_names) | {"split": options.split}
    if options.coco_results:
        options.coco_results.write_text(json.dumps(coco_results(images)), encoding="utf-8")
    if options.coco_truth:
        options.coco_truth.write_text(json.dumps(coco_truth(images, config.class_names)), encoding="utf-8")
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
        photo = partial(read_photo, records)
        figures["plots"] = save_plots(images, config.class_names, options.plots, photo, options.min_score)
    return figures


def adapt(config, records, options):
    """The run's config with what the options change, for images in the order of the records.

    Raises:
        ConfigError: the run was trained for other classes.
    """
    if records.class_names != config.class_names:
        was, now = ", ".join(config.class_names), ", ".join(records.class_names)
        raise ConfigError(f"{options.run} was trained for the classes {was}; {options.data} has {now}")
    batch_size = min(options.batch_size or config.train.batch_size, max(records.num_images, 1))
    config = replace(config, train=replace(config.train, batch_size=batch_size))
    config = replace(config, data=replace(config.data, deterministic=True))
    limits = replace(config.detector.nms, **nms_options.chosen(options))
    nms_options.require_use(limits, options)
    return replace(config, detector=replace(config.detector, nms=limits))


def show(figures):
    """One row a class, one for the mean."""
    table = Table(title=f"{figures['num_images']} images of the split {figures['split']}")
    for name in ("class", "boxes", "AP@0.5", "VOC07 AP@0.5", "COCO AP"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name, row in figures["per_class"].items():
        table.add_row(name, str(row["boxes"]), *(percent(row[key]) for key in ("ap50", "ap50_voc07", "coco_ap")))
    boxes = sum(row["boxes"] for row in figures["per_class"].values())
    table.add_section()
    table.add_row("mean", str(boxes), *(percent(figures[key]) for key in ("map50", "map50_voc07", "coco_ap")))
    Console().print(table)


def percent(value) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def strict(value):
    """As JSON allows it: NaN becomes null."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@quiet.program(ConfigError, DataError, WeightsError, OSError)
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    figures = measure(options)
    if options.json:
        options.json.write_text(json.dumps(strict(figures), indent=2), encoding="utf-8")
    show(figures)
    for path in figures.get("plots", {}).values():
        print(path)
    print(json.dumps(strict(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(quiet.until_unread(main))
