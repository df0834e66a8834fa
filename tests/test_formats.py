"""COCO, Darknet, tables and foreign records in; every form out; round trips; nothing but explained errors."""

import contextlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tfdet.data import embedded, formats, tfrecord
from tfdet.data.annotations import KINDS, Annotation, Problem, read_annotations
from tfdet.data.checks import Checks, check_image
from tfdet.data.convert import convert
from tfdet.data.errors import AnnotationError, DataError
from tfdet.data.formats import darknet, recorded
from tfdet.data.images import ImageOptions, displayed_size, read_image
from tfdet.data.rewrite import rewrite

NAMES = ("cat", "red dog", "bird")


@pytest.fixture
def folder(tmp_path):
    """Two images of 40 x 20 pixels (width x height) in an empty folder."""
    for name in ("one.jpg", "two.jpg"):
        Image.new("RGB", (40, 20)).save(tmp_path / name)
    return tmp_path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def kinds(problems):
    return [problem.kind for problem in problems]


# --- COCO ---------------------------------------------------------------------------------------

COCO = {
    "images": [
        {"id": 7, "file_name": "two.jpg", "width": 40, "height": 20},
        {"id": 3, "file_name": "one.jpg", "width": 0, "height": 0},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 18, "bbox": [4, 2, 16, 8], "iscrowd": 0, "segmentation": [[1, 2, 3]]},
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [0, 5.5, 40, 14.5], "iscrowd": 1,
         "segmentation": {"counts": [1, 2], "size": [20, 40]}},
        {"id": 3, "image_id": 3, "category_id": 90, "bbox": [1, 1, 2, 2], "ignore": 1},
    ],
    "categories": [{"id": 90, "name": "bird"}, {"id": 2, "name": "cat"}, {"id": 18, "name": "red dog"}],
}  # fmt: skip


def read_coco(folder, content, **options):
    return formats.read(write(folder / "x.json", json.dumps(content)), **options)


def test_coco_with_holes_in_its_ids_and_crowds(folder):
    source = read_coco(folder, COCO)
    assert (source.format, source.class_names, source.problems) == ("coco", NAMES, [])
    two, one = source.listings
    np.testing.assert_array_equal(one.boxes, [[4, 2, 20, 10], [0, 5.5, 40, 20], [1, 1, 3, 3]])  # x + width, y + height
    np.testing.assert_array_equal(one.labels, [1, 0, 2])
    np.testing.assert_array_equal(one.difficult, [False, True, True])
    assert (one.where, one.in_pixels, one.stated_size) == (f"{folder / 'x.json'}: images[1] 'one.jpg'", True, None)
    assert two.boxes.shape == (0, 4)
    assert two.stated_size == (20, 40)


def test_coco_classes_in_another_order(folder):
    source = read_coco(folder, COCO, class_names=("bird", "cat"))
    assert kinds(source.problems) == ["class_out_of_range"]
    assert source.problems[0].reason == "the box has the class 'red dog', which is not among the class names"
    assert source.problems[0].where == f"{folder / 'x.json'}: images[1] 'one.jpg', annotations[0]"
    np.testing.assert_array_equal(source.listings[1].labels, [1, 0])
    np.testing.assert_array_equal(source.listings[1].numbers, [1, 2])
    assert source.listings[1].where_is(1) == f"{folder / 'x.json'}: images[1] 'one.jpg', annotations[2]"


@pytest.mark.parametrize(
    "change, kind",
    [
        ({"bbox": [1, 2, 3]}, "wrong_columns"),
        ({"bbox": None}, "wrong_columns"),
        ({"bbox": [1, 2, "3", 4]}, "not_numeric"),
        ({"bbox": [1, 2, True, 4]}, "not_numeric"),
        ({"bbox": [1, 2, 10**400, 4]}, "not_numeric"),
        ({"category_id": 3}, "class_out_of_range"),
        ({"category_id": None}, "class_out_of_range"),
        ({"category_id": [2]}, "class_out_of_range"),
        ({"image_id": 99}, "unknown_image"),
        ({"image_id": {}}, "unknown_image"),
    ],
)
def test_coco_problems(folder, change, kind):
    content = {**COCO, "annotations": [{**COCO["annotations"][0], **change}]}
    source = read_coco(folder, content)
    assert kinds(source.problems) == [kind]
    assert len(source.listings) == 2


