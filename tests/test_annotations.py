"""Annotation files in: safe unpickling, the three formats, the check of boxes, class names, splits."""

import collections
import io
import os
import pickle
import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfdet.data import annotations, formats, unpickle
from tfdet.data.annotations import KINDS, split_listings, to_annotation
from tfdet.data.errors import AnnotationError
from tfdet.data.formats import common, lines

NAMES = ("a", "b", "c")
ROWS = np.array([[0.1, 0.2, 0.5, 0.6, 1, 0, 0], [0.3, 0.1, 0.9, 0.4, 0, 0, 1]])


@pytest.fixture
def folder(tmp_path):
    """Two images of 40 x 20 pixels (width x height) in an empty folder."""
    for name in ("one.jpg", "two.jpg"):
        Image.new("RGB", (40, 20)).save(tmp_path / name)
    return tmp_path


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def kinds(problems):
    return [problem.kind for problem in problems]


# --- unpickling ---------------------------------------------------------------------------------


def python2_pickle(array, key=b"one.jpg") -> bytes:
    """What Python 2 wrote with protocol 2 for {key: array}: byte strings everywhere, no encode call."""

    def string(data):
        return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data

    rows, columns = array.shape
    dtype = b"cnumpy\ndtype\n" + string(b"f8") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + string(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    state = b"(K\x01K" + bytes([rows]) + b"K" + bytes([columns]) + b"\x86" + dtype + b"\x89" + string(array.tobytes())
    return b"\x80\x02}" + string(key) + empty + state + b"tbs."


def unpickled(data: bytes):
    return unpickle.load(io.BytesIO(data))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", "<f2", "<i8", "|u1", "|b1"])
def test_arrays_of_every_protocol_come_back(protocol, dtype):
    array = ROWS.astype(dtype)
    arrays = {"whole": array, "fortran": np.asfortranarray(array), "empty": array[:0], "slice": array[:, :5]}
    content = unpickled(pickle.dumps(arrays, protocol))
    for name, expected in arrays.items():
        built = content[name].build()
        np.testing.assert_array_equal(built, expected)
        assert built.dtype == expected.dtype


def test_arrays_of_python_2_come_back():
    content = unpickled(python2_pickle(ROWS, "ünï.jpg".encode()))
    np.testing.assert_array_equal(content["ünï.jpg".encode()].build(), ROWS)


@pytest.mark.parametrize("old, new", [(b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")])
@pytest.mark.parametrize("protocol", [0, 2])
def test_both_names_of_numpys_core_are_read(old, new, protocol):
    data = pickle.dumps({"x": ROWS}, protocol).replace(old, new)
    np.testing.assert_array_equal(unpickled(data)["x"].build(), ROWS)


def test_numpy_scalars_become_python_values():
    content = unpickled(pickle.dumps({np.str_("one.jpg"): np.float64(1.5), "n": np.int32(-3)}, 2))
    assert content == {"one.jpg": 1.5, "n": -3}


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_a_function_is_refused_before_it_acts(protocol, tmp_path):
    victim = tmp_path / "victim"
    for call in (Call(os.mkdir, str(victim)), Call(eval, f"__import__('os').mkdir({str(victim)!r})")):
        with pytest.raises(unpickle.UnpickleError, match=r"asks for \w+\.(mkdir|eval), .*nothing was run"):
            unpickled(pickle.dumps({"one.jpg": ROWS, "x": call}, protocol))
    assert not victim.exists()


@pytest.mark.parametrize(
    "data, name",
    [
        (b"cos\nsystem\n(S'touch x'\ntR.", "os.system"),
        (b"(S'touch x'\nios\nsystem\n.", "os.system"),  # INST
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x07touch x\x85R.", "os.system"),  # STACK_GLOBAL
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"\x80\x04\x8c\x05numpy\x8c\x09dtype.mro\x93.", "numpy.dtype.mro"),
        (b"cnumpy.testing._private.utils\nrunstring\n.", "numpy.testing._private.utils.runstring"),
        (b"ccollections\nOrderedDict\n(tR.", "collections.OrderedDict"),
    ],
)
def test_any_other_name_is_refused_by_name(data, name):
    with pytest.raises(unpickle.UnpickleError, match=f"asks for {name}, which arrays do not need"):
        unpickled(data)


@pytest.mark.parametrize(
    "data",
    [
        b"cbuiltins\nbytes\n(I1000000000000\ntR.",  # a terabyte of zeros
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
        b"cnumpy\nndarray\n(I5\ntR.",  # an array that nothing filled
        b"cnumpy\ndtype\n}S'x'\nI1\nsb.",  # a new attribute for a stand-in
        b"cnumpy.core.multiarray\n_reconstruct\n}S'_call'\nI1\nsb.",
        b"cnumpy.core.multiarray\n_reconstruct\nN}S'_call'\nI1\ns\x86b.",
        b"\x82\x01.",  # a name from the extension registry
        b"Pabc\n.",  # a persistent id
        b"Nr\xff\xff\xff\x7fcos\nsystem\n.",  # a memory place that would take 32 GB
    ],
)
def test_admitted_names_do_nothing_but_collect_arrays(data):
    with pytest.raises(unpickle.UnpickleError):
        unpickled(data)


def test_arrays_of_objects_are_refused_without_building_them():
    content = unpickled(pickle.dumps({"x": np.array([{}, None], object), "y": np.array(["s"])}, 2))
    for value in content.values():
        with pytest.raises(unpickle.UnpickleError, match=r"instead of numbers|without its type or its bytes"):
            value.build()


def test_a_forged_array_is_refused():
    for shape in ((3, 7), (-1, 7), (10**20,), ("x",), None, (2.5,)):
        array = unpickle.StoredArray(shape, unpickle._Dtype("f8"), False, b"\0" * 8)
        with pytest.raises(unpickle.UnpickleError):
            array.build()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_pickles_raise_nothing_else(data):
    whole = pickle.dumps({"one.jpg": ROWS}, data.draw(st.integers(0, 5)))
    damaged = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=5)):
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        content = unpickled(bytes(damaged))
        for value in content.values() if isinstance(content, dict) else ():
            if isinstance(value, unpickle.StoredArray):
                value.build()
    except unpickle.UnpickleError:
        pass


# --- the pickled dict ---------------------------------------------------------------------------


def read_pickle(folder, content, names=NAMES, **options):
    path = write(folder / "gt.pkl", pickle.dumps(content, 2))
    return formats.read(path, class_names=names, **options)


def test_pickle_entries_come_sorted_with_their_classes(folder):
    source = read_pickle(folder, {"two.jpg": ROWS[:0], "one.jpg": ROWS})
    assert [listing.image_id for listing in source.listings] == ["one.jpg", "two.jpg"]
    assert source.problems == []
    one, two = source.listings
    np.testing.assert_array_equal(one.boxes, ROWS[:, :4])
    np.testing.assert_array_equal(one.labels, [0, 2])
    assert two.boxes.shape == (0, 4)
    assert not one.in_pixels
    assert not one.difficult.any()


def test_pickle_of_python_2_is_read(folder):
    path = write(folder / "gt.pkl", python2_pickle(ROWS))
    assert formats.read(path, class_names=NAMES).listings[0].image_id == "one.jpg"


def test_pickle_without_class_names_counts_its_columns(folder):
    source = read_pickle(folder, {"one.jpg": ROWS, "two.jpg": ROWS[:, :6]}, names=None)
    assert source.class_names == ("class_0", "class_1", "class_2")  # of two equally common widths the larger
    assert kinds(source.problems) == ["wrong_shape"]


@pytest.mark.parametrize(
    "value, kind, text",
    [
        (ROWS.tolist(), "bad_entry", "type list, not a numpy array"),
        (None, "bad_entry", "type NoneType"),
        (np.array([["a"] * 7]), "bad_entry", "instead of numbers"),
        (ROWS.astype(complex), "bad_entry", "instead of numbers"),
        (ROWS[:, :6], "wrong_shape", r"shape \(2, 6\); 4 corners and 3 classes make \[N, 7\]"),
        (ROWS[0], "wrong_shape", r"shape \(7,\)"),
        (np.array([[0.1, 0.1, 0.2, 0.2, 1, 1, 0]]), "not_one_hot", "box 1 has 2 classes"),
        (np.array([[0.1, 0.1, 0.2, 0.2, 0, 0, 0]]), "not_one_hot", "box 1 has no classes"),
        (np.array([ROWS[0], [0.1, 0.1, 0.2, 0.2, 0.5, 0.5, 0]]), "not_one_hot", "box 2 .*other values than 0 and 1"),
        (np.array([[0.1, 0.1, 0.2, 0.2, np.nan, 1, 0]]), "not_one_hot", "other values"),
    ],
)
def test_bad_pickle_entries_are_problems(folder, value, kind, text):
    source = read_pickle(folder, {"one.jpg": value})
    assert kinds(source.problems) == [kind]
    assert source.problems[0].where == f"{folder / 'gt.pkl'}: key 'one.jpg'"
    assert re.search(text, source.problems[0].reason)


def test_numbers_of_boxes_survive_dropped_ones(folder):
    rows = np.array([[0.1, 0.1, 0.2, 0.2, 1, 1, 0], [0.5, 0.1, 0.4, 0.2, 1, 0, 0]])
    source = read_pickle(folder, {"one.jpg": rows})
    _, problems, _ = to_annotation(source.listings[0], (20, 40))
    assert "box 1 has 2 classes" in source.problems[0].reason
    assert "box 2 (0.5, 0.1, 0.4, 0.2; 40 x 20 image) ends before it starts" in problems[0].reason


def test_pickle_keys_stay_in_the_image_folder(folder):
    inner = folder / "inner"
    inner.mkdir()
    (inner / "link.jpg").symlink_to(folder / "one.jpg")
    (inner / "own.jpg").symlink_to(inner / "real.jpg")
    Image.new("RGB", (4, 4)).save(inner / "real.jpg")
    content = dict.fromkeys(["../one.jpg", str(folder / "two.jpg"), "link.jpg", "own.jpg", "a\0b"], ROWS)
    source = read_pickle(folder, content, images=inner)
    assert sorted(kinds(source.problems)) == ["outside_root"] * 4
    assert [listing.image_id for listing in source.listings] == ["own.jpg"]
    source = read_pickle(folder, content, images=inner, allow_outside=True)
    assert kinds(source.problems) == ["missing_image"]  # the name with a zero byte
    assert len(source.listings) == 4


def test_two_names_of_one_image_are_duplicates(folder):
    source = read_pickle(folder, {"one.jpg": ROWS, "./one.jpg": ROWS})
    assert kinds(source.problems) == ["duplicate_image"]
    assert "with the same boxes" in source.problems[0].reason


@pytest.mark.parametrize(
    "content, text",
    [
        (pickle.dumps([1]), "holds a list, not a dict"),
        (b"", "empty or ends before"),
        (pickle.dumps({"x": ROWS}, 2)[:-20], "not a whole pickle|ends before"),
        (b"cos\nsystem\n.", "asks for os.system"),
        (pickle.dumps({}), "holds no image"),
    ],
)
def test_pickles_that_cannot_be_read_as_a_whole(folder, content, text):
    path = write(folder / "gt.pkl", content)
    with pytest.raises(AnnotationError, match=text) as error:
        formats.read(path, class_names=NAMES)
    assert str(path) in str(error.value)


# --- lines --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, path, boxes",
    [
        ("a.jpg", "a.jpg", []),
        ("a.jpg 1,2,3,4,0", "a.jpg", ["1,2,3,4,0"]),
        ("  a.jpg  1,2,3,4,0 5,6,7,8,1\t ", "a.jpg", ["1,2,3,4,0", "5,6,7,8,1"]),
        ("my  photo.JPG 1,2,3,4,0", "my  photo.JPG", ["1,2,3,4,0"]),
        ("dir.jpg/x 1.png 1,2,3,4,0", "dir.jpg/x 1.png", ["1,2,3,4,0"]),
        ("a, b,c.jpg 1,2,3,4,0", "a, b,c.jpg", ["1,2,3,4,0"]),
        ("img 1,2.jpg 1,2,3,4,0", "img 1,2.jpg", ["1,2,3,4,0"]),
        ("no suffix 1,2,3,4,0 5,6,7,8,1", "no suffix", ["1,2,3,4,0", "5,6,7,8,1"]),
        ("nosuffix 1,2,3,4", "nosuffix", ["1,2,3,4"]),
        ("1,2,3", "1,2,3", []),
        ("a.jpg 10 20 30 40 0", "a.jpg", ["10", "20", "30", "40", "0"]),
        ("浣熊 é.jpg 1,2,3,4,0", "浣熊 é.jpg", ["1,2,3,4,0"]),
    ],
)
def test_split_line(line, path, boxes):
    assert lines.split_line(line) == (path, boxes)


