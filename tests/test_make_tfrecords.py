"""The conversion tool: what it says, what it writes, how it ends."""

import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdet.data.annotations import KINDS
from tfdet.data.errors import RecordError
from tfdet.data.records import open_split, parse

TOOL = Path(__file__).resolve().parents[1] / "tools" / "make_tfrecords.py"


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
    """Ten JPEGs with two boxes each, except the first, as lines and as a pickle."""
    images = tmp_path / "data" / "img"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines, content = [], {}
    for i in range(10):
        width, height = 40 + i, 60 - i
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(images / f"{i}.jpg")
        boxes = [[1, 2, 20 + i, 30, i % 3], [5.5, 6, 30, 40, 1]] if i else []
        lines.append(f"img/{i}.jpg " + " ".join(",".join(map(str, box)) for box in boxes))
        corners = np.array(boxes).reshape(-1, 5)[:, :4] / [width, height, width, height]
        content[f"{i}.jpg"] = np.concatenate([corners, np.eye(3)[[int(box[4]) for box in boxes]]], axis=1)
    root = tmp_path / "data"
    (root / "classes.txt").write_text("cat\ndog\nbird\n")
    (root / "train.txt").write_text("\n".join(lines))
    (root / "gt.pkl").write_bytes(pickle.dumps(content, 2))
    return root


def load(directory, split):
    """image id without folders -> boxes, labels."""
    records = open_split(directory, split)
    dataset = tf.data.TFRecordDataset(list(records.shard_paths)).map(parse)
    return {
        os.path.basename(record["image_id"].decode()): (record["boxes"], record["labels"])
        for record in dataset.as_numpy_iterator()
    }


def assert_same_boxes(found, expected):
    assert found.keys() == expected.keys()
    for name, (boxes, labels) in found.items():
        np.testing.assert_allclose(boxes, expected[name][0], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(labels, expected[name][1])


# --- what it writes -----------------------------------------------------------------------------


def test_lines_and_pickle_give_the_same_records(run, data, tmp_path):
    classes = ("--classes", data / "classes.txt", "--split-mode", "sorted", "--val-ratio", "0.3")
    code, summary, _, err = run(data / "train.txt", *classes, "--out", tmp_path / "lines")
    assert code == 0
    assert "10/10" in err
    assert run(data / "gt.pkl", *classes, "--images", data / "img", "--out", tmp_path / "pickle")[0] == 0
    for split in ("train", "val"):
        assert_same_boxes(load(tmp_path / "lines", split), load(tmp_path / "pickle", split))
    assert summary["name"] == "lines"
    assert (summary["written"], summary["images"], summary["boxes"]) == (True, 10, 18)
    assert {split: entry["images"] for split, entry in summary["splits"].items()} == {"train": 7, "val": 3}
    assert summary["bytes"] == sum(path.stat().st_size for path in (tmp_path / "lines").glob("*.tfrecord*"))
    assert (summary["problems"], summary["dropped"]) == ({}, {"images": 0, "boxes": 0})


def test_default_splits_are_those_of_the_seeds(run, data, tmp_path):
    classes = ("--classes", data / "classes.txt", "--out")
    run(data / "train.txt", *classes, tmp_path / "lines")
    order = [f"{i}.jpg" for i in range(10)]
    np.random.seed(47)
    np.random.shuffle(order)
    assert set(load(tmp_path / "lines", "val")) == {order[9]}
    run(data / "train.txt", *classes, tmp_path / "other", "--seed", 1, "--val-ratio", 0.4)
    order = [f"{i}.jpg" for i in range(10)]
    np.random.seed(1)
    np.random.shuffle(order)
    assert set(load(tmp_path / "other", "val")) == set(order[6:])
    run(data / "gt.pkl", "--images", data / "img", *classes, tmp_path / "pickle")
    assert set(load(tmp_path / "pickle", "val")) == {"8.jpg", "9.jpg"}


def test_separate_files_for_validation_and_test(run, data, tmp_path):
    lines = (data / "train.txt").read_text().split("\n")
    for name, part in (("a", lines[:6]), ("b", lines[6:8]), ("c", lines[8:])):
        (data / f"{name}.txt").write_text("\n".join(part))
    common = ("--classes", data / "classes.txt", "--out", tmp_path / "out", "--test", data / "c.txt")
    run(data / "a.txt", *common, "--val", data / "b.txt", "--name", "pets", "--shards", 2)
    assert {split: len(load(tmp_path / "out", split)) for split in ("train", "val", "test")} == {
        "train": 6, "val": 2, "test": 2,
    }  # fmt: skip
    assert len(list((tmp_path / "out").glob("pets-test-*.tfrecord-00001-of-00002"))) == 1
    _, summary, _, _ = run(data / "a.txt", *common, "--val-ratio", 0)
    assert list(summary["splits"]) == ["train", "test"]


def test_options_for_images(run, data, tmp_path):
    common = (data / "train.txt", "--classes", data / "classes.txt", "--val-ratio", 0, "--max-side", 20)
    _, shrunk, out, _ = run(*common, "--out", tmp_path / "jpeg", "--quality", 50)
    assert shrunk["changed"] == {"shrunk": 10}
    assert "10 images encoded anew: shrunk" in out
    _, raw, _, _ = run(*common, "--out", tmp_path / "raw", "--store", "raw", "--no-decode-check")
    assert raw["bytes"] > shrunk["bytes"]
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("jpeg", "raw")]
    assert [(m["store"], m["max_side"], m["quality"]) for m in manifests] == [("jpeg", 20, 50), ("raw", 20, 95)]


