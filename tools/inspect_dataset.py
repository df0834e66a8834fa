"""Looks for what is wrong with a data set, and describes it: nothing is written but what is asked for."""

import argparse
import json
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Nothing here imports TensorFlow, except for --augment: neither this process nor its workers need it.
from rich.console import Console
from rich.table import Table

from tfdet import quiet
from tfdet.data import doctor, files, statistics
from tfdet.data.annotations import NOTES
from tfdet.data.checks import FAULTS, count_cut, count_dropped, count_kinds
from tfdet.data.errors import DataError
from tfdet.data.images import ImageOptions
from tfdet.data.manifest import MANIFEST
from tools import places
from tools.check_options import HELP, add_check_options, make_checks
from tools.input_options import add_input_options, check_input_options, read_all
from tools.progress import make_progress

PRESET = "ssd300_vgg16"  # of --augment

EPILOG = """
examples:
  python tools/inspect_dataset.py train.txt val.txt --classes classes.txt
  python tools/inspect_dataset.py gt.pkl --images photos/ --preset ssd300_vgg16 --html inspection.html
  python tools/inspect_dataset.py tfrecords/mine --json inspection.json
  python tools/inspect_dataset.py tfrecords/mine --preset yolov3_416 --augment augmented.png
  # the batch of a training whose loss was not finite: what of it is not
  python tools/inspect_dataset.py runs/mine/nan/step_000042.npz

Several annotation files are the splits of one data set: an image that two of them share is reported.
The exit code is 0 if there is no fault whose policy is error, 1 if there is one, 2 if an annotation file cannot be
read as a whole. The last line on standard output is one JSON object; --json FILE holds every problem, too.
""" + HELP  # fmt: skip


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "annotations",
        nargs="+",
        help="whatever make_tfrecords takes, a folder of records that it wrote, or a batch that training wrote to nan/",
    )

    add_input_options(parser)

    group = add_check_options(parser)
    group.add_argument("--decode-check", action=argparse.BooleanOptionalAction, default=True,
                       help="read every image to its end to find damage (default: on)")  # fmt: skip

    group = parser.add_argument_group("output")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the statistics and every problem there")
    group.add_argument("--html", type=Path, metavar="FILE", help="write one page with plots, problems and pictures")
    group.add_argument("--augment", type=Path, metavar="FILE",
                       help=f"of records: draw what training sees, boxes and anchors (--preset; {PRESET})")  # fmt: skip
    group.add_argument("--samples", type=int, default=24, metavar="N",
                       help="images on the contact sheet of --html (default: %(default)s)")  # fmt: skip

    options = parser.parse_args(arguments)
    check_input_options(parser, options)
    if options.samples < 0:
        parser.error("--samples is not negative")
    return options


