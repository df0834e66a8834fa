"""Records: bytes equal to TensorFlow's, round trips, and nothing acceptable after a crash or damage."""

import dataclasses
import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfdet import schema
from tfdet.data import convert, tfrecord
from tfdet.data.annotations import Annotation
from tfdet.data.checks import Checks, make_policies
from tfdet.data.errors import DataError, RecordError
from tfdet.data.formats import common
from tfdet.data.images import EncodedImage, ImageOptions
from tfdet.data.manifest import SCHEMA_VERSION
from tfdet.data.records import open_split, parse, read_index
from tfdet.data.shards import record_features

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("red", "grün", "blue")

# --- the two formats on disk --------------------------------------------------------------------


def slow_crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_crc32c_of_known_texts():
    assert tfrecord.crc32c_in_numpy(b"") == 0
    assert tfrecord.crc32c_in_numpy(b"123456789") == 0xE3069283  # the check value of the polynomial
    assert tfrecord.crc32c_in_numpy(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert tfrecord.crc32c_in_numpy(b"\xff" * 32) == 0x62A8AB43
    assert tfrecord.crc32c_in_numpy(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 255, 256, 257, 259, 511, 513])
def test_crc32c_of_every_kind_of_length(rng, size):
    data = rng.bytes(size)
    assert tfrecord.crc32c_in_numpy(data) == slow_crc32c(data)


@pytest.mark.parametrize("size", [0, 1, 80_000, 65_535, 65_536, 65_537, 65_539, 200_000])
def test_frames_equal_tensorflows(rng, tmp_path, monkeypatch, size):
    monkeypatch.setattr(tfrecord, "google_crc32c", None)
    payload = rng.bytes(size)
    with tf.io.TFRecordWriter(str(tmp_path / "x")) as writer:
        writer.write(payload)
    frame = tfrecord.frame(payload)
    assert frame == (tmp_path / "x").read_bytes()
    assert len(frame) == size + tfrecord.FRAME_BYTES


def tensorflow_example(features):
    kinds = {"S": ("bytes_list", tf.train.BytesList), "f": ("float_list", tf.train.FloatList)}
    message = {}
    for name, values in features.items():
        kind = "S" if isinstance(values, list) else values.dtype.kind
        key, make = kinds.get(kind, ("int64_list", tf.train.Int64List))
        message[name] = tf.train.Feature(**{key: make(value=values)})
    return tf.train.Example(features=tf.train.Features(feature=message)).SerializeToString(deterministic=True)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        # of one length, because implementations order a name and its beginning differently
        st.text(st.characters(exclude_categories=["Cs"]), min_size=3, max_size=3),
        st.lists(st.binary(max_size=300), max_size=4)
        | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5).map(lambda values: np.array(values, np.int64))
        | st.lists(st.floats(width=32, allow_nan=False), max_size=5).map(lambda values: np.array(values, np.float32)),
        max_size=6,
    )
)
def test_examples_equal_tensorflows(features):
    assert tfrecord.example(features) == tensorflow_example(features)


def sample(count, encoded=b"x" * 70_000):
    boxes = np.linspace(0, 1, count * 4, dtype=np.float32).reshape(-1, 4)
    labels = np.arange(count, dtype=np.int32) % 3
    annotation = Annotation("some/where.jpg", "some/where", boxes, labels, np.arange(count) % 2 == 1)
    return annotation, EncodedImage(encoded, 30, 200, "jpeg", None, (30, 200), "JPEG")


