"""The doctor: what is wrong, or looks wrong, with a whole data set, and the facts that its statistics are made of.

Images are examined in worker processes, by the same checks as a conversion makes; here stands what shows only
across images. Nothing here needs TensorFlow.
"""

import functools
import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from tfdet.data import embedded, files
from tfdet.data.annotations import Listing, Problem
from tfdet.data.checks import Checks, examine
from tfdet.data.images import ImageOptions
from tfdet.data.statistics import Facts
from tfdet.data.workers import run_jobs

_CHUNK = 64  # images that a worker takes at once
_HEAD = 65536  # bytes that are compared before whole files are
_BACKGROUND = ("background", "__background__", "_background_", "none")


@dataclass(frozen=True)
class Finding:
    """A problem, and the listing of its image; None where the annotations gave none."""

    problem: Problem
    listing: Listing | None


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a data set. `facts` are of what is left when bad data has been left out."""

    findings: list[Finding]
    facts: Facts
    rounded: int
    class_names: tuple[str, ...]

    @property
    def problems(self) -> list[Problem]:
        return [finding.problem for finding in self.findings]


@dataclass(frozen=True)
class _Job:
    listings: tuple[Listing, ...]
    options: ImageOptions
    checks: Checks


def diagnose(splits, class_names, *, options, checks, problems=(), workers=1, progress=None) -> Diagnosis:
    """Examines every image of a data set.

    Args:
        splits: name -> listings; what the others may share with the first is found, too.
        options: ImageOptions, as for a conversion.
        problems: what reading the annotations found already.
        workers, progress: as `workers.run_jobs` takes them.
    Raises:
        DataError: a worker process died.
    """
    splits, shared = without_same_content(splits, checks)
    listings = [listing for part in splits.values() for listing in part]
    findings = _with_listings([*problems, *shared], listings)
    parts = [tuple(listings[i : i + _CHUNK]) for i in range(0, len(listings), _CHUNK)]
    jobs = [_Job(part, options, checks) for part in parts]
    results = run_jobs(_examine_all, jobs, workers, "inspection", progress)
    for part, (found, _, _) in zip(parts, results):
        findings += [Finding(problem, part[i]) for i, problem in found]
    facts = Facts.join([facts for _, facts, _ in results])
    return Diagnosis(findings, facts, sum(rounded for _, _, rounded in results), tuple(class_names))


def _examine_all(job, tick):
    """Problems with the place of their listing in the job, facts, and the number of boxes cut by rounding."""
    found, images, annotations, rounded = [], [], [], 0
    for i, listing in enumerate(job.listings):
        image, annotation, problems, cut = examine(listing, job.options, job.checks)
        found += [(i, problem) for problem in problems]
        rounded += cut
        if annotation is not None:
            images.append((*image.source_size, image.source_format, image.change))
            annotations.append(annotation)
        tick()
    return found, Facts.collect(images, annotations), rounded


def _with_listings(problems, listings) -> list[Finding]:
    """Finds the listings of problems that reading the annotations, or comparing images, found."""
    wanted, places = {problem.where for problem in problems}, {}
    by_image = {listing.image_path: listing for listing in listings} if wanted else {}
    for listing in listings if wanted else ():
        for where in {listing.where_is(i) for i in range(len(listing.boxes))} | {listing.where}:
            if where in wanted:
                places.setdefault(where, listing)
    return [Finding(p, places.get(p.where) or by_image.get(p.image_path)) for p in problems]


# --- across images ------------------------------------------------------------------------------


def without_shared(splits, listings) -> tuple[list[Listing], list[Problem]]:
    """The listings of another split whose images no split has yet, and a problem for each of the others: it would
    be tested on what it is trained on."""
    known = {os.path.abspath(item.image_path): (split, item.where) for split in splits for item in splits[split]}
    kept, problems = [], []
    for item in listings:
        split, where = known.get(os.path.abspath(item.image_path), (None, None))
        if split is None:
            kept.append(item)
        else:
            reason = f"image {item.image_id} is also in the split {split}, at {where}"
            problems.append(Problem("duplicate_image", item.where, reason, image_path=item.image_path))
    return kept, problems


def without_same_content(splits, checks) -> tuple[dict[str, list[Listing]], list[Problem]]:
    """Finds image files that are byte for byte the same as an earlier one, and leaves them out where that is asked.

    Images are first told apart by their size, then by their first bytes, so that few are read as a whole.
    """
    listings = [(split, listing) for split, part in splits.items() for listing in part]
    groups = [range(len(listings))]
    for key in (embedded.file_size, _head, _digest):
        groups = _divide(groups, key, [listing.image_path for _, listing in listings])
    problems, repeated = [], set()
    for first, *others in groups:
        for other in others:
            repeated.add(other)
            problems.append(_same_content(*listings[first], *listings[other]))
    if checks.policies["same_content"] != "drop":
        return splits, problems
    kept = [item for i, item in enumerate(listings) if i not in repeated]
    return {split: [listing for name, listing in kept if name == split] for split in splits}, problems


def _divide(groups, key, paths):
    """The parts of groups whose paths have one key, where they are more than one; what cannot be read has none."""
    parts, members = defaultdict(list), [(number, i) for number, group in enumerate(groups) for i in group]
    for (number, i), value in zip(members, files.ask(functools.partial(_or_none, key), [paths[i] for _, i in members])):
        if value is not None:
            parts[number, value].append(i)
    return [part for part in parts.values() if len(part) > 1]


def _or_none(key, path):
    try:
        return key(path)
    except OSError:  # reported when the image is examined
        return None


def _head(path) -> bytes:
    if embedded.is_embedded(path):
        return embedded.read_bytes(path)[:_HEAD]
    with files.opened(path) as file:
        return hashlib.sha256(file.read(_HEAD)).digest()


def _digest(path) -> bytes:
    return hashlib.sha256(embedded.read_bytes(path)).digest()


def _same_content(split, first, other_split, other) -> Problem:
    place = f"at {first.where}" + ("" if split == other_split else f", in {split}")
    reason = f"image {other.image_id} has the same bytes as image {first.image_id} {place}"
    return Problem("same_content", other.where, reason)


# --- classes ------------------------------------------------------------------------------------


def suspect_classes(where, source) -> list[Problem]:
    """Whether the class ids of an annotation file look shifted by one.

    Args:
        where: the file's name.
        source: `formats.Source`; formats that name classes instead of counting them are not looked at.
    """
    if source.format in ("voc", "coco") or not source.class_names:
        return []
    labels = np.concatenate([np.zeros(0, np.int32), *(listing.labels for listing in source.listings)])
    used = np.bincount(labels, minlength=len(source.class_names)) > 0
    beyond = sum(problem.kind == "class_out_of_range" for problem in source.problems)
    reason = _shift(used, beyond, source.class_names)
    return [Problem("shifted_classes", str(where), reason)] if reason else []


def _shift(used, beyond, names) -> str | None:
    """used: bool [C], classes that have boxes; beyond: how many boxes have a class that does not exist."""
    ids = f"class ids run from 0 ({names[0]}) to {len(names) - 1} ({names[-1]})"
    if beyond and not used[0]:
        return f"{ids}, but no box has 0 and {beyond} have ids out of this range: the ids look 1-based"
    if beyond and not used[-1]:
        return f"{ids}, but no box has {len(names) - 1} and {beyond} have ids out of this range: off by one?"
    if not used[0] and names[0].lower() in _BACKGROUND:
        return f"the first class name is {names[0]!r} and no box has its id 0"
    if len(names) > 2 and not used[0] and used[1:].all():
        return f"{ids}, and every class but 0 has boxes: the ids look 1-based"
    return None
