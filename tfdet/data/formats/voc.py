"""A folder of Pascal VOC XML, one file an image; corners in pixels, taken as they are written.

Described at http://host.robots.ox.ac.uk/pascal/VOC.
"""

import xml.etree.ElementTree as ElementTree

from tfdet.data.annotations import Problem
from tfdet.data.errors import AnnotationError
from tfdet.data.formats.common import IMAGE_SUFFIXES, Source, box_problem, locate, make_listing


def read(path, images, class_names, allow_outside) -> Source:
    """See `formats.read`; a file that is not named in the XML is looked for under the XML's own name."""
    folder = path if any(path.glob("*.xml")) else path / "Annotations"
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise AnnotationError(path, "the folder holds no XML file", "name the Annotations folder of a VOC data set")
    if images is None:
        images = next((p for p in (folder.parent / "JPEGImages", folder.parent / "images") if p.is_dir()), folder)
    parsed = [(file, _parse_xml(file)) for file in files]
    if not class_names:
        roots = [root for _, root in parsed if root is not None]
        class_names = sorted({name for root in roots for name in _object_names(root)} - {""})
    listings, problems = [], []
    for file, root in parsed:
        if root is None:
            problems.append(Problem("bad_entry", str(file), "this is not readable XML"))
            continue
        listing, found = _voc_listing(file, root, images, class_names, allow_outside)
        listings += [listing] if listing else []
        problems += found
    return Source("voc", tuple(class_names), listings, problems)


def _parse_xml(file):
    try:
        return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError, ValueError):
        return None


def _object_names(root):
    return [(item.findtext("name") or "").strip() for item in root.iter("object")]


def _voc_listing(file, root, images, class_names, allow_outside):
    where = str(file)
    name = (root.findtext("filename") or "").strip() or file.stem
    candidates = [images / name, *(images / (file.stem + suffix) for suffix in IMAGE_SUFFIXES)]
    image, problem = locate(where, name, candidates, None if allow_outside else images)
    rows = [_voc_row(item, class_names) for item in root.iter("object")]
    problems = [box_problem(where, i, row) for i, row in enumerate(rows, 1) if len(row) == 2]
    if problem:
        return None, [*problems, problem]
    good = [i for i, row in enumerate(rows, 1) if len(row) == 6]
    difficult = [rows[i - 1][5] for i in good]
    boxes = [rows[i - 1][:5] for i in good]
    stated = {"in_pixels": True, "difficult": difficult, "stated_size": _stated_size(root)}
    return make_listing(where, image, image.name, boxes, good, **stated), problems


def _stated_size(root) -> tuple[int, int] | None:
    """(height, width); many files say 0 x 0 for "not known"."""
    try:
        size = tuple(int(float(root.findtext(f"size/{side}"))) for side in ("height", "width"))
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def _voc_row(item, class_names) -> tuple:
    """Four corners, class and whether the object is difficult; or (kind of problem, text)."""
    name = (item.findtext("name") or "").strip()
    if name not in class_names:
        return "class_out_of_range", f"has the class {name!r}, which is not among the class names"
    texts = [item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        corners = [float(text) for text in texts]
    except (TypeError, ValueError):
        return "not_numeric", f"has the corners {texts}, which are not four numbers"
    return *corners, class_names.index(name), (item.findtext("difficult") or "0").strip() == "1"
