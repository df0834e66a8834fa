"""tfdet's SSD pipeline in NVIDIA DALI on the CPU, by DALI's own operators for SSD.

DALI has no noise along the principal colours and no drawn order of the colour changes, so it does a little less.
"""

import os

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from tfdet import detectors
from tfdet.data.augment import SSD_MIN_IOUS, SSD_TRIES
from tfdet.data.image_ops import MEAN_RGB
from tfdet.detectors.priors import to_xyxy


def make_batches(photos, config):
    """An iterable without end of (images uint8 [B, H, W, 3], target boxes [B, A, 4], target labels [B, A], from 1)."""
    return _Batches(photos, config)


class _Batches:
    def __init__(self, photos, config):
        self._photos, self._config = photos, config

    def __iter__(self):
        pipe = _training(
            self._photos, self._config, batch_size=self._config.train.batch_size, num_threads=os.cpu_count(),
            device_id=None, prefetch_queue_depth=2,
        )  # fmt: skip
        pipe.build()
        while True:
            yield [output.as_tensor() for output in pipe.run()]


@pipeline_def
def _training(photos, config):
    augment, size = config.augment, config.detector.image_size
    encoded, boxes, labels = fn.external_source(source=_batches_of(photos, config.train.batch_size), num_outputs=3)
    expanding = augment.expand_probability > 0
    if expanding:  # the photo somewhere on a larger canvas
        ratio = 1.0 + _coin(augment.expand_probability) * fn.random.uniform(range=[0.0, augment.expand_ratio - 1.0])
        x, y = fn.random.uniform(range=[0.0, 1.0]), fn.random.uniform(range=[0.0, 1.0])
        boxes = fn.bbox_paste(boxes, ratio=ratio, paste_x=x, paste_y=y, ltrb=True)
    start, sides = types.Constant([0.0, 0.0]), types.Constant([1.0, 1.0])
    if augment.geometry != "none":
        start, sides, boxes, labels = fn.random_bbox_crop(boxes, labels, bbox_layout="xyXY", **_crop_limits(augment))
    if expanding:
        image = fn.decoders.image(encoded, output_type=types.RGB)
        start = start * ratio - fn.stack(x, y) * (ratio - 1.0)
        image = fn.slice(
            image, start, sides * ratio, axis_names="WH", out_of_bounds_policy="pad", fill_values=list(MEAN_RGB)
        )
    else:
        image = fn.decoders.image_slice(encoded, start, sides, axis_names="WH", output_type=types.RGB)
    image = fn.resize(image, size=size, interp_type=types.INTERP_LINEAR, antialias=False)
    image = fn.color_twist(image, **{name: _factor(getattr(augment, name)) for name in
                                     ("brightness", "contrast", "saturation") if getattr(augment, name)})  # fmt: skip
    horizontal, vertical = _coin(augment.horizontal_flip), _coin(augment.vertical_flip)
    image = fn.flip(image, horizontal=horizontal, vertical=vertical)
    boxes = fn.bb_flip(boxes, horizontal=horizontal, vertical=vertical, ltrb=True)
    detector = detectors.build(config.detector, config.num_classes)
    corners = to_xyxy(detector.anchors.numpy()).ravel().tolist()
    stds = detector.variances[0].numpy().tolist()
    encode = {"criteria": config.detector.match_iou, "offset": True, "stds": stds, "scale": float(size[1])}
    return image, *fn.box_encoder(boxes, labels, anchors=corners, **encode)


def _coin(probability):
    return fn.random.coin_flip(probability=probability)


def _factor(amount):
    return fn.random.uniform(range=[1.0 - amount, 1.0 + amount])


def _crop_limits(augment):
    common = {"all_boxes_above_threshold": False, "total_num_attempts": SSD_TRIES}
    if augment.geometry == "ssd_crop":
        limits = {"thresholds": list(SSD_MIN_IOUS), "scaling": [0.3, 1.0], "aspect_ratio": [0.5, 2.0]}
    else:
        sides = [share**0.5 for share in augment.crop_area]
        limits = {"thresholds": [0.0], "scaling": sides, "aspect_ratio": list(augment.crop_aspect)}
    return {**common, **limits, "allow_no_crop": augment.geometry == "ssd_crop"}


def _batches_of(photos, batch_size):
    """A source of JPEGs, boxes and labels, in a new random order each time round; DALI has no boxes to ignore."""
    rng = np.random.default_rng(0)

    def read(photo):
        usable = photo.labels >= 0
        labels = (photo.labels[usable] + 1).astype(np.int32)
        return np.frombuffer(photo.read(), np.uint8), photo.boxes[usable].astype(np.float32), labels

    def batches():
        waiting = []
        while True:
            waiting.extend(rng.permutation(len(photos)))
            while len(waiting) >= batch_size:
                rows = [read(photos[number]) for number in waiting[:batch_size]]
                del waiting[:batch_size]
                yield tuple(map(list, zip(*rows)))

    return batches()
