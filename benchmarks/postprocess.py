"""How fast NMS and target encoding are, beside what else could do the same work in the same run."""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from tfdet import quiet

quiet.import_tensorflow()

import numpy as np
import report
import tensorflow as tf
from baselines_targets import ssd_targets, yolo_targets
from rich.console import Console
from rich.table import Table

from tfdet import boxes as boxlib
from tfdet import nms, schema
from tfdet.config import SsdConfig, YoloConfig
from tfdet.detectors import Ssd, Yolo

BATCH = 32
LIMITS = {"score_threshold": 0.01, "iou_threshold": 0.45, "max_per_class": 100, "max_detections": 200}
SLOW = 10  # a baseline that is far slower is repeated this many times less often

EPILOG = """
All rows of a table get the same input and are timed in turn, A B C A B C ..., so that a machine whose speed drifts
treats all alike. Milliseconds are medians for a whole batch of 32 images. A ratio is tfdet's time divided by the
baseline's: 0.5 means twice as fast. The figures go to --json and, as one line, to standard output.
"""


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=50, metavar="N", help="timed calls (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser.parse_args(arguments)


# --- NMS ----------------------------------------------------------------------------------------


def random_boxes(rng, number, classes):
    """Boxes and scores without any structure; one score in a hundred exceeds 0.01."""
    low = rng.random((BATCH, number, 2), np.float32) * 0.8
    size = rng.random((BATCH, number, 2), np.float32) * 0.4 + 0.02
    scores = rng.random((BATCH, number, classes), np.float32)
    scores = np.where(scores < 0.99, scores / 100, 0.01 + 0.99 * rng.random(scores.shape, np.float32))
    return np.concatenate([low, low + size], -1), scores


def clustered_boxes(rng, number, classes):
    """As a trained detector gives them: near-copies of each other, with high scores, around eight objects."""
    centre, side = rng.random((number, 2)), np.exp(rng.uniform(np.log(0.08), np.log(0.8), (number, 2)))
    anchors = np.concatenate([centre - side / 2, centre + side / 2], -1)
    boxes, logits = np.empty((BATCH, number, 4)), rng.standard_normal((BATCH, number, classes))
    for image in range(BATCH):
        centre, side = rng.random((8, 2)), np.exp(rng.uniform(np.log(0.1), np.log(0.6), (8, 2)))
        objects, labels = np.concatenate([centre - side / 2, centre + side / 2], -1), rng.integers(0, classes, 8)
        overlap = boxlib.iou(anchors[:, None], objects).numpy()
        nearest, overlap = overlap.argmax(1), overlap.max(1)
        pull = np.clip(2 * overlap - 0.3, 0, 0.9)[:, None]
        boxes[image] = anchors * (1 - pull) + objects[nearest] * pull + rng.normal(0, 0.01, (number, 4))
        logits[image] += 3 * overlap[:, None]
        logits[image, np.arange(number), labels[nearest]] += 8 * overlap
    logits = 1.2 * (logits - np.quantile(logits, 0.99)) + np.log(0.01 / 0.99)
    return boxes.astype(np.float32), (1 / (1 + np.exp(-logits))).astype(np.float32)


def python_loop(boxes, scores):
    """One call of TensorFlow's NMS for every image and class; boxes yxyx. Returns the best 200 of each image."""
    found = []
    for image in range(len(boxes)):
        kept = []
        for label in range(scores.shape[2]):
            chosen = np.flatnonzero(scores[image, :, label] > LIMITS["score_threshold"])
            own = scores[image, chosen, label]
            keep = tf.image.non_max_suppression(
                boxes[image, chosen], own, LIMITS["max_per_class"], LIMITS["iou_threshold"]
            )
            kept += [(score, label) for score in own[keep.numpy()]]
        found.append(sorted(kept, reverse=True)[: LIMITS["max_detections"]])
    return found


def nms_case(make, number, classes, with_loop):
    boxes, scores = make(np.random.default_rng(0), number, classes)
    yxyx = np.ascontiguousarray(boxlib.to_yxyx(boxes))
    tensors, limits = (tf.constant(boxes), tf.constant(scores), tf.constant(yxyx[:, :, None])), tuple(LIMITS.values())
    ours = tf.function(lambda b, s: nms.non_max_suppression(b, s, **LIMITS), autograph=False)
    combined = tf.function(
        lambda b, s: tf.image.combined_non_max_suppression(b, s, *limits[2:], limits[1], limits[0], clip_boxes=False),
        autograph=False,
    )
    want, found = combined(tensors[2], tensors[1]), ours(tensors[0], tensors[1])
    np.testing.assert_array_equal(found[schema.SCORES], want.nmsed_scores)
    np.testing.assert_array_equal(found[schema.NUM_DETECTIONS], want.valid_detections)
    work = {
        "tfdet": lambda: ours(tensors[0], tensors[1]),
        "tf.image.combined_non_max_suppression": lambda: combined(tensors[2], tensors[1]),
    }
    if with_loop:
        work["python_loop"] = lambda: python_loop(yxyx, scores)
    share = float((scores > LIMITS["score_threshold"]).mean())
    return work, f"NMS: {BATCH} x {number:,} boxes x {classes} classes, {share:.1%} of the scores over 0.01"


