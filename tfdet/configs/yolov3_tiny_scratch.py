"""YOLOv3-tiny from random weights on some hundred photos: 1,536 steps of 16, half an hour on two CPU cores.

With anchors of the data set (`--anchors`), and `--precision mixed_bfloat16` where the processor has it in hardware.
"""

from dataclasses import replace

from tfdet.config import TrainConfig
from tfdet.configs import yolov3_tiny

CONFIG = replace(
    yolov3_tiny.CONFIG,
    # boxes fit tighter with CIoU: COCO AP counts that
    detector=replace(yolov3_tiny.CONFIG.detector, box_loss="ciou"),
    augment=replace(yolov3_tiny.CONFIG.augment, vertical_flip=0.5, scale=(0.6, 1.5), mosaic=0.3),
    train=TrainConfig(
        batch_size=16, epochs=24, steps_per_epoch=64, optimizer="adamw", learning_rate=1e-3, weight_decay=0.05,
        warmup_steps=100, schedule="cosine", ema_decay=0.998, clip_norm=10.0,
    ),
)  # fmt: skip
