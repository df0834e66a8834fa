"""Image files: what is copied, what is changed and how, what is refused and why."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdet.data.annotations import to_annotation, turn_boxes
from tfdet.data.formats.common import make_listing
from tfdet.data.images import ImageError, ImageOptions, displayed_size, plain_jpeg_size, read_header, read_image


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


def turned(pixels, orientation):
    """What a viewer does with stored pixels, uint8 [H, W, 3]: the slow twin (EXIF 2.32, tag 0x0112)."""
    height, width = pixels.shape[:2]
    shown = np.zeros((width, height, 3) if orientation >= 5 else pixels.shape, np.uint8)
    for y in range(height):
        for x in range(width):
            right, bottom = width - 1 - x, height - 1 - y
            place = {1: (y, x), 2: (y, right), 3: (bottom, right), 4: (bottom, x),
                     5: (x, y), 6: (x, bottom), 7: (right, bottom), 8: (right, y)}[orientation]  # fmt: skip
            shown[place] = pixels[y, x]
    return shown


@pytest.mark.parametrize("in_pixels", [True, False])
@pytest.mark.parametrize("frame", ["displayed", "stored"])
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_stay_on_their_objects_in_both_frames(tmp_path, orientation, suffix, frame, in_pixels):
    stored = np.full((12, 20, 3), 200, np.uint8)
    stored[2:5, 3:11] = 0  # the object: x 3 to 11, y 2 to 5
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(Image.fromarray(stored), tmp_path / f"x.{suffix}", exif=exif, **options)
    image = read_image(path, ImageOptions(store="raw"))
    shown = np.frombuffer(image.encoded, np.uint8).reshape(image.height, image.width, 3)
    np.testing.assert_array_equal(shown, turned(stored, orientation))
    header = read_header(path)
    assert (header.source_size, header.orientation) == (image.source_size, image.orientation)
    assert image.source_size == shown.shape[:2]
    assert image.orientation == orientation

    rows, columns = (np.flatnonzero(axis) for axis in ((shown == 0).any(axis=(1, 2)), (shown == 0).any(axis=(0, 2))))
    on_shown = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)
    box, height, width = (on_shown, *shown.shape[:2]) if frame == "displayed" else (np.float64([3, 2, 11, 5]), 12, 20)
    box = box if in_pixels else box / [width, height, width, height]
    listing = make_listing("f", path, "x", [[*box, 0]], [1], in_pixels=in_pixels, frame=frame)
    annotation, problems, _ = to_annotation(listing, image.source_size, image.orientation)
    assert problems == []
    pixels_of = annotation.boxes[0] * np.array(shown.shape[1::-1] * 2)
    np.testing.assert_allclose(pixels_of, on_shown, rtol=0, atol=1e-5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_faults_are_told_in_the_frame_of_the_boxes(orientation):
    rows = [
        [5, 2, 4, 5, 0],
        [-9, 2, 4, 5, 0],
        [21, 2, 25, 5, 0],
        [3, 2, 3, 5, 0],
        [np.nan, 2, 3, 5, 0],
        [0, 0, 20, 13, 0],
    ]
    listing = make_listing("f", "x", "x", rows, range(1, 7), in_pixels=True, frame="stored")
    size = (20, 12) if orientation >= 5 else (12, 20)
    annotation, problems, rounded = to_annotation(listing, size, orientation)
    kinds = ["inverted", "crosses_border", "outside", "zero_area", "not_finite"]
    assert [problem.kind for problem in problems] == kinds
    assert "box 2 (-9, 2, 4, 5; 20 x 12 image)" in problems[1].reason
    assert rounded == 1
    assert ((annotation.boxes >= 0) & (annotation.boxes <= 1)).all()
    np.testing.assert_array_equal(annotation.boxes[1], [0, 0, 1, 1])


def test_turning_there_and_back(rng):
    low = rng.random((50, 2))
    boxes = np.concatenate([low, low + rng.random((50, 2))], axis=1)
    for orientation in range(1, 9):
        back = {6: 8, 8: 6}.get(orientation, orientation)
        np.testing.assert_allclose(turn_boxes(turn_boxes(boxes, orientation), back), boxes, atol=1e-12)
        assert turn_boxes(boxes[:0], orientation).shape == (0, 4)


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


@pytest.mark.parametrize("suffix", ["png", "tiff", "ppm"])
def test_sixteen_bits_of_other_files(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 48 * 32).reshape(32, 48).astype(np.uint16)
    path = tmp_path / f"x.{suffix}"
    if suffix == "ppm":
        path.write_bytes(b"P5 48 32 65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(path)
    expected = Image.fromarray((ramp >> 8).astype(np.uint8))
    assert distance(read_image(path).encoded, expected) < 2


def test_sixteen_bits_in_three_colours(tmp_path):
    ramp = np.linspace(0, 65535, 48 * 32 * 3).reshape(32, 48, 3).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in ramp)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 48, 32, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))
    image = read_image(path, ImageOptions(store="raw"))
    found = np.frombuffer(image.encoded, np.uint8).reshape(32, 48, 3)
    assert np.abs(found.astype(int) - ramp / 257).max() <= 1


def png_chunk(kind, data) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_32_bits_are_explained(tmp_path, dtype):
    path = save(Image.fromarray(np.ones((8, 8), dtype)), tmp_path / "x.tiff")
    with pytest.raises(ImageError, match="pixels of 32 bits, whose range is not known; save it with 8 or 16 bits"):
        read_image(path)


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


def bomb(path, side):
    """A PNG that claims side x side pixels and holds hardly any."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))
    return path


