"""YOLOv3-tiny at 416x416: two levels, six anchors."""

from tfdet.config import TINY_ANCHORS, YOLO_AUGMENT, Config, DataConfig, YoloConfig

CONFIG = Config(
    detector=YoloConfig(backbone="tiny", anchors=TINY_ANCHORS, anchor_masks=((3, 4, 5), (0, 1, 2)), strides=(32, 16)),
    data=DataConfig(resize="letterbox"),
    augment=YOLO_AUGMENT,
)