def test_coco_boxes_are_told_by_their_place_in_the_file(folder):
    """Whether the box is thrown out by what is written, by its image, or for a suspicion: never by a second number."""
    one, two = dict(COCO["annotations"][0], category_id=4), dict(COCO["annotations"][1], bbox=[9, 9, 0, 5])
    twins = [dict(COCO["annotations"][2], image_id=image) for image in (7, 3, 3)]
    source = read_coco(folder, {**COCO, "annotations": [one, twins[0], two, *twins[1:]]})
    where, image = f"{folder / 'x.json'}: images[1] 'one.jpg', annotations", str(folder / "one.jpg")
    wrong_class = "the box has the category id 4, which no category has"
    assert source.problems == [Problem("class_out_of_range", f"{where}[0]", wrong_class, (0,), image)]
    _, problems, _ = check_image(source.listings[1], read_image(image), Checks())
    assert problems == [
        Problem("zero_area", f"{where}[2]", "the box (9, 9, 9, 14; 40 x 20 image) has no area", (2,)),
        Problem("duplicate_box", f"{where}[4]", "the box is annotations[3] again", (4,)),
    ]


def test_coco_images_that_cannot_be_used(folder):
    images = [
        {"id": 1, "file_name": "nope.jpg"},
        {"id": 2, "file_name": "../one.jpg"},
        {"id": 3},
        "x",
        {"file_name": "a"},
    ]
    inner = folder / "inner"
    inner.mkdir()
    source = read_coco(inner, {**COCO, "images": images, "annotations": [{"no": "box"}]})
    assert kinds(source.problems) == [
        "unknown_image", "missing_image", "outside_root", "bad_entry", "bad_entry", "bad_entry",
    ]  # fmt: skip
    source = read_coco(inner, {**COCO, "images": images[1:2], "annotations": []}, allow_outside=True)
    assert [listing.image_id for listing in source.listings] == ["../one.jpg"]


@pytest.mark.parametrize(
    "content, text",
    [
        ("{", "not whole JSON"),
        ("{" + '"a":[' * 100_000, "not whole JSON"),
        ('{"a": 1}', "no list 'images'"),
        (json.dumps({**COCO, "categories": {}}), "no list 'categories'"),
        (json.dumps({**COCO, "categories": [{"id": 1}]}), "has no id and name"),
        (json.dumps({**COCO, "categories": COCO["categories"] * 2}), "the category id 90 is there twice"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]', "JSON list"),
        (b'{"images": "\xff"}', "not whole JSON"),
    ],
)
def test_json_that_is_no_coco_file(folder, content, text):
    with pytest.raises(AnnotationError, match=text):
        formats.read(write(folder / "x.txt", content))


# --- Darknet ------------------------------------------------------------------------------------


FILES_OF_NAMES = {"classes.txt": "cat\nred dog\nbird\n", "data.yaml": "nc: 3\nnames: [cat, red dog, bird]\n"}


@pytest.mark.parametrize("labels, images", [("", ""), ("labels", "images"), ("labels/train", "images/train")])
@pytest.mark.parametrize("named", list(FILES_OF_NAMES))
def test_darknet_folders(folder, labels, images, named):
    root = folder / "set"
    write(root / labels / "sub" / "one.txt", "\ufeff1 0.3 0.3 0.4 0.4\r\n\r\n0 .5 .5 1 1")
    write(root / labels / "two.txt", "")
    (root / images / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "one.jpg").rename(root / images / "sub" / "one.jpg")
    (folder / "two.jpg").rename(root / images / "two.jpg")
    write(root / named, FILES_OF_NAMES[named])
    for path in {root, root / labels}:
        source = formats.read(path)
        assert (source.format, source.class_names, source.problems) == ("darknet", NAMES, [])
        by_name = {os.path.basename(listing.image_id): listing for listing in source.listings}
        one, two = by_name["one.jpg"], by_name["two.jpg"]
        np.testing.assert_allclose(one.boxes, [[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1]], atol=1e-12)  # 0.3 -+ 0.4 / 2
        np.testing.assert_array_equal(one.labels, [1, 0])
        assert [one.where_is(i)[-10:] for i in (0, 1)] == ["/one.txt:1", "/one.txt:3"]
        assert not one.in_pixels
        assert two.boxes.shape == (0, 4)


def test_darknet_problems_name_file_and_line(folder):
    write(
        folder / "one.txt", "0 .5 .5 .2 .2\n0 .5 .5 .2\n\nx .5 .5 .2 .2\n3 .5 .5 .2 .2\n0 .5 .5 .2 .2 .9\n0 1_0 0 1 1\n"
    )
    write(folder / "three.txt", "0 .5 .5 .2 .2\n")
    write(folder / "README.txt", "Not about an image.")
    Image.new("RGB", (4, 4)).save(folder / "four.png")
    source = formats.read(folder, class_names=NAMES)
    assert [(problem.kind, os.path.basename(problem.where)) for problem in source.problems] == [
        ("wrong_columns", "one.txt:2"),
        ("not_numeric", "one.txt:4"),
        ("class_out_of_range", "one.txt:5"),
        ("wrong_columns", "one.txt:6"),
        ("not_numeric", "one.txt:7"),
        ("missing_image", "three.txt"),
        ("missing_annotation", "four.png"),
        ("missing_annotation", "two.jpg"),
    ]
    write(folder / "four.txt", b"\xff")
    Image.new("RGB", (4, 4)).save(folder / "one.png")
    source = formats.read(folder, class_names=NAMES)
    assert {problem.where: problem.kind for problem in source.problems}[f"{folder / 'one.txt'}"] == "name_clash"
    assert {problem.where: problem.kind for problem in source.problems}[f"{folder / 'four.txt'}:1"] == "bad_entry"


