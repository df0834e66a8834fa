import json
import sys
from pathlib import Path

import pytest
from datasets import make_records

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def input_pipeline(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import input_pipeline

    yield input_pipeline
    sys.modules.pop("input_pipeline")


def test_the_ladder_is_measured_and_written(tmp_path, capsys, input_pipeline):
    make_records(tmp_path, 16)
    code = input_pipeline.main(
        [
            "--data", str(tmp_path / "records"), "--images", "16", "--batch-size", "8", "--passes", "2",
            "--preset", "demo", "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"),
        ]
    )  # fmt: skip
    printed = capsys.readouterr()
    assert code == 0
    summary = json.loads(printed.out.splitlines()[-1])
    assert summary == json.loads((tmp_path / "a.json").read_text())
    stages = {"decode_only", "read", "parse", "plan", "decode_crop", "resize", "batch", "batch_stage", "prefetch"}
    assert stages | {"pipeline", "share_of_decode_only", "machine", "versions", "config"} <= set(summary)
    assert summary["pipeline"]["images_per_second"] > 0
    assert summary["share_of_decode_only"] > 0
    assert "most of the time goes into" in printed.err
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_folder_without_records_is_one_line(tmp_path, capsys, input_pipeline):
    assert input_pipeline.main(["--data", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
