"""Every command and every Python block of README.md and docs/ runs here, page by page, on drawn shapes.

The blocks of a page run in order, in a folder that holds the files that the pages speak of. Commands are called in this
process. Trainings are made short by SMALL; what cannot run here is only parsed, and ONLY_PARSED says why. A training,
an evaluation or a prediction that stands on several pages in the same words runs once.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from PIL import Image

from tfdet import cli, configs
from tfdet.config import ConfigError, override
from tfdet.data import formats, synthetic

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]

# appended to every `tfdet train` that runs: YOLOv3-tiny, an eighth as wide, on 64 pixels, a step of four images
SMALL = [
    "--preset", "yolov3_tiny", "--epochs", "1", "--steps-per-epoch", "1", "--batch-size", "4", "--eval-every", "0",
    "--gpus", "0", "--set", "detector.image_size=[64,64]", "--set", "detector.width_multiplier=0.125",
]  # fmt: skip
SHORTER = {"benchmark": ["--images", "16", "--passes", "1", "--only", "pipeline", "--batch-size", "4"]}
METHODS = ("detector.encode", "detector.stream")  # of the objects that Python blocks call `detector`
# in Python blocks, likewise
SHORTER_PYTHON = {
    "train.batch_size=16": "train.batch_size=4",
    "detector.image_size=[224,224]": "detector.image_size=[64,64]",
    "take(1000)": "take(2)",
}
ONLY_PARSED = {  # what a command contains -> why it does not run; trainings' settings are checked all the same
    "--gpus 4": "there are no four GPUs",
    "--strategy multiworker": "needs a second machine",
    "grpc://": "needs a service that runs",
    "data_service.py": "runs until it is stopped",
    "weights_SSD300.hdf5": "the file is not here",
    "yolov3.weights": "the file is not here",
    "--preset yolov3_416 --batch-size 64": "takes minutes on a CPU",
    "--recipe modern": "takes minutes on a CPU",
    "--deterministic": "would hold for every later test of this process",
    "--preset ssd300_mobilenetv2 --run runs/sgd": "another preset than SMALL's; other trainings run",
}
NOT_OURS = ("source ",)  # the shell's
FIRST_RUN = "tfdet train --data tfrecords/mine --preset ssd300_mobilenetv2 --run runs/mine"
HAVE_RUN = {"docs/results.md", "docs/migration/ssd_keras.md"}  # begin with a trained run
BEGIN_WITH_RECORDS = {"docs/training.md", "docs/augmentation.md", "docs/repeatability.md", "docs/python.md"} | HAVE_RUN


def blocks(page):
    """(language, text) of every fenced block."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def lines_of(block):
    """The commands of a block, joined where a backslash continues them."""
    joined = re.sub(r"\\\n\s*", "", block)
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


# --- the files that the pages speak of ----------------------------------------------------------


def write_data(folder):
    """photos/, and annotations of them in every form; the last six are for validation."""
    drawn = synthetic.make_shapes(folder, 22, seed=3)
    (folder / "images").rename(folder / "photos")
    items = [dataclasses.replace(item, image_path=str(folder / "photos" / item.image_id)) for item in drawn]
    sized = []
    for item in items:
        with Image.open(item.image_path) as image:
            sized.append((item, image.size[::-1]))
    for name, part in (("more.txt", slice(20, 22)), ("val.txt", slice(14, 20)), ("train.txt", slice(0, 14))):
        synthetic.write_both(folder, items[part], synthetic.SHAPE_CLASSES)
        (folder / "lines.txt").rename(folder / name)
    for end, part in (("", slice(0, 14)), ("_val", slice(14, 20))):
        formats.save(folder / f"instances{end}.json", "coco", synthetic.SHAPE_CLASSES, sized[part])
        (folder / f"VOC{end}").mkdir()
        formats.save(folder / f"VOC{end}" / "Annotations", "voc", synthetic.SHAPE_CLASSES, sized[part])
    shutil.copytree(folder / "photos", folder / "VOC" / "JPEGImages")
    for split, part in (("train", slice(0, 14)), ("val", slice(14, 20))):
        write_records(folder / f"voc2012_{split}.tfrecord", sized[part])


