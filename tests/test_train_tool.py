"""tools/train.py from the command line's side: what it writes, what it prints, how it fails."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from tfdet import addons
from tfdet.data import synthetic
from tools import train_options

TOOL = Path(__file__).resolve().parents[1] / "tools" / "train.py"
SMALL = [
    "--preset", "yolov3_tiny", "--batch-size", "4", "--steps-per-epoch", "2",
    "--set", "detector.image_size=[64,64]", "--set", "detector.width_multiplier=0.125",
]  # fmt: skip


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("train_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    datasets.make_records(directory, num_images=14, val=5)
    return directory / "records"


@pytest.fixture(scope="module")
def only_train(tmp_path_factory):
    directory = tmp_path_factory.mktemp("only_train")
    return datasets.make_records(directory, num_images=6, shards=1)


@pytest.fixture(scope="module")
def run(tool, data, tmp_path_factory):
    """A finished run of one epoch on two replicas, and its output."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    return folder, tool.main(["--data", str(data), "--run", str(folder), *SMALL, "--epochs", "1", "--replicas", "2"])


def last_line(out):
    return json.loads(out.splitlines()[-1])


def test_a_run_leaves_its_folder_and_ends_well(run):
    folder, code = run
    assert code == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "weights.h5", "best.h5", "history.csv", "checkpoints", "logs"}
    config = json.loads((folder / "config.json").read_text())
    assert tuple(config["class_names"]) == synthetic.SHAPE_CLASSES
    assert config["detector"]["image_size"] == [64, 64]


def test_resume_goes_on_with_the_config_of_the_run(tool, run, data, capsys):
    folder, _ = run
    code = tool.main(["--data", str(data), "--run", str(folder), "--resume", "--epochs", "2", "--gpus", "0"])
    out, err = capsys.readouterr()
    assert code == 0, err
    summary = last_line(out)
    assert {"steps", "seconds", "loss", "val_loss", "map50", "images_per_second", "run"} <= set(summary)
    assert (summary["steps"], summary["epochs"], summary["run"]) == (4, 2, str(folder))
    assert "9 training images" in out
    assert "5 validation images" in out
    assert "4 classes: circle, square, triangle, star" in out
    assert len((folder / "history.csv").read_text().splitlines()) == 3


def test_weights_of_another_run_are_a_start(tool, run, only_train, tmp_path, capsys):
    folder, _ = run
    code = tool.main([
        "--data", only_train.directory, "--run", str(tmp_path / "run"), *SMALL, "--epochs", "1",
        "--steps-per-epoch", "1", "--weights", str(folder / "weights.h5"), "--gpus", "0",
    ])  # fmt: skip
    out, _ = capsys.readouterr()
    assert code == 0
    assert "tensors loaded" in out
    assert "missing" not in out
    assert "no validation split" in out
    assert "val_loss" not in last_line(out)
    assert not (tmp_path / "run" / "best.h5").exists()


def test_a_recipe_in_two_stages_from_weights_of_which_some_classes_are_kept(tool, run, data, tmp_path, capsys):
    folder, _ = run
    code = tool.main([
        "--data", str(data), "--run", str(tmp_path / "run"), "--recipe", "yolo", "--freeze-body", "1", *SMALL,
        "--epochs", "2", "--steps-per-epoch", "1", "--eval-every", "0", "--weights", str(folder / "weights.h5"),
        "--strict", "--keep-classes", "star,circle=square,triangle=2", "--gpus", "0",
    ])  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "conv2d_10: kernel bias with 3 of 4 classes" in out
    assert "stage 1, to epoch 1" in err
    assert "stage 2, to epoch 2" in err
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"trained_weights_stage_1.h5", "trained_weights_final.h5", "weights.h5", "best.h5"} <= names