@pytest.mark.parametrize("count", [0, 1, 300])
def test_records_follow_the_schema_and_parse_back(count):
    annotation, image = sample(count)
    features = record_features(annotation, image, NAMES)
    assert set(features) == {*schema.record_features(), schema.FILENAME, schema.CLASS_TEXT}
    serialized = tfrecord.example(features)
    assert serialized == tensorflow_example(features)
    dataset = tf.data.Dataset.from_tensors(serialized).map(parse)
    for record in (parse(tf.constant(serialized)), next(iter(dataset))):
        np.testing.assert_array_equal(record["boxes"], annotation.boxes)
        np.testing.assert_array_equal(record["labels"], np.where(annotation.difficult, -2, annotation.labels))
        assert record["boxes"].dtype == tf.float32
        assert record["labels"].dtype == record["image_size"].dtype == tf.int32
        assert record["image/encoded"].numpy() == image.encoded
        assert record["image_id"].numpy() == b"some/where"
        np.testing.assert_array_equal(record["image_size"], [30, 200])
    assert dataset.element_spec["boxes"].shape.as_list() == [None, 4]
    assert dataset.element_spec["labels"].shape.as_list() == [None]
    message = tf.train.Example.FromString(serialized).features.feature
    assert list(message[schema.CLASS_LABEL].int64_list.value) == (annotation.labels + 1).tolist()  # from 1 on disk
    assert list(message[schema.CLASS_TEXT].bytes_list.value) == [NAMES[i].encode() for i in annotation.labels]
    assert message[schema.FILENAME].bytes_list.value[0] == b"where.jpg"


def test_the_tensorflow_free_writer_agrees_with_the_schema():
    assert SCHEMA_VERSION == schema.SCHEMA_VERSION


def test_conversion_does_not_import_tensorflow():
    code = "import sys, tfdet.data.convert, tfdet.data.formats; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --- data sets ----------------------------------------------------------------------------------


def make_listings(folder, count, prefix="img"):
    """JPEG files of different sizes with i % 4 boxes each."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(count)
    listings = []
    for i in range(count):
        path = folder / f"{prefix}{i}.jpg"
        width, height = 30 + i, 20 + 2 * i
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        rows = [[1 + j, 2, 10 + j, 12, (i + j) % 3] for j in range(i % 4)]
        numbers = range(1, len(rows) + 1)
        difficult = [j == 2 for j in range(i % 4)]
        name = path.name
        listings.append(common.make_listing(f"f:{i}", path, name, rows, numbers, in_pixels=True, difficult=difficult))
    return listings


def make_set(tmp_path, count=10, out="out", **options):
    listings = make_listings(tmp_path / "img", count)
    splits = {"train": listings[:-3], "val": listings[-3:]}
    report = convert.convert(splits, tmp_path / out, "toy", NAMES, **options)
    return splits, report


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def records_at_index(records):
    """Payloads read by hand at the index's places."""
    files = [Path(path).read_bytes() for path in records.shard_paths]
    return [files[shard][offset + 12 : offset + 12 + length] for shard, offset, length in records.index]


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_a_data_set_round_trips(tmp_path, shards):
    splits, report = make_set(tmp_path, shards=shards)
    assert report.problems == []
    for split, listings in splits.items():
        records = open_split(tmp_path / "out", split)
        assert (records.name, records.split, records.class_names, records.store) == ("toy", split, NAMES, "jpeg")
        assert records.num_images == len(records.index) == len(listings)
        assert records.num_boxes == sum(len(listing.boxes) for listing in listings)
        assert records.max_boxes == max(len(listing.boxes) for listing in listings)
        tags = {Path(path).name.split(".")[0].removeprefix(f"toy-{split}-") for path in records.shard_paths}
        assert [len(tag) for tag in tags] == [8]  # of all shards' content
        assert [Path(path).name.split(".")[1] for path in records.shard_paths] == [
            f"tfrecord-{i:05d}-of-{max(shards, 1):05d}" for i in range(max(shards, 1))
        ]
        serialized = list(tf.data.TFRecordDataset(list(records.shard_paths)).as_numpy_iterator())
        assert serialized == records_at_index(records)
        wanted = {listing.image_id.encode(): listing for listing in listings}
        for record in tf.data.TFRecordDataset(list(records.shard_paths)).map(parse).as_numpy_iterator():
            listing = wanted.pop(record["image_id"])
            data = Path(listing.image_path).read_bytes()
            assert record["image/encoded"] == data
            height, width = record["image_size"]
            assert tf.io.decode_jpeg(data).shape == (height, width, 3)
            np.testing.assert_allclose(
                record["boxes"], listing.boxes / [width, height, width, height], rtol=0, atol=1e-6
            )
            np.testing.assert_array_equal(record["labels"], np.where(listing.difficult, -2, listing.labels))
        assert not wanted


