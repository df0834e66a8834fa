"""What TensorBoard gets: curves of the steps and epochs, AP by class, and pictures with boxes."""

import tensorflow as tf


class Board:
    """Writes to `folder`: train/* every few steps, epoch/* and pictures once an epoch. `folder` None writes nothing."""

    def __init__(self, folder):
        self._writer = tf.summary.create_file_writer(str(folder)) if folder else tf.summary.create_noop_writer()

    def write(self, prefix, logs, step):
        """logs: dict of floats. step: int, updates made."""
        with self._writer.as_default(step=step):
            for name, value in logs.items():
                tf.summary.scalar(f"{prefix}/{name}", value)

    def show(self, images, step):
        """images: uint8 [N, H, W, 3]."""
        with self._writer.as_default(step=step):
            tf.summary.image("val", images, max_outputs=len(images))

    def close(self):
        self._writer.close()