# --- targets ------------------------------------------------------------------------------------


def random_truth(count, classes):
    rng = np.random.default_rng(0)
    low = rng.random((BATCH, count, 2)) * 0.7
    boxes = np.concatenate([low, low + 0.05 + rng.random((BATCH, count, 2)) * 0.25], -1)
    return boxes.astype(np.float32), rng.integers(0, classes, (BATCH, count)).astype(np.int32)


def ssd_case():
    """rykov8's rule is `per_box`; the default `bipartite` is what a new user gets."""
    boxes, labels = random_truth(10, 20)
    detectors = {rule: Ssd(SsdConfig(matching=rule), 20) for rule in ("bipartite", "per_box")}
    priors = boxlib.to_xyxy(detectors["per_box"].anchors).numpy().astype(np.float64)
    variances = np.broadcast_to(np.float64(boxlib.VARIANCES), priors.shape)

    def numpy_rule():
        return [ssd_targets(b, c, priors, variances, 20) for b, c in zip(boxes.astype(np.float64), labels)]

    work = {}
    for rule, detector in detectors.items():
        suffix = "" if rule == "bipartite" else f" {rule}"
        work["tfdet" + suffix] = compiled_call(detector.encode, boxes, labels, True)
        work["op_by_op" + suffix] = compiled_call(detector.encode, boxes, labels, False)
    work["numpy_per_image"] = numpy_rule
    theirs = np.stack([np.where(t[:, -1] > 0, t[:, 5:-1].argmax(1), -1) for t in numpy_rule()])
    agreement = (work["tfdet per_box"]()[schema.TARGET_LABELS].numpy() == theirs).mean()
    assert agreement > 0.9999, f"the targets agree on {agreement:.4%} of the priors only"
    return work, f"SSD matching and encoding: {BATCH} x 10 boxes x {len(priors):,} priors"


def yolo_case():
    config = YoloConfig()
    boxes, labels = random_truth(20, 80)
    detector = Yolo(config, 80)
    work = {
        "tfdet": compiled_call(detector.encode, boxes, labels, True),
        "op_by_op": compiled_call(detector.encode, boxes, labels, False),
        "python_loop": lambda: yolo_targets(boxes.astype(np.float64), labels, config),
    }
    agreement = (work["tfdet"]()[schema.TARGET_LABELS].numpy() == work["python_loop"]()[1]).mean()
    assert agreement > 0.9999, f"the targets agree on {agreement:.4%} of the anchors only"
    return work, f"YOLOv3 encoding: {BATCH} x 20 boxes at {config.image_size[0]}, {len(detector.anchors):,} anchors"


def compiled_call(function, boxes, labels, jit_compile):
    call, inputs = tf.function(function, jit_compile=jit_compile), (tf.constant(boxes), tf.constant(labels))
    return lambda: call(*inputs)


CASES = {
    "nms": lambda: nms_case(random_boxes, 8732, 20, True),
    "nms_clustered": lambda: nms_case(clustered_boxes, 8732, 20, True),
    "nms_yolov3_608": lambda: nms_case(random_boxes, 22743, 80, False),
    "ssd_encode": ssd_case,
    "yolo_encode": yolo_case,
}
SLOW_ROWS = ("python_loop", "numpy_per_image")


# --- the clock ----------------------------------------------------------------------------------


def measure(work, repeats) -> dict:
    """Wall and CPU milliseconds (all threads) by name, medians, timed in turn after two calls that do not count."""
    spent = {name: [] for name in work}
    for turn in range(-2, repeats):
        for name, call in work.items():
            if name in SLOW_ROWS and turn % SLOW:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            tf.test.experimental.sync_devices()
            if turn >= 0:
                spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: [1e3 * statistics.median(column) for column in zip(*pairs)] for name, pairs in spent.items()}


def figures(measured) -> dict:
    ours = measured["tfdet"][0]
    return {
        "milliseconds": {name: round(wall, 3) for name, (wall, _) in measured.items()},
        "core_ms": {name: round(cpu, 3) for name, (_, cpu) in measured.items()},
        "ratio": {name: round(ours / wall, 4) for name, (wall, _) in measured.items() if name != "tfdet"},
    }


def show(title, result):
    table = Table(title=title)
    for heading in ("", "ms a batch", "core-ms", "tfdet / this", "tfdet is faster by"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, wall in result["milliseconds"].items():
        ratio = result["ratio"].get(name)
        speed = (f"{ratio:.3f}", f"{1 / ratio:,.1f} x") if ratio else ("", "")
        table.add_row(name, f"{wall:,.2f}", f"{result['core_ms'][name]:,.2f}", *speed)
    Console(file=sys.stderr, width=110).print(table)


@quiet.program(OSError)
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    if options.repeats < 1:
        quiet.tell("--repeats must be positive")
        return 2
    results = {}
    for name in options.only or CASES:
        work, title = CASES[name]()
        results[name] = figures(measure(work, options.repeats))
        show(title, results[name])
    results["config"] = {"repeats": options.repeats, "batch_size": BATCH, "ratio": "tfdet / baseline"}
    report.publish(results, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
