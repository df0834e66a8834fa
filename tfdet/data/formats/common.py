"""What the readers of all annotation formats share."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfdet.data import files
from tfdet.data.address import Address
from tfdet.data.annotations import Listing, Problem
from tfdet.data.errors import AnnotationError

FORMATS = ("pickle", "lines", "voc", "coco", "darknet", "csv", "records")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Source:
    """What an annotation file holds. `format` is one of FORMATS."""

    format: str
    class_names: tuple[str, ...]
    listings: list[Listing]
    problems: list[Problem]


def make_listing(where, image_path, image_id, rows, numbers, *, in_pixels, difficult=None, **others) -> Listing:
    """rows: float64 [N, 5] corners and class; numbers: the place of each row, as `Listing.numbers` has it."""
    rows = np.asarray(rows, np.float64).reshape(-1, 5)
    difficult = np.zeros(len(rows), bool) if difficult is None else np.asarray(difficult, bool)
    labels, numbers = rows[:, 4].astype(np.int32), np.asarray(numbers, np.int64)
    return Listing(where, str(image_path), image_id, rows[:, :4], labels, difficult, numbers, in_pixels, **others)


def box_problem(where, number, fault, image, list_name="") -> Problem:
    """A problem with a box that is in no listing.

    Args:
        number, list_name: as a `Listing` counts its boxes.
        fault: (kind of problem, text that follows what the box is called).
        image: the path of its image, None if it is not there.
    """
    kind, text = fault
    place, name = (f"{where}, {list_name}[{number}]", "the box") if list_name else (where, f"box {number}")
    return Problem(kind, place, f"{name} {text}", (int(number),), str(image or ""))


def locate(where, name, candidates, roots=()) -> tuple[Path | None, Problem | None]:
    """The first of some paths that is a file; with `roots`, only if it stays inside one of these folders."""
    path = next((path for path in candidates if _is_file(path)), None)
    if roots and not any(is_inside(path or candidates[0], root) for root in roots):
        folders = " and ".join(dict.fromkeys(map(str, roots)))
        return None, Problem("outside_root", where, f"image {name!r} lies outside {folders}")
    if path is None:
        looked = " nor ".join(dict.fromkeys(str(candidate) for candidate in candidates[:2]))
        return None, Problem("missing_image", where, f"there is no image file {looked}")
    return path, None


def _is_file(path) -> bool:
    return path.is_file() if isinstance(path, Address) else os.path.isfile(path)


def is_inside(path, root) -> bool:
    """Whether a path stays in a folder once links are followed; there are none at an address."""
    if isinstance(path, Address) or isinstance(root, Address):
        return isinstance(path, Address) and path.is_relative_to(root)
    root = os.path.realpath(root)
    try:
        return os.path.commonpath([root, os.path.realpath(path)]) == root
    except ValueError:  # a zero byte, or what no file name can hold
        return False


def parse_numbers(texts) -> tuple[float, ...] | None:
    """Texts as floats, None if one of them is no number; Python alone reads 1_0 as 10."""
    try:
        return None if any("_" in text for text in texts) else tuple(map(float, texts))
    except ValueError:
        return None


def shortest(value, digits: int = 7) -> str:
    """A number in at most so many significant digits: 7 keep a corner within 5e-7 of the image's side."""
    return format(float(value), f".{digits}g") if abs(value) < 10**digits else repr(float(value))


def stated_size(height, width) -> tuple[int, int] | None:
    """(height, width) from what a file says, None for what can be no size; many write 0 x 0 for "not known"."""
    try:
        size = int(float(height)), int(float(width))
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def read_text(path) -> str:
    """A UTF-8 text file, with or without byte order mark; line ends become newlines.

    Raises:
        AnnotationError: it is missing, or not text.
    """
    try:
        data = files.read_bytes(path)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise AnnotationError(path, f"cannot be read ({error.strerror})", "check the path") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise AnnotationError(f"{path}:{line}", "this is not UTF-8 text", "save the file as UTF-8") from error
    if "\0" in text:
        raise AnnotationError(path, "this is not a text file, it holds zero bytes", "name the right file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_class_names(path) -> tuple[str, ...]:
    """One class name a line; the first line is class 0.

    Raises:
        AnnotationError: no names, a name twice, or an empty line before the last name (it would shift the classes).
    """
    names = [line.strip() for line in read_text(path).rstrip().split("\n")]
    for number, name in enumerate(names, 1):
        if not name:
            empty = "the file holds no class name" if names == [""] else "an empty line would shift all later classes"
            raise AnnotationError(f"{path}:{number}", empty, "write one class name a line")
        if name in names[: number - 1]:
            raise AnnotationError(f"{path}:{number}", f"class {name!r} is there twice", "name each class once")
    return tuple(names)
