"""YOLOv3 on Darknet-53 at 416x416 with the COCO anchors."""

from tfdet.config import YOLO_AUGMENT, Config, DataConfig, YoloConfig

CONFIG = Config(detector=YoloConfig(), data=DataConfig(resize="letterbox"), augment=YOLO_AUGMENT)
