"""benchmarks/conversion.py runs on little data, and ends with its JSON line."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "conversion.py"


def test_every_row_and_the_memory_are_measured(tmp_path):
    command = [sys.executable, SCRIPT, "--images", "16", "--photos", "2", "--passes", "1", "--workers", "1"]
    command += ["--memory-images", "20", "--json", tmp_path / "figures.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    for row in ("decode_only", "checked", "unchecked"):
        assert figures[row]["images_per_second"] > 0
    assert set(figures["of_decode_only"]) == {"checked", "unchecked"}
    assert 20 < figures["memory"]["peak_mb_of_all_processes"] < 1000
