"""Annotation files in and out: one module a format, each of which makes a `Listing` an image and a `Problem` for
whatever it cannot use, without opening an image.
"""

import contextlib
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from tfdet.data import address, files
from tfdet.data.annotations import FRAMES, Problem
from tfdet.data.errors import AnnotationError
from tfdet.data.formats import coco, darknet, lines, pickled, recorded, table, voc
from tfdet.data.formats.common import FORMATS, Source, read_class_names

__all__ = ["FORMATS", "WRITABLE", "Source", "read", "read_class_names", "recognise", "require_new", "save"]

_MODULES = dict(zip(FORMATS, (pickled, lines, voc, coco, darknet, table, recorded)))
WRITABLE = tuple(name for name in FORMATS if hasattr(_MODULES[name], "write"))
_FOLDERS = ("voc", "darknet")
_IN_WORDS = f"the formats are {', '.join(FORMATS)}"


def recognise(path) -> str:
    """The format of an annotation file or folder, by its name and its first bytes."""
    path = address.as_path(path)
    try:
        if path.is_dir():
            return _recognise_folder(path)
        if recorded.is_record_file(path):
            return "records"
        with files.opened(path) as file:
            start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError as error:
        raise AnnotationError(path, f"cannot be read ({error.strerror})", "check the path") from error
    if path.suffix.lower() in (".pkl", ".pickle", ".p") or re.match(rb"\x80[\x00-\x05]|\((d|l)p?\d*\n", start):
        return "pickle"
    if start[:2] == b"\x1f\x8b":
        raise AnnotationError(path, "this file is compressed", "unpack it with gunzip")
    if start[:1] == b"{" or path.suffix.lower() == ".json":
        return "coco"
    if start[:1] == b"[":
        raise AnnotationError(path, "this looks like a JSON list, not like COCO's object", _IN_WORDS)
    if start[:1] == b"<":
        raise AnnotationError(path, "this is an XML file", "for Pascal VOC name the folder that holds the XML files")
    first = start.split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    return "csv" if path.suffix.lower() in (".csv", ".tsv") or table.begins_table(first) else "lines"


def _recognise_folder(path) -> str:
    if next(path.glob("*.xml"), None) or next((path / "Annotations").glob("*.xml"), None):
        return "voc"
    if recorded.find_record_files(path):
        return "records"
    if (path / "labels").is_dir() or next(path.rglob("*.txt"), None):
        return "darknet"
    reason = "the folder holds no XML file of Pascal VOC, no Darknet text file and no record file"
    raise AnnotationError(path, reason, "name the annotation file itself; " + _IN_WORDS)


def read(
    path, *, images=None, class_names=None, file_format=None, allow_outside=False, boxes_frame="displayed"
) -> Source:
    """Reads one annotation file, or a folder of Pascal VOC XML, Darknet text files or records.

    Args:
        path: a pattern such as "data-val.tfrecord-*" takes several record files. It and `images` may be addresses
            that TensorFlow's file systems know, such as gs://bucket/folder.
        images: the folder that holds the images; default: beside the annotations, as the format has it.
        class_names: names in the order of the class ids. Lines need them, as do Darknet and records where no file
            of names is found; VOC and tables without them take the sorted names found, COCO its categories, a
            pickle class_0, class_1, ...
        file_format: one of FORMATS; default: recognised.
        allow_outside: accept paths that lead out of the image folder.
        boxes_frame: one of annotations.FRAMES, see `Listing`.
    Raises:
        AnnotationError: the file, or the folder of its images, cannot be read as a whole, or it holds no image.
    """
    if boxes_frame not in FRAMES:
        raise ValueError(f"boxes_frame is one of {FRAMES}, not {boxes_frame!r}")
    address.forget()
    path, images = address.as_path(path), address.as_path(images) if images else None
    sources = []
    try:
        for one in [path] if files.exists(path) else list(map(address.as_path, files.matching(path))) or [path]:
            kind = file_format or recognise(one)
            if images and kind != "records" and not files.is_remote(images) and not images.is_dir():
                raise AnnotationError(images, "there is no such folder of images", "check the path of the images")
            sources.append(_MODULES[kind].read(one, images, class_names, allow_outside))
            class_names = sources[-1].class_names
    except OSError as error:  # of the annotations, or of the images that are looked for
        where = error.filename or path
        raise AnnotationError(where, f"cannot be read ({error.strerror})", "check the path") from error
    listings = [listing for source in sources for listing in source.listings]
    problems = [problem for source in sources for problem in source.problems]
    if not listings and not problems:
        raise AnnotationError(path, "it holds no image", "name a file with at least one entry")
    if boxes_frame != "displayed":
        listings = [replace(listing, frame=boxes_frame) for listing in listings]
    return _without_duplicates(Source(sources[-1].format, sources[-1].class_names, listings, problems))


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
        problems.append(Problem("duplicate_image", listing.where, reason, image_path=listing.image_path))
    return Source(source.format, source.class_names, kept, problems)


