"""Records that cannot be used: a checksum that fails, a record that does not parse, a JPEG that does not decode.

Nothing on the way to training looks for them: an error is raised where one turns up, and `named` says which records it
is about. With `data.skip_bad_records` every record is tried once before training, and those that fail are left out.
"""

import contextlib
from dataclasses import replace

import numpy as np
import tensorflow as tf

from tfdet import schema
from tfdet.data.errors import RecordError
from tfdet.data.reading import read_by_number
from tfdet.data.records import RecordSet
from tfdet.data.tfrecord import FRAME_BYTES

_ADVICE = "repair the images and convert the data set again"
_SHOWN = 5  # faults in one message
# what reading, parsing and decoding raise; UnicodeDecodeError where TensorFlow's message quotes a record's bytes
_ERRORS = (
    tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.OutOfRangeError,
    UnicodeDecodeError,
)  # fmt: skip


def find_faults(record_set: RecordSet, progress=None) -> list[tuple[int, str]]:
    """Reads, parses and decodes every record once, at the decoder's speed.

    Args:
        progress: called after every record.
    Returns:
        (record number, text) of each that fails; the text names shard, record in the shard, image id and the reason.
    """
    check = _checker(record_set)

    def survives(row):  # nothing comes out of the inner data set if `check` raises
        inner = tf.data.Dataset.from_tensors(row).map(check).apply(tf.data.experimental.ignore_errors())
        return inner.concatenate(tf.data.Dataset.from_tensors(False)).take(1).get_single_element()

    rows = tf.data.Dataset.range(record_set.num_images).map(lambda i: {"index": i})
    faults = []
    for number, good in enumerate(rows.map(survives, tf.data.AUTOTUNE).as_numpy_iterator()):
        if not good:
            faults.append((number, _describe(record_set, number)))
        if progress:
            progress()
    return faults


def leave_out(record_set: RecordSet, numbers) -> RecordSet:
    """The same split without some of its records.

    Every other record keeps its place in every batch, with the same random changes; in the place of one that is left
    out stands a row that fills up, with an empty image_id, and -2 as labels and targets. So a batch is a pure function
    of (seed, step, numbers).

    Raises:
        RecordError: nothing is left.
    """
    numbers = tuple(sorted({*record_set.left_out, *map(int, numbers)}))
    if numbers and len(numbers) >= record_set.num_images:
        where = f"{record_set.directory}, split {record_set.split}"
        raise RecordError(where, "none of the records can be used", _ADVICE)
    return replace(record_set, left_out=numbers)


@contextlib.contextmanager
def named(*record_sets):
    """Turns TensorFlow's errors about records into a RecordError that names them; None among the sets is passed over.

    All records are tried for that, so it takes as long as decoding them. An error that has other causes stays.
    """
    try:
        yield
    except _ERRORS as error:
        found = [(number, text, records) for records in record_sets if records for number, text in find_faults(records)]
        faults = [text for number, text, records in found if number not in records.left_out]
        if not faults:
            raise
        raise RecordError(f"{len(faults)} record{'s' * (len(faults) > 1)}", list_faults(faults), _ADVICE) from error


def list_faults(texts) -> str:
    """The first few, in one line."""
    return "; ".join(texts[:_SHOWN]) + ("; ..." if len(texts) > _SHOWN else "")


def _checker(record_set):
    read = read_by_number(record_set)

    def check(row):
        fields = tf.io.parse_single_example(read(row)["serialized"], schema.record_features())
        with tf.control_dependencies(_box_checks(fields, record_set.max_boxes)):
            encoded = tf.identity(fields[schema.ENCODED])
        pixels = 3 * fields[schema.HEIGHT] * fields[schema.WIDTH]
        if record_set.store == "jpeg":  # decode_jpeg would take other formats as well, decoding a part of it does not
            start = tf.io.decode_raw(tf.strings.substr(encoded, 0, 2), tf.uint8)
            known = tf.debugging.assert_equal(start, tf.constant([0xFF, 0xD8], tf.uint8), "the image is no JPEG")
            with tf.control_dependencies([known] if known is not None else []):
                found = tf.size(tf.io.decode_jpeg(encoded, channels=3), tf.int64)
        else:
            found = tf.cast(tf.strings.length(encoded), tf.int64)
        fits = tf.debugging.assert_equal(found, pixels, "the image has another size than recorded")
        with tf.control_dependencies([fits] if fits is not None else []):
            return tf.constant(True)

    return check


def _box_checks(fields, max_boxes):
    """What batches of boxes need: as many corners as labels, and no more than the manifest says."""
    count = tf.size(fields[schema.CLASS_LABEL])
    lists = (schema.XMIN, schema.YMIN, schema.XMAX, schema.YMAX, schema.DIFFICULT)
    checks = [
        tf.debugging.assert_equal(tf.size(fields[key]), count, f"{key} is not as long as the labels") for key in lists
    ]
    checks.append(
        tf.debugging.assert_less_equal(count, max_boxes, f"it has more boxes than the {max_boxes} of the manifest")
    )
    return [check for check in checks if check is not None]  # eager ones are done


def _describe(record_set, number):
    shard, offset, _ = record_set.index[number]
    in_shard = number - np.searchsorted(record_set.index[:, 0], shard)
    try:
        _checker(record_set)({"index": tf.constant(number)})
        reason = "failed once, and reads well now"
    except tf.errors.OpError as error:
        reason = error.message.splitlines()[0].split("}} ")[-1]
    except UnicodeDecodeError:
        reason = "it is no tf.train.Example"
    image = _image_id(record_set, number)
    image = f"image {image}" if image else "its image id cannot be read"
    return f"{record_set.shard_paths[shard]}: record {in_shard} (byte {offset}), {image}: {reason}"


def _image_id(record_set, number) -> str:
    """What a record says its image is called, whatever its checksum; empty where it says nothing."""
    shard, offset, length = map(int, record_set.index[number])
    try:
        with open(record_set.shard_paths[shard], "rb") as file:
            file.seek(offset + FRAME_BYTES - 4)  # the checksum of the payload comes behind it
            example = tf.train.Example.FromString(file.read(length))
    except Exception:  # of several libraries for protocol buffers
        return ""
    values = example.features.feature[schema.SOURCE_ID].bytes_list.value
    return values[0].decode(errors="replace") if values else ""
