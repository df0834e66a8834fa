"""benchmarks/train_step.py measures every row and ends with its JSON line."""

import json
import subprocess
import sys
from pathlib import Path

from datasets import make_records

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "train_step.py"


def test_it_ends_with_json(tmp_path):
    make_records(tmp_path, 12)
    command = [
        sys.executable, str(SCRIPT), "--data", str(tmp_path / "records"), "--models", "yolov3_tiny",
        "--batch-size", "4", "--steps", "2", "--passes", "1", "--replicas", "1", "2",
        "--set", "detector.image_size=[64,64]", "--set", "detector.width_multiplier=0.125",
    ]  # fmt: skip
    result = subprocess.run([*command, "--json", str(tmp_path / "out.json")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "out.json").read_text()) == figures
    model = figures["models"]["yolov3_tiny"]
    rows = {"forward_backward", "bare", "keras_fit", "cached", "cached_xla", "real", "replicas 2"}
    assert rows | {"over_bare", "over_keras_fit", "real_over_cached", "xla_over_cached"} <= set(model)
    assert all(model[name]["ms_per_step"] > 0 for name in rows)
    assert 0 <= model["real"]["wait"] <= 1
    assert "over bare" in result.stderr
