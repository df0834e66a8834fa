"""Writes docs/performance.md from benchmarks/results/*.json: one function makes the table of each kind of file.

python docs/performance.py
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
HEAD = """# Performance

<!-- written by docs/performance.py from benchmarks/results; do not edit -->

Every figure comes from a file in `benchmarks/results`, which holds the machine, the versions and the settings, too.
Baselines ran in the same process in turn with tfdet, on the same input. The machines did other work at times: compare
within a row, not between rows. What each script measures stands in `benchmarks/README.md`.
"""


def _cell(value) -> str:
    """Numbers with as many digits as mean something."""
    if not isinstance(value, float) and not isinstance(value, int):
        return str(value)
    if value != value:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(head, rows) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _where(result) -> str:
    """The machine and the versions, as far as the file tells them."""
    machine, versions = result.get("machine", {}), result.get("versions", {})
    parts = [f"{machine['cores']} cores"] if "cores" in machine else []
    parts += [str(machine[key]) for key in ("gpu", "gpus", "note") if machine.get(key)]
    parts += [
        f"{name} {versions[key]}"
        for key, name in (("tensorflow", "TensorFlow"), ("python", "Python"))
        if key in versions
    ]
    return ", ".join(parts)


# --- one function a kind of file: {file name: content} -> Markdown ------------------------------

_PIPELINES = {  # in this order
    "input_pipeline_ssd300": "SSD300, originals, every image cropped",
    "input_pipeline_offsets": "the same, read at offsets, nothing held in memory",
    "input_pipeline_100_boxes": "SSD300, originals, 100 boxes an image",
    "input_pipeline_paper": "with the SSD paper's zooming out",
    "input_pipeline_max_side_512": "records shrunk by `--max-side 512`, beside the originals",
    "input_pipeline_raw": "records of `--store raw`, held in memory, beside the originals",
    "input_pipeline_yolov3_416": "YOLOv3-416 with its augmentation",
    "input_pipeline_12_megapixels": "photos of 12 megapixels",
}


_OTHERS = {
    "rykov8": "generator of rykov8/ssd_keras, one process",
    "keras_yolo3": "generator of keras-yolo3, one process",
    "naive_tf_data": "naive tf.data",
    "pytorch_opencv": "PyTorch DataLoader and OpenCV, 2 workers, the SSD paper's order of steps",
    "pytorch_opencv_tuned": "PyTorch DataLoader and OpenCV, 2 workers, tuned to tfdet's order of steps",
    "dali_cpu": "DALI on the CPU",
}


def pipelines(files) -> str:
    """The whole input pipeline beside decoding alone."""
    names = [*(name for name in _PIPELINES if name in files), *(name for name in files if name not in _PIPELINES)]
    rows = [
        (
            _PIPELINES.get(name, name.removeprefix("input_pipeline_").replace("_", " ")),
            *(files[name][row]["images_per_second"] for row in ("decode_only", "pipeline")),
            files[name]["share_of_decode_only"],
            f"`{name}.json`",
        )
        for name in names
    ]
    text = (
        "Images a second, from records to encoded targets. Photo-like JPEGs of 640 pixels, 85 kB, where nothing else "
    )
    text += "is said.\n\n"
    return text + _table(("what", "decoding alone", "pipeline", "share", "file"), rows)


def stages(result) -> str:
    """The ladder of one input pipeline."""
    rows = [
        (name, row["images_per_second"], row["core_ms"])
        for name, row in result.items()
        if isinstance(row, dict) and "core_ms" in row and name != "pipeline"
    ]
    text = "The same pipeline, cut off after each stage; CPU time is that of all threads, for an image.\n\n"
    return text + _table(("up to", "images/s", "CPU ms"), rows)


def others(result) -> str:
    """Other pipelines on the same photos and the same work."""
    rows = [("tfdet", result["pipeline"]["images_per_second"], 1)]
    rows += [
        (_OTHERS.get(name, name), row["images_per_second"], row["tfdet_is_faster_by"])
        for name, row in sorted(result["baselines"].items(), key=lambda item: -item[1]["images_per_second"])
    ]
    text = "Other pipelines on the same photos, doing the same work with zooming out, in one run.\n\n"
    return text + _table(("pipeline", "images/s", "tfdet is faster by"), rows)


def postprocess(result) -> str:
    """NMS and target encoding."""
    rows = [
        (case.replace("_", " "), one["milliseconds"]["tfdet"], name, one["milliseconds"].get(name, ""), ratio)
        for case, one in result.items()
        if isinstance(one, dict) and "milliseconds" in one
        for name, ratio in one["ratio"].items()
    ]
    text = "Milliseconds for a batch of 32 images; the ratio is tfdet's time divided by the other's.\n\n"
    return text + _table(("case", "tfdet", "beside", "its time", "ratio"), rows)


def train_step(result) -> str:
    """The training step beside Keras' fit and a bare update."""
    rows = [
        (model, name.replace("_", " "), row["ms_per_step"], row["images_per_second"], row.get("wait", ""))
        for model, figures in result["models"].items()
        for name, row in figures.items()
        if isinstance(row, dict)
    ]
    text = (
        "`wait` is the share of the time spent waiting for the next batch; it means something for real data only.\n\n"
    )
    return text + _table(("model", "row", "ms a step", "images/s", "wait"), rows)


