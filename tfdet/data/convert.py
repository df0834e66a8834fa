"""Listings in, sharded TFRecord files with their manifest and offset indices out, in worker processes.

Shards are written into OUT/.partial; only when every image has been read and nothing stands in the way does
publish.py move them to their names. The bytes depend on the input alone, not on the number of workers: images
are sorted by a hash of their ids and dealt to the shards in turn.
Nothing here needs TensorFlow, so that worker processes start at once.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfdet.data import embedded, tfrecord
from tfdet.data.annotations import Annotation, Listing, Problem
from tfdet.data.checks import Checks, examine
from tfdet.data.errors import ImageError, RecordError
from tfdet.data.images import EncodedImage, ImageOptions, displayed_size
from tfdet.data.publish import PARTIAL, Shard, publish
from tfdet.data.workers import run_jobs

SHARD_BYTES = 100_000_000  # aimed at
_DEFAULT_OPTIONS = ImageOptions()
_DEFAULT_CHECKS = Checks()


@dataclass(frozen=True)
class _Job:
    """One shard to write; everything that a worker process needs."""

    split: str
    path: str
    listings: tuple[Listing, ...]
    class_names: tuple[str, ...]
    options: ImageOptions
    checks: Checks


@dataclass(frozen=True)
class Report:
    """What a conversion found and wrote; `manifest` is None if bad data kept everything from being written."""

    manifest: dict | None
    problems: list[Problem]
    rounded: int
    changes: Counter


def convert(
    splits: dict[str, list[Listing]],
    directory,
    name: str,
    class_names,
    *,
    options: ImageOptions = _DEFAULT_OPTIONS,
    problems=(),
    checks: Checks = _DEFAULT_CHECKS,
    shards: int = 0,
    workers: int = 1,
    progress=None,
) -> Report:
    """Writes the records of a data set.

    With more than one worker the calling script needs `if __name__ == "__main__":`, as Python's spawned
    processes do.

    Args:
        splits: split name -> listings; a split without images is left out.
        problems: what reading the annotations found already.
        checks: what is looked for, and whether what is found is left out or keeps everything from being written.
        shards: files a split; 0: about 100 MB each.
        progress: called with (images done, images in all).
    Raises:
        RecordError: no image is left, or writing failed (disk full, no permission).
        DataError: a worker process died.
    """
    directory = Path(directory)
    partial, existed = directory / PARTIAL, directory.exists()
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        filled = {split: listings for split, listings in splits.items() if listings}
        jobs = [
            job
            for split in filled
            for job in _plan(split, filled[split], partial, class_names, options, checks, shards)
        ]
        written = run_jobs(_write_shard, jobs, workers, directory, progress)
        problems = [*problems, *(problem for shard in written for problem in shard.problems)]
        manifest = None
        if not checks.stop(problems) and any(len(shard.index) for shard in written):
            manifest = publish(written, directory, name, class_names, options)
        changes = sum((shard.changes for shard in written), Counter())
        return Report(manifest, problems, sum(shard.rounded for shard in written), changes)
    except OSError as error:
        advice = "free some space" if error.errno == errno.ENOSPC else "check the folder"
        raise RecordError(error.filename or directory, f"writing failed ({error.strerror or error})", advice) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not existed:
            with contextlib.suppress(OSError):  # it goes only if nothing was written
                directory.rmdir()


# --- planning -----------------------------------------------------------------------------------


def _plan(split, listings, partial, class_names, options, checks, shards):
    """One job a shard: images in the order of a hash of their ids, dealt in turn."""
    listings = sorted(listings, key=lambda item: hashlib.sha256(_encode(item.image_id)).digest())
    count = shards or round(sum(_expected_bytes(item, options) for item in listings) / SHARD_BYTES)
    count = max(1, min(count, len(listings)))
    paths = [str(partial / f"{split}-{i:05d}") for i in range(count)]
    common = tuple(class_names), options, checks
    return [_Job(split, path, tuple(listings[i::count]), *common) for i, path in enumerate(paths)]


def _expected_bytes(listing, options) -> int:
    try:
        if options.store == "jpeg":
            return embedded.file_size(listing.image_path)
        height, width = displayed_size(listing.image_path)
        shrink = min(1.0, options.max_side / max(height, width)) if options.max_side else 1.0
        return int(height * width * 3 * shrink**2)
    except (OSError, ImageError):
        return 0  # reported when the image is read


# --- writing ------------------------------------------------------------------------------------


def _write_shard(job, tick) -> Shard:
    shard, digest, rows = Shard(job.split, job.path), hashlib.sha256(), []
    with open(job.path, "wb") as file:
        for listing in job.listings:
            payload = _make_record(listing, job, shard)
            if payload is not None:
                record = tfrecord.frame(payload)
                file.write(record)
                digest.update(record)
                rows.append((shard.bytes, len(payload)))
                shard.bytes += len(record)
            tick()
        file.flush()
        os.fsync(file.fileno())
    shard.index = np.array(rows, np.int64).reshape(-1, 2)
    shard.sha256 = digest.hexdigest()
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
        "image/source_id": [_encode(annotation.image_id)],
        "image/filename": [_encode(os.path.basename(file))],
        "image/object/bbox/xmin": x_min,
        "image/object/bbox/ymin": y_min,
        "image/object/bbox/xmax": x_max,
        "image/object/bbox/ymax": y_max,
        "image/object/class/label": annotation.labels + 1,
        "image/object/class/text": [class_names[label].encode() for label in annotation.labels],
        "image/object/difficult": annotation.difficult.astype(np.int64),
    }


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "backslashreplace")  # file names need not be valid text
