"""SSD300 on VGG16 with the paper's 8,732 priors."""

from tfdet.config import Config, SsdConfig

CONFIG = Config(detector=SsdConfig())