@pytest.mark.parametrize(
    "word, expected",
    [
        ("1,2,3,4,0", (1.0, 2.0, 3.0, 4.0, 0.0)),
        ("1.5,-2,3e1,4,2.0", (1.5, -2.0, 30.0, 4.0, 2.0)),
        ("1,2,3,4", "wrong_columns"),
        ("1,2,3,4,0,0.9", "wrong_columns"),
        ("10", "wrong_columns"),
        ("a,b,c,d,e", "not_numeric"),
        ("1,2,,4,0", "not_numeric"),
        ("1_0,2,3,4,0", "not_numeric"),
        ("1,2,3,4,1.5", "not_numeric"),
        ("1,2,3,4,nan", "not_numeric"),
        ("1,2,3,4,-1", "class_out_of_range"),
        ("1,2,3,4,3", "class_out_of_range"),
    ],
)
def test_parse_box(word, expected):
    box = lines.parse_box(word, 3)
    assert (box[0] if isinstance(expected, str) else box) == expected


@pytest.mark.parametrize(
    "text",
    [
        "one.jpg 1,2,30,10,0\ntwo.jpg\n",
        "one.jpg 1,2,30,10,0\ntwo.jpg",
        "\ufeffone.jpg 1,2,30,10,0\r\ntwo.jpg\r\n",
        "\n\none.jpg 1,2,30,10,0  \r\r\n  two.jpg\t\n\n",
    ],
)
def test_lines_in_every_dress(folder, text):
    source = formats.read(write(folder / "train.txt", text), class_names=NAMES)
    assert source.problems == []
    one, two = source.listings
    np.testing.assert_array_equal(one.boxes, [[1, 2, 30, 10]])
    assert (one.image_path, one.image_id, one.in_pixels) == (str(folder / "one.jpg"), "one.jpg", True)
    assert two.boxes.shape == (0, 4)


