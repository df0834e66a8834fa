"""What a data set says about its images: annotations, the problems found in them, class names and splits.

formats reads files into `Listing`s without opening an image; `to_annotation` checks a listing against the
size of its image and makes the `Annotation` that is stored. What cannot be used becomes a `Problem`; nothing
is dropped in silence. Nothing here needs TensorFlow, so that worker processes start at once.
"""

from dataclasses import dataclass

import numpy as np

from tfdet.data.errors import AnnotationError
from tfdet.data.images import read_header

__all__ = [
    "FRAMES", "KINDS", "NOTES", "Annotation", "AnnotationError", "Listing", "Problem",
    "read_annotations", "relative_boxes", "split_listings", "to_annotation", "turn_boxes",
]  # fmt: skip

# kind of problem -> what is left out when bad data is skipped ("" for a box that is cut to the image), advice
KINDS = {
    "missing_image": ("image", "check the path and --images"),
    "unreadable_image": ("image", "save it as JPEG or PNG, or take it out"),
    "truncated_image": ("image", "fetch it again"),
    "too_many_pixels": ("image", "shrink it, or raise --max-pixels if you trust the file"),
    "missing_annotation": ("image", "write an empty text file beside an image that shows no object"),
    "name_clash": ("image", "give every image a name of its own"),
    "duplicate_image": ("image", "put all boxes of an image into one entry; to drop it keeps the first"),
    "outside_root": ("image", "move the image into the image folder, or pass --allow-outside if you trust the file"),
    "bad_entry": ("image", "repair the entry; in a pickle it is an array of numbers [N, 4 + number of classes]"),
    "damaged_record": ("image", "fetch the record file again"),
    "wrong_shape": ("image", "an array has a row a box: 4 corners, then a column for each class; check --classes"),
    "bad_row": ("box", "a row is path,xmin,ymin,xmax,ymax,class, or as the header names its columns"),
    "unknown_image": ("box", "list the image, or remove the annotation"),
    "wrong_columns": (
        "box",
        "lines: xmin,ymin,xmax,ymax,class; Darknet: class cx cy width height; COCO: [x, y, width, height]",
    ),
    "not_numeric": ("box", "corners are numbers, the class is a whole number that counts from 0"),
    "class_out_of_range": ("box", "classes count from 0 in the order of the class names; check --classes"),
    "not_one_hot": ("box", "the columns after the corners hold a single 1"),
    "not_finite": ("box", "remove the box or draw it again"),
    "wrong_unit": ("box", "pickles, Darknet and records are relative to the image, the other formats in pixels"),
    "inverted": ("box", "swap the corners: xmin < xmax, ymin < ymax"),
    "zero_area": ("box", "remove the box or draw it again"),
    "size_mismatch": ("image", "draw the boxes on this very file, or correct the size that the annotation states"),
    "outside": ("box", "remove the box, or check that it belongs to this image"),
    "too_many_boxes": ("box", "raise --max-boxes; to drop keeps the first boxes"),
    # suspicions: what can be used, and may be wrong all the same
    "wrong_extension": ("image", "rename the file"),
    "same_content": ("image", "keep one of the two, or they are learned twice, or tested on what was learned"),
    "tiny_box": ("box", "remove the box, or take a larger model input: nothing is left of it to learn"),
    "duplicate_box": ("box", "remove one of the two"),
    "two_classes": ("box", "keep the class that is right"),
    "shifted_classes": ("", "check the order and the number of the class names; ids count from 0, without background"),
    "crosses_border": ("", "cut the box at the border; --on-bad clip does"),
}

FRAMES = ("displayed", "stored")
NOTES = ("wrong_extension", "same_content", "tiny_box", "duplicate_box", "two_classes", "shifted_classes")

_NOISE = 1e-3  # pixels; floating point alone carries corners this far over the border
_BORDER_TOLERANCE = 1.001  # pixels that rounding may carry a corner over the border


