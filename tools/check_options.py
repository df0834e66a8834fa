"""The options of the tools that check a data set: what is looked for, and what is done about it."""

import argparse
import os
import re

from tfdet import configs
from tfdet.config import ConfigError
from tfdet.data.checks import Checks, make_policies
from tfdet.data.errors import DataError

HELP = """
What is found has a kind, in square brackets. A fault makes a box or an image unusable; a note is a suspicion.
--on-bad says what is done about them, and may be repeated, a later one replaces an earlier one:
  --on-bad drop           leave out the boxes and images with faults
  --on-bad clip           cut boxes that cross the border of their image, leave out what else has faults
  --on-bad notes=drop     treat notes like that, too (notes=error: as faults)
  --on-bad tiny_box=drop  one kind; keep is possible for notes, size_mismatch and too_many_boxes
"""


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_check_options(parser):
    group = parser.add_argument_group("checks")
    group.add_argument("--on-bad", action="append", default=[], metavar="[KIND=]POLICY",
                       help="error, drop, clip or keep (default: faults are errors, notes are kept)")  # fmt: skip
    group.add_argument("--preset", choices=configs.PRESETS, help="report boxes under a pixel at this model's input")
    group.add_argument("--image-size", type=image_size, metavar="HxW", help="the same for an input of this size")
    group.add_argument("--max-boxes", type=int, default=0, metavar="N",
                       help="report images with more boxes (20 is keras-yolo3's limit; tfdet has none)")  # fmt: skip
    return group


def image_size(text) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)(?:[x,]([1-9]\d*))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; say 300 or HEIGHTxWIDTH, e.g. 300x400")
    return int(found[1]), int(found[2] or found[1])


def make_checks(options) -> Checks:
    """The checks that the command line asks for.

    Raises:
        DataError: options that cannot be.
    """
    if options.max_boxes < 0:
        raise DataError(f"--max-boxes {options.max_boxes}", "it is negative", "0 means no limit")
    size, letterbox = options.image_size, False
    if options.preset:
        try:
            config = configs.load(options.preset)
        except ConfigError as error:
            raise DataError("--preset", str(error), "name a preset") from error
        size = size or config.detector.image_size
        letterbox = config.data.resize == "letterbox"
    return Checks(make_policies(options.on_bad), size, letterbox, options.max_boxes)
