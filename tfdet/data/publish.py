"""The last step of a conversion: finished shards get their names, then the manifest appears.

A reader opens nothing but what the manifest names, and the name of each file holds a tag of its content, so the files
of an older set stay beside the new ones until the manifest is swapped. That one rename decides: whatever dies, and
whenever, the older set or the new one is whole.
"""

import hashlib
import io
import json
import re
from dataclasses import asdict

import numpy as np

from tfdet.data import files
from tfdet.data.errors import RecordError
from tfdet.data.manifest import MANIFEST, SCHEMA_VERSION, files_of, load_index, read_manifest
from tfdet.data.tfrecord import FRAME_BYTES

PARTIAL = ".partial"
_STORAGE = ("store", "max_side", "quality")  # options that the manifest tells of


def publish(written, directory, name, class_names, options, base=None) -> dict:
    """Gives the shards their names and writes the indices, then the manifest; removes what belongs to neither.

    Args:
        base: the manifest of the records that these are added to.
    """
    manifest = {**_describe(name, class_names, options), "splits": dict(base["splits"]) if base else {}}
    for split in dict.fromkeys(shard.split for shard in written):
        shards = [shard for shard in written if shard.split == split and shard.lengths]
        if shards:
            earlier = manifest["splits"].get(split)
            manifest["splits"][split] = _publish_split(shards, directory, f"{name}-{split}", earlier)
    stale = _known_files(directory) | set(_abandoned(directory, name))
    _write(directory, MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    for file in stale - files_of(manifest):
        files.remove(files.join(directory, file))
    return manifest


def check_base(base, directory, class_names, options):
    """Refuses to add records of another kind.

    Raises:
        RecordError: naming what differs.
    """
    wanted = _describe(base["name"], class_names, options)
    for key, value in wanted.items():
        if base.get(key) != value:
            reason = f"the records there have {key} {_short(base.get(key))}, these would have {_short(value)}"
            raise RecordError(directory, reason, "add with the same options and class names, or convert everything")


def _short(value) -> str:
    return repr(value) if not isinstance(value, list) or len(value) <= 5 else f"of {len(value)} classes"


def _describe(name, class_names, options) -> dict:
    stored = {key: value for key, value in asdict(options).items() if key in _STORAGE}
    return {"schema_version": SCHEMA_VERSION, "name": name, "class_names": list(class_names), **stored}


# --- one split ----------------------------------------------------------------------------------


def _publish_split(shards, directory, prefix, earlier) -> dict:
    tag = _tag("".join(shard.sha256 for shard in shards).encode())
    entries = [
        {
            "file": f"{prefix}-{tag}.tfrecord-{i:05d}-of-{len(shards):05d}",
            "num_images": len(shard.lengths),
            "bytes": shard.bytes,
            "sha256": shard.sha256,
        }
        for i, shard in enumerate(shards)
    ]
    for shard, entry in zip(shards, entries):
        files.place(shard.path, files.join(directory, entry["file"]))
    index = _index_of(shards)
    counts = {
        "num_images": len(index),
        "num_boxes": sum(shard.num_boxes for shard in shards),
        "max_boxes": max(shard.max_boxes for shard in shards),
    }
    if earlier:
        old = load_index(files.join(directory, earlier["index"]))
        index = np.concatenate([old, index + np.array([len(earlier["shards"]), 0, 0])])
        counts = {key: counts[key] + earlier[key] for key in ("num_images", "num_boxes")} | {
            "max_boxes": max(counts["max_boxes"], earlier["max_boxes"])
        }
        entries = [*earlier["shards"], *entries]
    return {**counts, **_publish_index(index, directory, prefix), "shards": entries}


def _index_of(shards) -> np.ndarray:
    """int64 [N, 3] shard number, byte offset of the record's frame, length of its payload."""
    rows = []
    for number, shard in enumerate(shards):
        lengths = np.array(shard.lengths, np.int64)
        ends = np.cumsum(lengths + FRAME_BYTES)
        rows.append(np.stack([np.full_like(lengths, number), ends - lengths - FRAME_BYTES, lengths], axis=1))
    return np.concatenate(rows)


def _publish_index(index, directory, prefix) -> dict:
    buffer = io.BytesIO()
    np.save(buffer, index)
    content = buffer.getvalue()
    name = f"{prefix}-{_tag(content)}.index.npy"
    _write(directory, name, content)
    return {"index": name, "index_sha256": hashlib.sha256(content).hexdigest()}


def _tag(content) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _write(directory, name, content):
    files.write_whole(files.join(directory, name), content, files.join(files.join(directory, PARTIAL), f"{name}.tmp"))


# --- what was there before ----------------------------------------------------------------------


def _known_files(directory) -> set[str]:
    """The files of the manifest that is about to be replaced."""
    try:
        return {file for file in files_of(read_manifest(directory)) if "/" not in file and "\\" not in file}
    except (RecordError, KeyError, TypeError, AttributeError):
        return set()  # none, or nothing that could be believed


def _abandoned(directory, name):
    """Files that no manifest names: their run was killed before its manifest, or before it had cleaned up."""
    ours = re.compile(re.escape(name) + r"-\w+-[0-9a-f]{8}\.(tfrecord-\d{5}-of-\d{5}|index\.npy)")
    return [file for file in files.names(directory) if ours.fullmatch(file)]
