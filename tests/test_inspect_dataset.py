"""The inspection: policies, what shows only across images, statistics by hand, the tool and its page."""

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from damage import FILES, NAMES, make_good_set, read
from PIL import Image

from tfdet.data import doctor
from tfdet.data.annotations import KINDS, NOTES, Annotation, Problem
from tfdet.data.checks import (
    FAULTS,
    Checks,
    allowed_policies,
    check_image,
    count_cut,
    count_dropped,
    count_kinds,
    make_policies,
)
from tfdet.data.errors import DataError
from tfdet.data.formats import common
from tfdet.data.images import EncodedImage, ImageOptions
from tfdet.data.statistics import Facts, summarise
from tfdet.draw import distributions

TOOL = Path(__file__).resolve().parents[1] / "tools" / "inspect_dataset.py"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("inspect_dataset", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good") / "set"
    make_good_set(root)
    return root


@pytest.fixture
def data(good, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(good, tmp_path / "set"))


@pytest.fixture
def run(tool, capsys):
    """Runs the tool in this process: arguments -> exit code, the JSON of the last line, standard output and error."""

    def run_tool(*arguments):
        code = tool.main([*map(str, arguments), "--workers", "1"])
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        return code, json.loads(lines[-1]) if code < 2 else None, captured.out, captured.err

    return run_tool


# --- policies -----------------------------------------------------------------------------------


def test_policies_by_default():
    assert set(FAULTS) | set(NOTES) == set(KINDS)
    policies = make_policies()
    assert {policies[kind] for kind in FAULTS} == {"error"}
    assert {policies[kind] for kind in NOTES} == {"keep"}


def test_later_policies_replace_earlier_ones():
    policies = make_policies(["drop", "crosses_border=clip", "tiny_box=error", "inverted=error"])
    assert (policies["crosses_border"], policies["tiny_box"], policies["inverted"]) == ("clip", "error", "error")
    assert (policies["zero_area"], policies["duplicate_box"]) == ("drop", "keep")
    assert make_policies(["inverted=error", "drop"])["inverted"] == "drop"
    policies = make_policies(["clip", "notes=drop"])
    assert (policies["crosses_border"], policies["outside"], policies["tiny_box"]) == ("clip", "drop", "drop")
    assert policies["shifted_classes"] == "keep"  # a file cannot be left out
    assert all(policy in allowed_policies(kind) for kind, policy in policies.items())


@pytest.mark.parametrize(
    "word, text",
    [
        ("ignore", "'ignore' is not possible for all faults; say error or drop or clip"),
        ("keep", "'keep' is not possible for all faults"),
        ("notes=clip", "'clip' is not possible for all notes; say error or drop or keep"),
        ("outside=clip", "not possible for outside; say error or drop; crosses_border=clip cuts boxes"),
        ("inverted=keep", "'keep' is not possible for inverted"),
        ("shifted_classes=drop", "say error or keep"),
        ("tiny=drop", "no kind of problem is called 'tiny'; choose of missing_image"),
    ],
)
def test_impossible_policies(word, text):
    with pytest.raises(DataError, match=re.escape(text)):
        make_policies([word])


def test_counts():
    checks = Checks(make_policies(["drop", "crosses_border=clip"]))
    boxes = [("inverted", 1, 2), ("zero_area", 1, 2), ("outside", 2, 2), ("crosses_border", 4, 1), ("tiny_box", 5, 1)]
    problems = [Problem(kind, f"f:{line}", "", (number,)) for kind, line, number in boxes]
    problems.insert(0, Problem("missing_image", "f:3", ""))
    assert count_kinds(problems, NOTES) == {"tiny_box": 1}
    assert list(count_kinds(problems, FAULTS)) == [
        "missing_image",
        "inverted",
        "zero_area",
        "outside",
        "crosses_border",
    ]
    assert count_dropped(problems, checks) == {"images": 1, "boxes": 2}
    assert count_cut(problems, checks) == 1
    assert not checks.stop(problems)
    assert Checks().stop(problems[:1])
    assert not Checks().stop(problems[-1:])


# --- one image ----------------------------------------------------------------------------------

PHOTO = EncodedImage(b"", 100, 200, "jpeg", None, (100, 200), "JPEG", 1)  # 200 wide, 100 high


def listing(boxes, labels=None, **fields):
    rows = np.insert(np.asarray(boxes, np.float64).reshape(-1, 4), 4, 0, axis=1)
    rows[:, 4] = labels if labels is not None else 0
    made = common.make_listing("f:1", "x.jpg", "x.jpg", rows, range(1, len(rows) + 1), in_pixels=True)
    return dataclasses.replace(made, **fields)


def found(item, *words, photo=PHOTO, **fields):
    annotation, problems, _ = check_image(item, photo, Checks(make_policies(words), **fields))
    return annotation, [(problem.kind, problem.boxes) for problem in problems]


def test_boxes_under_a_pixel_at_the_models_input():
    # the first box has 2.1 x 2.1 pixels, 1.05 x 1.05 after 200 x 100 -> 100 x 50; the second 40 x 1.9, 20 x 0.95
    item = listing([[10, 10, 12.1, 12.1], [50, 50, 90, 51.9], [20, 20, 80, 80]])
    assert found(item)[1] == []
    assert found(item, input_size=(50, 100))[1] == [("tiny_box", (2,))]
    assert found(item, input_size=(50, 50), letterbox=True)[1] == [("tiny_box", (1,)), ("tiny_box", (2,))]
    assert found(item, input_size=(50, 50))[1] == [("tiny_box", (1,)), ("tiny_box", (2,))]
    assert found(item, input_size=(100, 50))[1] == [("tiny_box", (1,))]  # 0.525 x 2.1 and 10 x 1.9
    annotation, _ = found(item, "tiny_box=drop", input_size=(50, 100))
    assert len(annotation.boxes) == 2


def test_repeated_boxes():
    box, other = [10, 10, 50, 50], [10, 10, 50, 51]
    item = listing([box, other, box, box], labels=[0, 0, 0, 1])
    assert found(item)[1] == [("duplicate_box", (3,)), ("two_classes", (4,))]
    assert len(found(item)[0].boxes) == 4
    annotation, _ = found(item, "duplicate_box=drop")
    np.testing.assert_array_equal(annotation.labels, [0, 0, 1])


def test_the_cap_counts_what_stays():
    boxes = [[i, i, i + 20, i + 20] for i in range(5)]
    assert found(listing(boxes), max_boxes=5)[1] == []
    assert found(listing(boxes), max_boxes=3)[1] == [("too_many_boxes", (4, 5))]
    boxes.insert(0, boxes[0])  # the second is a duplicate; without it there are five
    annotation, problems = found(listing(boxes), "drop", "duplicate_box=drop", max_boxes=4)
    assert problems == [("duplicate_box", (2,)), ("too_many_boxes", (6,))]
    np.testing.assert_allclose(annotation.boxes[:, 1], [0, 0.01, 0.02, 0.03], atol=1e-7)


@pytest.mark.parametrize(
    "stated, orientation, frame, right",
    [
        (None, 1, "displayed", True),
        ((100, 200), 1, "displayed", True),
        ((200, 100), 1, "displayed", False),
        ((100, 200), 6, "displayed", True),
        ((100, 200), 6, "stored", False),  # the stored pixels are 100 wide and 200 high
        ((200, 100), 6, "stored", True),
        ((100, 200), 3, "stored", True),
    ],
)
def test_stated_sizes(stated, orientation, frame, right):
    photo = dataclasses.replace(PHOTO, orientation=orientation)
    item = listing([[10, 10, 50, 50]], stated_size=stated, frame=frame)
    assert found(item, photo=photo)[1] == ([] if right else [("size_mismatch", ())])
    annotation, _ = found(item, "drop", photo=photo)
    assert (annotation is None) == (not right)
    assert found(item, "drop", "size_mismatch=keep", photo=photo)[0] is not None


@pytest.mark.parametrize(
    "name, image_format, right",
    [("x.jpg", "JPEG", True), ("x.JPEG", "MPO", True), ("x.png", "PNG", True), ("x.tif", "TIFF", True),
     ("x", "PNG", True), ("x.dat", "PNG", True), ("x.jpg", "PNG", False), ("x.png", "WEBP", False)],
)  # fmt: skip
def test_extensions(name, image_format, right):
    photo = dataclasses.replace(PHOTO, source_format=image_format)
    assert found(listing([], image_path=name), photo=photo)[1] == ([] if right else [("wrong_extension", ())])


def test_without_boxes():
    annotation, problems = found(listing([]), input_size=(300, 300), max_boxes=1)
    assert (len(annotation.boxes), problems) == (0, [])


def test_problems_of_tables_name_the_line():
    item = listing([[10, 10, 50, 50], [10, 10, 50, 50]], by_line=True, where="f.csv", numbers=np.array([7, 9]))
    _, problems, _ = check_image(item, PHOTO, Checks(max_boxes=1))
    assert [problem.where for problem in problems] == ["f.csv:9", "f.csv:7"]


# --- across images ------------------------------------------------------------------------------


def test_same_content_across_splits(data):
    shutil.copy(data / "img" / "0.jpg", data / "img" / "6.jpg")
    padded = (data / "img" / "1.jpg").read_bytes()
    (data / "img" / "7.jpg").write_bytes(padded[:-3] + b"x" + padded[-2:])  # of the same size, but not the same
    (data / "img" / "5.jpg").unlink()
    listings = read(data, "lines").listings
    splits = {"train": listings[:4], "val": listings[4:]}
    kept, (problem,) = doctor.without_same_content(splits, Checks())
    assert kept is splits
    assert problem.where.endswith("train.txt:7")  # the line of 6.jpg, which is not the one of 5.jpg that is missing
    assert re.search(r"image 6\.jpg has the same bytes as image 0\.jpg at .*train\.txt:1, in train", problem.reason)
    kept, _ = doctor.without_same_content(splits, Checks(make_policies(["same_content=drop"])))
    assert [item.image_id for item in kept["val"]] == ["4.jpg", "7.jpg"]


@pytest.mark.parametrize(
    "counts, beyond, names, text",
    [
        ((1, 1, 1), 0, "abc", None),
        ((0, 1, 1), 0, "abc", "every class but 0 has boxes: the ids look 1-based"),
        ((0, 1, 0), 0, "abc", None),
        ((0, 5), 0, "ab", None),  # of two classes one may well be missing
        ((0, 5), 2, "ab", "no box has 0 and 2 have ids out of this range: the ids look 1-based"),
        ((0,), 3, "a", "the ids look 1-based"),
        ((4, 0), 2, "ab", "off by one"),
        ((4, 1), 2, "ab", None),
        ((0, 1, 0), 0, ("Background", "a", "b"), "the first class name is 'Background'"),
        ((0, 0, 0), 0, "abc", None),
    ],
)
def test_shifted_classes(counts, beyond, names, text):
    labels = np.repeat(np.arange(len(counts)), counts)
    problems = [Problem("class_out_of_range", "f:1", "", (1,))] * beyond
    item = dataclasses.replace(listing([[1, 1, 2, 2]] * len(labels)), labels=labels.astype(np.int32))
    source = common.Source("lines", tuple(names), [item], problems)
    suspected = doctor.suspect_classes("f", source)
    assert [problem.kind for problem in suspected] == (["shifted_classes"] if text else [])
    assert not text or text in suspected[0].reason
    assert doctor.suspect_classes("f", dataclasses.replace(source, format="voc")) == []


def test_workers_find_the_same(data):
    (data / "img" / "3.jpg").write_bytes(b"")
    splits = {"train": read(data, "pickle").listings * 30}  # several jobs
    found = [
        doctor.diagnose(splits, NAMES, options=ImageOptions(), checks=Checks(), workers=workers) for workers in (1, 2)
    ]
    assert found[0].problems == found[1].problems
    assert len(found[0].facts.sizes) == 210
    for name in ("sizes", "counts", "boxes", "labels"):
        np.testing.assert_array_equal(getattr(found[0].facts, name), getattr(found[1].facts, name))


# --- statistics ---------------------------------------------------------------------------------


def test_statistics_by_hand():
    # 100 x 200: boxes of 50 x 20 and 10 x 10 pixels; 400 x 100: none; 400 x 100: 200 x 100
    boxes = [[[0.1, 0.1, 0.6, 0.2], [0.5, 0.5, 0.6, 0.55]], [], [[0.25, 0, 0.75, 1]]]
    labels, difficult = [[0, 2], [], [0]], [[False, True], [], [False]]
    annotations = [
        Annotation("x", "x", np.float32(b).reshape(-1, 4), np.int32(c), np.array(d, bool))
        for b, c, d in zip(boxes, labels, difficult)
    ]
    images = [(200, 100, "JPEG", None), (100, 400, "PNG", "PNG to JPEG"), (100, 400, "JPEG", None)]
    parts = [Facts.collect(images[:1], annotations[:1]), Facts.collect(images[1:], annotations[1:])]
    facts = Facts.join(parts)
    summary = summarise(facts, ("a", "b", "c"), (300, 300))
    assert (summary["images"], summary["empty_images"], summary["boxes"], summary["difficult"]) == (3, 1, 3, 1)
    assert [(c["boxes"], c["images"]) for c in summary["classes"]] == [(2, 2), (0, 0), (1, 1)]
    assert summary["boxes_per_image"] == {"min": 0, "median": 1, "mean": 1, "p95": 1.9, "max": 2}
    assert summary["box_width"] == pytest.approx(
        {"min": 10, "median": 50, "mean": 260 / 3, "p95": 185, "max": 200}, rel=1e-5
    )
    assert summary["box_height"]["max"] == 100
    assert summary["box_aspect"]["max"] == pytest.approx(2.5)  # 50 / 20
    assert summary["coco_sizes"] == {"small": 2, "medium": 0, "large": 1}  # 1000, 100 and 20000 square pixels
    assert summary["image_sizes"][0] == {"width": 400, "height": 100, "images": 2}
    assert summary["shorter_side_at_input"]["min"] == pytest.approx(15)  # 0.05 * 300
    assert (summary["formats"], summary["changes"]) == ({"JPEG": 2, "PNG": 1}, {"PNG to JPEG": 1})
    json.dumps(summary)


def test_statistics_of_nothing():
    summary = summarise(Facts.join([]), ("a",), (300, 300))
    assert (summary["images"], summary["box_width"], summary["image_sizes"]) == (0, {}, [])


# --- the tool -----------------------------------------------------------------------------------


def test_json_and_splits(run, data, tmp_path):
    (data / "val.txt").write_text("3.jpg 8,8,43,32,3\n")
    arguments = (data / "train.txt", data / "val.txt", "--images", data / "img", "--classes", data / "classes.txt")
    code, summary, out, _ = run(*arguments, "--preset", "ssd300_vgg16", "--json", tmp_path / "found.json")
    assert code == 1
    assert (summary["problems"], summary["images"]) == ({"duplicate_image": 1}, 8)
    assert "shorter_side_at_input" in summary
    written = json.loads((tmp_path / "found.json").read_text())
    assert {key: written[key] for key in summary if key != "seconds"} == {
        k: v for k, v in summary.items() if k != "seconds"
    }
    (entry,) = written["found"]
    assert entry["where"] == f"{data / 'val.txt'}:1"
    assert f"{entry['where']}: {entry['reason']} [duplicate_image]; {entry['advice']}" in out
    code, summary, _, _ = run(*arguments, "--on-bad", "duplicate_image=drop")
    assert (code, summary["healthy"], summary["left_out"]) == (0, True, {"images": 1, "boxes": 0})


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["nope.txt"], "nope.txt: cannot be read"),
        (["train.txt"], "pass --classes"),
        (["train.txt", "--classes", "nope.txt"], "nope.txt: cannot be read"),
        (["train.txt", "--on-bad", "maybe"], "--on-bad maybe: 'maybe' is not possible"),
        (["train.txt", "--max-boxes", "-1"], "--max-boxes -1: it is negative"),
        (["train.txt", "--html", "nope/page.html"], "nope/page.html: its folder does not exist"),
        (
            ["train.txt", "--classes", "classes.txt", "--images", "img", "--html", "img"],
            "img: Is a directory; check",
        ),
        (["train.txt", "--augment", "sheet.png"], "train.txt: --augment draws records, and here are none; convert"),
        (["train.txt", "--augment", "sheet.foo"], "sheet.foo: this is no name of a picture; let it end with .png"),
    ],
)
def test_mistakes_end_with_2_and_one_line(run, data, monkeypatch, arguments, text):
    monkeypatch.chdir(data)
    code, _, _, err = run(*arguments)
    assert code == 2
    (message,) = [line for line in err.splitlines() if line.startswith("inspect_dataset: ")]
    assert text in message


