"""A small good data set in every format, and the ways to damage it: each names what is found, and where."""

import json
import os
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tfdet.data import formats
from tfdet.data.annotations import Annotation
from tfdet.data.convert import convert

NAMES = ("cat", "dog", "bird", "fish")
FILES = {"pickle": "gt.pkl", "lines": "train.txt", "voc": "voc", "coco": "coco.json", "darknet": "darknet",
         "csv": "boxes.csv", "records": "records"}  # fmt: skip


def make_good_set(root: Path):
    """Eight images, 0.jpg to 7.jpg, with two boxes each: classes i % 4 and (i + 1) % 4."""
    (root / "img").mkdir(parents=True)
    rng, entries = np.random.default_rng(0), []
    for i in range(8):
        width, height = 80 + 8 * i, 64
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / "img" / f"{i}.jpg")
        boxes = np.array([[8, 8, 40 + i, 32], [16, 20, 72, 60]]) / [width, height, width, height]
        labels = np.array([i, i + 1]) % 4
        path = root / "img" / f"{i}.jpg"
        annotation = Annotation(str(path), path.name, boxes.astype(np.float32), labels, np.zeros(2, bool))
        entries.append((annotation, (height, width)))
    for name, file in FILES.items():
        if name != "records":
            formats.save(root / file, name, NAMES, entries)
    (root / "classes.txt").write_text("\n".join(NAMES))
    convert({"train": read(root, "lines").listings}, root / "records", "good", NAMES, shards=1)


def read(root, file_format):
    return formats.read(root / FILES[file_format], images=root / "img", class_names=NAMES)


@dataclass(frozen=True)
class Damage:
    """One kind of damage.

    Attributes:
        name: what was done.
        format: of the annotations that are read.
        do: does it to the set in a folder, and returns the place that a problem has to name.
        finds: kind -> how many problems; the place is that of all of the first kind.
        options: of the tool.
    """

    name: str
    format: str
    do: Callable[[Path], str]
    finds: dict[str, int]
    options: tuple[str, ...] = ()


# --- images -------------------------------------------------------------------------------------

IMAGE, LINE = "img/3.jpg", "train.txt:4"  # what is damaged, and where it is mentioned


def image(change):
    """Damage of the bytes of an image."""

    def do(root):
        path = root / IMAGE
        path.write_bytes(change(path.read_bytes()))
        return LINE

    return do


def png(change):
    """The image becomes a PNG by the name of 3.png, its bytes changed."""

    def do(root):
        with Image.open(root / IMAGE) as picture:
            picture.save(root / "img" / "3.png")
        path = root / "img" / "3.png"
        path.write_bytes(change(path.read_bytes()))
        replace(root / "train.txt", "3.jpg", "3.png")
        return LINE

    return do


def flip(data, place):
    return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


def enlarge(data):
    """The header of a PNG says 60,000 x 60,000 pixels."""
    head = b"IHDR" + struct.pack(">II", 60000, 60000) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def remove(root):
    (root / IMAGE).unlink()
    return LINE


def make_folder(root):
    (root / IMAGE).unlink()
    (root / IMAGE).mkdir()
    return LINE


def misname(root):
    with Image.open(root / IMAGE) as picture:
        picture.load()
    picture.save(root / IMAGE, "PNG")
    return LINE


def copy_image(root):
    (root / "img" / "8.jpg").write_bytes((root / IMAGE).read_bytes())
    with open(root / "train.txt", "a") as file:
        file.write("8.jpg 8,8,40,32,0\n")
    return "train.txt:9"


def list_twice(root):
    with open(root / "train.txt", "a") as file:
        file.write("./3.jpg 8,8,40,32,0\n")
    return "train.txt:9"


def list_twice_in_coco(root):
    def change(content):
        content["images"].append({**content["images"][3], "id": 99})

    edit_json(root, change)
    return "coco.json: images[8] '3.jpg'"


def link_outside(root):
    os.replace(root / IMAGE, root / "elsewhere.jpg")
    os.symlink(root / "elsewhere.jpg", root / IMAGE)
    return "gt.pkl: key '3.jpg'"


def name_outside(root):
    os.replace(root / IMAGE, root / "3.jpg")
    edit_pickle(root, lambda content: content.update({"../3.jpg": content.pop("3.jpg")}))
    return "gt.pkl: key '../3.jpg'"


def resize(root):
    with Image.open(root / IMAGE) as picture:
        picture = picture.resize((picture.width * 2, picture.height * 2))
    picture.save(root / IMAGE)
    return "voc/3.xml"


def turn(root):
    with Image.open(root / IMAGE) as picture:
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    picture.save(root / IMAGE)
    return "coco.json: images[3] '3.jpg'"


# --- annotations --------------------------------------------------------------------------------


