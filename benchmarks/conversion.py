"""How fast image files become records, and how much memory that takes, beside decoding alone in the same run."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import numpy as np
import report
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tfdet import quiet, timing
from tfdet.data import formats, synthetic
from tfdet.data.convert import convert
from tfdet.data.errors import DataError
from tfdet.data.images import ImageOptions

EPILOG = """
decode_only is a parallel map of tf.io.decode_jpeg over the same image files, whole images. The other rows are whole
conversions, from the start of the worker processes to the manifest: checked reads every image to its end, unchecked
(--no-decode-check) copies what has a JPEG's header and end. The passes of all rows are taken in turn, so that a machine
whose speed drifts treats all rows alike. Then many small images are converted in a process of their own, whose memory
is watched, that of its workers included.
"""
ROWS = {"checked": ImageOptions(), "unchecked": ImageOptions(decode_check=False)}


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=16384, metavar="N", help="images a pass (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=128, metavar="N",
                        help="different ones among them, drawn once (default: %(default)s)")  # fmt: skip
    parser.add_argument("--passes", type=int, default=3, metavar="N", help="counted passes (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="(default: %(default)s)")
    parser.add_argument("--memory-images", type=int, default=20_000, metavar="N",
                        help="small images, to watch the memory; 0: none (default: %(default)s)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser.parse_args(arguments)


# --- data ---------------------------------------------------------------------------------------


def photo_files(number) -> Path:
    """Drawn photos as files, made where they are missing."""
    folder = Path(__file__).parent / "data" / f"photo_files_{number}"
    if not (folder / "lines.txt").exists():
        print(f"drawing {number} photo-like images into {folder} ...", file=sys.stderr, flush=True)
        synthetic.make_photos(folder, number)
    return folder


def link_files(source, folder, number) -> Path:
    """As many names for the images of a folder of lines, and the lines that go with them."""
    (folder / "images").mkdir(parents=True)
    lines = (source / "lines.txt").read_text(encoding="utf-8").splitlines()
    with open(folder / "lines.txt", "w", encoding="utf-8") as file:
        for i in range(number):
            image, _, boxes = lines[i % len(lines)].partition(" ")
            name = f"images/{i:06d}.jpg"
            _link(source / image, folder / name)
            file.write(f"{name} {boxes}\n")
    return folder / "lines.txt"


def _link(source, target):
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copyfile(source, target)


def draw_small_images(folder):
    """Sixteen JPEGs of about 2 kB with a box each, as lines."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(16):
        pixels = np.repeat(np.repeat(rng.integers(0, 256, (8, 10, 3), np.uint8), 8, axis=0), 8, axis=1)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    lines = [f"{i}.jpg 4,4,40,40,0" for i in range(16)]
    (folder / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


# --- speed --------------------------------------------------------------------------------------


def decode_only(paths):
    """An endless tf.data.Dataset of decoded images."""
    import tensorflow as tf

    files = tf.data.Dataset.from_tensor_slices(list(paths)).repeat()
    return files.map(lambda path: tf.io.decode_jpeg(tf.io.read_file(path), channels=3), tf.data.AUTOTUNE)


def conversions(listings, options, workers, folder):
    """Converts as often as it is asked."""
    while True:
        convert({"train": listings}, folder, "photos", synthetic.PHOTO_CLASSES, options=options, workers=workers)
        shutil.rmtree(folder)
        yield


def measure(source, options, folder) -> dict:
    """timing.Rate by row."""
    lines = link_files(source, folder, options.images)
    listings = formats.read(lines, class_names=synthetic.PHOTO_CLASSES).listings
    work = {"decode_only": (decode_only(item.image_path for item in listings), options.images, 1)}
    for name, image_options in ROWS.items():
        rows = conversions(listings, image_options, options.workers, folder / name)
        work[name] = (rows, options.images, options.images)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=len(work) * (options.passes + 1))
        return timing.compare(work, options.passes, progress=lambda: bar.advance(task))


# --- memory -------------------------------------------------------------------------------------


def peak_memory_mb(folder, number, workers) -> float:
    """The largest sum of the memory of all processes of a conversion; pages they share count in each."""
    lines = link_files(draw_small_images(folder / "drawn"), folder / "many", number)
    (folder / "classes.txt").write_text("square\n", encoding="utf-8")
    command = [sys.executable, ROOT / "tools" / "make_tfrecords.py", lines, "--classes", folder / "classes.txt"]
    command += ["--out", folder / "out", "--workers", str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(map(_rss_mb, [process.pid, *_descendants(process.pid)])))
        time.sleep(0.02)
    if process.returncode:
        raise DataError(lines, "the conversion failed", "run it alone")
    return peak


def _descendants(pid):
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _read(task).split():
            yield int(child)
            yield from _descendants(int(child))


def _rss_mb(pid) -> float:
    found = [line.split()[1] for line in _read(Path(f"/proc/{pid}/status")).splitlines() if line.startswith("VmRSS")]
    return int(found[0]) / 1024 if found else 0.0


def _read(path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # a process that has just ended
        return ""


# --- output -------------------------------------------------------------------------------------


def show(rates):
    table = Table(title="image files to records")
    for heading in ("row", "images/s", "min", "max", "core-ms / image", "of decode_only"):
        table.add_column(heading, justify="left" if heading == "row" else "right")
    base = rates["decode_only"].median
    for name, rate in rates.items():
        low, high = min(rate.images_per_second), max(rate.images_per_second)
        table.add_row(
            name, f"{rate.median:,.0f}", f"{low:,.0f}", f"{high:,.0f}", f"{rate.median_core_ms:.2f}",
            f"{rate.median / base:.2f}",
        )  # fmt: skip
    Console(stderr=True, width=100).print(table)


def summarise(rates, peak, options) -> dict:
    base = rates["decode_only"].median
    return {
        **{name: rate.to_dict() for name, rate in rates.items()},
        "of_decode_only": {name: round(rates[name].median / base, 3) for name in ROWS},
        "memory": {"images": options.memory_images, "peak_mb_of_all_processes": peak and round(peak)},
        "config": {key: getattr(options, key) for key in ("images", "photos", "passes", "workers")},
    }


@quiet.program(DataError, OSError)
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    peak, data = None, Path(__file__).parent / "data"
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data) as folder:  # beside the photos, so that links can be made
        rates = measure(photo_files(options.photos), options, Path(folder) / "speed")
        if options.memory_images:
            peak = peak_memory_mb(Path(folder), options.memory_images, options.workers)
    show(rates)
    if peak:
        print(f"peak memory of all processes, {options.memory_images:,} images: {peak:,.0f} MB", file=sys.stderr)
    summary = summarise(rates, peak, options)
    report.publish(summary, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