def write_records(path, sized):
    """As yolov3-tf2 writes them: with names of classes, and their numbers from 0."""
    strings = lambda values: tf.train.Feature(bytes_list=tf.train.BytesList(value=values))  # noqa: E731
    integers = lambda values: tf.train.Feature(int64_list=tf.train.Int64List(value=values))  # noqa: E731
    floats = lambda values: tf.train.Feature(float_list=tf.train.FloatList(value=values))  # noqa: E731
    with tf.io.TFRecordWriter(str(path)) as writer:
        for item, (height, width) in sized:
            corners = zip(("xmin", "ymin", "xmax", "ymax"), item.boxes.T.tolist())
            feature = {f"image/object/bbox/{side}": floats(values) for side, values in corners} | {
                "image/height": integers([height]),
                "image/width": integers([width]),
                "image/filename": strings([item.image_id.encode()]),
                "image/encoded": strings([Path(item.image_path).read_bytes()]),
                "image/object/class/text": strings([synthetic.SHAPE_CLASSES[label].encode() for label in item.labels]),
                "image/object/class/label": integers(item.labels.tolist()),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Folders to begin with: annotations alone, with records, with a trained run."""
    folders = {name: tmp_path_factory.mktemp("docs") / name for name in ("data", "records", "run")}
    folders["data"].mkdir()
    write_data(folders["data"])
    shutil.copytree(folders["data"], folders["records"])
    with in_folder(folders["records"]):
        call("convert", ["train.txt", "--classes", "classes.txt", "--out", "tfrecords/mine", "--workers", "1"])
    shutil.copytree(folders["records"], folders["run"])
    with in_folder(folders["run"]):
        call("train", [*shlex.split(FIRST_RUN)[2:], *SMALL])
    return folders


@pytest.fixture(scope="module")
def have_run(start):
    """Lines that need not run again -> the folder to take their run from."""
    return {FIRST_RUN: start["run"] / "runs" / "mine"}


@contextlib.contextmanager
def in_folder(folder):
    """The working directory, and what a command changes in this process."""
    before, argv, path = os.getcwd(), sys.argv, list(sys.path)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        sys.argv, sys.path[:] = argv, path


# --- commands -----------------------------------------------------------------------------------


def call(command, arguments):
    """Runs a command in this process; it has to end well and, if it is a program, with a JSON object."""
    out = io.StringIO()
    out.reconfigure = lambda **_: None  # as standard output can
    with contextlib.redirect_stdout(out):
        code = cli.main([command, *arguments])
    assert code == 0, f"tfdet {command} {shlex.join(arguments)}: exit code {code}"
    if command in cli.COMMANDS:
        assert isinstance(json.loads(out.getvalue().splitlines()[-1]), dict)


def parse(command, arguments):
    """Only reads the arguments, and makes the settings of a training from them."""
    if command not in cli.COMMANDS:
        importlib.import_module(f"tools.{command}").parse_arguments(arguments)
        return
    program = cli.load(command)
    options = program.parse_arguments(arguments)
    if command == "train":
        program.fill_in(options)
        program.make_config(options, synthetic.SHAPE_CLASSES)


def run_line(line, have_run):
    words = shlex.split(line)
    while re.match(r"[A-Z_]+=", words[0]):  # of the environment
        words = words[1:]
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets), line
        return
    if words[0] == "python":
        by_file = {path: name for name, (path, _) in cli.COMMANDS.items()}
        assert (ROOT / words[1]).is_file(), line
        words = ["tfdet", by_file.get(words[1], Path(words[1]).stem), *words[2:]]
    assert words[0] == "tfdet", f"what is this? {line}"
    command, arguments = words[1], words[2:]
    if any(part in line for part in ONLY_PARSED):
        parse(command, arguments)
    elif line in have_run:
        if command == "train":
            shutil.copytree(have_run[line], arguments[arguments.index("--run") + 1])
    else:
        call(command, [*arguments, *(SMALL if command == "train" else SHORTER.get(command, []))])
        if command in ("evaluate", "predict"):
            have_run[line] = None


def run_python(text, names):
    for long, short in SHORTER_PYTHON.items():
        text = text.replace(long, short)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(text, "<block>", "exec"), names)  # the pages' own code


@pytest.mark.parametrize("page", [page for page in PAGES if any(kind != "text" for kind, _ in blocks(page))])
def test_the_blocks_of_a_page_run(page, start, have_run, tmp_path):
    begin = "run" if page in HAVE_RUN else "records" if page in BEGIN_WITH_RECORDS else "data"
    shutil.copytree(start[begin], tmp_path / "page")
    names = {"__name__": "page"}
    with in_folder(tmp_path / "page"):
        for kind, text in blocks(page):
            if kind == "python":
                run_python(text, names)
            elif kind == "bash":
                for line in lines_of(text):
                    if not line.startswith(NOT_OURS):
                        run_line(line, have_run)


def test_every_block_says_what_it_is():
    for page in PAGES:
        assert {kind for kind, _ in blocks(page)} <= {"bash", "python", "text"}, page


def test_exceptions_are_needed():
    everything = "\n".join(
        line for page in PAGES for kind, text in blocks(page) if kind == "bash" for line in lines_of(text)
    )
    python = "".join(text for page in PAGES for kind, text in blocks(page) if kind == "python")
    assert [part for part in ONLY_PARSED if part not in everything] == []
    assert [part for part in SHORTER_PYTHON if part not in python] == []


# --- settings that the text names, links, figures, the site --------------------------------------


FIELD = r"((?:detector|data|augment|train)(?:\.\w+)+)"


def exists(path):
    """Whether a dotted field is one of SSD's or YOLO's settings."""
    for name in ("ssd300_vgg16", "yolov3_416"):
        node = configs.load(name)
        for part in path.split("."):
            node = getattr(node, part, None)
        if node is not None:
            return True
    return False


def fits(assignment):
    """Whether one of the detectors takes a setting."""
    for name in ("ssd300_vgg16", "ssd300_mobilenetv2", "yolov3_416", "yolov3_tiny"):
        with contextlib.suppress(ConfigError):
            return bool(override(configs.load(name), assignment))
    return False


@pytest.mark.parametrize("page", PAGES)
def test_settings_in_the_text_exist(page):
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", (ROOT / page).read_text(encoding="utf-8"))
    for code in inline:
        for assignment in re.findall(FIELD + r"=([^\s'`]+)", code):
            assert assignment[1] in ("FILE", "VALUE") or fits("=".join(assignment)), f"{page}: {code}"
        for field in re.findall(r"^" + FIELD + r"$", code):
            known = field in METHODS or exists(field) or field.endswith(".NAME")
            assert known, f"{page}: {code}"


def test_the_table_of_augmentation_has_every_field():
    table = "".join(
        re.findall(r"^\| `.*$", (ROOT / "docs" / "augmentation.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    named = set(re.findall(r"`(\w+)`", table))
    assert {field.name for field in dataclasses.fields(configs.load("yolov3_416").augment)} <= named


def anchors(path):
    """The ids that headings of a page get."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "benchmarks/README.md", "tfrecords/README.md"])
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path), f"{page}: {target}"


