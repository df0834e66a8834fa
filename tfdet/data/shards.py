"""Shards between the writing of their records and publication: whole files in OUT/.partial, named by what is in them.

The name is a hash of all that decides the bytes (annotations, sizes and times of the image files, options), so a
run that goes on after a kill can take a finished shard by its name alone: after any change the name is another.
Nothing here needs TensorFlow, so that worker processes start at once.
"""

import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field, fields

import numpy as np
import PIL

from tfdet.data import embedded, files, tfrecord
from tfdet.data.annotations import Annotation, Listing, Problem
from tfdet.data.checks import Checks, examine
from tfdet.data.images import EncodedImage, ImageOptions
from tfdet.data.stored import encode_id
from tfdet.data.tfrecord import FRAME_BYTES

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Job:
    """A shard to write, or a piece of one; everything that a worker process needs."""

    split: str
    listings: tuple[Listing, ...]
    class_names: tuple[str, ...]
    options: ImageOptions
    checks: Checks
    key: str = ""  # the name of the shard
    path: str = ""  # of this piece
    piece: int = 0  # its number
    pieces: int = 1  # that the shard has


@dataclass
class Shard:
    """A shard, or a piece of one, as it was written, and what its images were found to be."""

    split: str
    path: str
    lengths: list[int] = field(default_factory=list)  # of the payload of each record, in bytes
    sha256: str = ""
    num_boxes: int = 0
    max_boxes: int = 0
    rounded: int = 0  # boxes cut to the image that left it by a pixel at most
    changes: Counter = field(default_factory=Counter)  # what was done to images that were not copied
    problems: list[Problem] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(self.lengths) + FRAME_BYTES * len(self.lengths)


def key_of(job) -> str:
    """The name of the shard that a job writes."""
    digest = hashlib.sha256(f"1 {PIL.__version__}".encode())  # Pillow encodes what is not copied
    for part in fields(job):
        if part.name != "listings":
            digest.update(repr(getattr(job, part.name)).encode())
    stamps = files.stamps([embedded.file_of(listing.image_path) for listing in job.listings])
    for listing, stamp in zip(job.listings, stamps):
        parts = [value.tobytes() if isinstance(value, np.ndarray) else repr(value) for value in vars(listing).values()]
        digest.update(repr((stamp, parts)).encode())
    return digest.hexdigest()[:32]


# --- in worker processes ------------------------------------------------------------------------


def write(job, tick) -> Shard:
    """Writes the records of a shard or of a piece of it. tick: called after each image."""
    shard, digest, whole = Shard(job.split, job.path), hashlib.sha256(), job.pieces == 1
    with files.writer(job.path, synced=whole) as put:
        for listing in job.listings:
            payload = _make_record(listing, job, shard)
            if payload is not None:
                framed = tfrecord.frame(payload)
                put(framed)
                shard.lengths.append(len(payload))
                if whole:  # while the bytes are at hand
                    digest.update(framed)
            tick()
    shard.sha256 = digest.hexdigest() if whole else ""
    return shard


def _make_record(listing, job, shard) -> bytes | None:
    """The serialized record of one image, None if it is left out; what is found goes into `shard`."""
    image, annotation, problems, rounded = examine(listing, job.options, job.checks)
    shard.problems += problems
    shard.rounded += rounded
    if annotation is None:
        return None
    shard.num_boxes += len(annotation.boxes)
    shard.max_boxes = max(shard.max_boxes, len(annotation.boxes))
    shard.changes.update([image.change] if image.change else [])
    return tfrecord.example(record_features(annotation, image, job.class_names))


def record_features(annotation: Annotation, image: EncodedImage, class_names) -> dict:
    """One image in the TensorFlow detection schema; labels are 1-based there.

    The names are those of schema.py, spelled out because schema.py needs TensorFlow.
    """
    x_min, y_min, x_max, y_max = annotation.boxes.T
    file = annotation.image_id if embedded.is_embedded(annotation.image_path) else annotation.image_path
    return {
        "image/encoded": [image.encoded],
        "image/format": [image.format.encode()],
        "image/height": np.array([image.height]),
        "image/width": np.array([image.width]),
        "image/source_id": [encode_id(annotation.image_id)],
        "image/filename": [encode_id(os.path.basename(file))],
        "image/object/bbox/xmin": x_min,
        "image/object/bbox/ymin": y_min,
        "image/object/bbox/xmax": x_max,
        "image/object/bbox/ymax": y_max,
        "image/object/class/label": annotation.labels + 1,
        "image/object/class/text": [class_names[label].encode() for label in annotation.labels],
        "image/object/difficult": annotation.difficult.astype(np.int64),
    }


# --- whole shards -------------------------------------------------------------------------------


def join(folder: str, key: str, pieces: list[Shard]):
    """Makes a whole shard of its pieces, in their order, and keeps beside it what was found.

    The second file is written last, so where it is the shard is whole.
    """
    whole = _merge(pieces)
    if len(pieces) > 1:
        with files.opened(pieces[0].path, "ab") as file:
            for piece in pieces[1:]:
                for block in _blocks(piece.path):
                    file.write(block)
                files.remove(piece.path)
            files.sync(file)
    whole.path, whole.sha256 = files.join(folder, key), pieces[0].sha256 or _sha256(pieces[0].path)
    files.move(pieces[0].path, whole.path)
    found = {**vars(whole), "problems": [asdict(problem) for problem in whole.problems]}
    files.write_whole(f"{whole.path}.json", json.dumps(found).encode(), f"{pieces[0].path}.json")


def _blocks(path):
    with files.opened(path) as file:
        while block := file.read(_BLOCK):
            yield block


def _sha256(path) -> str:
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _merge(pieces) -> Shard:
    whole = Shard(pieces[0].split, "")
    for piece in pieces:
        whole.lengths += piece.lengths
        whole.num_boxes += piece.num_boxes
        whole.max_boxes = max(whole.max_boxes, piece.max_boxes)
        whole.rounded += piece.rounded
        whole.changes.update(piece.changes)
        whole.problems += piece.problems
    return whole


def load(folder: str, key: str) -> Shard | None:
    """A finished shard; None if there is none, or not as it was written."""
    path = files.join(folder, key)
    try:
        content = json.loads(files.read_bytes(f"{path}.json"))
        problems = [Problem(**{**item, "boxes": tuple(item["boxes"])}) for item in content.pop("problems")]
        shard = Shard(**{**content, "path": path, "changes": Counter(content["changes"]), "problems": problems})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    stamp = files.stamp(path)
    return shard if stamp and stamp[0] == shard.bytes else None


def load_intact(folder: str, key: str) -> Shard | None:
    """A finished shard, read to its end: None if it does not hold the bytes that were written."""
    shard = load(folder, key)
    return shard if shard and _sha256(shard.path) == shard.sha256 else None


def clear(folder, keys):
    """Removes from a folder whatever is not one of these shards."""
    kept = {name for key in keys for name in (key, f"{key}.json")}
    for name in files.names(folder):
        if name not in kept:
            files.remove(files.join(folder, name))
