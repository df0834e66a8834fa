"""Box arithmetic. Every box is float32 `[..., 4]` `(x_min, y_min, x_max, y_max)`, relative to the
image, unless the name says otherwise: `boxes_cxcywh` is centre x, centre y, width, height.
"""

import tensorflow as tf

# Variances of the SSD box encoding (SSD: https://arxiv.org/abs/1512.02325, Caffe prior_box_layer).
VARIANCES = (0.1, 0.1, 0.2, 0.2)


def to_cxcywh(boxes):
    """boxes: float32 [..., 4] xyxy -> float32 [..., 4] cxcywh."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return tf.concat([(low + high) / 2, high - low], -1)


def to_xyxy(boxes_cxcywh):
    """boxes_cxcywh: float32 [..., 4] cxcywh -> float32 [..., 4] xyxy."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return tf.concat([centre - half, centre + half], -1)


def to_yxyx(boxes):
    """boxes: float32 [..., 4] xyxy -> float32 [..., 4] yxyx, the order of TensorFlow's own ops. Its own inverse."""
    return tf.gather(boxes, [1, 0, 3, 2], axis=-1)


def area(boxes):
    """boxes: float32 [..., 4] xyxy -> float32 [...]; 0 for inverted boxes."""
    size = tf.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return size[..., 0] * size[..., 1]


def is_valid(boxes):
    """boxes: float32 [..., 4] xyxy -> bool [...]: finite, positive width and height, touching the image."""
    finite = tf.reduce_all(tf.math.is_finite(boxes), -1)
    size = boxes[..., 2:] - boxes[..., :2]
    inside = tf.reduce_all((boxes[..., :2] < 1.0) & (boxes[..., 2:] > 0.0), -1)
    return finite & tf.reduce_all(size > 0.0, -1) & inside


def intersection(boxes_a, boxes_b):
    """Areas shared by two broadcastable sets: float32 [..., 4] xyxy, [..., 4] -> float32 [...]."""
    low = tf.maximum(boxes_a[..., :2], boxes_b[..., :2])
    high = tf.minimum(boxes_a[..., 2:], boxes_b[..., 2:])
    size = tf.maximum(high - low, 0.0)
    return size[..., 0] * size[..., 1]


def union(boxes_a, boxes_b):
    """Areas that either of two broadcastable sets covers: float32 [..., 4] xyxy, [..., 4] -> float32 [...]."""
    return area(boxes_a) + area(boxes_b) - intersection(boxes_a, boxes_b)


def iou(boxes_a, boxes_b):
    """Intersection over union of two broadcastable sets, 0 where the union is empty.

    Element-wise after broadcasting; for all pairs call `iou(a[:, None], b[None, :])`.

    Args:
        boxes_a, boxes_b: float32 [..., 4] xyxy, same unit.
    Returns:
        float32 [...] in [0, 1].
    """
    return tf.math.divide_no_nan(intersection(boxes_a, boxes_b), union(boxes_a, boxes_b))


def clip(boxes):
    """boxes: float32 [..., 4] xyxy, relative -> the part inside the image, [0, 1]."""
    return tf.clip_by_value(boxes, 0.0, 1.0)


def flip_horizontally(boxes):
    """boxes: float32 [..., 4] xyxy, relative -> mirrored left to right."""
    x_min, y_min, x_max, y_max = tf.unstack(boxes, axis=-1)
    return tf.stack([1.0 - x_max, y_min, 1.0 - x_min, y_max], -1)


def flip_vertically(boxes):
    """boxes: float32 [..., 4] xyxy, relative -> mirrored top to bottom."""
    x_min, y_min, x_max, y_max = tf.unstack(boxes, axis=-1)
    return tf.stack([x_min, 1.0 - y_max, x_max, 1.0 - y_min], -1)


def from_yxhw(rectangles, size):
    """Whole pixels to boxes.

    Args:
        rectangles: int32 [..., 4] y, x, height, width in pixels.
        size: (height, width) of what they lie on, in pixels.
    Returns:
        float32 [..., 4] xyxy, relative.
    """
    low, extent = (tf.cast(part, tf.float32) for part in tf.split(rectangles, 2, -1))
    return to_yxyx(tf.concat([low, low + extent], -1) / tf.constant([*size, *size], tf.float32))