def test_darknet_boxes_that_are_wrong_are_found_at_their_line(folder):
    write(folder / "one.txt", "\n0 .5 .5 0 .2\n0 20 10 8 8\n")
    write(folder / "two.txt", "")
    _, problems = read_annotations(formats.read(folder, class_names=NAMES).listings)
    assert [(problem.kind, problem.where) for problem in problems] == [
        ("zero_area", f"{folder / 'one.txt'}:2"),
        ("wrong_unit", f"{folder / 'one.txt'}:3"),
    ]


def test_darknet_without_class_names(folder):
    write(folder / "one.txt", "0 .5 .5 .2 .2\n")
    with pytest.raises(AnnotationError, match="pass --classes"):
        formats.read(folder)


@pytest.mark.parametrize(
    "text, names",
    [
        ("names: ['cat', \"red dog\", bird]", NAMES),
        ("path: x\nnames: [cat,\n  red dog, bird\n]\nnc: 3", NAMES),
        ("names:\n- cat # small\n- red dog\n- 'bird'\nnc: 3", NAMES),
        ("nc: 3\nnames:\n  - cat\n  - red dog\n  - bird\n", NAMES),
        ("names:\n  0: cat\n  1: red dog\n\n  2: bird\n", NAMES),
        ("names: {0: cat, 1: red dog, 2: bird}", NAMES),
        ("names: ['a, b', c]", ("a, b", "c")),
        ("names:\n  0: cat\n  2: bird\n", ()),
        ("names: [cat, cat]", ()),
        ("names: &anchor [cat]", ()),
        ("names: [cat", ()),
        ("names:", ()),
        ("nc: 3", ()),
    ],
)
def test_names_of_a_yaml_file(text, names):
    assert darknet.parse_yaml_names(text) == names


# --- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "one.jpg,4,2,20,10,red dog\ntwo.jpg,,,,,\none.jpg,0,5.5,40,20,cat",
        "path,xmin,ymin,xmax,ymax,class\none.jpg,4,2,20,10,red dog\none.jpg,0,5.5,40,20,cat\ntwo.jpg,,,,,\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\r\none.jpg,40,20,red dog,4,2,20,10\r\n\r\n"
        "one.jpg,40,20,cat,0,5.5,40,20\r\ntwo.jpg,40,20,,,,,\r\n",
        "\ufeffImage; X1; Y1; X2; Y2; Label\n'one.jpg'; 4; 2; 20; 10; red dog\n"
        "one.jpg; 0; 5.5; 40; 20; cat\ntwo.jpg;;;;;",
        'one.jpg\t4\t2\t20\t10\t"red dog"\none.jpg\t0\t5.5\t40\t20\tcat\ntwo.jpg\t\t\t\t\t\n',
    ],
)
def test_tables_in_every_dress(folder, text):
    source = formats.read(write(folder / "x.csv", text.replace("'", '"')))
    assert (source.format, source.class_names, source.problems) == ("csv", ("cat", "red dog"), [])
    one, two = sorted(source.listings, key=lambda listing: listing.image_id)
    np.testing.assert_array_equal(one.boxes, [[4, 2, 20, 10], [0, 5.5, 40, 20]])
    np.testing.assert_array_equal(one.labels, [1, 0])
    assert two.boxes.shape == (0, 4)
    assert one.stated_size == ((20, 40) if "width" in text else None)


def test_tables_with_commas_in_paths(folder):
    (folder / "one.jpg").rename(folder / "a, b.jpg")
    for path in ('"a, b.jpg"', "a, b.jpg"):
        source = formats.read(write(folder / "x.csv", f"{path},4,2,20,10,cat\n"))
        assert [listing.image_id for listing in source.listings] == ["a, b.jpg"]


def test_a_table_may_begin_with_rows_of_commas(folder):
    assert formats.read(write(folder / "x.csv", ",,,,,,\none.jpg,4,2,20,10,cat\n")).class_names == ("cat",)
    with pytest.raises(AnnotationError, match="it holds no image"):
        formats.read(write(folder / "x.csv", ",,,,,,"), file_format="csv")


def test_tables_with_class_numbers_need_names(folder):
    path = write(folder / "x.csv", "one.jpg,4,2,20,10,1\n")
    with pytest.raises(AnnotationError, match="carries class numbers only; pass --classes"):
        formats.read(path)
    assert formats.read(path, class_names=NAMES).listings[0].labels == [1]


