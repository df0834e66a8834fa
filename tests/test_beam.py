"""The conversion as a Beam pipeline writes what the local run writes."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfdet.data import beam
from tfdet.data.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "make_tfrecords.py"


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "img").mkdir()
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), np.uint8)).save(tmp_path / "img" / f"{i}.jpg")
    (tmp_path / "train.txt").write_text("\n".join(f"img/{i}.jpg 1,2,20,{30 + i},0" for i in range(24)))
    (tmp_path / "classes.txt").write_text("cat\n")
    return tmp_path


def convert(data, out, *options, code=0):
    command = [sys.executable, TOOL, data / "train.txt", "--classes", data / "classes.txt", "--name", "toy"]
    command += ["--out", data / out, "--shards", "4", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # Beam's worker processes import tfdet
    done = subprocess.run(command, env=environment, cwd=data, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_several_processes_of_the_direct_runner_write_the_same_bytes(data):
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install tfdet[beam]")
    options = ("--runner", "DirectRunner", "--direct_num_workers", "2", "--direct_running_mode", "multi_processing")
    done = convert(data, "beam", *options)
    assert json.loads(done.stdout.splitlines()[-1])["images"] == 24
    convert(data, "local", "--workers", "1")
    assert digests(data / "beam") == digests(data / "local")


def test_without_beam_the_tool_says_what_to_install(data):
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        done = convert(data, "out", "--runner", "DirectRunner", code=2)
        assert "Apache Beam cannot be imported" in done.stderr
        assert "pip install tfdet[beam]" in done.stderr
        assert not (data / "out").exists()
    else:
        pytest.skip("Apache Beam is installed")


def test_options_that_are_nobodys_are_refused(data):
    done = convert(data, "out", "--direct_num_workers", "2", code=2)
    assert "unrecognized arguments: --direct_num_workers 2" in done.stderr


def test_a_pipeline_that_fails_is_one_clear_error(tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install tfdet[beam]")
    with pytest.raises(DataError, match=r"--runner: the pipeline failed"):
        beam.run_in_pipeline([], str(tmp_path), lambda *_: None, arguments=["--runner=NoSuchRunner"])
