"""What else makes training batches of the same photos, for `input_pipeline.py --compare`.

A baseline is a function (record_set, config, num_images) -> an iterable without end of batches of
`config.train.batch_size` images. The Python generators are written from the description of what the old projects do,
with their own settings and steps, one process, no cleverness added. They read the JPEGs where they lie in the shards.
"""

import importlib.util
import io
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import tensorflow as tf
from baselines_targets import ssd_targets, yolo_targets
from matplotlib import colors
from PIL import Image

from tfdet import boxes as box_ops
from tfdet import configs, detectors, schema
from tfdet.config import YOLO_AUGMENT, AugmentConfig, ConfigError
from tfdet.data import records

_LUMA = (0.299, 0.587, 0.114)
_MEAN_BGR = (103.939, 116.779, 123.68)
_MOST_BOXES = 20  # an image, in keras-yolo3


@dataclass(frozen=True)
class Photo:
    """One image of a record set: where its JPEG lies, boxes float32 [N, 4] xyxy relative, labels int [N]."""

    path: str
    offset: int
    length: int
    image_id: str
    boxes: np.ndarray
    labels: np.ndarray

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


class Endless:
    """An iterable that calls `start` for each of its iterators."""

    def __init__(self, start):
        self._start = start

    def __iter__(self):
        return self._start()


def read_photos(record_set, num_images) -> list[Photo]:
    """The first `num_images` photos of a record set, with their annotations.

    Raises:
        ConfigError: the records hold no JPEGs.
    """
    if record_set.store != "jpeg":
        raise ConfigError(f"the baselines decode JPEGs; {record_set.directory} holds images that are decoded already")
    photos = []
    for shard, offset, length in record_set.index[:num_images]:
        path, start = record_set.shard_paths[shard], int(offset) + 12  # after the frame's length and its checksum
        with open(path, "rb") as file:
            file.seek(start)
            payload = file.read(int(length))
        example = {key: value.numpy() for key, value in records.parse(payload).items()}
        encoded = example[schema.ENCODED]
        photos.append(
            Photo(
                path, start + payload.index(encoded), len(encoded), example[schema.IMAGE_ID].decode(),
                example[schema.BOXES], example[schema.LABELS],
            )
        )  # fmt: skip
    return photos


def config_for(kind, config):
    """`config`, with the detector of the old project's own preset where `config` has one of another kind."""
    preset = {"ssd": "ssd300_vgg16", "yolo": "yolov3_416"}[kind]
    return config if config.detector.kind == kind else replace(config, detector=configs.load(preset).detector)


def _endless_order(number, rng):
    while True:
        yield from rng.permutation(number)


# --- rykov8/ssd_keras ---------------------------------------------------------------------------


def rykov8(record_set, config, num_images):
    """The generator of rykov8/ssd_keras' training notebook, with its settings."""
    photos = read_photos(record_set, num_images)
    return Endless(partial(rykov8_batches, photos, config_for("ssd", config), AugmentConfig()))


def rykov8_batches(photos, config, augment, order=None, seed=0):
    """Yields float64 images [B, H, W, 3], BGR less the mean, and targets [B, A, 4 + 1 + C + 1] as `ssd_targets`.

    Args:
        augment: the ranges of its own changes; NO_AUGMENT switches them off.
        order: photo numbers; None: shuffled without end.
    """
    rng = np.random.default_rng(seed)
    detector = detectors.build(config.detector, config.num_classes)
    priors = box_ops.to_xyxy(detector.anchors).numpy().astype(np.float64)
    variances = detector.variances.numpy().astype(np.float64)
    images, targets = [], []
    for number in _endless_order(len(photos), rng) if order is None else order:
        photo = photos[number]
        usable = photo.labels >= 0
        image, boxes, labels = _decode(photo.read()), photo.boxes[usable].astype(np.float64), photo.labels[usable]
        if augment.geometry != "none":
            image, boxes, labels = _random_sized_crop(image, boxes, labels, augment, rng)
        height, width = config.detector.image_size
        image = Image.fromarray(image.astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
        image = _jitter_colours(np.asarray(image).astype(np.float32), augment, rng)
        image, boxes = _flip(image, boxes, augment, rng)
        images.append(image)
        targets.append(ssd_targets(boxes, labels, priors, variances, config.num_classes))
        if len(images) == config.train.batch_size:
            yield np.array(images)[..., ::-1] - _MEAN_BGR, np.array(targets)
            images, targets = [], []


def _decode(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(np.float32)


def _random_sized_crop(image, boxes, labels, augment, rng):
    """A window of drawn area and aspect; boxes stay where their centre is inside."""
    height, width = image.shape[:2]
    area = height * width * rng.uniform(*augment.crop_area)
    aspect = rng.uniform(*augment.crop_aspect)
    w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
    if rng.random() < 0.5:
        w, h = h, w
    w, h = min(w, width), min(h, height)
    x, y = int(rng.random() * (width - w)), int(rng.random() * (height - h))
    low, sides = np.array([x / width, y / height]), np.array([w / width, h / height])
    kept, kept_labels = [], []
    for box, label in zip(boxes, labels):
        centre = (box[:2] + box[2:]) / 2
        if (centre > low).all() and (centre < low + sides).all():
            kept.append(np.clip((box - [*low, *low]) / [*sides, *sides], 0, 1))
            kept_labels.append(label)
    return image[y : y + h, x : x + w], np.array(kept).reshape(-1, 4), np.array(kept_labels, int)


def _jitter_colours(image, augment, rng):
    """Saturation, brightness and contrast in a drawn order, each clipped, then noise along the principal colours."""

    def factor(amount):
        return 1 + amount * (2 * rng.random() - 1)

    def saturate(rgb):
        alpha = factor(augment.saturation)
        return np.clip(alpha * rgb + (1 - alpha) * rgb.dot(_LUMA)[..., None], 0, 255)

    def brighten(rgb):
        return np.clip(rgb * factor(augment.brightness), 0, 255)

    def contrast(rgb):
        alpha = factor(augment.contrast)
        return np.clip(alpha * rgb + (1 - alpha) * rgb.dot(_LUMA).mean(), 0, 255)

    named = ((saturate, augment.saturation), (brighten, augment.brightness), (contrast, augment.contrast))
    for change in rng.permutation([change for change, amount in named if amount]):
        image = change(image)
    if augment.lighting:
        values, vectors = np.linalg.eigh(np.cov(image.reshape(-1, 3) / 255, rowvar=False))
        noise = vectors.dot(values * rng.standard_normal(3) * augment.lighting)
        image = np.clip(image + 255 * noise, 0, 255)
    return image


def _flip(image, boxes, augment, rng):
    if rng.random() < augment.horizontal_flip:
        image, boxes = image[:, ::-1], np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], 1)
    if rng.random() < augment.vertical_flip:
        image, boxes = image[::-1], np.stack([boxes[:, 0], 1 - boxes[:, 3], boxes[:, 2], 1 - boxes[:, 1]], 1)
    return image, boxes