def test_output_goes_to_tfrecords_by_default(tool, run, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, summary, out, _ = run(data / "train.txt", "--classes", data / "classes.txt")
    assert (summary["name"], summary["out"]) == ("data", "tfrecords/data")
    assert len(list((tmp_path / "tfrecords" / "data").glob("data-train-*.index.npy"))) == 1
    assert "replaced" not in out
    _, _, out, _ = run(data / "train.txt", "--classes", data / "classes.txt")
    assert "replaced: 9 images of train, 1 images of val" in out


# --- how it ends --------------------------------------------------------------------------------


def test_bad_data_ends_with_1_and_nothing_written(run, data, tmp_path):
    with open(data / "train.txt", "a") as file:
        file.write("\nimg/nope.jpg\n")
    common = (data / "train.txt", "--classes", data / "classes.txt", "--out", tmp_path / "out")
    code, summary, out, err = run(*common)
    assert code == 1
    assert f"{data / 'train.txt'}:11: there is no image file {data / 'img/nope.jpg'} [missing_image]; check" in out
    assert "nothing was written: repair what is listed above, or pass --skip-bad" in err
    assert (summary["written"], summary["problems"]) == (False, {"missing_image": 1})
    assert not (tmp_path / "out").exists()
    code, summary, _, _ = run(*common, "--skip-bad")
    assert code == 0
    assert summary["dropped"] == {"images": 1, "boxes": 0}


def test_boxes_cut_at_the_border_are_counted(run, data, tmp_path):
    (data / "train.txt").write_text("img/0.jpg -1,0,20,30,0 0,0,40.5,30,0\n")
    code, summary, _, _ = run(data / "train.txt", "--classes", data / "classes.txt", "--out", tmp_path / "out")
    assert (code, summary["cut_at_border"]) == (0, 2)
    ((boxes, _),) = load(tmp_path / "out", "train").values()
    np.testing.assert_array_equal(boxes, np.float32([[0, 0, 0.5, 0.5], [0, 0, 1, 0.5]]))


def test_a_wrong_format_is_guessed_at(run, data, monkeypatch):
    monkeypatch.chdir(data)
    code, _, out, err = run("train.txt", "--classes", "classes.txt", "--format", "pickle")
    assert (code, out) == (2, "")
    assert err == "make_tfrecords: train.txt: cannot be read as pickle, it looks like lines; leave --format out\n"
    code, _, _, err = run("train.txt", "--classes", "classes.txt", "--format", "csv")
    assert "make_tfrecords: train.txt looks like lines, not like csv; leave --format out if" in err
    assert "looks like" not in run("train.txt", "--classes", "classes.txt", "--format", "lines")[3]


def test_a_folder_of_images_that_is_not_there(run, data, monkeypatch):
    monkeypatch.chdir(data)
    code, _, out, err = run("train.txt", "--classes", "classes.txt", "--images", "nope")
    assert (code, out) == (2, "")
    assert err == "make_tfrecords: nope: there is no such folder of images; check the path of the images\n"


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["nope.txt"], "nope.txt: cannot be read"),
        (["train.txt"], "lines carry class numbers only; pass --classes"),
        (["train.txt", "--classes", "nope.txt"], "nope.txt: cannot be read"),
        (["train.txt", "--classes", "classes.txt", "--val", "nope.txt"], "nope.txt: cannot be read"),
        (["train.txt", "--classes", "classes.txt", "--out", "classes.txt"], "writing failed"),
    ],
)
def test_mistakes_end_with_2_and_one_line(run, data, monkeypatch, arguments, text):
    monkeypatch.chdir(data)
    code, _, out, err = run(*arguments)
    assert (code, out) == (2, "")
    message = [line for line in err.splitlines() if line.startswith("make_tfrecords: ")]
    assert len(message) == 1
    assert text in message[0]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [["--val", "x", "--val-ratio", "0.1"], ["--val-ratio", "2"], ["--quality", "0"], ["--workers", "0"]]
)
def test_impossible_options(tool, data, arguments, capsys):
    with pytest.raises(SystemExit) as error:
        tool.main([str(data / "train.txt"), *arguments])
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_an_evil_pickle_is_not_obeyed(run, data, tmp_path):
    (data / "gt.pkl").write_bytes(b"cos\nsystem\n(S'touch %s/victim'\ntR." % str(tmp_path).encode())
    code, _, _, err = run(data / "gt.pkl")
    assert code == 2
    assert "it asks for os.system, which arrays do not need; refused, nothing was run" in err
    assert not (tmp_path / "victim").exists()


