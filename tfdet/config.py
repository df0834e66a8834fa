"""What a run is made of, as frozen dataclasses.

A config is data: it builds nothing and imports nothing of tfdet. Presets live in tfdet/configs;
`override(config, "train.batch_size=64")` changes one field, `to_json` / `from_json` round-trip.
"""

import dataclasses
import json
import typing
from dataclasses import dataclass, field

RESIZE_MODES = ("stretch", "letterbox")
GEOMETRIES = ("none", "random_size_crop", "ssd_crop", "yolo_jitter")
SHUFFLE_MODES = ("global", "sequential", "none")
SSD_BACKBONES = ("vgg16", "mobilenetv2")
YOLO_BACKBONES = ("darknet53", "tiny")
MATCHING_RULES = ("bipartite", "per_box")
OPTIMIZERS = ("adam", "adamw", "sgd", "sgdw", "lamb", "radam")  # the last two are of tensorflow-addons
AVERAGES = ("none", "moving_average", "swa")
BOX_LOSSES = ("l2", "giou", "ciou")
CLASS_LOSSES = ("softmax", "sigmoid_focal")  # the last is of tensorflow-addons
NMS_METHODS = ("hard", "soft", "matrix")
NMS_KERNELS = ("gaussian", "linear")
MIXING_GROUPS = (8, 4)  # images of a batch that mosaic and mixup mix with each other: the first that divides its size


class ConfigError(ValueError):
    """A config has a field that does not exist or a value that cannot be."""


def _require(condition, message):
    if not condition:
        raise ConfigError(message)


def _one_of(name, value, allowed):
    _require(value in allowed, f"{name} is {value!r}; choose one of {', '.join(allowed)}")


@dataclass(frozen=True)
class PriorLayout:
    """SSD's default boxes: one entry a feature map in each tuple, sizes in pixels of `image_side`.

    Per cell, in this order: the square of min_size, the square of sqrt(min_size * max_size) where there
    is a max_size, then for each aspect ratio r a box of ratio r and one of 1/r.
    `step` 0 means image_side / feature_map. Source: Caffe's prior_box_layer (ssd branch).
    """

    image_side: int
    feature_maps: tuple[int, ...]
    min_sizes: tuple[float, ...]
    max_sizes: tuple[float, ...]  # 0: none
    aspect_ratios: tuple[tuple[float, ...], ...]
    steps: tuple[float, ...]
    offset: float = 0.5
    clip: bool = False
    truncate_sizes: bool = False  # Caffe keeps sizes as int
    variances: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)

    def __post_init__(self):
        lengths = {
            len(getattr(self, name)) for name in ("feature_maps", "min_sizes", "max_sizes", "aspect_ratios", "steps")
        }
        _require(
            len(lengths) == 1,
            f"a prior layout has {sorted(lengths)} entries in its tuples; each needs one a feature map",
        )

    def boxes_per_cell(self, level: int) -> int:
        return 1 + (self.max_sizes[level] > 0) + 2 * len(self.aspect_ratios[level])


_RATIOS_300 = ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,))
_RATIOS_512 = ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,))
_MAPS_300 = (38, 19, 10, 5, 3, 1)
_MAPS_512 = (64, 32, 16, 8, 4, 2, 1)
_STEPS_300 = (8.0, 16.0, 32.0, 64.0, 100.0, 300.0)
_STEPS_512 = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


def _layout(side, maps, sizes, ratios, steps) -> PriorLayout:
    """The paper's layouts: `sizes` has one entry more than there are maps, each max is the next min."""
    return PriorLayout(side, maps, sizes[:-1], sizes[1:], ratios, steps)


