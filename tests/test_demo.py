"""The demo on a handful of images: every tool runs, the last line says what it should, nothing foreign is deleted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def demo(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "demo.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def test_the_demo_runs_to_its_last_line(tmp_path):
    out = tmp_path / "demo"
    result = demo("--out", out, "--images", 20, "--minutes", 0.05)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads(result.stdout.splitlines()[-1])
    assert list(summary) == ["images_per_second", "share_of_decode_only", "map50", "pictures", "seconds"]
    assert summary["images_per_second"] > 0
    assert 0 < summary["share_of_decode_only"] < 2
    assert 0 <= summary["map50"] <= 1
    assert summary["pictures"] == str(out / "pictures")
    assert len(list((out / "pictures").glob("*.jpg"))) == 4  # the held-out fifth


def test_the_demo_empties_only_its_own_folder(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose this")
    result = demo("--out", tmp_path, "--images", 20)
    assert result.returncode == 2
    assert result.stderr.strip() == (f"demo: {tmp_path} is not empty and not of an earlier demo; choose another --out")
    assert (tmp_path / "thesis.txt").read_text() == "do not lose this"


@pytest.mark.parametrize("arguments", [("--images", "3"), ("--minutes", "0")])
def test_numbers_that_cannot_be_are_refused(arguments):
    result = demo(*arguments)
    assert result.returncode == 2
    assert "--images is at least 10 and --minutes positive" in result.stderr