def test_problems_of_tables_name_the_line(folder):
    text = "one.jpg,4,2,20,10,cat\none.jpg,4,2,20\none.jpg,4,x,20,10,cat\n\none.jpg,9,2,3,10,cat\none.jpg,1,2,3,4,cow\n"
    path = write(folder / "x.csv", text + "nope.jpg,1,2,3,4,cat\n,1,2,3,4,cat\n../two.jpg,1,2,3,4,cat\n")
    source = formats.read(path, class_names=NAMES)
    _, problems = read_annotations(source.listings)
    assert [(problem.kind, problem.where) for problem in source.problems + problems] == [
        ("bad_row", f"{path}:2"),
        ("bad_row", f"{path}:8"),
        ("not_numeric", f"{path}:3"),
        ("class_out_of_range", f"{path}:6"),
        ("missing_image", f"{path}:7"),
        ("outside_root", f"{path}:9"),
        ("inverted", f"{path}:5"),
    ]


# --- records from elsewhere ---------------------------------------------------------------------


def tf_example(**features):
    """A record as TensorFlow's own protocol buffers write it; keys without their image/."""
    made = {}
    for key, values in features.items():
        name = "image/" + key.replace("__", "/")
        if isinstance(values[0] if values else b"", bytes):
            made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        elif isinstance(values[0], float):
            made[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        else:
            made[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def foreign(folder, **changes):
    """One image with two boxes as the object detection API stores it."""
    corners = {"xmin": [0.1, 0.0], "ymin": [0.1, 0.25], "xmax": [0.5, 1.0], "ymax": [0.5, 1.0]}
    features = {
        "encoded": [(folder / "one.jpg").read_bytes()], "format": [b"jpeg"], "filename": [b"one.jpg"],
        "source_id": [b"139"], "height": [20], "width": [40], "key__sha256": [b"x"],
        **{f"object__bbox__{side}": values for side, values in corners.items()},
        "object__class__label": [18, 2], "object__class__text": [b"red dog", b"cat"], "object__is_crowd": [0, 1],
    }  # fmt: skip
    return tf_example(**{key: value for key, value in {**features, **changes}.items() if value is not None})


def write_records(path, *payloads):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in payloads:
            writer.write(payload)
    return path


LABEL_MAP = "item {\n  id: 2\n  name: 'cat'\n}\nitem {\n  name: '/m/1' id: 18 display_name: \"red dog\"\n}\n"


@pytest.mark.parametrize("label_map", [None, LABEL_MAP])
@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("names", [None, ("red dog", "cat", "cow")])
def test_foreign_records(folder, label_map, text, names):
    changes = {} if text else {"object__class__text": None}
    path = write_records(folder / "coco_val.record-00000-of-00001", foreign(folder, **changes))
    if label_map:
        write(folder / "map.pbtxt", label_map)
    if not label_map and not text:
        if names is None:
            with pytest.raises(AnnotationError, match="pass --classes"):
                formats.read(path)
        else:  # they count from 1 then, and 18 is no class
            source = formats.read(path, class_names=names)
            assert kinds(source.problems) == ["class_out_of_range"]
            assert source.listings[0].labels == [1]
        return
    for place in (path, folder, folder / "coco_val.record-*"):
        source = formats.read(place, class_names=names)
        assert (source.format, source.class_names, source.problems) == ("records", names or ("cat", "red dog"), [])
        (listing,) = source.listings
        assert [source.class_names[label] for label in listing.labels] == ["red dog", "cat"]
        np.testing.assert_array_equal(
            listing.boxes.astype(np.float32), np.float32([[0.1, 0.1, 0.5, 0.5], [0, 0.25, 1, 1]])
        )
        np.testing.assert_array_equal(listing.difficult, [False, True])
        assert (listing.image_id, listing.where) == ("one.jpg", f"{path}: record 1")
        assert (listing.in_pixels, listing.stated_size) == (False, (20, 40))
        assert embedded.read_bytes(listing.image_path) == (folder / "one.jpg").read_bytes()
        assert read_image(listing.image_path).encoded == (folder / "one.jpg").read_bytes()
        assert displayed_size(listing.image_path) == (20, 40)
        assert embedded.file_size(listing.image_path) == (folder / "one.jpg").stat().st_size


def test_labels_from_0_are_found(folder):
    payload = foreign(folder, object__class__text=None, object__class__label=[0, 1])
    source = formats.read(write_records(folder / "x.tfrecord", payload), class_names=NAMES)
    assert kinds(source.problems) == ["class_out_of_range"]
    assert "box 1 has class 0, which no class has; in records they count from 1" in source.problems[0].reason


def test_texts_that_contradict_the_numbers(folder):
    other = foreign(folder, object__class__text=[b"cat", b"red dog"])
    with pytest.raises(AnnotationError, match=r"class 18 is called 'red dog' and, in .*record 2, 'cat'"):
        formats.read(write_records(folder / "x.tfrecord", foreign(folder), other))


def test_records_that_name_their_images(folder):
    path = write_records(folder / "x.tfrecord", foreign(folder, encoded=None))
    source = formats.read(path)
    assert kinds(source.problems) == ["missing_image"]
    source = formats.read(path, images=folder)
    assert [listing.image_path for listing in source.listings] == [str(folder / "one.jpg")]
    source = formats.read(write_records(path, foreign(folder, filename=[b"../one.jpg"])), images=folder / "inner")
    assert kinds(source.problems) == ["outside_root"]


@pytest.mark.parametrize(
    "changes, kind",
    [
        ({"object__bbox__xmin": [0.1]}, "bad_entry"),
        ({"object__class__label": [1], "object__class__text": None}, "bad_entry"),
        ({"object__class__label": None, "object__class__text": None}, "bad_entry"),
        ({"object__bbox__xmin": [b"a", b"b"]}, "damaged_record"),
    ],
)
def test_bad_records_are_problems(folder, changes, kind):
    source = formats.read(write_records(folder / "x.tfrecord", foreign(folder, **changes)), class_names=NAMES)
    assert kinds(source.problems) == [kind]


def test_flipped_bytes_are_found(folder):
    payload = foreign(folder)
    whole = write_records(folder / "x.tfrecord", payload, payload, payload).read_bytes()
    size = len(whole) // 3
    for at, records in ((size + 50, (2,)), (size + 3, (2,)), (0, None), (len(whole) - 2, (3,))):
        data = bytearray(whole)
        data[at] ^= 1
        path = write(folder / "x.tfrecord", bytes(data))
        source = formats.read(path, file_format="records", class_names=("cat", "red dog"))
        assert kinds(source.problems) == ["damaged_record"]
        assert source.problems[0].where == f"{path}: record {records[0] if records else 1}"
    source = formats.read(write(folder / "x.tfrecord", whole[:-9]))
    assert "the file ends before the record does" in source.problems[0].reason


def test_compressed_records_are_explained(folder):
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(folder / "x.tfrecord"), options) as writer:
        writer.write(b"x")
    with pytest.raises(AnnotationError, match="compressed; unpack"):
        formats.read(folder / "x.tfrecord")


@pytest.mark.parametrize("store", ["jpeg", "raw"])
def test_tfdets_own_records_come_back(folder, store):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "two.png")
    boxes = {"images": [{"id": 1, "file_name": "two.png"}], "categories": COCO["categories"]}
    items = [{**item, "image_id": 1} for item in COCO["annotations"]]
    source = read_coco(folder, {**boxes, "annotations": items})
    expected, _ = read_annotations(source.listings)
    splits = {"train": source.listings}
    convert(splits, folder / "out", "x", source.class_names, options=ImageOptions(store=store))
    found = formats.read(folder / "out")
    assert (found.format, found.class_names, found.problems) == ("records", NAMES, [])
    (annotation,), problems = read_annotations(found.listings)
    assert problems == []
    for name in ("boxes", "labels", "difficult"):
        np.testing.assert_array_equal(getattr(annotation, name), getattr(expected[0], name))
    again = read_image(found.listings[0].image_path, ImageOptions(store=store))
    assert (again.height, again.width) == (20, 40)
    if store == "raw":
        np.testing.assert_array_equal(np.frombuffer(again.encoded, np.uint8).reshape(20, 40, 3), pixels)
    convert({"train": found.listings}, folder / "again", "x", found.class_names, options=ImageOptions(store=store))
    shards = [next((folder / name).glob("*tfrecord*")).read_bytes() for name in ("out", "again")]
    assert shards[0] == shards[1]  # records of records are the same records
    with_photos = formats.read(folder / "out", images=folder)
    assert [listing.image_path for listing in with_photos.listings] == [str(folder / "two.png")]


