"""Learning rates against numpy, and the optimizers of a config."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfdet.compat import keras
from tfdet.config import ConfigError, TrainConfig
from tfdet.train import optimizers, schedules


def rates(config, steps):
    schedule = schedules.learning_rate(config, steps)
    return [float(schedule(step)) for step in range(steps)]


def slow_rate(step, rate, warmup, steps, cosine):
    if step < warmup:
        return rate * (step + 1) / (warmup + 1)
    return rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) if cosine else rate


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 0), ("cosine", 4), ("constant", 4)])
def test_rates(schedule, warmup):
    config = TrainConfig(learning_rate=0.3, schedule=schedule, warmup_steps=warmup)
    expected = [slow_rate(step, 0.3, warmup, 20, schedule == "cosine") for step in range(20)]
    np.testing.assert_allclose(rates(config, 20), expected, rtol=1e-5)


def test_warm_up_by_hand():
    config = TrainConfig(learning_rate=1.0, warmup_steps=3)
    np.testing.assert_allclose(rates(config, 5), [0.25, 0.5, 0.75, 1.0, 1.0], rtol=1e-6)


def test_a_plain_constant_rate_is_a_number_that_callbacks_may_set():
    assert schedules.learning_rate(TrainConfig(learning_rate=0.1), 10) == 0.1


def test_a_schedule_survives_its_config():
    schedule = schedules.learning_rate(TrainConfig(schedule="cosine", warmup_steps=2), 10)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert [float(again(step)) for step in range(10)] == [float(schedule(step)) for step in range(10)]


def test_a_warm_up_longer_than_the_run_is_an_error():
    with pytest.raises(ConfigError, match=r"train\.warmup_steps is 10, but the whole run has 10 steps"):
        schedules.learning_rate(TrainConfig(schedule="cosine", warmup_steps=10), 10)


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("sgd", "SGD"), ("adamw", "AdamW")])
def test_optimizers(name, kind):
    model = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])
    config = TrainConfig(optimizer=name, learning_rate=0.25, weight_decay=0.01)
    optimizer = optimizers.build_optimizer(config, 10, model)
    assert type(optimizer).__name__ == kind
    assert float(tf.convert_to_tensor(optimizer.learning_rate)) == 0.25
    assert optimizers.l2(config) == (0.0 if name == "adamw" else 0.01)
