"""Tables with a row a box: `path,xmin,ymin,xmax,ymax,class`, or columns that a header names; corners in pixels.

So are the tables of keras-retinanet (without header, `path,,,,,` for an image without objects) and of the TensorFlow
object detection API (filename,width,height,class,xmin,ymin,xmax,ymax).
"""

import csv
import re
import sys

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
    read_text,
    shortest,
    stated_size,
)

_COLUMNS = ("path", "xmin", "ymin", "xmax", "ymax", "class")
_ROW = re.compile(rf".+?({'|'.join(map(re.escape, IMAGE_SUFFIXES))})\"?(,[-+.\deE]*){{4}},[^,]*", re.IGNORECASE)
_SIZE = ("height", "width")
_OTHER_NAMES = {
    "path": ("path", "filename", "file_name", "file", "filepath", "file_path", "image", "image_path", "image_id",
             "imageid", "img", "img_path", "image_name"),
    "xmin": ("xmin", "x_min", "x1", "left"), "ymin": ("ymin", "y_min", "y1", "top"),
    "xmax": ("xmax", "x_max", "x2", "right"), "ymax": ("ymax", "y_max", "y2", "bottom"),
    "class": ("class", "class_name", "classname", "label", "label_name", "labelname", "name", "category"),
    "height": ("height", "image_height"), "width": ("width", "image_width"),
}  # fmt: skip


def read(path, images, class_names, allow_outside) -> Source:
    """See `formats.read`; paths are looked for in the image folder, by default beside the file."""
    problems, by_image, sizes = [], {}, {}
    for line, name, texts, size in _rows(path):
        if name:
            by_image.setdefault(name, []).append((line, *_corners(texts), sys.intern(texts[4])))
            sizes.setdefault(name, size)
        else:
            reason = f"the row ({','.join(texts):.60}) has {len(texts)} columns and no path"
            problems.append(Problem("bad_row", f"{path}:{line}", reason))
    class_names = tuple(class_names or _names_found(path, by_image))
    labels = {str(label): label for label in range(len(class_names))}
    labels |= {name: label for label, name in enumerate(class_names)}
    listings, root = [], images or path.parent
    for name, rows in by_image.items():
        image, problem = locate(f"{path}:{rows[0][0]}", name, [below(root, name)], () if allow_outside else (root,))
        boxes = {line: _box(corners, fault, word, labels) for line, corners, fault, word in rows if corners or fault}
        problems += [box_problem(f"{path}:{line}", line, box, image) for line, box in boxes.items() if len(box) == 2]
        if problem:
            problems.append(problem)
            continue
        good = {line: box for line, box in boxes.items() if len(box) == 5}
        common = {"in_pixels": True, "by_line": True, "stated_size": sizes[name]}
        listings.append(make_listing(str(path), image, name, list(good.values()), list(good), **common))
    return Source("csv", class_names, listings, problems)


def begins_table(line: str) -> bool:
    """Whether a line is a header, or a row without one."""
    return _header(re.split(r"[,;\t]", line))[1] > 0 or _ROW.fullmatch(line) is not None


def _rows(path):
    """(line, path, [xmin, ymin, xmax, ymax, class], size) as texts; without a path, where a row has other columns."""
    lines = read_text(path).split("\n")
    first = next((line for line in lines if line.strip()), "")
    reader = csv.reader(lines, delimiter=max(",;\t", key=first.count))
    columns = width = None
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if columns is None:
                columns, width = _header(fields)
                if width:
                    continue
            if not width and len(fields) > len(_COLUMNS):  # a path with commas: the others have none
                fields[:-5] = [",".join(fields[:-5])]
            fields = [field.strip() for field in fields]
            if len(fields) == (width or len(_COLUMNS)):
                size = stated_size(*(fields[columns[side]] for side in _SIZE)) if columns.keys() >= set(_SIZE) else None
                texts = [fields[columns[name]] for name in _COLUMNS]
                yield reader.line_num, texts[0], texts[1:], size
            else:
                yield reader.line_num, "", fields, None
    except csv.Error as error:
        raise AnnotationError(f"{path}:{reader.line_num}", f"this is no table ({error})", "check its quotes") from error


def _header(fields):
    """Column name -> place, and the number of columns; 0 of them where the first row is no header."""
    words = [field.strip().lower() for field in fields]
    places = {
        name: next(words.index(other) for other in others if other in words)
        for name, others in _OTHER_NAMES.items()
        if not set(others).isdisjoint(words)
    }
    if places.keys() >= set(_COLUMNS):
        return places, len(fields)
    return {name: i for i, name in enumerate(_COLUMNS)}, 0


def _names_found(path, by_image) -> list[str]:
    """The class names of all rows in the order of the alphabet."""
    found = {word for rows in by_image.values() for *_, word in rows} - {""}
    if found and all(name.lstrip("-").isdecimal() for name in found):
        raise AnnotationError(path, "the table carries class numbers only", "pass --classes FILE with one name a line")
    return sorted(found)


def _corners(texts) -> tuple:
    """Four numbers and None, or None and what is wrong; twice None where the whole row is empty."""
    if not any(texts):
        return None, None
    corners = parse_numbers(texts[:4])
    return corners, None if corners else f"has the corners ({','.join(texts[:4]):.60}), which are not four numbers"


def _box(corners, fault, name, labels) -> tuple:
    """Four corners and class, or (kind of problem, text)."""
    if fault:
        return "not_numeric", fault
    if name not in labels:
        return "class_out_of_range", f"has the class {name!r:.60}, which is not among the class names"
    return *corners, labels[name]


def write(path, class_names, entries):
    """See `formats.save`; with a header."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        for annotation, (height, width) in entries:
            for box, label in zip(annotation.boxes * [width, height, width, height], annotation.labels):
                table.writerow([annotation.image_id, *map(shortest, box), class_names[label]])
            if not len(annotation.boxes):
                table.writerow([annotation.image_id, "", "", "", "", ""])
