"""benchmarks/photo_decoding.py and colour_clipping.py, on photos drawn for the test."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import colour_clipping
    import photo_decoding

    yield photo_decoding, colour_clipping
    for name in ("photo_decoding", "colour_clipping", "input_pipeline"):
        sys.modules.pop(name)


@pytest.fixture
def photos(tmp_path, rng):
    for number, size in enumerate([(900, 700), (640, 480), (300, 200)]):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(tmp_path / f"{number}.jpg")
    return tmp_path


def test_decoding(photos, scripts, monkeypatch, capsys):
    script = scripts[0]
    file = io.BytesIO()
    Image.new("RGB", (640, 480)).save(file, "JPEG")
    monkeypatch.setattr(script, "drawn", lambda number: [file.getvalue()] * number)
    assert script.main(["--real", str(photos), "--passes", "1", "--json", str(photos / "out.json")]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary == json.loads((photos / "out.json").read_text())
    assert summary["real"]["images"] == summary["drawn"]["images"] == 2  # the third is too small
    assert summary["real"]["megapixels"] == pytest.approx((640 * 498 + 640 * 480) / 2e6, abs=1e-3)
    assert summary["drawn_to_real"] > 0


def test_clipping(photos, scripts, capsys):
    assert scripts[1].main(["--photos", str(photos), "--json", str(photos / "out.json")]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary == json.loads((photos / "out.json").read_text())
    assert summary["photos"] == 3
    assert all(0 <= summary[name]["share_over_1"] <= 1 for name in ("tfdet", "one_clip", "another_order"))


def test_gray_images_need_no_clipping_in_between(scripts, rng):
    """On middle gray no step leaves [0, 255], so that clipping once is the same as clipping after each."""
    image, u = np.full([300, 300, 3], 110.0), np.float32([0.5, 0.9, 0.2, 0.4, 0, 0, 0])
    steps = [scripts[1].by_steps(image, u, np.ones(3), (0, 1, 2), clipped) for clipped in (True, False)]
    np.testing.assert_array_equal(*steps)
    np.testing.assert_allclose(steps[0], 110 * 1.4)  # brightness 1 + .5 * (2 * .9 - 1); contrast keeps what is even
    ours = scripts[1].by_tfdet(image.astype(np.uint8), u, np.ones(3, np.float32))
    assert np.abs(ours - steps[0]).max() <= 0.51


@pytest.mark.parametrize("number", [0, 1])
def test_no_photos_is_one_line(scripts, tmp_path, capsys, number):
    assert scripts[number].main(["--real" if number == 0 else "--photos", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
