"""A small SSD300 that learns the drawn shapes of the demo in minutes on two cores."""

from tfdet.config import AugmentConfig, Config, SsdConfig, TrainConfig

CONFIG = Config(
    detector=SsdConfig(backbone="mobilenetv2", width_multiplier=0.35),
    augment=AugmentConfig(brightness=0.2, contrast=0.2, saturation=0.2, lighting=0.0),
    train=TrainConfig(batch_size=16, epochs=8, learning_rate=2e-3),
)
