import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from datasets import make_records
from PIL import Image

from tfdet import schema
from tfdet.config import (
    NO_AUGMENT,
    SSD_PAPER_AUGMENT,
    YOLO_AUGMENT,
    AugmentConfig,
    Config,
    ConfigError,
    DataConfig,
    TrainConfig,
)
from tfdet.config import SsdConfig as Ssd
from tfdet.data import formats, pipeline, records
from tfdet.data.convert import convert
from tfdet.data.images import ImageOptions
from tfdet.data.reading import all_records, hold
from tfdet.data.stages import buckets

NUMBER, BATCH = 20, 8


@pytest.fixture(scope="module")
def record_set(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("pipeline"), NUMBER)


def make_config(augment=AugmentConfig(), batch_size=BATCH, size=(60, 80), **data):  # noqa: B008
    return Config(
        detector=Ssd(image_size=size),
        augment=augment,
        data=DataConfig(**{"ram_budget_mb": 0, **data}),
        train=TrainConfig(batch_size=batch_size),
    )


def encode(boxes, labels):
    """A stand-in for a detector: one anchor a box."""
    return {schema.TARGET_BOXES: boxes * 2.0, schema.TARGET_LABELS: tf.where(labels >= 0, labels, schema.BACKGROUND)}


def batches(dataset, number):
    return list(dataset.take(number).as_numpy_iterator())


def ids(batch_list):
    return [image_id for batch in batch_list for image_id in batch[schema.IMAGE_ID]]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


class TestBatches:
    def test_keys_dtypes_and_shapes(self, record_set):
        dataset = pipeline.train_dataset(record_set, make_config(), encode)
        (batch,) = batches(dataset, 1)
        found = {key: (value.dtype.name, value.shape) for key, value in batch.items() if key != schema.IMAGE_ID}
        assert found == {
            "image": ("uint8", (BATCH, 60, 80, 3)),
            "boxes": ("float32", (BATCH, 8, 4)),
            "labels": ("int32", (BATCH, 8)),
            "target_boxes": ("float32", (BATCH, 8, 4)),
            "target_labels": ("int32", (BATCH, 8)),
            "image_size": ("int32", (BATCH, 2)),
        }
        assert dataset.element_spec["image"].shape == (BATCH, 60, 80, 3)

    def test_without_encode_there_are_no_targets(self, record_set):
        (batch,) = batches(pipeline.train_dataset(record_set, make_config()), 1)
        assert schema.TARGET_LABELS not in batch

    @pytest.mark.parametrize("shuffle", ["global", "sequential", "none"])
    def test_an_epoch_is_every_image_once_and_then_filling(self, record_set, shuffle):
        steps = pipeline.steps_per_epoch(record_set, BATCH)
        assert steps == 3  # 20 images in eights: 8 + 8 + 4
        epochs = batches(pipeline.train_dataset(record_set, make_config(shuffle=shuffle), encode), 2 * steps)
        for epoch in (epochs[:3], epochs[3:]):
            found = ids(epoch)
            assert found.count(b"") == 4
            assert len(set(found)) == NUMBER + 1
            filling = epoch[2][schema.IMAGE_ID] == b""
            assert (epoch[2][schema.LABELS][filling] == schema.IGNORE).all()
            assert (epoch[2][schema.TARGET_LABELS][filling] == schema.IGNORE).all()
            assert (epoch[2][schema.TARGET_LABELS][~filling] != schema.IGNORE).all()
        if shuffle != "none":
            assert ids(epochs[:3]) != ids(epochs[3:])

    @pytest.mark.parametrize("shuffle", ["global", "sequential"])
    def test_a_batch_larger_than_the_data_set(self, record_set, shuffle):
        config = make_config(shuffle=shuffle, batch_size=3 * NUMBER)
        for batch in batches(pipeline.train_dataset(record_set, config, encode), 2):
            assert ids([batch]).count(b"") == 2 * NUMBER
            assert len(set(ids([batch]))) == NUMBER + 1

    def test_two_seeds_differ(self, record_set):
        one, other = (batches(pipeline.train_dataset(record_set, make_config(seed=seed)), 3) for seed in (0, 1))
        assert ids(one) != ids(other)

    def test_colour_differs_between_epochs_and_images(self, record_set):
        config = make_config(dataclasses.replace(NO_AUGMENT, brightness=0.5), shuffle="none", batch_size=NUMBER)
        first, second = batches(pipeline.train_dataset(record_set, config), 2)
        levels = first["image"].mean((1, 2, 3)), second["image"].mean((1, 2, 3))
        assert (levels[0] != levels[1]).sum() > NUMBER - 3