@dataclass(frozen=True)
class Annotation:
    """The checked boxes of one image.

    Attributes:
        image_path: the image file.
        image_id: the image's name as the annotation file writes it.
        boxes: float32 [N, 4] xyxy, relative to the displayed image.
        labels: int32 [N] in [0, C).
        difficult: bool [N].
    """

    image_path: str
    image_id: str
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True)
class Listing:
    """What an annotation file says about one image, not yet checked against it.

    Attributes:
        where: "file:line" or "file: key 'x'".
        image_path, image_id: as in `Annotation`.
        boxes: float64 [N, 4] xyxy as written: pixels of the image if `in_pixels`, else relative.
        labels: int32 [N] in [0, C).
        difficult: bool [N].
        numbers: int [N], the place of each box in its entry, counted from 1; see `by_line` and `list_name`.
        stated_size: (height, width) of the image as the annotation file states it, None if it does not.
        frame: one of FRAMES, where the boxes were drawn: on the image "displayed" upright, as its EXIF orientation
            says, or on its pixels as they are "stored".
        by_line: `where` is a file alone, and `numbers` are its lines.
        list_name: of the list in the file that `numbers` count, from 0; "": they count within the entry.
    """

    where: str
    image_path: str
    image_id: str
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    numbers: np.ndarray
    in_pixels: bool
    stated_size: tuple[int, int] | None = None
    frame: str = "displayed"
    by_line: bool = False
    list_name: str = ""

    def where_is(self, i: int) -> str:
        """The place of box `i`, counted from 0: "file:line", "file: key 'x'" or "file: ... list[number]"."""
        if self.list_name:
            return f"{self.where}, {self.list_name}[{self.numbers[i]}]"
        return f"{self.where}:{self.numbers[i]}" if self.by_line else self.where

    def problem_with(self, i: int, kind: str, text: str) -> "Problem":
        """A problem with box `i`, counted from 0; `text` follows what the box is called."""
        name = "the box" if self.list_name else f"box {self.numbers[i]}"
        return Problem(kind, self.where_is(i), f"{name} {text}", (int(self.numbers[i]),))


@dataclass(frozen=True)
class Problem:
    """One thing that cannot be used, or looks wrong.

    Attributes:
        kind: a key of KINDS.
        where: "file:line" or "file: key 'x'".
        reason: what is wrong.
        boxes: the boxes that are meant, as `Listing.numbers` counts them; none: the image as a whole.
        image_path: the image, where the entry or the box is left out of the listings; "" where there is none.
    """

    kind: str
    where: str
    reason: str
    boxes: tuple[int, ...] = ()
    image_path: str = ""

    @property
    def loses(self) -> str:
        """What is left out when bad data is skipped: "image", "box" or ""."""
        return KINDS[self.kind][0]

    @property
    def advice(self) -> str:
        return KINDS[self.kind][1]

    def __str__(self):
        mark = "note: " if self.kind in NOTES else ""
        return f"{self.where}: {mark}{self.reason} [{self.kind}]; {self.advice}"


# --- boxes --------------------------------------------------------------------------------------


def to_annotation(
    listing: Listing, size: tuple[int, int], orientation: int = 1
) -> tuple[Annotation, list[Problem], int]:
    """Checks the boxes of a listing and makes them relative to the displayed image.

    A box that leaves the image by at most one pixel (rounding) is cut to it; one that leaves it further is cut
    as well and reported as "crosses_border"; the other kinds of problem leave the box out.

    Args:
        size: (height, width) in pixels of the image as it is displayed.
        orientation: the image's EXIF orientation, 1 to 8, by which boxes are turned that were drawn on the pixels
            as they are stored.
    Returns:
        the annotation, the problems, and the number of boxes cut because of rounding.
    """
    relative, drawn_on = relative_boxes(listing, size, orientation)
    sides = np.float64(size[::-1] * 2)
    inside = np.clip(relative, 0.0, 1.0).astype(np.float32)
    if _is_plain(listing, relative, inside):
        return Annotation(listing.image_path, listing.image_id, inside, listing.labels, listing.difficult), [], 0
    beyond = (np.maximum(-relative, relative - 1.0) * sides).max(axis=1, initial=0.0)
    with np.errstate(invalid="ignore"):  # corners that are not finite
        faults = _find_faults(listing, relative, inside, beyond, max(size))
    problems = [_box_problem(listing, drawn_on, i, fault) for i, fault in enumerate(faults) if fault]
    kept = np.isin(faults, ("", "crosses_border"))
    rounded = int(((faults == "") & (beyond > _NOISE)).sum())
    fields = (inside[kept], listing.labels[kept], listing.difficult[kept])
    return Annotation(listing.image_path, listing.image_id, *fields), problems, rounded