def test_lines_find_images_in_the_image_folder_then_beside_the_file_then_anywhere(folder):
    inner = folder / "inner"
    inner.mkdir()
    Image.new("RGB", (4, 4)).save(inner / "one.jpg")
    path = write(folder / "train.txt", f"one.jpg\ntwo.jpg\n{inner}/../inner/one.jpg\n../{folder.name}/two.jpg\n")
    source = formats.read(path, images=inner, class_names=NAMES)
    assert [listing.image_path for listing in source.listings] == [str(inner / "one.jpg"), str(folder / "two.jpg")]
    assert [(problem.kind, problem.where) for problem in source.problems] == [
        ("duplicate_image", f"{path}:3"),
        ("duplicate_image", f"{path}:4"),
    ]


def test_problems_of_lines_name_the_line_and_the_box(folder):
    text = "\none.jpg 1,2,30,10,0 1,2,3 1,2,30,10,9\nnope.jpg 1,2,3,4,0\none.jpg 5,5,9,9,0\n"
    path = write(folder / "train.txt", text)
    source = formats.read(path, class_names=NAMES)
    assert [(problem.kind, problem.where) for problem in source.problems] == [
        ("wrong_columns", f"{path}:2"),
        ("class_out_of_range", f"{path}:2"),
        ("missing_image", f"{path}:3"),
        ("duplicate_image", f"{path}:4"),
    ]
    assert source.problems[0].reason.startswith("box 2 (1,2,3)")
    assert f"also at {path}:2, with other boxes" in source.problems[3].reason
    assert source.problems[0].advice in str(source.problems[0])


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", "holds no image"),
        (b"\xef\xbb\xbf\n \n", "holds no image"),
        (b"one.jpg\ntw\xff.jpg", r"train.txt:2: this is not UTF-8 text"),
        (b"one.jpg\0", "holds zero bytes"),
        (b'{"images": []}', "this JSON has no list 'annotations'"),
        (b'[{"image_id": 1}]', "looks like a JSON list"),
        (b"<annotation/>", "name the folder"),
    ],
)
def test_lines_that_cannot_be_read_as_a_whole(folder, content, text):
    with pytest.raises(AnnotationError, match=text):
        formats.read(write(folder / "train.txt", content), class_names=NAMES)


