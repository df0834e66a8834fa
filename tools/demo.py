"""The whole way on drawn photos: annotations, records, pipeline speed, training, mAP, pictures. Takes minutes on a CPU.

Runs the other tools one after another and shows each command, so that it can be repeated on other data.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tfdet import configs, quiet
from tfdet.data import synthetic

ROOT = Path(__file__).resolve().parents[1]
MARK = ".tfdet-demo"  # in a folder that the demo made and may empty again
NUM_PICTURES = 24

EPILOG = """
The last line on standard output is one JSON object: images_per_second and share_of_decode_only of the input
pipeline, map50 on images that training never saw, the folder of pictures, and how many seconds it all took.
"""


class DemoError(Exception):
    """The demo cannot go on; the text says why and what to do."""


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR",
                        help="for everything; what an earlier demo left there goes (default: %(default)s)")  # fmt: skip
    parser.add_argument("--images", type=int, default=600, metavar="N", help="to draw (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=3.5, metavar="M",
                        help="longest time to train; about 2 are needed (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.images < 10 or options.minutes <= 0:
        parser.error("--images is at least 10 and --minutes positive")
    return options


def prepare(out):
    """An empty folder; what an earlier demo left there goes, anything else stays untouched.

    Raises:
        DemoError: the folder holds something else.
    """
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise DemoError(f"{out} is not empty and not of an earlier demo; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def run(tool, *arguments) -> dict:
    """Runs one of the tools, shows its output as it comes, and returns the JSON object of its last line.

    Raises:
        DemoError: the tool failed.
    """
    command = [sys.executable, str(ROOT / tool), *map(str, arguments)]
    print(f"\n$ python {tool} {shlex.join(map(str, arguments))}", flush=True)
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    if process.returncode:
        raise DemoError(f"{tool} ended with exit code {process.returncode}; what it said stands above")
    return json.loads(last)


def convert(data, out):
    """Both seed formats to records; returns the folder of the pickle's, whose last fifth is held out."""
    classes = ("--classes", data / synthetic.CLASSES)
    tool = "tools/make_tfrecords.py"
    run(tool, data / synthetic.LINES, *classes, "--out", out / "records-lines")
    run(tool, data / synthetic.PICKLE, "--images", data / synthetic.IMAGES, *classes, "--out", out / "records")
    return out / "records"


def copy_held_out(annotations, folder):
    """Some of the validation images, the last fifth of the sorted names, to `folder`."""
    names = sorted(item.image_id for item in annotations)
    by_name = {item.image_id: item.image_path for item in annotations}
    folder.mkdir()
    for name in names[round(0.8 * len(names)) :][:NUM_PICTURES]:
        shutil.copy(by_name[name], folder)
    return folder


def demo(options) -> dict:
    start = time.perf_counter()
    out = options.out
    prepare(out)
    print(f"drawing {options.images} images into {out / 'data'}", flush=True)
    annotations = synthetic.make_shapes(out / "data", options.images, options.seed)
    records = convert(out / "data", out)
    speed = run(
        "benchmarks/input_pipeline.py", "--data", records, "--preset", "demo", "--images", options.images,
        "--only", "pipeline", "--passes", 3,
    )  # fmt: skip
    trained = out / "run"
    training = run(
        "tools/train.py", "--data", records, "--preset", "demo", "--run", trained,
        "--max-minutes", options.minutes, "--eval-every", 0,
    )  # fmt: skip
    quality = run("tools/evaluate.py", "--run", trained, "--data", records)
    pictures = out / "pictures"
    held_out = copy_held_out(annotations, out / "held-out")
    run("tools/predict.py", held_out, "--run", trained, "--out", pictures, "--min-score", 0.4)
    print(f"\nlook at the boxes it found: {pictures}")
    planned = configs.load("demo").train.epochs
    if training["epochs"] < planned:
        print(f"only {training['epochs']} of {planned} epochs fitted: better boxes take longer, see --minutes")
    return {
        "images_per_second": speed["images_per_second"],
        "share_of_decode_only": speed["share_of_decode_only"],
        "map50": quality["map50"],
        "pictures": str(pictures),
        "seconds": round(time.perf_counter() - start, 1),
    }


@quiet.program(DemoError, OSError)
def main(arguments=None) -> int:
    print(json.dumps(demo(parse_arguments(arguments))))
    return 0


if __name__ == "__main__":
    sys.exit(quiet.until_unread(main))