PRIOR_LAYOUTS = {
    "ssd300": _layout(300, _MAPS_300, (30.0, 60.0, 111.0, 162.0, 213.0, 264.0, 315.0), _RATIOS_300, _STEPS_300),
    "ssd300_coco": _layout(300, _MAPS_300, (21.0, 45.0, 99.0, 153.0, 207.0, 261.0, 315.0), _RATIOS_300, _STEPS_300),
    # the layout of rykov8's prior_boxes_ssd300.pkl: 7,308 boxes
    "ssd300_7308": PriorLayout(
        image_side=300,
        feature_maps=_MAPS_300,
        min_sizes=(30.0, 60.0, 114.0, 168.0, 222.0, 276.0),
        max_sizes=(0.0, 114.0, 168.0, 222.0, 276.0, 330.0),
        aspect_ratios=((2.0,),) + ((2.0, 3.0),) * 5,
        steps=(0.0,) * 6,
        clip=True,
    ),
    "ssd512": _layout(512, _MAPS_512, (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6), _RATIOS_512, _STEPS_512),
    "ssd512_coco": _layout(
        512, _MAPS_512, (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72), _RATIOS_512, _STEPS_512
    ),
}
# for weights that Caffe trained; with the whole sizes of SSD300 it would make no difference
PRIOR_LAYOUTS["ssd512_caffe"] = dataclasses.replace(PRIOR_LAYOUTS["ssd512"], truncate_sizes=True)


@dataclass(frozen=True)
class NmsConfig:
    """Post-processing: `max_per_class` and `max_detections` are counts an image; `method` see nms.

    `kernel` and `sigma` are of "soft" and "matrix": an overlap lowers a score by exp(-iou^2 / sigma) or by 1 - iou.
    """

    score_threshold: float = 0.01
    iou_threshold: float = 0.45
    max_per_class: int = 100
    max_detections: int = 200
    class_agnostic: bool = False
    method: str = "hard"  # greedy; "soft" and "matrix" lower the scores of overlapping boxes instead
    kernel: str = "gaussian"
    sigma: float = 0.5

    def __post_init__(self):
        _one_of("nms.method", self.method, NMS_METHODS)
        _one_of("nms.kernel", self.kernel, NMS_KERNELS)
        _require(self.sigma > 0, f"nms.sigma is {self.sigma}; it must be positive")
        _require(0 <= self.iou_threshold <= 1, f"nms.iou_threshold is {self.iou_threshold}; it lies in [0, 1]")
        for name in ("max_detections", "max_per_class"):
            _require(getattr(self, name) > 0, f"nms.{name} is {getattr(self, name)}; it must be positive")


@dataclass(frozen=True)
class SsdConfig:
    """Single Shot MultiBox Detector (https://arxiv.org/abs/1512.02325)."""

    kind: typing.Literal["ssd"] = "ssd"
    backbone: str = "vgg16"
    image_size: tuple[int, int] = (300, 300)  # height, width
    priors: str = "ssd300"  # a key of PRIOR_LAYOUTS, or the path of a pickle as rykov8/ssd_keras has it
    matching: str = "bipartite"
    match_iou: float = 0.5
    class_loss: str = "softmax"  # which mines hard negatives, by the next two; "sigmoid_focal" takes all priors
    neg_pos_ratio: float = 3.0
    min_negatives: int = 3  # an image without objects still teaches background
    alpha: float = 1.0  # weight of the box loss
    width_multiplier: float = 1.0  # of MobileNetV2
    nms: NmsConfig = NmsConfig()

    def __post_init__(self):
        _one_of("detector.backbone", self.backbone, SSD_BACKBONES)
        _one_of("detector.matching", self.matching, MATCHING_RULES)
        _one_of("detector.class_loss", self.class_loss, CLASS_LOSSES)
        only_wide = self.backbone != "vgg16" or self.width_multiplier == 1
        width = self.width_multiplier
        _require(only_wide, f"detector.width_multiplier is {width}; it is for mobilenetv2, vgg16 has one width")
        _require(0 < self.match_iou <= 1, f"detector.match_iou is {self.match_iou}; it lies above 0, up to 1")
        for name in ("neg_pos_ratio", "min_negatives"):
            _require(getattr(self, name) >= 0, f"detector.{name} is {getattr(self, name)}; it must not be negative")


COCO_ANCHORS = (
    (10.0, 13.0), (16.0, 30.0), (33.0, 23.0), (30.0, 61.0), (62.0, 45.0),
    (59.0, 119.0), (116.0, 90.0), (156.0, 198.0), (373.0, 326.0),
)  # fmt: skip
TINY_ANCHORS = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0), (81.0, 82.0), (135.0, 169.0), (344.0, 319.0))


