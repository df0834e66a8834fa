"""Writing records when things go wrong: kills, full disks, two at once, later additions, flipped bytes."""

import dataclasses
import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdet.data import convert, files, shards, stored, tfrecord
from tfdet.data.annotations import Listing
from tfdet.data.checks import Checks, make_policies
from tfdet.data.errors import RecordError
from tfdet.data.images import ImageOptions
from tfdet.data.records import open_split, parse
from tfdet.data.storage import compare_storage, describe

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("red", "green", "blue")


def make_listings(folder, count, first=0):
    """JPEG files with i % 4 boxes each."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(first)
    listings = []
    for i in range(first, first + count):
        path = folder / f"{i}.jpg"
        Image.fromarray(rng.integers(0, 256, (40 + i % 7, 50, 3), np.uint8)).save(path)
        boxes = np.array([[1 + j, 2, 10 + j, 12] for j in range(i % 4)], np.float64).reshape(-1, 4)
        labels, numbers = np.arange(i % 4, dtype=np.int32) % 3, np.arange(1, i % 4 + 1)
        listings.append(Listing(f"f:{i}", str(path), path.name, boxes, labels, labels == 2, numbers, in_pixels=True))
    return listings


def run(listings, out, *, val=0, **options):
    splits = {"train": listings[val:], "val": listings[:val]}
    return convert.convert(splits, out, "toy", NAMES, **{"shards": 3, **options})


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def ids(folder, split="train"):
    dataset = tf.data.TFRecordDataset(list(open_split(folder, split).shard_paths)).map(parse)
    return [record["image_id"].decode() for record in dataset.as_numpy_iterator()]


def drop():
    return Checks(make_policies(["drop"]))


# --- checksums ----------------------------------------------------------------------------------


def test_the_powers_that_crcs_are_folded_by_are_a_multiple_of_the_polynomial():
    product = 1 | sum(1 << 8 * power for power in tfrecord._POWERS)
    divisor = 0x11EDC6F41  # x^32 + ... + 1, RFC 3720 section 12.1
    while product.bit_length() >= divisor.bit_length():
        product ^= divisor << product.bit_length() - divisor.bit_length()
    assert product == 0


@pytest.mark.parametrize("size", [5680, 5681, 5685, 5686, 11_365, 11_366, 11_370, 11_371, 22_740, 300_000])
def test_crcs_around_the_sizes_where_folding_begins(rng, size, tmp_path, monkeypatch):
    payload = rng.bytes(size)
    monkeypatch.setattr(tfrecord, "google_crc32c", None)
    with tf.io.TFRecordWriter(str(tmp_path / "x")) as writer:
        writer.write(payload)
    assert tfrecord.frame(payload) == (tmp_path / "x").read_bytes()


def test_the_library_gives_the_same_crcs(rng):
    library = pytest.importorskip("google_crc32c", reason="google-crc32c is not installed: pip install google-crc32c")
    for size in (0, 1, 16, 17, 90_000):
        data = rng.bytes(size)
        assert tfrecord.crc32c(memoryview(data)) == tfrecord.crc32c_in_numpy(data) == library.value(data)


def test_examples_of_tensorflow_are_parsed():
    feature = {
        "b": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x" * 300, b""])),
        "f": tf.train.Feature(float_list=tf.train.FloatList(value=[0.5, -1])),
        "i": tf.train.Feature(int64_list=tf.train.Int64List(value=[-3, 0, 300])),
        "none": tf.train.Feature(),
        "empty": tf.train.Feature(int64_list=tf.train.Int64List()),
    }
    fields = tfrecord.parse_example(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    assert [bytes(value) for value in fields["b"]] == [b"x" * 300, b""]
    np.testing.assert_array_equal(fields["f"], np.float32([0.5, -1]))
    np.testing.assert_array_equal(fields["i"], [-3, 0, 300])
    assert len(fields["none"]) == len(fields["empty"]) == 0


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05abc", b"\x08\x01", b"\xff" * 12])
def test_what_is_no_example_is_refused(data):
    with pytest.raises(ValueError, match=r"no tf\.train\.Example"):
        tfrecord.parse_example(data)


# --- resuming -----------------------------------------------------------------------------------


class Stop(Exception):
    pass


def interrupt(listings, out, after, **options):
    """A run that ends early, as after Ctrl-C."""

    def progress(done, _total):
        if done == after:
            raise Stop

    with pytest.raises(Stop):
        run(listings, out, progress=progress, **options)


def test_a_resumed_run_takes_finished_shards_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    listings = make_listings(tmp_path / "img", 9)
    run(listings, tmp_path / "whole")
    interrupt(listings, tmp_path / "out", 7)  # three images a shard
    with pytest.raises(RecordError, match=r"no manifest\.json"):
        open_split(tmp_path / "out", "train")
    written, write = [], shards.write
    monkeypatch.setattr(convert, "write", lambda job, tick: written.append(job) or write(job, tick))
    calls = []
    report = run(listings, tmp_path / "out", resume=True, progress=lambda *call: calls.append(call))
    assert (report.resumed, len(written)) == (6, 1)
    assert (calls[0], calls[-1]) == ((7, 9), (9, 9))
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert not (tmp_path / "out" / ".partial").exists()


def replace_image(listings):
    Image.new("RGB", (50, 45)).save(listings[0].image_path)
    return listings


CHANGES = {
    "an image": (replace_image, {}, 6),
    "a box": (lambda items: [*items[:-1], dataclasses.replace(items[-1], boxes=items[-1].boxes + 1)], {}, 6),
    "a new image": (lambda items: [*items, dataclasses.replace(items[0], image_id="other.jpg")], {}, 0),
    "an option": (lambda items: items, {"options": ImageOptions(quality=80)}, 0),
    "a check": (lambda items: items, {"checks": drop()}, 0),
    "the shards": (lambda items: items, {"shards": 4}, 0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_two_runs_never_gives_a_mixture(tmp_path, name):
    listings = make_listings(tmp_path / "img", 9)
    change, options, most = CHANGES[name]
    interrupt(listings, tmp_path / "out", 9)  # at the last image, so two shards are finished
    listings = change(listings)
    report = run(listings, tmp_path / "out", resume=True, **options)
    assert report.resumed <= most
    run(listings, tmp_path / "fresh", **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_a_damaged_finished_shard_is_written_anew(tmp_path):
    listings = make_listings(tmp_path / "img", 9)
    run(listings, tmp_path / "whole")
    interrupt(listings, tmp_path / "out", 7)
    for path in (tmp_path / "out" / ".partial").glob("*.json"):
        shard = path.with_suffix("")
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert run(listings, tmp_path / "out", resume=True).resumed == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_without_resume_everything_is_written_anew(tmp_path):
    listings = make_listings(tmp_path / "img", 9)
    interrupt(listings, tmp_path / "out", 7)
    assert run(listings, tmp_path / "out").resumed == 0
    assert not (tmp_path / "out" / ".partial").exists()


def test_problems_of_finished_shards_are_not_forgotten(tmp_path):
    listings = make_listings(tmp_path / "img", 9)
    listings[3].boxes[0] = [5, 5, 5, 9]
    fresh = run(listings, tmp_path / "fresh", checks=drop())
    interrupt(listings, tmp_path / "out", 9, checks=drop())
    resumed = run(listings, tmp_path / "out", resume=True, checks=drop())
    assert resumed.problems == fresh.problems
    assert [problem.kind for problem in resumed.problems] == ["zero_area"]


# Each run is a process that is killed at some moment and followed by one that goes on.
KILLED_RUNS = """
import os, pickle, random, signal, sys, time
from tfdet.data import convert
listings, out, kills = pickle.load(sys.stdin.buffer)
os.fsync = lambda descriptor: None  # this is about kills, not about power cuts