def replace(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def edit_pickle(root, change):
    content = pickle.loads((root / "gt.pkl").read_bytes())
    change(content)
    (root / "gt.pkl").write_bytes(pickle.dumps(content, 2))


def edit_json(root, change):
    content = json.loads((root / "coco.json").read_text())
    change(content)
    (root / "coco.json").write_text(json.dumps(content))


def line(old, new):
    """Damage of the line of 3.jpg: `3.jpg 8,8,43,32,3 16,20,72,60,0`, in an image of 104 x 64 pixels."""

    def do(root):
        lines = (root / "train.txt").read_text().split("\n")
        assert old in lines[3]
        lines[3] = lines[3].replace(old, new)
        (root / "train.txt").write_text("\n".join(lines))
        return LINE

    return do


def key(change):
    """Damage of the entry of 3.jpg in the pickle; `change` returns the new one."""

    def do(root):
        edit_pickle(root, lambda content: content.update({"3.jpg": change(content["3.jpg"])}))
        return "gt.pkl: key '3.jpg'"

    return do


def cell(row, column, value):
    def change(array):
        array[row, column] = value
        return array

    return key(change)


def xml(old, new):
    """Damage of the XML of 3.jpg; `old` is a regular expression."""

    def do(root):
        path = root / "voc" / "3.xml"
        text, count = re.subn(old, new, path.read_text(), count=1)
        assert count
        path.write_text(text)
        return "voc/3.xml"

    return do


def annotation(field, value, found=6):
    """Damage of the first annotation of 3.jpg in COCO's file; `found`: the one of the two that is reported."""

    def do(root):
        edit_json(root, lambda content: content["annotations"][6].update({field: value}))
        return f"coco.json: images[3] '3.jpg', annotations[{found}]"

    return do


def unknown_image(root):
    annotation("image_id", 99)(root)
    return "coco.json: annotations[6]"


def darknet(new):
    """Another first line in the text file of 3.jpg."""

    def do(root):
        path = root / "darknet" / "3.txt"
        path.write_text("\n".join([new, *path.read_text().split("\n")[1:]]))
        return "darknet/3.txt:1"

    return do


def darknet_without_text(root):
    (root / "darknet" / "3.txt").unlink()
    return IMAGE


def darknet_two_images(root):
    (root / "img" / "3.jpeg").write_bytes((root / IMAGE).read_bytes())
    return "darknet/3.txt"


def row(new):
    """Another first row of 3.jpg in the table: line 8, after the header and two rows each of 0.jpg to 2.jpg."""

    def do(root):
        lines = (root / "boxes.csv").read_text().split("\n")
        lines[7] = new
        (root / "boxes.csv").write_text("\n".join(lines))
        return "boxes.csv:8"

    return do


def shift_classes(root):
    text = (root / "train.txt").read_text()
    (root / "train.txt").write_text(re.sub(r",(\d)(?=\s)", lambda found: f",{int(found[1]) + 1}", text))
    return "train.txt"


def add_background(root):
    shift_classes(root)
    (root / "classes.txt").write_text("\n".join(["background", *NAMES]))
    return "train.txt"


def crowd(root):
    line("16,20,72,60,0", " ".join(f"{i},20,72,60,0" for i in range(8, 28)))(root)
    return LINE


def flip_record(root):
    (path,) = (root / "records").glob("*.tfrecord-*")
    data = path.read_bytes()
    path.write_bytes(flip(data, 600))  # in the first record's image
    return f"records/{path.name}: record 1"


SIZE = ("--image-size", "300x300")
DAMAGES = (
    # images
    Damage("an image is missing", "lines", remove, {"missing_image": 1}),
    Damage("a folder has an image's name", "lines", make_folder, {"missing_image": 1}),
    Damage("an image is empty", "lines", image(lambda data: b""), {"unreadable_image": 1}),
    Damage("an image is a web page", "lines", image(lambda data: b"<html>404</html>"), {"unreadable_image": 1}),
    Damage("a JPEG is cut in half", "lines", image(lambda data: data[: len(data) // 2]), {"truncated_image": 1}),
    Damage("a JPEG lacks its end", "lines", image(lambda data: data[:-2]), {"truncated_image": 1}),
    Damage("a JPEG's header is damaged", "lines", image(lambda data: flip(data, 1)), {"unreadable_image": 1}),
    Damage("a PNG is cut in half", "lines", png(lambda data: data[: len(data) // 2]), {"truncated_image": 1}),
    Damage("a bit of a PNG is wrong", "lines", png(lambda data: flip(data, 3000)), {"unreadable_image": 1}),
    Damage("a PNG claims 60,000 x 60,000 pixels", "lines", png(enlarge), {"too_many_pixels": 1}),
    Damage("a PNG is called .jpg", "lines", misname, {"wrong_extension": 1}),
    Damage("an image is there under two names", "lines", copy_image, {"same_content": 1}),
    Damage("an image is listed twice", "lines", list_twice, {"duplicate_image": 1}),
    Damage("COCO lists an image twice", "coco", list_twice_in_coco, {"duplicate_image": 1}),
    Damage("a link leads out of the image folder", "pickle", link_outside, {"outside_root": 1}),
    Damage("a name leads out of the image folder", "pickle", name_outside, {"outside_root": 1}),
    Damage("an image was resized after it was annotated", "voc", resize, {"size_mismatch": 1}),
    Damage("an image was turned after it was annotated", "coco", turn, {"size_mismatch": 1, "crosses_border": 1}),
    # the form of annotations
    Damage("a box has four numbers", "lines", line(",60,0", ",60"), {"wrong_columns": 1}),
    Damage("a corner is a word", "lines", line("16,20", "left,20"), {"not_numeric": 1}),
    Damage("a class is no whole number", "lines", line(",60,0", ",60,0.5"), {"not_numeric": 1}),
    Damage("an array has a class too few", "pickle", key(lambda array: array[:, :-1]), {"wrong_shape": 1}),
    Damage("an entry is a list", "pickle", key(lambda array: array.tolist()), {"bad_entry": 1}),
    Damage("a class row is soft", "pickle", cell(0, slice(4, 8), (0.25, 0, 0, 0.75)), {"not_one_hot": 1}),
    Damage("a class row has two classes", "pickle", cell(0, 4, 1), {"not_one_hot": 1}),
    Damage("a class row has no class", "pickle", cell(0, 7, 0), {"not_one_hot": 1}),
    Damage("XML ends early", "voc", xml("</annotation>", ""), {"bad_entry": 1}),
    Damage("XML lacks a corner", "voc", xml("<xmax>.*?</xmax>", ""), {"not_numeric": 1}),
    Damage("COCO has a box of three numbers", "coco", annotation("bbox", [1, 2, 3]), {"wrong_columns": 1}),
    Damage("COCO has a box of no image", "coco", unknown_image, {"unknown_image": 1}),
    Damage("Darknet has a line of four numbers", "darknet", darknet("0 0.5 0.5 0.2"), {"wrong_columns": 1}),
    Damage("an image has no text file", "darknet", darknet_without_text, {"missing_annotation": 1}),
    Damage("two images have one text file", "darknet", darknet_two_images, {"name_clash": 1}),
    Damage("a table's row lacks a column", "csv", row("3.jpg,8,8,43,fish"), {"bad_row": 1}),
    Damage("a bit of a record is wrong", "records", flip_record, {"damaged_record": 1}),
    # classes
    Damage("a class is too large", "lines", line(",60,0", ",60,4"), {"class_out_of_range": 1}),
    Damage("a class is negative", "lines", line(",60,0", ",60,-1"), {"class_out_of_range": 1}),
    Damage("XML has an unknown class", "voc", xml("fish", "whale"), {"class_out_of_range": 1}),
    Damage("COCO has an unknown category", "coco", annotation("category_id", 7), {"class_out_of_range": 1}),
    Damage("a table has an unknown class", "csv", row("3.jpg,8,8,43,32,whale"), {"class_out_of_range": 1}),
    Damage("classes count from 1", "lines", shift_classes, {"shifted_classes": 1, "class_out_of_range": 4}),
    Damage("the class names begin with background", "lines", add_background, {"shifted_classes": 1}),
    # boxes
    Damage("a corner is no number", "lines", line("16,20", "nan,20"), {"not_finite": 1}),
    Damage("a corner is infinite", "pickle", cell(1, 2, np.inf), {"not_finite": 1}),
    Damage("left and right are swapped", "lines", line("16,20,72,60", "72,20,16,60"), {"inverted": 1}),
    Damage("top and bottom are swapped", "voc", xml("<ymin>8<", "<ymin>40<"), {"inverted": 1}),
    Damage("a box has no width", "csv", row("3.jpg,8,8,8,32,fish"), {"zero_area": 1}),
    Damage("a box lies outside", "coco", annotation("bbox", [104, 8, 20, 20]), {"outside": 1}),
    Damage("a box leaves the image", "lines", line("72,60,0", "172,60,0"), {"crosses_border": 1}),
    Damage("a box begins before the image", "darknet", darknet("3 0 0.5 0.5 0.5"), {"crosses_border": 1}),
    Damage("a box in pixels is relative", "lines", line("16,20,72,60", "0.1,0.2,0.7,0.9"), {"wrong_unit": 1}),
    Damage("a relative box is in pixels", "pickle", cell(1, slice(0, 4), (16, 20, 72, 60)), {"wrong_unit": 1}),
    Damage("Darknet's box is in pixels", "darknet", darknet("3 26 20 35 24"), {"wrong_unit": 1}),
    Damage("a box is too small for the model", "lines", line("72,60,0", "16.2,60,0"), {"tiny_box": 1}, SIZE),
    Damage("a box is there twice", "lines", line("72,60,0", "72,60,0 16,20,72,60,0"), {"duplicate_box": 1}),
    Damage("a box has two classes", "coco", annotation("bbox", [16, 20, 56, 40], found=7), {"two_classes": 1}),
    Damage("an image has more boxes than the cap", "lines", crowd, {"too_many_boxes": 1}, ("--max-boxes", "20")),
)  # fmt: skip