# --- qqwweee/keras-yolo3 ------------------------------------------------------------------------


def keras_yolo3(record_set, config, num_images):
    """The generator of qqwweee/keras-yolo3, with its settings."""
    photos = read_photos(record_set, num_images)
    return Endless(partial(keras_yolo3_batches, photos, config_for("yolo", config), YOLO_AUGMENT))


def keras_yolo3_batches(photos, config, augment, order=None, seed=0):
    """Yields float64 images [B, H, W, 3] in [0, 1] and what `yolo_targets` makes of a batch; `order` as above.

    augment: the ranges of its own changes; NO_AUGMENT letterboxes instead.
    """
    rng = np.random.default_rng(seed)
    height, width = config.detector.image_size
    images, rows = [], []
    for number in _endless_order(len(photos), rng) if order is None else order:
        image, boxes, labels = _place_on_gray(photos[number], (height, width), augment, rng)
        row, count = np.full((_MOST_BOXES, 5), -1.0), min(len(boxes), _MOST_BOXES)
        row[:count, :4], row[:count, 4] = boxes[:count] / [width, height, width, height], labels[:count]
        images.append(image)
        rows.append(row)
        if len(images) == config.train.batch_size:
            rows = np.array(rows)
            yield np.array(images), yolo_targets(rows[..., :4], rows[..., 4].astype(int), config.detector)
            images, rows = [], []


def _place_on_gray(photo, size, augment, rng):
    """The photo on the network's input: float64 [H, W, 3]; boxes in its pixels [N, 4], labels [N]."""
    image = Image.open(io.BytesIO(photo.read())).convert("RGB")
    height, width = size
    if augment.geometry == "none":
        scale = min(width / image.width, height / image.height)
        shown = int(image.width * scale), int(image.height * scale)
        x, y = (width - shown[0]) // 2, (height - shown[1]) // 2
    else:
        sway = 1 - augment.jitter, 1 + augment.jitter
        aspect = width / height * rng.uniform(*sway) / rng.uniform(*sway)
        scale = rng.uniform(*augment.scale)
        shown = (int(scale * height * aspect), int(scale * height)) if aspect < 1 else (
            int(scale * width), int(scale * width / aspect))  # fmt: skip
        shown = max(shown[0], 1), max(shown[1], 1)
        x, y = int(rng.random() * (width - shown[0])), int(rng.random() * (height - shown[1]))
    canvas = Image.new("RGB", (width, height), (128, 128, 128))
    canvas.paste(image.resize(shown, Image.Resampling.BICUBIC), (x, y))
    mirrored = rng.random() < augment.horizontal_flip
    if mirrored:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.array(canvas) / 255.0
    if augment.geometry != "none":
        pixels = _distort(pixels, augment, rng)
    usable = photo.labels >= 0
    boxes, labels = photo.boxes[usable].astype(np.float64) * [*shown, *shown] + [x, y, x, y], photo.labels[usable]
    if mirrored:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    boxes = np.clip(boxes, 0, [width, height, width, height])
    seen = (boxes[:, 2:] - boxes[:, :2] > 1).all(1)
    return pixels, boxes[seen], labels[seen]


