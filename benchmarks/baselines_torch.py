"""tfdet's SSD pipeline as a PyTorch DataLoader with OpenCV: the same window, resize, flip, colour, match and encode.

Two worker processes with one thread each. Arithmetic on pixels is OpenCV's, the candidate windows and the matching are
vectorised in numpy, in both variants:
    paper   the order of the SSD paper and of its ports: the whole photo as floats changes its colours, then it is put
            on a larger canvas, cropped, flipped, resized
    tuned   tfdet's order: only the window is resized, as bytes, and its colours change at the size of the output
"""

import cv2
import numpy as np
import torch

from tfdet import detectors, schema
from tfdet.config import AugmentConfig
from tfdet.data.augment import SSD_MIN_IOUS, SSD_TRIES
from tfdet.data.image_ops import LUMA, MEAN_RGB
from tfdet.detectors.priors import to_xyxy

WORKERS = 2
_WHOLE = np.float32([0, 0, 1, 1])


class SsdPhotos(torch.utils.data.Dataset):
    """photos: list of baselines.Photo. An item has the keys and dtypes of a row of tfdet's batch."""

    def __init__(self, photos, config, variant):
        self.change = {"tuned": change_window, "paper": change_photo}[variant]
        self.photos, self.augment, self.size = photos, config.augment, config.detector.image_size
        detector = detectors.build(config.detector, config.num_classes)
        self.priors, self.variances = detector.anchors.numpy(), detector.variances.numpy()
        self.corners, self.config = to_xyxy(self.priors), config.detector
        self.rng = None

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, number):
        self.rng = self.rng or np.random.default_rng(torch.initial_seed())  # each worker has its own
        photo = self.photos[number]
        data = np.frombuffer(photo.read(), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        image, window = self.change(image, photo, self.augment, self.size, self.rng)
        boxes, labels = boxes_in_window(photo.boxes, photo.labels, window, self.size, self.augment)
        for axis, chance in enumerate((self.augment.horizontal_flip, self.augment.vertical_flip)):
            if self.rng.random() < chance:
                image = cv2.flip(image, 1 - axis)
                boxes[:, [axis, axis + 2]] = 1 - boxes[:, [axis + 2, axis]]
        target_boxes, target_labels = encode(boxes, labels, self.priors, self.corners, self.variances, self.config)
        return {schema.IMAGE: image, schema.TARGET_BOXES: target_boxes, schema.TARGET_LABELS: target_labels,
                "index": number}  # fmt: skip


def make_loader(photos, config, variant):
    """An iterable without end of batches: dicts of tensors."""
    dataset = SsdPhotos(photos, config, variant)
    endless = torch.utils.data.RandomSampler(dataset, num_samples=len(photos) * 10**6)
    # fork: a fresh process would import the benchmark, and TensorFlow with it, before every pass
    return torch.utils.data.DataLoader(
        dataset, config.train.batch_size, sampler=endless, num_workers=WORKERS, multiprocessing_context="fork",
        worker_init_fn=lambda _: cv2.setNumThreads(0), drop_last=True,
    )  # fmt: skip


def change_window(image, photo, augment, size, rng):
    """uint8 photo -> uint8 [*size, 3] and the window that it shows, float [4]."""
    window = choose_window(photo.boxes, photo.labels, image.shape, augment, rng)
    image, window = show(image, window, size)
    return change_colours(image, augment, rng), window


def change_photo(image, photo, augment, size, rng):
    """As `change_window`, in the paper's order."""
    image = change_colours(image.astype(np.float32), augment, rng)
    source, canvas, canvas_size = image.shape[1::-1], _WHOLE, image.shape[1::-1]
    if rng.random() < augment.expand_probability:
        canvas = draw_canvas(augment, rng)
        canvas_size = np.rint((canvas[2:] - canvas[:2]) * source).astype(int)
        x, y = np.minimum(np.rint(-canvas[:2] * source).astype(int), canvas_size - source)
        whole = np.empty((*canvas_size[::-1], 3), np.float32)
        whole[:] = MEAN_RGB
        whole[y : y + image.shape[0], x : x + image.shape[1]] = image
        image = whole
    boxes, labels = to_window(photo.boxes, canvas), photo.labels
    crop = choose_crop(boxes, labels, image.shape, augment, rng)
    x0, y0, x1, y1 = np.rint(crop * np.tile(canvas_size, 2)).astype(int)
    pixels = cv2.resize(image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)], size[::-1], interpolation=cv2.INTER_LINEAR)
    crop = np.array([x0, y0, x1, y1]) / np.tile(canvas_size, 2)
    return cv2.convertScaleAbs(pixels), from_canvas(crop, canvas)


# --- geometry -----------------------------------------------------------------------------------


