"""What is looked for in one image and its boxes, and what is done about each kind of problem.

Both the conversion and the inspection call `examine`, so they find the same.
Nothing here needs TensorFlow, so that worker processes start at once.
"""

import functools
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from tfdet.data.annotations import KINDS, NOTES, Annotation, Listing, Problem, to_annotation
from tfdet.data.errors import DataError, ImageError
from tfdet.data.images import EncodedImage, ImageOptions, read_image

FAULTS = tuple(kind for kind in KINDS if kind not in NOTES)
_GROUPS = {"": (FAULTS, ("error", "drop", "clip")), "notes": (NOTES, ("error", "drop", "keep"))}


def allowed_policies(kind: str) -> tuple[str, ...]:
    """What can be done about a kind of problem.

    "error": nothing is written. "drop": the box or the image is left out. "clip": the box is cut to the image.
    "keep": it is only listed.
    """
    if kind == "shifted_classes":  # of a file, not of an image or a box
        return "error", "keep"
    if kind == "crosses_border":
        return "error", "drop", "clip"
    return ("error", "drop", "keep") if kind in (*NOTES, "size_mismatch", "too_many_boxes") else ("error", "drop")


def make_policies(words=()) -> dict[str, str]:
    """Kind of problem -> what is done about it.

    Args:
        words: as --on-bad takes them. "drop" for all faults; "clip": cut boxes at the border, drop what else is
            bad; "error": the default; "notes=drop" for all suspicions, which are kept by default; "KIND=drop" for
            one kind. A later word replaces an earlier one.
    Raises:
        DataError: no such kind or policy, or one that the kind does not allow.
    """
    policies = {kind: "keep" if kind in NOTES else "error" for kind in KINDS}
    for word in words:
        group, _, policy = word.rpartition("=")
        if group not in _GROUPS and group not in KINDS:
            raise DataError(
                f"--on-bad {word}", f"no kind of problem is called {group!r}", f"choose of {', '.join(KINDS)}"
            )
        kinds, choice = _GROUPS.get(group) or ((group,), allowed_policies(group))
        if policy not in choice:
            name = {"": "all faults", "notes": "all notes"}.get(group, group)
            hint = "; crosses_border=clip cuts boxes at the border" if policy == "clip" else ""
            advice = f"say {' or '.join(choice)}{hint}"
            raise DataError(f"--on-bad {word}", f"{policy!r} is not possible for {name}", advice)
        policies.update({kind: _nearest(policy, allowed_policies(kind)) for kind in kinds})
    return policies


def _nearest(policy, allowed) -> str:
    """Of what a whole group is told, what a kind allows."""
    return next(choice for choice in (policy, "drop", "keep") if choice in allowed)


@dataclass(frozen=True)
class Checks:
    """What is checked beyond what makes a box or an image unusable.

    Attributes:
        policies: kind of problem -> "error", "drop", "clip" or "keep".
        input_size: (height, width) in pixels of the model's input; boxes that are smaller than a pixel there are
            reported. None: they are not looked for.
        letterbox: images keep their aspect when they are resized to the model's input.
        max_boxes: an image with more is reported; 0: there is no such limit.
    """

    policies: Mapping[str, str] = field(default_factory=make_policies)
    input_size: tuple[int, int] | None = None
    letterbox: bool = False
    max_boxes: int = 0

    def stop(self, problems) -> bool:
        """Whether any of the problems forbids to go on."""
        return any(self.policies[problem.kind] == "error" for problem in problems)


def examine(listing: Listing, options: ImageOptions, checks: Checks):
    """Reads one image and checks what is said about it.

    Returns:
        the EncodedImage, None if it cannot be read; then as `check_image`.
    """
    try:
        image = read_image(listing.image_path, options)
    except ImageError as error:
        return None, None, [Problem(error.kind, _place(listing), f"image {error.where}: {error.reason}")], 0
    return image, *check_image(listing, image, checks)


def _place(listing) -> str:
    """Where an image is first mentioned."""
    return listing.where_is(0) if listing.by_line and len(listing.boxes) else listing.where


def check_image(listing: Listing, image: EncodedImage, checks: Checks) -> tuple[Annotation | None, list[Problem], int]:
    """Checks what is said about one image that could be read.

    Returns:
        the annotation with the boxes that stay, None if the whole image is to be left out; the problems; the
        number of boxes cut because of rounding.
    """
    annotation, problems, rounded = to_annotation(listing, image.source_size, image.orientation)
    unusable = [number for problem in problems if problem.loses == "box" for number in problem.boxes]
    places = np.flatnonzero(_without(unusable, listing.numbers))  # of the annotation's boxes in the listing
    problems += [*_check_name(listing, image), *_check_size(listing, image)]
    problems += _find_repeated(listing, annotation, places)
    if checks.input_size:
        problems += _find_tiny(listing, annotation, places, image.source_size, checks)
    kept = _without(_dropped(problems, checks), listing.numbers[places])
    if checks.max_boxes:
        problems += _find_surplus(listing, places[kept], checks.max_boxes)
        kept = _without(_dropped(problems, checks), listing.numbers[places])
    if any(not problem.boxes and checks.policies[problem.kind] == "drop" for problem in problems):
        return None, problems, rounded
    return _select(annotation, kept), problems, rounded


