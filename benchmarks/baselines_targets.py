"""Target encoding the slow way: SSD's per image in numpy, YOLOv3's box by box in Python."""

import numpy as np


def ssd_targets(boxes, labels, priors, variances, num_classes, threshold=0.5):
    """The rule of rykov8's BBoxUtility for one image, with its work per box: all priors encoded, whatever is kept.

    Args:
        boxes: float64 [M, 4] xyxy, labels: int [M]; priors: float64 [A, 4] xyxy, variances: float64 [A, 4].
    Returns:
        float64 [A, 4 + 1 + C + 1]: deltas, one-hot classes with background first, and whether there is an object.
    """
    targets = np.zeros((len(priors), 4 + 1 + num_classes + 1))
    targets[:, 4] = 1.0
    if not len(boxes):
        return targets
    encoded = np.stack([_encode_box(box, priors, variances, threshold) for box in boxes])  # [M, A, 5]
    best, owner = encoded[..., 4].max(0), encoded[..., 4].argmax(0)
    won = best > 0
    owner = owner[won]
    targets[won, :4] = encoded[owner, won.nonzero()[0], :4]
    targets[won, 4] = 0.0
    targets[won, 5:-1] = np.eye(num_classes)[labels[owner]]
    targets[won, -1] = 1.0
    return targets


def _encode_box(box, priors, variances, threshold):
    """Deltas and IoU of one box for the priors it overlaps enough, or for its best one: float64 [A, 5]."""
    low, high = np.maximum(priors[:, :2], box[:2]), np.minimum(priors[:, 2:], box[2:])
    shared = np.prod(np.maximum(high - low, 0), 1)
    sizes = priors[:, 2:] - priors[:, :2]
    iou = shared / (np.prod(sizes, 1) + np.prod(box[2:] - box[:2]) - shared)
    chosen = iou > threshold
    if not chosen.any():
        chosen[iou.argmax()] = True
    centres = (priors[chosen, :2] + priors[chosen, 2:]) / 2
    encoded = np.zeros((len(priors), 5))
    encoded[chosen, 4] = iou[chosen]
    encoded[chosen, :2] = ((box[:2] + box[2:]) / 2 - centres) / sizes[chosen] / variances[chosen, :2]
    encoded[chosen, 2:4] = np.log((box[2:] - box[:2]) / sizes[chosen]) / variances[chosen, 2:]
    return encoded


def yolo_targets(boxes, labels, config):
    """YOLOv3's targets of a batch by nested loops: image, box, anchor.

    Args:
        boxes: float64 [B, M, 4] xyxy, relative; labels: int [B, M], negative: no object. config: YoloConfig.
    Returns:
        float64 [B, A, 4] cxcywh and int [B, A].
    """
    height, width = config.image_size
    grids = [(height // stride, width // stride) for stride in config.strides]
    firsts = np.cumsum([0] + [h * w * len(mask) for (h, w), mask in zip(grids, config.anchor_masks)])
    target_boxes, target_labels = np.zeros((len(boxes), firsts[-1], 4)), np.full((len(boxes), firsts[-1]), -1)
    for image in range(len(boxes)):
        for box, label in zip(boxes[image], labels[image]):
            if label < 0:
                continue
            w, h = (box[2] - box[0]) * width, (box[3] - box[1]) * height
            cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            best, best_iou = 0, -1.0
            for k, (anchor_w, anchor_h) in enumerate(config.anchors):
                shared = min(w, anchor_w) * min(h, anchor_h)
                iou = shared / (w * h + anchor_w * anchor_h - shared)
                if iou > best_iou:
                    best, best_iou = k, iou
            for level, mask in enumerate(config.anchor_masks):
                if best in mask:
                    rows, columns = grids[level]
                    row, column = min(int(cy * rows), rows - 1), min(int(cx * columns), columns - 1)
                    slot = firsts[level] + (row * columns + column) * len(mask) + mask.index(best)
                    target_boxes[image, slot] = cx, cy, box[2] - box[0], box[3] - box[1]
                    target_labels[image, slot] = label
    return target_boxes, target_labels