def test_help_shows_examples(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    text = capsys.readouterr().out
    for word in ("examples:", "--skip-bad", "--val-ratio", "--max-side", "exit code is 1"):
        assert word in text


# --- as a process -------------------------------------------------------------------------------


def environment():
    return {**os.environ, "PYTHONPATH": ""}  # a fresh clone: nothing installed, no path set


def test_from_the_command_line_with_two_workers(data, tmp_path):
    command = [sys.executable, TOOL, data / "train.txt", "--classes", data / "classes.txt", "--shards", "3"]
    outs = [tmp_path / "1" / "x", tmp_path / "2" / "x"]
    for workers, out in enumerate(outs, 1):
        done = subprocess.run(
            [*command, "--out", out, "--workers", str(workers)], env=environment(), cwd=tmp_path, capture_output=True
        )
        assert (done.returncode, json.loads(done.stdout.splitlines()[-1])["images"]) == (0, 10)
    for path in outs[0].iterdir():
        assert path.read_bytes() == (outs[1] / path.name).read_bytes()


def children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc to watch the worker processes")
@pytest.mark.parametrize("how, code", [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_killed_while_writing(data, tmp_path, how, code):
    out, count = tmp_path / "out", 3000  # half a minute's work, of which little is done
    (data / "train.txt").write_text("\n".join(f"{data}/many/{i}.jpg 1,1,9,9,0" for i in range(count)))
    (data / "many").mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (600, 800, 3), np.uint8)).save(data / "many" / "0.jpg")
    for i in range(1, count):
        os.link(data / "many" / "0.jpg", data / "many" / f"{i}.jpg")
    command = [sys.executable, TOOL, data / "train.txt", "--classes", data / "classes.txt", "--out", out]
    command += ["--shards", "20", "--workers", "2"]
    # a shell that starts the tests in the background has told its children to ignore Ctrl-C
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=heed
    )
    while not any(path.stat().st_size for path in (out / ".partial").glob("*")):
        assert process.poll() is None
        time.sleep(0.01)
    workers = children(process.pid)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in err
    with pytest.raises(RecordError, match=r"no manifest\.json"):
        open_split(out, "train")
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    if how == signal.SIGINT:
        finished = list((out / ".partial").glob("*.json"))
        assert (b"interrupted; the same command with --resume goes on" in err) == bool(finished)
        assert not (out / ".lock").exists()


# --- torture ------------------------------------------------------------------------------------

GOOD = (0, {}, 2, 3)  # exit code with --skip-bad, problems, images, boxes that are left
TORTURE = {
    "good.txt": GOOD,
    "good.pkl": GOOD,
    "good_protocol0.pkl": GOOD,
    "good_protocol5.pkl": GOOD,
    "200_boxes.txt": (0, {}, 1, 200),
    "bom.txt": (0, {}, 1, 1),
    "float_coords.txt": (0, {}, 1, 1),
    "no_boxes.txt": (0, {}, 1, 0),
    "path_with_spaces.txt": (0, {}, 1, 1),
    "zero_rows.pkl": (0, {}, 3, 1),
    # whole lines, but all of one image
    "blank_line_in_middle.txt": (0, {"duplicate_image": 1}, 1, 1),
    "crlf.txt": (0, {"duplicate_image": 1}, 1, 1),
    "duplicate_lines.txt": (0, {"duplicate_image": 2}, 1, 1),
    "trailing_spaces.txt": (0, {"duplicate_image": 2}, 1, 1),
    "class_too_big.txt": (0, {"class_out_of_range": 1}, 1, 0),
    "negative_class.txt": (0, {"class_out_of_range": 1}, 1, 0),
    "inverted.txt": (0, {"inverted": 1}, 1, 0),
    "inverted.pkl": (0, {"inverted": 3}, 1, 0),
    "missing_image.txt": (0, {"missing_image": 1}, 1, 1),
    "missing_image.pkl": (0, {"missing_image": 1}, 1, 1),
    "nan_coord.txt": (0, {"not_finite": 1}, 1, 0),
    "nan.pkl": (0, {"not_finite": 1}, 1, 1),
    "non_numeric.txt": (0, {"not_numeric": 1}, 1, 0),
    "outside_coords.txt": (0, {"crosses_border": 1}, 1, 1),
    "outside.pkl": (0, {"crosses_border": 2, "outside": 1}, 1, 2),
    "tuple4.txt": (0, {"wrong_columns": 1}, 1, 0),
    "wrong_columns.pkl": (0, {"wrong_shape": 1}, 1, 1),
    "two_hot.pkl": (0, {"not_one_hot": 1}, 1, 0),
    "zero_area.txt": (0, {"zero_area": 2}, 1, 0),
    "zero_area.pkl": (0, {"zero_area": 2}, 1, 0),
    "pixel_coords_not_normalised.pkl": (0, {"wrong_unit": 1}, 1, 0),
    "non_ndarray.pkl": (1, {"bad_entry": 4}, 0, 0),
    "empty.txt": (2, "it holds no image"),
    "empty.pkl": (2, "the file is empty"),
    "empty_dict.pkl": (2, "it holds no image"),
    "not_a_dict.pkl": (2, "the pickle holds a list, not a dict"),
    "truncated.pkl": (2, "ends before its pickle does|not a whole pickle"),
}


