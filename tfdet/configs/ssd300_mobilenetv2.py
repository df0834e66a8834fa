"""SSD300 on MobileNetV2: the same priors as on VGG16, a tenth of the arithmetic."""

from tfdet.config import Config, SsdConfig

CONFIG = Config(detector=SsdConfig(backbone="mobilenetv2"))