def test_lines_need_class_names(folder):
    with pytest.raises(AnnotationError, match="pass --classes"):
        formats.read(write(folder / "train.txt", "one.jpg"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AnnotationError, match=r"nope\.txt: cannot be read"):
        formats.read(tmp_path / "nope.txt", class_names=NAMES)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from(" ,.-\t1230aejpgn/_\u3000é"), min_size=1, max_size=60))
def test_any_line_is_a_path_and_words(line):
    if not line.strip():
        return
    path, words = lines.split_line(line)
    assert path
    assert line.strip().startswith(path)
    assert line.strip()[len(path) :].split() == words
    for word in words:
        box = lines.parse_box(word, 3)
        assert len(box) == 5 or box[0] in KINDS


# --- VOC ----------------------------------------------------------------------------------------

VOC = """<annotation><filename>{name}</filename><size><width>40</width><height>20</height></size>
<object><name>b</name><difficult>1</difficult><bndbox><xmin>4</xmin><ymin>2</ymin><xmax>20</xmax><ymax>10</ymax></bndbox>
<part><name>a</name><bndbox><xmin>1</xmin></bndbox></part></object>
<object><name>a</name><bndbox><ymin>5.5</ymin><xmin>0</xmin><ymax>20</ymax><xmax>40</xmax></bndbox></object>
{more}</annotation>"""