def check_torture(run, arguments, out, expected):
    """Without --skip-bad: 0 where there is no problem, else 1 and nothing written. With it: what is left."""
    if expected[0] == 2:
        code, _, _, err = run(*arguments, "--out", out)
        assert code == 2
        assert any(text in err for text in expected[1].split("|"))
        return
    code, problems, images, boxes = expected
    first, summary, _, _ = run(*arguments, "--out", out)
    assert (first, summary["problems"]) == (int(bool(problems)), problems)
    assert out.exists() == (not problems)
    second, summary, listed, _ = run(*arguments, "--out", out, "--skip-bad")
    assert (second, summary["problems"], summary["images"], summary["boxes"]) == (code, problems, images, boxes)
    for kind, count in problems.items():
        assert listed.count(f"[{kind}]; {KINDS[kind][1]}") == count  # one line each, with what to do


def test_every_torture_annotation_has_its_outcome(run, shared, tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    found = sorted((shared / "torture" / "ann").iterdir())
    assert len(found) > 30
    for path in found:
        arguments = [path, "--classes", tmp_path / "classes.txt", "--val-ratio", "0"]
        arguments += ["--images", shared / "torture" / "img"] if path.suffix == ".pkl" else ["--allow-outside"]
        check_torture(run, arguments, tmp_path / path.name.replace(".", "_"), TORTURE[path.name])


def test_all_torture_images_in_one_set(run, shared, tmp_path):
    images = shared / "torture" / "img"
    (tmp_path / "classes.txt").write_text("a\n")
    (tmp_path / "train.txt").write_text("\n".join(f"{path} 0,0,1,1,0" for path in sorted(images.iterdir())))
    total = len(list(images.iterdir()))
    code, summary, _, _ = run(
        tmp_path / "train.txt", "--classes", tmp_path / "classes.txt", "--out", tmp_path / "out", "--skip-bad",
        "--val-ratio", "0", "--allow-outside",
    )  # fmt: skip
    assert (code, summary["problems"]) == (0, {"truncated_image": 2, "unreadable_image": 2})
    assert summary["images"] == summary["boxes"] == total - 4
    records = open_split(tmp_path / "out", "train")
    for record in tf.data.TFRecordDataset(list(records.shard_paths)).map(parse).as_numpy_iterator():
        height, width = record["image_size"]
        assert tf.io.decode_jpeg(record["image/encoded"], channels=3).shape == (height, width, 3)


@pytest.mark.parametrize("name, degenerate", [("bccd", 2), ("raccoon", 0)])
def test_real_data_from_pickle_and_from_lines(run, shared, tmp_path, name, degenerate):
    root = shared / "data" / name
    for kind, suffix in (("lines", ".txt"), ("pickle", "_gt.pkl")):
        files = {split: root / f"{split}{suffix}" for split in ("train", "val", "test")}
        arguments = [files["train"], "--val", files["val"], "--classes", root / "classes.txt", "--skip-bad"]
        arguments += ["--test", files["test"]] if files["test"].exists() else []
        arguments += ["--images", root / "JPEGImages", "--out", tmp_path / kind]
        code, summary, _, _ = run(*arguments)
        assert code == 0
        assert summary["problems"] == ({"zero_area": degenerate} if degenerate else {})
        assert (summary["images"], summary["boxes"]) == {"bccd": (364, 4886), "raccoon": (200, 217)}[name]
        assert summary["changed"] == {}  # every JPEG was copied
    for split in summary["splits"]:
        assert_same_boxes(load(tmp_path / "lines", split), load(tmp_path / "pickle", split))
