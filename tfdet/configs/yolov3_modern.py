"""YOLOv3 on Darknet-53 at 416x416, trained on mosaics and mixed images."""

from tfdet.config import MODERN_AUGMENT, Config, DataConfig, YoloConfig

CONFIG = Config(
    detector=YoloConfig(),
    # a tile often shows but the edge of an object, which nobody should learn
    data=DataConfig(resize="letterbox", min_visible=0.2),
    augment=MODERN_AUGMENT,
)
