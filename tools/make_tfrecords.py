"""Converts an annotation file and its images to sharded TFRecords."""

import argparse
import json
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Nothing here imports TensorFlow: neither this process nor its workers need it.
from tfdet import quiet
from tfdet.data.address import as_path
from tfdet.data.annotations import NOTES, split_listings
from tfdet.data.checks import FAULTS, count_cut, count_dropped, count_kinds
from tfdet.data.convert import convert
from tfdet.data.doctor import without_same_content, without_shared
from tfdet.data.errors import DataError
from tfdet.data.formats import FORMATS, WRITABLE
from tfdet.data.images import STORES, ImageOptions
from tfdet.data.manifest import read_manifest
from tfdet.data.rewrite import rewrite
from tfdet.data.storage import compare_storage, describe
from tools.check_options import HELP, add_check_options, make_checks
from tools.input_options import add_input_options, check_input_options, class_names_of, place, read_source
from tools.progress import make_progress
from tools.writing_options import HELP as WRITING_HELP
from tools.writing_options import (
    add_writing_options,
    check_writing_options,
    explain_interruption,
    runner_of,
    verify_records,
)

TFRECORDS = Path("tfrecords")
DEFAULT_SPLIT = {"pickle": ("sorted", 0.2)}  # by the format; ("shuffled", 0.1) for the others

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
    + WRITING_HELP
)


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=place, nargs="?", help="annotation file or folder: " + ", ".join(FORMATS))

    add_input_options(parser)

    group = parser.add_argument_group("splits")
    group.add_argument("--val", type=place, metavar="FILE", help="validation annotations; then nothing is split off")
    group.add_argument("--test", type=place, metavar="FILE", help="annotations of a test split")
    group.add_argument("--val-ratio", type=float, metavar="R", help="share for validation (0.2 for a pickle, else 0.1)")
    group.add_argument(
        "--split-mode", choices=("sorted", "shuffled"), help="default: sorted for a pickle, else shuffled"
    )
    group.add_argument("--seed", type=int, default=47, help="of the shuffled split (default: %(default)s)")

    group = parser.add_argument_group("output")
    group.add_argument("--out", type=place, metavar="DIR", help="folder for the records (default: tfrecords/NAME)")
    group.add_argument("--name", help="of the data set, starts every file name (default: from --out or the input)")
    group.add_argument("--shards", type=int, default=0, metavar="N", help="files a split (default: about 100 MB each)")
    group.add_argument("--max-side", type=int, default=0, metavar="N", help="shrink images whose longer side exceeds N")
    group.add_argument("--quality", type=int, default=95, help="of JPEGs that are encoded anew (default: %(default)s)")
    group.add_argument("--store", choices=STORES, default="jpeg", help="raw: decoded pixels, large, fast from memory")

    group.add_argument("--to", choices=WRITABLE,
                       help="write annotations in this form to --out, a file; for voc, darknet a folder")  # fmt: skip

    group = add_check_options(parser)
    group.add_argument("--skip-bad", dest="on_bad", action="append_const", const="clip", help="short for --on-bad clip")
    group.add_argument("--decode-check", action=argparse.BooleanOptionalAction, default=True,
                       help="read every image to its end to find damage (default: on)")  # fmt: skip

    add_writing_options(parser)
    options, others = parser.parse_known_args(arguments)
    check_input_options(parser, options)
    check_writing_options(parser, options, others)
    if options.val and (options.val_ratio is not None or options.split_mode):
        parser.error("--val names the validation images, so --val-ratio and --split-mode have nothing to split")
    if options.val_ratio is not None and not 0 <= options.val_ratio <= 1:
        parser.error(f"--val-ratio is {options.val_ratio}; it lies between 0 and 1")
    if options.max_side < 0 or options.shards < 0 or not 1 <= options.quality <= 100:
        parser.error("--max-side and --shards are not negative, --quality is 1 to 100")
    if options.to and (options.val or options.test or not options.out):
        parser.error(
            "--to writes one file or folder of annotations; name it with --out, and leave out --val and --test"
        )
    return options


