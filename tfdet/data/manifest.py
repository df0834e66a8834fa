"""What stands in a folder of records: the manifest and the offset indices, read and checked.

The form on disk is described in tfrecords/README.md; convert.py writes it. Nothing here needs TensorFlow.
"""

import io
import json

import numpy as np

from tfdet.data import files
from tfdet.data.errors import RecordError
from tfdet.data.tfrecord import FRAME_BYTES

SCHEMA_VERSION = 1  # equals schema.SCHEMA_VERSION, which needs TensorFlow
MANIFEST = "manifest.json"
CONVERT_AGAIN = "convert the data set again"


def read_manifest(directory) -> dict:
    """The manifest of a folder that a conversion wrote.

    Raises:
        RecordError: there is none, it is damaged, or it is of another version.
    """
    path = files.join(directory, MANIFEST)
    try:
        manifest = json.loads(files.read_bytes(path))
        version = manifest["schema_version"]
    except OSError as error:
        reason = f"there is no {MANIFEST} in this folder, so it holds no finished records"
        raise RecordError(directory, reason, "name the folder that a conversion wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(path, f"the manifest is damaged ({error})", CONVERT_AGAIN) from error
    if version != SCHEMA_VERSION:
        reason = f"the records have schema version {version}, this tfdet reads {SCHEMA_VERSION}"
        raise RecordError(path, reason, CONVERT_AGAIN)
    return manifest


def files_of(manifest) -> set[str]:
    """The names of all files that a manifest tells of."""
    splits = manifest["splits"].values()
    return {split["index"] for split in splits} | {shard["file"] for split in splits for shard in split["shards"]}


def load_index(path) -> np.ndarray:
    """int64 [N, 3] shard number, byte offset of the record's frame, length of its payload.

    Raises:
        RecordError: it cannot be read, or is something else.
    """
    try:
        index = np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RecordError(path, f"the offset index cannot be read ({error})", CONVERT_AGAIN) from error
    if index.dtype != np.int64 or index.ndim != 2 or index.shape[1] != 3:
        raise RecordError(path, f"the offset index is {index.dtype} {index.shape}, not int64 [N, 3]", CONVERT_AGAIN)
    return index


def read_index(path, directory, shards) -> np.ndarray:
    """The offset index of a split, checked against its shards' sizes.

    Args:
        shards: the manifest's entries, dicts with `file`, `num_images` and `bytes`.
    Returns:
        int64 [N, 3], see `load_index`.
    Raises:
        RecordError: naming the shard that does not fit.
    """
    index = load_index(path)
    bounds = np.searchsorted(index[:, 0], np.arange(len(shards) + 1))
    stamps = files.stamps([files.join(directory, shard["file"]) for shard in shards])
    for number, (shard, stamp) in enumerate(zip(shards, stamps)):
        check_shard(directory, shard, stamp, index[bounds[number] : bounds[number + 1]])
    if len(index) != sum(shard["num_images"] for shard in shards):
        raise RecordError(path, "the offset index names records of no shard", CONVERT_AGAIN)
    return index


def check_shard(directory, shard, stamp, rows):
    """Records follow one another without a gap, from the first byte of the shard to its last."""
    path = files.join(directory, shard["file"])
    if stamp is None:
        raise RecordError(path, "the shard is missing", CONVERT_AGAIN)
    size = stamp[0]
    if size != shard["bytes"]:
        raise RecordError(path, f"the shard has {size} bytes, the manifest says {shard['bytes']}", CONVERT_AGAIN)
    ends = rows[:, 1] + rows[:, 2] + FRAME_BYTES
    starts = np.concatenate([[0], ends[:-1]])
    if len(rows) != shard["num_images"] or not len(rows) or ends[-1] != size or (rows[:, 1] != starts).any():
        raise RecordError(path, "the offset index does not fit the shard", CONVERT_AGAIN)