def _without(listed, numbers):
    """bool [N]: which of some numbers are not among those listed; mostly none is, and numpy's search takes long."""
    return ~np.isin(numbers, listed) if listed else np.ones(len(numbers), bool)


def _dropped(problems, checks):
    """Numbers of the boxes that are left out."""
    return [number for problem in problems if checks.policies[problem.kind] == "drop" for number in problem.boxes]


def _select(annotation, kept):
    fields = {name: getattr(annotation, name)[kept] for name in ("boxes", "labels", "difficult")}
    return annotation if kept.all() else replace(annotation, **fields)


# --- counts -------------------------------------------------------------------------------------


def count_kinds(problems, kinds) -> dict[str, int]:
    """How many problems of each of some kinds there are; what is not there is left out."""
    counts = Counter(problem.kind for problem in problems)
    return {kind: counts[kind] for kind in kinds if counts[kind]}


def count_dropped(problems, checks) -> dict[str, int]:
    """Images and boxes that are left out because of some problems."""
    dropped = [problem for problem in problems if checks.policies[problem.kind] == "drop"]
    boxes = {(problem.where, number) for problem in dropped for number in problem.boxes}
    return {"images": sum(not problem.boxes for problem in dropped), "boxes": len(boxes)}


def count_cut(problems, checks) -> int:
    """Boxes that are cut to their image."""
    return sum(checks.policies[problem.kind] == "clip" for problem in problems)


# --- the image ----------------------------------------------------------------------------------


@functools.cache
def _formats_by_suffix() -> dict[str, str]:
    return Image.registered_extensions()


def _check_name(listing, image) -> list[Problem]:
    suffix = os.path.splitext(listing.image_path)[1].lower()
    usual, actual = (
        "JPEG" if name == "MPO" else name for name in (_formats_by_suffix().get(suffix), image.source_format)
    )
    if usual in (None, actual):
        return []
    reason = f"image {listing.image_path} is a {actual} file, its name ends with {suffix}"
    return [Problem("wrong_extension", _place(listing), reason)]


def _check_size(listing, image) -> list[Problem]:
    size = image.source_size
    turned = listing.frame == "stored" and image.orientation >= 5
    height, width = size[::-1] if turned else size
    if listing.stated_size in (None, (height, width)):
        return []
    h, w = listing.stated_size
    why = "; it is turned, perhaps by its EXIF data" if (h, w) == (width, height) else ""
    reason = f"the annotation states {w} x {h} pixels, image {listing.image_path} has {width} x {height}{why}"
    return [Problem("size_mismatch", _place(listing), reason)]


# --- its boxes ----------------------------------------------------------------------------------


def _find_repeated(listing, annotation, places) -> list[Problem]:
    """Boxes with the corners of an earlier one."""
    first, problems = {}, []
    for box, label, place in zip(annotation.boxes.tolist(), annotation.labels.tolist(), places.tolist()):
        earlier, earlier_label = first.setdefault(tuple(box), (place, label))
        if earlier == place:
            continue
        same, number = label == earlier_label, listing.numbers[earlier]
        other = f"{listing.list_name}[{number}]" if listing.list_name else f"box {number}"
        text = f"is {other} again" + ("" if same else ", with another class")
        problems.append(listing.problem_with(place, "duplicate_box" if same else "two_classes", text))
    return problems


def _find_tiny(listing, annotation, places, size, checks) -> list[Problem]:
    """Boxes smaller than a pixel at the model's input."""
    height, width = checks.input_size
    if checks.letterbox:
        scale = min(height / size[0], width / size[1])
        height, width = size[0] * scale, size[1] * scale
    sides = (annotation.boxes[:, 2:] - annotation.boxes[:, :2]) * np.array([width, height])
    where = f"at the model's input of {checks.input_size[1]} x {checks.input_size[0]}"
    return [
        listing.problem_with(places[i], "tiny_box", f"is {sides[i, 0]:.2g} x {sides[i, 1]:.2g} pixels {where}")
        for i in np.flatnonzero((sides < 1.0).any(axis=1))
    ]


def _find_surplus(listing, places, max_boxes) -> list[Problem]:
    if len(places) <= max_boxes:
        return []
    surplus = tuple(int(number) for number in listing.numbers[places[max_boxes:]])
    reason = f"the image has {len(places)} boxes, more than the {max_boxes} of --max-boxes"
    return [Problem("too_many_boxes", _place(listing), reason, surplus)]
