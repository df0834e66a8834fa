"""The last step of a conversion: finished shards get their names, the indices are written, the manifest last.

A reader opens nothing without the manifest, so a run that dies at any moment leaves nothing that is taken for
a data set; every file appears whole or not at all.
"""

import contextlib
import io
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np

from tfdet.data.annotations import Problem

SCHEMA_VERSION = 1  # equals schema.SCHEMA_VERSION, which needs TensorFlow
MANIFEST = "manifest.json"
PARTIAL = ".partial"


@dataclass
class Shard:
    """A shard as it was written, and what its images were found to be."""

    split: str
    path: str
    bytes: int = 0
    sha256: str = ""
    index: np.ndarray | None = None  # int64 [N, 2] byte offset of the record, length of its payload
    num_boxes: int = 0
    max_boxes: int = 0
    rounded: int = 0  # boxes cut to the image that left it by a pixel at most
    changes: Counter = field(default_factory=Counter)  # what was done to images that were not copied
    problems: list[Problem] = field(default_factory=list)


def publish(written, directory, name, class_names, options) -> dict:
    """Moves the shards to their names and writes the indices, then the manifest."""
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "class_names": list(class_names),
        **{key: value for key, value in asdict(options).items() if key in ("store", "max_side", "quality")},
        "splits": {},
    }
    stale = _retire_manifest(directory)
    for split in dict.fromkeys(shard.split for shard in written):
        shards = [shard for shard in written if shard.split == split and len(shard.index)]
        if shards:
            manifest["splits"][split] = _publish_split(shards, directory, f"{name}-{split}")
    for file in stale - set(_files_of(manifest)):
        (directory / file).unlink(missing_ok=True)
    _replace(directory, MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    return manifest


def _publish_split(shards, directory, prefix) -> dict:
    files = [f"{prefix}.tfrecord-{i:05d}-of-{len(shards):05d}" for i in range(len(shards))]
    for shard, file in zip(shards, files):
        os.replace(shard.path, directory / file)
    rows = [np.insert(shard.index, 0, number, axis=1) for number, shard in enumerate(shards)]
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(rows))
    _replace(directory, f"{prefix}.index.npy", buffer.getvalue())
    return {
        "num_images": sum(len(shard.index) for shard in shards),
        "num_boxes": sum(shard.num_boxes for shard in shards),
        "max_boxes": max(shard.max_boxes for shard in shards),
        "index": f"{prefix}.index.npy",
        "shards": [
            {"file": file, "num_images": len(shard.index), "bytes": shard.bytes, "sha256": shard.sha256}
            for shard, file in zip(shards, files)
        ],
    }


def _retire_manifest(directory) -> set[str]:
    """Takes an earlier manifest away, so that no reader sees old and new shards together; returns its files."""
    path = directory / MANIFEST
    try:
        files = set(_files_of(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        files = set()  # none, or nothing that could be believed
    path.unlink(missing_ok=True)
    _sync_folder(directory)
    return {file for file in files if os.path.basename(file) == file}


def _files_of(manifest):
    for split in manifest["splits"].values():
        yield split["index"]
        yield from (shard["file"] for shard in split["shards"])


def _replace(directory, name, content):
    """Writes a file so that it is there whole or not at all."""
    partial = directory / PARTIAL / name
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, directory / name)
    _sync_folder(directory)


def _sync_folder(directory):
    """Makes renames survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
