"""SSD512 on VGG16 with the paper's 24,564 priors."""

from tfdet.config import Config, SsdConfig

CONFIG = Config(detector=SsdConfig(image_size=(512, 512), priors="ssd512"))
