"""Key names of everything that flows: records, examples, batches, detections.

Records follow the TensorFlow detection schema (object detection API, Model Garden): box corners are
relative floats in four lists, class labels are 1-based on disk. Everywhere else in tfdet labels are
int32 in [0, C), with the two negative values below.
"""

import tensorflow as tf

SCHEMA_VERSION = 1

# --- labels -------------------------------------------------------------------------------------
BACKGROUND = -1  # padding in `labels`, background in `target_labels`
IGNORE = -2  # difficult or crowd: neither an object nor background

# --- keys of an example and of a batch ----------------------------------------------------------
IMAGE = "image"
BOXES = "boxes"
LABELS = "labels"
IMAGE_ID = "image_id"
IMAGE_SIZE = "image_size"
# the annotations as they are, relative to the photo; in evaluation's batches, where nothing may be left out
TRUE_BOXES = "true_boxes"
TRUE_LABELS = "true_labels"  # in [0, C), -1 padding; difficult boxes keep their class
TRUE_DIFFICULT = "true_difficult"
TARGET_BOXES = "target_boxes"
TARGET_LABELS = "target_labels"

# --- keys of predictions, losses and detections -------------------------------------------------
BOX_DELTAS = "box_deltas"
CLASS_LOGITS = "class_logits"
OBJECTNESS_LOGITS = "objectness_logits"
NORMALIZER = "normalizer"
SCORES = "scores"
NUM_DETECTIONS = "num_detections"

# --- records ------------------------------------------------------------------------------------
ENCODED = "image/encoded"
FORMAT = "image/format"
HEIGHT = "image/height"
WIDTH = "image/width"
SOURCE_ID = "image/source_id"
FILENAME = "image/filename"
XMIN = "image/object/bbox/xmin"
YMIN = "image/object/bbox/ymin"
XMAX = "image/object/bbox/xmax"
YMAX = "image/object/bbox/ymax"
CLASS_LABEL = "image/object/class/label"  # 1-based, as the TensorFlow detection convention has it
CLASS_TEXT = "image/object/class/text"
DIFFICULT = "image/object/difficult"


def record_features() -> dict:
    """The feature spec that `tf.io.parse_single_example` needs to read one record."""
    lists = {key: tf.io.RaggedFeature(tf.float32) for key in (XMIN, YMIN, XMAX, YMAX)}
    return {
        ENCODED: tf.io.FixedLenFeature([], tf.string),
        FORMAT: tf.io.FixedLenFeature([], tf.string, default_value="jpeg"),
        HEIGHT: tf.io.FixedLenFeature([], tf.int64),
        WIDTH: tf.io.FixedLenFeature([], tf.int64),
        SOURCE_ID: tf.io.FixedLenFeature([], tf.string, default_value=""),
        **lists,
        CLASS_LABEL: tf.io.RaggedFeature(tf.int64),
        DIFFICULT: tf.io.RaggedFeature(tf.int64),
    }
