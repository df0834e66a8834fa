"""Records that were written: the names of their images, and whether every byte is as it was.

Nothing here needs TensorFlow.
"""

import hashlib
import io
import mmap
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tfdet.data import files
from tfdet.data.errors import RecordError
from tfdet.data.manifest import CONVERT_AGAIN, MANIFEST, load_index, read_manifest
from tfdet.data.tfrecord import FRAME_BYTES, parse_example, unframe
from tfdet.data.workers import run_jobs

_DAMAGED = (ValueError, KeyError, IndexError, OSError, SyntaxError)  # what parsers and Pillow say of damaged bytes


def encode_id(name: str) -> bytes:
    """An image's name as it stands in its record; file names need not be valid text."""
    return name.encode("utf-8", "backslashreplace")


def _content(path) -> memoryview:
    """The bytes of a file; of a local one only what is looked at is read."""
    if files.is_remote(path):
        return memoryview(files.read_bytes(path))
    with open(path, "rb") as file:
        empty = not file.seek(0, io.SEEK_END)
        return memoryview(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def image_ids(directory, manifest) -> dict[bytes, str]:
    """image id -> split, of all records that a manifest tells of.

    Raises:
        RecordError: a shard or an index is missing, or does not hold such records.
    """
    found = {}
    for split, entry in manifest["splits"].items():
        index = load_index(files.join(directory, entry["index"]))
        for number, shard in enumerate(entry["shards"]):
            path = files.join(directory, shard["file"])
            try:
                content = _content(path)
                for _, start, length in index[index[:, 0] == number]:
                    payload = content[start + 12 : start + 12 + length]
                    found[bytes(parse_example(payload)["image/source_id"][0])] = split
            except _DAMAGED as error:
                reason = f"the shard cannot be read ({error})"
                raise RecordError(path, reason, "verify the folder (--verify), or convert again") from error
    return found


def first_records(directory, manifest, count: int):
    """The fields of the first records of the first split."""
    entry = next(iter(manifest["splits"].values()))
    content = _content(files.join(directory, entry["shards"][0]["file"]))
    index = load_index(files.join(directory, entry["index"]))
    for _, start, length in index[index[:, 0] == 0][:count]:
        yield parse_example(unframe(content, start, length))


# --- verification -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What is wrong with one file.

    Attributes:
        file: its name.
        record: the number of its first damaged record, from 0; None: it is not about a record.
        reason: what is wrong there.
        records: how many of its records are damaged.
    """

    file: str
    record: int | None
    reason: str
    records: int = 0

    def __str__(self):
        place = f"{self.file}: " + ("" if self.record is None else f"record {self.record}, ")
        more = f" ({self.records} damaged records in this file)" if self.records > 1 else ""
        return place + self.reason + more


@dataclass(frozen=True)
class _Check:
    """One shard to read again."""

    directory: str
    entry: dict
    rows: np.ndarray | None  # int64 [N, 2] offset, length of the payload; None: the index cannot be trusted
    store: str

    @property
    def listings(self):
        return range(self.entry["num_images"])


def verify(directory, workers: int = 1, progress=None) -> tuple[dict, list[Fault]]:
    """Reads every byte of a data set again: checksums of records and files, messages, images.

    Args:
        progress: called with (images done, images in all).
    Returns:
        the manifest, and what is wrong, in the order of the manifest.
    Raises:
        RecordError: there is no manifest that can be read.
    """
    manifest, faults, jobs = read_manifest(directory), [], []
    try:
        for entry in manifest["splits"].values():
            index, fault = _check_index(directory, entry)
            faults += fault
            for number, shard in enumerate(entry["shards"]):
                rows = None if index is None else index[index[:, 0] == number][:, 1:]
                jobs.append(_Check(str(directory), shard, rows, manifest["store"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(files.join(directory, MANIFEST), f"the manifest lacks {error}", CONVERT_AGAIN) from error
    found = run_jobs(_check_shard, jobs, workers, directory, progress)
    return manifest, faults + [fault for fault in found if fault]


def _check_index(directory, entry):
    name = entry["index"]
    try:
        content = files.read_bytes(files.join(directory, name))
        if entry.get("index_sha256", hashlib.sha256(content).hexdigest()) != hashlib.sha256(content).hexdigest():
            return None, [Fault(name, None, "the offset index does not have the SHA-256 of the manifest")]
        return load_index(files.join(directory, name)), []
    except (OSError, RecordError) as error:
        return None, [Fault(name, None, f"the offset index cannot be read ({error})")]


def _check_shard(job, tick) -> Fault | None:
    name = job.entry["file"]
    try:
        content = _content(files.join(job.directory, name))
    except OSError as error:
        return Fault(name, None, f"the shard cannot be read ({error.strerror})")
    rows = _walk(content) if job.rows is None else job.rows.tolist()
    found = [(number, reason) for number, reason in enumerate(_check_records(content, rows, job.store, tick)) if reason]
    if found:
        return Fault(name, *found[0], len(found))
    if len(content) != job.entry["bytes"]:
        return Fault(name, None, f"the shard has {len(content)} bytes, the manifest says {job.entry['bytes']}")
    if hashlib.sha256(content).hexdigest() != job.entry["sha256"]:
        return Fault(name, None, "the shard does not have the SHA-256 of the manifest, though its records are whole")
    return None


def _check_records(content, rows, store, tick):
    """What is wrong with each record, None where nothing is."""
    for start, length in rows:
        try:
            _check_image(parse_example(unframe(content, start, length)), store)
            yield None
        except _DAMAGED as error:
            yield f"bytes {start} to {start + length + FRAME_BYTES - 1}: {error}"
        tick()


def _check_image(fields, store):
    """Decodes the image and compares it with what the record says. Raises what _DAMAGED names."""
    encoded = fields["image/encoded"][0]
    height, width = int(fields["image/height"][0]), int(fields["image/width"][0])
    if store == "raw":
        found = width * height * 3 == len(encoded) and (width, height)
    else:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            found = image.size
    if found != (width, height):
        name = bytes(fields["image/source_id"][0]).decode(errors="replace")
        raise ValueError(f"the image {name!r} is not {width} x {height} pixels as its record says")


def _walk(content):
    """(offset, length of the payload) of the records, by their own lengths; up to the first that is damaged."""
    start = 0
    while start < len(content):
        header = content[start : start + 8]
        length = struct.unpack("<Q", header)[0] if len(header) == 8 else len(content)
        yield start, length
        start += length + FRAME_BYTES
