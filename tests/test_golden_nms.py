"""Decoding and NMS equal to the detections of rykov8's BBoxUtility, its y decoding corrected, and keras-yolo3's."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfdet import boxes as boxlib
from tfdet import nms

CASES = ("rand8732_c4", "rand500_c21", "none_above", "exactly_at_thr", "identical_boxes")


def decode(predictions):
    """[B, A, 4 + C + 8] offsets, scores with background first, prior corners, variances -> boxes, foreground scores."""
    deltas, scores, priors, variances = np.split(predictions, [4, predictions.shape[2] - 8, -4], axis=2)
    return boxlib.decode_deltas(deltas, boxlib.to_cxcywh(tf.constant(priors)), variances), scores[..., 1:]


@pytest.mark.parametrize("case", CASES)
def test_detections_equal_as_sets(golden, case):
    """The reference clips before it suppresses; so the boxes are clipped here first."""
    data = golden("detect_rykov8")
    boxes, scores = decode(data[f"{case}/predictions"])
    found = nms.non_max_suppression(
        boxlib.clip(boxes), scores, score_threshold=0.01, iou_threshold=0.45, max_per_class=400, max_detections=200
    )
    offsets = data[f"{case}/fix_off"]
    for image, (start, end) in enumerate(itertools.pairwise(offsets)):
        want = data[f"{case}/fix_det"][start:end]  # label from 1, score, box
        n = int(found["num_detections"][image])
        assert n == len(want)
        label, score, box = (found[key][image, :n].numpy() for key in ("labels", "scores", "boxes"))
        rows = np.column_stack([label + 1, score, box])
        rows, want = (x[np.lexsort((x[:, 1].round(6), x[:, 0]))] for x in (rows, want))
        np.testing.assert_array_equal(rows[:, 0], want[:, 0])
        np.testing.assert_allclose(rows[:, 1], want[:, 1], rtol=0, atol=1e-6)
        np.testing.assert_allclose(rows[:, 2:], want[:, 2:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case != "rand8732_c4"])
def test_decoded_boxes(golden, case):
    data = golden("detect_rykov8")
    boxes, _ = decode(data[f"{case}/predictions"])
    np.testing.assert_allclose(boxlib.clip(boxes), data[f"{case}/fix_decoded"], rtol=0, atol=1e-5)