def relative_boxes(listing: Listing, size: tuple[int, int], orientation: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The boxes of a listing as they are, whole or not, relative to the displayed image.

    Args:
        size, orientation: as for `to_annotation`.
    Returns:
        float64 [N, 4] xyxy, and the (height, width) in pixels of the image that they were drawn on.
    """
    orientation = orientation if listing.frame == "stored" else 1
    drawn_on = size[::-1] if orientation >= 5 else size
    relative = listing.boxes / np.float64(drawn_on[::-1] * 2) if listing.in_pixels else listing.boxes
    return turn_boxes(relative, orientation), drawn_on


def turn_boxes(boxes, orientation: int):
    """Boxes on an image's stored pixels -> on the image as its EXIF orientation displays it (CIPA DC-008, table 6).

    Args:
        boxes: [N, 4] xyxy, relative to the image.
    """
    if orientation == 1:
        return boxes
    x1, y1, x2, y2 = boxes.T
    if orientation >= 5:  # the displayed row 0 is a stored column
        x1, y1, x2, y2 = y1, x1, y2, x2
    if orientation in (2, 3, 6, 7):  # the displayed left is the stored right, or bottom
        x1, x2 = 1 - x2, 1 - x1
    if orientation in (3, 4, 7, 8):  # the displayed top is the stored bottom, or right
        y1, y2 = 1 - y2, 1 - y1
    return np.stack([x1, y1, x2, y2], axis=-1)


def _is_plain(listing, relative, inside) -> bool:
    """Whether all boxes are surely without a fault, at a tenth of the cost of looking for each kind."""
    whole = (
        (inside[:, 2:] > inside[:, :2]).all() and relative.min(initial=0.0) >= 0.0 and relative.max(initial=1.0) <= 1.0
    )
    return bool(whole and (not listing.in_pixels or (listing.boxes[:, 2:] > 1.0).all()))


def _find_faults(listing, relative, inside, beyond, longest_side):
    """The first fault of each box, str [N], "" where there is none."""
    sizes = relative[:, 2:] - relative[:, :2]
    if listing.in_pixels:  # a whole file of numbers below one pixel is relative; corners on whole pixels are not
        small = (np.abs(listing.boxes) <= 1.0).all(axis=1) & (listing.boxes % 1.0 != 0.0).any(axis=1)
        wrong_unit = small & (longest_side > 1)
    else:
        wrong_unit = (np.abs(listing.boxes) > 2.0).any(axis=1)
    faults = [
        ("not_finite", ~np.isfinite(relative).all(axis=1)),
        ("wrong_unit", wrong_unit),
        ("inverted", (sizes < 0.0).any(axis=1)),
        ("zero_area", (sizes == 0.0).any(axis=1)),
        ("outside", (relative[:, :2] >= 1.0).any(axis=1) | (relative[:, 2:] <= 0.0).any(axis=1)),
        ("zero_area", (inside[:, 2:] <= inside[:, :2]).any(axis=1)),  # what is left may be too small for float32
        ("crosses_border", beyond > _BORDER_TOLERANCE),
    ]
    return np.select([condition for _, condition in faults], [kind for kind, _ in faults], default="")


_FAULT_TEXT = {
    "not_finite": "has a corner that is no finite number",
    "inverted": "ends before it starts",
    "zero_area": "has no area",
    "outside": "lies outside the image",
    "crosses_border": "leaves the image by more than a pixel",
}
_UNIT_TEXT = {True: "seems to be relative to the image, not in pixels", False: "seems to be in pixels, not relative"}


def _box_problem(listing, size, i, fault) -> Problem:
    corners = ", ".join(f"{value:.6g}" for value in listing.boxes[i])
    image = f"{size[1]} x {size[0]} image"
    text = _FAULT_TEXT.get(fault) or _UNIT_TEXT[listing.in_pixels]
    return listing.problem_with(i, fault, f"({corners}; {image}) {text}")


def read_annotations(listings) -> tuple[list[Annotation], list[Problem]]:
    """Checks listings against their images' headers, one by one; what make_tfrecords does while it writes.

    Raises:
        ImageError: an image is missing or cannot be read.
    """
    headers = ((listing, read_header(listing.image_path)) for listing in listings)
    checked = [to_annotation(listing, header.source_size, header.orientation) for listing, header in headers]
    return [annotation for annotation, _, _ in checked], [p for _, problems, _ in checked for p in problems]


# --- splits -------------------------------------------------------------------------------------


def split_listings(listings, mode: str, val_ratio: float, seed: int) -> tuple[list[Listing], list[Listing]]:
    """Splits into train and val as rykov8/ssd_keras and keras-yolo3 do.

    Args:
        mode: "sorted": by image id, the first part is train (rykov8/ssd_keras, which takes 0.8);
            "shuffled": in an order drawn with `seed`, the last part is val (keras-yolo3, which takes 0.1).
    """
    if mode == "sorted":
        listings = sorted(listings, key=lambda listing: listing.image_id)
        num_train = round((1.0 - val_ratio) * len(listings))
    else:
        listings = list(listings)
        np.random.RandomState(seed).shuffle(listings)  # the order that np.random.seed(seed) and shuffle give
        num_train = len(listings) - int(len(listings) * val_ratio)
    return listings[:num_train], listings[num_train:]
