"""TFRecord files in the TensorFlow detection schema: tfdet's own, or from elsewhere (Model Garden, object detection
API). Their images stay where they are and are named as `embedded` names them.

Class numbers count from 1. What they mean is taken, in this order, from tfdet's manifest, a label map (*.pbtxt) beside
the records, the texts in the records, or the class names that were passed.
"""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfdet.data import embedded, files, tfrecord
from tfdet.data.address import Address, as_path, below
from tfdet.data.annotations import Problem
from tfdet.data.errors import AnnotationError
from tfdet.data.formats.common import IMAGE_SUFFIXES, Source, box_problem, locate, make_listing, read_text, stated_size
from tfdet.data.publish import MANIFEST

_NO_RECORDS = (*IMAGE_SUFFIXES, ".txt", ".xml", ".json")  # of which a folder may hold very many
_SIDES = tuple(f"image/object/bbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax"))
_LABEL, _TEXT = "image/object/class/label", "image/object/class/text"
_IGNORED = ("image/object/difficult", "image/object/is_crowd", "image/object/group_of")


class _Record(NamedTuple):
    """What one record says; `labels` 1-based or empty, `texts` as many or empty."""

    where: str
    image_id: str
    filename: str
    image_path: str | None
    size: tuple[int, int] | None
    boxes: np.ndarray
    labels: list[int]
    texts: list[str]
    difficult: np.ndarray


def is_record_file(path) -> bool:
    """Whether a file begins as a TFRecord file does, with a length and its checksum."""
    with files.opened(path) as file:
        start = file.read(12)
    return len(start) == 12 and start == tfrecord.frame_header(int.from_bytes(start[:8], "little"))


def find_record_files(folder) -> list[Path]:
    """Those that a manifest names; without one, all that begin as such a file does."""
    manifest = _manifest(folder)
    if manifest:
        return [folder / shard["file"] for split in manifest["splits"].values() for shard in split["shards"]]
    others = sorted(path for path in folder.iterdir() if path.suffix.lower() not in _NO_RECORDS)
    return [path for path in others if path.is_file() and not path.is_dir() and is_record_file(path)]


def read(path, images, class_names, allow_outside) -> Source:
    """See `formats.read`; a folder or one file. With an image folder, the images there are taken by their names."""
    folder = path if path.is_dir() else path.parent
    records, problems = [], []
    for file in find_record_files(path) if path.is_dir() else [path]:
        for item in _records(file):
            (problems if isinstance(item, Problem) else records).append(item)
    class_names, numbers = _classes(path, folder, class_names, records)
    labels = {name: label for label, name in enumerate(class_names)}
    by_text = any(text in labels for record in records for text in record.texts)
    listings = []
    for record in records:
        image, problem = _image(record, images, allow_outside)
        found = record.texts if by_text and record.texts else record.labels
        classes = [(labels if by_text and record.texts else numbers).get(value) for value in found]
        faults = [(i, found[i - 1]) for i, label in enumerate(classes, 1) if label is None]
        problems += [box_problem(record.where, i, _class_fault(value, by_text), image) for i, value in faults]
        if problem:
            problems.append(problem)
            continue
        good = np.array([label is not None for label in classes], bool)
        rows = np.column_stack([record.boxes[good], [label for label in classes if label is not None]])
        size = None if images else record.size  # records may hold smaller copies
        common = {"in_pixels": False, "difficult": record.difficult[good], "stated_size": size}
        listings.append(make_listing(record.where, image, record.image_id, rows, np.flatnonzero(good) + 1, **common))
    return Source("records", class_names, listings, problems)


def _image(record, images, allow_outside):
    """The place of a record's image, or a problem."""
    if record.image_path and not images:
        return record.image_path, None
    name, roots = record.filename or record.image_id, () if allow_outside or not images else (images,)
    if not images:
        return None, Problem("missing_image", record.where, f"the record of {name!r} holds no image; pass --images DIR")
    return locate(record.where, record.image_id, [below(images, record.image_id), below(images, name)], roots)


def _class_fault(value, by_text):
    if by_text:
        return "class_out_of_range", f"has the class {value!r}, which is not among the class names"
    return "class_out_of_range", f"has class {value}, which no class has; in records they count from 1"


# --- classes ------------------------------------------------------------------------------------


def _classes(path, folder, class_names, records):
    """The class names, and class number in the records -> label."""
    mapped = _label_map(folder) or dict(enumerate(_manifest_names(folder), 1))
    mapped = mapped or ({} if class_names else _names_in(path, records))
    class_names = tuple(class_names or dict.fromkeys(mapped[number] for number in sorted(mapped)))
    if not class_names:
        reason = "the records carry class numbers only, and there is no label map beside them"
        raise AnnotationError(path, reason, "pass --classes FILE with one name a line")
    mapped = mapped or dict(enumerate(class_names, 1))
    return class_names, {number: class_names.index(name) for number, name in mapped.items() if name in class_names}


