"""The options of tools/train.py, and the config that they make."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tfdet import addons, anchors, configs
from tfdet.config import ConfigError, from_json, override
from tfdet.configs import recipes
from tfdet.detectors import losses
from tfdet.train import optimizers
from tools import weights_options

DEFAULT_PRESET = "ssd300_mobilenetv2"

DESCRIPTION = "Trains a detector on a folder of TFRecords."

EPILOG = """
examples:
  # SSD300 on MobileNetV2 on whatever this machine has: all GPUs, or the CPU
  python tools/train.py --data tfrecords/mine --run runs/mine
  # YOLOv3 on four GPUs, 64 images a step over all of them
  python tools/train.py --data tfrecords/mine --preset yolov3_416 --gpus 4 --batch-size 64
  # go on where a run stopped; the same command starts it where nothing is there yet
  python tools/train.py --data tfrecords/mine --run runs/mine --resume
  # on a machine that may be taken away: a checkpoint every 10 minutes, and one at SIGTERM, which ends it with code 0
  python tools/train.py --data tfrecords/mine --run runs/mine --resume --checkpoint-minutes 10
  # a batch of 64 in 4 parts where memory holds 16; averaged weights; decoupled weight decay, warm-up and cosine
  python tools/train.py --data tfrecords/mine --batch-size 64 --accumulate 4 --ema-decay 0.999 \\
      --set train.optimizer=adamw --set train.weight_decay=5e-4 --set train.warmup_steps=500 --set train.schedule=cosine
  # two machines, the same command on each, with its own "index" (0 writes the results, --run is a shared folder)
  TF_CONFIG='{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}' \\
      python tools/train.py --data tfrecords/mine --run runs/mine --strategy multiworker
  # as keras-yolo3: 50 epochs with the body frozen, then 50 of all layers; from Darknet's or keras-yolo3's weights
  python tools/train.py --data tfrecords/mine --recipe yolo --weights yolov3.weights
  python tools/train.py --data tfrecords/mine --recipe yolo --freeze-body 1 --weights darknet53.conv.74
  # the classes that COCO has too keep their filters; the names of COCO's classes stand in coco.names
  python tools/train.py --data tfrecords/mine --recipe yolo --weights yolov3.weights \\
      --keep-classes person,lorry=truck --source-classes coco.names
  # as rykov8/ssd_keras, from its weights, and with its 7,308 priors
  python tools/train.py --data tfrecords/mine --recipe ssd --weights weights_SSD300.hdf5
  # AdamW, warm-up and cosine, averaged weights, mosaics; images of many sizes for YOLOv3
  python tools/train.py --data tfrecords/mine --recipe modern --preset yolov3_tiny
  # any field of the config, as often as needed
  python tools/train.py --data tfrecords/mine --set train.optimizer=sgd --set augment.vertical_flip=0

