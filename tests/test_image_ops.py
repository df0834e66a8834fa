import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdet.data import image_ops


def jpeg(pixels, quality=95):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def smooth_picture(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.BICUBIC))


def bilinear(image, height, width):
    """Slow twin of the resize: half-pixel centres, edges repeated."""
    result = np.zeros([height, width, 3])
    for y in range(height):
        for x in range(width):
            sy = np.clip((y + 0.5) * image.shape[0] / height - 0.5, 0, image.shape[0] - 1)
            sx = np.clip((x + 0.5) * image.shape[1] / width - 0.5, 0, image.shape[1] - 1)
            y0, x0 = int(sy), int(sx)
            y1, x1 = min(y0 + 1, image.shape[0] - 1), min(x0 + 1, image.shape[1] - 1)
            top = image[y0, x0] * (1 - sx + x0) + image[y0, x1] * (sx - x0)
            bottom = image[y1, x0] * (1 - sx + x0) + image[y1, x1] * (sx - x0)
            result[y, x] = top * (1 - sy + y0) + bottom * (sy - y0)
    return result


def place(window, image_size, output_size, **options):
    result = image_ops.place(tf.constant([window], tf.float32), tf.constant([image_size]), output_size, **options)
    return [part[0].numpy() for part in result]


class TestPlace:
    def test_whole_image(self):
        crop, target, ratio, window = place((0, 0, 1, 1), (48, 64), (30, 30))
        assert crop.tolist() == [0, 0, 48, 64]
        assert target.tolist() == [0, 0, 30, 30]
        assert ratio == 1
        assert window.tolist() == [0, 0, 1, 1]

    def test_a_crop_is_rounded_to_pixels_and_the_window_follows(self):
        # x from .26 * 64 = 16.64 to .74 * 64 = 47.36: pixels 17 to 47; y from .5 * 48 = 24 to 48
        crop, target, _, window = place((0.26, 0.5, 0.74, 1.0), (48, 64), (30, 30))
        assert crop.tolist() == [24, 17, 24, 30]
        assert target.tolist() == [0, 0, 30, 30]
        np.testing.assert_allclose(window, [17 / 64, 0.5, 47 / 64, 1.0])

    def test_zoom_out_places_the_image(self):
        # twice the sides, the image a quarter in from the left and at the top of the canvas
        crop, target, ratio, window = place((-0.5, 0.0, 1.5, 2.0), (40, 40), (20, 20))
        assert ratio == 4
        assert crop.tolist() == [0, 0, 10, 10]
        assert target.tolist() == [0, 5, 10, 10]
        np.testing.assert_allclose(window, [-0.5, 0.0, 1.5, 2.0])

    @pytest.mark.parametrize(
        "side, ratio", [(99, 1), (199, 1), (200, 2), (399, 2), (400, 4), (799, 4), (800, 8), (4000, 8)]
    )
    def test_the_ratio_never_decodes_smaller_than_shown(self, side, ratio):
        crop, _, found, _ = place((0, 0, 1, 1), (side, side), (100, 100))
        assert found == ratio
        assert crop[2] >= min(100, side)

    def test_ratios_can_be_forbidden(self):
        assert place((0, 0, 1, 1), (800, 800), (100, 100), allow_ratio=False)[2] == 1

    def test_a_ratio_moves_edges_outwards_to_its_multiples(self):
        # pixels 101 to 899 of 1000 at ratio 4: 100 to 900, so 25 to 225 of the scaled image
        crop, _, ratio, window = place((0.101, 0, 0.899, 1), (1000, 1000), (150, 150))
        assert ratio == 4
        assert crop.tolist() == [0, 25, 250, 200]
        np.testing.assert_allclose(window, [0.1, 0, 0.9, 1], atol=1e-6)

    def test_an_image_of_one_pixel(self):
        crop, target, _, _ = place((0.3, 0.3, 0.4, 0.4), (1, 1), (8, 8))
        assert crop.tolist() == [0, 0, 1, 1]
        assert target.tolist() == [0, 0, 8, 8]

    def test_a_window_beside_the_image_still_has_a_pixel_of_it(self):
        for window in ((2.0, 2.0, 3.0, 3.0), (-3.0, -3.0, -2.0, -2.0), (1.5, -0.5, 2.5, 0.5)):
            crop, target, _, _ = place(window, (10, 10), (8, 8))
            assert (crop >= 0).all()
            assert (crop[:2] + crop[2:] <= 10).all()
            assert (target >= 0).all()
            assert (target[:2] + target[2:] <= 8).all()
            assert (crop[2:] >= 1).all()
            assert (target[2:] >= 1).all()


