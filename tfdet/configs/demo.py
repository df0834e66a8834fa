"""A small SSD300 that learns the drawn shapes of the demo in minutes on two cores."""

from tfdet.config import AugmentConfig, Config, SsdConfig, TrainConfig

CONFIG = Config(
    detector=SsdConfig(backbone="mobilenetv2", width_multiplier=0.35),
    # shapes stand upright: a triangle on its head is none that will be asked for
    augment=AugmentConfig(vertical_flip=0.0, brightness=0.2, contrast=0.2, saturation=0.2, lighting=0.0),
    train=TrainConfig(batch_size=16, epochs=8, learning_rate=4e-3, schedule="cosine"),
)