# --- windows ------------------------------------------------------------------------------------
# A window is a box on the image that is shown stretched over the whole network input. Inside the
# image it is a crop; reaching beyond, it is a zoom-out or a letterbox. Every geometric change of an
# image but rotation and shear is the choice of a window.


def to_window(boxes, window):
    """Boxes as seen through a window.

    Args:
        boxes: float32 [..., 4] xyxy, relative to the image.
        window: float32 [..., 4] xyxy, relative to the image, may reach beyond [0, 1].
    Returns:
        float32 [..., 4] xyxy, relative to the window, not clipped.
    """
    origin, size = window[..., :2], window[..., 2:] - window[..., :2]
    return (boxes - tf.concat([origin, origin], -1)) / tf.concat([size, size], -1)


def from_window(boxes, window):
    """The inverse of `to_window`: boxes relative to a window -> relative to the image."""
    origin, size = window[..., :2], window[..., 2:] - window[..., :2]
    return boxes * tf.concat([size, size], -1) + tf.concat([origin, origin], -1)


def letterbox_window(image_size, input_size):
    """The window that shows a whole image, aspect kept, centred in the network input (keras-yolo3's letterbox).

    The shown image is floor(side * scale) pixels long and starts at a whole pixel, so that pixels
    and boxes agree exactly with the reference; a side never falls below one pixel.

    Args:
        image_size: int32 [..., 2] height, width in pixels.
        input_size: (height, width) of the network input in pixels.
    Returns:
        float32 [..., 4] xyxy, relative to the image, reaching beyond it where there is padding.
    """
    target, target_wh = tf.constant(input_size, tf.int32), tf.constant(input_size[::-1], tf.int32)
    h, w = tf.cast(image_size[..., 0], tf.int32), tf.cast(image_size[..., 1], tf.int32)
    # floor(side * min(W/w, H/h)) in integers: no rounding decides about a pixel
    tall = h * target[1] > w * target[0]
    new_h = tf.where(tall, target[0], h * target[1] // w)
    new_w = tf.where(tall, w * target[0] // h, target[1])
    shown = tf.maximum(tf.stack([new_w, new_h], -1), 1)
    start = (target_wh - shown) // 2
    shown, start = tf.cast(shown, tf.float32), tf.cast(start, tf.float32)
    low = -start / shown
    return tf.concat([low, low + tf.cast(target_wh, tf.float32) / shown], -1)


# --- box encoding -------------------------------------------------------------------------------


def encode_deltas(boxes, anchors_cxcywh, variances=VARIANCES):
    """Offsets of boxes from their anchors, the regression target of SSD (Faster R-CNN, eq. 2, scaled by variances).

    Args:
        boxes: float32 [..., 4] xyxy, positive width and height.
        anchors_cxcywh: float32 [..., 4] cxcywh, same unit.
    Returns:
        float32 [..., 4]: dx, dy, dw, dh.
    """
    cxcywh = to_cxcywh(boxes)
    shift = (cxcywh[..., :2] - anchors_cxcywh[..., :2]) / anchors_cxcywh[..., 2:]
    scale = tf.math.log(cxcywh[..., 2:] / anchors_cxcywh[..., 2:])
    return tf.concat([shift, scale], -1) / tf.constant(variances)


def decode_deltas(deltas, anchors_cxcywh, variances=VARIANCES):
    """The inverse of `encode_deltas`: float32 [..., 4], [..., 4] cxcywh -> float32 [..., 4] xyxy, not clipped."""
    deltas = deltas * tf.constant(variances)
    centre = anchors_cxcywh[..., :2] + deltas[..., :2] * anchors_cxcywh[..., 2:]
    size = anchors_cxcywh[..., 2:] * tf.exp(deltas[..., 2:])
    return to_xyxy(tf.concat([centre, size], -1))
