"""VOC and COCO average precision equal to detectron2, pierluigi's Evaluator and pycocotools on 364 images."""

import json

import numpy as np
import pytest

from tfdet import metrics

SCENARIOS = ("main", "perfect", "none", "class_without_dets", "main_difficult")
COCO_KEYS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


@pytest.fixture(scope="module")
def results(shared):
    return json.loads((shared / "golden" / "map_results.json").read_text())


def load(golden, scenario):
    data = golden("map")
    ignore = data["gt_difficult_flags"] & scenario.endswith("_difficult")
    truth = metrics.GroundTruth(data["gt_image"], data["gt_class"], data["gt_box_xyxy"], ignore)
    found = (data[f"{scenario}/det_{name}"] for name in ("image", "class", "box_xyxy", "score"))
    return truth, metrics.Detections(*found)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_voc(golden, results, scenario):
    truth, detections = load(golden, scenario)
    for plus_one in (False, True):
        for inclusive in (False, True):
            name = f"d2_{'plus1' if plus_one else 'cont'}_{'ge' if inclusive else 'gt'}"
            for method, key in (("11point", "voc07_11pt"), ("area", "area")):
                ap = metrics.voc_ap(truth, detections, 4, method=method, inclusive=inclusive, plus_one=plus_one)
                np.testing.assert_allclose(ap[:3], results[scenario][name][key], rtol=0, atol=1e-9)
                assert np.isnan(ap[3])  # nothing annotated


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_coco(golden, results, scenario, fast):
    if fast:
        pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is an extra")
    want = results[scenario]["pycocotools"]
    if want is None:
        pytest.skip("pycocotools does not load an empty list of detections")
    ours = metrics.coco_ap(*load(golden, scenario), 4, fast=fast)
    np.testing.assert_allclose([ours[key] for key in COCO_KEYS], want["stats"], rtol=0, atol=1e-9)
    per_class = np.stack([ours["per_class"], ours["per_class50"]], 1)[:3]
    np.testing.assert_allclose(per_class, want["per_class_AP_AP50"], rtol=0, atol=1e-9)