@pytest.fixture(scope="module")
def performance():
    spec = importlib.util.spec_from_file_location("performance", ROOT / "docs" / "performance.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_performance_page_is_that_of_the_results(performance):
    written = performance.PAGE.read_text(encoding="utf-8")
    assert written == performance.page(), "out of date: run python docs/performance.py"


def test_results_of_unknown_form_get_a_table_of_their_numbers(performance, tmp_path):
    (tmp_path / "surprise.json").write_text('{"a": {"b": 0.5, "c": [1], "d": "x"}, "machine": {"cores": 2}}')
    (tmp_path / "train_step.json").write_text('{"models": 3}')
    text = performance.page(tmp_path)
    assert "## surprise (`surprise.json`)\n\n| figure | value |\n| --- | ---: |\n| a.b | 0.5 |\n\n2 cores" in text
    assert "| models | 3 |" in text


def test_figures_of_the_readme_are_those_of_the_results():
    def result(name):
        return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))

    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    others, runs = result("input_pipeline_compare")["baselines"], result("bccd_30_minutes")["runs"]
    assert f"made {result('input_pipeline_ssd300')['share_of_decode_only']:.2f} as many" in readme
    assert f"{others['rykov8']['tfdet_is_faster_by']:.0f} times as many as the generator of rykov8" in readme
    assert f"{others['keras_yolo3']['tfdet_is_faster_by']:.0f} times as many as that of keras-yolo3" in readme
    assert f"mAP@0.5 of {runs['ssd300_mobilenetv2_scratch']['test']['map50']:.2f} on" in readme
    assert f"`yolov3_tiny_scratch` to {runs['yolov3_tiny_scratch']['test']['map50']:.2f}" in readme


def test_pictures_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "docs" / "images").iterdir()) < 200_000


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")),
    reason='the site needs mkdocs: pip install "tfdet[docs]"',
)
def test_the_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", tmp_path / "site"]
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert ran.returncode == 0, ran.stderr
    assert "tfdet train" in (tmp_path / "site" / "commands" / "index.html").read_text(encoding="utf-8")
    assert "train_dataset" in (tmp_path / "site" / "api" / "pipeline" / "index.html").read_text(encoding="utf-8")
    assert not list((tmp_path / "site").rglob("*.py"))