def test_the_manifest_tells_the_truth(tmp_path):
    make_set(tmp_path, shards=2, options=ImageOptions(max_side=25, quality=60))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema_version"] == 1
    assert manifest["class_names"] == list(NAMES)
    assert (manifest["store"], manifest["max_side"], manifest["quality"]) == ("jpeg", 25, 60)
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            data = (tmp_path / "out" / shard["file"]).read_bytes()
            assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert split["num_images"] == sum(shard["num_images"] for shard in split["shards"])


def test_the_bytes_do_not_depend_on_the_workers_or_the_order(tmp_path):
    splits, _ = make_set(tmp_path, out="one", shards=3)
    calls = []
    reordered = {split: listings[::-1] for split, listings in splits.items()}
    convert.convert(
        reordered, tmp_path / "two", "toy", NAMES, shards=3, workers=2, progress=lambda *call: calls.append(call)
    )
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert calls[-1] == (10, 10)


def test_images_are_dealt_to_the_shards_in_the_order_of_a_hash(tmp_path):
    splits, _ = make_set(tmp_path, shards=3)
    order = sorted((item.image_id for item in splits["train"]), key=lambda name: hashlib.sha256(name.encode()).digest())
    records = open_split(tmp_path / "out", "train")
    found = [parse(payload)["image_id"].numpy().decode() for payload in records_at_index(records)]
    assert found == order[0::3] + order[1::3] + order[2::3]


def test_raw_and_shrunk_records_decode(tmp_path):
    make_set(tmp_path, options=ImageOptions(store="raw", max_side=16))
    records = open_split(tmp_path / "out", "val")
    assert records.store == "raw"
    for payload in records_at_index(records):
        record = parse(payload)
        height, width = record["image_size"].numpy()
        assert max(height, width) == 16
        assert len(record["image/encoded"].numpy()) == height * width * 3
        assert (record["boxes"].numpy() <= 1).all()


def test_the_number_of_shards_follows_the_size(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "SHARD_BYTES", 5000)
    make_set(tmp_path)
    records = open_split(tmp_path / "out", "train")
    total = sum(Path(path).stat().st_size for path in records.shard_paths)
    assert abs(len(records.shard_paths) - total / 5000) <= 2


def test_converting_again_replaces_everything(tmp_path):
    make_set(tmp_path, shards=3)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / ".partial").mkdir()
    (tmp_path / "out" / ".partial" / "train-00007").write_text("of a run that was killed")
    make_set(tmp_path, out="fresh", shards=2)
    make_set(tmp_path, shards=2)
    assert digests(tmp_path / "out") == {
        **digests(tmp_path / "fresh"),
        "notes.txt": hashlib.sha256(b"mine").hexdigest(),
    }


# --- bad data -----------------------------------------------------------------------------------


def spoil(listings):
    Path(listings[0].image_path).write_bytes(b"no image")
    path = Path(listings[1].image_path)
    path.write_bytes(path.read_bytes()[:-100])
    listings[2].boxes[0] = [5, 5, 5, 9]


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_data_keeps_everything_from_being_written(tmp_path, workers):
    listings = make_listings(tmp_path / "img", 6)
    spoil(listings)
    report = convert.convert({"train": listings}, tmp_path / "out", "toy", NAMES, shards=2, workers=workers)
    assert report.manifest is None
    assert sorted((problem.kind, problem.where) for problem in report.problems) == [
        ("truncated_image", "f:1"),
        ("unreadable_image", "f:0"),
        ("zero_area", "f:2"),
    ]
    assert not (tmp_path / "out").exists()


