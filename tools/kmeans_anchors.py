"""Finds the YOLO anchors that fit a data set, by k-means on its boxes as the model will see them."""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Nothing here imports TensorFlow: neither this process nor its workers need it.
from rich.console import Console
from rich.table import Table

from tfdet import anchors, configs, quiet
from tfdet.config import RESIZE_MODES, ConfigError
from tfdet.data import doctor
from tfdet.data.annotations import NOTES
from tfdet.data.checks import Checks, make_policies
from tfdet.data.errors import DataError
from tfdet.data.images import ImageOptions
from tools import places
from tools.check_options import image_size
from tools.input_options import add_input_options, check_input_options, read_all
from tools.progress import make_progress

PRESETS = tuple(name for name in configs.PRESETS if configs.load(name).detector.kind == "yolo")
DEFAULT_PRESET = "yolov3_416"

EPILOG = """
examples:
  python tools/kmeans_anchors.py train.txt --classes classes.txt --out anchors.txt --plot anchors.png
  python tools/kmeans_anchors.py tfrecords/mine --preset yolov3_tiny --out anchors.txt
  python tools/train.py --data tfrecords/mine --preset yolov3_416 --anchors anchors.txt

Widths and heights are in pixels of the network input, sorted by area; one start in 32 with the best average IoU is
kept. "average IoU" is the mean over all boxes of the IoU with the anchor that fits best, both around one centre;
"recall" is the share of boxes for which that is at least 0.5. The same figures of the preset's own anchors, those
of COCO, stand beside. Boxes that cannot be used are counted and left out; tools/inspect_dataset.py lists them.
The last line on standard output is one JSON object.
"""


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "annotations", nargs="+", help="whatever make_tfrecords takes, or a folder of records that it wrote"
    )
    add_input_options(parser)

    group = parser.add_argument_group("the model")
    group.add_argument("--preset", choices=PRESETS, default=DEFAULT_PRESET, help="(default: %(default)s)")
    group.add_argument("--image-size", type=image_size, metavar="HxW", help="network input (default: the preset's)")
    group.add_argument("--resize", choices=RESIZE_MODES, help="of images to it (default: the preset's)")

    group = parser.add_argument_group("clusters")
    group.add_argument("-k", type=int, metavar="N", help="how many anchors (default: as many as the preset has)")
    group.add_argument("--seed", type=int, default=0, help="of the starts (default: %(default)s)")

    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="FILE", help="write the anchors there, for tools/train.py --anchors")
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw boxes and anchors as PNG")
    options = parser.parse_args(arguments)
    check_input_options(parser, options)
    if (options.k is not None and options.k < 1) or options.seed < 0:
        parser.error("-k is positive, --seed is not negative")
    return options


def read_facts(options):
    """The sizes of images and boxes, and how many problems left something out."""
    splits, problems, names = read_all(options)
    image_options = ImageOptions(decode_check=False, max_pixels=options.max_pixels)
    bar, progress = make_progress()
    with bar:
        diagnosis = doctor.diagnose(
            splits, names, options=image_options, checks=Checks(make_policies(["clip"])), problems=problems,
            workers=options.workers, progress=progress,
        )  # fmt: skip
    left_out = [problem for problem in diagnosis.problems if problem.kind not in (*NOTES, "crosses_border")]
    return diagnosis.facts, left_out


def find(options) -> dict:
    """The whole job; returns what the last line of output says."""
    places.require_parents(options.out, options.plot)
    config = configs.load(options.preset)
    own = config.detector.anchors
    size = options.image_size or config.detector.image_size
    letterbox = (options.resize or config.data.resize) == "letterbox"
    facts, left_out = read_facts(options)
    if left_out:
        print(f"boxes or images left out: {len(left_out)}, the first at {left_out[0]}", file=sys.stderr)
    sides = anchors.sides_at_input(facts, size, letterbox)
    start = time.perf_counter()
    found = anchors.rounded(anchors.kmeans(sides, options.k or len(own), options.seed))
    seconds = time.perf_counter() - start
    if options.out:
        options.out.write_text(anchors.to_text(found) + "\n", encoding="utf-8")
    figures = anchors.measure(sides, found)
    if options.plot:
        from tfdet.draw.anchors import save_clusters  # matplotlib takes a second to load

        title = f"{len(sides):,} boxes, {len(found)} anchors, average IoU {figures['average_iou']:.3f}"
        save_clusters(options.plot, sides, anchors.best_iou(sides, found)[1], found, title)
    return {
        "anchors": found.tolist(), **figures, "preset_anchors": anchors.measure(sides, own), "boxes": len(sides),
        "images": len(facts.sizes), "problems": len(left_out), "image_size": list(size), "letterbox": letterbox,
        "seed": options.seed, "seconds": round(seconds, 2), "out": str(options.out) if options.out else None,
        "plot": str(options.plot) if options.plot else None,
    }  # fmt: skip


def show(summary, preset):
    height, width = summary["image_size"]
    shown = "letterboxed to" if summary["letterbox"] else "stretched to"
    table = Table(title=f"{summary['boxes']:,} boxes of {summary['images']:,} images, {shown} {height}x{width}")
    for name in ("anchors", "average IoU", "recall at IoU 0.5"):
        table.add_column(name, justify="left" if name == "anchors" else "right")
    rows = {f"these {len(summary['anchors'])}": summary, f"COCO's, of {preset}": summary["preset_anchors"]}
    for name, row in rows.items():
        table.add_row(name, f"{row['average_iou']:.4f}", f"{100 * row['recall']:.1f} %")
    Console().print(table)
    print(anchors.to_text(summary["anchors"]))


@quiet.program(ConfigError, DataError, OSError)
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be printable
    summary = find(options)
    show(summary, options.preset)
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(quiet.until_unread(main))
