"""The baselines of the input pipeline do the work they are compared for: without randomness all give the same."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from datasets import make_records

from tfdet import detectors, schema
from tfdet.boxes import to_xyxy
from tfdet.config import NO_AUGMENT, SSD_PAPER_AUGMENT, Config, DataConfig, SsdConfig, TrainConfig, YoloConfig
from tfdet.data import pipeline

ROOT = Path(__file__).resolve().parents[1]
NUMBER, BATCH = 8, 4


@pytest.fixture(scope="module")
def record_set(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("baselines"), NUMBER)


@pytest.fixture(scope="module")
def baselines():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import baselines

    yield baselines
    sys.path.remove(str(ROOT / "benchmarks"))


def make_config(record_set, detector, resize="stretch", augment=NO_AUGMENT):
    train, data = TrainConfig(batch_size=BATCH), DataConfig(resize=resize)
    return Config(detector=detector, data=data, augment=augment, train=train, class_names=record_set.class_names)


def library_batches(record_set, config):
    encode = detectors.build(config.detector, config.num_classes).encode
    return list(pipeline.eval_dataset(record_set, config, encode).as_numpy_iterator())


def assert_same_images(images, expected):
    """Decoders differ by a level or two, resizers by their filters: sharp edges differ most."""
    difference = np.abs(np.asarray(images, np.float64) - expected)
    assert difference.mean() < 2.5
    assert np.quantile(difference, 0.9) < 6


def test_photos_are_those_of_the_records(baselines, record_set):
    photos = baselines.read_photos(record_set, 5)
    assert len(photos) == 5
    for photo in photos:
        height, width, _ = tf.io.decode_jpeg(photo.read()).shape
        assert min(height, width) > 50
        assert len(photo.boxes) == len(photo.labels)


def test_rykov8_without_randomness_gives_tfdets_images_and_targets(baselines, record_set):
    config = make_config(record_set, SsdConfig(matching="per_box"))
    photos = baselines.read_photos(record_set, NUMBER)
    found = list(baselines.rykov8_batches(photos, config, NO_AUGMENT, order=range(NUMBER)))
    expected = library_batches(record_set, config)
    assert len(found) == len(expected) == 2
    for (images, targets), batch in zip(found, expected):
        assert_same_images((images + baselines._MEAN_BGR)[..., ::-1], batch["image"])
        is_object = targets[..., -1] == 1
        labels = np.where(is_object, targets[..., 5:-1].argmax(-1), -1)
        np.testing.assert_array_equal(labels, batch["target_labels"])
        np.testing.assert_allclose(targets[..., :4], batch["target_boxes"], atol=2e-4)


def test_keras_yolo3_without_randomness_gives_tfdets_images_and_targets(baselines, record_set):
    config = make_config(record_set, YoloConfig(), resize="letterbox")
    photos = baselines.read_photos(record_set, NUMBER)
    found = list(baselines.keras_yolo3_batches(photos, config, NO_AUGMENT, order=range(NUMBER)))
    for (images, (boxes, labels)), batch in zip(found, library_batches(record_set, config)):
        assert_same_images(images * 255, batch["image"])
        np.testing.assert_array_equal(labels, batch["target_labels"])
        np.testing.assert_allclose(boxes, batch["target_boxes"], atol=1e-5)


def test_the_generators_change_images_and_keep_boxes_inside(baselines, record_set):
    config = make_config(record_set, SsdConfig())
    (ssd_images, targets), (other_images, _) = itertools.islice(baselines.rykov8(record_set, config, NUMBER), 2)
    assert ssd_images.shape == (BATCH, 300, 300, 3)
    assert targets.shape == (BATCH, 8732, 4 + 1 + config.num_classes + 1)
    assert (targets[..., -1].sum(1) > 0).all()
    assert np.abs(ssd_images - other_images).mean() > 1
    images, (boxes, labels) = next(iter(baselines.keras_yolo3(record_set, config, NUMBER)))
    assert images.shape == (BATCH, 416, 416, 3)
    assert images.min() >= 0
    assert images.max() <= 1
    corners = np.asarray(to_xyxy(tf.constant(boxes[labels >= 0])))
    assert len(corners)
    assert corners.min() >= -1e-9
    assert corners.max() <= 1 + 1e-9


def test_the_naive_pipeline_encodes_the_boxes_it_shows(baselines, record_set):
    config = make_config(record_set, SsdConfig())
    batch = next(iter(baselines.naive_tf_data(record_set, config, NUMBER)))
    assert batch["image"].shape == (BATCH, 300, 300, 3)
    expected = detectors.build(config.detector, config.num_classes).encode(batch["boxes"], batch["labels"])
    np.testing.assert_array_equal(batch["target_labels"], expected["target_labels"])
    np.testing.assert_allclose(batch["target_boxes"], expected["target_boxes"], atol=1e-4)


def test_records_without_jpegs_are_refused(baselines, record_set):
    with pytest.raises(baselines.ConfigError, match="decoded already"):
        baselines.read_photos(dataclasses.replace(record_set, store="raw"), 1)


class TestTorch:
    @pytest.fixture
    def module(self, baselines):
        for name in ("torch", "cv2"):
            pytest.importorskip(name, reason=f"{name} is not installed; only this baseline needs it")
        import baselines_torch

        return baselines_torch

    @pytest.mark.parametrize("variant", ["tuned", "paper"])
    def test_without_randomness_it_gives_tfdets_images_and_targets(self, baselines, module, record_set, variant):
        config = make_config(record_set, SsdConfig())
        photos = module.SsdPhotos(baselines.read_photos(record_set, NUMBER), config, variant)
        batches = library_batches(record_set, config)
        expected = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0] if key != "boxes"}
        for number in range(NUMBER):
            item = photos[number]
            assert_same_images(item["image"], expected["image"][number])
            np.testing.assert_array_equal(item["target_labels"], expected["target_labels"][number])
            np.testing.assert_allclose(item["target_boxes"], expected["target_boxes"][number], atol=2e-4)

    def test_its_matching_is_tfdets(self, module, rng):
        detector = detectors.build(SsdConfig(), 5)
        priors, variances = detector.anchors.numpy(), detector.variances.numpy()
        for count in (0, 1, 3, 30):
            low = rng.uniform(0, 0.7, (count, 2))
            boxes = np.concatenate([low, low + rng.uniform(0.02, 0.3, (count, 2))], 1).astype(np.float32)
            labels = rng.integers(0, 5, count).astype(np.int32)
            labels[: count // 4] = schema.IGNORE
            found = module.encode(boxes, labels, priors, np.asarray(to_xyxy(priors)), variances, detector.config)
            padded = np.concatenate([boxes, np.zeros((1, 4), np.float32)]), np.append(labels, np.int32(-1))
            expected = detector.encode(*(tf.constant(value[None]) for value in padded))
            # float32 corners decide a few ties differently
            assert (found[1] != expected["target_labels"][0].numpy()).mean() < 2e-3
            same = found[1] == expected["target_labels"][0].numpy()
            np.testing.assert_allclose(found[0][same], expected["target_boxes"][0].numpy()[same], atol=1e-3)

    @pytest.mark.parametrize("variant", ["tuned", "paper"])
    def test_the_loader_gives_every_photo_once_an_epoch(self, baselines, module, record_set, variant):
        config = make_config(record_set, SsdConfig(), augment=SSD_PAPER_AUGMENT)
        loader = module.make_loader(baselines.read_photos(record_set, NUMBER), config, variant)
        batches = list(itertools.islice(loader, 2))
        assert sorted(int(i) for batch in batches for i in batch["index"]) == list(range(NUMBER))
        for batch in batches:
            assert tuple(batch["image"].shape) == (BATCH, 300, 300, 3)
            assert batch["image"].numpy().dtype == np.uint8
            assert tuple(batch["target_boxes"].shape) == (BATCH, 8732, 4)
            assert ((batch["target_labels"] >= 0).sum(1) > 0).float().mean() > 0.5

    def test_windows_keep_an_object_and_boxes_stay_inside(self, module, rng):
        boxes, labels = np.float32([[0.4, 0.4, 0.6, 0.7]]), np.int32([1])
        changed = 0
        for _ in range(200):
            window = module.choose_window(boxes, labels, (480, 640, 3), SSD_PAPER_AUGMENT, rng)
            seen, kept = module.boxes_in_window(boxes, labels, window, (300, 300), SSD_PAPER_AUGMENT)
            assert len(kept) == 1
            assert (seen[:, :2] < seen[:, 2:]).all()
            changed += not np.array_equal(window, module._WHOLE)
        assert changed > 100


class TestDali:
    def test_it_gives_tfdets_images_and_targets(self, baselines, record_set):
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed; only this baseline needs it")
        config = make_config(record_set, SsdConfig())
        images, boxes, labels = (
            np.array(output) for output in next(iter(baselines.dali_cpu(record_set, config, BATCH)))
        )
        batch = library_batches(record_set, config)[0]
        # its source draws the order: each image has its twin
        for image, box, label in zip(images, boxes, labels):
            twin = np.abs(batch["image"].astype(int) - image).mean((1, 2, 3)).argmin()
            assert_same_images(image, batch["image"][twin])
            is_object = batch["target_labels"][twin] >= 0
            assert ((label - 1 == batch["target_labels"][twin]) | (label == 0) & ~is_object).mean() > 0.999
            both = is_object & (label > 0)
            np.testing.assert_allclose(box[both], batch["target_boxes"][twin][both], atol=1e-3)


class TestCompare:
    @pytest.fixture
    def input_pipeline(self, baselines):
        import input_pipeline

        yield input_pipeline
        sys.modules.pop("input_pipeline")

    def test_baselines_are_rows_and_figures(self, record_set, input_pipeline, capsys):
        code = input_pipeline.main(
            [
                "--data", record_set.directory, "--images", "8", "--batch-size", "4", "--passes", "1",
                "--preset", "demo", "--only", "read", "--compare", "naive_tf_data",
            ]
        )  # fmt: skip
        printed = capsys.readouterr()
        assert code == 0
        figures = json.loads(printed.out.splitlines()[-1])
        found = figures["baselines"]["naive_tf_data"]
        assert found["images_per_second"] > 0
        assert found["core_ms"] > 0
        ratio = figures["pipeline"]["images_per_second"] / found["images_per_second"]
        assert found["tfdet_is_faster_by"] == pytest.approx(ratio, abs=0.01)
        assert "naive_tf_data" in printed.err

    def test_one_that_is_not_installed_is_named(self, record_set, input_pipeline, monkeypatch, capsys):
        monkeypatch.setattr(input_pipeline, "missing", lambda name: ["cv2"] if name == "pytorch_opencv" else [])
        code = input_pipeline.main(["--data", record_set.directory, "--compare", "pytorch_opencv"])
        assert code == 2
        assert "pytorch_opencv needs cv2" in capsys.readouterr().err