@dataclass(frozen=True)
class YoloConfig:
    """YOLOv3 (https://arxiv.org/abs/1804.02767). Levels run from the coarsest (stride 32) to the finest.

    With `multi_scale` every training batch takes one of these sides, square, at random; all else has `image_size`.
    """

    kind: typing.Literal["yolo"] = "yolo"
    backbone: str = "darknet53"
    image_size: tuple[int, int] = (416, 416)  # height, width
    multi_scale: tuple[int, ...] = ()  # pixels, e.g. (320, 352, ..., 608)
    anchors: tuple[tuple[float, float], ...] = COCO_ANCHORS  # width, height in pixels of the network input
    anchor_masks: tuple[tuple[int, ...], ...] = ((6, 7, 8), (3, 4, 5), (0, 1, 2))
    strides: tuple[int, ...] = (32, 16, 8)
    ignore_thresh: float = 0.5
    box_loss: str = "l2"
    compat: str = "none"  # "keras_yolo3": its flooring of centres to whole pixels and its per-level ignore mask
    width_multiplier: float = 1.0
    nms: NmsConfig = NmsConfig(score_threshold=0.01, iou_threshold=0.5)

    def __post_init__(self):
        _one_of("detector.backbone", self.backbone, YOLO_BACKBONES)
        _one_of("detector.box_loss", self.box_loss, BOX_LOSSES)
        _one_of("detector.compat", self.compat, ("none", "keras_yolo3"))
        h, w = self.image_size
        fits = h > 0 and w > 0 and h % 32 == 0 and w % 32 == 0
        _require(fits, f"detector.image_size is {h}x{w}; YOLOv3 needs multiples of 32")
        for side in self.multi_scale:
            _require(side > 0 and side % 32 == 0, f"detector.multi_scale has {side}; YOLOv3 needs multiples of 32")
        _require(0 <= self.ignore_thresh <= 1, f"detector.ignore_thresh is {self.ignore_thresh}; it lies in [0, 1]")
        for anchor in self.anchors:
            _require(min(anchor) > 0, f"detector.anchors has {anchor}; its sides must be positive")
        masks, strides = self.anchor_masks, self.strides
        _require(len(masks) == len(strides), f"detector.anchor_masks has {len(masks)} levels, strides {len(strides)}")
        _require(masks and all(masks), f"detector.anchor_masks is {masks}; it needs an anchor at every level")
        named = [k for mask in self.anchor_masks for k in mask]
        highest = max(named)
        _require(highest < len(self.anchors), f"detector.anchor_masks names anchor {highest} of {len(self.anchors)}")
        _require(min(named) >= 0, f"detector.anchor_masks names anchor {min(named)}; it counts from 0")
        for stride in self.strides:
            fits = stride > 0 and h % stride == 0 and w % stride == 0
            _require(fits, f"detector.strides has {stride}, which does not divide the image size {h}x{w}")


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images; validation never sees them.

    `geometry` picks the window of the image that is shown, before anything is decoded:
    - "random_size_crop": rykov8's generator, area and aspect drawn from ranges;
    - "ssd_crop": the SSD paper's sampler, a minimum IoU with an object drawn, 50 tries;
    - "yolo_jitter": keras-yolo3's aspect jitter and scale, placed at random on gray;
    - "none": the whole image.
    """

    geometry: str = "random_size_crop"
    crop_probability: float = 1.0
    crop_area: tuple[float, float] = (0.75, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    expand_probability: float = 0.0  # zoom out first, as the SSD paper does; yolo_jitter has its own way
    expand_ratio: float = 4.0
    jitter: float = 0.3  # yolo_jitter
    scale: tuple[float, float] = (0.25, 2.0)  # yolo_jitter
    horizontal_flip: float = 0.5  # probabilities
    vertical_flip: float = 0.5
    brightness: float = 0.5  # factor from [1 - x, 1 + x]
    contrast: float = 0.5
    saturation: float = 0.5
    lighting: float = 0.5  # standard deviation of the noise along the image's own principal colours
    hue: float = 0.0  # HSV changes of keras-yolo3: shift from [-x, x] of the circle
    hsv_saturation: float = 1.0  # factor from [1/x, x]
    hsv_value: float = 1.0
    rotate: float = 0.0  # degrees, from [-x, x]
    shear: float = 0.0  # degrees, along each axis
    translate: float = 0.0  # shares of width and height
    affine_probability: float = 1.0  # of rotation, shear and translation together
    mosaic: float = 0.0  # probabilities; how images of a batch are mixed stands in data/mixing.py
    mixup: float = 0.0
    mixup_alpha: int = 8  # an image's share is drawn from Beta(alpha, alpha): 1 is uniform, more is closer to 1/2
    cutout: float = 0.0
    cutout_holes: int = 3
    cutout_side: tuple[float, float] = (0.1, 0.3)  # shares of width and height
    cutout_hidden: float = 0.7  # objects hidden by this share or more are ignored
    equalize: float = 0.0  # probability; needs tensorflow-addons
    sharpness: float = 0.0  # factor from [1 - x, 1 + x], 0 blurs; needs tensorflow-addons

    def __post_init__(self):
        _one_of("augment.geometry", self.geometry, GEOMETRIES)
        for name in (
            "horizontal_flip", "vertical_flip", "crop_probability", "expand_probability", "affine_probability",
            "mosaic", "mixup", "cutout", "equalize",
        ):  # fmt: skip
            _require(0 <= getattr(self, name) <= 1, f"augment.{name} is {getattr(self, name)}; it is a probability")
        for name in ("translate", "sharpness", "cutout_hidden"):
            _require(0 <= getattr(self, name) <= 1, f"augment.{name} is {getattr(self, name)}; it lies in [0, 1]")
        _require(0 <= self.rotate <= 180, f"augment.rotate is {self.rotate}; it lies in [0, 180] degrees")
        _require(0 <= self.shear < 45, f"augment.shear is {self.shear}; it lies in [0, 45) degrees")
        for name in ("mixup_alpha", "cutout_holes"):
            _require(getattr(self, name) >= 1, f"augment.{name} is {getattr(self, name)}; it is at least 1")
        for name in ("crop_area", "crop_aspect", "scale", "cutout_side"):
            low, high = getattr(self, name)
            _require(0 < low <= high, f"augment.{name} is ({low}, {high}); it needs 0 < low <= high")
        for name in ("cutout_side", "crop_area"):
            high = getattr(self, name)[1]
            _require(high <= 1, f"augment.{name} goes to {high}; it is a share of the image, at most 1")
        _require(0 <= self.jitter < 1, f"augment.jitter is {self.jitter}; it lies in [0, 1)")
        _require(self.expand_ratio >= 1, f"augment.expand_ratio is {self.expand_ratio}; it is at least 1")
        expands = self.geometry == "yolo_jitter" and self.expand_probability > 0
        chance = self.expand_probability
        _require(not expands, f"augment.expand_probability is {chance}; yolo_jitter zooms out by augment.scale, so 0")


NO_AUGMENT = AugmentConfig(
    geometry="none", horizontal_flip=0.0, vertical_flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0, lighting=0.0
)
YOLO_AUGMENT = AugmentConfig(
    geometry="yolo_jitter", vertical_flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0, lighting=0.0,
    hue=0.1, hsv_saturation=1.5, hsv_value=1.5,
)  # fmt: skip
SSD_PAPER_AUGMENT = AugmentConfig(
    geometry="ssd_crop", expand_probability=0.5, vertical_flip=0.0, brightness=0.125, lighting=0.0
)
MODERN_AUGMENT = dataclasses.replace(YOLO_AUGMENT, jitter=0.2, scale=(0.6, 1.6), mosaic=0.8, mixup=0.1)


@dataclass(frozen=True)
class DataConfig:
    """How records become batches."""

    resize: str = "stretch"  # of whole images: validation, prediction
    shuffle: str = "global"
    shuffle_buffer: int = 2048  # serialized records; sequential mode only
    num_parallel_calls: int = 0  # 0: tf.data decides
    private_threads: int = 0  # 0: TensorFlow's shared pool
    deterministic: bool = True  # False: batches may come in another order, for a little more speed
    ram_budget_mb: int = 256  # training records that fit are held in memory, undecoded
    prefetch: int = 2  # batches
    skip_bad_records: bool = False  # all are tried before training; those that fail are left out, and counted
    min_visible: float = 0.0  # boxes of which less than this share is left in the window are dropped
    seed: int = 0

    def __post_init__(self):
        _one_of("data.resize", self.resize, RESIZE_MODES)
        _one_of("data.shuffle", self.shuffle, SHUFFLE_MODES)
        _require(self.shuffle_buffer > 0, f"data.shuffle_buffer is {self.shuffle_buffer}; it must be positive")
        for name in ("prefetch", "num_parallel_calls", "private_threads", "ram_budget_mb"):
            _require(getattr(self, name) >= 0, f"data.{name} is {getattr(self, name)}; it must not be negative")
        _require(0 <= self.seed < 2**63, f"data.seed is {self.seed}; it lies in [0, 2^63)")
        sequential = self.shuffle == "sequential" and self.skip_bad_records
        _require(not sequential, "data.skip_bad_records needs data.shuffle=global: sequential reading ends at a fault")


@dataclass(frozen=True)
class StageConfig:
    """A part of a run before its last one: other layers frozen, another rate, an optimizer of its own, no patience."""

    epochs: int  # it ends after this one, counted from the start of the run
    learning_rate: float
    frozen: tuple[str, ...] = ()
    saved_as: str = ""

    def __post_init__(self):
        _require(
            self.epochs > 0, f"train.stages has {self.epochs} epochs; a stage ends after the first at the earliest"
        )
        _require(self.learning_rate > 0, f"train.stages has the learning rate {self.learning_rate}; it is positive")


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation. `batch_size` is global: the images of one update, all replicas and parts together.

    With `stages` those come first, and the other fields describe the last part of the run.
    """

    batch_size: int = 32
    accumulate: int = 1  # parts that a replica takes its share of a batch in, one after the other, to save memory
    epochs: int = 50
    steps_per_epoch: int = 0  # 0: as many as one pass over the training images takes
    max_minutes: float = 0.0  # 0: no limit; else training ends cleanly after this time
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float = 0.0  # 0: no clipping
    ema_decay: float = 0.0  # 0: no moving average of the weights; else evaluated and saved in their place
    lookahead: bool = False  # these three need tensorflow-addons
    averaging: str = "none"  # its own averages of the weights, used as those of ema_decay
    slow_layers: tuple[str, ...] = ()  # layer names as in `frozen`, trained at slow_factor of the rate
    slow_factor: float = 0.1
    frozen: tuple[str, ...] = ()  # layer names, shell patterns allowed: "conv1_*"
    precision: str = "float32"
    xla: bool = False  # compiles the forward and backward pass of the step
    sync_batch_norm: bool = False
    on_nan: str = "stop"  # or "skip": a loss that is not finite is counted, and its update left out
    stages: tuple[StageConfig, ...] = ()
    plateau_patience: int = 0  # epochs without a lower val_loss before the rate is lowered; 0: it never is
    plateau_factor: float = 0.1
    stopping_patience: int = 0  # epochs without a lower val_loss before the run ends; 0: it never does
    epoch_files: str = ""  # weights of the epochs with the lowest val_loss so far: "ep{epoch:03d}-{val_loss:.3f}.h5"
    epoch_files_every: int = 1  # epochs from one of these files to the next, at least
    saved_as: str = ""  # another file for the weights at the end
    seed: int = 0
    keep_checkpoints: int = 2

    def __post_init__(self):
        _require(self.batch_size > 0, f"train.batch_size is {self.batch_size}; it must be positive")
        _require(self.epochs > 0, f"train.epochs is {self.epochs}; it must be positive")
        _require(self.learning_rate > 0, f"train.learning_rate is {self.learning_rate}; it must be positive")
        for name in ("steps_per_epoch", "max_minutes", "warmup_steps", "weight_decay", "clip_norm"):
            _require(getattr(self, name) >= 0, f"train.{name} is {getattr(self, name)}; it must not be negative")
        _require(self.accumulate > 0, f"train.accumulate is {self.accumulate}; it must be positive")
        _require(0 <= self.ema_decay < 1, f"train.ema_decay is {self.ema_decay}; it lies in [0, 1)")
        _require(self.slow_factor > 0, f"train.slow_factor is {self.slow_factor}; it must be positive")
        for name in ("keep_checkpoints", "epoch_files_every"):
            _require(getattr(self, name) > 0, f"train.{name} is {getattr(self, name)}; it must be positive")
        for name in ("plateau_patience", "stopping_patience"):
            _require(getattr(self, name) >= 0, f"train.{name} is {getattr(self, name)}; it must not be negative")
        _require(0 < self.plateau_factor < 1, f"train.plateau_factor is {self.plateau_factor}; it lies in (0, 1)")
        plain = self.schedule == "constant" and not self.warmup_steps
        _require(
            plain or not self.plateau_patience,
            f"train.plateau_patience is {self.plateau_patience}; it lowers a constant rate without a warm-up",
        )
        ends = [stage.epochs for stage in self.stages] + [self.epochs]
        _require(
            sorted(set(ends)) == ends,
            f"the parts of the run (train.stages, train.epochs) end after epochs {ends}; they must rise",
        )
        averages = not (self.ema_decay and self.averaging != "none")
        both = f"train.ema_decay is {self.ema_decay}, train.averaging {self.averaging}"
        _require(averages, f"{both}; both average the weights, choose one")
        _one_of("train.optimizer", self.optimizer, OPTIMIZERS)
        _one_of("train.averaging", self.averaging, AVERAGES)
        _one_of("train.on_nan", self.on_nan, ("stop", "skip"))
        _one_of("train.schedule", self.schedule, ("constant", "cosine"))
        _one_of("train.precision", self.precision, ("float32", "mixed_float16", "mixed_bfloat16"))


