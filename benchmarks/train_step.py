"""How long a training step takes, with real data and a cached batch, beside Keras' fit and a bare update."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from tfdet import quiet

quiet.import_tensorflow()

import tensorflow as tf
from input_pipeline import benchmark_data
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tfdet import configs, detectors, schema
from tfdet.compat import keras
from tfdet.config import ConfigError, override
from tfdet.data import pipeline
from tfdet.data.errors import DataError
from tfdet.data.records import open_split
from tfdet.train import devices, optimizers, setup
from tfdet.train.step import distribute, make_train_step

MODELS = ("ssd300_vgg16", "ssd300_mobilenetv2", "yolov3_tiny")
MEANING = {
    "forward_backward": "plain tf.function: losses and gradients, no update",
    "bare": "the same with the optimizer's update: what any loop has to do",
    "keras_fit": "the same in keras.Model.fit",
    "cached": "tfdet's step on a cached batch",
    "cached_xla": "the same with --xla",
    "real": "tfdet's step on records, augmented and encoded",
}

EPILOG = """
examples:
  python benchmarks/train_step.py --json benchmarks/results/train_step.json
  python benchmarks/train_step.py --models yolov3_tiny --replicas 1 2 --steps 4 --passes 1

Rows are measured in turn, A B C A B C ..., after one step each that compiles. `wait` is the share of the time spent
waiting for the next batch, `over bare` what a row takes longer than the bare update. Rows "replicas N" share the same
global batch over N logical CPU devices. The last line on standard output is one JSON object.
"""


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_argument_group("what is measured")
    group.add_argument("--models", nargs="+", choices=configs.PRESETS, default=MODELS, metavar="PRESET",
                       help=f"(default: {' '.join(MODELS)})")  # fmt: skip
    group.add_argument("--rows", nargs="+", choices=MEANING, default=list(MEANING), metavar="ROW",
                       help=f"{', '.join(MEANING)} (default: all)")  # fmt: skip
    group.add_argument("--replicas", nargs="+", type=int, default=[1, 2, 4], metavar="N", help="(default: 1 2 4)")
    group.add_argument("--batch-size", type=int, default=8, metavar="N", help="global (default: %(default)s)")
    group.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="of every preset")
    group = parser.add_argument_group("how")
    group.add_argument("--data", type=Path, metavar="DIR", help="records (default: photo-like images, drawn)")
    group.add_argument("--images", type=int, default=256, metavar="N", help="to draw (default: %(default)s)")
    group.add_argument("--steps", type=int, default=10, metavar="N", help="timed steps a pass (default: %(default)s)")
    group.add_argument("--passes", type=int, default=3, metavar="N", help="(default: %(default)s)")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser.parse_args(arguments)


def make_config(preset, options, class_names):
    config = configs.load(preset)
    config = replace(config, class_names=class_names, train=replace(config.train, batch_size=options.batch_size))
    for assignment in options.set:
        config = override(config, assignment)
    return config


# --- the rows: each a function from a count of steps to (seconds, seconds spent waiting) --------


def make_rows(record_set, config, names, replicas) -> dict:
    """name -> row, for the rows that were asked for; all work on batches of the same size."""
    detector = detectors.build(config.detector, config.num_classes)
    real = partial(pipeline.train_dataset, record_set, config, detector.encode)
    cached = next(iter(distribute(real(), tf.distribute.get_strategy(), config.train.batch_size)))
    makers = {
        "forward_backward": lambda: _stepping(_plain(detector, config, update=False), cached),
        "bare": lambda: _stepping(_plain(detector, config, update=True), cached),
        "keras_fit": lambda: _fitting(_Fitted(detector, config), cached),
        "cached": lambda: _stepping(_ours(detector, config), cached),
        "cached_xla": lambda: _stepping(_ours(detector, config, xla=True), cached),
        "real": lambda: _reading(_ours(detector, config), real()),
    }
    rows = {name: makers[name]() for name in names}
    for number in replicas:
        if number > 1:
            rows[f"replicas {number}"] = _on_replicas(number, detector, config, cached)
    return rows


def _built(detector, config, strategy=None):
    """A model and its optimizer."""
    strategy = strategy or tf.distribute.get_strategy()
    model = setup.build_model(detector, config.train, strategy)
    with strategy.scope():
        return model, optimizers.build_optimizer(config.train, 1000, model)


def _ours(detector, config, strategy=None, xla=False):
    model, optimizer = _built(detector, config, strategy)
    return make_train_step(
        model, detector, optimizer, xla=xla, weight_decay=optimizers.l2(config.train),
        clip_norm=config.train.clip_norm,
    )  # fmt: skip


def _loss(model, detector, batch):
    """The objective of one device, written as anybody would."""
    sums = detector.loss(batch, model(batch[schema.IMAGE], training=True))
    losses = [tf.reduce_sum(value) for name, value in sums.items() if name != schema.NORMALIZER]
    return tf.add_n(losses) / tf.maximum(tf.reduce_sum(sums[schema.NORMALIZER]), 1.0)


def _plain(detector, config, update):
    model, optimizer = _built(detector, config)

    @tf.function
    def step(batch):
        with tf.GradientTape() as tape:
            loss = _loss(model, detector, batch)
        gradients = tape.gradient(loss, model.trainable_variables)
        if update:
            optimizer.apply_gradients(zip(gradients, model.trainable_variables))
            return {"loss": loss}
        # one number that needs every gradient, or they would not be computed
        return {"loss": loss + 0.0 * tf.add_n([tf.reduce_sum(gradient[..., :1]) for gradient in gradients])}

    return step


class _Fitted(keras.Model):
    """The detector's model and loss for `fit`."""

    def __init__(self, detector, config):
        super().__init__()
        self.detector = detector
        self.net, optimizer = _built(detector, config)
        self.compile(optimizer=optimizer)

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = _loss(self.net, self.detector, batch)
        variables = self.net.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return {"loss": loss}


