"""The detectors by the `kind` of their config."""

from tfdet.detectors.multi_scale import MultiScaleYolo
from tfdet.detectors.ssd import Ssd
from tfdet.detectors.yolo import Yolo

DETECTORS = {"ssd": Ssd, "yolo": Yolo}


def build(config, num_classes: int):
    """The detector that a `SsdConfig` or `YoloConfig` describes, for `num_classes` classes."""
    detector = MultiScaleYolo if getattr(config, "multi_scale", ()) else DETECTORS[config.kind]
    return detector(config, num_classes)
