"""Records that cannot be used: found, named, left out without touching anything else."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from datasets import make_records
from PIL import Image

from tfdet import schema
from tfdet.config import Config, ConfigError, DataConfig, SsdConfig, TrainConfig
from tfdet.data import faults, pipeline
from tfdet.data.errors import RecordError
from tfdet.data.images import ImageOptions
from tfdet.data.tfrecord import crc32c

NUMBER, BATCH = 12, 4
CHECKSUM, UNPARSED, TRUNCATED, PNG = 1, 3, 7, 10


def payload_of(record_set, number):
    shard, offset, length = map(int, record_set.index[number])
    return Path(record_set.shard_paths[shard]), offset + 12, length


def rewrite(record_set, number, change):
    """Replaces a record's payload by `change` of it, as long as before, with a checksum that fits."""
    path, start, length = payload_of(record_set, number)
    content = bytearray(path.read_bytes())
    payload = change(bytes(content[start : start + length]))
    assert len(payload) == length
    checksum = crc32c(payload)
    masked = (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    content[start : start + length + 4] = payload + masked.to_bytes(4, "little")
    path.write_bytes(content)


def damage_image(payload, spoil):
    """The payload with another image in it, of the same length."""
    example = tf.train.Example.FromString(payload)
    image = example.features.feature[schema.ENCODED].bytes_list
    start = payload.index(image.value[0])
    return payload[:start] + spoil(image.value[0]) + payload[start + len(image.value[0]) :]


def as_png(encoded):
    width, height = Image.open(io.BytesIO(encoded)).size
    png = io.BytesIO()
    Image.new("RGB", (width, height)).save(png, "PNG")
    return png.getvalue().ljust(len(encoded), b"\0")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("whole"), NUMBER)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    record_set = make_records(tmp_path_factory.mktemp("damaged"), NUMBER)
    path, start, length = payload_of(record_set, CHECKSUM)
    content = bytearray(path.read_bytes())
    content[start + length // 2] ^= 0xFF
    path.write_bytes(content)
    rewrite(record_set, UNPARSED, lambda payload: b"\xff" * len(payload))
    rewrite(
        record_set, TRUNCATED, lambda payload: damage_image(payload, lambda jpeg: jpeg[:300] + bytes(len(jpeg) - 300))
    )
    rewrite(record_set, PNG, lambda payload: damage_image(payload, as_png))
    return record_set


def make_config(**data):
    return Config(detector=SsdConfig(image_size=(60, 80)), data=DataConfig(**data), train=TrainConfig(batch_size=BATCH))


def batches(record_set, number, start=0, **data):
    dataset = pipeline.train_dataset(record_set, make_config(**data), start_step=start)
    return list(dataset.take(number).as_numpy_iterator())


def id_of(record_set, number):
    path, start, length = payload_of(record_set, number)
    with open(path, "rb") as file:
        file.seek(start)
        features = tf.train.Example.FromString(file.read(length)).features
    return features.feature[schema.SOURCE_ID].bytes_list.value[0].decode()


def test_a_whole_set_has_none(whole):
    seen = []
    assert faults.find_faults(whole, lambda: seen.append(1)) == []
    assert len(seen) == NUMBER


def test_each_fault_is_found_and_named(damaged):
    found = dict(faults.find_faults(damaged))
    assert list(found) == [CHECKSUM, UNPARSED, TRUNCATED, PNG]
    for number, text in found.items():
        path, start, _ = payload_of(damaged, number)
        in_shard = number - np.searchsorted(damaged.index[:, 0], damaged.index[number, 0])
        assert text.startswith(f"{path}: record {in_shard} (byte {start - 12}), ")
    for number in (CHECKSUM, TRUNCATED, PNG):
        assert f"image {id_of(damaged, number)}: " in found[number]
    assert "its image id cannot be read" in found[UNPARSED]
    assert "corrupted record" in found[CHECKSUM]
    assert "the image is no JPEG" in found[PNG]


def test_an_error_on_the_way_names_the_records(damaged, whole):
    message = r"^4 records: .*record 1 \(byte \d+\), image .*convert the data set again"
    with pytest.raises(RecordError, match=message), faults.named(whole, None, damaged):
        batches(damaged, 3)
    with pytest.raises(tf.errors.InvalidArgumentError), faults.named(whole):
        raise tf.errors.InvalidArgumentError(None, None, "something else")


def test_records_whose_boxes_do_not_fit_are_named(whole):
    """A manifest that says less than a record holds: the largest bucket, 8 here, does not take 9 boxes."""
    most = int(np.argmax([len(boxes_of(whole, number)) for number in range(NUMBER)]))
    fewer = replace(whole, max_boxes=len(boxes_of(whole, most)) - 1)
    found = dict(faults.find_faults(fewer))
    assert most in found
    assert f"it has more boxes than the {fewer.max_boxes} of the manifest" in found[most]
    assert faults.find_faults(whole) == []


def boxes_of(record_set, number):
    path, start, length = payload_of(record_set, number)
    example = tf.train.Example.FromString(path.read_bytes()[start : start + length])
    return example.features.feature[schema.CLASS_LABEL].int64_list.value


def test_lists_of_boxes_of_different_lengths():
    ragged = {key: tf.constant([0.1, 0.2]) for key in (schema.XMIN, schema.YMIN, schema.XMAX)}
    fields = {**ragged, schema.CLASS_LABEL: tf.constant([1, 1]), schema.DIFFICULT: tf.constant([0, 0])}
    with pytest.raises(tf.errors.InvalidArgumentError, match="bbox/ymax is not as long as the labels"):
        faults._box_checks({**fields, schema.YMAX: tf.constant([0.5])}, 2)
    assert faults._box_checks({**fields, schema.YMAX: tf.constant([0.5, 0.5])}, 2) == []


@pytest.mark.parametrize("ram_budget_mb", [0, 1000])
def test_all_other_rows_are_as_if_nothing_was_wrong(damaged, whole, ram_budget_mb):
    usable = faults.leave_out(damaged, (number for number, _ in faults.find_faults(damaged)))
    assert usable.left_out == (CHECKSUM, UNPARSED, TRUNCATED, PNG)
    lost = {id_of(whole, number).encode() for number in usable.left_out}
    pairs = zip(batches(whole, 6), batches(usable, 6, ram_budget_mb=ram_budget_mb))
    missed = 0
    for expected, found in pairs:
        gone = np.isin(expected["image_id"], list(lost))
        missed += gone.sum()
        assert (found["image_id"][gone] == b"").all()
        assert (found["labels"][gone] == schema.IGNORE).all()
        for key in ("image", "image_id", "boxes", "labels"):
            np.testing.assert_array_equal(found[key][~gone], expected[key][~gone])
    assert missed == 2 * 4  # two epochs


@pytest.fixture(scope="module")
def damaged_raw(tmp_path_factory):
    """Raw images: one record that is none, one without an image, one whose image is a row longer than it says."""
    record_set = make_records(tmp_path_factory.mktemp("raw"), NUMBER, options=ImageOptions("raw"))
    rewrite(record_set, UNPARSED, lambda payload: b"\xff" * len(payload))
    rewrite(record_set, CHECKSUM, lambda payload: payload.replace(b"image/encoded", b"image/nothing"))

    def say_less(payload):
        example = tf.train.Example.FromString(payload)
        example.features.feature[schema.HEIGHT].int64_list.value[0] -= 1
        return example.SerializeToString()

    rewrite(record_set, TRUNCATED, say_less)
    return record_set


@pytest.mark.parametrize("ram_budget_mb", [0, 1000])
@pytest.mark.parametrize("number", [CHECKSUM, UNPARSED, TRUNCATED])
def test_no_image_of_another_record_is_shown_for_a_damaged_one(damaged_raw, ram_budget_mb, number):
    others = [other for other in (CHECKSUM, UNPARSED, TRUNCATED) if other != number]
    record_set = faults.leave_out(damaged_raw, others)
    with pytest.raises((tf.errors.OpError, RecordError, UnicodeDecodeError)):  # the last is a message of TensorFlow's
        batches(record_set, 3, ram_budget_mb=ram_budget_mb)
    usable = faults.leave_out(record_set, [number])
    for held, read in zip(batches(usable, 3, ram_budget_mb=1000), batches(usable, 3, ram_budget_mb=0)):
        np.testing.assert_array_equal(held["image"], read["image"])
        np.testing.assert_array_equal(held["image_id"], read["image_id"])
    assert [found for found, _ in faults.find_faults(damaged_raw)] == [CHECKSUM, UNPARSED, TRUNCATED]


def test_training_resumes_at_any_step_without_them(damaged):
    usable = faults.leave_out(damaged, (CHECKSUM, UNPARSED, TRUNCATED, PNG))
    for one, other in zip(batches(usable, 6)[4:], batches(usable, 2, start=4)):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_evaluation_leaves_them_out_as_well(damaged):
    usable = faults.leave_out(damaged, (CHECKSUM, UNPARSED, TRUNCATED, PNG))
    ids = [
        name for batch in pipeline.eval_dataset(usable, make_config()).as_numpy_iterator() for name in batch["image_id"]
    ]
    assert len(ids) == NUMBER
    assert ids.count(b"") == 4


def test_what_cannot_be(whole):
    with pytest.raises(RecordError, match="none of the records can be used"):
        faults.leave_out(whole, range(NUMBER))
    assert faults.leave_out(whole, ()) == whole
    with pytest.raises(ConfigError, match="sequential"):
        DataConfig(shuffle="sequential", skip_bad_records=True)
    with pytest.raises(ConfigError, match="cannot step over"):
        batches(faults.leave_out(whole, [0]), 1, shuffle="sequential")