def _distort(pixels, augment, rng):
    """Hue, saturation and value in HSV, as Matplotlib converts it."""

    def factor(limit):
        drawn = rng.uniform(1, limit)
        return drawn if rng.random() < 0.5 else 1 / drawn

    hsv = colors.rgb_to_hsv(pixels)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(-augment.hue, augment.hue)) % 1
    hsv[..., 1:] *= factor(augment.hsv_saturation), factor(augment.hsv_value)
    return colors.hsv_to_rgb(np.clip(hsv, 0, 1))


# --- tf.data as one writes it first -------------------------------------------------------------


def naive_tf_data(record_set, config, num_images):
    """Records, the ops of tf.image one after the other on each image, matching per image op by op, padded batches."""
    encode = detectors.build(config.detector, config.num_classes).encode
    data = tf.data.TFRecordDataset(list(record_set.shard_paths)).take(num_images).repeat().shuffle(1024)
    data = data.map(partial(_naive_example, encode=encode, size=config.detector.image_size), tf.data.AUTOTUNE)
    padding = {schema.IMAGE: tf.constant(0, tf.uint8), schema.BOXES: 0.0, schema.LABELS: schema.BACKGROUND,
               schema.TARGET_BOXES: 0.0, schema.TARGET_LABELS: schema.BACKGROUND}  # fmt: skip
    return data.padded_batch(config.train.batch_size, padding_values=padding).prefetch(tf.data.AUTOTUNE)


def _naive_example(serialized, encode, size):
    example = records.parse(serialized)
    image, boxes, labels = tf.io.decode_jpeg(example[schema.ENCODED], channels=3), *_with_one(example)
    begin, crop, window = tf.image.sample_distorted_bounding_box(
        tf.shape(image), box_ops.to_yxyx(tf.clip_by_value(boxes, 0.0, 1.0))[None], min_object_covered=0.1,
        aspect_ratio_range=(0.75, 1.33), area_range=(0.3, 1.0), use_image_if_no_bounding_boxes=True,
    )  # fmt: skip
    image = tf.slice(image, begin, crop)
    boxes = box_ops.to_window(boxes, tf.gather(window[0, 0], [1, 0, 3, 2]))
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    kept = tf.reduce_all((centre > 0) & (centre < 1), -1)
    boxes, labels = tf.where(kept[:, None], box_ops.clip(boxes), 0.0), tf.where(kept, labels, schema.BACKGROUND)
    image = tf.image.convert_image_dtype(image, tf.float32)
    image = tf.image.resize(image, size)
    image = tf.image.random_brightness(image, 0.125)
    image = tf.image.random_saturation(image, 0.5, 1.5)
    image = tf.image.random_hue(image, 0.05)
    image = tf.image.random_contrast(image, 0.5, 1.5)
    image, boxes = tf.cond(
        tf.random.uniform([]) < 0.5,
        lambda: (tf.image.flip_left_right(image), box_ops.flip_horizontally(boxes)),
        lambda: (image, boxes),
    )
    image = tf.image.convert_image_dtype(tf.clip_by_value(image, 0.0, 1.0), tf.uint8)
    targets = {key: value[0] for key, value in encode(boxes[None], labels[None]).items()}
    return {schema.IMAGE: tf.ensure_shape(image, [*size, 3]), schema.BOXES: boxes, schema.LABELS: labels, **targets}


def _with_one(example):
    """boxes, labels of an example with a row of padding at the end: matching needs one."""
    boxes, labels = example[schema.BOXES], example[schema.LABELS]
    return tf.pad(boxes, [[0, 1], [0, 0]]), tf.pad(labels, [[0, 1]], constant_values=schema.BACKGROUND)


# --- which there are ----------------------------------------------------------------------------


def pytorch_opencv(record_set, config, num_images, variant="paper"):
    """tfdet's SSD pipeline in a PyTorch DataLoader of two workers with OpenCV: see baselines_torch.py."""
    import baselines_torch

    return baselines_torch.make_loader(read_photos(record_set, num_images), config_for("ssd", config), variant)


def dali_cpu(record_set, config, num_images):
    """tfdet's SSD pipeline in NVIDIA DALI on the CPU: baselines_dali.py."""
    import baselines_dali

    return baselines_dali.make_batches(read_photos(record_set, num_images), config_for("ssd", config))


BASELINES = {
    "rykov8": rykov8,
    "keras_yolo3": keras_yolo3,
    "naive_tf_data": naive_tf_data,
    "pytorch_opencv": pytorch_opencv,
    "pytorch_opencv_tuned": partial(pytorch_opencv, variant="tuned"),
    "dali_cpu": dali_cpu,
}
_NEEDS = {
    "pytorch_opencv": ("torch", "cv2"),
    "pytorch_opencv_tuned": ("torch", "cv2"),
    "dali_cpu": ("nvidia.dali",),
}


def missing(name) -> list[str]:
    """The modules that a baseline needs and that are not installed."""
    return [module for module in _NEEDS.get(name, ()) if not _is_installed(module)]


def _is_installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False