def _manifest(folder) -> dict | None:
    """tfdet's manifest, None where there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(read_text(path))
        shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
        if all(Path(shard["file"]).name == shard["file"] for shard in shards) and all(
            isinstance(name, str) for name in manifest["class_names"]
        ):
            return manifest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise AnnotationError(path, "the manifest is damaged", "convert the data set again")


def _manifest_names(folder) -> list[str]:
    manifest = _manifest(folder)
    return manifest["class_names"] if manifest else []


def _label_map(folder) -> dict[int, str]:
    """Number -> name of the one label map beside the records: `item { id: 1 name: 'cat' }`."""
    maps = sorted(folder.glob("*.pbtxt"))
    if len(maps) != 1:
        return {}
    names = {}
    for item in re.findall(r"item\s*\{([^{}]*)\}", read_text(maps[0])):
        number = re.search(r"\bid\s*:\s*(\d{1,9})\b", item)
        name = re.search(r"\bdisplay_name\s*:\s*(?:'([^']*)'|\"([^\"]*)\")", item)
        name = name or re.search(r"\bname\s*:\s*(?:'([^']*)'|\"([^\"]*)\")", item)
        if number and name:
            names[int(number[1])] = name[1] or name[2] or ""
    return names


def _names_in(path, records) -> dict[int, str]:
    """Number -> name from the records themselves; numbers are given in the order of the names where there are none."""
    names, texts = {}, set()
    for record in records:
        texts.update(record.texts)
        for number, text in zip(record.labels, record.texts):
            if names.setdefault(number, text) != text:
                reason = f"class {number} is called {names[number]!r} and, in {record.where}, {text!r}"
                raise AnnotationError(path, reason, "put the right label map (*.pbtxt) beside the records")
    return names or dict(enumerate(sorted(texts), 1))


# --- records ------------------------------------------------------------------------------------


def find_images(path):
    """The images inside one record file, whatever else it says of them.

    Yields:
        (image id, name of the image as `embedded` has it), or a Problem for a record that is damaged or holds no image.
    """
    for item in _records(as_path(path)):
        if not isinstance(item, Problem) and not item.image_path:
            item = Problem("missing_image", item.where, "the record holds no image")
        yield item if isinstance(item, Problem) else (item.image_id, item.image_path)


def _records(path):
    """What the records of a file say, and a problem for each that is damaged."""
    try:
        data = _bytes_of(path)
    except OSError as error:
        raise AnnotationError(path, f"cannot be read ({error.strerror})", "check the path") from error
    if data[:2].tobytes() == b"\x1f\x8b":
        raise AnnotationError(path, "the records are compressed", "unpack them with gunzip, or another name for it")
    start, number, view = 0, 0, memoryview(data)
    while start < len(data):
        number += 1
        where = f"{path}: record {number}"
        length = int.from_bytes(view[start : start + 8], "little")
        if bytes(view[start : start + 12]) != tfrecord.frame_header(length):
            yield Problem("damaged_record", where, "its length is damaged, so no later record of this file is found")
            return
        try:
            yield _parse(where, path, tfrecord.unframe(view, start, length), data)
        except (ValueError, KeyError, OverflowError, TypeError) as error:
            yield Problem("damaged_record", where, f"it cannot be read ({error})")
        start += length + tfrecord.FRAME_BYTES


def _bytes_of(path) -> np.ndarray:
    """uint8 [N]; of a file on this machine only what is looked at is read."""
    if isinstance(path, Address):
        return np.frombuffer(files.read_bytes(path), np.uint8)
    return np.memmap(path, np.uint8, "r") if os.path.getsize(path) else np.zeros(0, np.uint8)


def _parse(where, path, payload, data) -> _Record | Problem:
    features = tfrecord.parse_example(payload)
    filename, source_id = (_first_text(features, f"image/{key}") for key in ("filename", "source_id"))
    image_id = source_id if source_id.lower().endswith(IMAGE_SUFFIXES) else filename or source_id or f"{where}.jpg"
    corners = [_numbers(features, key) for key in _SIDES]
    labels = _numbers(features, _LABEL).astype(np.int64).tolist()
    texts = [bytes(text).decode("utf-8", "backslashreplace") for text in features.get(_TEXT, ())]
    count = len(corners[0])
    listed = [values for values in (labels, texts) if values]
    if {len(values) for values in [*corners, *listed]} != {count} or (count and not listed):
        found = f"{[len(values) for values in corners]} corners, {len(labels)} labels and {len(texts)} class texts"
        return Problem("bad_entry", where, f"the record has {found}, which should be as many")
    ignored = [_numbers(features, key) > 0 for key in _IGNORED]
    difficult = np.logical_or.reduce([np.zeros(count, bool), *(flags for flags in ignored if len(flags) == count)])
    size = stated_size(*(next(iter(_numbers(features, f"image/{side}")), None) for side in ("height", "width")))
    boxes = np.stack(corners, axis=1).astype(np.float64)
    place = _place(path, features, size, data)
    return _Record(where, image_id, filename, place, size, boxes, labels, texts, difficult)


def _place(path, features, size, data) -> str | None:
    """The name of the image's bytes in the file; a view of them shares the file's memory."""
    encoded = next((view for view in features.get("image/encoded", ()) if len(view)), None)
    if encoded is None:
        return None
    start = np.frombuffer(encoded, np.uint8).ctypes.data - data.ctypes.data
    raw = _first_text(features, "image/format") == "raw"
    return embedded.name(path, start, start + len(encoded), size if raw else None)


def _first_text(features, key) -> str:
    values = features.get(key, ())
    return bytes(values[0]).decode("utf-8", "surrogateescape") if isinstance(values, list) and values else ""


def _numbers(features, key) -> np.ndarray:
    values = features.get(key, ())
    if isinstance(values, list) and values:
        raise ValueError(f"{key} holds bytes instead of numbers")
    return np.asarray(values, None if len(values) else np.float32)
