"""benchmarks/postprocess.py runs, compares the results before it times them, and ends with its JSON line."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "postprocess.py"


def test_it_ends_with_json(tmp_path):
    command = [sys.executable, str(SCRIPT), "--repeats", "1", "--only", "ssd_encode", "yolo_encode"]
    result = subprocess.run([*command, "--json", str(tmp_path / "out.json")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "out.json").read_text()) == figures
    for case, slow in (("ssd_encode", "numpy_per_image"), ("yolo_encode", "python_loop")):
        milliseconds, ratio = figures[case]["milliseconds"], figures[case]["ratio"]
        assert milliseconds["tfdet"] > 0
        # both are rounded to a thousandth of a millisecond
        assert abs(ratio[slow] - milliseconds["tfdet"] / milliseconds[slow]) < 0.001