def require_new(path):
    """Raises AnnotationError where annotations cannot be saved, because something of that name is there."""
    try:
        if files.exists(path) or (not files.is_remote(path) and os.path.lexists(path)):
            raise AnnotationError(path, "it is there already", "choose another name with --out")
    except OSError as error:
        raise _unwritten(path, error, "check the address") from error


def save(path, file_format: str, class_names, entries):
    """Writes annotations; the file, or the folder of VOC and Darknet, appears whole or not at all. At an address with
    a scheme the files of a folder appear one by one, each of them whole.

    COCO and VOC keep everything; the others lose which objects are difficult, and all but CSV and Darknet the names of
    the classes.

    Args:
        path: on this machine or an address with a scheme; must not exist.
        file_format: one of WRITABLE.
        entries: list of (Annotation, (height, width) in pixels of its image as it is displayed).
    Raises:
        AnnotationError: it exists, cannot be written, or the format cannot hold the name of an image or a class.
    """
    path = address.as_path(path)
    require_new(path)
    if files.is_remote(path):
        return _save_at_address(path, file_format, class_names, entries)
    partial = path.with_name(f".{path.name}.partial")
    _check_names(path, class_names, entries, stems=file_format == "darknet")
    try:
        partial.mkdir(parents=True) if file_format in _FOLDERS else path.parent.mkdir(parents=True, exist_ok=True)
        _MODULES[file_format].write(partial, class_names, entries)
        os.replace(partial, path)
    except OSError as error:
        raise _unwritten(path, error, "check the folder") from error
    finally:
        shutil.rmtree(partial) if partial.is_dir() else _remove(partial)


def _save_at_address(path, file_format, class_names, entries):
    """Made on this machine, then copied; what was copied goes again where not all could be."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / path.name
            save(made, file_format, class_names, entries)
            with _removed_unless_whole(path, made.is_dir()):
                for file in [made] if made.is_file() else filter(Path.is_file, sorted(made.rglob("*"))):
                    target = path if file == made else path / file.relative_to(made).as_posix()
                    files.make_folder(target.parent)
                    files.write_whole(target, file.read_bytes(), f"{target}.partial")
    except OSError as error:
        raise _unwritten(path, error, "check the address") from error
    except AnnotationError as error:  # of a writer, who knows nothing of the address
        raise AnnotationError(path, error.reason, error.advice) from error


def _unwritten(path, error, advice) -> AnnotationError:
    return AnnotationError(path, f"cannot be written ({error.strerror or error})", advice)


@contextlib.contextmanager
def _removed_unless_whole(path, is_folder):
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            files.remove_tree(path) if is_folder else files.remove(path)
        raise


def _remove(path):
    with contextlib.suppress(OSError):
        path.unlink()


def _check_names(path, class_names, entries, stems):
    """Refuses what would come back as something else."""
    seen = set()
    for name in [annotation.image_id for annotation, _ in entries]:
        key = name.rpartition(".")[0] or name if stems else name
        if key in seen:
            raise AnnotationError(path, f"two images are called {name!r}", "give every image a name of its own")
        if stems and (os.path.isabs(name) or ".." in Path(name).parts):
            raise AnnotationError(path, f"the image {name!r} lies outside its folder", "choose another format")
        seen.add(key)
    for name in [*seen, *class_names]:
        if not name.strip() or not name.isprintable() or name != name.strip():
            raise AnnotationError(path, f"the name {name!r} cannot be written", "rename it, without unprintable signs")
