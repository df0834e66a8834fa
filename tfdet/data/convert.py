"""Listings in, sharded TFRecord files with their manifest and offset indices out, in worker processes.

Shards are written into OUT/.partial; only when every image has been read and nothing stands in the way does
publish.py give them their names. A run that was cut short leaves its finished shards there for one that resumes.
The bytes depend on the input alone, not on the number of workers: images are sorted by a hash of their ids and dealt
to the shards in turn.
Nothing here needs TensorFlow, so that worker processes start at once.
"""

import contextlib
import errno
import functools
import hashlib
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from tfdet.data import embedded, files, stored
from tfdet.data.annotations import Listing, Problem
from tfdet.data.checks import Checks
from tfdet.data.errors import ImageError, RecordError
from tfdet.data.images import ImageOptions, displayed_size
from tfdet.data.manifest import read_manifest
from tfdet.data.publish import PARTIAL, check_base, publish
from tfdet.data.shards import Job, Shard, clear, join, key_of, load, load_intact, write
from tfdet.data.workers import run_jobs

SHARD_BYTES = 100_000_000  # aimed at
_LEAST_IMAGES = 16  # in a piece of a shard
_DEFAULT_OPTIONS = ImageOptions()
_DEFAULT_CHECKS = Checks()


@dataclass(frozen=True)
class Report:
    """What a conversion found and wrote; `manifest` is None if bad data kept everything from being written."""

    manifest: dict | None
    problems: list[Problem]
    rounded: int
    changes: Counter
    resumed: int = 0  # images in shards that an earlier run had finished


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
    resume: bool = False,
    append: bool = False,
    run=None,
    progress=None,
) -> Report:
    """Writes the records of a data set.

    With more than one worker the calling script needs `if __name__ == "__main__":`, as Python's spawned
    processes do.

    Args:
        splits: split name -> listings; a split without images is left out.
        directory: a folder, or an address that TensorFlow's file systems know, such as gs://bucket/folder.
        problems: what reading the annotations found already.
        checks: what is looked for, and whether what is found is left out or keeps everything from being written.
        shards: files a split; 0: about 100 MB each.
        resume: take the shards that an earlier run had finished, as far as nothing that decides them has changed.
        append: add to the records that are there, under their name; an image that is there already is a problem.
        run: called with (jobs, folder, progress), writes the shard of each job into the folder; the default does
            so in worker processes here, beam.run_in_pipeline in an Apache Beam pipeline.
        progress: called with (images done, images in all).
    Raises:
        RecordError: writing failed (disk full, no permission), another process writes there, or the records that
            are there are of another kind.
        DataError: a worker process died.
    """
    run = run or functools.partial(_run_here, workers=workers)
    with _workplace(directory) as partial:
        base = read_manifest(directory) if append else None
        splits, known = _without_stored(splits, directory, base)
        if base:
            check_base(base, directory, class_names, options)
        common = tuple(class_names), options, checks
        jobs = [job for split in splits for job in _plan(split, splits[split], common, shards)]
        written, resumed = _write_all(jobs, partial, resume, run, progress or (lambda done, total: None))
        problems = [*problems, *known, *(problem for shard in written for problem in shard.problems)]
        manifest = None
        if not checks.stop(problems) and any(shard.lengths for shard in written):
            manifest = publish(written, directory, base["name"] if base else name, class_names, options, base)
        files.remove_tree(partial)
    changes = sum((shard.changes for shard in written), Counter())
    return Report(manifest, problems, sum(shard.rounded for shard in written), changes, resumed)


@contextlib.contextmanager
def _workplace(directory):
    """The folder for unfinished work, for this process alone. It stays if the work ends early, for what is finished."""
    existed, partial = True, files.join(directory, PARTIAL)
    try:
        existed = files.exists(directory)
        files.make_folder(directory)
        with files.locked(directory):
            files.make_folder(partial)
            try:
                yield partial
            finally:
                if not any(name.endswith(".json") for name in files.names(partial)):
                    files.remove_tree(partial)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space, then go on with --resume" if full else "check the folder"
        raise RecordError(error.filename or directory, f"writing failed ({error.strerror or error})", advice) from error
    finally:
        if not existed and not files.is_remote(directory):
            with contextlib.suppress(OSError):  # it goes only if nothing was written
                os.rmdir(directory)


