"""How fast the input pipeline is, stage by stage, beside decoding alone in the same run."""

import argparse
import os
import sys
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from tfdet import quiet

quiet.import_tensorflow()

import numpy as np
import report
from baselines import BASELINES, missing
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tfdet import config as configs_module
from tfdet import configs, detectors, timing
from tfdet.config import ConfigError, DataConfig
from tfdet.data import faults, formats, pipeline, service, synthetic
from tfdet.data.convert import convert
from tfdet.data.errors import DataError
from tfdet.data.records import open_split

PAPER = configs_module.SSD_PAPER_AUGMENT
AUGMENTS = {
    "preset": None,
    "crop": replace(PAPER, expand_probability=0.0),  # every image is cropped, none made small
    "seed": configs_module.AugmentConfig(),
    "paper": PAPER,
    "yolo": configs_module.YOLO_AUGMENT,
    "none": configs_module.NO_AUGMENT,
}

SLOW = {"rykov8": 8, "keras_yolo3": 16, "naive_tf_data": 2}  # gets this many times fewer images a pass
OTHERS = (*BASELINES, "data_service")
STAGES = ("read", "parse", "plan", "resize", "batch", "batch_stage", "prefetch")  # each holds those before it
ROWS = ("pipeline", *STAGES, "decode_crop", "batch_stage_alone")

EPILOG = """
Without --data a set of photo-like 640-pixel JPEGs is drawn once and kept in benchmarks/data/.
decode_only is a parallel map of tf.io.decode_jpeg over the same records, whole images, in file order. The other rows
are the training pipeline cut off after that stage; `prefetch` is all of it, and `batch_stage_alone` is the batch stage
with a few batches that are held. core-ms is CPU time of all threads an image. The passes of all rows are taken in turn,
so that a machine whose speed drifts treats all rows alike.

--compare adds what else could feed the training, see benchmarks/baselines.py: rykov8 and keras_yolo3, the generators
of these projects as they are, one process; naive_tf_data; and, where installed, dali_cpu and pytorch_opencv with two
workers, in the SSD paper's order of steps, and tuned, in tfdet's. The slow ones get fewer images a pass. core-ms
includes worker processes.
"""


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="what tools/make_tfrecords.py wrote")
    parser.add_argument(
        "--originals", type=Path, metavar="DIR", help="decode_only reads these records, which --data was shrunk from"
    )
    parser.add_argument("--split", default="train", help="(default: %(default)s)")
    parser.add_argument("--images", type=int, default=512, metavar="N", help="images a pass (default: %(default)s)")
    parser.add_argument("--boxes", type=int, metavar="N", help="boxes an image of the drawn set (default: 1 to 8)")
    parser.add_argument("--passes", type=int, default=5, metavar="N", help="counted passes (default: %(default)s)")
    parser.add_argument("--preset", choices=configs.PRESETS, default="ssd300_vgg16", help="(default: %(default)s)")
    parser.add_argument(
        "--augment",
        choices=AUGMENTS,
        help="(default: crop for SSD, which is paper without zooming out, else the preset's)",
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="parallel calls of each stage (default: tf.data decides)"
    )
    parser.add_argument(
        "--ram-budget-mb",
        type=int,
        default=DataConfig().ram_budget_mb,
        metavar="MB",
        help="hold records in memory if they fit (default: %(default)s)",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", choices=ROWS, help="measure these rows beside decode_only, e.g. pipeline"
    )
    parser.add_argument(
        "--data-service", metavar="ADDRESS", help="measure a service (tools/data_service.py), too: grpc://host:port"
    )
    parser.add_argument(
        "--compare", nargs="*", metavar="NAME", choices=BASELINES,
        help=f"measure others, too: {', '.join(BASELINES)} (default: all that are installed)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ladder as PNG")
    options = parser.parse_args(arguments)
    if options.boxes is not None and (options.data or options.boxes < 0):
        parser.error("--boxes is not negative, and of the drawn set, not of --data")
    return options