# --- out, and back in ---------------------------------------------------------------------------

IMAGE_NAMES = st.lists(
    st.text("ab, .é浣-", max_size=8).map(str.strip), unique=True, min_size=1, max_size=3
)  # fmt: skip


@st.composite
def annotation_sets(draw):
    """Images of 8 to 600 pixels a side with boxes of at least a pixel, as (name, (height, width), boxes, labels)."""
    made = []
    for number, stem in enumerate(draw(IMAGE_NAMES)):
        size = draw(st.tuples(st.integers(8, 600), st.integers(8, 600)))
        count = draw(st.integers(0, 4))
        values = draw(st.lists(st.floats(0, 1, width=32), min_size=4 * count, max_size=4 * count))
        low, share = np.float64(values).reshape(2, count, 2)
        least = 1.01 / np.array(size[::-1])
        low = low * (1 - least)
        boxes = np.concatenate([low, np.minimum(low + least + share * (1 - low - least), 1)], axis=1)
        labels = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
        difficult = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        made.append((f"{stem}{number}.png", size, boxes, labels, difficult))
    return made


@pytest.mark.parametrize("first", formats.WRITABLE)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=annotation_sets(), second=st.sampled_from([*formats.WRITABLE, "records"]))
def test_round_trips_within_a_millionth_of_the_side(tmp_path_factory, first, made, second):
    folder = tmp_path_factory.mktemp("x")
    entries = []
    for name, size, boxes, labels, difficult in made:
        Image.new("L", size[::-1]).save(folder / name)
        arrays = boxes.astype(np.float32), np.array(labels, np.int32), np.array(difficult, bool)
        entries.append((Annotation(str(folder / name), name, *arrays), size))
    expected = {annotation.image_id: annotation for annotation, _ in entries}
    formats.save(folder / "first", first, NAMES, entries)
    source = formats.read(folder / "first", images=folder, class_names=NAMES, file_format=first)
    compare(source, expected, first in ("coco", "voc"))
    if second == "records":
        convert({"train": source.listings}, folder / "second", "x", NAMES)
    else:
        assert rewrite(source, folder / "second", second).written
    assert formats.recognise(folder / "second") == second
    images = folder if second != "records" else None
    again = formats.read(folder / "second", images=images, class_names=NAMES)
    compare(again, expected, first in ("coco", "voc") and second in ("coco", "voc", "records"))