def test_bad_data_is_left_out_on_request(tmp_path):
    listings = make_listings(tmp_path / "img", 6)
    spoil(listings)
    report = convert.convert(
        {"train": listings}, tmp_path / "out", "toy", NAMES, shards=6, checks=Checks(make_policies(["clip"]))
    )
    assert len(report.problems) == 3
    records = open_split(tmp_path / "out", "train")
    assert (records.num_images, records.num_boxes, len(records.shard_paths)) == (4, 1 + 3 + 0 + 1, 4)


def test_nothing_usable_writes_nothing(tmp_path):
    listings = make_listings(tmp_path / "img", 1)
    Path(listings[0].image_path).unlink()
    report = convert.convert(
        {"train": listings}, tmp_path / "out", "toy", NAMES, checks=Checks(make_policies(["clip"]))
    )
    assert report.manifest is None
    assert not (tmp_path / "out").exists()


# --- crashes ------------------------------------------------------------------------------------

# Every run is a process of its own that dies, without any cleaning up, right before its n-th change of a name.
CRASHING_RUNS = """
import os, pickle, sys
from tfdet.data import convert
listings, out, changes = pickle.load(sys.stdin.buffer)
for n in range(changes):
    if os.fork() == 0:
        left = [n]
        def crashing(function):
            def call(*arguments, **options):
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                return function(*arguments, **options)
            return call
        os.fsync = lambda descriptor: None  # this is about the order, and quick
        os.replace, os.link, os.unlink = map(crashing, (os.replace, os.link, os.unlink))
        convert.convert({"train": listings[3:], "val": listings[:3]}, f"{out}-{n}", "toy", ("a", "b", "c"), shards=2)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.fixture(scope="module")
def crashes(tmp_path_factory):
    """The folders of runs that died over an older set, the older set, the new set, and its listings."""
    root = tmp_path_factory.mktemp("crashes")
    listings = make_listings(root / "img", 8)
    splits = {"train": listings[3:], "val": listings[:3]}
    convert.convert({"train": listings}, root / "old", "toy", NAMES, shards=2)
    convert.convert(splits, root / "new", "toy", ("a", "b", "c"), shards=2)
    for n in range(50):
        shutil.copytree(root / "old", root / f"out-{n}")
    content = pickle.dumps((listings, str(root / "out"), 50))
    run = subprocess.run(
        [sys.executable, "-c", CRASHING_RUNS], input=content, cwd=ROOT, capture_output=True, check=True
    )
    died = run.stdout.split().index(b"0")
    assert died > 20  # shards, what was found in them, indices, manifest; each with what is removed
    return [root / f"out-{n}" for n in range(died)], root / "old", root / "new", splits


def test_a_run_that_dies_leaves_the_older_set_or_the_new_one(crashes):
    died, old, new, _ = crashes
    whole = {(old / "manifest.json").read_bytes(): old, (new / "manifest.json").read_bytes(): new}
    found = []
    for folder in died:
        expected = whole[(folder / "manifest.json").read_bytes()]
        for split in json.loads((folder / "manifest.json").read_bytes())["splits"]:
            assert records_at_index(open_split(folder, split)) == records_at_index(open_split(expected, split))
        found.append(expected)
    assert found == sorted(found, reverse=True)  # old, old ..., new, new
    assert set(found) == {old, new}


def test_a_run_that_resumes_ends_with_the_same_bytes(crashes):
    died, _, new, splits = crashes
    resumed = []
    for folder in died[::3]:
        report = convert.convert(splits, folder, "toy", ("a", "b", "c"), shards=2, resume=True)
        assert digests(folder) == digests(new)
        resumed.append(report.resumed)
    assert {0, 8} <= set(resumed)  # before the first shard, and after the last
    assert len(set(resumed)) > 2


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    def fsync(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    listings = make_listings(tmp_path / "img", 2)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RecordError, match=r"writing failed \(No space left on device\); free some space"):
        convert.convert({"train": listings}, tmp_path / "out", "toy", NAMES)
    assert not (tmp_path / "out").exists()


class EndOfProcess:
    def __reduce__(self):
        return os._exit, (1,)


def test_a_dead_worker_is_one_clear_error(tmp_path):
    # in every shard, since one that another worker finished would wait for --resume
    listings = [
        dataclasses.replace(listing, image_path=EndOfProcess()) for listing in make_listings(tmp_path / "img", 4)
    ]
    with pytest.raises(DataError, match="a worker process died; it may have run out of memory"):
        convert.convert({"train": listings}, tmp_path / "out", "toy", NAMES, shards=2, workers=2)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RecordError, match="writing failed"):
        convert.convert({"train": make_listings(tmp_path / "img", 1)}, tmp_path / "out", "toy", NAMES)


# --- damage -------------------------------------------------------------------------------------


def edit_manifest(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def edit_index(folder, change):
    index = np.load(index_of(folder))
    np.save(index_of(folder), change(index))


def index_of(folder):
    (path,) = folder.glob("toy-train-*.index.npy")
    return path


def first_shard(folder):
    (path,) = folder.glob("toy-train-*.tfrecord-00000-of-00002")
    return path


def swap(index):
    index[:, 1:] = index[::-1, 1:]
    return index


DAMAGE = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "out: there is no manifest.json"),
    "cut manifest": (lambda folder: (folder / "manifest.json").write_text('{"schema'), "the manifest is damaged"),
    "other manifest": (lambda folder: (folder / "manifest.json").write_text("[]"), "the manifest is damaged"),
    "newer": (lambda folder: edit_manifest(folder, lambda m: m.update(schema_version=2)), "version 2, .* reads 1"),
    "no splits": (lambda folder: edit_manifest(folder, lambda m: m.pop("splits")), "manifest lacks 'splits'"),
    "other split": (
        lambda folder: edit_manifest(folder, lambda m: m["splits"].pop("train")),
        "no split 'train'; .* val",
    ),
    "cut shard": (lambda folder: os.truncate(first_shard(folder), 100), "00000-of-00002: the shard has 100 bytes"),
    "grown shard": (lambda folder: os.truncate(first_shard(folder), 10**6), "00000-of-00002: the shard has"),
    "no shard": (lambda folder: first_shard(folder).unlink(), "00000-of-00002: the shard is missing"),
    "no index": (lambda folder: index_of(folder).unlink(), "index cannot be read"),
    "cut index": (lambda folder: os.truncate(index_of(folder), 150), "index cannot be read"),
    "other index": (lambda folder: np.save(index_of(folder), np.zeros(3)), "float64 .* not int64"),
    "short index": (lambda folder: edit_index(folder, lambda index: index[:-1]), "00001.*does not fit the shard"),
    "long index": (lambda folder: edit_index(folder, lambda index: np.insert(index, 7, 9, axis=0)), "of no shard"),
    "moved index": (
        lambda folder: edit_index(folder, lambda index: index + np.array([0, 1, 0])),
        "00000.*does not fit",
    ),
    "swapped index": (lambda folder: edit_index(folder, swap), "does not fit"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_when_a_split_is_opened(tmp_path, name):
    make_set(tmp_path, shards=2)
    damage, text = DAMAGE[name]
    damage(tmp_path / "out")
    with pytest.raises(RecordError, match=text):
        open_split(tmp_path / "out", "train")


def test_read_index_stands_alone(tmp_path):
    _, report = make_set(tmp_path, shards=2)
    folder, entry = tmp_path / "out", report.manifest["splits"]["train"]
    index = read_index(folder / entry["index"], folder, entry["shards"])
    assert index.shape == (7, 3)
    assert (index[:4, 0] == 0).all()
    assert (index[4:, 0] == 1).all()