def conversion(result) -> str:
    """Image files to records."""
    shares = result["of_decode_only"]
    rows = [
        (name.replace("_", " "), row["images_per_second"], shares.get(name, ""))
        for name, row in result.items()
        if isinstance(row, dict) and "images_per_second" in row
    ]
    memory = result.get("memory") or {}
    text = _table(("what", "images/s", "of decoding alone"), rows)
    if memory.get("peak_mb_of_all_processes"):
        text += (
            f"\n{memory['images']:,} small images took at most {memory['peak_mb_of_all_processes']:,} MB of memory, "
        )
        text += "workers included.\n"
    return text


def evaluation(result) -> str:
    """Average precision, and prediction on files."""
    text = ""
    if "figures" in result:
        rows = [(name, row["seconds"], row["cpu_seconds"]) for name, row in result["figures"].items()]
        text += (
            "All figures of a data set, without the model; `tfdet` is VOC's and COCO's, the others COCO's alone.\n\n"
        )
        text += _table(("", "seconds", "CPU seconds"), rows) + "\n"
    if "prediction" in result:
        found = result["prediction"]
        rows = [(name, found[name]["images_per_second"], found[name]["core_ms"]) for name in ("model", "files")]
        text += f"Prediction on files reaches {found['share_of_model']:.2f} of the model alone.\n\n"
        text += _table(("", "images/s", "CPU ms an image"), rows)
    return text or any_other(result)


def training(result) -> str:
    """What detectors reached on a data set."""
    rows = [
        (
            f"`{name}`",
            _steps(run),
            *(run["test"].get(key, "") for key in ("map50", "map50_voc07", "coco_ap")),
        )
        for name, run in result["runs"].items()
    ]
    text = result.get("data", "") + ".\n\n"
    return text + _table(("preset", "steps", "mAP@0.5", "VOC07", "COCO AP"), rows)


def _steps(run):
    return run["steps"] if "steps" in run else run["last_epoch"]["step"]


def any_other(result) -> str:
    """Every number of a file that no function here knows."""
    return _table(("figure", "value"), _numbers(result).items())


def _numbers(value, path="") -> dict:
    """{"a.b": number} of nested dicts, less the machine, the versions and the settings."""
    if isinstance(value, dict):
        parts = [
            _numbers(v, f"{path}.{k}".strip("."))
            for k, v in value.items()
            if k not in ("machine", "versions", "config")
        ]
        return {key: number for part in parts for key, number in part.items()}
    return {path: value} if isinstance(value, (int, float)) and not isinstance(value, bool) else {}


SECTIONS = {  # file name -> heading, what shows it; the pipelines' and the trainings' are found by their names
    "postprocess": ("Suppression and encoding", postprocess),
    "train_step": ("The training step", train_step),
    "train_step_overhead": ("The training step beside the bare one, in many short turns", train_step),
    "conversion": ("Conversion", conversion),
    "evaluation": ("Evaluation and prediction", evaluation),
}


def sections(files):
    """Yields heading, Markdown, and the file whose machine it is."""
    ladders = {name: one for name, one in files.items() if name.startswith("input_pipeline") and "decode_only" in one}
    compared = {name: one for name, one in ladders.items() if one.get("baselines")}
    alone = {name: one for name, one in ladders.items() if name not in compared}
    if alone:
        yield "The input pipeline", pipelines(alone), next(iter(alone.values()))
    if "input_pipeline_ssd300" in alone:
        yield "Stage by stage", stages(alone["input_pipeline_ssd300"]), alone["input_pipeline_ssd300"]
    for name, one in compared.items():
        yield f"Beside other pipelines (`{name}.json`)", others(one), one
    for name, one in files.items():
        if name in ladders:
            continue
        trained = isinstance(one.get("runs"), dict)
        heading, show = SECTIONS.get(name, (name.replace("_", " "), training if trained else any_other))
        try:
            text = show(one)
        except (KeyError, TypeError, AttributeError):  # of another form than this script knows
            text = any_other(one)
        yield f"{heading} (`{name}.json`)", text, one


def page(results=RESULTS) -> str:
    """The whole page, of the JSON files in a folder."""
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
    parts = [f"\n## {heading}\n\n{text}\n{_where(result)}\n" for heading, text, result in sections(files)]
    return HEAD + "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