def benchmark_data(number, boxes=None) -> Path:
    """The drawn set, made where it is missing; a set that was cut short is never taken.

    Args:
        number: of images; boxes: how many each has, anywhere; None: those that were drawn, 1 to 8.
    """
    here = Path(__file__).resolve().parent
    # an installed package keeps nothing beside itself
    data = here / "data" if (here.parent / "setup.py").exists() else Path.home() / ".cache" / "tfdet"
    folder = data / (f"photos_{number}" if boxes is None else f"photos_{number}_boxes_{boxes}")
    if not (folder / "manifest.json").exists():
        print(f"drawing {number} photo-like images into {folder} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as drawn:
            photos = synthetic.make_photos(drawn, number)
            if boxes is not None:
                synthetic.write_both(drawn, [crowd(photo, boxes) for photo in photos], synthetic.PHOTO_CLASSES)
            source = formats.read(Path(drawn) / "lines.txt", images=drawn, class_names=synthetic.PHOTO_CLASSES)
            convert({"train": source.listings}, folder, "photos", synthetic.PHOTO_CLASSES)
    return folder


def crowd(annotation, number):
    """The annotation with `number` other boxes, 5 to 20 % of the image long and high."""
    rng = np.random.default_rng(zlib.crc32(annotation.image_id.encode()))
    low = rng.uniform(0.0, 0.8, (number, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.2, (number, 2))], 1)
    labels = rng.integers(len(synthetic.PHOTO_CLASSES), size=number, dtype=np.int32)
    return replace(annotation, boxes=boxes.astype(np.float32), labels=labels, difficult=np.zeros(number, bool))


def make_config(options, class_names):
    config = configs.load(options.preset)
    data = replace(config.data, num_parallel_calls=options.threads, ram_budget_mb=options.ram_budget_mb)
    train = replace(config.train, batch_size=options.batch_size)
    options.augment = options.augment or ("crop" if config.detector.kind == "ssd" else "preset")
    augment = AUGMENTS[options.augment] or config.augment
    return replace(config, data=data, train=train, augment=augment, class_names=class_names)


def make_baselines(names, record_set, config, images) -> dict:
    """What `timing.compare` takes, by the names of the baselines; [] names all that are installed.

    Raises:
        ConfigError: one that was asked for cannot run here.
    """
    work = {}
    for name in names or BASELINES:
        absent = missing(name)
        if absent and names:
            raise ConfigError(f"{name} needs {' and '.join(absent)}: install it, or leave {name} out of --compare")
        if absent:
            print(f"{name} is left out: {' and '.join(absent)} not installed", file=sys.stderr)
            continue
        batch = config.train.batch_size
        share = max(batch, images // SLOW.get(name, 1))
        work[name] = (BASELINES[name](record_set, config, images), share, batch)
    return work


def measure_ladder(record_set, config, images, passes, only=None, baselines=None, originals=None) -> dict:
    """timing.Rate by stage, plus the whole pipeline as "pipeline", plus the baselines; decode_only is that of
    `originals`, or of the records themselves."""
    detector = detectors.build(config.detector, config.num_classes)
    rungs = pipeline.ladder(record_set, config, detector.encode)
    if originals:
        rungs["decode_only"] = pipeline.ladder(originals, config)["decode_only"]
    if only:
        wanted = {"decode_only", *only} | ({"prefetch"} if "pipeline" in only else set())
        rungs = {name: rung for name, rung in rungs.items() if name in wanted}
    work = {name: (data, images, count) for name, (data, count) in rungs.items()} | (baselines or {})
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=len(work) * (passes + 1))
        rates = timing.compare(work, passes, progress=lambda: bar.advance(task))
    if "prefetch" in rates:
        rates["pipeline"] = rates["prefetch"]
    return rates


