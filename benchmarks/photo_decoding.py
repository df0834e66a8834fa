"""How close the drawn photos of these benchmarks are to real ones for a JPEG decoder."""

import argparse
import io
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from tfdet import quiet

quiet.import_tensorflow()

import numpy as np
import report
import tensorflow as tf
from input_pipeline import benchmark_data
from PIL import Image

from tfdet.data import inputs, records
from tfdet.data.errors import DataError

SIDE, QUALITY = 640, 90  # of the drawn ones

EPILOG = """
The real photos are those of --real that are 640 pixels long or longer, shrunk to that and encoded as the drawn ones
are. Whole images are decoded by tf.io.decode_jpeg, one after the other, the two sets in turn; core-ms is CPU time of
all threads. The last line on standard output is one JSON object.
"""


def shrunk(path) -> bytes | None:
    """The photo as a JPEG of the drawn ones' size, or None where it is smaller."""
    with Image.open(path) as image:
        if max(image.size) < SIDE:
            return None
        size = [round(side * SIDE / max(image.size)) for side in image.size]
        file = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def drawn(number) -> list[bytes]:
    """The first JPEGs of the benchmark set."""
    paths = list(records.open_split(benchmark_data(512), "train").shard_paths)
    data = tf.data.TFRecordDataset(paths).take(number)
    return [bytes(records.parse(record)["image/encoded"].numpy()) for record in data]


def measure(photos, passes) -> dict:
    """Name -> a list of JPEGs in, name -> figures out; core-ms are medians over the passes of the mean image."""
    core_ms = {name: [] for name in photos}
    for number in range(passes + 1):
        for name, files in photos.items():
            start = time.process_time()
            for file in files:
                tf.io.decode_jpeg(file, channels=3)
            if number:  # the first pass warms up
                core_ms[name].append(1e3 * (time.process_time() - start) / len(files))
    return {name: figures(photos[name], np.median(core_ms[name])) for name in photos}


def figures(files, core_ms) -> dict:
    megapixels = np.mean([np.prod(Image.open(io.BytesIO(file)).size) / 1e6 for file in files])
    kilobytes = np.mean([len(file) / 1e3 for file in files])
    return {
        "images": len(files),
        "megapixels": round(float(megapixels), 3),
        "kilobytes": round(float(kilobytes), 1),
        "core_ms": round(float(core_ms), 3),
        "core_ms_per_megapixel": round(float(core_ms / megapixels), 3),
        "core_ms_per_100_kilobytes": round(float(100 * core_ms / kilobytes), 3),
    }


@quiet.program(DataError, OSError)
def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path, required=True, metavar="DIR", help="a folder of photos")
    parser.add_argument("--passes", type=int, default=9, metavar="N", help="counted passes (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args(arguments)
    real = [file for photo in inputs.find_images([options.real]) if (file := shrunk(photo.path))]
    if not real:
        raise DataError(options.real, f"no photo is {SIDE} pixels long", "choose another folder")
    summary = measure({"drawn": drawn(len(real)), "real": real}, options.passes)
    for name, row in summary.items():
        print(name, *(f"{key} {value}" for key, value in row.items()))
    for unit in ("", "_per_megapixel", "_per_100_kilobytes"):
        ratio = summary["drawn"][f"core_ms{unit}"] / summary["real"][f"core_ms{unit}"]
        summary[f"drawn_to_real{unit}"] = round(ratio, 3)
    report.publish(summary, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
