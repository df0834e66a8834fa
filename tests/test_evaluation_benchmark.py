"""benchmarks/evaluation.py runs on little data, and ends with its JSON line."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "evaluation.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("evaluation_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_ends_with_json(tmp_path, capsys, benchmark):
    sizes = {"--images": 20, "--detections": 30, "--classes": 3, "--photos": 8, "--batch-size": 4, "--passes": 1}
    arguments = [str(item) for pair in sizes.items() for item in pair]
    assert benchmark.main([*arguments, "--preset", "demo", "--json", str(tmp_path / "out.json")]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "out.json").read_text()) == figures
    assert {"tfdet", "pycocotools"} <= set(figures["figures"])
    assert figures["prediction"]["files"]["images_per_second"] > 0
    assert figures["prediction"]["share_of_model"] > 0


def test_mistakes_are_one_line(capsys, benchmark):
    assert benchmark.main(["--only", "prediction", "--preset", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("evaluation: ")