class TestDecodeCrop:
    @pytest.mark.parametrize("ratio", [1, 2, 4, 8])
    def test_equals_the_slice_of_the_whole(self, ratio):
        encoded = jpeg(smooth_picture(120, 160))
        whole = tf.io.decode_jpeg(encoded, ratio=ratio).numpy().astype(int)
        y, x, height, width = 16 // ratio, 32 // ratio, 80 // ratio, 64 // ratio
        crop = image_ops.decode_crop(encoded, tf.constant([y, x, height, width]), tf.constant(ratio))
        # libjpeg smooths chroma across the border of the crop: a few levels along it
        assert np.abs(crop - whole[y : y + height, x : x + width]).max() <= 4

    def test_raw_is_the_slice_itself(self):
        pixels = smooth_picture(30, 20)
        args = tf.constant([3, 5, 20, 10]), tf.constant(1), "raw", tf.constant([30, 20])
        np.testing.assert_array_equal(image_ops.decode_crop(pixels.tobytes(), *args), pixels[3:23, 5:15])

    def test_gray_becomes_rgb(self):
        encoded = jpeg(np.full([16, 16], 77, np.uint8))
        crop = image_ops.decode_crop(encoded, tf.constant([0, 0, 16, 16]), tf.constant(1))
        np.testing.assert_array_equal(crop, np.full([16, 16, 3], 77))


class TestResizeInto:
    @pytest.mark.parametrize("size", [(20, 33), (9, 7), (40, 50)])
    def test_equals_the_slow_twin(self, size):
        image = smooth_picture(20, 33)
        result = image_ops.resize_into(image, tf.constant([0, 0, *size]), size).numpy()
        assert np.abs(result - bilinear(image, *size)).max() <= 0.5 + 1e-3

    def test_paints_around_the_target(self):
        image = smooth_picture(20, 20)
        canvas = image_ops.resize_into(image, tf.constant([2, 3, 10, 12]), (16, 24), (9, 128, 255)).numpy()
        inner = image_ops.resize_into(image, tf.constant([0, 0, 10, 12]), (10, 12)).numpy()
        np.testing.assert_array_equal(canvas[2:12, 3:15], inner)
        canvas[2:12, 3:15] = (9, 128, 255)
        np.testing.assert_array_equal(canvas, np.broadcast_to(np.uint8([9, 128, 255]), [16, 24, 3]))


@pytest.mark.parametrize("horizontal", [False, True])
@pytest.mark.parametrize("vertical", [False, True])
def test_flip(horizontal, vertical):
    image = smooth_picture(6, 9)
    expected = image[:: -1 if vertical else 1, :: -1 if horizontal else 1]
    np.testing.assert_array_equal(image_ops.flip(tf.constant(image), horizontal, vertical), expected)


def test_colour_statistics_are_those_of_the_image():
    images = np.stack([smooth_picture(60, 80, seed) for seed in range(3)])
    mean, covariance = image_ops.colour_statistics(images)
    pixels = images.reshape(3, -1, 3)
    np.testing.assert_allclose(mean, pixels.mean(1), atol=2)
    expected = np.stack([np.cov(p, rowvar=False) for p in pixels])
    np.testing.assert_allclose(covariance, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("size", [(5, 7), (1, 2), (8, 3)])
def test_apply_colour_is_the_matrix_product(rng, size, compiled):
    images = rng.integers(0, 256, (4, *size, 3), np.uint8)
    matrix, bias = rng.normal(size=(4, 3, 3)).astype("f4"), rng.normal(size=(4, 3)).astype("f4")

    def change(images, matrix, bias):
        pixels = image_ops.neighbours(image_ops.flatten(images), images.shape)
        return image_ops.apply_colour(pixels, *image_ops.colour_coefficients(matrix, bias, images.shape[2]))

    result = tf.function(change, jit_compile=compiled)(*(tf.constant(x) for x in (images, matrix, bias)))
    expected = np.einsum("bhwd,bcd->bhwc", images.astype("f8"), matrix) + bias[:, None, None]
    np.testing.assert_allclose(tf.reshape(result, expected.shape), expected, atol=2e-3)


def test_shift_hsv_equals_pythons_colorsys(rng):
    import colorsys

    images = rng.integers(0, 256, (2, 20, 20, 3)).astype("f4")
    images[0, 0] = np.repeat(np.arange(20)[:, None] * 13, 3, 1)  # grays, black and equal channels
    images[0, 1, :, 1] = images[0, 1, :, 0]
    hue, saturation, value = np.float32([0.1, -0.3]), np.float32([1.4, 0.6]), np.float32([0.7, 1.5])
    pixels = image_ops.neighbours(image_ops.flatten(tf.constant(images)), images.shape)
    result = image_ops.shift_hsv(pixels, *(tf.constant(x) for x in (hue, saturation, value)))
    result = result.numpy().reshape(images.shape)
    for b, y, x in np.ndindex(2, 20, 20):
        h, s, v = colorsys.rgb_to_hsv(*(images[b, y, x] / 255.0))
        changed = (h + hue[b]) % 1, min(s * saturation[b], 1), min(v * value[b], 1)
        np.testing.assert_allclose(result[b, y, x], 255 * np.array(colorsys.hsv_to_rgb(*changed)), atol=2e-2)