class _Clock(keras.callbacks.Callback):
    """From the end of the first step to the end of the last."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            self.begin = time.perf_counter()
        self.end = time.perf_counter()


def _fitting(model, cached):
    data = tf.data.Dataset.from_tensors(cached).repeat()

    def run(steps):
        clock = _Clock()
        model.fit(data, steps_per_epoch=steps + 1, epochs=1, verbose=0, callbacks=[clock])
        return clock.end - clock.begin, 0.0

    return run


def _stepping(step, batch):
    def run(steps):
        float(step(batch)["loss"])
        begin = time.perf_counter()
        for _ in range(steps):
            float(step(batch)["loss"])  # reading it waits for the step, as fit's callbacks do
        return time.perf_counter() - begin, 0.0

    return run


def _reading(step, dataset):
    data = distribute(dataset, tf.distribute.get_strategy(), dataset.element_spec[schema.IMAGE].shape[0])
    iterator = iter(data)

    def run(steps):
        float(step(next(iterator))["loss"])
        waited, begin = 0.0, time.perf_counter()
        for _ in range(steps):
            before = time.perf_counter()
            batch = next(iterator)
            waited += time.perf_counter() - before
            float(step(batch)["loss"])
        return time.perf_counter() - begin, waited

    return run


def _on_replicas(number, detector, config, cached):
    strategy = devices.choose_strategy(replicas=number)
    data = distribute(tf.data.Dataset.from_tensors(cached), strategy, config.train.batch_size)
    return _stepping(_ours(detector, config, strategy), next(iter(data)))


# --- measuring and telling ----------------------------------------------------------------------


def measure(rows, options, batch_size, progress) -> dict:
    """name -> {ms_per_step, ms_min, ms_max, images_per_second, wait}, medians over the passes."""
    seconds, waits = {name: [] for name in rows}, {name: [] for name in rows}
    for _ in range(options.passes):
        for name, run in rows.items():
            total, waited = run(options.steps)
            seconds[name].append(total / options.steps)
            waits[name].append(waited / total)
            progress()
    return {
        name: {
            "ms_per_step": round(1e3 * statistics.median(values), 2),
            "ms_min": round(1e3 * min(values), 2),
            "ms_max": round(1e3 * max(values), 2),
            "images_per_second": round(batch_size / statistics.median(values), 2),
            "wait": round(statistics.median(waits[name]), 4),
        }
        for name, values in seconds.items()
    }


def ratios(figures) -> dict:
    """How much longer the step takes than others do; negative where it is faster."""
    wanted = {
        "over_bare": ("cached", "bare"), "over_forward_backward": ("cached", "forward_backward"),
        "over_keras_fit": ("cached", "keras_fit"), "real_over_cached": ("real", "cached"),
        "xla_over_cached": ("cached_xla", "cached"),
    }  # fmt: skip
    return {
        name: round(figures[one]["ms_per_step"] / figures[other]["ms_per_step"] - 1, 4)
        for name, (one, other) in wanted.items()
        if one in figures and other in figures
    }


def show(model, figures):
    table = Table(title=model, title_justify="left")
    table.add_column("row")
    for column in ("ms a step", "images/s", "wait", "over bare"):
        table.add_column(column, justify="right")
    table.add_column("")
    bare = figures.get("bare", {}).get("ms_per_step")
    for name, row in figures.items():
        over = f"{row['ms_per_step'] / bare - 1:+.1%}" if bare else ""
        wait = f"{row['wait']:.1%}" if name == "real" else ""
        meaning = MEANING.get(name, "tfdet's step, the batch shared out")
        table.add_row(name, f"{row['ms_per_step']:,.1f}", f"{row['images_per_second']:,.1f}", wait, over, meaning)
    Console(stderr=True).print(table)


def _reason(error):
    lines = [line for line in error.message.splitlines() if "unsupported operations" in line] or [error.message]
    return lines[0].split("{{")[0].strip()[:200]


def run(options) -> dict:
    devices.choose_strategy(replicas=max(options.replicas))  # the CPU is split before anything uses it
    record_set = open_split(options.data or benchmark_data(options.images), "train")
    models = {}
    for preset in options.models:
        config = make_config(preset, options, record_set.class_names)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            rows = make_rows(record_set, config, options.rows, options.replicas)
            task = progress.add_task(preset, total=(options.passes + 1) * len(rows))
            advance = partial(progress.advance, task)
            for name in list(rows):  # compiles
                try:
                    rows[name](1)
                except tf.errors.OpError as error:
                    print(f"{preset}, {name}: left out, {_reason(error)}", file=sys.stderr)
                    del rows[name]
                advance()
            models[preset] = measure(rows, options, config.train.batch_size, advance)
        show(preset, models[preset])
        models[preset] |= ratios(models[preset])
        keras.backend.clear_session()
    return {
        "models": models,
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__},
        "config": {
            "batch_size": options.batch_size, "steps": options.steps, "passes": options.passes, "set": options.set,
            "images": record_set.num_images,
        },
    }  # fmt: skip


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    try:
        summary = run(options)
    except (ConfigError, DataError) as error:
        print(f"train_step: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
