"""YOLO's anchors for a data set: k-means on the sides of its boxes, with 1 - IoU as the distance.

The idea is that of YOLO9000 (https://arxiv.org/abs/1612.08242, section 2). Sides are in pixels of the network input,
as the model sees the boxes; IoU is that of two boxes around one centre. NumPy only.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from tfdet.config import Config, ConfigError

RESTARTS = 32
_TRIES = 5  # boxes that each centre of a start is chosen among
ITERATIONS = 300  # at most; a few dozen are usual
SAMPLE = 20_000  # different sides that the restarts look at; the best of them goes on with all
_CHUNK = 65_536  # sides that are compared with all anchors at once


def sides_at_input(facts, input_size, letterbox: bool) -> np.ndarray:
    """Widths and heights of all boxes as the model sees them.

    Args:
        facts: data.statistics.Facts.
        input_size: (height, width) of the network input in pixels.
        letterbox: images keep their aspect; else they are stretched over the input.
    Returns:
        float64 [N, 2] width, height in pixels of the network input.
    """
    image_wh, input_wh = facts.sizes[:, ::-1].astype(np.float64), np.array(input_size[::-1], np.float64)
    shown = (
        image_wh * (input_wh / image_wh).min(1, keepdims=True) if letterbox else np.tile(input_wh, (len(image_wh), 1))
    )
    boxes = facts.boxes.astype(np.float64)
    return (boxes[:, 2:] - boxes[:, :2]) * np.repeat(shown, facts.counts, axis=0)


def best_iou(sides, anchors) -> tuple[np.ndarray, np.ndarray]:
    """The IoU of each box with the anchor that fits it best, and which that is.

    Args:
        sides: [N, 2] width, height; anchors: [K, 2], the same unit.
    Returns:
        float64 [N] in [0, 1], int64 [N].
    """
    best, which = np.empty(len(sides)), np.empty(len(sides), np.int64)
    for start in range(0, len(sides), _CHUNK):
        part = slice(start, start + _CHUNK)
        iou = _iou(sides[part], anchors)
        which[part] = iou.argmax(1)
        best[part] = iou.max(1)
    return best, which


def _iou(sides, anchors):
    """[N, 2], [K, 2] -> float64 [N, K], every box and anchor around one centre."""
    width, height = (np.minimum.outer(sides[:, i], anchors[:, i]) for i in (0, 1))
    shared = width * height
    return shared / (np.add.outer(sides.prod(1), anchors.prod(1)) - shared)


def measure(sides, anchors) -> dict:
    """How well anchors fit: the mean of the best IoU, and the share of boxes with one of at least 0.5, which is the
    best recall that anchors of fixed sides allow."""
    iou, _ = best_iou(sides, np.asarray(anchors, np.float64))
    return {"average_iou": float(iou.mean()), "recall": float((iou >= 0.5).mean())}


# --- k-means ------------------------------------------------------------------------------------


def kmeans(sides, k: int, seed: int = 0, restarts: int = RESTARTS) -> np.ndarray:
    """The best of several runs of k-means, each from a k-means++ start of its own, by the average IoU.

    A centre is the median of its boxes, width and height apart, as in qqwweee/keras-yolo3. A centre that no box
    chooses starts anew at the box that fits worst. Boxes with the same sides are one, with their number as weight.

    Args:
        sides: [N, 2] width, height; those that are not positive and finite are left out.
    Returns:
        float64 [k, 2], sorted by area.
    Raises:
        ConfigError: fewer than `k` different sides.
    """
    sides = np.asarray(sides, np.float64)
    sides = sides[np.isfinite(sides).all(1) & (sides > 0).all(1)]
    sides, weights = _unique(sides)
    if not 0 < k <= len(sides):
        raise ConfigError(f"{k} anchors of {len(sides)} different boxes are not possible; ask for 1 to {len(sides)}")
    rng = np.random.default_rng(seed)
    few, few_weights = _sample(sides, weights, max(SAMPLE, k), rng)
    runs = [_lloyd(few, few_weights, _start(few, few_weights, k, rng)) for _ in range(restarts)]
    centres, _ = max(runs, key=lambda run: run[1])
    if len(few) < len(sides):
        centres, _ = _lloyd(sides, weights, centres)
    return centres[np.lexsort((centres[:, 0], centres.prod(1)))]


def _unique(sides):
    """Different sides float64 [N, 2] and how often each is there, float64 [N]."""
    unique, counts = np.unique(np.ascontiguousarray(sides).view(np.complex128)[:, 0], return_counts=True)
    return unique.view(np.float64).reshape(-1, 2), counts.astype(np.float64)


def _sample(sides, weights, most, rng):
    if len(sides) <= most:
        return sides, weights
    chosen = rng.choice(len(sides), most, replace=False, p=weights / weights.sum(), shuffle=False)
    return sides[chosen], np.ones(most)  # the weights decided about the choice


def _start(sides, weights, k, rng):
    """k-means++ (Arthur and Vassilvitskii, 2007), greedy: each centre is the best of a few that are drawn by their
    squared distance to the centres before it."""
    distance, chosen = np.ones(len(sides)), []
    while len(chosen) < k:
        share = weights * distance**2
        share = share if share.any() else weights  # what is left differs by less than IoU can tell
        drawn = rng.choice(len(sides), _TRIES, p=share / share.sum())
        nearer = np.minimum(distance[:, None], 1.0 - _iou(sides, sides[drawn]))
        best = (weights @ nearer).argmin()
        chosen.append(drawn[best])
        distance = np.maximum(nearer[:, best], 0.0)
        distance[drawn[best]] = 0.0
    return sides[chosen]


def _lloyd(sides, weights, centres):
    """Centres float64 [K, 2] after the last step that made the average IoU larger, and that IoU."""
    orders = [np.argsort(sides[:, i], kind="stable") for i in (0, 1)]
    best, best_score = centres, -1.0
    for _ in range(ITERATIONS):
        iou, nearest = best_iou(sides, centres)
        score = weights @ iou / weights.sum()
        if score <= best_score:
            break
        best, best_score = centres, score
        centres = _medians(sides, weights, orders, nearest, centres)
        centres = _reseeded(centres, sides, iou, np.bincount(nearest, minlength=len(centres)) == 0)
    return best, best_score


def _medians(sides, weights, orders, nearest, centres):
    """The weighted median of each cluster's widths and heights; a centre without boxes stays."""
    medians = centres.copy()
    for i, order in enumerate(orders):
        owner, weight, value = nearest[order], weights[order], sides[order, i]
        for j in range(len(centres)):
            own = np.flatnonzero(owner == j)
            if len(own):
                reached = np.cumsum(weight[own])
                medians[j, i] = value[own[np.searchsorted(reached, reached[-1] / 2)]]
    return medians


