"""Finds objects in image files: pictures with the boxes drawn, and a JSON file of the detections."""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from tfdet import quiet

quiet.import_tensorflow()

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tfdet import predict
from tfdet.config import ConfigError
from tfdet.data.errors import DataError
from tfdet.models.weights import WeightsError

EPILOG = """
examples:
  python tools/predict.py photos/ --run runs/mine --out predictions
  python tools/predict.py a.jpg b.png "holiday/*.jpg" --run runs/mine --out predictions --min-score 0.4

The output folder gets one JPEG for each image and detections.json: for every image its file, height and width, and
for every detection class, score and box (x_min, y_min, x_max, y_max) in pixels of the image as it is displayed.
A file that cannot be read is reported and left out. The last line on standard output is one JSON object.
"""


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image files, folders, or patterns in quotes")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="what tools/train.py wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for pictures and JSON")
    parser.add_argument(
        "--min-score", type=float, default=0.6, metavar="S", help="show what scores higher (default: %(default)s)"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="default: best.h5 of the run, else weights.h5")
    parser.add_argument("--no-pictures", action="store_true", help="write detections.json only")
    return parser.parse_args(arguments)


def predict_all(options) -> dict:
    """The whole job; returns what the last line of output says."""
    if not 0 <= options.min_score < 1:
        raise ConfigError(f"--min-score is {options.min_score}; it lies in [0, 1)")
    files = predict.find_images(options.inputs)
    predictor = predict.load(options.run, options.weights)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.no_pictures:
        keep_originals(files, options.out)
    found, skipped, names = [], [], set()
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(files))
        for prediction in predictor.stream(files, options.min_score, skipped.append):
            entry = prediction.to_dict()
            if not options.no_pictures:
                entry["picture"] = picture_name(prediction.path, names)
                predictor.draw(prediction).save(options.out / entry["picture"], quality=92)
            found.append(entry)
            bar.advance(task)
    for error in skipped:
        print(f"predict: skipped {error}", file=sys.stderr)
    result = {"classes": list(predictor.class_names), "min_score": options.min_score, "images": found}
    result["skipped"] = [{"file": error.where, "reason": error.reason} for error in skipped]
    (options.out / "detections.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    count = sum(len(entry["detections"]) for entry in found)
    return {"images": len(found), "detections": count, "skipped": len(skipped), "out": str(options.out)}


def keep_originals(files, out):
    """Raises ConfigError where a picture could take the place of an input."""
    inside = [path for path in files if Path(path).resolve().parent == out.resolve()]
    if inside:
        raise ConfigError(f"--out {out} holds {inside[0]}, which is an input; choose another folder for the pictures")


def picture_name(path, taken) -> str:
    """The file's own name as a JPEG; a second file of that name gets a number."""
    stem, number = Path(path).stem, 1
    name = f"{stem}.jpg"
    while name in taken:
        number += 1
        name = f"{stem}-{number}.jpg"
    taken.add(name)
    return name


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    try:
        summary = predict_all(options)
    except (ConfigError, DataError, WeightsError, OSError) as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("predict: interrupted", file=sys.stderr)
        return 130
    print(f"{summary['detections']} detections in {summary['images']} images: {summary['out']}")
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
