"""Mosaic, mixup and cutout against slow twins that work on one image at a time, in plain NumPy, with the same draws."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfdet.config import AugmentConfig, Config, ConfigError, TrainConfig
from tfdet.data import cutout, mixing

SIZE = (48, 80)  # height, width
GROUP = 4


@pytest.fixture
def draws(rng):
    return lambda *shape: rng.uniform(size=shape).astype("f4")


def in_map(function, *arrays):
    """The function inside Dataset.map, as the pipeline calls it."""
    return next(iter(tf.data.Dataset.from_tensors(arrays).map(function)))


def in_numpy(structure):
    return tf.nest.map_structure(lambda x: x.numpy(), structure)


def make_boxes(rng, batch, number, padded=128):
    corners = np.sort(rng.uniform(size=(batch, number, 2, 2)), axis=2).astype("f4")
    boxes = np.zeros([batch, padded, 4], "f4")
    boxes[:, :number] = corners.reshape(batch, number, 4)
    labels = np.full([batch, padded], -1, "i4")
    labels[:, :number] = np.arange(batch * number).reshape(batch, number)  # a label says which box it was
    return boxes, labels


def both_ways(function, *arrays):
    """The results called eagerly and in a map, which must be the same; as NumPy."""
    eager = in_numpy(function(*(tf.nest.map_structure(tf.constant, a) for a in arrays)))
    mapped = in_numpy(in_map(function, *arrays))
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), eager, mapped)
    return mapped


def assert_sound(boxes, labels):
    """Inside, upright, padding all zeros."""
    assert boxes.min(initial=0) >= 0
    assert boxes.max(initial=0) <= 1
    real = labels != -1
    assert (boxes[real][:, 2:] > boxes[real][:, :2]).all()
    assert (boxes[~real] == 0).all()


# --- twins ----------------------------------------------------------------------------------------


def twin_mosaic_plan(u, row, group):
    """For one row: the sources, tiles and windows, tile by tile."""
    height, width = SIZE
    top, left = round(float(np.float32(0.3) + np.float32(0.4) * u[1]) * height), round((0.3 + 0.4 * u[2]) * width)
    tiles = [
        (0, 0, top, left),
        (0, left, top, width - left),
        (top, 0, height - top, left),
        (top, left, height - top, width - left),
    ]
    first = row - row % group
    others = [first + (row - first + 1 + k) % group for k in np.argsort(u[16:], kind="stable")]
    images = [row, *others[:3]]
    corner = int(u[3] * 4)  # of the row's own image; its neighbours to the side and below move with it
    sources = [images[tile ^ corner] for tile in range(4)]
    windows = []
    for k, (_, _, h, w) in enumerate(tiles):
        smallest = max(h / height, w / width)
        scale = smallest + (1 - smallest) * u[4 + k]
        shown = [min(round(h / scale), height), min(round(w / scale), width)]
        start = [min(int(u[8 + 2 * k + axis] * (SIZE[axis] - shown[axis] + 1)), SIZE[axis] - shown[axis])
                 for axis in (0, 1)]  # fmt: skip
        windows.append((*start, *shown))
    return sources, tiles, windows


def twin_resize(image, size):
    """Bilinear, half-pixel centres: float64 [H, W, 3] -> [*size, 3]."""
    for axis in (0, 1):
        old, new = image.shape[axis], size[axis]
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if k == axis else 1 for k in range(3)])
        high = np.minimum(low + 1, old - 1)
        image = np.take(image, low, axis) * (1 - share) + np.take(image, high, axis) * share
    return image


def twin_mosaic_image(images, sources, tiles, windows):
    canvas = np.full([*SIZE, 3], np.nan)
    for source, (y, x, h, w), (wy, wx, wh, ww) in zip(sources, tiles, windows):
        part = images[source][wy : wy + wh, wx : wx + ww].astype("f8")
        canvas[y : y + h, x : x + w] = twin_resize(part, (h, w))
    return canvas


def twin_mosaic_boxes(boxes, labels, sources, tiles, windows, min_visible):
    """label -> box in pixels, for one mosaic."""
    height, width = SIZE
    found = {}
    for source, (y, x, h, w), (wy, wx, wh, ww) in zip(sources, tiles, windows):
        for box, label in zip(boxes[source], labels[source]):
            if label == -1:
                continue
            x0, y0, x1, y1 = box.astype("f8") * [width, height, width, height] - [wx, wy, wx, wy]
            cut = np.clip([x0, x1], 0, ww), np.clip([y0, y1], 0, wh)
            sides = [cut[0][1] - cut[0][0], cut[1][1] - cut[1][0]]
            # at least a pixel of the input when the window is shown whole, and in the tile
            if sides[0] * width / ww < 1 or sides[1] * height / wh < 1:
                continue
            if sides[0] * sides[1] < min_visible * (x1 - x0) * (y1 - y0):
                continue
            placed = [x + cut[0][0] * w / ww, y + cut[1][0] * h / wh, x + cut[0][1] * w / ww, y + cut[1][1] * h / wh]
            if placed[2] - placed[0] >= 1 and placed[3] - placed[1] >= 1:
                found[int(label)] = placed
    return found


# --- partners -------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [4, 8])
def test_partners_are_the_others_of_the_group(draws, group):
    rows = mixing.partners(draws(16, group - 1), group).numpy()
    for row, others in enumerate(rows):
        first = row // group * group
        assert sorted([row, *others]) == list(range(first, first + group))
    assert len({tuple(r - row for r in others) for row, others in enumerate(rows)}) > 2  # in many orders


def test_group_size():
    assert mixing.group_size(32) == 8
    assert mixing.group_size(12) == 4
    mixing.require_whole_groups(32, 16)
    with pytest.raises(ConfigError, match=r"mix 8 rows .* 4 rows an input pipeline"):
        mixing.require_whole_groups(8, 4)
    with pytest.raises(ConfigError, match="batch_size is 6; "):
        Config(augment=AugmentConfig(mosaic=1.0), train=TrainConfig(batch_size=6))


# --- mosaic ---------------------------------------------------------------------------------------


def plan_mosaic(u, probability=1.0):
    return both_ways(lambda u: mixing.plan_mosaic(u, SIZE, GROUP, probability), u)


def test_the_plan_of_a_mosaic_equals_its_twin(draws):
    u = draws(40, mixing.num_mosaic_draws(GROUP))
    plan = plan_mosaic(u)
    exact = 0
    for row in range(40):
        sources, tiles, windows = twin_mosaic_plan(u[row].astype("f8"), row, GROUP)
        assert plan["sources"][row].tolist() == sources
        assert np.abs(plan["tiles"][row] - tiles).max() <= 1
        assert np.abs(plan["windows"][row] - windows).max() <= 2
        exact += (plan["tiles"][row] == tiles).all() and (plan["windows"][row] == windows).all()
    assert exact > 36  # single precision decides a rare .5 otherwise


def test_tiles_cover_the_image_and_windows_lie_inside(draws):
    plan = plan_mosaic(draws(200, mixing.num_mosaic_draws(GROUP)))
    assert (plan["tiles"][..., 2:].prod(-1).sum(-1) == SIZE[0] * SIZE[1]).all()
    assert (plan["tiles"][..., 2:] >= 1).all()
    assert (plan["windows"] >= 0).all()
    assert (plan["windows"][..., :2] + plan["windows"][..., 2:] <= SIZE).all()
    assert (plan["windows"][..., 2:] >= plan["tiles"][..., 2:]).all()  # nothing is enlarged
    own = (plan["sources"] == np.arange(200)[:, None]).sum(0)
    assert (own > 25).all()  # a row's own image comes into every corner


def test_a_mosaic_by_hand():
    """All draws 0 but the corner: centre at .3 of 48 x 80 = row 14, column 24; smallest scales."""
    u = np.zeros([4, mixing.num_mosaic_draws(4)], "f4")
    plan = in_numpy(mixing.plan_mosaic(tf.constant(u), SIZE, 4, 1.0))
    assert plan["tiles"][0].tolist() == [[0, 0, 14, 24], [0, 24, 14, 56], [14, 0, 34, 24], [14, 24, 34, 56]]
    # tile 0: max(14 / 48, 24 / 80) = .3, 14 / .3 = 46.7 -> 47, 24 / .3 = 80; tile 1: 56 / 80 = .7, 14 / .7 = 20, 80
    # tile 2: 34 / 48 = .708, 48 and 24 / .708 = 33.9 -> 34; tile 3: .708, 48 and 79.06 -> 79
    assert plan["windows"][0].tolist() == [[0, 0, 47, 80], [0, 0, 20, 80], [0, 0, 48, 34], [0, 0, 48, 79]]
    assert plan["sources"].tolist() == [[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]]


def test_pixels_of_a_mosaic_equal_their_twin(draws, rng):
    images = rng.integers(0, 256, (8, *SIZE, 3), np.uint8)
    plan = plan_mosaic(draws(8, mixing.num_mosaic_draws(GROUP)), probability=0.6)
    assert 0 < plan["drawn"].sum() < 8
    result = both_ways(mixing.mosaic_images, images, plan)
    assert result.dtype == np.uint8
    for row in range(8):
        expected = twin_mosaic_image(images, *(plan[key][row] for key in ("sources", "tiles", "windows")))
        expected = expected if plan["drawn"][row] else images[row]
        assert np.abs(result[row] - expected).max() <= 0.51


@pytest.mark.parametrize("number", [0, 1, 100])
@pytest.mark.parametrize("min_visible", [0.0, 0.5])
def test_boxes_of_a_mosaic_equal_their_twin(draws, rng, number, min_visible):
    boxes, labels = make_boxes(rng, 8, number)
    plan = plan_mosaic(draws(8, mixing.num_mosaic_draws(GROUP)), probability=0.7)
    new_boxes, new_labels = both_ways(
        lambda b, n, p: mixing.mosaic_boxes(b, n, p, SIZE, min_visible), boxes, labels, plan
    )
    assert new_boxes.shape == (8, 512, 4)
    assert_sound(new_boxes, new_labels)
    for row in range(8):
        found = {int(n): b for b, n in zip(new_boxes[row], new_labels[row]) if n >= 0}
        if not plan["drawn"][row]:
            assert sorted(found) == labels[row][labels[row] >= 0].tolist()
            continue
        expected = twin_mosaic_boxes(
            boxes, labels, *(plan[key][row] for key in ("sources", "tiles", "windows")), min_visible
        )
        assert len(set(found) ^ set(expected)) <= 1  # one at the very limit
        for label in set(found) & set(expected):
            np.testing.assert_allclose(found[label] * np.tile([SIZE[1], SIZE[0]], 2), expected[label], atol=1e-3)


def test_ignored_boxes_stay_ignored_in_a_mosaic(draws):
    boxes, labels = np.tile(np.float32([0, 0, 1, 1]), [4, 1, 1]), np.full([4, 1], -2, "i4")
    plan = plan_mosaic(draws(4, mixing.num_mosaic_draws(4)))
    assert (mixing.mosaic_boxes(boxes, labels, plan, SIZE)[1] == -2).numpy().all()


# --- mixup ----------------------------------------------------------------------------------------


def test_the_plan_of_mixup_equals_its_twin(draws):
    config = AugmentConfig(mixup=0.5, mixup_alpha=3)
    u = draws(16, mixing.num_mixup_draws(GROUP, config))
    plan = both_ways(lambda u: mixing.plan_mixup(u, GROUP, config), u)
    for row in range(16):
        if u[row, 0] >= 0.5:
            assert (plan["partner"][row], plan["share"][row]) == (row, 1.0)
            continue
        offset = 1 + np.argsort(u[row, 1:4])[0]
        assert plan["partner"][row] == row // 4 * 4 + (row % 4 + offset) % 4
        assert plan["share"][row] == np.median(u[row, 4:9])  # of 2 * 3 - 1 draws


def test_the_share_is_beta_distributed(draws):
    config = AugmentConfig(mixup=1.0, mixup_alpha=8)
    share = mixing.plan_mixup(draws(4000, mixing.num_mixup_draws(4, config)), 4, config)["share"].numpy()
    assert abs(share.mean() - 0.5) < 0.01
    assert abs(share.var() - 1 / (4 * (2 * 8 + 1))) < 0.001  # a^2 / ((2a)^2 (2a + 1))


@pytest.mark.parametrize("number", [0, 1, 100])
def test_mixup_holds_the_boxes_of_both(draws, rng, number):
    boxes, labels = make_boxes(rng, 4, number)
    plan = {"partner": np.int32([2, 1, 3, 0]), "share": np.float32([0.4, 1.0, 0.5, 0.7])}
    new_boxes, new_labels = both_ways(mixing.mixup_boxes, boxes, labels, plan)
    assert_sound(new_boxes, new_labels)
    for row, partner in enumerate(plan["partner"]):
        expected = {int(n): b for source in {row, partner} for b, n in zip(boxes[source], labels[source]) if n >= 0}
        found = {int(n): b for b, n in zip(new_boxes[row], new_labels[row]) if n >= 0}
        assert (new_labels[row] >= 0).sum() == len(expected)  # row 1 is mixed with nothing: no box twice
        assert all((found[label] == box).all() for label, box in expected.items())


@pytest.mark.parametrize("compiled", [False, True])
def test_pixels_of_mixup(rng, compiled):
    one, other = rng.integers(0, 256, (2, 3, *SIZE, 3), np.uint8)
    share = np.float32([0.25, 1.0, 0.6])
    result = tf.function(mixing.mixup_images, jit_compile=compiled)(*map(tf.constant, (one, other, share))).numpy()
    expected = share[:, None, None, None].astype("f8") * one + (1 - share[:, None, None, None].astype("f8")) * other
    assert np.abs(result - expected).max() <= 0.51
    np.testing.assert_array_equal(result[1], one[1])


# --- cutout ---------------------------------------------------------------------------------------


CUTOUT = AugmentConfig(cutout=0.7, cutout_holes=3, cutout_side=(0.1, 0.5))


def test_the_plan_of_cutout_equals_its_twin(draws):
    u = draws(60, cutout.num_draws(CUTOUT))
    holes = both_ways(lambda u: cutout.plan(u, SIZE, CUTOUT), u)
    assert holes.shape == (60, 3, 4)
    exact = []
    for row, found in zip(u.astype("f8"), holes):
        if row[0] >= 0.7:
            assert not found.any()
            continue
        for k in range(3):
            h, w, y, x = row[1 + 4 * k : 5 + 4 * k]
            h, w = round((0.1 + 0.4 * h) * 48), round((0.1 + 0.4 * w) * 80)
            exact.append(found[k].tolist() == [int(y * (48 - h + 1)), int(x * (80 - w + 1)), h, w])
            assert (found[k, :2] + found[k, 2:] <= SIZE).all()
    assert np.mean(exact) > 0.95  # single precision decides a rare .5 otherwise


@pytest.mark.parametrize("compiled", [False, True])
def test_pixels_of_cutout_equal_their_twin(rng, compiled):
    images = rng.integers(0, 256, (2, *SIZE, 3), np.uint8)
    holes = np.int32([[[3, 5, 10, 20], [0, 0, 1, 1], [38, 70, 10, 10]], [[0, 0, 0, 0]] * 3])
    result = tf.function(cutout.cut, jit_compile=compiled)(tf.constant(images), tf.constant(holes)).numpy()
    np.testing.assert_array_equal(result, in_map(cutout.cut, images, holes))
    for y, x, h, w in holes[0]:
        images[0, y : y + h, x : x + w] = 128
    np.testing.assert_array_equal(result, images)


def test_hidden_objects_are_ignored():
    # 48 x 80 pixels; a hole over columns 0 to 40, rows 0 to 24
    boxes = np.float32(
        [[[0, 0, 0.5, 0.5], [0, 0, 0.5, 1], [0.25, 0.25, 0.75, 0.5], [0.6, 0.6, 0.9, 0.9], [0, 0, 0, 0]]]
    )
    labels, holes = np.int32([[4, 5, 6, -2, -1]]), np.int32([[[0, 0, 24, 40], [0, 0, 0, 0]]])
    # shares hidden: 1, 1/2, 1/2, 0, nothing to hide
    for hidden, expected in ((0.7, [-2, 5, 6, -2, -1]), (0.4, [-2, -2, -2, -2, -1])):
        result = both_ways(lambda *a, h=hidden: cutout.labels_after(*a, SIZE, h), boxes, labels, holes)
        assert result.tolist() == [expected]


@pytest.mark.parametrize("number", [0, 1, 100])
def test_labels_of_cutout_equal_their_twin(draws, rng, number):
    boxes, labels = make_boxes(rng, 8, number)
    holes = cutout.plan(draws(8, cutout.num_draws(CUTOUT)), SIZE, CUTOUT).numpy()
    result = both_ways(lambda *a: cutout.labels_after(*a, SIZE, 0.3), boxes, labels, holes)
    different = 0
    for row in range(8):
        for k in range(number):
            x0, y0, x1, y1 = boxes[row, k].astype("f8") * [80, 48, 80, 48]
            shared = sum(max(0, min(x1, x + w) - max(x0, x)) * max(0, min(y1, y + h) - max(y0, y))
                         for y, x, h, w in holes[row])  # fmt: skip
            different += result[row, k] != (-2 if shared >= 0.3 * (x1 - x0) * (y1 - y0) else labels[row, k])
    assert different <= 1  # one at the very limit
    assert (result[:, number:] == -1).all()


# --- all of them ----------------------------------------------------------------------------------


def test_pack_moves_padding_to_the_end(rng):
    boxes, labels = make_boxes(rng, 3, 0, 24)
    labels[0, [3, 5, 20]], labels[1, [23]] = [7, -2, 9], [1]
    boxes[labels != -1] = [0.1, 0.2, 0.3, 0.4]
    new_boxes, new_labels = both_ways(lambda b, n: mixing.pack(b, n, [8, 16, 32]), boxes, labels)
    assert new_labels.tolist() == [[7, -2, 9] + [-1] * 5, [1] + [-1] * 7, [-1] * 8]
    assert_sound(new_boxes, new_labels)
    wide = mixing.pack(*make_boxes(rng, 2, 20, 24), [8, 16, 32])[1].numpy()  # a size above what there is
    assert wide.shape == (2, 32)
    assert (wide[:, 20:] == -1).all()


@pytest.mark.parametrize("number", [0, 1, 100])
def test_everything_at_once_keeps_boxes_inside_and_upright(rng, number):
    config = AugmentConfig(mosaic=0.8, mixup=0.5, cutout=0.5)
    boxes, labels = make_boxes(rng, 8, number)
    most = mixing.most_boxes(128, config)

    def run(boxes, labels, keys):
        planned, boxes, labels = mixing.plan(boxes, labels, 3, (keys, keys), config, SIZE, 8, 0.0)
        return mixing.pack(boxes, labels, [8, most]), planned

    (new_boxes, new_labels), planned = both_ways(run, boxes, labels, np.arange(8))
    assert set(planned) == {"mosaic", "mixup", "holes"}
    assert_sound(new_boxes, new_labels)
    assert set(new_labels[new_labels >= 0]) <= set(labels[labels >= 0])
    assert (number > 0) == (new_labels != -1).any()


def test_nothing_asked_for_plans_nothing(rng):
    boxes, labels = map(tf.constant, make_boxes(rng, 3, 2))
    planned, same_boxes, same_labels = mixing.plan(boxes, labels, 0, None, AugmentConfig(), SIZE, 1, 0.0)
    assert planned == {}
    assert same_boxes is boxes
    assert same_labels is labels


@pytest.mark.parametrize(
    "field, value", [("mosaic", 1.5), ("cutout_side", (0.0, 0.5)), ("cutout_side", (0.5, 1.5)), ("mixup_alpha", 0)]
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"augment.{field}"):
        dataclasses.replace(AugmentConfig(), **{field: value})