@pytest.mark.parametrize(
    "arguments, text",
    [(["--image-size", "3x"], "'3x' is no size"), (["--workers", "0"], "--workers"), (["--preset", "x"], "--preset")],
)
def test_impossible_options(tool, arguments, text, capsys):
    with pytest.raises(SystemExit) as error:
        tool.main(["train.txt", *arguments])
    assert error.value.code == 2
    assert text in capsys.readouterr().err


def test_help_shows_examples(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    text = capsys.readouterr().out
    for word in ("examples:", "--on-bad clip", "exit code is 0", "--html", "--augment"):
        assert word in text


def test_from_the_command_line_without_tensorflow(good, tmp_path):
    code = f"import runpy, sys; sys.argv[1:] = {[str(good / 'gt.pkl'), '--images', str(good / 'img')]!r}\n"
    code += f"try:\n    runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
    code += "except SystemExit as end:\n    assert end.code == 0 and 'tensorflow' not in sys.modules, end.code"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
    assert json.loads(done.stdout.splitlines()[-1])["images"] == 8


def test_augmented_images(run, data, monkeypatch):
    from tfdet import contact_sheet

    seen = []

    def sheet(records, config):
        seen.append((records.num_images, config.class_names, config.detector.backbone))
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr(contact_sheet, "augmented_sheet", sheet)
    preset = ("--preset", "yolov3_tiny")
    code, summary, _, _ = run(data / "records", "--augment", data / "sheet.png", *preset)
    assert (code, summary["augment"]) == (0, str(data / "sheet.png"))
    assert seen == [(8, NAMES, "tiny")]
    assert summary["never_matched"]["images"] == 8
    assert summary["never_matched"]["objects"] > 0
    with Image.open(data / "sheet.png") as picture:
        assert picture.size == (4, 4)


# --- the page -----------------------------------------------------------------------------------


@pytest.fixture
def page(run, data):
    """A page with a problem that has no picture, one of an image that is cut off, and some of boxes."""
    lines = (data / "train.txt").read_text().splitlines()
    lines[1] += " 300,10,340,60,1 nan,1,2,3,0 60,60,20,20,2"
    lines[2] += " <b>&,1,2,3,0"
    lines += ["./4.jpg 8,8,40,32,0", "nope.jpg 1,2,3,4,0"]
    (data / "train.txt").write_text("\n".join(lines))
    image = data / "img" / "5.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    code, summary, _, _ = run(
        data / "train.txt", "--images", data / "img", "--classes", data / "classes.txt", "--html", data / "page.html"
    )
    assert (code, summary["html"]) == (1, str(data / "page.html"))
    return data / "page.html"


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    for kind in (
        "outside",
        "not_finite",
        "inverted",
        "not_numeric",
        "duplicate_image",
        "missing_image",
        "truncated_image",
    ):
        assert text.count(f'<b class="fault">{kind}</b>') == 1
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert all(source.startswith("data:image/") for source in sources)
    assert sum("svg" in source for source in sources) == 6
    assert (
        sum("jpeg" in source for source in sources) == 4 + 7
    )  # problems of 1, 2, 4 and 5.jpg; samples, one is cut off
    assert text.count("no picture") == 1
    assert not re.search(r"<(script|link|iframe)|(href|src)=.?https?:", text)
    assert "&lt;b&gt;&amp;" in text
    assert "<b>&," not in text


