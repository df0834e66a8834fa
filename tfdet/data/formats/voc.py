"""A folder of Pascal VOC XML, one file an image; corners in pixels, taken as they are written.

Described at http://host.robots.ox.ac.uk/pascal/VOC.
"""

import xml.etree.ElementTree as ElementTree
from pathlib import PurePosixPath
from typing import NamedTuple

from tfdet.data import files
from tfdet.data.address import below
from tfdet.data.annotations import Problem
from tfdet.data.errors import AnnotationError
from tfdet.data.formats.common import (
    IMAGE_SUFFIXES,
    Source,
    box_problem,
    locate,
    make_listing,
    parse_numbers,
    shortest,
    stated_size,
)

_SIDES = ("xmin", "ymin", "xmax", "ymax")


class _Content(NamedTuple):
    """What one XML file says; `objects`: (class name, four texts, whether it is difficult)."""

    filename: str
    size: tuple[int, int] | None
    objects: list[tuple]


def read(path, images, class_names, allow_outside) -> Source:
    """See `formats.read`; a file that is not named in the XML is looked for under the XML's own name."""
    folder = path if any(path.glob("*.xml")) else path / "Annotations"
    pages = sorted(folder.glob("*.xml"))
    if not pages:
        raise AnnotationError(path, "the folder holds no XML file", "name the Annotations folder of a VOC data set")
    if images is None:
        images = next((p for p in (folder.parent / "JPEGImages", folder.parent / "images") if p.is_dir()), folder)
    contents = files.ask(_parse_xml, pages)
    if not class_names:
        class_names = sorted({item[0] for content in contents if content for item in content.objects} - {""})
    labels = {name: label for label, name in enumerate(class_names)}
    listings, problems = [], []
    for file, content in zip(pages, contents):
        if content is None:
            problems.append(Problem("bad_entry", str(file), "this is not readable XML"))
            continue
        listing, found = _voc_listing(file, content, images, labels, allow_outside)
        listings += [listing] if listing else []
        problems += found
    return Source("voc", tuple(class_names), listings, problems)


def _parse_xml(file) -> _Content | None:
    try:
        root = ElementTree.fromstring(files.read_bytes(file))
    except (ElementTree.ParseError, OSError, ValueError, LookupError):
        return None
    size = stated_size(root.findtext("size/height"), root.findtext("size/width"))
    return _Content(_text(root, "filename"), size, [_object(item) for item in root.iter("object")])


def _text(element, name) -> str:
    return (element.findtext(name) or "").strip()


def _object(item) -> tuple:
    return _text(item, "name"), [item.findtext(f"bndbox/{side}") for side in _SIDES], _text(item, "difficult") == "1"


def _voc_listing(file, content, images, labels, allow_outside):
    where, name = str(file), content.filename or file.stem
    named = below(images, name)
    candidates = [named, *(images / (file.stem + suffix) for suffix in IMAGE_SUFFIXES)]
    image, problem = locate(where, name, candidates, () if allow_outside else (images,))
    rows = [_voc_row(*item, labels) for item in content.objects]
    problems = [box_problem(where, i, row, image) for i, row in enumerate(rows, 1) if len(row) == 2]
    if problem:
        return None, [*problems, problem]
    image_id = name if image == named else image.name
    good = [i for i, row in enumerate(rows, 1) if len(row) == 6]
    boxes, difficult = [rows[i - 1][:5] for i in good], [rows[i - 1][5] for i in good]
    common = {"in_pixels": True, "difficult": difficult, "stated_size": content.size}
    return make_listing(where, image, image_id, boxes, good, **common), problems


def _voc_row(name, texts, difficult, labels) -> tuple:
    """Four corners, class and whether the object is difficult; or (kind of problem, text)."""
    if name not in labels:
        return "class_out_of_range", f"has the class {name!r}, which is not among the class names"
    corners = None if None in texts else parse_numbers(texts)
    if corners is None:
        return "not_numeric", f"has the corners {texts}, which are not four numbers"
    return *corners, labels[name], difficult


def write(path, class_names, entries):
    """See `formats.save`; one XML file an image, called as it, or numbered where images in folders share a name."""
    entries = list(entries)
    names = [PurePosixPath(annotation.image_id).stem for annotation, _ in entries]
    if len({name.lower() for name in names}) < len(names):
        names = [f"{number:06d}" for number in range(1, len(names) + 1)]
    for name, (annotation, size) in zip(names, entries):
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = annotation.image_id
        _add(root, "size", height=size[0], width=size[1], depth=3)
        for box, label, difficult in zip(annotation.boxes, annotation.labels, annotation.difficult):
            item = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(item, "name").text = class_names[label]
            ElementTree.SubElement(item, "difficult").text = str(int(difficult))
            _add(item, "bndbox", **dict(zip(_SIDES, map(shortest, box * (size[::-1] * 2)))))
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(path / f"{name}.xml", encoding="utf-8")


def _add(parent, name, **values):
    element = ElementTree.SubElement(parent, name)
    for key, value in values.items():
        ElementTree.SubElement(element, key).text = str(value)