@dataclass(frozen=True)
class Config:
    detector: SsdConfig | YoloConfig = field(default_factory=SsdConfig)
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    class_names: tuple[str, ...] = ()  # filled from the records' manifest

    def __post_init__(self):
        mixing = self.augment.mosaic or self.augment.mixup
        fits = any(self.train.batch_size % group == 0 for group in MIXING_GROUPS)
        smallest = min(MIXING_GROUPS)
        _require(
            fits or not mixing,
            f"train.batch_size is {self.train.batch_size}; augment.mosaic and mixup need a multiple of {smallest}",
        )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


# --- overrides and JSON -------------------------------------------------------------------------


def override(config, assignment: str):
    """`config` with one field changed, e.g. "train.batch_size=64" or "detector.anchors=[[10,13],[16,30]]".

    Raises:
        ConfigError: no such field, or the value does not fit the field's type.
    """
    path, separator, text = assignment.partition("=")
    _require(separator, f"{assignment!r} is not of the form section.field=value")
    return _replace(config, path.strip().split("."), text.strip(), path.strip())


def _replace(node, names, text, path):
    name, rest = names[0], names[1:]
    fields = {f.name for f in dataclasses.fields(node)}
    _require(name in fields, f"no field {path!r}: {type(node).__name__} has {', '.join(sorted(fields))}")
    if rest:
        child = getattr(node, name)
        _require(dataclasses.is_dataclass(child), f"no field {path!r}: {name} has no fields")
        return dataclasses.replace(node, **{name: _replace(child, rest, text, path)})
    hint = typing.get_type_hints(type(node))[name]
    return dataclasses.replace(node, **{name: _convert(_parse(text, hint), hint, path)})