def spoil_coco(path):
    content = json.loads(path.read_text())
    for item in content["annotations"][6:8]:
        item.update(category_id=9, bbox=[1, 1, "x", 5])
    path.write_text(json.dumps(content))


def spoil_table(path):
    lines = path.read_text().splitlines()
    lines[7:9] = [f"{line.split(',')[0]},1,1,x,5,9" for line in lines[7:9]]
    path.write_text("\n".join(lines))


def spoil_darknet(path):
    (path / "3.txt").write_text("9 0.5 0.5 x 0.1\n" * 2)


@pytest.mark.parametrize(
    "name, spoil, places",
    [
        ("coco", spoil_coco, [f"coco.json: images[3] '3.jpg', annotations[{i}]" for i in (6, 7)]),
        ("csv", spoil_table, ["boxes.csv:8", "boxes.csv:9"]),
        ("darknet", spoil_darknet, ["darknet/3.txt:1", "darknet/3.txt:2"]),
    ],
)
def test_boxes_that_are_thrown_out_leave_their_image(run, data, name, spoil, places):
    """No box of 3.jpg is left; its card has the picture and both problems."""
    spoil(data / FILES[name])
    source = read(data, name)
    given = {"options": ImageOptions(), "checks": Checks(), "problems": source.problems}
    found = doctor.diagnose({"all": source.listings}, NAMES, **given).findings
    assert [item.problem.where for item in found] == [f"{data}/{place}" for place in places]
    assert [item.listing.image_id for item in found] == ["3.jpg"] * 2
    classes = [] if name == "coco" else ["--classes", data / "classes.txt"]
    page = data / "page.html"
    code, summary, *_ = run(data / FILES[name], "--images", data / "img", *classes, "--html", page, "--samples", 1)
    assert (code, summary["problems"]) == (1, {"not_numeric": 2})
    text = page.read_text()
    assert (text.count('class="card"'), text.count("no picture"), text.count("image/jpeg")) == (1, 0, 1 + 1)