def choose_window(boxes, labels, shape, augment: AugmentConfig, rng):
    """float [4] xyxy relative to the image, which it may reach beyond. As data/augment.py, one image at a time."""
    canvas = draw_canvas(augment, rng) if rng.random() < augment.expand_probability else _WHOLE
    return from_canvas(choose_crop(to_window(boxes, canvas), labels, shape, augment, rng), canvas)


def draw_canvas(augment, rng):
    """The larger canvas of SSD's zoom-out, as a window."""
    ratio = rng.uniform(1, augment.expand_ratio)
    low = -rng.random(2) * (ratio - 1)
    return np.concatenate([low, low + ratio])


def choose_crop(boxes, labels, shape, augment, rng):
    """float [4] inside of what the boxes are relative to."""
    if augment.geometry == "ssd_crop":
        return _ssd_crop(boxes[labels != schema.BACKGROUND], rng)
    if augment.geometry == "random_size_crop" and rng.random() < augment.crop_probability:
        return _random_size_crop(shape, augment, rng)
    return _WHOLE


def from_canvas(window, canvas):
    return np.tile(canvas[:2], 2) + window * np.tile(canvas[2:] - canvas[:2], 2)


def _ssd_crop(boxes, rng):
    choice = rng.integers(len(SSD_MIN_IOUS) + 1)
    if choice == len(SSD_MIN_IOUS) or not len(boxes):
        return _WHOLE
    scale = rng.uniform(0.3, 1, SSD_TRIES)
    aspect = np.sqrt(rng.uniform(np.maximum(0.5, scale**2), np.minimum(2, 1 / scale**2)))
    sides = np.stack([scale * aspect, scale / aspect], -1)
    low = rng.random((SSD_TRIES, 2)) * (1 - sides)
    windows = np.concatenate([low, low + sides], -1)[:, None]
    enough = iou(windows, boxes) >= SSD_MIN_IOUS[choice]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres > windows[..., :2]) & (centres < windows[..., 2:])).all(-1)
    fits = np.flatnonzero(enough.any(1) & inside.any(1))
    return windows[fits[0], 0] if len(fits) else _WHOLE


def _random_size_crop(shape, augment, rng):
    size = np.array(shape[1::-1])
    area, aspect = size.prod() * rng.uniform(*augment.crop_area), rng.uniform(*augment.crop_aspect)
    sides = np.sqrt([area * aspect, area / aspect])[:: rng.choice([-1, 1])]
    sides = np.minimum(sides, size)
    low = rng.random(2) * (size - sides)
    return np.concatenate([low, low + sides]) / np.tile(size, 2)


def to_window(boxes, window):
    """boxes [N, 4] relative to the image -> relative to the window."""
    return (boxes - np.tile(window[:2], 2)) / np.tile(window[2:] - window[:2], 2)


def show(image, window, size):
    """What is seen through a window, uint8 [*size, 3], mean colour where there is no image, and the window in whole
    pixels."""
    source, output = np.array(image.shape[1::-1]), np.array(size[::-1])
    low, high = window[:2], window[2:]
    start = np.minimum(np.rint(np.clip(low, 0, 1) * source), source - 1).astype(int)
    stop = np.maximum(np.rint(np.clip(high, 0, 1) * source), start + 1).astype(int)
    put = np.rint((np.clip(low, 0, 1) - low) / (high - low) * output).clip(0, output - 1).astype(int)
    put_stop = np.maximum(np.rint((np.clip(high, 0, 1) - low) / (high - low) * output), put + 1).astype(int)
    pixels = cv2.resize(image[start[1] : stop[1], start[0] : stop[0]], put_stop - put, interpolation=cv2.INTER_LINEAR)
    if pixels.shape[:2] != tuple(size):
        after = output - put_stop
        pixels = cv2.copyMakeBorder(
            pixels, put[1], after[1], put[0], after[0], cv2.BORDER_CONSTANT, value=tuple(map(float, MEAN_RGB))
        )
    scale = (stop - start) / (put_stop - put)
    origin = start - put * scale
    return pixels, np.float32(np.concatenate([origin, origin + output * scale]) / np.tile(source, 2))


def boxes_in_window(boxes, labels, window, size, augment):
    """Boxes of which at least a pixel and, where the window is a crop, the centre is seen: float32 [N, 4], int [N]."""
    seen = to_window(boxes, window)
    clipped = np.clip(seen, 0, 1).astype(np.float32)
    kept = ((clipped[:, 2:] - clipped[:, :2]) * size[::-1] >= 1).all(1)
    if augment.geometry != "none":
        centres = (seen[:, :2] + seen[:, 2:]) / 2
        kept &= ((centres > 0) & (centres < 1)).all(1)
    return clipped[kept], labels[kept]