MISTAKES = {
    "nothing to be strict about": (["--strict"], "--strict, --keep-classes and --source-classes say something about"),
    "no class to keep": (["--weights", "{run}/weights.h5", "--keep-classes", "comet"], "'comet' is no class here"),
    "another recipe's detector": (["--recipe", "ssd"], "the recipe ssd freezes layers of VGG16"),
    "no recipe to freeze for": (["--freeze-body", "1"], "--freeze-body says something about --recipe yolo"),
    "no records": (["--data", "{tmp}"], "there is no manifest.json"),
    "too many GPUs": (["--gpus", "64"], "64 GPUs asked for, but this machine has"),
    "no such field": (["--set", "train.speed=1"], "no field 'train.speed'"),
    "no such value": (["--set", "train.optimizer=newton"], "choose one of adam, adamw, sgd, sgdw"),
    "uneven": (["--replicas", "2", "--batch-size", "5"], "which 2 replicas cannot share evenly; take 4"),
    "run exists": (["--run", "{run}"], "already holds a run at step"),
    "no weights": (["--weights", "{tmp}/none.h5"], "none.h5: cannot be read"),
    "nothing to freeze": (["--set", 'train.frozen=["conf_1"]'], "no layer is called 'conf_1'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(tool, run, data, tmp_path, capsys, name):
    arguments, message = MISTAKES[name]
    arguments = [argument.format(tmp=tmp_path, run=run[0]) for argument in arguments]
    assert tool.main(["--data", str(data), "--run", str(tmp_path / "run"), *SMALL, *arguments]) == 2
    _, err = capsys.readouterr()
    assert message in err
    assert err.startswith("train: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_of_other_classes_is_not_resumed(tool, run, data, tmp_path, capsys):
    folder, _ = run
    other = tmp_path / "run"
    other.mkdir()
    text = (folder / "config.json").read_text().replace('"star"', '"comet"')
    (other / "config.json").write_text(text)
    assert tool.main(["--data", str(data), "--run", str(other), "--resume"]) == 2
    assert "trained for the classes circle, square, triangle, comet" in capsys.readouterr().err


def test_a_damaged_record_is_named(tool, only_train, tmp_path, capsys):
    shutil.copytree(only_train.directory, tmp_path / "records")
    _, offset, length = only_train.index[3]
    with open(tmp_path / "records" / Path(only_train.shard_paths[0]).name, "r+b") as file:
        file.seek(offset + length // 2)
        file.write(b"spoiled")
    assert tool.main(["--data", str(tmp_path / "records"), "--run", str(tmp_path / "run"), *SMALL, "--gpus", "0"]) == 2
    _, err = capsys.readouterr()
    assert "record 3 (byte" in err
    assert ", image " in err
    assert "convert the data set again" in err
    assert "Traceback" not in err


def test_with_skip_bad_records_training_goes_on(tool, only_train, tmp_path, capsys):
    shutil.copytree(only_train.directory, tmp_path / "records")
    for number in (1, 4):
        _, offset, length = only_train.index[number]
        with open(tmp_path / "records" / Path(only_train.shard_paths[0]).name, "r+b") as file:
            file.seek(offset + length // 2)
            file.write(b"spoiled")
    where = ["--data", str(tmp_path / "records"), "--run", str(tmp_path / "run")]
    assert tool.main([*where, *SMALL, "--gpus", "0", "--epochs", "2", "--skip-bad-records"]) == 0
    out, err = capsys.readouterr()
    assert "2 of 6 train records are left out" in err
    assert "epoch 1: 2 bad records left out" in err
    assert "epoch 2: 2 bad records left out" in err
    assert (last_line(out)["bad_records"], last_line(out)["steps"]) == (2, 4)


def test_options_of_every_group():
    words = ["--data=d", "--gpus=0", "--epochs=3", "--on-nan=skip", "--weights=w.h5", "--eval-every=2"]
    options = train_options.parse_arguments(words)
    given = (options.data, options.gpus, options.epochs, options.on_nan, options.weights, options.eval_every)
    assert given == (Path("d"), 0, 3, "skip", "w.h5", 2)
    assert (options.resume, options.set, options.xla, options.seed) == (False, [], None, None)


@pytest.mark.skipif(not addons.available(), reason="tensorflow-addons is not installed")
def test_help_names_what_the_package_gives():
    text = train_options.epilog(["--help"])
    for assignment in ("train.optimizer=lamb", "detector.class_loss=sigmoid_focal"):
        assert f"--set {assignment} " in text


def test_help_from_anywhere(tmp_path):
    ran = subprocess.run([sys.executable, TOOL, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    for words in ("--gpus", "--replicas", "--resume", "python tools/train.py --data", "TensorBoard"):
        assert words in ran.stdout
