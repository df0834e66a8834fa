"""Converts an annotation file and its images to sharded TFRecords."""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Nothing here imports TensorFlow: neither this process nor its workers need it.
from tfdet.data.annotations import NOTES, Problem, split_listings
from tfdet.data.checks import FAULTS, count_cut, count_dropped, count_kinds
from tfdet.data.convert import convert
from tfdet.data.errors import DataError
from tfdet.data.formats import FORMATS, read, read_class_names
from tfdet.data.images import STORES, ImageOptions
from tools.check_options import HELP, add_check_options, make_checks

TFRECORDS = Path(__file__).resolve().parents[1] / "tfrecords"
DEFAULT_SPLIT = {"pickle": ("sorted", 0.2), "lines": ("shuffled", 0.1), "voc": ("shuffled", 0.1)}

EPILOG = (
    """
examples:
  # keras-yolo3 lines, 10 % of the images for validation
  python tools/make_tfrecords.py data/train.txt --classes data/classes.txt --out tfrecords/mine
  # a pickled dict {file name: array [N, 4 + classes]}, images in their own folder
  python tools/make_tfrecords.py gt.pkl --images photos/ --classes classes.txt --out tfrecords/mine
  # separate validation and test files; leave out what cannot be used
  python tools/make_tfrecords.py train.txt --val val.txt --test test.txt --classes classes.txt --skip-bad

Every box or image that cannot be used is listed with its place, the reason and what to do. If there is any,
nothing is written and the exit code is 1, unless --skip-bad is given. An annotation file that cannot be read
ends with exit code 2. The last line on standard output is one JSON object.
"""
    + HELP
)


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path, help="pickled dict, text lines, or a folder of Pascal VOC XML")

    group = parser.add_argument_group("input")
    group.add_argument("--images", type=Path, metavar="DIR", help="image folder (default: beside the annotations)")
    group.add_argument("--classes", type=Path, metavar="FILE", help="class names, one a line, in the order of the ids")
    group.add_argument("--format", choices=FORMATS, help="of the annotations (default: recognised)")
    group.add_argument("--allow-outside", action="store_true", help="accept image names that leave the image folder")

    group = parser.add_argument_group("splits")
    group.add_argument("--val", type=Path, metavar="FILE", help="validation annotations; then nothing is split off")
    group.add_argument("--test", type=Path, metavar="FILE", help="annotations of a test split")
    group.add_argument("--val-ratio", type=float, metavar="R", help="share for validation (0.2 for a pickle, else 0.1)")
    group.add_argument(
        "--split-mode", choices=("sorted", "shuffled"), help="default: sorted for a pickle, else shuffled"
    )
    group.add_argument("--seed", type=int, default=47, help="of the shuffled split (default: %(default)s)")

    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="DIR", help="folder for the records (default: tfrecords/NAME)")
    group.add_argument("--name", help="of the data set, starts every file name (default: from --out or the input)")
    group.add_argument("--shards", type=int, default=0, metavar="N", help="files a split (default: about 100 MB each)")
    group.add_argument("--max-side", type=int, default=0, metavar="N", help="shrink images whose longer side exceeds N")
    group.add_argument("--quality", type=int, default=95, help="of JPEGs that are encoded anew (default: %(default)s)")
    group.add_argument("--store", choices=STORES, default="jpeg", help="raw: decoded pixels, large and fast to read")

    group = add_check_options(parser)
    group.add_argument("--skip-bad", dest="on_bad", action="append_const", const="clip", help="short for --on-bad clip")
    group.add_argument("--decode-check", action=argparse.BooleanOptionalAction, default=True,
                       help="read every image to its end to find damage (default: on)")  # fmt: skip
    group.add_argument(
        "--workers", type=int, default=_cpu_count(), metavar="N", help="processes (default: %(default)s)"
    )

    options = parser.parse_args(arguments)
    if options.val and (options.val_ratio is not None or options.split_mode):
        parser.error("--val names the validation images, so --val-ratio and --split-mode have nothing to split")
    if options.val_ratio is not None and not 0 <= options.val_ratio <= 1:
        parser.error(f"--val-ratio is {options.val_ratio}; it lies between 0 and 1")
    if options.max_side < 0 or options.shards < 0 or options.workers < 1 or not 1 <= options.quality <= 100:
        parser.error("--max-side and --shards are not negative, --workers is positive, --quality is 1 to 100")
    return options


