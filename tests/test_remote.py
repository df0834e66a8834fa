"""Annotations, class names and images at addresses with a scheme, as TensorFlow's file systems know them.

ram:// is a file system in the memory of this process; worker processes can share file:// alone.
"""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdet.data import files, formats
from tfdet.data.address import Address, as_path, below
from tfdet.data.convert import convert
from tfdet.data.errors import AnnotationError, ImageError
from tfdet.data.formats.common import is_inside
from tfdet.data.inputs import find_images
from tools import inspect_dataset, make_tfrecords

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("cat", "dog")
SIZE = (40, 20)  # width, height


@pytest.fixture
def data(tmp_path):
    """Three images and the same two boxes in each form; the third image has none."""
    (tmp_path / "img").mkdir()
    for i in range(3):
        Image.new("RGB", SIZE, (80 * i, 0, 0)).save(tmp_path / "img" / f"{i}.jpg")
    (tmp_path / "train.txt").write_text("img/0.jpg 1,2,20,10,0\nimg/1.jpg 5,5,30,15,1\nimg/2.jpg\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    source = formats.read(tmp_path / "train.txt", class_names=NAMES)
    entries = [
        (dataclasses.replace(item, boxes=item.boxes / [*SIZE, *SIZE]), SIZE[::-1])  # a Listing has what save needs
        for item in source.listings
    ]
    for name in ("coco", "csv", "pickle"):
        formats.save(tmp_path / f"as.{name}", name, NAMES, entries)
    formats.save(tmp_path / "voc", "voc", NAMES, entries)
    formats.save(tmp_path / "darknet" / "labels", "darknet", NAMES, entries)
    convert({"train": source.listings}, tmp_path / "records", "toy", NAMES)
    return tmp_path


def upload(folder, address):
    """Copies a folder; other tests' files below the address go."""
    if tf.io.gfile.exists(address):
        tf.io.gfile.rmtree(address)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target = f"{address}/{path.relative_to(folder).as_posix()}"
            files.make_folder(target.rpartition("/")[0])
            with tf.io.gfile.GFile(target, "wb") as file:
                file.write(path.read_bytes())
    return address


def digests(folder):
    return {
        name: hashlib.sha256(files.read_bytes(files.join(folder, name))).hexdigest() for name in files.names(folder)
    }


# --- addresses ----------------------------------------------------------------------------------


def test_an_address_has_the_parts_of_a_path():
    path = as_path("gs://bucket/a/b.tar.jpg")
    assert (str(path), path.name, path.stem, path.suffix) == ("gs://bucket/a/b.tar.jpg", "b.tar.jpg", "b.tar", ".jpg")
    assert (path.parent, path.parent.parent) == (Address("gs://bucket/a"), Address("gs://bucket"))
    assert path.relative_to(Address("gs://bucket")).as_posix() == "a/b.tar.jpg"
    assert str(as_path("hdfs:///user/x").parent / "y") == "hdfs:///user/y"
    assert as_path("file:///data/x.jpg") == Path("/data/x.jpg")
    assert as_path("data/x.jpg") == Path("data/x.jpg")


@pytest.mark.parametrize(
    "root, name, inside",
    [
        ("gs://b/img", "1.jpg", True),
        ("gs://b/img", "sub/../1.jpg", True),
        ("gs://b/img", "gs://b/img/1.jpg", True),
        ("gs://b/img", "../1.jpg", False),
        ("gs://b/img", "sub/../../1.jpg", False),
        ("gs://b/img", "../img2/1.jpg", False),
        ("gs://b/img", "../../../c/1.jpg", False),
        ("gs://b/img", "/b/1.jpg", False),
        ("gs://b/img", "gs://b/img/../1.jpg", False),
        ("gs://b/img", "s3://b/img/1.jpg", False),
        ("gs://b/img", "file:///b/img/1.jpg", False),
        ("/b/img", "gs://b/img/1.jpg", False),
        ("/b/img", "file:///b/img/1.jpg", True),
        ("/b/img", "file:///b/img/../1.jpg", False),
    ],
)
def test_names_that_leave_the_root(root, name, inside):
    root = as_path(root)
    path = below(root, name)
    assert is_inside(path, root) is inside
    assert not isinstance(path, Address) or ".." not in str(path)  # what is checked is what will be read


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.txt", "as.coco", "as.csv", "as.pickle", "voc", "darknet", "records"])
def test_every_form_is_read_from_an_address_as_from_here(data, name):
    root = upload(data, "ram://set")
    beside = {"train.txt": None, "records": None, "darknet": None, "voc": ""}.get(name, "")
    if name == "darknet":
        for place in (data / "darknet", as_path("ram://set/darknet")):
            for i in range(3):
                files.make_folder(place / "images/img")
                with files.opened(place / f"images/img/{i}.jpg", "wb") as file:
                    file.write((data / "img" / f"{i}.jpg").read_bytes())
    here, there = (
        formats.read(
            f"{place}/{name}",
            images=None if beside is None else place,
            class_names=NAMES if name == "train.txt" else None,
        )
        for place in (data, root)
    )
    assert (there.format, there.class_names, there.problems) == (here.format, here.class_names, [])
    assert len(there.listings) == 3
    for one, other in zip(here.listings, there.listings):
        assert (other.image_id, other.labels.tolist()) == (one.image_id, one.labels.tolist())
        assert other.image_path == one.image_path.replace(str(data), root)
        np.testing.assert_array_equal(other.boxes, one.boxes)


def test_what_is_not_there_and_what_lies_outside(data):
    lines = "../1.jpg 1,1,5,5,0\n/etc/1.jpg\nfile:///etc/1.jpg\nram://other/1.jpg\nimg/nope.jpg\nimg/0.jpg\n"
    (data / "train.txt").write_text(lines)
    root = upload(data, "ram://set")
    source = formats.read(f"{root}/train.txt", class_names=NAMES)
    assert [problem.kind for problem in source.problems] == ["outside_root"] * 4 + ["missing_image"]
    assert source.problems[4].where == "ram://set/train.txt:5"
    assert [item.image_path for item in source.listings] == ["ram://set/img/0.jpg"]
    (data / "local.txt").write_text("ram://set/img/1.jpg\n")
    assert [p.kind for p in formats.read(data / "local.txt", class_names=NAMES).problems] == ["outside_root"]
    source = formats.read(data / "local.txt", class_names=NAMES, allow_outside=True)
    assert [item.image_path for item in source.listings] == ["ram://set/img/1.jpg"]


def test_a_file_that_appears_is_seen_by_the_next_reading(data):
    root = upload(data, "ram://set")
    tf.io.gfile.remove(f"{root}/img/1.jpg")
    assert len(formats.read(f"{root}/train.txt", class_names=NAMES).listings) == 2
    upload(data, root)
    assert len(formats.read(f"{root}/train.txt", class_names=NAMES).listings) == 3


@pytest.mark.parametrize("address", ["nope://bucket/train.txt", "ram://set/nowhere.txt"])
def test_an_address_that_cannot_be_read_is_one_clear_error(data, address):
    with pytest.raises(AnnotationError, match=f"{address}: cannot be read"):
        formats.read(address, class_names=NAMES)
    with pytest.raises(ImageError, match=address):
        find_images([address])


@pytest.mark.parametrize("name", ["train.txt", "as.coco", "as.pickle", "as.csv", "voc"])
def test_an_image_folder_that_cannot_be_read_is_what_is_named(data, name):
    with pytest.raises(AnnotationError, match=r"^nope://b[^:]*: cannot be read"):
        formats.read(data / name, images="nope://b", class_names=NAMES)


def test_images_are_found_at_addresses(data):
    root = upload(data, "ram://set")
    wanted = [f"{root}/img/{i}.jpg" for i in range(3)]
    assert [photo.path for photo in find_images([f"{root}/img"])] == wanted
    assert [photo.path for photo in find_images([f"{root}/img/*.jpg"])] == wanted
    assert [photo.name for photo in find_images([f"{root}/records"])] != []


# --- tools --------------------------------------------------------------------------------------


def test_the_tools_take_addresses(data, capsys):
    root = upload(data, "ram://set")
    options = ["--classes", f"{root}/classes.txt", "--workers", "1"]
    output = ["--name", "x", "--val-ratio", "0"]
    for place, more in ((root, [*options, *output]), (data, ["--classes", str(data / "classes.txt"), *output])):
        assert make_tfrecords.main([f"{place}/train.txt", "--out", f"{place}/out", *more]) == 0
    assert digests(f"{root}/out") == digests(data / "out")
    capsys.readouterr()
    assert inspect_dataset.main([f"{root}/train.txt", *options]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 3


@pytest.mark.parametrize("name", ["coco", "voc", "darknet"])
def test_annotations_are_written_at_addresses(data, capsys, name):
    out = f"{upload(data, 'ram://written')}/new/{name}"
    arguments = [str(data / "train.txt"), "--classes", str(data / "classes.txt"), "--to", name, "--out", out]
    assert make_tfrecords.main(arguments) == 0
    found = formats.read(out, images=data, class_names=NAMES)
    assert sorted(item.labels.tolist() for item in found.listings) == [[], [0], [1]]
    assert make_tfrecords.main(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"make_tfrecords: {out}: it is there already")


def test_annotations_that_cannot_be_written_at_an_address(data, monkeypatch, capsys):
    out = f"{upload(data, 'ram://broken')}/new"
    arguments = [str(data / "train.txt"), "--classes", str(data / "classes.txt"), "--to", "darknet", "--out"]
    write_whole = files.write_whole
    for error, code in ((OSError(28, "No space left"), 2), (KeyboardInterrupt(), 130)):
        faults = iter([None, error])

        def fail_later(*arguments, faults=faults):
            if fault := next(faults):
                raise fault
            write_whole(*arguments)

        monkeypatch.setattr(files, "write_whole", fail_later)
        assert make_tfrecords.main([*arguments, out]) == code
        assert not files.exists(out)  # or the next try would find it there
    full, interrupted = [line for line in capsys.readouterr().err.splitlines() if line.startswith("make_tfrecords: ")]
    assert full == f"make_tfrecords: {out}: cannot be written (No space left); check the address"
    assert interrupted.startswith("make_tfrecords: interrupted, nothing was written")
    assert make_tfrecords.main([*arguments, "nope://bucket/new"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("make_tfrecords: nope://bucket/new: cannot be written")
    item = formats.read(data / "train.txt", class_names=NAMES).listings[0]
    with pytest.raises(AnnotationError, match=f"^{out}: two images are called"):
        formats.save(out, "coco", NAMES, [(item, SIZE)] * 2)


def test_workers_read_images_at_addresses(data):
    """Shards that are cut into pieces, and TensorFlow in each worker."""
    listings = formats.read(data / "train.txt", class_names=NAMES).listings * 16
    listings = [dataclasses.replace(item, image_id=f"{i}.jpg") for i, item in enumerate(listings)]
    convert({"train": listings}, data / "here", "x", NAMES)
    elsewhere = [dataclasses.replace(item, image_path=f"file://{item.image_path}") for item in listings]
    convert({"train": elsewhere}, data / "there", "x", NAMES, workers=2)
    assert digests(data / "there") == digests(data / "here")


def test_local_files_need_no_tensorflow(data):
    code = (
        "import sys; from tfdet.data import formats; from tfdet.data.doctor import diagnose; from tfdet.data import *;"
        f"print(len(formats.read('file://{data}/as.coco', images='{data}').listings), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "3 False\n"
