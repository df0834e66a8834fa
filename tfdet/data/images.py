"""Image files as they go into records: untouched JPEG bytes where possible, else decoded, turned and stored anew.

Nothing here needs TensorFlow, so that worker processes start at once.
"""

import contextlib
import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tfdet.data import embedded, files
from tfdet.data.errors import ImageError

__all__ = [
    "STORES",
    "EncodedImage",
    "ImageError",
    "ImageOptions",
    "displayed_size",
    "read_header",
    "read_image",
    "read_thumbnail",
]

STORES = ("jpeg", "raw")
MOST_PIXELS = 178_956_970  # Pillow opens nothing larger
# Of the formats that Pillow knows some start other programs (EPS) or are no photos; PPM is what bare pixels become.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "JPEG2000", "PPM")
_ORIENTATION_TAG = 0x0112
_SCAN, _EXIF, _PICTURES = 0xDA, 0xE1, 0xE2  # segments of a JPEG; the second may be XMP, the third a colour profile
_TURN = {  # EXIF orientation -> what shows the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageOptions:
    """How images are stored.

    `max_side` in pixels, 0: as they are; `quality` of every JPEG that is written; images with more than `max_pixels`
    are refused by their header, before anything is decoded.
    """

    store: str = "jpeg"  # or "raw": decoded uint8
    max_side: int = 0
    quality: int = 95
    decode_check: bool = True  # read every image to its end, even those that are copied
    max_pixels: int = 100_000_000

    def __post_init__(self):
        if self.store not in STORES or self.max_side < 0 or not 1 <= self.quality <= 100:
            raise ValueError(f"store is one of {STORES}, max_side is not negative, quality is 1 to 100: {self}")
        if not 1 <= self.max_pixels <= MOST_PIXELS:
            raise ValueError(f"max_pixels is 1 to {MOST_PIXELS}: {self}")


_DEFAULT_OPTIONS = ImageOptions()


@dataclass(frozen=True)
class EncodedImage:
    """An image ready to be stored.

    Attributes:
        encoded: a JPEG file, or height * width * 3 bytes of RGB where `format` is "raw".
        height, width: in pixels, of what is stored.
        format: "jpeg" or "raw".
        change: what was done to the pixels, None where they are the source's.
        source_size: (height, width) of the source as it is displayed, the frame of pixel boxes.
        source_format: of the source, as Pillow names it.
        orientation: the EXIF orientation of the source, 1 to 8.
    """

    encoded: bytes
    height: int
    width: int
    format: str
    change: str | None
    source_size: tuple[int, int]
    source_format: str
    orientation: int = 1


def displayed_size(path) -> tuple[int, int]:
    """(height, width) in pixels after EXIF orientation, from the header alone.

    Raises:
        ImageError: no such file, or no image.
    """
    return read_header(path).source_size


def read_header(path) -> EncodedImage:
    """What `read_image` would tell of an image file, but no pixels: from the header alone, unchecked beyond it."""
    with _explained(path):
        whole = embedded.is_embedded(path) or files.is_remote(path)
        file = io.BytesIO(embedded.read_bytes(path)) if whole else open(path, "rb")  # noqa: SIM115
    with file:
        image = _open(path, file)
        size, orientation = _displayed_size(image), _orientation(image)
        return EncodedImage(b"", *size, "jpeg", None, size, image.format, orientation)


def read_image(path, options: ImageOptions = _DEFAULT_OPTIONS) -> EncodedImage:
    """Reads one image file for storage.

    The bytes of a whole, upright RGB or gray JPEG are copied. Anything else (PNG, BMP, WebP, TIFF, GIF's first
    frame, CMYK, 16 bit, palette, alpha over white, JPEG turned by EXIF) is decoded, turned upright, converted to
    RGB, shrunk where `options.max_side` asks for it, and encoded as JPEG.

    Args:
        path: an image file, or an image in a record file as `embedded` names it.
    Raises:
        ImageError: no such file, not an image, too large, cut off or damaged.
    """
    with _explained(path):
        data = embedded.read_bytes(path)
    if not options.decode_check and options.store == "jpeg":
        size = plain_jpeg_size(data)
        if size and size[0] * size[1] <= options.max_pixels and _shrunk_size(size, options.max_side) == size:
            return EncodedImage(data, *size, "jpeg", None, size, "JPEG")
    image = _open(path, io.BytesIO(data))
    if image.width * image.height > options.max_pixels:
        raise _too_large(path, f"the image has {image.width} x {image.height} pixels, more than {options.max_pixels}")
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        reason = "the image has pixels of 32 bits, whose range is not known"
        raise ImageError(path, reason, "save it with 8 or 16 bits", "unreadable_image")
    size, orientation = _displayed_size(image), _orientation(image)
    target = _shrunk_size(size, options.max_side)
    plain = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and orientation == 1
    if image.format in ("JPEG", "MPO") and not _has_end(data):
        raise _truncated(path, "the JPEG has no end marker, it is cut off")
    if plain and target == size and options.store == "jpeg":
        if options.decode_check:
            # At 1/8 scale and in gray the decoder still reads every coded byte, at half the cost.
            image.draft("L", (1, 1))
            with _damage_explained(path):
                image.load()
        return EncodedImage(data, *size, "jpeg", None, size, image.format)
    if image.format == "PNG" and options.decode_check:
        with _damage_explained(path):
            Image.open(io.BytesIO(data)).verify()  # decoding does not compare a PNG's checksums
    change = _describe_change(image, target != size)
    pixels = _upright_rgb(path, image, target)
    encoded = pixels.tobytes() if options.store == "raw" else _to_jpeg(path, pixels, options.quality)
    return EncodedImage(encoded, *target, options.store, change, size, image.format, orientation)


def read_thumbnail(path, side: int, max_pixels: int = ImageOptions.max_pixels) -> Image.Image:
    """A small picture, upright and in RGB, its longer side at most `side` pixels; raises as `read_image` does."""
    with _explained(path):
        image = _open(path, io.BytesIO(embedded.read_bytes(path)))
    if image.width * image.height > max_pixels:
        raise _too_large(path, f"the image has {image.width} x {image.height} pixels, more than {max_pixels}")
    size = _shrunk_size(_displayed_size(image), side)
    image.draft("RGB", (side, side))  # a JPEG is decoded at about this size
    return _upright_rgb(path, image, size)


# --- reading ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(path):
    """Turns what the file system says into an ImageError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError(path, "no such image file", "check the path and --images", "missing_image") from error
    except OSError as error:
        reason = f"the image file cannot be read ({error.strerror})"
        raise ImageError(path, reason, "check the file", "unreadable_image") from error


def _open(path, file) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, and about sizes that Pillow still opens
            return Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(path, f"the image has more than {MOST_PIXELS} pixels") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise ImageError(path, _why_not(error, file), "save it as JPEG or PNG", "unreadable_image") from error


def _why_not(error, file) -> str:
    file.seek(0)
    start = file.read(8)
    if not start:
        return "the image file is empty"
    known = isinstance(error, Image.UnidentifiedImageError)
    return f"not a readable image ({f'it starts with {start!r}' if known else error})"


@contextlib.contextmanager
def _damage_explained(path):
    """Turns what Pillow says about damaged pixels into an ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if "truncated" in str(error).lower():  # Pillow spells it both ways
            raise _truncated(path, f"the image is cut off ({error})") from error
        reason = f"the image is damaged ({error})"
        raise ImageError(path, reason, "fetch it again or save it anew", "unreadable_image") from error


def _truncated(path, reason):
    return ImageError(path, reason, "fetch it again or save it anew", "truncated_image")


def _too_large(path, reason):
    return ImageError(path, reason, "shrink it, or raise --max-pixels if you trust the file", "too_many_pixels")


def _orientation(image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF: viewers show such an image as it is
        return 1
    return value if value in _TURN else 1


def _displayed_size(image) -> tuple[int, int]:
    width, height = image.size
    turned = image.format != "TIFF" and _orientation(image) >= 5  # Pillow turns TIFFs itself when it loads them
    return (width, height) if turned else (height, width)


def _has_end(data) -> bool:
    """Whether an end marker follows the first scan (coded pixels cannot contain one; a thumbnail's comes before)."""
    *_, (_, _, end) = [(0, 2, 2), *_segments(data)]
    return data.rfind(b"\xff\xd9", end) >= 0


def _segments(data):
    """(marker, start, end) of what each segment of a JPEG holds, up to its first scan (ITU-T T.81, annex B)."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + (data[at + 2] << 8 | data[at + 3])
        yield marker, at + 4, end
        if marker == _SCAN:
            return
        at = end


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels of a JPEG with an end that a record may hold as it is, at a tenth of Pillow's time.

    None: what Pillow has to look at (more than one picture, metadata that may turn it, CMYK, 12 bits, damage).
    """
    if data[:2] != b"\xff\xd8":
        return None
    size = None
    for marker, start, end in _segments(data):
        if end > len(data) or marker < 0xC0 or 0xD0 <= marker <= 0xD9:  # damage, or markers that head no segment
            return None
        if marker in (0xC0, 0xC1, 0xC2):  # a frame: precision, height, width, components
            if end - start < 6:
                return None
            precision, height, width, components = struct.unpack_from(">BHHB", data, start)
            if size or precision != 8 or components not in (1, 3) or not height or not width:
                return None
            size = height, width
        elif marker == _EXIF or (marker == _PICTURES and not data.startswith(b"ICC_PROFILE\0", start)):
            return None
        elif marker == _SCAN:
            return size if data.rfind(b"\xff\xd9", end) >= 0 else None
    return None


# --- changing -----------------------------------------------------------------------------------


def _shrunk_size(size, max_side):
    longest = max(size)
    if not max_side or longest <= max_side:
        return size
    return tuple(max(1, round(side * max_side / longest)) for side in size)


def _describe_change(image, shrunk) -> str | None:
    changes = []
    if image.format not in ("JPEG", "MPO"):
        changes.append(f"{image.format} to JPEG")
    if image.mode not in ("RGB", "L"):
        changes.append(f"{image.mode} to RGB")
    if _orientation(image) != 1:
        changes.append("turned upright")
    if shrunk:
        changes.append("shrunk")
    return ", ".join(changes) or None


def _upright_rgb(path, image, size) -> Image.Image:
    with _damage_explained(path):
        image.load()
        orientation = _orientation(image)  # none is left where Pillow has turned the image itself
        image = _to_rgb(image)
    if orientation != 1:
        image = image.transpose(_TURN[orientation])
    if (image.height, image.width) != size:
        image = image.resize(size[::-1], Image.Resampling.LANCZOS, reducing_gap=3.0)
    return image


def _to_rgb(image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bit
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_jpeg(path, image, quality) -> bytes:
    buffer = io.BytesIO()
    try:
        image.save(buffer, "JPEG", quality=quality)
    except (OSError, ValueError) as error:
        reason = f"{image.width} x {image.height} pixels do not fit into a JPEG ({error})"
        raise ImageError(path, reason, "use --max-side", "unreadable_image") from error
    return buffer.getvalue()
