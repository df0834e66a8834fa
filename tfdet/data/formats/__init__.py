"""Annotation files in: one module a format, each of which makes a `Listing` an image and a `Problem` for whatever
it cannot use, without opening an image.
"""

import os
import re
from pathlib import Path

import numpy as np

from tfdet.data.annotations import Problem
from tfdet.data.errors import AnnotationError
from tfdet.data.formats import lines, pickled, voc
from tfdet.data.formats.common import FORMATS, Source, read_class_names

__all__ = ["FORMATS", "Source", "read", "read_class_names", "recognise"]

_READERS = {"pickle": pickled.read, "lines": lines.read, "voc": voc.read}


def recognise(path) -> str:
    """The format of an annotation file or folder, by its name and its first bytes."""
    path = Path(path)
    if path.is_dir():
        return "voc"
    try:
        with open(path, "rb") as file:
            start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError as error:
        raise AnnotationError(path, f"cannot be read ({error.strerror})", "check the path") from error
    if path.suffix.lower() in (".pkl", ".pickle", ".p") or re.match(rb"\x80[\x00-\x05]|\((d|l)p?\d*\n", start):
        return "pickle"
    if start[:1] in (b"{", b"["):
        raise AnnotationError(path, "this looks like JSON", f"the formats are {', '.join(FORMATS)}")
    if start[:1] == b"<":
        raise AnnotationError(path, "this is an XML file", "for Pascal VOC name the folder that holds the XML files")
    return "lines"


def read(path, *, images=None, class_names=None, file_format=None, allow_outside=False) -> Source:
    """Reads one annotation file, or a folder of Pascal VOC XML.

    Args:
        images: the folder that holds the images; default: beside the annotations, as the format has it.
        class_names: names in the order of the class ids. Lines need them; VOC without them takes the sorted
            names found, a pickle class_0, class_1, ...
        file_format: one of FORMATS; default: recognised.
        allow_outside: accept names in a pickle or in VOC XML that lead out of the image folder.
    Raises:
        AnnotationError: the file cannot be read as a whole, or holds no image.
    """
    path = Path(path)
    source = _READERS[file_format or recognise(path)](
        path, Path(images) if images else None, class_names, allow_outside
    )
    if not source.listings and not source.problems:
        raise AnnotationError(path, "it holds no image", "name a file with at least one entry")
    return _without_duplicates(source)


def _without_duplicates(source) -> Source:
    first, kept, problems = {}, [], list(source.problems)
    for listing in source.listings:
        path = os.path.abspath(listing.image_path)
        earlier = first.setdefault(path, listing)
        if earlier is listing:
            kept.append(listing)
            continue
        same = np.array_equal(earlier.boxes, listing.boxes) and np.array_equal(earlier.labels, listing.labels)
        reason = f"image {listing.image_id} is also at {earlier.where}, with {'the same' if same else 'other'} boxes"
        problems.append(Problem("duplicate_image", listing.where, reason))
    return Source(source.format, source.class_names, kept, problems)