def _reseeded(centres, sides, iou, empty):
    """Centres with those that are `empty`, bool [K], at the boxes that fit worst."""
    if empty.any():
        centres[empty] = sides[np.argsort(iou, kind="stable")[: empty.sum()]]
    return centres


# --- the anchor file ----------------------------------------------------------------------------


def rounded(anchors) -> np.ndarray:
    """Anchors as the file has them, to a tenth of a pixel and at least that: float64 [K, 2]."""
    return np.maximum(np.round(anchors, 1), 0.1)


def to_text(anchors) -> str:
    """The line that Darknet, keras-yolo3 and yolov3-tf2 read: `10,13, 16,30, ...`, width and height in pixels."""
    return ", ".join(f"{w:g},{h:g}" for w, h in np.asarray(anchors).tolist())


def read(path) -> tuple[tuple[float, float], ...]:
    """The anchors of such a file; blank space and line ends may stand anywhere between the numbers.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        numbers = [float(word) for word in re.split(r"[,\s]+", text.strip().strip(","))]
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name the file of the anchors") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; a file of anchors is one line such as 10,13, 16,30, 33,23") from error
    if len(numbers) % 2:
        raise ConfigError(f"{path}: {len(numbers)} numbers; anchors are pairs of width and height")
    if not all(0 < number < float("inf") for number in numbers):
        raise ConfigError(f"{path}: sides of anchors are positive numbers of pixels")
    return tuple(zip(numbers[::2], numbers[1::2]))


def use(config: Config, anchors) -> Config:
    """The config with other anchors.

    Raises:
        ConfigError: the detector has none of this kind, or takes another number of them.
    """
    if config.detector.kind != "yolo":
        raise ConfigError(f"anchors of a file are for YOLO; {config.detector.kind} has priors by its own layout")
    wanted = 1 + max(k for mask in config.detector.anchor_masks for k in mask)
    if len(anchors) != wanted:
        raise ConfigError(f"there are {len(anchors)} anchors; detector.anchor_masks shares out {wanted}")
    return replace(config, detector=replace(config.detector, anchors=tuple(map(tuple, anchors))))
