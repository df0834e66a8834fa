"""Multi-scale training: every batch has one of several sizes, and the stages of that size work on it.

Shapes are static within a size, as XLA wants them: it compiles one batch stage a size (and bucket of boxes). Which
size a batch gets is drawn by (seed, step) alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import tensorflow as tf

from tfdet import schema
from tfdet.config import Config
from tfdet.data import random
from tfdet.data.stages import Stages


def draw_scale(seed: int, step, number: int):
    """int64 [B] steps -> int32 [B] in [0, number)."""
    u = random.uniform(seed, random.SCALE, tf.zeros_like(step), step, 1)[:, 0]
    return tf.cast(u * number, tf.int32)


@dataclass(frozen=True)
class ScaledStages:
    """As `Stages`; one `Stages` a size, see `at_sides`."""

    sizes: tuple[Stages, ...]

    @property
    def rows(self) -> int:
        """Images in a batch."""
        return self.sizes[0].rows

    @property
    def store(self) -> str:
        """How the records hold images."""
        return self.sizes[0].store

    @property
    def config(self) -> Config:
        """Of the first size; what does not belong to the detector is the same for all."""
        return self.sizes[0].config

    def parse(self, rows):
        """As `Stages.parse`, and draws the size: int32 [B] `scale`, all the same."""
        scale = draw_scale(self.config.data.seed, rows["step"], len(self.sizes))
        return {**self.sizes[0].parse(rows), "scale": scale}

    def plan(self, example):
        """As `Stages.plan`."""
        return tf.switch_case(example["scale"][0], [partial(stages.plan, example) for stages in self.sizes])

    def decode(self, row):
        """As `Stages.decode`; the image's height and width differ from batch to batch."""
        return tf.switch_case(row["scale"], [partial(_on_copy, stages.decode, row) for stages in self.sizes])

    def decode_crop(self, row):
        """As `Stages.decode_crop`."""
        return self.sizes[0].decode_crop(row)

    def batch_stage(self) -> Callable:
        """As `Stages.batch_stage`, one for each size."""
        compiled = [_with_known_size(stages) for stages in self.sizes]

        def stage(batch):
            scale = batch.pop("scale")[0]
            return tf.switch_case(scale, [partial(_on_copy, function, batch) for function in compiled])

        return stage


def at_sides(stages: Stages, sides) -> ScaledStages:
    """The same stages for square inputs of the given sides, in pixels; `encode` takes their size as `image_size`."""

    def at(side):
        detector = replace(stages.config.detector, image_size=(side, side))
        encode = stages.encode and partial(stages.encode, image_size=(side, side))
        return replace(stages, config=replace(stages.config, detector=detector), encode=encode)

    return ScaledStages(tuple(at(side) for side in sides))


def _on_copy(function, row):
    return function(dict(row))  # stages take keys out, and every branch needs them


def _with_known_size(stages):
    function, shape = stages.batch_stage(), [stages.rows, *stages.config.detector.image_size, 3]
    return lambda batch: function({**batch, schema.IMAGE: tf.ensure_shape(batch[schema.IMAGE], shape)})