def bottleneck(rates) -> str:
    """One sentence: the stage that adds most CPU time to the one before it."""
    names = [name for name in STAGES if name in rates]
    costs = {name: rates[name].median_core_ms for name in names}
    added = {after: costs[after] - costs[before] for before, after in zip([None, *names], names) if before}
    added["read"] = costs.get("read", 0.0)
    most = max(added, key=added.get)
    total = costs[names[-1]]
    text = f"most of the time goes into {most}: {added[most]:.2f} of {total:.2f} core-ms an image"
    if "decode_crop" in rates and most == "resize":
        crop = rates["decode_crop"].median_core_ms - costs["plan"]
        text = f"most of the time goes into decoding the crop ({crop:.2f}) and resizing it ({added[most] - crop:.2f})"
        text += f", of {total:.2f} core-ms an image"
    return text


def show(rates):
    table = Table(title="input pipeline, cut off after each stage; baselines below")
    for heading in ("stage", "images/s", "min", "max", "core-ms / image", "of decode_only"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    base = rates["decode_only"].median
    for name, rate in rates.items():
        low, high = min(rate.images_per_second), max(rate.images_per_second)
        table.add_row(
            name, f"{rate.median:,.0f}", f"{low:,.0f}", f"{high:,.0f}", f"{rate.median_core_ms:.2f}",
            f"{rate.median / base:.2f}",
        )  # fmt: skip
    Console(stderr=True, width=100).print(table)


def plot(rates, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in rates if name != "pipeline"]
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    colours = ["tab:orange" if name in OTHERS else "0.6" if name == "decode_only" else "tab:blue" for name in names]
    bars = axes.barh(names, [rates[name].median for name in names], color=colours)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("images per second")
    axes.set_title("Training input, cut off after each stage (decode_only: the JPEG decoder alone)")
    figure.savefig(path, dpi=110)


def summarise(rates, options, record_set, config) -> dict:
    share = rates["pipeline"].median / rates["decode_only"].median if "pipeline" in rates else None
    return {
        "images_per_second": round(rates["pipeline"].median, 1) if "pipeline" in rates else None,
        **{name: rate.to_dict() for name, rate in rates.items() if name not in OTHERS},
        "share_of_decode_only": share and round(share, 3),
        "baselines": {
            name: {**rate.to_dict(), "tfdet_is_faster_by": round(rates["pipeline"].median / rate.median, 2)}
            for name, rate in rates.items() if name in OTHERS
        },
        "peak_rss_mb": round(timing.peak_rss_mb()),
        "config": {
            "images": options.images, "passes": options.passes, "preset": options.preset, "augment": options.augment,
            "batch_size": options.batch_size, "threads": options.threads, "ram_budget_mb": options.ram_budget_mb,
            "image_size": config.detector.image_size, "record_images": record_set.num_images,
            "bytes_per_record": round(float(record_set.index[:, 2].mean())), "store": record_set.store,
            "max_boxes": record_set.max_boxes,
        },
    }  # fmt: skip


@quiet.program(ConfigError, DataError, OSError)
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    record_set = open_split(options.data or benchmark_data(options.images, options.boxes), options.split)
    config = make_config(options, record_set.class_names)
    baselines = {}
    if options.compare is not None:
        baselines = make_baselines(options.compare, record_set, config, options.images)
    if options.data_service:
        encode = detectors.build(config.detector, config.num_classes).encode
        data = service.served_dataset(record_set, config, encode, options.data_service, endless=True)
        baselines["data_service"] = (data, options.images, options.batch_size)
    only = options.only and [*options.only, "pipeline"] if baselines else options.only
    originals = options.originals and open_split(options.originals, options.split)
    with faults.named(record_set):
        rates = measure_ladder(record_set, config, options.images, options.passes, only, baselines, originals)
    show(rates)
    summary = summarise(rates, options, record_set, config)
    if not options.only:
        print(bottleneck(rates), file=sys.stderr)
    print(f"peak memory of the process: {summary['peak_rss_mb']:,} MB", file=sys.stderr)
    if options.plot:
        plot(rates, options.plot)
    report.publish(summary, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