def test_voc_folder(folder):
    (folder / "Annotations").mkdir()
    (folder / "JPEGImages").mkdir()
    (folder / "one.jpg").rename(folder / "JPEGImages" / "one.jpg")
    write(folder / "Annotations" / "one.xml", VOC.format(name="moved.jpg", more=""))  # found by the XML's own name
    for path in (folder, folder / "Annotations"):
        source = formats.read(path)
        assert (source.format, source.class_names, source.problems) == ("voc", ("a", "b"), [])
        (listing,) = source.listings
        np.testing.assert_array_equal(listing.boxes, [[4, 2, 20, 10], [0, 5.5, 40, 20]])
        np.testing.assert_array_equal(listing.labels, [1, 0])
        np.testing.assert_array_equal(listing.difficult, [True, False])
        assert listing.image_id == "one.jpg"


def test_voc_problems(folder):
    bad = "<object><name>z</name></object><object><name>a</name><bndbox><xmin>x</xmin></bndbox></object>"
    write(folder / "a.xml", VOC.format(name="one.jpg", more=bad))
    write(folder / "b.xml", "<annotation>")
    write(folder / "c.xml", VOC.format(name="nope.jpg", more=""))
    write(folder / "d.xml", VOC.format(name="../one.jpg", more=""))
    source = formats.read(folder, class_names=NAMES)
    assert [(problem.kind, problem.where[-5:]) for problem in source.problems] == [
        ("class_out_of_range", "a.xml"),
        ("not_numeric", "a.xml"),
        ("bad_entry", "b.xml"),
        ("missing_image", "c.xml"),
        ("outside_root", "d.xml"),
    ]
    assert len(source.listings) == 1