# --- colour -------------------------------------------------------------------------------------


def change_colours(image, augment, rng):
    """Saturation, brightness, contrast in a drawn order, then lighting, clipped at each: uint8 or float [H, W, 3]."""
    amounts = augment.saturation, augment.brightness, augment.contrast
    for turn in rng.permutation(3):
        if not amounts[turn]:
            continue
        factor = 1 + amounts[turn] * rng.uniform(-1, 1)
        if turn == 0:
            image = _affine(image, factor * np.eye(3) + (1 - factor) * np.ones((3, 1)) * LUMA, np.zeros(3))
        else:
            pull = (1 - factor) * np.dot(cv2.mean(image)[:3], LUMA) if turn == 2 else 0.0
            image = _scale(image, factor, pull)
    if augment.lighting:
        colours = cv2.resize(image, (32, 32)).reshape(-1, 3) / np.float32(255)
        image = _affine(
            image, np.eye(3), 255 * augment.lighting * np.cov(colours, rowvar=False) @ rng.standard_normal(3)
        )
    return image


def _affine(image, matrix, bias):
    image = cv2.transform(image, np.concatenate([matrix, bias[:, None]], 1))
    return image if image.dtype == np.uint8 else np.clip(image, 0, 255, out=image)


def _scale(image, factor, bias):
    if image.dtype == np.uint8:
        table = np.clip(np.rint(np.arange(256) * factor + bias), 0, 255).astype(np.uint8)
        return cv2.LUT(image, table)
    image = image * np.float32(factor) + np.float32(bias)
    return np.clip(image, 0, 255, out=image)


# --- targets ------------------------------------------------------------------------------------


def iou(boxes_a, boxes_b):
    """[..., 4] and [..., 4], broadcast -> [...]."""
    sides = np.minimum(boxes_a[..., 2:], boxes_b[..., 2:]) - np.maximum(boxes_a[..., :2], boxes_b[..., :2])
    shared = np.maximum(sides, 0).prod(-1)
    area = lambda boxes: (boxes[..., 2:] - boxes[..., :2]).prod(-1)  # noqa: E731
    return shared / (area(boxes_a) + area(boxes_b) - shared)


def encode(boxes, labels, priors, corners, variances, config):
    """The bipartite rule of detectors/matching.py for one image: target boxes float32 [A, 4], labels int32 [A].

    Args:
        boxes: float32 [N, 4] xyxy; labels: int [N].
        priors, corners: float32 [A, 4], the same boxes as cxcywh and as xyxy; variances: float32 [A, 4].
    """
    target_boxes, target_labels = np.zeros_like(priors), np.full(len(priors), schema.BACKGROUND, np.int32)
    is_object = labels != schema.IGNORE
    for crowd in boxes[~is_object]:
        target_labels[_covered(corners, crowd) >= config.match_iou] = schema.IGNORE
    boxes, labels = boxes[is_object], labels[is_object]
    if not len(boxes):
        return target_boxes, target_labels
    overlap = _overlaps(boxes, corners)
    owner = np.where(overlap.max(0) >= config.match_iou, overlap.argmax(0), -1)
    for _ in boxes:  # the largest overlap of all first
        box, prior = divmod(overlap.argmax(), len(priors))
        if overlap[box, prior] <= 0:
            break
        owner[prior] = box
        overlap[box], overlap[:, prior] = 0, 0
    chosen = np.flatnonzero(owner >= 0)
    box, prior = boxes[owner[chosen]], priors[chosen]
    offset = ((box[:, :2] + box[:, 2:]) / 2 - prior[:, :2]) / prior[:, 2:]
    size = np.log((box[:, 2:] - box[:, :2]) / prior[:, 2:])
    target_boxes[chosen] = np.concatenate([offset, size], 1) / variances[chosen]
    target_labels[chosen] = labels[owner[chosen]]
    return target_boxes, target_labels


def _overlaps(boxes, corners):
    """IoU float32 [N, A]; coordinates apart, which numpy does twice as fast."""
    left, top, right, bottom = (column[:, None] for column in boxes.T)
    x0, y0, x1, y1 = corners.T
    width = np.maximum(np.minimum(right, x1) - np.maximum(left, x0), 0)
    shared = width * np.maximum(np.minimum(bottom, y1) - np.maximum(top, y0), 0)
    return shared / ((right - left) * (bottom - top) + (x1 - x0) * (y1 - y0) - shared)


def _covered(corners, box):
    """The share of each prior that lies in a box: [A]."""
    sides = np.minimum(corners[:, 2:], box[2:]) - np.maximum(corners[:, :2], box[:2])
    return np.maximum(sides, 0).prod(1) / (corners[:, 2:] - corners[:, :2]).prod(1)
