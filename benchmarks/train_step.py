"""How long a training step takes, with real data and a cached batch, beside Keras' fit and a bare update."""

import argparse
import os
import statistics
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from tfdet import quiet

quiet.import_tensorflow()

import report
import tensorflow as tf
from input_pipeline import benchmark_data
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from train_step_rows import MEANING, make_rows

from tfdet import configs
from tfdet.compat import keras
from tfdet.config import ConfigError, override
from tfdet.data.errors import DataError
from tfdet.data.records import open_split
from tfdet.train import devices

MODELS = ("ssd300_vgg16", "ssd300_mobilenetv2", "yolov3_tiny")
EPILOG = """
examples:
  python benchmarks/train_step.py --json benchmarks/results/train_step.json
  python benchmarks/train_step.py --models yolov3_tiny --replicas 1 2 --steps 4 --passes 1

Rows are measured in turn, A B C A B C ..., after a step each that compiles; figures are medians over the steps. `wait`
is the share of the time spent waiting for the next batch, once those that were prefetched are used up, `over bare` what
a row takes longer than the bare update. Rows "replicas N" share the same global batch over N logical CPU devices. The
last line on standard output is one JSON object.
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
    group.add_argument("--steps", type=int, default=10, metavar="N",
                       help="timed steps of a row in a pass, at most (default: %(default)s)")  # fmt: skip
    group.add_argument("--seconds", type=float, default=10.0, metavar="S",
                       help="time of a row in a pass; one step at least (default: %(default)s)")  # fmt: skip
    group.add_argument("--passes", type=int, default=3, metavar="N", help="(default: %(default)s)")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser.parse_args(arguments)


def make_config(preset, options, class_names):
    config = configs.load(preset)
    config = replace(config, class_names=class_names, train=replace(config.train, batch_size=options.batch_size))
    for assignment in options.set:
        config = override(config, assignment)
    return config


# --- measuring and telling ----------------------------------------------------------------------


def measure(rows, options, batch_size, progress) -> dict:
    """name -> {ms_per_step, ms_min, ms_max, images_per_second, wait, steps}: medians over the steps of all passes."""
    times, waits = {name: [] for name in rows}, {name: [] for name in rows}
    for _ in range(options.passes):
        for name, run in rows.items():
            seconds, waited = run(options.steps, options.seconds)
            times[name] += seconds
            waits[name] += waited
            progress()
    return {
        name: {
            "ms_per_step": round(1e3 * statistics.median(values), 2),
            "ms_min": round(1e3 * min(values), 2),
            "ms_max": round(1e3 * max(values), 2),
            "images_per_second": round(batch_size / statistics.median(values), 2),
            "wait": round(sum(waits[name]) / sum(values), 4),
            "steps": len(values),
        }
        for name, values in times.items()
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
                    rows[name](1, 0)
                except tf.errors.OpError as error:
                    print(f"{preset}, {name}: left out, {_reason(error)}", file=sys.stderr)
                    del rows[name]
                advance()
            models[preset] = measure(rows, options, config.train.batch_size, advance)
        show(preset, models[preset])
        models[preset] |= ratios(models[preset])
        rows.clear()  # or two models of each row would be held at once
        keras.backend.clear_session()
    return {
        "models": models,
        "config": {
            "batch_size": options.batch_size, "steps": options.steps, "seconds": options.seconds,
            "passes": options.passes, "set": options.set, "images": record_set.num_images,
        },
    }  # fmt: skip


@quiet.program(ConfigError, DataError, OSError)
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    report.publish(run(options), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