def test_a_folder_without_xml_is_no_voc(tmp_path):
    with pytest.raises(AnnotationError, match="holds no XML file"):
        formats.read(tmp_path)


# --- boxes --------------------------------------------------------------------------------------


def listing(boxes, *, in_pixels=True):
    rows = np.insert(np.asarray(boxes, np.float64).reshape(-1, 4), 4, 1, axis=1)
    return common.make_listing("f:1", "x.jpg", "x.jpg", rows, range(1, len(rows) + 1), in_pixels=in_pixels)


@pytest.mark.parametrize(
    "box, kind",
    [
        ([0, 0, 40, 20], None),
        ([10, 5, 20, 15], None),
        ([-1, -1, 41, 21], None),  # one pixel beyond every border is rounding
        ([0, 0, 1, 1], None),  # a box of one pixel, not a relative one
        ([-1.5, 0, 20, 10], "crosses_border"),
        ([0, 0, 20, 21.5], "crosses_border"),
        ([np.nan, 0, 20, 10], "not_finite"),
        ([0, 0, np.inf, 10], "not_finite"),
        ([-np.inf, 0, np.inf, 10], "not_finite"),
        ([20, 0, 10, 10], "inverted"),
        ([0, 10, 20, 5], "inverted"),
        ([10, 10, 10, 10], "zero_area"),
        ([10, 5, 10, 15], "zero_area"),
        ([10, 5, 10 + 1e-9, 15], "zero_area"),  # nothing is left in float32
        ([40, 0, 50, 10], "outside"),
        ([0, -10, 20, 0], "outside"),
        ([0.1, 0.2, 0.5, 0.6], "wrong_unit"),
    ],
)
def test_every_fault_of_a_box_has_its_kind(box, kind):
    annotation, problems, rounded = to_annotation(listing([box]), (20, 40))
    assert kinds(problems) == ([kind] if kind else [])
    assert len(annotation.boxes) == (kind in (None, "crosses_border"))
    assert rounded == (box == [-1, -1, 41, 21])
    relative = np.asarray(box) / [40, 20, 40, 20]
    if kind != "wrong_unit":
        assert kinds(to_annotation(listing([relative], in_pixels=False), (20, 40))[1]) == ([kind] if kind else [])


def test_pixels_where_relative_corners_are_due():
    _, problems, _ = to_annotation(listing([[4, 2, 20, 10]], in_pixels=False), (20, 40))
    assert kinds(problems) == ["wrong_unit"]
    assert "seems to be in pixels, not relative" in problems[0].reason


def test_boxes_become_relative_and_keep_their_company():
    boxes = [[4, 5, 20, 10], [20, 5, 4, 10], [30, -5, 48, 15]]
    annotation, problems, _ = to_annotation(listing(boxes), (20, 40))
    # 4/40, 5/20, 20/40, 10/20; the second is inverted; 30/40, -5 -> 0, 48 -> 40, 15/20
    np.testing.assert_array_equal(annotation.boxes, np.float32([[0.1, 0.25, 0.5, 0.5], [0.75, 0, 1, 0.75]]))
    assert annotation.boxes.dtype == np.float32
    assert (annotation.labels.dtype, annotation.difficult.dtype) == (np.int32, bool)
    assert len(annotation.labels) == len(annotation.difficult) == 2
    assert kinds(problems) == ["inverted", "crosses_border"]


