"""Which anchors each box trains in YOLOv3, and where the anchors lie.

A slot is the index of one anchor of one cell: level by level, coarsest first, then row, column, and
anchor within the level's mask. A box claims D slots at most, one at each level that has its best anchor.
"""

import numpy as np
import tensorflow as tf

from tfdet.boxes import to_cxcywh
from tfdet.detectors.matching import is_matchable

# Relative float32 corners cannot say "pixel 32" exactly. A centre this little short of a whole pixel counts
# as that pixel, so that a box of whole pixels does not change its cell by a rounding error.
PIXEL_TOLERANCE = 1 / 1024
# Shape IoUs within this share of the best are ties: rounding, different under XLA, must not choose.
TIE = 1e-5


def make_anchors(config):
    """Every anchor of every cell of a YoloConfig, as numpy.

    Returns:
        anchors float32 [A, 4] cxcywh, relative; the sizes of their cells, float32 [A, 2] width, height,
        relative; and how many anchors each level has, a list of int.
    """
    size = np.array(config.image_size[::-1], np.float64)
    anchors, cell_sizes = [], []
    for mask, stride in zip(config.anchor_masks, config.strides):
        columns, rows = (size // stride).astype(int)
        y, x, k = np.meshgrid(range(rows), range(columns), mask, indexing="ij")
        centres = (np.stack([x, y], -1) + 0.5) * stride / size
        anchors.append(np.concatenate([centres, np.array(config.anchors)[k] / size], -1).reshape(-1, 4))
        cell_sizes.append(np.broadcast_to(stride / size, (x.size, 2)))
    level_sizes = [len(level) for level in anchors]
    return np.concatenate(anchors).astype(np.float32), np.concatenate(cell_sizes).astype(np.float32), level_sizes


class Matcher:
    """Finds the slots of boxes for one YoloConfig; holds only small numpy tables, so any function can trace it."""

    def __init__(self, config):
        self.keras_yolo3 = config.compat == "keras_yolo3"
        self.input_wh = np.array(config.image_size[::-1], np.float32)  # pixels
        self.shapes, self.homes = _anchor_homes(config)

    def ground_truth(self, boxes):
        """Boxes as targets have them: centres moved onto the input, in compat mode to whole pixels.

        Args:
            boxes: float32 [B, M, 4] xyxy, relative.
        Returns:
            float32 [B, M, 4] cxcywh, relative, finite, and bool [B, M]: which are not degenerate.
        """
        usable = is_matchable(boxes)
        boxes_cxcywh = to_cxcywh(tf.where(usable[..., None], boxes, 0.0))
        centres = boxes_cxcywh[..., :2]
        if self.keras_yolo3:
            centres = tf.floor(centres * self.input_wh + PIXEL_TOLERANCE) / self.input_wh
        return tf.concat([tf.clip_by_value(centres, 0.0, 1.0), boxes_cxcywh[..., 2:]], -1), usable

    def claims(self, boxes, labels):
        """The slots that each box asks for: float32 [B, M, 4] xyxy, int32 [B, M] -> int32 [B, M, D], -1 for none."""
        boxes_cxcywh, usable = self.ground_truth(boxes)
        homes = tf.gather(self.homes, self._best_shape(boxes_cxcywh[..., 2:]))  # [B, M, D, 5]
        first, per_cell, stride, rows, columns = tf.unstack(homes, axis=-1)
        # float64 holds these products exactly; without the tolerance cells are the reference's, edges included
        pixels = tf.cast(boxes_cxcywh[..., :2], tf.float64) * self.input_wh
        pixels = tf.cast(pixels + (0.0 if self.keras_yolo3 else PIXEL_TOLERANCE), tf.int32)
        cells = pixels[:, :, None] // tf.maximum(stride, 1)[..., None]  # [B, M, D, 2]
        column, row = tf.minimum(cells[..., 0], columns - 1), tf.minimum(cells[..., 1], rows - 1)
        wanted = (usable & (labels >= 0))[..., None] & (stride > 0)
        return tf.where(wanted, first + (row * columns + column) * per_cell, -1)

    def slots(self, boxes, labels):
        """The slots that each box gets, every slot at most once: as `claims`, where the last claim wins."""
        claims = self.claims(boxes, labels)
        return tf.where(is_overwritten(claims), -1, claims)

    def _best_shape(self, sizes):
        """The row of `shapes` with the best IoU when both are centred: float32 [B, M, 2] -> int32 [B, M]."""
        shared = tf.reduce_prod(tf.minimum(sizes[..., None, :], self.shapes), -1)
        union = tf.reduce_prod(sizes, -1)[..., None] + tf.reduce_prod(self.shapes, -1) - shared
        iou = shared / union
        ties = iou >= tf.reduce_max(iou, -1, keepdims=True) * (1 - TIE)
        return tf.argmax(tf.cast(ties, tf.int32), -1, output_type=tf.int32)


def is_overwritten(claims):
    """Claims on a slot that a later box claims too: int32 [B, M, D] -> bool [B, M, D].

    Settled by comparing all pairs, because the order of equal indices in a scatter is undefined.
    """
    flat = tf.reshape(claims, [tf.shape(claims)[0], -1])
    order = tf.range(tf.shape(flat)[1])
    same = (flat[:, :, None] == flat[:, None, :]) & (flat[:, :, None] >= 0)
    return tf.reshape(tf.reduce_any(same & (order[:, None] < order), -1), tf.shape(claims))


def _anchor_homes(config):
    """The anchor shapes a box can choose among, and where each of them stands.

    Returns:
        shapes float32 [N, 2] width, height, relative, in the order of `config.anchors`, and homes int32
        [N, D, 5], one row for each level that has the anchor: its slot in the first cell, anchors a cell,
        stride, rows, columns; zeros where an anchor has fewer than D homes.
    """
    homes, first = [[] for _ in config.anchors], 0
    for mask, stride in zip(config.anchor_masks, config.strides):
        rows, columns = config.image_size[0] // stride, config.image_size[1] // stride
        for position, k in enumerate(mask):
            homes[k].append((first + position, len(mask), stride, rows, columns))
        first += rows * columns * len(mask)
    # keras-yolo3 lets a box choose an anchor that no level has, and then forgets the box
    choice = [k for k, home in enumerate(homes) if home or config.compat == "keras_yolo3"]
    table = np.zeros((len(choice), max(map(len, homes)), 5), np.int32)
    for rows_of_anchor, k in zip(table, choice):
        rows_of_anchor[: len(homes[k])] = np.reshape(homes[k], (-1, 5))
    shapes = np.array(config.anchors)[choice] / np.array(config.image_size[::-1])
    return shapes.astype(np.float32), table
