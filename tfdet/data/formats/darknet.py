"""Darknet's folders: one text file an image, a line `class cx cy width height` a box, relative to the image.

The text files lie beside the images, or in a folder `labels` beside a folder `images` with the same folders in it.
Class names are taken from obj.names, another *.names, classes.txt or the `names` of a *.yaml, in the folder or above.
"""

import re

from tfdet.data import files
from tfdet.data.annotations import Problem
from tfdet.data.errors import AnnotationError
from tfdet.data.formats.common import (
    IMAGE_SUFFIXES,
    Source,
    box_problem,
    locate,
    make_listing,
    parse_numbers,
    read_class_names,
    read_text,
    shortest,
)

_NO_LABELS = {"classes", "train", "val", "valid", "test", "trainval", "labels", "names", "readme", "license"}
_ITEM = r"""(?:[^,'"]|'[^']*'|"[^"]*")+"""  # of a list in one line of YAML


def read(path, images, class_names, allow_outside) -> Source:
    """See `formats.read`. An image without a text file is a problem, one with an empty file has no objects."""
    labels = path / "labels" if (path / "labels").is_dir() else path
    images = images or _image_folder(labels)
    class_names = class_names or _find_class_names([labels, *list(labels.absolute().parents)[:2]])
    if not class_names:
        reason = "the text files carry class numbers only, and there is no classes.txt or obj.names"
        raise AnnotationError(path, reason, "pass --classes FILE with one name a line")
    texts = {file.relative_to(labels).with_suffix(""): file for file in sorted(labels.rglob("*.txt"))}
    photos = {}
    for file in sorted(images.rglob("*")):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            photos.setdefault(file.relative_to(images).with_suffix(""), []).append(file)
    listings, problems = [], []
    for (stem, file), text in zip(texts.items(), files.ask(_text_of, texts.values())):
        if stem not in photos and stem.name.lower() in _NO_LABELS:
            continue
        found = photos.get(stem, [images / f"{stem}.jpg"])
        listing, faults = _listing(file, text, found, images, len(class_names), allow_outside)
        listings += [listing] if listing else []
        problems += faults
    problems += [
        Problem("missing_annotation", str(found[0]), f"there is no text file {labels / stem}.txt")
        for stem, found in photos.items()
        if stem not in texts
    ]
    return Source("darknet", tuple(class_names), listings, problems)


def _image_folder(labels):
    """Where the last folder called labels in a path becomes images, if there is such a folder; else the same."""
    whole = labels.absolute()
    last = next((folder for folder in [whole, *whole.parents] if folder.name == "labels"), None)
    folder = last and last.parent / "images" / whole.relative_to(last)
    return folder if folder and folder.is_dir() else labels


def _text_of(file):
    """The text, or why there is none."""
    try:
        return read_text(file)
    except AnnotationError as error:
        return error


def _listing(file, text, found, images, num_classes, allow_outside):
    where, name = str(file), found[0].relative_to(images).as_posix()
    if len(found) > 1:
        reason = f"the images {', '.join(photo.name for photo in found)} have this one text file"
        return None, [Problem("name_clash", where, reason)]
    image, problem = locate(where, name, found, () if allow_outside else (images,))
    if isinstance(text, AnnotationError):
        return None, [Problem("bad_entry", text.where, text.reason)]
    rows = {i: parse_box(line, num_classes) for i, line in enumerate(text.split("\n"), 1) if line.strip()}
    problems = [box_problem(f"{where}:{i}", i, row, image) for i, row in rows.items() if len(row) == 2]
    if problem:
        return None, [*problems, problem]
    good = {i: row for i, row in rows.items() if len(row) == 5}
    return make_listing(where, image, name, list(good.values()), list(good), in_pixels=False, by_line=True), problems


def parse_box(line: str, num_classes: int) -> tuple:
    """`class cx cy width height` -> four corners and class as floats, or (kind of problem, text)."""
    fields = line.split()
    if len(fields) != 5:
        return "wrong_columns", f"({line.strip():.60}) has {len(fields)} numbers, not class cx cy width height"
    values = parse_numbers(fields)
    if values is None or not values[0].is_integer():
        return "not_numeric", f"({line.strip():.60}) is not a whole number and four others"
    label, x, y, width, height = values
    if not 0 <= label < num_classes:
        return (
            "class_out_of_range",
            f"({line.strip():.60}) has class {fields[0]}, the classes are 0 to {num_classes - 1}",
        )
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2, label


# --- class names --------------------------------------------------------------------------------


def _find_class_names(folders):
    for folder in folders:
        for file in [folder / "obj.names", *sorted(folder.glob("*.names")), folder / "classes.txt"]:
            if file.is_file():
                return read_class_names(file)
        for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
            names = parse_yaml_names(read_text(file))
            if names:
                return names
    return None


def parse_yaml_names(text: str) -> tuple[str, ...]:
    """The key `names` of a YAML file, in its usual forms: a list or a dict that counts from 0, in one line or many.

    Anything else gives no names.
    """
    found = re.search(r"^names:[ \t]*(.*(?:\n(?:[ \t-].*|[\]}].*)?)*)", text, re.MULTILINE)
    body = re.sub(r"(^|\s)#.*", "", found[1]).strip() if found else ""
    inline = body[:1] in ("[", "{")
    if inline and body[-1] != {"[": "]", "{": "}"}[body[0]]:
        return ()
    items = re.findall(_ITEM, body[1:-1]) if inline else [line.strip() for line in body.split("\n")]
    items = [item.strip() for item in items if item.strip()]
    if body[:1] != "[" and all(re.match(r"\d+\s*:\s", item) for item in items):
        numbers, items = zip(*(re.split(r"\s*:\s+", item, maxsplit=1) for item in items)) if items else ((), ())
        if [int(number) for number in numbers] != list(range(len(items))):
            return ()
    elif not inline:
        if not all(item.startswith("- ") for item in items):
            return ()
        items = [item[2:].strip() for item in items]
    names = tuple(item[1:-1] if re.fullmatch(r"'[^']*'|\"[^\"]*\"", item) else item for item in items)
    return names if len(set(names)) == len(names) and all(names) else ()


# --- writing ------------------------------------------------------------------------------------


def write(path, class_names, entries):
    """See `formats.save`; text files as the images are called, and classes.txt."""
    for annotation, _ in entries:
        x1, y1, x2, y2 = annotation.boxes.T
        rows = zip(annotation.labels, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        lines = [" ".join([str(label), *(shortest(value, 10) for value in values)]) for label, *values in rows]
        file = path / f"{annotation.image_id.rpartition('.')[0] or annotation.image_id}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (path / "classes.txt").write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
