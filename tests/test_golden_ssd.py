"""SSD against outputs of public references: rykov8/ssd_keras, Caffe, ssd.pytorch and pierluigiferrari/ssd_keras.

Where a reference is known to be wrong or does another thing on purpose, the test says so and compares the rest.
"""

from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf

from tfdet import schema
from tfdet.config import PRIOR_LAYOUTS, SsdConfig
from tfdet.detectors.losses import multibox_loss
from tfdet.detectors.priors import load_priors, make_priors, save_priors, to_cxcywh, to_xyxy
from tfdet.detectors.ssd import Ssd, detection_rows
from tfdet.nms import non_max_suppression

# --- priors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout, name",
    [
        ("ssd300", "ssdpytorch_voc300_noclip_cxcywh"),
        ("ssd300", "pierluigi_voc300_noclip_cxcywh"),
        ("ssd300_coco", "ssdpytorch_coco300_noclip_cxcywh"),
        ("ssd512", "ssdpytorch_voc512_noclip_cxcywh"),
        ("ssd512", "pierluigi_voc512_noclip_cxcywh"),
        ("ssd512_coco", "ssdpytorch_coco512_noclip_cxcywh"),
    ],
)
def test_priors_in_centre_form(golden, layout, name):
    np.testing.assert_allclose(make_priors(PRIOR_LAYOUTS[layout]), golden("priors")[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "layout, name",
    [
        ("ssd300", "caffe_voc300_noclip_8732x8"),
        ("ssd300_coco", "caffe_coco300_noclip_8732x8"),
        ("ssd512_caffe", "caffe_voc512_noclip_24564x8"),  # sizes cut to whole pixels
        ("ssd512", "caffe_voc512_floatsizes_noclip_24564x8"),
        ("ssd300_7308", "caffe_v1_7308_clip_x8"),
        ("ssd300_7308", "pkl_7308x8"),
        ("ssd300_7308", "rykov8_layer_7308x8"),
    ],
)
def test_priors_in_the_seeds_form(golden, layout, name):
    # ssdpytorch_voc300_clip_cxcywh is not compared: it clips centres and sizes, Caffe the corners
    layout = PRIOR_LAYOUTS[layout]
    priors, variances = make_priors(layout), layout.variances
    rows = np.concatenate([to_xyxy(priors), np.broadcast_to(variances, priors.shape)], 1)
    np.testing.assert_allclose(rows, golden("priors")[name], rtol=0, atol=2e-6)


def test_the_seeds_pickle_goes_through_unchanged(golden, tmp_path):
    rows = golden("priors")["pkl_7308x8"]
    save_priors(tmp_path / "priors.pkl", to_cxcywh(rows[:, :4].astype(np.float64)), rows[:, 4:])
    priors, variances = load_priors(tmp_path / "priors.pkl")
    np.testing.assert_array_equal(to_xyxy(priors).astype(np.float32), rows[:, :4])
    np.testing.assert_array_equal(variances, rows[:, 4:])


# --- targets ------------------------------------------------------------------------------------

PRIORS = {"p7308": "pkl_7308x8", "p8732": "caffe_voc300_noclip_8732x8"}


def padded_images(file):
    """All images as one batch: boxes float32 [B, M, 4], labels int32 [B, M]."""
    offsets = file["gt_off"]
    boxes = np.zeros((len(offsets) - 1, np.diff(offsets).max(), 4), np.float32)
    labels = np.full(boxes.shape[:2], schema.BACKGROUND, np.int32)
    for i, (start, stop) in enumerate(pairwise(offsets)):
        rows = file["gt"][start:stop]
        boxes[i, : len(rows)], labels[i, : len(rows)] = rows[:, :4], rows[:, 4:].argmax(1)
    return boxes, labels


def encode(golden, tmp_path, priors, matching):
    """The targets of all images with exactly the priors that the reference had."""
    rows = golden("priors")[PRIORS[priors]]
    save_priors(tmp_path / "priors.pkl", to_cxcywh(rows[:, :4].astype(np.float64)))
    detector = Ssd(SsdConfig(priors=str(tmp_path / "priors.pkl"), matching=matching), 3)
    targets = tf.function(detector.encode, jit_compile=True)(*padded_images(golden("assign_rykov8")))
    return [targets[key].numpy() for key in (schema.TARGET_BOXES, schema.TARGET_LABELS)]


@pytest.mark.parametrize("priors", PRIORS)
def test_per_box_targets_are_rykov8s(golden, tmp_path, priors):
    file = golden("assign_rykov8")
    target_boxes, target_labels = encode(golden, tmp_path, priors, "per_box")
    offsets, ambiguous_offsets = file[f"{priors}_off"], file[f"{priors}_ambiguous_off"]
    for i in range(len(offsets) - 1):
        rows = slice(offsets[i], offsets[i + 1])
        ambiguous = file[f"{priors}_ambiguous_idx"][ambiguous_offsets[i] : ambiguous_offsets[i + 1]]
        index = file[f"{priors}_pos_idx"][rows]
        clear = ~np.isin(index, ambiguous)
        found = np.setdiff1d(np.flatnonzero(target_labels[i] >= 0), ambiguous)
        np.testing.assert_array_equal(found, index[clear])
        np.testing.assert_array_equal(target_labels[i, found], file[f"{priors}_pos_cls"][rows][clear])
        np.testing.assert_allclose(target_boxes[i, found], file[f"{priors}_pos_loc"][rows][clear], rtol=1e-4, atol=1e-4)


def test_bipartite_targets_are_pierluigis(golden, tmp_path):
    """Of the reference's two stages, bipartite and multi.

    Two kinds of priors are left out: those with an IoU of 0.5 but for rounding, and pairs that overlap one box
    equally but for rounding, of which either may be its best. (In frame00666.png the references disagree, too.)
    """
    file, boxes = golden("assign_torch_plf"), padded_images(golden("assign_rykov8"))[0]
    corners = golden("priors")[PRIORS["p8732"]][:, :4]
    target_boxes, target_labels = encode(golden, tmp_path, "p8732", "bipartite")
    offsets = np.concatenate([[0], np.cumsum(plf_counts(file))])
    assert offsets[-1] == len(file["plf_pos_idx"])
    for i, (start, stop) in enumerate(pairwise(offsets)):
        index, labels = file["plf_pos_idx"][start:stop], file["plf_pos_cls"][start:stop]
        overlap = best_iou(boxes[i], corners)
        found = np.flatnonzero(target_labels[i] >= 0)
        differ = np.setxor1d(found, index)
        differ = differ[np.abs(overlap[differ] - 0.5) > 1e-6]
        ours, theirs = np.intersect1d(differ, found), np.intersect1d(differ, index)
        np.testing.assert_allclose(np.sort(overlap[ours]), np.sort(overlap[theirs]), rtol=1e-6)
        assert len(ours) <= np.count_nonzero(boxes[i].any(-1))
        same = np.isin(index, found)
        np.testing.assert_array_equal(target_labels[i, index[same]], labels[same])
        expected = file["plf_pos_loc"][start:stop][same]
        np.testing.assert_allclose(target_boxes[i, index[same]], expected, rtol=1e-4, atol=1e-4)


def plf_counts(file):
    """Positives of each image: as many as ssd.pytorch has, but for two. (The file's own offsets are damaged.)"""
    names, counts = list(file["names"]), np.diff(file["match_off"])
    counts[names.index("adv:tiny_two_same_prior")] = 2  # ssd.pytorch lets the last box take both boxes' best prior
    counts[names.index("adv:tie_prior_center")] = 13  # in float64; 10 in float32
    return counts


def best_iou(boxes, corners):
    """float64 [A]: the largest IoU of each prior with any box."""
    boxes, corners = boxes[:, None].astype(np.float64), corners.astype(np.float64)
    size = np.minimum(boxes[..., 2:], corners[:, 2:]) - np.maximum(boxes[..., :2], corners[:, :2])
    shared = np.maximum(size, 0).prod(-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (boxes, corners)]
    return (shared / (areas[0] + areas[1] - shared)).max(0)


# --- loss ---------------------------------------------------------------------------------------


def loss_and_gradients(targets, box_deltas, class_logits, **options):
    """multibox_loss, and the gradients of its sum."""
    with tf.GradientTape() as tape:
        tape.watch([box_deltas, class_logits])
        losses = multibox_loss(*targets, box_deltas, class_logits, **options)
        total = tf.reduce_sum(losses["box_loss"]) + tf.reduce_sum(losses["class_loss"])
    return losses, tape.gradient(total, [box_deltas, class_logits])


def images_of(file, index):
    """The images of a batch by their positives, for `image_index` counts images that are not in the file."""
    per_image = np.split(file["match_pos_idx"], file["match_off"][1:-1])
    wanted = [np.unique(index[index[:, 0] == row, 1]) for row in range(index[:, 0].max() + 1)]
    return [next(i for i, found in enumerate(per_image) if np.array_equal(found, priors)) for priors in wanted]


def dense(index, values, shape):
    array = np.zeros(shape, np.float32)
    array[tuple(index.T)] = values
    return array


@pytest.mark.parametrize("case", ["full_match_3img", "small_21c", "img_nopos", "mostly_positive"])
def test_loss_and_gradient_are_ssd_pytorchs(golden, case, tmp_path):
    """All cases that come with logits of a sane size and at least one positive.

    The others raise or give NaN there, or its log-sum-exp loses all but the largest logit of the batch. It takes no
    negatives of an image without positives, so neither do we here.
    """
    file = {key.split("/")[1]: value for key, value in golden("loss_ssd_torch").items() if key.startswith(f"{case}/")}
    box_deltas, class_logits = tf.constant(file["loc"]), tf.constant(file["conf_logits"])
    if case == "full_match_3img":  # through the whole of encode
        target_boxes, target_labels = encode(golden, tmp_path, "p8732", "bipartite")
        rows = images_of(golden("assign_torch_plf"), file["grad_loc_idx"])
        targets = target_boxes[rows], target_labels[rows]
    else:
        targets = file["loc_t"], file["conf_t"].astype(np.int32) - 1
    losses, gradients = loss_and_gradients(targets, box_deltas, class_logits, min_negatives=0)
    positives = tf.reduce_sum(losses["normalizer"])
    np.testing.assert_allclose(tf.reduce_sum(losses["box_loss"]) / positives, file["loss_l"], rtol=1e-5)
    np.testing.assert_allclose(tf.reduce_sum(losses["class_loss"]) / positives, file["loss_c"], rtol=1e-5)
    for gradient, name in zip(gradients, ("loc", "conf")):
        expected = dense(file[f"grad_{name}_idx"], file[f"grad_{name}_val"], gradient.shape)
        np.testing.assert_allclose(gradient / positives, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", ["full_3pos", "small_21c", "small_21c_img_nopos", "mostly_positive", "l1_kink"])
@pytest.mark.parametrize("variant", ["plf", "plf_nmin10"])
def test_loss_and_gradient_are_pierluigis_of_one_large_image(golden, case, variant):
    """pierluigi mines over the whole batch: the same as ours with the batch laid end to end as one image.

    He divides by the batch's positives and multiplies by the batch size. A batch without positives gives 0 there
    and is not compared. His class gradient is of the softmax p, ours of the logits x: with x = log p and
    loss = log sum exp x - x_t, ours / p = 1 - [t] / p, and his is -[t] / p.
    """
    file = golden("loss_ssd_tf")
    y_true, y_pred = file[f"{case}/y_true"], file[f"{case}/y_pred"]
    labels = y_true[..., 4 : y_pred.shape[-1]].argmax(-1).astype(np.int32) - 1
    deltas, shares = np.split(y_pred.reshape(1, -1, y_pred.shape[-1]), [4], axis=-1)
    targets = y_true[..., :4].reshape(1, -1, 4), labels.reshape(1, -1)
    losses, gradients = loss_and_gradients(targets, tf.constant(deltas), tf.constant(np.log(shares)))
    scale = len(y_pred) / float(losses["normalizer"][0])
    total = float(losses["box_loss"][0] + losses["class_loss"][0])
    np.testing.assert_allclose(total * scale, file[f"{case}/{variant}/loss"].sum(), rtol=1e-5)
    expected = dense(file[f"{case}/{variant}/grad_idx"], file[f"{case}/{variant}/grad_val"], y_pred.shape)
    expected_deltas, expected_shares = np.split(expected.reshape(1, -1, y_pred.shape[-1]), [4], axis=-1)
    np.testing.assert_allclose(gradients[0] * scale, expected_deltas, rtol=1e-4, atol=1e-6)
    taken = expected_shares.any(-1, keepdims=True)
    np.testing.assert_allclose((gradients[1] / shares - taken) * scale, expected_shares, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "case, variant",
    [(case, "ryk_a1") for case in ("full_3pos", "small_21c", "small_21c_img_nopos", "mostly_positive", "l1_kink")]
    + [(case, "ryk_a2_npr2") for case in ("small_21c", "small_21c_img_nopos")],
)
def test_parts_of_the_loss_are_rykov8s(golden, case, variant):
    """rykov8's total, with what he does otherwise put in: his choice of negatives and his divisors.

    He ranks negatives by their best class score, takes as many in every image as the image with fewest, and
    divides the class loss by positives and negatives, the box loss by positives. The rest of the total must be
    our box loss and our cross-entropy of the positives. Gradients are not compared.
    """
    file, (alpha, ratio) = golden("loss_ssd_tf"), {"ryk_a1": (1.0, 3), "ryk_a2_npr2": (2.0, 2)}[variant]
    y_true, y_pred = file[f"{case}/y_true"], file[f"{case}/y_pred"]
    background = y_true[..., 4] > 0
    labels = y_true[..., 4 : y_pred.shape[-1]].argmax(-1).astype(np.int32) - 1
    options = {"neg_pos_ratio": 0.0, "min_negatives": 0, "alpha": alpha}
    losses = multibox_loss(y_true[..., :4], labels, y_pred[..., :4], np.log(y_pred[..., 4:]), **options)
    positives = (~background).sum(1)
    wanted = np.minimum(ratio * positives, background.sum(1))
    count = wanted[wanted > 0].min()
    rank = np.argsort(-y_pred[..., 5:].max(-1) * background, axis=1, kind="stable")[:, :count]
    negatives = -np.take_along_axis(np.log(y_pred[..., 4]), rank, 1).sum(1)
    expected = (losses["class_loss"] + negatives) / (positives + count) + losses["box_loss"] / np.maximum(positives, 1)
    np.testing.assert_allclose(expected, file[f"{case}/{variant}/loss"], rtol=1e-5)


# --- decoding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["rand500_c21", "none_above", "exactly_at_thr", "identical_boxes"])
def test_decoded_boxes_are_rykov8s_corrected(golden, case, tmp_path):
    """`fix_decoded`: rykov8's own decoding takes the prior's width for its height; it clips, we do not."""
    file = golden("detect_rykov8")
    predictions = file[f"{case}/predictions"]
    columns = predictions.shape[-1]
    deltas, scores, priors = np.split(predictions, [4, columns - 8], axis=-1)
    detector = detector_of(tmp_path, priors[0], scores.shape[-1] - 1)
    with np.errstate(divide="ignore"):
        predictions = {schema.BOX_DELTAS: deltas, schema.CLASS_LOGITS: np.log(scores)}
    boxes, decoded_scores = detector.decode(predictions)
    np.testing.assert_allclose(np.clip(boxes, 0, 1), file[f"{case}/fix_decoded"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(decoded_scores, scores[..., 1:], rtol=0, atol=1e-6)


def detector_of(tmp_path, rows, num_classes):
    """An Ssd with the priors and variances that rykov8 appends to its predictions."""
    save_priors(tmp_path / "priors.pkl", to_cxcywh(rows[:, :4].astype(np.float64)), rows[:, 4:])
    return Ssd(SsdConfig(priors=str(tmp_path / "priors.pkl")), num_classes)


@pytest.mark.parametrize("case", ["rand8732_c4", "rand500_c21", "none_above", "exactly_at_thr", "identical_boxes"])
def test_detection_rows_are_rykov8s_corrected(golden, case, tmp_path):
    """The whole way from predictions to `detection_out`'s rows; boxes are clipped before NMS, as there."""
    file = golden("detect_rykov8")
    predictions = file[f"{case}/predictions"]
    deltas, scores, priors = np.split(predictions, [4, predictions.shape[-1] - 8], axis=-1)
    detector = detector_of(tmp_path, priors[0], scores.shape[-1] - 1)
    boxes, _ = detector.decode({schema.BOX_DELTAS: deltas, schema.CLASS_LOGITS: scores})
    detections = non_max_suppression(
        tf.clip_by_value(boxes, 0, 1), scores[..., 1:],
        score_threshold=0.01, iou_threshold=0.45, max_per_class=400, max_detections=200,
    )  # fmt: skip
    expected, offsets = file[f"{case}/fix_det"], file[f"{case}/fix_off"]
    for rows, (start, stop) in zip(detection_rows(detections), pairwise(offsets)):
        order, expected_order = (np.lexsort(each[:, :2].T.astype(np.float32)) for each in (rows, expected[start:stop]))
        np.testing.assert_allclose(rows[order], expected[start:stop][expected_order], rtol=0, atol=1e-5)
