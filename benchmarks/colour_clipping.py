"""What clipping once changes: rykov8/ssd_keras clips to [0, 255] after every change of colour, tfdet after the last."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from tfdet import quiet

quiet.import_tensorflow()

import numpy as np
import report
import tensorflow as tf
from PIL import Image

from tfdet.config import AugmentConfig
from tfdet.data import augment, image_ops, inputs
from tfdet.data.errors import DataError

SIDE = 300
CONFIG = AugmentConfig()  # rykov8's knobs
ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))  # saturation, brightness, contrast

EPILOG = """
Every photo is stretched to 300 x 300 and changed once, with the same draws in each row: tfdet (uint8, statistics of a
thumbnail) and the steps one by one in NumPy without clipping between them, both beside the steps with clipping after
each; and these in another drawn order. A value is one colour of one pixel. The last line on standard output is one
JSON object.
"""


def by_steps(image, u, normals, order, clipped):
    """float64 [H, W, 3] -> the same after saturation, brightness and contrast in `order`, then lighting."""
    clip = (lambda pixels: np.clip(pixels, 0, 255)) if clipped else (lambda pixels: pixels)
    amounts = np.array([CONFIG.saturation, CONFIG.brightness, CONFIG.contrast])
    saturation, brightness, contrast = 1 + amounts * (2 * np.float64(u[:3]) - 1)
    for step in order:
        luma = image @ np.array(image_ops.LUMA)
        pulled = (saturation, luma[..., None]), (brightness, 0.0), (contrast, luma.mean())
        factor, towards = pulled[step]
        image = clip(factor * image + (1 - factor) * towards if step != 1 else factor * image)
    values, vectors = np.linalg.eigh(np.cov(image.reshape(-1, 3) / 255, rowvar=False))
    noise = vectors @ (values * (vectors.T @ normals)) * CONFIG.lighting
    return np.clip(image + 255 * noise, 0, 255)


def by_tfdet(image, u, normals):
    images = tf.constant(image[None])
    matrix = augment.colour_matrix(u[None], normals[None], *image_ops.colour_statistics(images), CONFIG)
    draws = {"matrix": image_ops.colour_coefficients(*matrix, SIDE), "flat": image_ops.flatten(images)}
    return tf.reshape(augment.change_colour(images, draws), image.shape).numpy().astype(np.float64)


def compare(paths, seed=0) -> dict:
    """Name -> figures over all photos."""
    differences = {"tfdet": [], "one_clip": [], "another_order": []}
    for number, path in enumerate(paths):
        rng = np.random.default_rng((seed, number))
        u, normals = rng.uniform(size=7).astype(np.float32), rng.normal(size=3).astype(np.float32)
        with Image.open(path) as photo:
            image = np.asarray(photo.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        first = int(u[3] * len(ORDERS))
        order, other = ORDERS[first], ORDERS[(first + 1 + rng.integers(5)) % 6]
        reference = by_steps(image.astype(np.float64), u, normals, order, True)
        differences["tfdet"].append(by_tfdet(image, u, normals) - reference)
        for name, row in (("one_clip", (order, False)), ("another_order", (other, True))):
            differences[name].append(by_steps(image.astype(np.float64), u, normals, *row) - reference)
    return {name: figures(np.abs(rows)) for name, rows in differences.items()}


def figures(difference) -> dict:
    """Of float64 [N, H, W, 3] of absolute differences."""
    return {
        "mean": round(float(difference.mean()), 2),
        "share_over_1": round(float((difference > 1).mean()), 3),
        "share_over_8": round(float((difference > 8).mean()), 3),
        "images_over_1_on_average": round(float((difference.mean((1, 2, 3)) > 1).mean()), 3),
    }


@quiet.program(DataError, OSError)
def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="a folder of photos")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args(arguments)
    paths = [photo.path for photo in inputs.find_images([options.photos])]
    summary = {"photos": len(paths), **compare(paths)}
    for name, row in summary.items():
        print(name, row)
    report.publish(summary, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