def compare(source, expected, keeps_difficult):
    assert source.problems == []
    found, problems = read_annotations(source.listings)
    assert problems == []
    assert {annotation.image_id for annotation in found} == expected.keys()
    for annotation in found:
        other = expected[annotation.image_id]
        np.testing.assert_allclose(annotation.boxes, other.boxes, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(annotation.labels, other.labels)
        if keeps_difficult:
            np.testing.assert_array_equal(annotation.difficult, other.difficult)


def test_a_written_coco_file_is_one_for_pycocotools(folder, capsys):
    from pycocotools.coco import COCO as PyCoco

    rewrite(read_coco(folder, COCO), folder / "y.json", "coco")
    coco = PyCoco(str(folder / "y.json"))
    capsys.readouterr()
    assert [coco.cats[i]["name"] for i in (1, 2, 3)] == list(NAMES)
    assert [item["bbox"] for item in coco.anns.values()] == [[4, 2, 16, 8], [0, 5.5, 40, 14.5], [1, 1, 2, 2]]
    assert [item["iscrowd"] for item in coco.anns.values()] == [0, 1, 1]
    assert coco.anns[1]["area"] == 128


def test_a_written_pickle_is_one_for_numpy_1_and_2(folder):
    rewrite(read_coco(folder, COCO), folder / "y.pkl", "pickle")
    data = (folder / "y.pkl").read_bytes()
    assert b"numpy._core" not in data
    array = pickle.loads(data)["one.jpg"]
    np.testing.assert_allclose(array[0], [0.1, 0.1, 0.5, 0.5, 0, 1, 0], atol=1e-7)  # 4 / 40, 2 / 20, 20 / 40, 10 / 20


def test_problems_stop_a_rewrite(folder):
    source = read_coco(folder, {**COCO, "images": [*COCO["images"], {"id": 1, "file_name": "nope.jpg"}]})
    done = rewrite(source, folder / "y.txt", "lines")
    assert (done.written, kinds(done.problems)) == (False, ["missing_image"])
    assert not (folder / "y.txt").exists()


def one_entry(name):
    return [(Annotation(name, name, np.float32([[0, 0, 1, 1]]), np.int32([0]), np.array([False])), (20, 40))]


@pytest.mark.parametrize(
    "image_ids, files",
    [
        (("a.jpg", "sub/b.png"), ["a.xml", "b.xml"]),
        (("x/a.jpg", "y/A.jpg", "c.jpg"), ["000001.xml", "000002.xml", "000003.xml"]),
    ],
)
def test_voc_files_are_called_as_their_images(tmp_path, image_ids, files):
    entries = [entry for name in image_ids for entry in one_entry(name)]
    formats.save(tmp_path / "voc", "voc", NAMES, entries)
    assert sorted(path.name for path in (tmp_path / "voc").iterdir()) == files


@pytest.mark.parametrize(
    "file_format, entries, names, text",
    [
        ("lines", one_entry("a.jpg b"), NAMES, "cannot be told from the boxes"),
        ("coco", one_entry("a\nb.jpg"), NAMES, "cannot be written"),
        ("coco", one_entry("\ud800.jpg"), NAMES, "cannot be written"),
        ("csv", one_entry(" a.jpg"), NAMES, "cannot be written"),
        ("voc", one_entry("a.jpg"), ("a\0",), "cannot be written"),
        ("pickle", one_entry("a.jpg") * 2, NAMES, "two images are called 'a.jpg'"),
        ("darknet", one_entry("a.jpg") + one_entry("a.png"), NAMES, "two images are called 'a.png'"),
        ("darknet", one_entry("../a.jpg"), NAMES, "lies outside"),
    ],
)
def test_what_cannot_come_back_is_not_written(tmp_path, file_format, entries, names, text):
    with pytest.raises(AnnotationError, match=text):
        formats.save(tmp_path / "x", file_format, names, entries)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    write(tmp_path / "x", "mine")
    with pytest.raises(AnnotationError, match="there already; choose another name"):
        formats.save(tmp_path / "x", "coco", NAMES, one_entry("a.jpg"))
    with pytest.raises(AnnotationError, match="cannot be written"):
        formats.save(tmp_path / "x" / "y", "coco", NAMES, one_entry("a.jpg"))
    assert (tmp_path / "x").read_text() == "mine"


# --- recognising, safety ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.json", "{}", "coco"),
        ("a.txt", '\ufeff {"images": []}', "coco"),
        ("a.csv", "one.jpg,1,2,3,4,cat", "csv"),
        ("a.txt", "one.jpg,1,2,3,4,cat\n", "csv"),
        ("a.txt", "filename,width,height,class,xmin,ymin,xmax,ymax\n", "csv"),
        ("a.txt", "my photo.jpg,1,2,3,4,cat\r\n", "csv"),
        ("a.txt", "one.jpg 1,2,3,4,0", "lines"),
        ("a.txt", "one.jpg 0,3.495,1,2,0 1,2,3,4,1", "lines"),  # no file called "one.jpg 0,3.495"
        ("a.txt", "one.jpg,two.jpg 1,2,3,4,0", "lines"),
        ("a.txt", "one.jpg 1,2,3,4,0 1,2,3,4,0", "lines"),
        ("a", tfrecord.frame(b"x"), "records"),
        ("a", tfrecord.frame(b"x" * 0x280), "records"),  # its first bytes are those of a pickle, too
        ("a", pickle.dumps({}), "pickle"),
    ],
)
def test_formats_are_recognised(tmp_path, name, content, expected):
    assert formats.recognise(write(tmp_path / name, content)) == expected