def _without_stored(splits, directory, base) -> tuple[dict, list[Problem]]:
    """The listings of images that are not stored yet, and a problem for each other."""
    there, kept, problems = stored.image_ids(directory, base) if base else {}, {}, []
    for split, listings in splits.items():
        kept[split] = [item for item in listings if stored.encode_id(item.image_id) not in there]
        for item in listings:
            if stored.encode_id(item.image_id) in there:
                reason = (
                    f"image {item.image_id} is in these records already, in {there[stored.encode_id(item.image_id)]}"
                )
                problems.append(Problem("duplicate_image", item.where, reason))
    return kept, problems


# --- planning -----------------------------------------------------------------------------------


def _plan(split, listings, common, shards) -> list[Job]:
    """One job a shard: images in the order of a hash of their ids, dealt in turn."""
    listings = sorted(listings, key=lambda item: hashlib.sha256(stored.encode_id(item.image_id)).digest())
    if not shards:
        expected = functools.partial(_expected_bytes, common[1])
        shards = round(sum(files.ask(expected, [item.image_path for item in listings])) / SHARD_BYTES)
    count = min(max(1, shards), len(listings))
    jobs = [Job(split, tuple(listings[i::count]), *common) for i in range(count)]
    return [replace(job, key=key_of(job)) for job in jobs]


def _expected_bytes(options, path) -> int:
    try:
        if options.store == "jpeg":
            return embedded.file_size(path)
        height, width = displayed_size(path)
        shrink = min(1.0, options.max_side / max(height, width)) if options.max_side else 1.0
        return int(height * width * 3 * shrink**2)
    except (OSError, ImageError):
        return 0  # reported when the image is read


# --- running ------------------------------------------------------------------------------------


def _write_all(jobs, folder, resume, run, progress) -> tuple[list[Shard], int]:
    """The shard of each job, and the number of images that were there already."""
    clear(folder, [job.key for job in jobs] if resume else [])
    with ThreadPoolExecutor() as pool:
        finished = dict(zip([job.key for job in jobs], pool.map(lambda job: load_intact(folder, job.key), jobs)))
    left = [job for job in jobs if not finished[job.key]]
    total = sum(len(job.listings) for job in jobs)
    there = total - sum(len(job.listings) for job in left)
    if left:
        run(left, folder, lambda done, _: progress(there + done, total))
    written = [finished[job.key] or load(folder, job.key) for job in jobs]
    if None in written:
        raise RecordError(folder, "a shard is missing", "every worker has to see this folder under this name")
    return written, there


def _run_here(jobs, folder, progress, workers):
    """Writes the shards in worker processes. Few shards are written in pieces, so that every worker has work."""
    enough = 1 if len(jobs) >= 3 * workers or files.is_remote(folder) else -(-4 * workers // len(jobs))
    pieces = [piece for job in jobs for piece in _split(job, folder, enough if workers > 1 else 1)]
    done = defaultdict(dict)

    def follow(piece, shard):
        done[piece.key][piece.piece] = shard
        if len(done[piece.key]) == piece.pieces:
            parts = done.pop(piece.key)
            return functools.partial(join, folder, piece.key, [parts[i] for i in range(piece.pieces)])
        return None

    run_jobs(write, pieces, workers, folder, progress, follow)


def _split(job, folder, pieces) -> list[Job]:
    count = len(job.listings)
    pieces = max(1, min(pieces, count // _LEAST_IMAGES))
    return [
        replace(
            job,
            listings=job.listings[count * i // pieces : count * (i + 1) // pieces],
            piece=i,
            pieces=pieces,
            path=files.join(folder, f"{job.key}.{i}.{os.getpid()}.tmp"),
        )
        for i in range(pieces)
    ]