@pytest.mark.parametrize(
    "side, text", [(10_001, "10001 x 10001 pixels, more than 100000000"), (60_000, "more than 178956970")]
)
def test_decompression_bombs_are_refused_by_their_header(tmp_path, monkeypatch, side, text):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match=text) as error:
        read_image(bomb(tmp_path / "x.png", side))
    assert error.value.kind == "too_many_pixels"
    assert "raise --max-pixels" in str(error.value)


def test_the_limit_of_pixels_can_be_moved(photo, tmp_path):
    path = save(photo, tmp_path / "x.jpg")
    assert read_image(path, ImageOptions(max_pixels=48 * 32)).encoded == path.read_bytes()
    with pytest.raises(ImageError, match="48 x 32 pixels, more than 1535"):
        read_image(path, ImageOptions(max_pixels=48 * 32 - 1))


def test_formats_that_start_other_programs_are_not_opened(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="not a readable image"):
        read_image(path)


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


def as_pillow_sees_it(data):
    """The size that a record may take from a header, None where Pillow has more to do, or refuses the file."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = image.getexif().get(0x0112, 1) == 1
            return image.size[::-1] if image.format == "JPEG" and image.mode in ("RGB", "L") and upright else None
    except Exception:
        return None


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"icc_profile": b"p" * 70_000}, {"comment": b"\xff\xd9\xff\xda"},
     {"xmp": b"tiff:Orientation='6'"}],
)  # fmt: skip
def test_plain_jpegs_are_told_by_their_segments(photo, mode, options):
    buffer = io.BytesIO()
    photo.convert(mode).save(buffer, "JPEG", **options)
    expected = None if mode == "CMYK" or "xmp" in options else photo.size[::-1]
    assert plain_jpeg_size(buffer.getvalue()) == expected
    assert plain_jpeg_size(buffer.getvalue()[:-2]) is None
    assert plain_jpeg_size(b"\x89PNG" + buffer.getvalue()) is None


@pytest.mark.parametrize("orientation", [1, 6])
def test_jpegs_with_exif_are_for_pillow(photo, orientation):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    photo.save(buffer, "JPEG", exif=exif)
    assert plain_jpeg_size(buffer.getvalue()) is None


def test_a_changed_header_is_read_as_pillow_reads_it(photo, rng):
    """Of what Pillow opens, at most what is for Pillow anyway is told otherwise."""
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", comment=b"x" * 30)
    data = buffer.getvalue()
    end = data.index(b"\xff\xda")
    agreed = 0
    for _ in range(2000):
        changed = bytearray(data)
        changed[rng.integers(2, end)] = rng.choice([0, 1, 0xC0, 0xC3, 0xD8, 0xD9, 0xDA, 0xE1, 0xFF, rng.integers(256)])
        found, seen = plain_jpeg_size(bytes(changed)), as_pillow_sees_it(bytes(changed))
        assert None in (found, seen) or found == seen
        agreed += found == seen
    assert agreed > 1000


@pytest.mark.parametrize("length", range(8))
@pytest.mark.parametrize("more", [b"", b"\xff\xd9" * 9], ids=["at the end", "before others"])
def test_frames_too_short_for_a_size(tmp_path, length, more):
    """A segment's length counts its own two bytes; precision, height, width and components are six more."""
    data = b"\xff\xd8\xff\xc0" + length.to_bytes(2, "big") + b"\x08\x00\x02\x00\x03\x01"[: max(length - 2, 0)] + more
    assert plain_jpeg_size(data) is as_pillow_sees_it(data) is None
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(ImageError, match=r"x\.jpg"):
        read_image(tmp_path / "x.jpg", ImageOptions(decode_check=False))


def test_damage_inside_is_found_by_decoding(photo, tmp_path):
    path = save(photo.resize((240, 160)), tmp_path / "x.png")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"damaged|cut off"):
        read_image(path)


@pytest.mark.parametrize(
    "options", [{"store": "png"}, {"max_side": -1}, {"quality": 0}, {"max_pixels": 0}, {"max_pixels": 10**9}]
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=r"(store|max_pixels) is"):
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
