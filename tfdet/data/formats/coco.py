"""COCO's JSON: one file with lists of images, annotations and categories; boxes are x, y, width, height in pixels.

Described at https://cocodataset.org/#format-data. Category ids may have holes: classes are numbered in the order of
the ids. A crowd (`iscrowd`, or `ignore` as some converters write it) is a difficult object here.
"""

import json
from typing import NamedTuple

from tfdet.data import files
from tfdet.data.address import below
from tfdet.data.annotations import Problem
from tfdet.data.errors import AnnotationError
from tfdet.data.formats.common import Source, box_problem, locate, make_listing, shortest, stated_size

_ADVICE = "name a COCO file with lists of images, annotations and categories"


class _Object(NamedTuple):
    """What is kept of an annotation while the file is read; outlines would take many times the memory."""

    image_id: object
    category_id: object
    bbox: object
    crowd: object


def read(path, images, class_names, allow_outside) -> Source:
    """See `formats.read`; file names are looked for in the image folder, by default beside the file."""
    content = _load(path)
    names = _category_names(path, content["categories"])
    class_names = tuple(class_names or dict.fromkeys(names.values()))
    position = {name: label for label, name in enumerate(class_names)}
    labels = {number: position.get(name, name) for number, name in names.items()}
    objects, problems = _by_image(path, content)
    listings, root = [], images or path.parent
    for place, entry in enumerate(content["images"]):
        where = f"{path}: images[{place}] {_name(entry)!r}"
        if not _is_image(entry):
            problems.append(Problem("bad_entry", where, "an image needs an id and a file_name"))
            continue
        name = entry["file_name"]
        image, problem = locate(where, name, [below(root, name)], () if allow_outside else (root,))
        rows = {i: _row(item, labels) for i, item in objects.get(entry["id"], ())}
        problems += [box_problem(where, i, row, image, "annotations") for i, row in rows.items() if len(row) == 2]
        if problem:
            problems.append(problem)
            continue
        good = [i for i, row in rows.items() if len(row) == 6]
        boxes, difficult = [rows[i][:5] for i in good], [rows[i][5] for i in good]
        size = stated_size(entry.get("height"), entry.get("width"))
        common = {"in_pixels": True, "difficult": difficult, "stated_size": size, "list_name": "annotations"}
        listings.append(make_listing(where, image, name, boxes, good, **common))
    return Source("coco", class_names, listings, problems)


# --- the file -----------------------------------------------------------------------------------


def _load(path) -> dict:
    try:
        content = json.loads(files.read_bytes(path).decode("utf-8-sig"), object_hook=_reduce)
    except OSError as error:
        raise AnnotationError(path, f"cannot be read ({error.strerror})", "check the path") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(path, f"this is not whole JSON ({error})", "save the file again") from error
    if isinstance(content, list):
        raise AnnotationError(path, "this JSON is a list, perhaps of detections", _ADVICE)
    if not isinstance(content, dict):
        raise AnnotationError(path, "this JSON is no object", _ADVICE)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise AnnotationError(path, f"this JSON has no list {key!r}", _ADVICE)
    return content


def _reduce(found: dict):
    if "bbox" in found and "image_id" in found:
        crowd = found.get("iscrowd") or found.get("ignore")
        return _Object(found["image_id"], found.get("category_id"), found["bbox"], crowd)
    found.pop("segmentation", None)
    return found


def _category_names(path, categories) -> dict:
    """Category id -> name, in the order of the ids."""
    names = {}
    for entry in categories:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not _is_id(entry.get("id")):
            raise AnnotationError(path, f"the category {entry!r:.80} has no id and name", "repair the categories")
        if entry["id"] in names:
            raise AnnotationError(path, f"the category id {entry['id']} is there twice", "name each category once")
        names[entry["id"]] = entry["name"]
    return dict(sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _is_id(value) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_image(entry) -> bool:
    return isinstance(entry, dict) and _is_id(entry.get("id")) and isinstance(entry.get("file_name"), str)


def _name(entry):
    return (entry.get("file_name") or entry.get("id")) if isinstance(entry, dict) else entry


def _by_image(path, content):
    """Image id -> its annotations with their places in the list, and a problem for each annotation of no image."""
    objects, problems = {entry["id"]: [] for entry in content["images"] if _is_image(entry)}, []
    for place, item in enumerate(content["annotations"]):
        if not isinstance(item, _Object):
            item = _Object(item.get("image_id") if isinstance(item, dict) else None, None, None, False)
        if _is_id(item.image_id) and item.image_id in objects:
            objects[item.image_id].append((place, item))
        else:
            reason = f"the annotation belongs to the image id {item.image_id!r:.80}, which no image has"
            problems.append(Problem("unknown_image", f"{path}: annotations[{place}]", reason))
    return objects, problems


def _row(item, labels) -> tuple:
    """Four corners, class and whether it is a crowd; or (kind of problem, text)."""
    if not isinstance(item.bbox, list) or len(item.bbox) != 4:
        return "wrong_columns", f"has the bbox {item.bbox!r:.80}, not a list of x, y, width, height"
    if not {type(value) for value in item.bbox} <= {int, float}:
        return "not_numeric", f"has the bbox {item.bbox!r:.80}, which is not made of numbers"
    label = labels.get(item.category_id) if _is_id(item.category_id) else None
    if label is None:
        return "class_out_of_range", f"has the category id {item.category_id!r:.80}, which no category has"
    if isinstance(label, str):
        return "class_out_of_range", f"has the class {label!r}, which is not among the class names"
    try:
        x, y, width, height = map(float, item.bbox)
    except OverflowError:
        return "not_numeric", "has a bbox with a number beyond all limits"
    return x, y, x + width, y + height, label, bool(item.crowd)


# --- writing ------------------------------------------------------------------------------------


def write(path, class_names, entries):
    """See `formats.save`."""
    images, annotations = [], []
    for number, (annotation, (height, width)) in enumerate(entries, 1):
        images.append({"id": number, "file_name": annotation.image_id, "width": width, "height": height})
        corners = annotation.boxes * [width, height, width, height]
        for box, label, difficult in zip(corners, annotation.labels, annotation.difficult):
            x1, y1, x2, y2 = (float(shortest(value)) for value in box)
            bbox = [x1, y1, float(shortest(x2 - x1, 12)), float(shortest(y2 - y1, 12))]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": int(label) + 1, "bbox": bbox,
                 "area": bbox[2] * bbox[3], "iscrowd": int(difficult)}
            )  # fmt: skip
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names, 1)]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