def test_paths_in_lines_stay_in_their_folders(folder):
    inner, images = folder / "inner", folder / "images"
    inner.mkdir()
    images.mkdir()
    Image.new("RGB", (4, 4)).save(images / "in.jpg")
    (inner / "link.jpg").symlink_to(folder / "one.jpg")
    path = write(inner / "x.txt", f"../one.jpg\n{folder}/two.jpg\nlink.jpg\nin.jpg\n{images}/../images/in.jpg\n")
    source = formats.read(path, images=images, class_names=NAMES)
    assert kinds(source.problems) == ["outside_root"] * 3 + ["duplicate_image"]
    assert "--allow-outside" in str(source.problems[0])
    source = formats.read(path, images=images, class_names=NAMES, allow_outside=True)
    assert kinds(source.problems) == ["duplicate_image"]
    assert len(source.listings) == 4


def coco_naming(name) -> str:
    images = [{"id": 1, "file_name": name}]
    return json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]})


NAMING = {  # file -> its content, which names one image
    "x.json": coco_naming,
    "x.csv": "{},1,1,4,4,cat".format,
    "x.txt": "{} 1,1,4,4,0".format,
    "x.pkl": lambda name: pickle.dumps({name: np.zeros((0, 7))}),
    "v/x.xml": "<annotation><filename>{}</filename></annotation>".format,
}


@pytest.mark.parametrize("file", list(NAMING))
def test_no_format_leaves_the_image_folder(folder, file):
    (folder / "in").mkdir()
    (folder / "in" / "link.jpg").symlink_to(folder / "one.jpg")
    for name in ("../one.jpg", f"{folder}/one.jpg", "link.jpg", "/etc/passwd"):
        path = write(folder / "in" / file, NAMING[file](name))
        path = path.parent if file.startswith("v/") else path
        source = formats.read(path, images=folder / "in", class_names=NAMES)
        assert kinds(source.problems) == ["outside_root"], name
        assert source.listings == []


# --- anything -----------------------------------------------------------------------------------

