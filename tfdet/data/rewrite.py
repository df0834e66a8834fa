"""Annotations from any form into another: checked as a conversion checks them, but by the images' headers alone."""

from dataclasses import dataclass

from tfdet.data import formats
from tfdet.data.annotations import Problem
from tfdet.data.checks import Checks, check_image
from tfdet.data.errors import ImageError
from tfdet.data.images import read_header

_DEFAULT_CHECKS = Checks()
_KEEP_DIFFICULT = ("coco", "voc")


@dataclass(frozen=True)
class Rewritten:
    """What `rewrite` found and wrote.

    Attributes:
        written: False if problems kept the file from being written, or no image is left.
        images, boxes: how many are in the file.
        difficult: how many of the boxes are difficult objects that the format cannot tell from others.
        problems: all that were found.
        rounded: boxes cut to the image because of rounding.
    """

    written: bool
    images: int
    boxes: int
    difficult: int
    problems: list[Problem]
    rounded: int


def rewrite(source, path, file_format: str, *, checks: Checks = _DEFAULT_CHECKS, progress=None) -> Rewritten:
    """Writes what an annotation file holds in another form.

    Args:
        source: what `formats.read` returned.
        path: the new file, or folder for VOC and Darknet; it must not exist.
        file_format: one of formats.WRITABLE.
        checks: what is looked for, and whether what is found is left out or keeps everything from being written.
        progress: called with (images done, images in all).
    Raises:
        AnnotationError: it cannot be written; see `formats.save`.
    """
    formats.require_new(path)  # before all images are read
    entries, problems, rounded = [], list(source.problems), 0
    for done, listing in enumerate(source.listings, 1):
        try:
            header = read_header(listing.image_path)
        except ImageError as error:
            problems.append(Problem(error.kind, listing.where, f"image {error.where}: {error.reason}"))
            continue
        annotation, found, cut = check_image(listing, header, checks)
        problems += found
        rounded += cut
        if annotation:
            entries.append((annotation, header.source_size))
        if progress:
            progress(done, len(source.listings))
    written = bool(entries) and not checks.stop(problems)
    if written:
        formats.save(path, file_format, source.class_names, entries)
    boxes = sum(len(annotation.boxes) for annotation, _ in entries)
    difficult = sum(int(annotation.difficult.sum()) for annotation, _ in entries)
    lost = 0 if file_format in _KEEP_DIFFICULT else difficult
    return Rewritten(written, len(entries) * written, boxes * written, lost * written, problems, rounded)
