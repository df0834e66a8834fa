"""Trains a detector on a folder of TFRecords."""

import contextlib
import json
import math
import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from tfdet import quiet

quiet.import_tensorflow()

import tensorflow as tf

from tfdet import detectors, unmatched
from tfdet.config import ConfigError
from tfdet.data import faults, pipeline, service
from tfdet.data.errors import DataError
from tfdet.data.records import open_split
from tfdet.evaluate import evaluate
from tfdet.models.weights import WeightsError
from tfdet.pictures import Samples
from tfdet.train import checkpoints, devices, loop, setup, signals, stages
from tools import bad_records, weights_options
from tools.train_options import fill_in, make_config, parse_arguments


def open_val(directory):
    """The val split, or None where the data set has none."""
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    return open_split(directory, "val") if "val" in manifest["splits"] else None


def make_model(detector, config, strategy, options, restored):
    """The model on its devices, with the weights of a file, which a checkpoint would overwrite."""
    model = setup.new_model(detector, config.train, strategy)
    if options.weights and not restored:
        weights_options.load(model, options, config.class_names)
    frozen = stages.remaining(config.train, options.run)[0][-1].frozen
    setup.freeze(model, frozen)
    if frozen and not options.weights and not restored:
        quiet.tell("without --weights the frozen layers keep the random weights that they begin with")
    return model


def describe(options, config, records, val, strategy, model):
    """What was found, before anything takes time."""
    counts = f"{records.num_images} training images with {records.num_boxes} boxes"
    counts += f", {val.num_images} validation images" if val else ", no validation split"
    count = lambda variables: sum(tf.size(v).numpy() for v in variables)  # noqa: E731
    parameters = f"{count(model.weights):,} parameters, {count(model.trainable_variables):,} of them trainable"
    kind, (height, width) = config.detector.kind, config.detector.image_size
    print(f"devices: {devices.describe(strategy)}; this machine has {devices.describe_gpus()}")
    print(f"data:    {options.data}: {counts}; {len(config.class_names)} classes: {', '.join(config.class_names)}")
    print(f"model:   {kind} on {config.detector.backbone}, {height}x{width} pixels, {parameters}")
    print(f"run:     {options.run}", flush=True)


def describe_boxes(options, config, records, detector, restored):
    """Boxes that cannot be learned, in the first images: said before hours are spent on them."""
    remote = options.data_service or config.data.shuffle == "sequential"  # records that are dear to read here
    if not (restored or remote):
        counts = unmatched.count(records, config, detector, most=unmatched.SAMPLE)
        print(f"boxes:   {unmatched.describe(counts, config)}", flush=True)


def make_batches(options, config, records, detector):
    """(step, shard) -> the training data from there on, made in this process or by a data service."""
    if not options.data_service:
        return partial(pipeline.train_dataset, records, config, detector.encode)
    address = service.check_address(options.data_service)
    return lambda step, shard=(0, 1): service.served_dataset(records, config, detector.encode, address, step, shard)


def train(options) -> dict:
    """The whole job; returns what the last line of output says."""
    strategy = devices.choose_strategy(options.gpus, options.replicas, options.strategy == "multiworker")
    if options.deterministic:
        setup.enable_determinism()
    checkpoints.require_new_or_resume(options.run, options.resume)
    weights_options.check(options)
    restored = checkpoints.latest_step(options.run) is not None
    records, val = open_split(options.data, "train"), open_val(options.data)
    config = make_config(options, records.class_names)
    records, val = (bad_records.without_bad(split, config) for split in (records, val))
    detector = detectors.build(config.detector, config.num_classes)
    model = make_model(detector, config, strategy, options, restored)
    describe(options, config, records, val, strategy, model)
    measure = {}
    if val:
        batches = pipeline.eval_dataset(val, config, detector.encode)
        measure["validation"] = batches
        measure["pictures"] = Samples(batches, detector, config).draw
        measure["evaluate"] = lambda model: evaluate(model, detector, batches, config, config.class_names)
    with faults.named(records):
        describe_boxes(options, config, records, detector, restored)
    with faults.named(records, val), device_named():
        summary = loop.fit(
            model, detector, make_batches(options, config, records, detector), config, options.run,
            steps_per_epoch=config.train.steps_per_epoch or pipeline.steps_per_epoch(records, config.train.batch_size),
            evaluate_every=options.eval_every, resume=options.resume, callbacks=bad_records.reports(records),
            checkpoint_every=options.checkpoint_every, checkpoint_minutes=options.checkpoint_minutes, **measure,
        )  # fmt: skip
    if config.data.skip_bad_records:
        summary["bad_records"] = len(records.left_out)
    return {**summary, "run": str(options.run)}


@contextlib.contextmanager
def device_named():
    """Says what to do where memory does not suffice, or XLA cannot compile the model."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if "unsupported operations when trying to compile" not in str(error):
            raise
        raise ConfigError("XLA cannot compile this model on this device; leave out --xla (train.xla)") from error
    except tf.errors.ResourceExhaustedError as error:
        raise ConfigError("the device has too little memory for this: try a smaller --batch-size") from error


def strict(summary) -> dict:
    """The summary as JSON allows it: what is not finite becomes null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in summary.items()}  # fmt: skip


@quiet.program(ConfigError, DataError, WeightsError, loop.TrainingError, OSError)
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    given = " ".join(f"--{name} {getattr(options, name)}" for name in ("preset", "recipe") if getattr(options, name))
    if options.resume and given:
        quiet.tell(f"--resume takes the settings of the run, if there is one, not those of {given}")
    if options.freeze_body is not None and not options.recipe:
        raise ConfigError("--freeze-body says something about --recipe yolo")
    fill_in(options)
    try:
        summary = train(options)
    except signals.Terminated as end:
        quiet.tell(f"terminated; --run {options.run} --resume goes on from here")
        summary = {"steps": end.step, "run": str(options.run), "terminated": True}
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"; --run {options.run} --resume goes on from here") from None
    print(json.dumps(strict(summary)))
    return 0


if __name__ == "__main__":
    sys.exit(quiet.until_unread(main))