def test_no_boxes_is_fine():
    for in_pixels in (True, False):
        annotation, problems, rounded = to_annotation(listing([], in_pixels=in_pixels), (20, 40))
        assert annotation.boxes.shape == (0, 4)
        assert (problems, rounded) == ([], 0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-60, 60, width=32) | st.sampled_from([np.nan, np.inf, 0.0, 40.0])] * 4)),
    st.booleans(),
)
def test_whatever_comes_in_valid_boxes_come_out(boxes, in_pixels):
    annotation, problems, _ = to_annotation(listing(boxes, in_pixels=in_pixels), (20, 40))
    out = annotation.boxes
    assert ((out >= 0) & (out <= 1)).all()
    assert (out[:, 2:] > out[:, :2]).all()
    lost = sum(problem.loses == "box" for problem in problems)
    assert len(out) + lost == len(boxes)


def test_read_annotations_takes_sizes_from_the_images(folder):
    source = formats.read(write(folder / "t.txt", "one.jpg 4,5,20,10,0 9,9,9,9,0"), class_names=NAMES)
    (annotation,), problems = annotations.read_annotations(source.listings)
    np.testing.assert_array_equal(annotation.boxes, np.float32([[0.1, 0.25, 0.5, 0.5]]))
    assert kinds(problems) == ["zero_area"]


# --- class names, splits ------------------------------------------------------------------------


def test_class_names(tmp_path):
    path = write(tmp_path / "c.txt", "\ufeffred cell \r\nwhite\r\n\r\n")
    assert formats.read_class_names(path) == ("red cell", "white")


@pytest.mark.parametrize(
    "text, line, reason",
    [
        ("", 1, "holds no class name"),
        ("\n\n", 1, "holds no class name"),
        ("a\n\nb", 2, "empty line"),
        ("a\nb\na", 3, "'a' is there twice"),
    ],
)
def test_bad_class_names(tmp_path, text, line, reason):
    with pytest.raises(AnnotationError, match=f"c.txt:{line}: .*{reason}"):
        formats.read_class_names(write(tmp_path / "c.txt", text))


Named = collections.namedtuple("Named", "image_id")


@pytest.mark.parametrize("count", [1, 2, 7, 10, 101])
def test_splits_are_those_of_the_seeds(count):
    names = [f"{i * 7919 % 1000}.jpg" for i in range(count)]
    listings = [Named(name) for name in names]

    train, val = split_listings(listings, "sorted", 0.2, seed=0)
    keys = sorted(names)  # rykov8/ssd_keras
    num_train = round(0.8 * len(keys))
    assert [item.image_id for item in train] == keys[:num_train]
    assert [item.image_id for item in val] == keys[num_train:]

    train, val = split_listings(listings, "shuffled", 0.1, seed=47)
    np.random.seed(47)  # keras-yolo3
    np.random.shuffle(names)
    num_val = int(count * 0.1)
    assert [item.image_id for item in train] == names[: count - num_val]
    assert [item.image_id for item in val] == names[count - num_val :]


# --- real data ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bccd", "raccoon"])
def test_pickle_lines_and_voc_give_the_same_boxes(shared, name):
    root = shared / "data" / name
    names = formats.read_class_names(root / "classes.txt")
    images = root / "JPEGImages"
    pickled, text = [], []
    for split in ("train", "val", "test"):
        if (root / f"{split}.txt").exists():
            pickled += formats.read(root / f"{split}_gt.pkl", images=images, class_names=names).listings
            text += formats.read(root / f"{split}.txt", class_names=names).listings
    voc = formats.read(root, class_names=names).listings
    by_name = [
        {item.image_path.rpartition("/")[2]: item for item in annotations.read_annotations(listings)[0]}
        for listings in (pickled, text, voc)
    ]
    assert len(by_name[0]) == {"bccd": 364, "raccoon": 200}[name]
    assert by_name[0].keys() == by_name[1].keys() == by_name[2].keys()
    for key, expected in by_name[0].items():
        for other in (by_name[1][key], by_name[2][key]):
            np.testing.assert_allclose(other.boxes, expected.boxes, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(other.labels, expected.labels)
