"""The options of the tools that read annotations: where they and their images are, and how they are understood."""

import contextlib
import os
from pathlib import Path

from tfdet import quiet
from tfdet.data import doctor, files
from tfdet.data.annotations import FRAMES
from tfdet.data.errors import AnnotationError
from tfdet.data.formats import FORMATS, read, read_class_names, recognise
from tfdet.data.images import MOST_PIXELS, ImageOptions
from tools.check_options import cpu_count


def place(text):
    """A path, or an address such as gs://bucket/folder."""
    if not files.is_remote(text):
        return Path(text)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow will read it, in worker processes too
    return text


def add_input_options(parser):
    group = parser.add_argument_group("input")
    group.add_argument("--images", type=place, metavar="DIR", help="image folder (default: beside the annotations)")
    group.add_argument("--classes", type=place, metavar="FILE", help="class names, one a line, in the order of the ids")
    group.add_argument("--format", choices=FORMATS, help="of the annotations (default: recognised)")
    group.add_argument("--boxes-frame", choices=FRAMES, default="displayed",
                       help="of boxes: photos turned by EXIF, or pixels as stored (default: %(default)s)")  # fmt: skip
    group.add_argument("--max-pixels", type=int, default=ImageOptions.max_pixels, metavar="N",
                       help="refuse images with more, by their header (default: %(default)s)")  # fmt: skip
    group.add_argument("--allow-outside", action="store_true", help="accept image names that leave the image folder")
    group.add_argument("--workers", type=int, default=cpu_count(), metavar="N", help="processes (default: %(default)s)")
    return group


def check_input_options(parser, options):
    """Ends the program where options cannot be."""
    if options.workers < 1:
        parser.error("--workers is positive")
    if not 1 <= options.max_pixels <= MOST_PIXELS:
        parser.error(f"--max-pixels is 1 to {MOST_PIXELS}")


def class_names_of(options) -> tuple[str, ...] | None:
    return read_class_names(options.classes) if options.classes else None


def read_source(path, options, class_names):
    """`formats.read` of one annotation file, and what looks wrong with its classes."""
    try:
        source = read(
            path, images=options.images, class_names=class_names, file_format=options.format,
            allow_outside=options.allow_outside, boxes_frame=options.boxes_frame,
        )  # fmt: skip
    except AnnotationError as error:
        other = other_format(path, options.format)
        if other:  # what the reader of the wrong format advises would do harm
            reason = f"cannot be read as {options.format}, it looks like {other}"
            raise AnnotationError(path, reason, "leave --format out") from error
        raise
    if source.problems and (other := other_format(path, options.format)):
        quiet.tell(f"{path} looks like {other}, not like {options.format}; leave --format out if that is what it is")
    return source, [*source.problems, *doctor.suspect_classes(path, source)]


def other_format(path, file_format) -> str | None:
    """The format that the annotations look like, where that is not the one they are read as."""
    with contextlib.suppress(AnnotationError):
        looks = recognise(path) if file_format else None
        return looks if looks != file_format else None
    return None


def read_all(options):
    """Annotation file -> listings of images that no earlier file has; the problems found; the class names."""
    names, splits, problems = class_names_of(options), {}, []
    for path in dict.fromkeys(options.annotations):
        source, found = read_source(path, options, names)
        names = source.class_names
        splits[path], shared = doctor.without_shared(splits, source.listings)
        problems += [*found, *shared]
    return splits, problems, names