def test_a_page_of_nothing_to_complain_about(run, good, tmp_path):
    code, *_ = run(good / "coco.json", "--images", good / "img", "--html", tmp_path / "page.html", "--samples", 3)
    text = (tmp_path / "page.html").read_text()
    assert (code, text.count("image/jpeg")) == (0, 3)
    assert "Nothing was found." in text


def test_class_names_of_any_letters():
    svg = distributions.bars(["$\\alpha$", "a < b", "眼鏡", "x" * 100], [4, 3, 2, 1], "boxes")
    for text in ("$\\alpha$", "a &lt; b", "眼鏡", "x" * 23 + "…"):
        assert f">{text}<" in svg


def test_plots_of_nothing():
    assert "<svg" in distributions.bars([], [], "boxes")
    assert "<svg" in distributions.histogram(np.zeros(0, int), "boxes", "images")
    assert "<svg" in distributions.log_histogram(np.ones(1), "boxes", "images", (1,))


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_opens_in_chromium(page, tmp_path):
    broken = "[...document.images].filter(i => !i.naturalWidth).length"
    count = f"document.title = [document.images.length, {broken}, innerWidth < document.body.scrollWidth]"
    script = f"<script>for (const i of document.images) i.loading = 'eager'; onload = () => {{ {count} }}</script>"
    page.write_text(page.read_text() + script)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [CHROMIUM, *options, "--virtual-time-budget=5000", "--dump-dom", page.as_uri()],
        capture_output=True,
        timeout=120,
    )
    images, broken, too_wide = re.search(r"<title>(.*?)</title>", done.stdout.decode())[1].split(",")
    assert (int(images), broken, too_wide) == (6 + 4 + 7, "0", "false")
