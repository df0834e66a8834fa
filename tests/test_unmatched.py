"""What training cannot learn from: boxes counted by hand in two records."""

import pytest
from PIL import Image

from tfdet import configs, detectors, unmatched
from tfdet.config import Config, SsdConfig, TrainConfig, YoloConfig
from tfdet.data.convert import convert
from tfdet.data.faults import leave_out
from tfdet.data.formats.common import make_listing
from tfdet.data.records import open_split

NAMES = ("one", "two")
BOX = [200, 300, 600, 800]
# twice the same box, one of 2 pixels, which are .6 of 300, and a difficult one
FIRST = [[*BOX, 0], [*BOX, 1], [500, 500, 502, 502, 0], [700, 100, 900, 300, 0]]


@pytest.fixture(scope="module")
def record_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unmatched")
    rows = {"a": (FIRST, [False, False, False, True]), "b": ([[100, 100, 400, 300, 1]], [False])}
    listings = []
    for number, (name, (boxes, difficult)) in enumerate(rows.items()):
        path = folder / f"{name}.jpg"
        Image.new("RGB", (1000, 1000), (number, 0, 0)).save(path)
        lines = list(range(1, len(boxes) + 1))
        listings.append(make_listing("t", str(path), path.name, boxes, lines, in_pixels=True, difficult=difficult))
    convert({"train": listings}, folder / "out", "t", NAMES)
    return open_split(folder / "out", "train")


def count(record_set, detector_config, **options):
    config = Config(detector_config, train=TrainConfig(batch_size=4), class_names=NAMES)
    detector = detectors.build(config.detector, len(NAMES))
    counts = unmatched.count(record_set, config, detector, **options)
    return counts, unmatched.describe(counts, config)


@pytest.mark.parametrize(
    "detector, collisions",
    [
        (SsdConfig(), 0),  # each of the twins is paired with a prior of its own
        (SsdConfig(matching="per_box"), 1),  # the first of equals takes all priors
        (YoloConfig(image_size=(96, 64)), 1),
        (YoloConfig(image_size=(96, 64), multi_scale=(64, 96)), 1),
    ],
)
def test_boxes_are_counted(record_set, detector, collisions):
    counts, _ = count(record_set, detector)
    assert counts == unmatched.Counts(images=2, objects=4, degenerate=1, collisions=collisions)


def test_only_some_images_and_none_that_is_left_out(record_set):
    counts, text = count(leave_out(record_set, [0]), YoloConfig(image_size=(64, 64)), most=3)
    assert counts in (unmatched.Counts(1, 1, 0, 0), unmatched.Counts(1, 3, 1, 1))  # whichever is the second record
    assert text.startswith(f"of {counts.objects} boxes in 1 images {counts.degenerate} are never matched")


@pytest.mark.parametrize("preset, words", [("demo", "no prior"), ("yolov3_tiny", "a cell and an anchor")])
def test_the_line_says_what_was_lost(preset, words):
    text = unmatched.describe(unmatched.Counts(10, 1234, 2, 1), configs.load(preset))
    assert text.startswith("of 1,234 boxes in 10 images 2 are never matched, being less than a pixel at ")
    assert words in text
