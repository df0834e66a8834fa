"""Average precision of detections, in float64: Pascal VOC (2007's 11 points, or the area) and COCO; and their mistakes.

Boxes come as flat arrays over all images. VOC's figures and the mistakes are vectorised over images and classes,
COCO's come from pycocotools, or from faster-coco-eval where that is installed.
"""

from tfdet.metrics.coco import COCO_FIGURES, coco_ap
from tfdet.metrics.flat import Detections, GroundTruth
from tfdet.metrics.mistakes import Mistake, confusion, misses, wrong_detections
from tfdet.metrics.voc import Curve, curve_ap, mean_ap, voc_ap, voc_curves

__all__ = [
    "COCO_FIGURES", "Curve", "Detections", "GroundTruth", "Mistake", "coco_ap", "confusion", "curve_ap", "mean_ap",
    "misses", "voc_ap", "voc_curves", "wrong_detections",
]  # fmt: skip