class TestRepeatability:
    @pytest.mark.parametrize("augment", [AugmentConfig(), YOLO_AUGMENT, SSD_PAPER_AUGMENT])
    def test_parallelism_changes_nothing(self, record_set, augment):
        runs = [
            batches(pipeline.train_dataset(record_set, make_config(augment, num_parallel_calls=calls), encode), 6)
            for calls in (1, 2, 8, 0)  # 0: autotuned
        ]
        for run in runs[1:]:
            assert_same(runs[0], run)

    @pytest.mark.parametrize("shuffle", ["global", "sequential"])
    @pytest.mark.parametrize("stop", [1, 4, 6])
    def test_resuming_continues_as_if_nothing_had_happened(self, record_set, shuffle, stop):
        config = make_config(shuffle=shuffle)
        whole = batches(pipeline.train_dataset(record_set, config, encode), 8)
        rest = batches(pipeline.train_dataset(record_set, config, encode, start_step=stop), 8 - stop)
        assert_same(whole[stop:], rest)

    @pytest.mark.parametrize("shuffle", ["global", "sequential"])
    def test_slices_of_workers_make_up_the_global_batch(self, record_set, shuffle):
        config = make_config(shuffle=shuffle)
        whole = batches(pipeline.train_dataset(record_set, config, encode), 4)
        slices = [batches(pipeline.train_dataset(record_set, config, encode, shard=(i, 2)), 4) for i in range(2)]
        for batch, *parts in zip(whole, *slices):
            for key in ("image", "image_id", "boxes"):
                np.testing.assert_array_equal(batch[key], np.concatenate([part[key] for part in parts]))

    @pytest.mark.parametrize("shuffle", ["global", "sequential"])
    def test_tensorflows_global_seed_changes_nothing(self, record_set, shuffle):
        runs = []
        for seed in (0, 5):
            tf.random.set_seed(seed)
            runs.append(batches(pipeline.train_dataset(record_set, make_config(shuffle=shuffle)), 2))
        assert_same(*runs)

    @pytest.mark.parametrize("shuffle", ["global", "sequential"])
    def test_out_of_order_means_whole_batches(self, record_set, shuffle):
        ordered = make_config(SSD_PAPER_AUGMENT, shuffle=shuffle)
        hasty = make_config(SSD_PAPER_AUGMENT, shuffle=shuffle, deterministic=False, num_parallel_calls=4)
        by_step = {}
        for batch in batches(pipeline.train_dataset(record_set, ordered, encode, numbered=True), 40):
            by_step[batch["step"][0]] = batch
        for batch in batches(pipeline.train_dataset(record_set, hasty, encode, numbered=True), 20):
            assert len(set(batch["step"])) == 1
            assert_same([batch], [by_step[batch["step"][0]]])

    @pytest.mark.parametrize("shard", [(0, 3), (3, 2), (-1, 2)])
    def test_slices_that_cannot_be(self, record_set, shard):
        with pytest.raises(ConfigError, match="shard"):
            pipeline.train_dataset(record_set, make_config(), shard=shard)

    @pytest.mark.parametrize("store", ["jpeg", "raw"])
    def test_records_held_in_memory_are_the_same(self, tmp_path, store):
        record_set = make_records(tmp_path, NUMBER, options=ImageOptions(store))
        for augment in (SSD_PAPER_AUGMENT, NO_AUGMENT):
            assert_same(
                batches(pipeline.train_dataset(record_set, make_config(augment)), 4),
                batches(pipeline.train_dataset(record_set, make_config(augment, ram_budget_mb=1000)), 4),
            )

    def test_pixels_are_held_apart_from_their_records(self, tmp_path):
        record_set = make_records(tmp_path, NUMBER, options=ImageOptions("raw"))
        held = hold(record_set, 1000)
        for serialized, start, record in zip(held.serialized, held.starts, all_records(record_set)):
            whole, rest = records.parse(record), records.parse(serialized)
            pixels = whole.pop("image/encoded").numpy()
            assert held.pixels[start : start + len(pixels)].numpy().tobytes() == pixels
            assert rest.pop("image/encoded") == b""
            tf.nest.map_structure(np.testing.assert_array_equal, rest, whole)

    def test_an_image_gets_the_same_change_in_any_batch_size(self, record_set):
        def by_id(batch_size):
            run = batches(
                pipeline.train_dataset(record_set, make_config(batch_size=batch_size)), -(-NUMBER // batch_size)
            )
            return {i: image for batch in run for i, image in zip(batch["image_id"], batch["image"])}

        four, ten = by_id(4), by_id(10)
        assert all(np.array_equal(four[i], ten[i]) for i in ten if i)


class TestEvaluation:
    def test_one_pass_in_order_not_augmented(self, record_set):
        config = make_config(AugmentConfig(brightness=0.9))
        one = batches(pipeline.eval_dataset(record_set, config, encode), -1)
        other = batches(pipeline.eval_dataset(record_set, make_config(NO_AUGMENT, seed=5), encode), -1)
        assert len(one) == 3
        assert_same(one, other)

    def test_pixels_are_those_of_the_file(self, record_set):
        encoded = next(iter(tf.data.TFRecordDataset(record_set.shard_paths[0])))
        raw = tf.io.parse_single_example(encoded, schema.record_features())[schema.ENCODED]
        expected = tf.image.resize(tf.io.decode_jpeg(raw), (60, 80)).numpy()
        (batch,) = batches(pipeline.eval_dataset(record_set, make_config(), None), 1)
        # where the image is more than twice as large it is decoded at half its size: another low-pass filter
        assert np.abs(batch["image"][0] - expected).mean() < 6

    def test_letterbox_paints_gray_and_maps_boxes(self, record_set):
        config = make_config(size=(64, 256), resize="letterbox")
        (batch,) = batches(pipeline.eval_dataset(record_set, config), 1)
        assert (batch["image"][:, :, :8] == 128).all()
        for boxes, labels, (height, width) in zip(batch["boxes"], batch["labels"], batch["image_size"]):
            shown = 64 * width // height  # pixels of the input that the image covers, centred in 256
            left = (256 - shown) // 2 / 256
            assert (boxes[labels >= 0][:, 0] >= left - 1e-6).all()
            assert (boxes[labels >= 0][:, 2] <= 1 - left + 1 / 256).all()


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rectangles")
    rng = np.random.default_rng(3)
    lines = []
    for number in range(16):
        height, width = rng.integers(100, 1400, 2)
        y0, x0 = int(height * rng.uniform(0.2, 0.5)), int(width * rng.uniform(0.2, 0.5))
        y1, x1 = int(height * rng.uniform(0.6, 0.9)), int(width * rng.uniform(0.6, 0.9))
        pixels = np.zeros([height, width, 3], np.uint8)
        pixels[y0:y1, x0:x1] = 255
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
        lines.append(f"{number}.jpg {x0},{y0},{x1},{y1},0")
    (folder / "a.txt").write_text("\n".join(lines))
    source = formats.read(folder / "a.txt", class_names=("white",))
    convert({"train": source.listings}, folder / "out", "r", ("white",))
    return records.open_split(folder / "out", "train")


class TestBoxesFollowPixels:
    """A black image with one white rectangle: after every change the box still frames the white."""

    @pytest.mark.parametrize("geometry", ["none", "random_size_crop", "ssd_crop", "yolo_jitter"])
    @pytest.mark.parametrize("resize", ["stretch", "letterbox"])
    def test_box_frames_the_white(self, rectangles, geometry, resize):
        expand = 0.5 if geometry in ("ssd_crop", "none") else 0.0
        augment = dataclasses.replace(
            NO_AUGMENT, geometry=geometry, expand_probability=expand, horizontal_flip=0.5, vertical_flip=0.5
        )
        config = make_config(augment, size=(160, 128), resize=resize)
        seen = 0
        for batch in batches(pipeline.train_dataset(rectangles, config), 6):
            for image, box, label in zip(batch["image"], batch["boxes"][:, 0], batch["labels"][:, 0]):
                rows, columns = (np.flatnonzero((image.min(-1) > 190).any(axis)) for axis in (1, 0))
                if label < 0 or not len(rows):
                    continue
                seen += 1
                found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
                # half a pixel of blur on either side, one of rounding
                assert np.abs(found - box * [128, 160, 128, 160]).max() <= 2.0
        assert seen > 30


def test_zooming_out_keeps_the_aspect_of_a_letterbox(rectangles):
    """Letterboxed first, then zoomed out: the box of every image shrinks by the same factor in x and y."""
    plain = make_config(dataclasses.replace(NO_AUGMENT), size=(160, 128), resize="letterbox", shuffle="none")
    zoomed = dataclasses.replace(plain, augment=dataclasses.replace(NO_AUGMENT, expand_probability=1.0, expand_ratio=3))
    sizes = []
    for config in (plain, zoomed):
        batch = batches(pipeline.train_dataset(rectangles, config), 1)[0]
        assert (batch["image"][0] == 128).any()
        sizes.append((batch["boxes"][:, 0, 2:] - batch["boxes"][:, 0, :2]) * [128, 160])
    shrunk = sizes[0] / sizes[1]
    assert (shrunk > 1.0).all()
    assert (shrunk < 3.2).all()
    assert np.abs(sizes[0] / shrunk.mean(1, keepdims=True) - sizes[1]).max() < 1.5  # pixels
    assert shrunk.std() > 0.2


@pytest.mark.parametrize(
    "max_boxes, sizes",
    [(0, [8]), (8, [8]), (9, [8, 16]), (20, [8, 16, 24]), (33, [8, 16, 32, 40]), (100, [8, 16, 32, 64, 104])],
)
def test_buckets(max_boxes, sizes):
    assert buckets(max_boxes) == sizes


def test_more_boxes_than_a_bucket(tmp_path):
    Image.new("RGB", (200, 100), "gray").save(tmp_path / "a.jpg")
    Image.new("RGB", (50, 60), "gray").save(tmp_path / "b.jpg")
    crowd = " ".join(f"{i},{i % 50},{i + 20},{i % 50 + 20},0" for i in range(100))
    (tmp_path / "a.txt").write_text(f"a.jpg {crowd}\nb.jpg\n")
    source = formats.read(tmp_path / "a.txt", class_names=("a",))
    convert({"train": source.listings}, tmp_path / "out", "r", ("a",))
    record_set = records.open_split(tmp_path / "out", "train")
    (batch,) = batches(pipeline.eval_dataset(record_set, make_config(batch_size=2), encode), 1)
    assert batch["boxes"].shape == (2, 104, 4)  # 128 would be the next power of two
    assert sorted((batch["labels"] == 0).sum(1)) == [0, 100]


def test_image_dataset(record_set):
    pixels = np.full([40, 30, 3], 200, np.uint8)
    encoded = tf.io.encode_jpeg(pixels).numpy()
    dataset = pipeline.image_dataset(
        [(f"{i}.jpg", encoded) for i in range(10)], make_config(size=(60, 60), resize="letterbox")
    )
    first, second = batches(dataset, -1)
    assert ids([first, second]) == [b"%d.jpg" % i for i in range(10)] + [b""] * 6
    assert (first["image_size"] == [40, 30]).all()
    assert (first["image"][0, 30, 30] == 200).all()
    assert (first["image"][0, :, :7] == 128).all()  # 45 of 60 columns are covered


def test_the_training_graph_has_no_python_and_no_state(record_set):
    """No py_function, no generator, no stateful random op, anywhere in the graph of the data set."""
    dataset = pipeline.train_dataset(record_set, make_config(SSD_PAPER_AUGMENT), encode)
    graph = tf.compat.v1.GraphDef.FromString(dataset._as_serialized_graph().numpy())
    functions = graph.library.function
    ops = {node.op for node in graph.node} | {node.op for function in functions for node in function.node_def}
    assert {"DecodeAndCropJpeg", "RandomIndexShuffle", "ResizeBilinear"} <= ops
    stateful_random = {
        "RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "RandomShuffle", "Multinomial",
        "RandomGamma", "RandomPoisson", "RandomPoissonV2", "ParameterizedTruncatedNormal", "RandomCrop",
        "SampleDistortedBoundingBox", "SampleDistortedBoundingBoxV2", "StatefulUniform", "StatefulStandardNormalV2",
    }  # fmt: skip
    assert not ops & stateful_random
    assert not {op for op in ops if "PyFunc" in op or "Generator" in op or op == "RandomDataset"}
