"""Text lines `path xmin,ymin,xmax,ymax,class ...`, one image a line, corners in pixels.

The form that keras-yolo3 trains on; class names are in a separate file.
"""

import re

from tfdet.data.address import below
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
)

_WORD = re.compile(r"\S+")


def read(path, images, class_names, allow_outside) -> Source:
    """See `formats.read`; a path is looked for in the image folder, then beside the file."""
    roots = [root for root in (images, path.parent) if root]
    if not class_names:
        raise AnnotationError(path, "lines carry class numbers only", "pass --classes FILE with one name a line")
    listings, problems = [], []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        name, words = split_line(line)
        image, problem = locate(where, name, [below(root, name) for root in roots], () if allow_outside else roots)
        boxes = [parse_box(word, len(class_names)) for word in words]
        problems += [box_problem(where, i, box, image) for i, box in enumerate(boxes, 1) if len(box) == 2]
        if problem:
            problems.append(problem)
            continue
        good = [i for i, box in enumerate(boxes, 1) if len(box) == 5]
        listings.append(make_listing(where, image, name, [boxes[i - 1] for i in good], good, in_pixels=True))
    return Source("lines", tuple(class_names), listings, problems)


def split_line(line: str) -> tuple[str, list[str]]:
    """The path and the boxes of a line.

    A path may hold spaces and commas: it ends with the last word that has the suffix of an image file; if no
    word has, it ends before the words with a comma that close the line.
    """
    words = list(_WORD.finditer(line))
    ends = [i for i, word in enumerate(words) if word.group().lower().endswith(IMAGE_SUFFIXES)]
    last = ends[-1] if ends else len(words) - 1
    while not ends and last > 0 and "," in words[last].group():
        last -= 1
    return line[words[0].start() : words[last].end()], [word.group() for word in words[last + 1 :]]


def parse_box(word: str, num_classes: int) -> tuple:
    """`xmin,ymin,xmax,ymax,class` -> five floats, or (kind of problem, text) where it is none."""
    fields = word.split(",")
    if len(fields) != 5:
        return "wrong_columns", f"({word}) has {len(fields)} numbers, not 5"
    values = parse_numbers(fields)
    if values is None:
        return "not_numeric", f"({word}) is not made of numbers"
    label = values[4]
    if not label.is_integer():
        return "not_numeric", f"({word}) has the class {fields[4]}, which is no whole number"
    if not 0 <= label < num_classes:
        return "class_out_of_range", f"({word}) has class {fields[4]}, the classes are 0 to {num_classes - 1}"
    return values


def write(path, _class_names, entries):
    """See `formats.save`."""
    texts = []
    for annotation, (height, width) in entries:
        corners = annotation.boxes * [width, height, width, height]
        words = [",".join([*map(shortest, box), str(label)]) for box, label in zip(corners, annotation.labels)]
        texts.append(" ".join([annotation.image_id, *words]))
        if split_line(texts[-1]) != (annotation.image_id, words):
            reason = f"the image name {annotation.image_id!r} cannot be told from the boxes of a line"
            raise AnnotationError(path, reason, "rename the image, or choose another format")
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