The run folder gets config.json, weights.h5 (the last), best.h5 (the best on the val split), checkpoints/, the files
of weights that a recipe names, history.csv, logs/ for TensorBoard, and nan/ with the batch of a loss that was not
finite. Ctrl-C and SIGTERM end a run after the step that runs, with a checkpoint. A mistake in the input ends with exit
code 2 and one line that says what to do. The last line on standard output is one JSON object.
"""


def epilog(arguments):
    """The examples; on the help page also what tensorflow-addons gives here, which takes seconds to find out."""
    asked = {"-h", "--help"} & set(sys.argv[1:] if arguments is None else arguments)
    if not asked or not addons.available():
        return EPILOG
    every = optimizers.FROM_ADDONS | losses.FROM_ADDONS
    names = "\n".join(f"  --set {field:36} {name}" for field, name in every.items())
    return f"{EPILOG}\nfrom tensorflow-addons, which is installed here:\n{names}\n"


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=epilog(arguments), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_what(parser)
    _add_devices(parser.add_argument_group("devices"))
    _add_training(parser.add_argument_group("training (defaults: those of the preset)"))
    weights_options.add_options(parser)
    _add_run(parser.add_argument_group("the run"))
    return parser.parse_args(arguments)


def _add_what(parser):
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="what tools/make_tfrecords.py wrote")
    parser.add_argument("--preset", choices=configs.PRESETS, help=f"detector and settings (default: {DEFAULT_PRESET})")
    parser.add_argument(
        "--recipe", choices=tuple(recipes.PRESET_OF),
        help="how to train: ssd as rykov8/ssd_keras, yolo as keras-yolo3 in two stages, modern (see the examples)",
    )  # fmt: skip
    parser.add_argument(
        "--freeze-body", type=int, choices=recipes.FREEZE_BODY,
        help="of --recipe yolo: what the first stage freezes, 1: the body, 2: all but the outputs (default)",
    )  # fmt: skip
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder for the results (default: runs/PRESET)")


def _add_devices(group):
    chosen = group.add_mutually_exclusive_group()
    chosen.add_argument(
        "--gpus", type=int, metavar="N", help="train on the first N GPUs, 0: on the CPU (default: all there are)"
    )
    chosen.add_argument(
        "--replicas", type=int, default=0, metavar="N", help="no GPUs, but N logical CPU devices: to try what N do"
    )
    group.add_argument(
        "--strategy", choices=("local", "multiworker"), default="local",
        help="multiworker: one process a machine, as the environment variable TF_CONFIG says (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--precision", choices=("float32", "mixed_float16", "mixed_bfloat16"))
    group.add_argument("--xla", action="store_true", default=None, help="compile the forward and backward pass")
    group.add_argument("--sync-batch-norm", action="store_true", default=None,
                       help="batch normalisation over all replicas' images")  # fmt: skip
    group.add_argument("--deterministic", action="store_true", help="the same bits in every run; slower on GPUs")


def _add_training(group):
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the training images, in all")
    group.add_argument("--steps-per-epoch", type=int, metavar="N", help="end an epoch after N steps")
    group.add_argument("--max-minutes", type=float, metavar="M", help="end in order after M minutes, whatever is left")
    group.add_argument("--batch-size", type=int, metavar="N", help="images a step, over all devices")
    group.add_argument("--learning-rate", type=float, metavar="R")
    _add_update(group)
    group.add_argument("--seed", type=int, help="of the first weights, the order of the images and their changes")
    group.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="any field of the config"
    )
    group.add_argument("--anchors", type=Path, metavar="FILE", help="of YOLO, what tools/kmeans_anchors.py wrote")
    group.add_argument("--data-service", metavar="ADDRESS",
                       help="batches come from a service, see tools/data_service.py: grpc://host:port")  # fmt: skip
    group.add_argument("--skip-bad-records", action="store_true", default=None,
                       help="try all records first, and train without those that cannot be read")  # fmt: skip


def _add_update(group):
    group.add_argument("--accumulate", type=int, metavar="K",
                       help="take a batch in K parts, one after the other, where memory holds no more")  # fmt: skip
    group.add_argument("--ema-decay", type=float, metavar="D",
                       help="evaluate and save a moving average of the weights, e.g. 0.999")  # fmt: skip
    group.add_argument("--on-nan", choices=("stop", "skip"),
                       help="a loss that is not finite ends the run, or its update is left out")  # fmt: skip


def _add_run(group):
    group.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in --run, if there is one"
    )
    group.add_argument("--checkpoint-every", type=int, default=0, metavar="N", help="steps; also after every epoch")
    group.add_argument("--checkpoint-minutes", type=float, default=0.0, metavar="M", help="minutes, besides")
    group.add_argument("--keep-checkpoints", type=int, metavar="K", help="the newest K stay (default: of the preset)")
    group.add_argument(
        "--eval-every", type=int, default=1, metavar="N",
        help="epochs between mAP on the val split, 0: at the end only (default: %(default)s)",
    )  # fmt: skip


def fill_in(options):
    """The preset and the run folder, where none is given."""
    options.preset = options.preset or recipes.PRESET_OF.get(options.recipe, DEFAULT_PRESET)
    options.run = options.run or Path("runs") / "_".join(filter(None, [options.preset, options.recipe]))


def make_config(options, class_names):
    """The preset, or the config of the run that is resumed, with the flags on top.

    Raises:
        ConfigError: a value that cannot be, or a run that was trained for other classes.
    """
    stored = options.run / "config.json"
    resuming = options.resume and stored.exists()
    config = read_config(stored) if resuming else start_config(options)
    if resuming and config.class_names != class_names:
        was, now = ", ".join(config.class_names), ", ".join(class_names)
        raise ConfigError(f"{options.run} was trained for the classes {was}; {options.data} has {now}")
    names = (
        "epochs", "steps_per_epoch", "max_minutes", "batch_size", "learning_rate", "precision", "xla",
        "sync_batch_norm", "accumulate", "ema_decay", "on_nan", "keep_checkpoints", "seed",
    )  # fmt: skip
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    config = replace(config, class_names=class_names, train=replace(config.train, **given))
    given = {
        name: getattr(options, name) for name in ("seed", "skip_bad_records") if getattr(options, name) is not None
    }
    config = replace(config, data=replace(config.data, **given))
    for assignment in options.set:
        config = override(config, assignment)
    if options.anchors:
        config = anchors.use(config, anchors.read(options.anchors))
    if resuming and config.train.batch_size != read_config(stored).train.batch_size:
        was, now = read_config(stored).train.batch_size, config.train.batch_size
        raise ConfigError(
            f"{options.run} was trained with batch size {was}; with {now} its steps would mean other images. "
            "Start a new --run, with --weights from this one"
        )
    return config


def start_config(options):
    """The preset with the recipe, where there is one."""
    config = configs.load(options.preset)
    if not options.recipe:
        return config
    return recipes.apply(config, options.recipe, epochs=options.epochs or 0, freeze_body=options.freeze_body)


def read_config(path):
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not a config
        raise ConfigError(f"{path}: {error}; choose another --run, or repair the file") from error
