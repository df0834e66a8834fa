"""The detectors by the `kind` of their config."""

from tfdet.detectors.ssd import Ssd
from tfdet.detectors.yolo import Yolo

DETECTORS = {"ssd": Ssd, "yolo": Yolo}


def build(config, num_classes: int):
    """The detector that a `SsdConfig` or `YoloConfig` describes, for `num_classes` classes."""
    return DETECTORS[config.kind](config, num_classes)
