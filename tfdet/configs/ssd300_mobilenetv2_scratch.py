"""SSD300 on half of MobileNetV2's width, from random weights on some hundred photos: 1,344 steps of 16.

Half an hour on two CPU cores. The priors of COCO begin smaller and the crops with 0.4 of a photo, for small objects.
"""

from tfdet.config import AugmentConfig, Config, SsdConfig, TrainConfig

CONFIG = Config(
    detector=SsdConfig(backbone="mobilenetv2", width_multiplier=0.5, priors="ssd300_coco"),
    augment=AugmentConfig(crop_area=(0.4, 1.0), brightness=0.2, contrast=0.2, saturation=0.2, lighting=0.0),
    train=TrainConfig(
        batch_size=16, epochs=21, steps_per_epoch=64, optimizer="adamw", learning_rate=3e-3, weight_decay=0.02,
        warmup_steps=100, schedule="cosine", ema_decay=0.998, clip_norm=10.0,
    ),
)  # fmt: skip
