"""The conversion tool's options for annotations: --to, --boxes-frame, --max-pixels; damaged images in four forms."""

import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdet.data import formats
from tfdet.data.annotations import read_annotations
from tfdet.data.records import open_split, parse

TOOL = Path(__file__).resolve().parents[1] / "tools" / "make_tfrecords.py"
BOX = [5, 3, 15, 9]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("make_tfrecords", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tool, capsys):
    """Runs the tool in this process: arguments -> exit code, the JSON of the last line, standard output and error."""

    def run_tool(*arguments):
        code = tool.main([*map(str, arguments), "--workers", "1"])
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        return code, json.loads(lines[-1]) if lines else None, captured.out, captured.err

    return run_tool


@pytest.fixture
def data(tmp_path):
    """Four photos in COCO form, with EXIF orientations 1, 3, 6 and 8; one box is a crowd's."""
    root = tmp_path / "data"
    root.mkdir()
    images, annotations = [], []
    for i, orientation in enumerate((1, 3, 6, 8), 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        colours = np.random.default_rng(i).integers(0, 256, (20, 40, 3), np.uint8)
        Image.fromarray(colours).save(root / f"{i}.jpg", exif=exif)
        images.append({"id": i, "file_name": f"{i}.jpg"})
        x1, y1, x2, y2 = BOX
        annotations.append(
            {"image_id": i, "category_id": 5, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(i == 2)}
        )
    categories = [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "x.json").write_text(json.dumps(content))
    return root


def stored_boxes(directory):
    """Image id -> boxes of a split."""
    records = open_split(directory, "train")
    dataset = tf.data.TFRecordDataset(list(records.shard_paths)).map(parse)
    return {record["image_id"].decode(): record["boxes"] for record in dataset.as_numpy_iterator()}


@pytest.mark.parametrize("form", formats.WRITABLE)
def test_annotations_go_out_in_any_form_and_come_back(run, data, tmp_path, form):
    code, summary, out, err = run(data / "x.json", "--to", form, "--out", tmp_path / "y")
    assert (code, summary["written"], summary["images"], summary["boxes"]) == (0, True, 4, 4)
    assert (summary["from"], summary["format"], summary["class_names"]) == ("coco", form, ["cat", "dog"])
    assert ("1 difficult boxes became ordinary ones" in out) == (form not in ("coco", "voc"))
    assert "4/4" in err
    before, _ = read_annotations(formats.read(data / "x.json").listings)
    after, _ = read_annotations(
        formats.read(tmp_path / "y", images=data, class_names=("cat", "dog"), file_format=form).listings
    )
    expected = {item.image_id: item.boxes for item in before}
    assert len(after) == 4
    for item in after:
        np.testing.assert_allclose(item.boxes, expected[item.image_id], rtol=0, atol=1e-6)


def test_records_go_out_again(run, data, tmp_path):
    run(data / "x.json", "--out", tmp_path / "records", "--val-ratio", 0, "--max-side", 10)
    code, small, _, _ = run(tmp_path / "records", "--to", "coco", "--out", tmp_path / "small.json")
    assert (code, small["from"], small["boxes"]) == (0, "records", 4)
    code, _, _, _ = run(tmp_path / "records", "--images", data, "--to", "coco", "--out", tmp_path / "full.json")
    assert code == 0
    sizes = {}
    for name in ("small", "full"):
        content = json.loads((tmp_path / f"{name}.json").read_text())
        sizes[name] = {image["file_name"]: (image["width"], image["height"]) for image in content["images"]}
        assert sorted(item["iscrowd"] for item in content["annotations"]) == [0, 0, 0, 1]
    assert sizes["small"] == {"1.jpg": (10, 5), "2.jpg": (10, 5), "3.jpg": (5, 10), "4.jpg": (5, 10)}
    assert sizes["full"] == {"1.jpg": (40, 20), "2.jpg": (40, 20), "3.jpg": (20, 40), "4.jpg": (20, 40)}


def test_boxes_are_turned_where_they_were_drawn_on_stored_pixels(run, data, tmp_path):
    code, summary, _, _ = run(data / "x.json", "--boxes-frame", "stored", "--val-ratio", 0, "--out", tmp_path / "out")
    assert (code, summary["changed"]) == (0, {"turned upright": 3})
    found = stored_boxes(tmp_path / "out")
    # the box is 5, 3 to 15, 9 of 40 x 20 stored pixels: relative 0.125, 0.15 to 0.375, 0.45
    expected = {
        "1.jpg": [0.125, 0.15, 0.375, 0.45],
        "2.jpg": [0.625, 0.55, 0.875, 0.85],  # orientation 3: 1 - 0.375, 1 - 0.45, 1 - 0.125, 1 - 0.15
        "3.jpg": [0.55, 0.125, 0.85, 0.375],  # orientation 6: 1 - 0.45, 0.125, 1 - 0.15, 0.375
        "4.jpg": [0.15, 0.625, 0.45, 0.875],  # orientation 8: 0.15, 1 - 0.375, 0.45, 1 - 0.125
    }
    for name, box in expected.items():
        np.testing.assert_allclose(found[name], [box], atol=1e-6)
    run(data / "x.json", "--val-ratio", 0, "--out", tmp_path / "displayed")
    found = stored_boxes(tmp_path / "displayed")
    np.testing.assert_allclose(found["1.jpg"], found["2.jpg"], atol=1e-6)
    np.testing.assert_allclose(
        found["3.jpg"], [[0.25, 0.075, 0.75, 0.225]], atol=1e-6
    )  # 5 / 20, 3 / 40, 15 / 20, 9 / 40


def test_images_with_too_many_pixels_are_listed(run, data, tmp_path):
    code, summary, out, _ = run(data / "x.json", "--max-pixels", 799, "--out", tmp_path / "out")
    assert (code, summary["problems"]) == (1, {"too_many_pixels": 4})
    assert "40 x 20 pixels, more than 799 [too_many_pixels]; shrink it, or raise --max-pixels" in out


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--to", "lines"], "name it with --out"),
        (["--to", "lines", "--out", "y", "--val", "z"], "leave out --val"),
        (["--to", "records", "--out", "y"], "invalid choice"),
        (["--max-pixels", "0"], "--max-pixels is 1 to"),
        (["--boxes-frame", "upright"], "invalid choice"),
    ],
)
def test_impossible_options(tool, data, arguments, text, capsys):
    with pytest.raises(SystemExit) as error:
        tool.main([str(data / "x.json"), *arguments])
    assert error.value.code == 2
    assert text in capsys.readouterr().err


