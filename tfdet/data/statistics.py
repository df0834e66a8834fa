"""Counts, sizes and shapes of the images and boxes of a data set."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

SMALL, LARGE = 32**2, 96**2  # pixels of area: where COCO's small boxes end, and its large ones begin


@dataclass
class Facts:
    """What statistics are made of: 28 bytes a box and 12 an image.

    Attributes:
        sizes: int32 [I, 2] height, width of each image in pixels, as displayed.
        counts: int32 [I] boxes of each image.
        boxes: float32 [N, 4] xyxy relative, image by image.
        labels: int32 [N] in [0, C).
        difficult: how many boxes are.
        formats: image format -> images.
        changes: what a conversion would do to pixels -> images.
    """

    sizes: np.ndarray
    counts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: int = 0
    formats: Counter = field(default_factory=Counter)
    changes: Counter = field(default_factory=Counter)

    @classmethod
    def collect(cls, images, annotations) -> "Facts":
        """images: (height, width, format, change) of each; annotations: `Annotation`, one an image."""
        return cls(
            np.array([image[:2] for image in images], np.int32).reshape(-1, 2),
            np.array([len(annotation.labels) for annotation in annotations], np.int32),
            np.concatenate([np.zeros((0, 4), np.float32), *(annotation.boxes for annotation in annotations)]),
            np.concatenate([np.zeros(0, np.int32), *(annotation.labels for annotation in annotations)]),
            sum(int(annotation.difficult.sum()) for annotation in annotations),
            Counter(image[2] for image in images),
            Counter(image[3] for image in images if image[3]),
        )

    @classmethod
    def join(cls, parts) -> "Facts":
        parts = [cls.collect([], []), *parts]
        arrays = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("sizes", "counts", "boxes", "labels")
        )
        counters = (sum((getattr(part, name) for part in parts), Counter()) for name in ("formats", "changes"))
        return cls(*arrays, sum(part.difficult for part in parts), *counters)

    def box_sides(self) -> np.ndarray:
        """float32 [N, 2] width and height of each box in pixels of its image."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]) * np.repeat(self.sizes[:, ::-1], self.counts, axis=0)


def summarise(facts: Facts, class_names, input_size=None) -> dict:
    """The statistics as a dict that JSON can hold.

    Args:
        input_size: (height, width) of the model's input; with it, sizes of boxes there.
    """
    sides = facts.box_sides()
    areas = sides.prod(axis=1)
    summary = {
        "images": len(facts.sizes),
        "empty_images": int((facts.counts == 0).sum()),
        "boxes": len(facts.labels),
        "difficult": facts.difficult,
        "classes": _classes(facts, class_names),
        "boxes_per_image": _spread(facts.counts),
        "image_width": _spread(facts.sizes[:, 1]),
        "image_height": _spread(facts.sizes[:, 0]),
        "image_sizes": _common_sizes(facts.sizes),
        "box_width": _spread(sides[:, 0]),
        "box_height": _spread(sides[:, 1]),
        "box_area_share": _spread(np.prod(facts.boxes[:, 2:] - facts.boxes[:, :2], axis=1)),
        "box_aspect": _spread(sides[:, 0] / sides[:, 1]),
        "coco_sizes": {
            "small": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas < LARGE)).sum()),
            "large": int((areas >= LARGE).sum()),
        },
        "formats": dict(facts.formats),
        "changes": dict(facts.changes),
    }
    if input_size:
        at_input = (facts.boxes[:, 2:] - facts.boxes[:, :2]) * np.array(input_size[::-1])
        summary["shorter_side_at_input"] = _spread(at_input.min(axis=1))
    return summary


def _spread(values) -> dict:
    """Least, median, mean, 95th percentile and greatest; empty where there are no values."""
    if not len(values):
        return {}
    least, median, high, greatest = np.percentile(values, [0, 50, 95, 100])
    named = {"min": least, "median": median, "mean": np.mean(values, dtype=np.float64), "p95": high, "max": greatest}
    return {name: float(f"{value:.6g}") for name, value in named.items()}


def _classes(facts, class_names) -> list[dict]:
    owner = np.repeat(np.arange(len(facts.counts)), facts.counts)
    boxes = np.bincount(facts.labels, minlength=len(class_names))
    images = np.bincount(np.unique(np.stack([owner, facts.labels]), axis=1)[1].astype(int), minlength=len(class_names))
    return [
        {"id": i, "name": name, "boxes": int(boxes[i]), "images": int(images[i])} for i, name in enumerate(class_names)
    ]


def _common_sizes(sizes, most=10) -> list[dict]:
    """The commonest sizes of images."""
    found, counts = np.unique(sizes, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [{"width": int(found[i, 1]), "height": int(found[i, 0]), "images": int(counts[i])} for i in order]
