"""Image files: what is copied, what is changed and how, what is refused and why."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdet.data.images import ImageError, ImageOptions, displayed_size, read_image


@pytest.fixture
def photo(rng):
    """A smooth 48 x 32 picture whose quarters differ, so that every turn shows."""
    small = Image.fromarray(rng.integers(0, 256, (2, 3, 3), np.uint8))
    return small.resize((48, 32), Image.Resampling.BICUBIC)


def save(image, path, **options):
    image.save(path, **options)
    return path


def pixels(encoded) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"), np.int32)


def distance(encoded, image) -> float:
    return np.abs(pixels(encoded) - np.asarray(image.convert("RGB"), np.int32)).mean()


# --- what is copied -----------------------------------------------------------------------------


@pytest.mark.parametrize("decode_check", [True, False])
@pytest.mark.parametrize(
    "mode, options", [("RGB", {}), ("L", {}), ("RGB", {"progressive": True}), ("L", {"quality": 5})]
)
def test_whole_upright_jpegs_are_copied(photo, tmp_path, mode, options, decode_check):
    path = save(photo.convert(mode), tmp_path / "x.jpg", **options)
    image = read_image(path, ImageOptions(decode_check=decode_check))
    assert image.encoded == path.read_bytes()
    assert (image.height, image.width, image.format, image.change) == (32, 48, "jpeg", None)
    assert image.source_size == displayed_size(path) == (32, 48)


def test_the_name_does_not_matter(photo, tmp_path):
    path = save(photo, tmp_path / "x y.png", format="JPEG")
    assert read_image(path).encoded == path.read_bytes()


def test_trailing_bytes_are_no_damage(photo, tmp_path):
    path = save(photo, tmp_path / "x.jpg")
    path.write_bytes(path.read_bytes() + b"\0garbage" * 20)
    assert read_image(path).encoded == path.read_bytes()


def test_small_images_are_not_shrunk(photo, tmp_path):
    path = save(photo, tmp_path / "x.jpg")
    assert read_image(path, ImageOptions(max_side=48)).encoded == path.read_bytes()


# --- what is changed ----------------------------------------------------------------------------

# what a camera does before it writes the tag: the inverse of what the viewer does
INVERSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_turned_images_are_stored_upright(photo, tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = photo.transpose(INVERSE[orientation]) if orientation > 1 else photo
    path = save(turned, tmp_path / f"x.{suffix}", exif=exif, quality=95)
    image = read_image(path)
    assert displayed_size(path) == image.source_size == (image.height, image.width) == (32, 48)
    assert distance(image.encoded, photo) < 3
    assert ("turned upright" in (image.change or "")) == (orientation > 1)
    again = Image.open(io.BytesIO(image.encoded))
    assert again.getexif().get(0x0112, 1) == 1


def test_a_damaged_tag_is_ignored(photo, tmp_path):
    path = save(photo, tmp_path / "x.jpg", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x09garbage")
    assert read_image(path).change is None
    exif = Image.Exif()
    exif[0x0112] = 99
    assert read_image(save(photo, tmp_path / "y.jpg", exif=exif)).change is None


@pytest.mark.parametrize(
    "mode, form, change",
    [
        ("RGB", "PNG", "PNG to JPEG"),
        ("P", "PNG", "PNG to JPEG, P to RGB"),
        ("L", "PNG", "PNG to JPEG"),
        ("1", "PNG", "PNG to JPEG, 1 to RGB"),
        ("RGB", "BMP", "BMP to JPEG"),
        ("RGB", "WEBP", "WEBP to JPEG"),
        ("RGB", "TIFF", "TIFF to JPEG"),
        ("P", "GIF", "GIF to JPEG, P to RGB"),
        ("CMYK", "JPEG", "CMYK to RGB"),
    ],
)
def test_other_images_are_decoded_and_stored_as_jpeg(photo, tmp_path, mode, form, change):
    source = photo.quantize(64, dither=Image.Dither.NONE) if mode == "P" else photo.convert(mode)
    options = {"quality": 95} if form in ("JPEG", "WEBP") else {}
    image = read_image(save(source, tmp_path / "x.jpg", format=form, **options))
    assert (image.change, image.format, image.height, image.width) == (change, "jpeg", 32, 48)
    assert distance(image.encoded, source) < (12 if mode == "1" else 5)
    assert Image.open(io.BytesIO(image.encoded)).mode == "RGB"


def test_sixteen_bits_are_scaled(tmp_path):
    ramp = np.linspace(0, 65535, 48 * 32).reshape(32, 48).astype(np.uint16)
    image = read_image(save(Image.fromarray(ramp), tmp_path / "x.png"))
    expected = Image.fromarray((ramp >> 8).astype(np.uint8))
    assert distance(image.encoded, expected) < 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_shows_white(photo, tmp_path, mode):
    alpha = np.zeros((32, 48), np.uint8)
    alpha[:, 24:] = 255
    source = photo.convert("RGBA")
    source.putalpha(Image.fromarray(alpha))
    source = source.quantize(64, dither=Image.Dither.NONE) if mode == "P" else source.convert(mode)
    image = read_image(save(source, tmp_path / "x.png"))
    expected = source.convert("RGB")
    expected.paste("white", (0, 0, 24, 32))
    assert distance(image.encoded, expected) < 5
    assert (pixels(image.encoded)[:, :16] > 250).all()


def test_the_first_frame_of_an_animation(photo, tmp_path):
    frames = [Image.new("RGB", photo.size, colour) for colour in ("red", "blue")]
    path = save(photo, tmp_path / "x.gif", save_all=True, append_images=frames)
    assert distance(read_image(path).encoded, photo.quantize(256)) < 8


@pytest.mark.parametrize(
    "size, max_side, expected", [((48, 32), 24, (16, 24)), ((32, 48), 24, (24, 16)), ((600, 1), 60, (1, 60))]
)
def test_shrinking_keeps_the_aspect(tmp_path, size, max_side, expected):
    path = save(Image.new("RGB", size, "teal"), tmp_path / "x.jpg")
    image = read_image(path, ImageOptions(max_side=max_side, quality=80))
    assert (image.height, image.width) == expected == pixels(image.encoded).shape[:2]
    assert image.source_size == size[::-1]
    assert image.change == "shrunk"


def test_shrinking_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    path = save(Image.fromarray(stripes), tmp_path / "x.png")
    shrunk = pixels(read_image(path, ImageOptions(max_side=16)).encoded)[2:-2, 2:-2]
    assert np.abs(shrunk - 127).max() < 12  # gray; without a filter it would be black or white


def test_raw_storage_is_rgb_bytes(photo, tmp_path):
    path = save(photo, tmp_path / "x.png")
    image = read_image(path, ImageOptions(store="raw"))
    assert (image.format, image.height, image.width) == ("raw", 32, 48)
    np.testing.assert_array_equal(np.frombuffer(image.encoded, np.uint8).reshape(32, 48, 3), np.asarray(photo))
    image = read_image(path, ImageOptions(store="raw", max_side=12))
    assert len(image.encoded) == 8 * 12 * 3


def test_quality_is_that_of_new_jpegs(photo, tmp_path):
    path = save(photo, tmp_path / "x.png")
    sizes = [len(read_image(path, ImageOptions(quality=quality)).encoded) for quality in (20, 60, 95)]
    assert sizes == sorted(set(sizes))


# --- what is refused ----------------------------------------------------------------------------


def test_a_missing_image(tmp_path):
    for function in (read_image, displayed_size):
        with pytest.raises(ImageError, match=r"nope\.jpg: no such image file; check the path") as error:
            function(tmp_path / "nope.jpg")
        assert error.value.kind == "missing_image"


@pytest.mark.parametrize(
    "content, text", [(b"", "is empty"), (b"hello", "starts with b'hello'"), (b"\xff\xd8\xff\xe0", "not a readable")]
)
def test_files_that_are_no_images(tmp_path, content, text):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    for function in (read_image, displayed_size):
        with pytest.raises(ImageError, match=text) as error:
            function(path)
        assert error.value.kind == "unreadable_image"


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path)


@pytest.mark.parametrize("decode_check", [True, False])
@pytest.mark.parametrize("form, options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})])
def test_files_cut_anywhere_are_found(photo, tmp_path, form, options, decode_check):
    photo = photo.resize((240, 160))
    whole = save(photo, tmp_path / "whole", format=form, **options).read_bytes()
    path = tmp_path / "x.jpg"
    shares = (0.05, 0.3, 0.6, 0.9, 0.999)
    for share in shares if decode_check or form != "PNG" else shares[:-1]:  # only the end chunk is missing there
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError) as error:
            read_image(path, ImageOptions(decode_check=decode_check))
        assert error.value.kind in ("truncated_image", "unreadable_image")


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_image(photo, tmp_path):
    thumbnail = io.BytesIO()
    photo.resize((12, 8)).save(thumbnail, "JPEG")
    path = save(photo, tmp_path / "x.jpg", exif=b"Exif\0\0" + thumbnail.getvalue())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ImageError, match="no end marker"):
        read_image(path, ImageOptions(decode_check=False))


def test_damage_inside_is_found_by_decoding(photo, tmp_path):
    path = save(photo.resize((240, 160)), tmp_path / "x.png")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"damaged|cut off"):
        read_image(path)


@pytest.mark.parametrize("options", [{"store": "png"}, {"max_side": -1}, {"quality": 0}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="store is one of"):
        ImageOptions(**options)


# --- torture ------------------------------------------------------------------------------------

SIZE, HALF = (417, 650), (208, 325)
TORTURE = {  # file -> (height, width), what is changed; or the kind of problem
    "plain.jpg": (SIZE, None),
    "with space.jpg": (SIZE, None),
    "ünï 浣熊 é.jpg": (SIZE, None),
    "gray.jpg": (SIZE, None),
    "progressive.jpg": (SIZE, None),
    "trailing_garbage.jpg": (SIZE, None),
    "one_by_one.jpg": ((1, 1), None),
    "strip_12000x10.jpg": ((10, 12000), None),
    "photo_20mp.jpg": ((3648, 5472), None),
    "exif_1.jpg": (SIZE, None),
    **{f"exif_{i}.jpg": (SIZE, "turned upright") for i in range(2, 9)},
    "cmyk.jpg": (SIZE, "CMYK to RGB"),
    "png_alpha_named.jpg": (HALF, "PNG to JPEG, RGBA to RGB"),
    "gif_named.jpg": (HALF, "GIF to JPEG, P to RGB"),
    "webp_named.jpg": (HALF, "WEBP to JPEG"),
    "palette.png": (HALF, "PNG to JPEG, P to RGB"),
    "gray16.png": (HALF, "PNG to JPEG, I;16 to RGB"),
    "missing_eoi.jpg": "truncated_image",
    "truncated_half.jpg": "truncated_image",
    "text_named.jpg": "unreadable_image",
    "zero_byte.jpg": "unreadable_image",
}


def test_every_torture_image_has_its_outcome(shared):
    plain = np.asarray(Image.open(shared / "torture" / "img" / "plain.jpg"), np.int32)
    found = {}
    for path in sorted((shared / "torture" / "img").iterdir()):
        try:
            image = read_image(path)
        except ImageError as error:
            found[path.name] = error.kind
            continue
        found[path.name] = (image.height, image.width), image.change
        assert displayed_size(path) == image.source_size
        decoded = tf.io.decode_jpeg(image.encoded, channels=3).numpy()  # TensorFlow reads whatever is accepted
        assert decoded.shape == (image.height, image.width, 3)
        if path.name.startswith("exif_"):
            assert np.abs(decoded.astype(np.int32) - plain).mean() < 8
    assert found == {name: TORTURE[name] for name in found}
    assert len(found) > 20