def test_a_file_that_is_there_stays(run, data, tmp_path):
    (tmp_path / "y").write_text("mine")
    code, _, out, err = run(data / "x.json", "--to", "lines", "--out", tmp_path / "y")
    assert (code, out) == (2, "")
    assert "it is there already; choose another name with --out" in err
    assert (tmp_path / "y").read_text() == "mine"


# --- torture ------------------------------------------------------------------------------------

REFUSED = {
    "missing_eoi.jpg": "truncated_image",
    "truncated_half.jpg": "truncated_image",
    "text_named.jpg": "unreadable_image",
    "zero_byte.jpg": "unreadable_image",
}
MISNAMED = {"png_alpha_named.jpg", "gif_named.jpg", "webp_named.jpg"}


@pytest.mark.parametrize("form", ["lines", "pickle", "csv", "coco"])
def test_damaged_images_have_their_outcome_in_every_form(run, shared, tmp_path, form):
    images = shared / "torture" / "img"
    names = sorted(path.name for path in images.iterdir())
    (tmp_path / "classes.txt").write_text("a\n")
    content = {
        "lines": "\n".join(f"{name} 0,0,1,1,0" for name in names).encode(),
        "csv": "\n".join(f"{name},0,0,1,1,a" for name in names).encode(),
        "pickle": pickle.dumps({name: np.array([[0, 0, 1, 1, 1.0]]) for name in names}),
        "coco": json.dumps(
            {
                "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
                "annotations": [{"image_id": i, "category_id": 1, "bbox": [0, 0, 1, 1]} for i in range(len(names))],
                "categories": [{"id": 1, "name": "a"}],
            }
        ).encode(),
    }
    (tmp_path / "x").write_bytes(content[form])
    common = (tmp_path / "x", "--images", images, "--classes", tmp_path / "classes.txt", "--max-side", 64)
    code, summary, out, _ = run(*common, "--out", tmp_path / "out", "--skip-bad", "--val-ratio", 0)
    assert (code, summary["problems"]) == (0, {"unreadable_image": 2, "truncated_image": 2})
    assert summary["images"] == len(names) - len(REFUSED)
    lines = out.splitlines()
    for name, kind in REFUSED.items():
        (line,) = [line for line in lines if f"/{name}: " in line and f"[{kind}]" in line]
        assert line.startswith(str(tmp_path / "x"))
    notes = [line for line in lines if "[wrong_extension]" in line]
    assert {name for name in names if any(f"/{name} is a " in note for note in notes)} == MISNAMED
    for change in ("CMYK to RGB", "I;16 to RGB", "P to RGB", "RGBA to RGB", "WEBP to JPEG", "turned upright"):
        assert any(change in key for key in summary["changed"]), change