def _parse(text, hint):
    if hint is str:
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _convert(value, hint, path):
    """A JSON value as the type the field is declared with."""
    origin = typing.get_origin(hint)
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), f"{path} is {value!r}; it needs a list")
        inner = typing.get_args(hint)
        hints = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        _require(len(hints) == len(value), f"{path} is {value!r}; it needs {len(hints)} values")
        return tuple(_convert(item, item_hint, path) for item, item_hint in zip(value, hints))
    if dataclasses.is_dataclass(hint) or origin in (typing.Union, type(int | str)):
        return _from_dict(value, hint, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is typing.Literal:
        _one_of(path, value, typing.get_args(hint))
        return value
    _require(
        isinstance(value, hint) and isinstance(value, bool) == (hint is bool),
        f"{path} is {value!r}; it needs {hint.__name__}",
    )
    return value


def _from_dict(values, hint, path):
    if not dataclasses.is_dataclass(hint):  # a union of configs, told apart by `kind`
        kinds = {option.__dataclass_fields__["kind"].default: option for option in typing.get_args(hint)}
        _one_of(f"{path}.kind", values.get("kind"), tuple(kinds))
        hint = kinds[values["kind"]]
    hints = typing.get_type_hints(hint)
    unknown = set(values) - set(hints)
    _require(not unknown, f"unknown field {path}.{sorted(unknown)[0]}" if unknown else "")
    return hint(**{name: _convert(value, hints[name], f"{path}.{name}") for name, value in values.items()})


def to_json(config: Config) -> str:
    """A config as JSON text; `from_json` reads it back."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(text: str) -> Config:
    """The inverse of `to_json`; a missing field takes its default, an unknown one raises ConfigError."""
    return _from_dict(json.loads(text), Config, "config")