def read_splits(options, checks):
    """Split name -> listings, the problems found, the class names."""
    source, problems = read_source(options.annotations, options, class_names_of(options))
    splits = {"train": source.listings}
    for split, path in (("val", options.val), ("test", options.test)):
        if path:
            other, found = read_source(path, options, source.class_names)
            splits[split], shared = without_shared(splits, other.listings)
            problems += [*found, *shared]
    if not options.val:
        mode, ratio = DEFAULT_SPLIT.get(source.format, ("shuffled", 0.1))
        ratio = ratio if options.val_ratio is None else options.val_ratio
        train, val = split_listings(source.listings, options.split_mode or mode, ratio, options.seed)
        splits = {"train": train, "val": val, **splits} | {"train": train}
    splits, same = without_same_content(splits, checks)
    return splits, problems + same, source.class_names


def rewrite_annotations(options, checks) -> int:
    """What --to asks for; returns the exit code."""
    source, _ = read_source(options.annotations, options, class_names_of(options))
    bar, progress = make_progress()
    with bar:
        done = rewrite(source, options.out, options.to, checks=checks, progress=progress)
    for problem in done.problems:
        print(problem)
    if done.difficult:
        print(f"{done.difficult} difficult boxes became ordinary ones, which is all that {options.to} knows")
    if not done.written:
        print("nothing was written: repair what is listed above, or pass --skip-bad to leave it out", file=sys.stderr)
    summary = {
        "out": str(options.out), "format": options.to, "from": source.format, "written": done.written,
        "images": done.images, "boxes": done.boxes, "class_names": list(source.class_names),
        "problems": count_kinds(done.problems, FAULTS), "notes": count_kinds(done.problems, NOTES),
        "difficult_lost": done.difficult, "cut_at_border": done.rounded + count_cut(done.problems, checks),
    }  # fmt: skip
    print(json.dumps(summary))
    return 0 if done.written else 1


def output_place(options):
    """The folder and the data set's name."""
    folder = as_path(options.out or as_path(options.annotations).resolve().parent)
    name = options.name or folder.resolve().name
    name = re.sub(r"[^\w.-]+", "_", name).strip("_.") or "data"
    return options.out or TFRECORDS / name, name


def images_there(directory) -> dict:
    """Images by split in the records that a folder holds; none where there are no readable ones."""
    try:
        return {split: entry["num_images"] for split, entry in read_manifest(directory)["splits"].items()}
    except (DataError, KeyError, TypeError, AttributeError):
        return {}


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
        "resumed": report.resumed,
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


@quiet.program(DataError)
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be printable
    start = time.perf_counter()
    directory, name = output_place(options) if options.annotations else (options.verify, "")
    image_options = ImageOptions(
        options.store, options.max_side, options.quality, options.decode_check, options.max_pixels
    )
    try:
        if options.verify:
            return verify_records(options, make_progress)
        checks = make_checks(options)
        if options.to:
            return rewrite_annotations(options, checks)
        splits, problems, class_names = read_splits(options, checks)
        replaced = {} if options.append or options.resume else images_there(directory)
        bar, progress = make_progress()
        with bar:
            report = convert(
                splits, directory, name, class_names, options=image_options, problems=problems,
                checks=checks, shards=options.shards, workers=options.workers, progress=progress,
                resume=options.resume, append=options.append, run=runner_of(options),
            )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt(explain_interruption(directory)) from None
    summary = summarise(report, directory, name, time.perf_counter() - start, checks)
    print_report(report, summary, checks)
    if replaced and summary["written"]:
        print(f"replaced: {', '.join(f'{count} images of {split}' for split, count in replaced.items())}")
    if report.manifest and (options.store == "raw" or options.max_side):
        summary["storage"] = compare_storage(splits, directory, report.manifest)
        print(describe(summary["storage"], options.store))
    print(json.dumps(summary))
    return 0 if summary["written"] else 1


if __name__ == "__main__":
    sys.exit(quiet.until_unread(main))