ANYTHING = st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass"))
PIECES = [b"one.jpg", b"two.jpg", b" ", b",", b"\n", b"\r\n", b"1", b"-2.5", b"1e999", b"nan", b'"', b"'", b"\t", b";",
          b"cat", b"path,xmin,ymin,xmax,ymax,class\n", b"<annotation>", b"</annotation>", b"<object><name>cat</name>",
          b"</object>", b"<filename>", b'{"images":[', b'"annotations":[', b'"categories":[', b"]", b"}", b"{",
          b'"bbox":[1,2,3,4]', b'"id":1', b'"image_id":1', b'"name":"cat"', b'"file_name":"one.jpg"',
          b"\xef\xbb\xbf", b"\0", b"\xff", b"\x80\x04", b"names: [", b"item { id: 1 name: 'cat' }", b"&a;"]  # fmt: skip
TEXTS = ANYTHING | st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)
PLACES = {
    "pickle": ["x.pkl"], "lines": ["x.txt"], "voc": ["v/x.xml"], "coco": ["x.json"], "csv": ["x.csv"],
    "darknet": ["d/one.txt", "d/data.yaml", "d/obj.names"],
    "records": ["r/x.tfrecord", "r/x.pbtxt", "r/manifest.json"],
}  # fmt: skip


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    """A folder with two images in every place where a format looks for them."""
    folder = tmp_path_factory.mktemp("anything")
    for inner in ("", "v", "d", "r"):
        (folder / inner).mkdir(exist_ok=True)
        Image.new("RGB", (40, 20)).save(folder / inner / "one.jpg")
    return folder


def check_reading(path, **options):
    """Reads, and makes sure of what comes out: listings and problems, or an explained error."""
    with contextlib.suppress(DataError):
        source = formats.read(path, **options)
        assert source.format in formats.FORMATS
        for problem in source.problems:
            assert problem.kind in KINDS
            assert str(problem)
        for listing in source.listings:
            assert listing.boxes.shape == (len(listing.labels), 4)
            assert set(listing.labels) <= set(range(len(source.class_names)))
            assert len(listing.difficult) == len(listing.numbers) == len(listing.labels)
            assert os.path.isfile(listing.image_path) or embedded.is_embedded(listing.image_path)


@pytest.mark.parametrize("file_format", list(PLACES))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_give_listings_or_an_explained_error(playground, file_format, data):
    for place in PLACES[file_format]:
        write(playground / place, data.draw(TEXTS))
    first = playground / PLACES[file_format][0]
    path = first.parent if file_format in ("voc", "darknet") else first
    names = data.draw(st.sampled_from([None, NAMES]))
    check_reading(path, class_names=names, file_format=file_format)
    check_reading(first, class_names=names)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_value_in_a_coco_file(playground, data):
    value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([1, "one.jpg"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    )

    def entries(good):
        keys = st.sampled_from(list(good))
        changed = st.tuples(keys, value).map(lambda change: {**good, change[0]: change[1]})
        return st.lists(changed | st.just(good) | value, max_size=4) | value

    content = {
        "images": data.draw(entries({"id": 1, "file_name": "one.jpg", "width": 40, "height": 20})),
        "annotations": data.draw(entries({"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0})),
        "categories": data.draw(entries({"id": 1, "name": "cat"})),
    }
    write(playground / "x.json", json.dumps(content))
    check_reading(playground / "x.json")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_a_record_gives_a_problem(playground, data):
    """Also where the checksums are right, as of a record that was written by a faulty program."""
    (playground / "q").mkdir(exist_ok=True)
    payload = bytearray(foreign(playground))
    for at in data.draw(st.lists(st.integers(0, len(payload) - 1), max_size=6)):
        payload[at] = data.draw(st.integers(0, 255))
    payload = bytes(payload[: data.draw(st.integers(0, len(payload)) | st.just(len(payload)))])
    write(playground / "q" / "x.tfrecord", tfrecord.frame(payload) + tfrecord.frame(foreign(playground)))
    check_reading(playground / "q", class_names=data.draw(st.sampled_from([None, NAMES])))


def test_an_empty_file_of_any_format(tmp_path):
    for file_format in ("pickle", "lines", "coco", "csv", "records"):
        with pytest.raises(AnnotationError):
            formats.read(write(tmp_path / "x", b""), class_names=NAMES, file_format=file_format)


def test_entities_in_xml_do_not_fill_the_memory(folder):
    """Ten levels of ten references each would be ten gigabytes."""
    entities = '<!ENTITY e0 "0123456789">'
    entities += "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))
    write(folder / "x.xml", f"<!DOCTYPE a [{entities}]><annotation><filename>&e9;</filename></annotation>")
    assert kinds(formats.read(folder, class_names=NAMES).problems) == ["bad_entry"]


def test_files_of_a_folder_are_told_from_records(tmp_path):
    write(tmp_path / "a.tfrecord", tfrecord.frame(b"x"))
    write(tmp_path / "notes.md", "text")
    assert recorded.find_record_files(tmp_path) == [Path(tmp_path / "a.tfrecord")]