def _cpu_count():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_splits(options):
    """Split name -> listings, the problems found, the class names."""
    names = read_class_names(options.classes) if options.classes else None
    common = {"images": options.images, "file_format": options.format, "allow_outside": options.allow_outside}
    source = read(options.annotations, class_names=names, **common)
    splits, problems = {"train": source.listings}, list(source.problems)
    for split, path in (("val", options.val), ("test", options.test)):
        if path:
            other = read(path, class_names=source.class_names, **common)
            splits[split], shared = without_shared(splits, other.listings)
            problems += other.problems + shared
    if not options.val:
        mode, ratio = DEFAULT_SPLIT[source.format]
        ratio = ratio if options.val_ratio is None else options.val_ratio
        train, val = split_listings(source.listings, options.split_mode or mode, ratio, options.seed)
        splits = {"train": train, "val": val, **splits} | {"train": train}
    return splits, problems, source.class_names


def without_shared(splits, listings):
    """The listings that no earlier split has, and a problem for each other: it would be tested on what it is
    trained on."""
    known = {os.path.abspath(item.image_path): (split, item.where) for split in splits for item in splits[split]}
    kept, problems = [], []
    for item in listings:
        split, where = known.get(os.path.abspath(item.image_path), (None, None))
        if split is None:
            kept.append(item)
        else:
            reason = f"image {item.image_id} is also in the split {split}, at {where}"
            problems.append(Problem("duplicate_image", item.where, reason))
    return kept, problems


def output_place(options):
    """The folder and the data set's name."""
    source = options.annotations.resolve()
    name = options.name or (options.out.resolve().name if options.out else source.parent.name)
    name = re.sub(r"[^\w.-]+", "_", name).strip("_.") or "data"
    return options.out or TFRECORDS / name, name


def make_progress():
    """A progress bar on standard error, and the function that moves it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("images", total=None)
    return bar, lambda done, total: bar.update(task, completed=done, total=total)


def summarise(report, directory, name, seconds, checks) -> dict:
    """What the last line of output says."""
    splits = report.manifest["splits"] if report.manifest else {}
    return {
        "out": str(directory),
        "name": name,
        "written": report.manifest is not None,
        "images": sum(split["num_images"] for split in splits.values()),
        "boxes": sum(split["num_boxes"] for split in splits.values()),
        "bytes": sum(shard["bytes"] for split in splits.values() for shard in split["shards"]),
        "splits": {
            split: {
                "images": entry["num_images"],
                "boxes": entry["num_boxes"],
                "shards": len(entry["shards"]),
                "bytes": sum(shard["bytes"] for shard in entry["shards"]),
            }
            for split, entry in splits.items()
        },
        "problems": count_kinds(report.problems, FAULTS),
        "notes": count_kinds(report.problems, NOTES),
        "dropped": count_dropped(report.problems, checks) if report.manifest else {},
        "cut_at_border": report.rounded + count_cut(report.problems, checks),
        "changed": dict(report.changes),
        "seconds": round(seconds, 2),
    }


def print_report(report, summary, checks):
    for problem in report.problems:
        print(problem)
    for change, count in report.changes.items():
        print(f"{count} images encoded anew: {change}")
    for split, entry in summary["splits"].items():
        size = f"{entry['bytes'] / 1e6:.1f} MB in {entry['shards']} files"
        print(f"{split}: {entry['images']} images, {entry['boxes']} boxes, {size}")
    if not summary["written"]:
        why = (
            "repair what is listed above, or pass --skip-bad to leave it out"
            if checks.stop(report.problems)
            else "no usable image is left"
        )
        print(f"nothing was written: {why}", file=sys.stderr)


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be printable
    start = time.perf_counter()
    directory, name = output_place(options)
    image_options = ImageOptions(options.store, options.max_side, options.quality, options.decode_check)
    try:
        checks = make_checks(options)
        splits, problems, class_names = read_splits(options)
        bar, progress = make_progress()
        with bar:
            report = convert(
                splits, directory, name, class_names, options=image_options, problems=problems,
                checks=checks, shards=options.shards, workers=options.workers, progress=progress,
            )  # fmt: skip
    except DataError as error:
        print(f"make_tfrecords: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("make_tfrecords: interrupted, nothing was written", file=sys.stderr)
        return 130
    summary = summarise(report, directory, name, time.perf_counter() - start, checks)
    print_report(report, summary, checks)
    print(json.dumps(summary))
    return 0 if summary["written"] else 1


if __name__ == "__main__":
    sys.exit(main())