def run(folder, workers):
    splits = {"train": listings[5:], "val": listings[:5]}
    return convert.convert(splits, folder, "toy", ("red", "green", "blue"), shards=6, workers=workers, resume=True)

start = time.monotonic()
run(out + "-whole", 1)
alone = time.monotonic() - start
for n in range(kills):
    workers = 1 + n % 2
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        run(f"{out}-{n}", workers)
        os._exit(0)
    time.sleep(random.random() * (alone if workers == 1 else alone + 0.7))
    os.kill(child, signal.SIGKILL)  # its workers follow it
    os.waitpid(child, 0)
    if workers == 1:  # what is there opens, or says that it is not finished
        print(os.path.exists(f"{out}-{n}/manifest.json"), file=sys.stderr)
    report = run(f"{out}-{n}", 1)
    print(report.resumed)
"""


def test_kill_9_at_ten_random_moments(tmp_path):
    listings = make_listings(tmp_path / "img", 120)
    content = pickle.dumps((listings, str(tmp_path / "out"), 10))
    done = subprocess.run([sys.executable, "-c", KILLED_RUNS], input=content, cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert len(done.stdout.split()) == 10
    for n in range(10):
        assert digests(tmp_path / f"out-{n}") == digests(tmp_path / "out-whole")
        assert not (tmp_path / f"out-{n}" / ".partial").exists()


# --- full disks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [0, 1, 3, 6, 7])
def test_a_disk_that_fills_up_leaves_the_older_set(tmp_path, monkeypatch, allowed):
    old, new = make_listings(tmp_path / "img", 6), make_listings(tmp_path / "img", 9, first=20)
    run(old, tmp_path / "out")
    before = digests(tmp_path / "out")
    run(new, tmp_path / "fresh")
    left, fsync = [allowed], os.fsync

    def filling(descriptor):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", filling)
        patch.setattr(files, "_sync_folder", lambda folder: None)
        with pytest.raises(RecordError, match=r"No space left on device\); free some space, then go on with --resume"):
            run(new, tmp_path / "out")
    assert digests(tmp_path / "out").items() >= before.items()
    assert sorted(ids(tmp_path / "out")) == sorted(item.image_id for item in old)
    run(new, tmp_path / "out", resume=True)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


LIMITED = """
import resource, sys
sys.path.insert(0, "tools")
import make_tfrecords
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(make_tfrecords.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_limit_of_the_system_ends_the_tool_with_one_line(tmp_path):
    make_listings(tmp_path / "img", 20)
    (tmp_path / "train.txt").write_text("\n".join(f"img/{i}.jpg 1,1,9,9,0" for i in range(20)))
    (tmp_path / "classes.txt").write_text("cat\n")
    command = [sys.executable, "-c", LIMITED, tmp_path / "train.txt", "--classes", tmp_path / "classes.txt"]
    command += ["--out", tmp_path / "out", "--workers", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    message = [line for line in done.stderr.splitlines() if line.startswith("make_tfrecords: ")]
    assert len(message) == 1
    assert "writing failed (File too large); check the folder" in message[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


# --- two at once --------------------------------------------------------------------------------


def test_two_conversions_into_one_folder_are_refused(tmp_path):
    listings = make_listings(tmp_path / "img", 3)
    refused = []

    def progress(_done, _total):
        with pytest.raises(RecordError, match=rf"another conversion \(process {os.getpid()}\) writes into this folder"):
            run(listings, tmp_path / "out")
        refused.append(True)

    run(listings, tmp_path / "out", progress=progress)
    assert refused
    assert len(ids(tmp_path / "out")) == 3


def test_the_lock_of_a_dead_process_locks_nothing(tmp_path):
    listings = make_listings(tmp_path / "img", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").write_text("1\n")  # that process runs, but it holds no lock
    run(listings, tmp_path / "out")
    assert not (tmp_path / "out" / ".lock").exists()


# --- pieces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.6, 0.9, 1.2])
def test_ctrl_c_twice_ends_at_any_moment(tmp_path, seconds):
    """The second may come while the pool of processes ends, which could then wait for ever."""
    for i in range(200):
        Image.new("RGB", (1500, 1000), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "train.txt").write_text("".join(f"{i}.png 1,1,90,90,0\n" for i in range(200)))
    (tmp_path / "classes.txt").write_text("cat\n")
    command = [
        sys.executable,
        ROOT / "tools" / "make_tfrecords.py",
        "train.txt",
        "--classes",
        "classes.txt",
        "--out",
        "out",
        "--workers",
        "2",
    ]
    started = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    )
    time.sleep(seconds)
    os.kill(started.pid, signal.SIGINT)
    os.killpg(started.pid, signal.SIGINT)
    started.communicate(timeout=60)
    assert started.returncode in (130, -signal.SIGINT)  # the latter while Python itself starts
    assert not (tmp_path / "out" / "manifest.json").exists()


def hear_ctrl_c():
    """In the child: who runs the tests may ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


BLOCKED = """
import signal
from dataclasses import dataclass
from tfdet.data.workers import run_jobs

@dataclass
class Job:
    listings: tuple = (1,)

def blocked(job=None, tick=None):
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())

if __name__ == "__main__":
    print(run_jobs(blocked, [Job(), Job()], 2, "here"), blocked())
"""


def test_workers_never_hear_ctrl_c(tmp_path):
    """Not even while they start, which left a pool that could not end."""
    (tmp_path / "script.py").write_text(BLOCKED)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[True, True] False\n", "")


def test_shards_written_in_pieces_are_the_same(tmp_path):
    listings = make_listings(tmp_path / "img", 80)
    one = run(listings, tmp_path / "one", shards=1)
    jobs = []
    original = convert._split
    convert._split = lambda *arguments: jobs.extend(original(*arguments)) or original(*arguments)
    try:
        two = run(listings, tmp_path / "two", shards=1, workers=2)
    finally:
        convert._split = original
    assert len(jobs) == 5  # of 16 images
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert two.manifest == one.manifest


# --- adding -------------------------------------------------------------------------------------


def test_adding_images_keeps_the_old_shards(tmp_path):
    old, new = make_listings(tmp_path / "img", 9), make_listings(tmp_path / "img", 5, first=9)
    first = run(old, tmp_path / "out", val=2)
    before = digests(tmp_path / "out")
    report = run(new, tmp_path / "out", append=True, shards=2)
    after = digests(tmp_path / "out")
    kept = {name for name in before if "tfrecord" in name} | {first.manifest["splits"]["val"]["index"]}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    train = report.manifest["splits"]["train"]
    assert train["shards"][:3] == first.manifest["splits"]["train"]["shards"]
    assert (train["num_images"], len(train["shards"])) == (12, 5)
    assert train["num_boxes"] == sum(len(item.boxes) for item in [*old[2:], *new])
    assert report.manifest["splits"]["val"] == first.manifest["splits"]["val"]
    records = open_split(tmp_path / "out", "train")
    assert (records.max_boxes, len(records.index)) == (3, 12)
    assert sorted(ids(tmp_path / "out")) == sorted(item.image_id for item in [*old[2:], *new])
    assert after.keys() == {"manifest.json", *shards_and_indices(report.manifest)}
    assert stored.verify(tmp_path / "out")[1] == []


def shards_and_indices(manifest):
    for split in manifest["splits"].values():
        yield split["index"]
        yield from (shard["file"] for shard in split["shards"])


def test_an_image_that_is_there_already_is_a_problem(tmp_path):
    old = make_listings(tmp_path / "img", 6)
    run(old, tmp_path / "out", val=2)
    before = digests(tmp_path / "out")
    new = [*make_listings(tmp_path / "img", 2, first=9), old[0]]
    report = run(new, tmp_path / "out", append=True)
    assert report.manifest is None
    (problem,) = report.problems
    assert (problem.kind, problem.where) == ("duplicate_image", "f:0")
    assert problem.reason == "image 0.jpg is in these records already, in val"
    assert digests(tmp_path / "out") == before
    assert run(new, tmp_path / "out", append=True, checks=drop()).manifest["splits"]["train"]["num_images"] == 6


def test_records_of_another_kind_are_not_added(tmp_path):
    old = make_listings(tmp_path / "img", 3)
    run(old, tmp_path / "out")
    new = make_listings(tmp_path / "img", 3, first=5)
    with pytest.raises(RecordError, match="the records there have quality 95, these would have 80; add with the same"):
        run(new, tmp_path / "out", append=True, options=ImageOptions(quality=80))
    with pytest.raises(RecordError, match=r"have class_names \['red', 'green', 'blue'\], these would have \['a'\]"):
        convert.convert({"train": new}, tmp_path / "out", "toy", ["a"], append=True)
    with pytest.raises(RecordError, match=r"there is no manifest\.json"):
        run(new, tmp_path / "nowhere", append=True)
    assert not (tmp_path / "nowhere").exists()


# --- verifying ----------------------------------------------------------------------------------


def test_every_flipped_byte_is_found(tmp_path, rng):
    run(make_listings(tmp_path / "img", 6), tmp_path / "whole", shards=2)
    manifest, faults = stored.verify(tmp_path / "whole")
    assert faults == []
    entry = manifest["splits"]["train"]
    index = np.load(tmp_path / "whole" / entry["index"])
    for number, shard in enumerate(entry["shards"]):
        data = (tmp_path / "whole" / shard["file"]).read_bytes()
        rows = index[index[:, 0] == number]
        places = {0, 8, 11, 12, len(data) - 1, *rows[1:, 1].tolist(), *rng.integers(0, len(data), 12).tolist()}
        for at in places:
            shutil.copytree(tmp_path / "whole", tmp_path / "out", dirs_exist_ok=True)
            (tmp_path / "out" / shard["file"]).write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
            (fault,) = stored.verify(tmp_path / "out")[1]
            record = int(np.searchsorted(rows[:, 1], at, side="right")) - 1
            assert (fault.file, fault.record, fault.records) == (shard["file"], record, 1)
            start, length = rows[record, 1:]
            assert str(fault).startswith(f"{shard['file']}: record {record}, bytes {start} to {start + length + 15}: ")


def test_all_damaged_files_are_named(tmp_path):
    run(make_listings(tmp_path / "img", 8), tmp_path / "out", shards=3, val=2)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    train, val = manifest["splits"]["train"], manifest["splits"]["val"]
    first, second, third = (tmp_path / "out" / shard["file"] for shard in train["shards"])
    first.write_bytes(bytes(first.stat().st_size))
    second.unlink()
    third.write_bytes(third.read_bytes() + b"more")
    index = tmp_path / "out" / val["index"]
    index.write_bytes(index.read_bytes()[:-1] + b"\x01")
    os.truncate(tmp_path / "out" / val["shards"][0]["file"], 100)
    _, faults = stored.verify(tmp_path / "out", workers=2)
    assert [(fault.file, fault.record) for fault in faults] == [
        (val["index"], None), (first.name, 0), (second.name, None), (third.name, None), (val["shards"][0]["file"], 0),
    ]  # fmt: skip
    texts = "\n".join(map(str, faults))
    for text in (
        "index does not have the SHA-256 of the manifest", "(2 damaged records in this file)", "No such file",
        "the manifest says", "the file ends before the record does",
    ):  # fmt: skip
        assert text in texts


def test_whole_records_with_other_bytes_and_undecodable_images_are_found(tmp_path):
    listings = make_listings(tmp_path / "img", 2)
    run(listings, tmp_path / "out", shards=1)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    entry = manifest["splits"]["train"]["shards"][0]
    other = dict(entry, sha256="0" * 64)
    manifest["splits"]["train"]["shards"] = [other]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    (fault,) = stored.verify(tmp_path / "out")[1]
    assert "does not have the SHA-256 of the manifest, though its records are whole" in str(fault)
    cut = Path(listings[0].image_path)
    data = bytearray(cut.read_bytes())
    table = data.index(b"\xff\xc4") + 5
    data[table : table + 16] = b"\xff" * 16  # no Huffman code has so many words; without the check nobody looks
    cut.write_bytes(data)
    run(listings, tmp_path / "cut", shards=1, options=ImageOptions(decode_check=False))
    (fault,) = stored.verify(tmp_path / "cut")[1]
    assert "broken data stream" in str(fault)


def test_raw_records_are_verified(tmp_path):
    run(make_listings(tmp_path / "img", 3), tmp_path / "out", options=ImageOptions(store="raw"))
    assert stored.verify(tmp_path / "out")[1] == []


# --- sizes and speed ----------------------------------------------------------------------------


def test_what_raw_and_shrunk_images_cost_is_said(tmp_path):
    listings = make_listings(tmp_path / "img", 6)
    report = run(listings, tmp_path / "raw", options=ImageOptions(store="raw"))
    figures = compare_storage({"train": listings}, tmp_path / "raw", report.manifest)
    assert figures["original_bytes"] == sum(Path(item.image_path).stat().st_size for item in listings)
    assert figures["stored_bytes"] == sum(path.stat().st_size for path in (tmp_path / "raw").glob("*.tfrecord*"))
    assert 0 < figures["decode_time"] < 1
    text = describe(figures, "raw")
    assert "decoding a stored image takes 0." in text
    assert text.endswith(
        "of an original's time (2 images); worth it where training holds them in memory: --set data.ram_budget_mb=1"
    )


# --- elsewhere ----------------------------------------------------------------------------------


def test_addresses_with_a_scheme_go_through_tensorflow(tmp_path):
    """ram:// is a file system in the memory of TensorFlow."""
    listings = make_listings(tmp_path / "img", 6)
    for item in listings[:3]:
        with tf.io.gfile.GFile(f"ram://images/{item.image_id}", "wb") as file:
            file.write(Path(item.image_path).read_bytes())
    elsewhere = [dataclasses.replace(item, image_path=f"ram://images/{item.image_id}") for item in listings[:3]]
    listings = [*elsewhere, *listings[3:]]
    run(listings, "ram://out/set")
    run(listings, "ram://out/set")  # over itself
    run(listings, tmp_path / "out")
    found = {name: files.read_bytes(f"ram://out/set/{name}") for name in files.names("ram://out/set")}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in found.items()} == digests(tmp_path / "out")
    assert sorted(ids("ram://out/set")) == sorted(item.image_id for item in listings)
    assert stored.verify("ram://out/set")[1] == []
    report = run(make_listings(tmp_path / "img", 2, first=7), "ram://out/set", append=True)
    assert report.manifest["splits"]["train"]["num_images"] == 8
    with pytest.raises(RecordError, match=r"ram://nowhere: there is no manifest\.json"):
        open_split("ram://nowhere", "train")


def test_an_unknown_scheme_is_one_clear_error(tmp_path):
    with pytest.raises(RecordError, match=r"writing failed .*File system scheme 'nope' not implemented"):
        run(make_listings(tmp_path / "img", 2), "nope://out")