def spread_out(listings, number):
    """At most so many listings, evenly over all."""
    step = max(1, -(-len(listings) // max(number, 1)))
    return listings[::step] if number else []


# --- output -------------------------------------------------------------------------------------


def show(summary):
    console = Console()
    table = Table(title="classes")
    for heading in ("id", "class", "boxes", "images"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for entry in summary["classes"]:
        table.add_row(str(entry["id"]), entry["name"], f"{entry['boxes']:,}", f"{entry['images']:,}")
    console.print(table)
    table = Table(title=f"{summary['images']:,} images, {summary['boxes']:,} boxes; of these")
    for heading in ("", "min", "median", "mean", "95 %", "max"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, value in summary.items():
        if isinstance(value, dict) and "median" in value:
            table.add_row(name.replace("_", " "), *(f"{number:.4g}" for number in value.values()))
    console.print(table)
    sizes = ", ".join(f"{s['width']} x {s['height']} ({s['images']:,})" for s in summary["image_sizes"][:5])
    counts = {"without boxes": summary["empty_images"], "difficult boxes": summary["difficult"]} | {
        f"{name} boxes (COCO)": number for name, number in summary["coco_sizes"].items()
    }
    print(", ".join(f"{number:,} {name}" for name, number in counts.items()))
    print(f"image sizes: {sizes or 'none'}")
    print("formats:", ", ".join(f"{number:,} {name}" for name, number in summary["formats"].items()) or "none")
    for change, number in summary["changes"].items():
        print(f"a conversion would encode {number:,} images anew: {change}")


def check_augment(options):
    """Raises DataError where --augment has no records to draw, or no picture to draw them in."""
    if options.augment.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise DataError(options.augment, "this is no name of a picture", "let it end with .png")
    if not files.exists(files.join(options.annotations[0], MANIFEST)):
        raise DataError(
            options.annotations[0],
            "--augment draws records, and here are none",
            "convert this first, or leave --augment out",
        )


def write_augmented(options) -> dict:
    """The contact sheet of training images; returns how many boxes the detector of the preset cannot learn from.

    Raises:
        DataError: records that cannot be read.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    quiet.import_tensorflow()
    from dataclasses import replace

    from tfdet import configs, detectors, unmatched
    from tfdet.contact_sheet import augmented_sheet
    from tfdet.data.records import open_split

    records = open_split(options.annotations[0], "train")
    config = replace(configs.load(options.preset or PRESET), class_names=records.class_names)
    augmented_sheet(records, config).save(options.augment)
    detector = detectors.build(config.detector, config.num_classes)
    counts = unmatched.count(records, config, detector, most=unmatched.SAMPLE)
    print(f"{options.preset or PRESET}, not augmented: {unmatched.describe(counts, config)}")
    return asdict(counts)


def write_page(options, diagnosis, summary, checks, listings):
    from tfdet import report  # matplotlib takes a second to load

    title = ", ".join(options.annotations)
    report.write_page(options.html, title, diagnosis, summary, checks.policies, spread_out(listings, options.samples))


def inspect(options):
    checks = make_checks(options)
    places.require_parents(options.json, options.html, options.augment)
    if options.augment:
        check_augment(options)
    never_matched = write_augmented(options) if options.augment else None
    image_options = ImageOptions(decode_check=options.decode_check, max_pixels=options.max_pixels)
    splits, problems, names = read_all(options)
    bar, progress = make_progress()
    with bar:
        diagnosis = doctor.diagnose(
            splits, names, options=image_options, checks=checks, problems=problems, workers=options.workers,
            progress=progress,
        )  # fmt: skip
    summary = statistics.summarise(diagnosis.facts, names, checks.input_size) | {"never_matched": never_matched}
    for problem in diagnosis.problems:
        print(problem)
    show(summary)
    if options.html:
        listings = [listing for part in splits.values() for listing in part]
        write_page(options, diagnosis, summary, checks, listings)
    return diagnosis, summary, checks


def show_dump(path) -> dict:
    """Prints the batch of a training whose loss was not finite; returns what the last line of output says.

    Raises:
        ValueError: it is no such file.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    quiet.import_tensorflow()
    from tfdet.train import guard

    dump = guard.read_dump(path)
    print(guard.describe_dump(dump))
    losses = {name: value if math.isfinite(value) else None for name, value in dump["losses"].items()}
    return {"dump": str(path), "step": dump["step"], "losses": losses, "healthy": False}


def inspect_dump(path) -> int:
    try:
        result = show_dump(path)
    except ValueError as error:
        quiet.tell(error)
        return 2
    print(json.dumps(result))
    return 1


def describe(options, diagnosis, summary, checks, seconds) -> dict:
    """What the last line of output says."""
    return {
        "data": options.annotations,
        "healthy": not checks.stop(diagnosis.problems),
        "problems": count_kinds(diagnosis.problems, FAULTS),
        "notes": count_kinds(diagnosis.problems, NOTES),
        "left_out": count_dropped(diagnosis.problems, checks),
        "cut_at_border": diagnosis.rounded + count_cut(diagnosis.problems, checks),
        **summary,
        "html": str(options.html) if options.html else None,
        "augment": str(options.augment) if options.augment else None,
        "seconds": round(seconds, 2),
    }


def write_json(path, result, problems):
    every = [
        {"kind": p.kind, "note": p.kind in NOTES, "where": p.where, "boxes": p.boxes, "reason": p.reason,
         "advice": p.advice} for p in problems
    ]  # fmt: skip
    path.write_text(json.dumps(result | {"found": every}, indent=2) + "\n", encoding="utf-8")


@quiet.program(DataError, OSError)
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    if sys.stdout:
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be printable
    start = time.perf_counter()
    if [Path(path).suffix for path in options.annotations] == [".npz"]:
        if options.json or options.html or options.augment:
            quiet.tell("--json, --html and --augment are for data sets, not for the dump of a batch")
            return 2
        return inspect_dump(options.annotations[0])
    diagnosis, summary, checks = inspect(options)
    result = describe(options, diagnosis, summary, checks, time.perf_counter() - start)
    if options.json:
        write_json(options.json, result, diagnosis.problems)
    print(json.dumps(result))
    return 0 if result["healthy"] else 1


if __name__ == "__main__":
    sys.exit(quiet.until_unread(main))
