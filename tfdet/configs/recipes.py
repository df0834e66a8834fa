"""Ways to train: each takes a preset's config and says how its optimisation goes. All that it sets are config fields.

ssd      as the author of rykov8/ssd_keras does it: from its weights, made for 7,308 priors, three blocks frozen
yolo     as keras-yolo3 does it: first with the body frozen, then all layers, at a rate that falls by itself
modern   decoupled weight decay, warm-up and cosine, averaged weights, clipping, mosaics, images of many sizes
"""

from dataclasses import replace

from tfdet.config import Config, ConfigError, StageConfig, YoloConfig

PRESET_OF = {"ssd": "ssd300_vgg16", "yolo": "yolov3_416", "modern": "yolov3_416"}  # where none is asked for
FREEZE_BODY = (0, 1, 2)

# Layer names, see models/darknet.py. 1: the body (of tiny, what comes before its first map). 2: all but the outputs.
_BODY = {
    ("darknet53", 1): (
        "conv2d_[1-9]", "conv2d_[1-4][0-9]", "conv2d_5[0-2]",
        "batch_normalization_[1-9]", "batch_normalization_[1-4][0-9]", "batch_normalization_5[0-2]",
    ),
    ("darknet53", 2): (
        "conv2d_[1-9]", "conv2d_[1-4][0-9]", "conv2d_5[0-8]", "conv2d_6[0-689]", "conv2d_7[0-4]",
        "batch_normalization_*",
    ),
    ("tiny", 1): ("conv2d_[1-5]", "batch_normalization_[1-5]"),
    ("tiny", 2): ("conv2d_[1-9]", "conv2d_1[12]", "batch_normalization_*"),
}  # fmt: skip


def apply(config: Config, name: str, *, epochs: int = 0, freeze_body: int | None = None) -> Config:
    """`config` with the recipe `name` for its training.

    Args:
        epochs: of the whole run; 0: the recipe's own number. Of "yolo" half of them belong to the first stage.
        freeze_body: of "yolo", one of FREEZE_BODY; None: 2, as keras-yolo3.
    Raises:
        ConfigError: there is no such recipe, or the detector is none that it is made for.
    """
    if name not in PRESET_OF:
        raise ConfigError(f"no recipe {name!r}; there are {', '.join(PRESET_OF)}")
    if freeze_body is not None and name != "yolo":
        raise ConfigError(f"--freeze-body is for the recipe yolo, not for {name}")
    if name == "ssd":
        return _ssd(config, epochs or 50)
    return _yolo(config, epochs or 100, freeze_body) if name == "yolo" else _modern(config, epochs or 100)


def _ssd(config, epochs):
    """One stage; the best epochs by validation loss, weights only, each in a file. SSD512, which it has not, keeps its
    priors; for weights made for the paper's 8,732 add `detector.priors=ssd300`."""
    if config.detector.kind != "ssd" or config.detector.backbone != "vgg16":
        raise ConfigError("the recipe ssd freezes layers of VGG16; take it with the presets ssd300_vgg16, ssd512_vgg16")
    train = replace(
        config.train, optimizer="adam", learning_rate=3e-4, batch_size=16, epochs=epochs,
        frozen=("conv1_*", "conv2_*", "conv3_*"), epoch_files="weights.{epoch:02d}-{val_loss:.2f}.h5",
    )  # fmt: skip
    priors = {"ssd300": "ssd300_7308"}.get(config.detector.priors, config.detector.priors)  # those of its weights
    return replace(config, detector=replace(config.detector, neg_pos_ratio=2.0, priors=priors), train=train)


def _yolo(config, epochs, freeze_body):
    if config.detector.kind != "yolo":
        raise ConfigError("the recipe yolo is for YOLOv3; take it with the presets yolov3_416, yolov3_tiny")
    if epochs < 2:
        raise ConfigError("the recipe yolo has two stages, so it takes at least 2 epochs")
    level = 2 if freeze_body is None else freeze_body
    frozen = _BODY[config.detector.backbone, level] if level else ()
    stage = StageConfig(epochs // 2, 1e-3, frozen, saved_as="trained_weights_stage_1.h5")
    train = replace(
        config.train, optimizer="adam", batch_size=32, stages=(stage,), learning_rate=1e-4, epochs=epochs,
        plateau_patience=3, plateau_factor=0.1, stopping_patience=10, saved_as="trained_weights_final.h5",
        epoch_files="ep{epoch:03d}-loss{loss:.3f}-val_loss{val_loss:.3f}.h5", epoch_files_every=3,
    )  # fmt: skip
    return replace(config, train=train)


def _modern(config, epochs):
    """AdamW; for SGD add `train.optimizer=sgdw`, `train.learning_rate=0.01` and `train.weight_decay=5e-4`."""
    train = replace(
        config.train, optimizer="adamw", learning_rate=1e-3, weight_decay=0.05, warmup_steps=200, schedule="cosine",
        ema_decay=0.999, clip_norm=10.0, batch_size=32, accumulate=2, epochs=epochs,
    )  # fmt: skip
    # a tile of a mosaic often shows but the edge of an object, which nobody should learn
    data = replace(config.data, min_visible=0.2)
    augment = replace(config.augment, mosaic=0.8, mixup=0.1)
    return replace(config, detector=_many_sizes(config.detector), train=train, data=data, augment=augment)


def _many_sizes(detector):
    """YOLOv3 for sides from 3/4 to 3/2 of its own, as the paper has 320 to 608 about 416; SSD's priors fit one size."""
    if not isinstance(detector, YoloConfig):
        return detector
    cells = max(detector.image_size) // 32
    return replace(detector, multi_scale=tuple(32 * n for n in range(-(-3 * cells // 4), 3 * cells // 2 + 1)))
