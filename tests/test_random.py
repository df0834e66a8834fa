import numpy as np
import pytest
import tensorflow as tf

from tfdet.data import random


@pytest.mark.parametrize(
    "key, counter, expected",
    [  # the known answers that the Random123 distribution gives for threefry2x32 with 20 rounds
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_known_answers(key, counter, expected):
    result = random.threefry(*(tuple(tf.constant(word, tf.uint32) for word in pair) for pair in (key, counter)))
    assert tuple(int(word) for word in result) == expected


def _draw(elements, epoch=0, seed=0, op=random.WINDOW, count=5):
    elements = tf.constant(elements, tf.int64)
    return random.uniform(seed, op, tf.fill(elements.shape, tf.constant(epoch, tf.int64)), elements, count).numpy()


def test_a_draw_depends_on_its_own_key_only():
    together = _draw([7, 3, 11])
    alone = np.concatenate([_draw([number]) for number in (7, 3, 11)])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together[:, :3], _draw([7, 3, 11], count=3))


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}, {"op": random.FLIP}])
def test_another_key_gives_other_draws(change):
    assert not np.isin(_draw(range(50)), _draw(range(50), **change)).any()


def test_xla_draws_the_same():
    compiled = tf.function(lambda n: random.uniform(1, 2, n, n, 9), jit_compile=True)
    numbers = tf.range(20, dtype=tf.int64)
    np.testing.assert_array_equal(compiled(numbers), random.uniform(1, 2, numbers, numbers, 9))


def test_uniform_is_uniform():
    draws = _draw(range(20_000), count=3)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, 20, (0, 1))[0]  # 3,000 expected in each, standard deviation 53
    assert np.abs(counts - 3000).max() < 5 * 53
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03  # 1 / sqrt(20,000) = 0.007


def test_normal_is_normal():
    elements = tf.range(20_000, dtype=tf.int64)
    draws = random.normal(0, random.LIGHTING, tf.zeros_like(elements), elements, 3).numpy()
    assert np.isfinite(draws).all()
    np.testing.assert_allclose(draws.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(draws.std(0), 1, atol=0.03)


def test_no_elements_draw_nothing():
    assert _draw([]).shape == (0, 5)
