"""How long training takes to go on where it stopped, whatever the size of the data set and the step."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from tfdet import quiet

quiet.import_tensorflow()

import numpy as np
import report
from input_pipeline import benchmark_data
from rich.console import Console
from rich.table import Table

from tfdet import configs, detectors
from tfdet.config import ConfigError
from tfdet.data import pipeline
from tfdet.data.errors import DataError
from tfdet.data.manifest import MANIFEST, read_manifest
from tfdet.data.records import open_split

EPILOG = """
examples:
  python benchmarks/restart.py --json benchmarks/results/restart.json

`start` and `resume` are one process of tools/train.py each, from its start to its end: imports, opening the data,
building the model, reading the checkpoint, one step with its compilation, writing the next checkpoint. `first batch` is
the input pipeline alone, in this process, from a step on that no checkpoint was waited for. The large set is the small
one, its one shard linked as often as needed. The last line on standard output is one JSON object.
"""
LATE_STEP = 10_000_000


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=118_000, metavar="N", help="at least (default: %(default)s)")
    parser.add_argument("--preset", default="ssd300_mobilenetv2", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser.parse_args(arguments)


def multiply(directory, out, images) -> int:
    """A data set of at least `images` records made of the one shard of another; how many it has."""
    manifest = read_manifest(directory)
    entry = manifest["splits"]["train"]
    shard, index = entry["shards"][0], np.load(directory / entry["index"])
    count = -(-images // len(index))
    names = [f"photos-train.tfrecord-{k:05d}-of-{count:05d}" for k in range(count)]
    for name in names:
        (out / name).symlink_to(directory / shard["file"])
    np.save(out / entry["index"], np.concatenate([np.insert(index[:, 1:], 0, k, 1) for k in range(count)]))
    entry["shards"] = [{**shard, "file": name} for name in names]
    entry |= {"num_images": count * len(index), "num_boxes": count * entry["num_boxes"]}
    (out / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return entry["num_images"]


def train_twice(data, preset) -> dict:
    """Seconds of a process that trains one step, and of one that goes on with the next."""
    with tempfile.TemporaryDirectory() as run:
        command = [sys.executable, ROOT / "tools/train.py", "--data", data, "--run", Path(run) / "run", "--gpus", 0,
                   "--preset", preset, "--batch-size", 8, "--steps-per-epoch", 1, "--eval-every", 0]  # fmt: skip
        seconds = {}
        for name, options in {"start": ["--epochs", 1], "resume": ["--epochs", 2, "--resume"]}.items():
            start = time.perf_counter()
            subprocess.run([str(word) for word in command + options], check=True, capture_output=True)
            seconds[name] = round(time.perf_counter() - start, 2)
        return seconds


def first_batches(data, preset) -> dict:
    """Seconds from nothing to the first batch at the first step and at a late one."""
    seconds = {}
    for step in (0, LATE_STEP):
        start = time.perf_counter()
        records = open_split(data, "train")
        config = replace(configs.load(preset), class_names=records.class_names)
        encode = detectors.build(config.detector, config.num_classes).encode
        next(iter(pipeline.train_dataset(records, config, encode, start_step=step)))
        seconds[f"first batch, step {step:,}"] = round(time.perf_counter() - start, 2)
    return seconds


def show(results):
    names = list(next(iter(results.values()))["seconds"])
    table = Table(title="seconds")
    for heading in ("images", *names):
        table.add_column(heading, justify="right")
    for result in results.values():
        table.add_row(f"{result['images']:,}", *(f"{result['seconds'][name]:.2f}" for name in names))
    Console(file=sys.stderr, width=110).print(table)


@quiet.program(ConfigError, DataError, OSError)
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    small, results = benchmark_data(256), {}
    with tempfile.TemporaryDirectory() as folder:
        number = multiply(small, Path(folder), options.images)
        first_batches(small, options.preset)  # what a process pays once
        for name, data, images in (("small", small, 256), ("large", Path(folder), number)):
            seconds = train_twice(data, options.preset) | first_batches(data, options.preset)
            results[name] = {"images": images, "seconds": seconds}
    show(results)
    results["preset"] = options.preset
    report.publish(results, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
