"""The images that a user names: files, folders, patterns, and those inside of TFRecord files."""

import os
import re
from typing import NamedTuple

from tfdet.data import files
from tfdet.data.address import Address, as_path, forget
from tfdet.data.annotations import Problem
from tfdet.data.errors import ImageError
from tfdet.data.formats import recorded
from tfdet.data.formats.common import IMAGE_SUFFIXES


class Photo(NamedTuple):
    """An image: `path` as `images.read_image` takes it, and what it is called: its path, or its id in a record."""

    path: str
    name: str


def find_images(inputs, skip=None) -> list[Photo]:
    """The images that some inputs stand for, each once.

    - A file stands for itself, whatever its suffix; a TFRecord file for all images in it.
    - A folder stands for the image files in it and below it, numbers in their names in the order of counting
      (frame 9 before frame 10); if there are none, for the TFRecord files in it.
    - A pattern such as "photos/*.jpg" stands for the files that match it.
    - All three may be addresses that TensorFlow's file systems know, such as gs://bucket/photos.

    Args:
        inputs: paths, or a single one.
        skip: called with the ImageError of each record that is damaged or holds no image; None: raise.
    Raises:
        TypeError: an input is no path.
        ImageError: an input that stands for nothing.
        AnnotationError: a TFRecord file that cannot be read at all.
    """
    forget()
    try:
        found = dict.fromkeys(file for text in listed(inputs) for file in _files(str(text)))
        return [photo for file in found for photo in _photos(file, skip)]
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise ImageError(error.filename, reason, "check the path", "unreadable_image") from error


def listed(inputs) -> list:
    """Paths as a list; a single one, which Python would take letter by letter, as a list of one."""
    inputs = [inputs] if isinstance(inputs, str | os.PathLike | Address) else list(inputs)
    for item in inputs:
        if not isinstance(item, str | os.PathLike | Address):
            raise TypeError(f"images are given by their paths, not as {type(item).__name__}")
    return inputs


def _files(text) -> list:
    path = as_path(text)
    if path.is_dir():
        images = [file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
        found = sorted(images, key=_counting) or recorded.find_record_files(path)
    else:
        found = [path] if path.exists() else sorted(map(as_path, files.matching(path)), key=_counting)
    if not found:
        reason = "no image in this folder" if path.is_dir() else "no such file, folder or pattern"
        advice = f"give image files or a folder with {', '.join(IMAGE_SUFFIXES)}, or TFRecord files"
        raise ImageError(text, reason, advice, "missing_image")
    return found


def _counting(path):
    """A key that sorts numbers by value; folders before what they hold stay together."""
    return [[(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"([0-9]+)", name)]
            for name in path.parts]  # fmt: skip


def _photos(file, skip):
    if file.suffix.lower() in IMAGE_SUFFIXES or not file.is_file() or not recorded.is_record_file(file):
        return [Photo(str(file), str(file))]
    photos = []
    for item in recorded.find_images(file):
        if not isinstance(item, Problem):
            image_id, path = item
            photos.append(Photo(path, image_id))
            continue
        error = ImageError(item.where, item.reason, item.advice, item.kind)
        if skip is None:
            raise error
        skip(error)
    return photos
