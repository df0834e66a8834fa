"""Draws data sets of real JPEG files: shapes that a detector learns in minutes, and photo-like pictures for benchmarks.

Both are written as rykov8/ssd_keras and keras-yolo3 have theirs: `gt.pkl` (file name -> [N, 4 + C]), `lines.txt` with
`classes.txt`, beside the folder `images`. The same seed draws the same files with the same Pillow.
"""

import io
import pickle
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tfdet.data.annotations import Annotation

IMAGES, PICKLE, LINES, CLASSES = "images", "gt.pkl", "lines.txt", "classes.txt"
SHAPE_CLASSES = ("circle", "square", "triangle", "star")
PHOTO_CLASSES = ("round", "flat")

# width, height: landscape, portrait, square, small, odd
_SHAPE_SIZES = ((640, 480), (500, 375), (480, 640), (375, 500), (400, 400), (200, 160), (160, 200), (301, 227))
_EMPTY_SHARE = 0.06
_OVERSAMPLE = 4  # shapes are drawn larger and averaged down, so that edges are smooth
_PHOTO_BYTES = (80_000, 90_000)


def make_shapes(directory, num_images=400, seed=0) -> list[Annotation]:
    """Coloured shapes on textured grounds: 1-8 an image, some images without any.

    Args:
        directory: where `images/`, `gt.pkl`, `lines.txt` and `classes.txt` go; made if missing.
        num_images: how many JPEG files.
        seed: decides everything.
    Returns:
        One annotation an image. Boxes are pixel-tight: they hold every pixel
        that the shape covers by half or more, the few that a later shape hides included.
    """
    directory = _prepare(directory)
    annotations = []
    for index in range(num_images):
        rng = np.random.default_rng((seed, index))
        pixels, boxes, labels = _shapes_image(rng)
        path = directory / IMAGES / f"shapes_{index:05d}.jpg"
        Image.fromarray(pixels).save(path, quality=int(rng.integers(80, 96)))
        annotations.append(_annotation(path, pixels.shape, boxes, labels))
    write_both(directory, annotations, SHAPE_CLASSES)
    return annotations


def make_photos(directory, num_images=512, side=640, seed=0) -> list[Annotation]:
    """Pictures with the spectrum, the edges and the file size of photos: JPEG quality 90, 80-90 kB at side 640.

    They are dead leaves (overlapping shaded discs and boards of power-law sizes, the classic model of natural
    images) over noise that falls with frequency; the last few leaves are the objects.

    Args:
        directory, seed: as in `make_shapes`.
        num_images: how many.
        side: the longer side in pixels, the shorter is three quarters of it; a quarter of them stand upright.
    Returns:
        One annotation an image, 1-8 boxes each.
    """
    directory = _prepare(directory)
    rng = np.random.default_rng(seed)
    textures = [_fractal_noise(rng, 2 ** int(np.ceil(np.log2(side * 1.2)))) for _ in range(6)]
    scale = (side / 640) ** 2
    annotations = []
    for index in range(num_images):
        rng = np.random.default_rng((seed, index))
        height, width = (side, side * 3 // 4) if index % 4 == 3 else (side * 3 // 4, side)
        pixels, grain, boxes, labels = _photo(rng, textures, height, width)
        path = directory / IMAGES / f"photo_{index:05d}.jpg"
        path.write_bytes(_encode_to_size(pixels, grain, [size * scale for size in _PHOTO_BYTES]))
        annotations.append(_annotation(path, pixels.shape, boxes, labels))
    write_both(directory, annotations, PHOTO_CLASSES)
    return annotations


# --- files --------------------------------------------------------------------------------------


def write_both(directory, annotations, class_names):
    """Writes annotations in both seed formats into `directory`, with image paths relative to it."""
    directory = Path(directory)
    with open(directory / PICKLE, "wb") as file:
        pickle.dump({item.image_id: _one_hot_rows(item, len(class_names)) for item in annotations}, file, protocol=2)
    lines = [_line(item, directory) for item in annotations]
    (directory / LINES).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (directory / CLASSES).write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")


def _prepare(directory):
    directory = Path(directory)
    (directory / IMAGES).mkdir(parents=True, exist_ok=True)
    return directory


def _annotation(path, shape, boxes, labels):
    """boxes: whole pixels [N, 4], the corner of the first pixel and the one past the last."""
    boxes = np.array(boxes, np.float64).reshape(-1, 4) / [shape[1], shape[0], shape[1], shape[0]]
    labels = np.array(labels, np.int32)
    return Annotation(str(path), path.name, boxes.astype(np.float32), labels, np.zeros(len(labels), bool))


def _one_hot_rows(item, num_classes):
    return np.concatenate([item.boxes.astype(np.float64), np.eye(num_classes)[item.labels]], 1)


def _line(item, directory):
    with Image.open(item.image_path) as image:
        width, height = image.size
    corners = np.rint(item.boxes * [width, height, width, height]).astype(int)
    boxes = [",".join(map(str, (*row, label))) for row, label in zip(corners, item.labels)]
    return " ".join([Path(item.image_path).relative_to(directory).as_posix(), *boxes])


# --- shapes -------------------------------------------------------------------------------------


def _shapes_image(rng):
    """uint8 [H, W, 3], whole-pixel boxes, labels."""
    width, height = _SHAPE_SIZES[rng.integers(len(_SHAPE_SIZES))]
    canvas = _ground(rng, height, width)
    boxes, labels = [], []
    count = 0 if rng.random() < _EMPTY_SHARE else int(rng.integers(1, 9))
    for _ in range(count):
        label = int(rng.integers(len(SHAPE_CLASSES)))
        box = _place(rng, canvas, SHAPE_CLASSES[label], boxes)
        if box is not None:
            boxes.append(box)
            labels.append(label)
    return canvas.astype(np.uint8), boxes, labels


def _ground(rng, height, width):
    """A texture between two colours, float32 [H, W, 3] in [0, 255]."""
    texture = sum(_smooth_noise(rng, height, width, cells) / cells**0.5 for cells in (2, 5, 12, 40))
    texture = (texture - texture.min()) / np.ptp(texture)
    low, high = rng.uniform(0, 255, (2, 3))
    high = low + (high - low) * 0.6
    canvas = low + (high - low) * texture[..., None] + rng.normal(0, 6, (height, width, 1))
    return np.clip(canvas, 0, 255).astype(np.float32)


def _smooth_noise(rng, height, width, cells):
    """float32 [H, W]: random values at about `cells` points a side, blended."""
    coarse = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _place(rng, canvas, name, boxes):
    """Draws one shape where it covers no other, into `canvas`; returns its box, None where ten tries found no room."""
    height, width = canvas.shape[:2]
    for _ in range(10):
        side = int(min(height, width) * rng.uniform(0.14, 0.5))
        mask = _mask(rng, name, side)
        box = _tight_box(mask >= 0.5)
        shape_height, shape_width = box[3] - box[1], box[2] - box[0]
        x, y = int(rng.integers(width - shape_width + 1)), int(rng.integers(height - shape_height + 1))
        placed = (x, y, x + shape_width, y + shape_height)
        if not any(_overlap(placed, other) for other in boxes):
            _paint(rng, canvas[y : placed[3], x : placed[2]], mask[box[1] : box[3], box[0] : box[2]])
            return placed
    return None


def _mask(rng, name, side):
    """How much of each pixel a shape covers: float32 [side, side] in [0, 1]."""
    centre = radius = side * _OVERSAMPLE / 2
    image = Image.new("L", (side * _OVERSAMPLE,) * 2)
    draw = ImageDraw.Draw(image)
    if name == "circle":
        draw.ellipse((0, 0, 2 * radius - 1, 2 * radius - 1), fill=255)
    else:
        corners, inner = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (5, 0.42)}[name]
        turn = rng.uniform(-0.3, 0.3) + (np.pi / 4 if name == "square" else 0)
        count = corners if inner == 1.0 else 2 * corners
        angles = turn + 2 * np.pi * np.arange(count) / count - np.pi / 2
        radii = np.where(np.arange(count) % 2 == 0, 1.0, inner) * (radius - 1)
        points = np.stack([centre + radii * np.cos(angles), centre + radii * np.sin(angles)], -1)
        draw.polygon([tuple(point) for point in points], fill=255)
    return np.asarray(image.reduce(_OVERSAMPLE), np.float32) / 255


def _tight_box(covered):
    """bool [H, W] -> x_min, y_min, x_max, y_max in pixels, maxima exclusive."""
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _overlap(one, other):
    """Whether two boxes share more than a tenth of the smaller one."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width > 0 and height > 0 and width * height > 0.1 * smaller


def _paint(rng, patch, mask):
    """Blends a colour that stands out from the ground into `patch`, in place, with light from one side."""
    ground = patch.mean((0, 1))
    colours = rng.uniform(0, 255, (8, 3))
    colour = colours[np.argmax(np.abs(colours - ground).sum(1))]
    light = 1 + 0.15 * np.linspace(-1, 1, patch.shape[1], dtype=np.float32)[None, :, None] * rng.choice([-1, 1])
    patch += mask[..., None] * (np.clip(colour * light, 0, 255) - patch)


# --- photos -------------------------------------------------------------------------------------


def _fractal_noise(rng, side):
    """Noise whose amplitude falls as 1 / frequency, as in photos: float32 [side, side, 3], standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((3, side, side))) / frequency
    gray, *colour = np.fft.irfft2(spectrum, s=(side, side)).astype(np.float32)
    gray, colour = gray / gray.std(), [one / one.std() for one in colour]
    return np.stack([gray + 0.2 * colour[0], gray, gray + 0.2 * colour[1]], -1)


def _crop(rng, texture, height, width):
    """A random part of a texture, turned over at random."""
    y, x = rng.integers(texture.shape[0] - height + 1), rng.integers(texture.shape[1] - width + 1)
    return texture[y : y + height, x : x + width][:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]


def _photo(rng, textures, height, width):
    """float32 [H, W, 3] in [0, 255], the grain to add to it, whole-pixel boxes and labels of the last leaves."""
    leaves, boxes, labels = _leaves(rng, height, width)
    shade, grain = (_crop(rng, textures[index], height, width) for index in rng.choice(len(textures), 2, False))
    light = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    pixels = leaves + 9 * shade + rng.uniform(10, 40) * light
    fine = grain[:, :, :1] - np.roll(grain[:, :, :1], 1, (0, 1))  # the high frequencies
    return np.clip(pixels, 0, 255), fine / fine.std(), boxes, labels


def _leaves(rng, height, width):
    """Overlapping discs and boards, few large and many small: float32 [H, W, 3], boxes and labels of the last."""
    image = Image.new("RGB", (width, height), tuple(rng.integers(60, 200, 3).tolist()))
    draw = ImageDraw.Draw(image)
    side = min(height, width)
    count, objects = 100, int(rng.integers(1, 9))
    sizes = side * np.clip(0.03 * rng.random(count) ** -0.6, 0.03, 0.6)
    sizes[-objects:] = side * rng.uniform(0.1, 0.35, objects)
    boxes, labels = [], []
    for index, size in enumerate(sizes):
        half = np.maximum(size * rng.uniform(0.6, 1.4, 2) / 2, 4)
        centre = rng.uniform(0, (width, height))
        low = np.maximum(np.rint(centre - half), 0).astype(int)
        high = np.minimum(np.rint(centre + half), (width, height)).astype(int)
        low, label = np.minimum(low, high - 4), int(rng.integers(len(PHOTO_CLASSES)))
        shape = draw.ellipse if PHOTO_CLASSES[label] == "round" else draw.rectangle
        shape((*low.tolist(), *(high - 1).tolist()), fill=tuple(_leaf_colour(rng)))
        if index >= count - objects:
            boxes.append((*low.tolist(), *high.tolist()))
            labels.append(label)
    image = image.filter(ImageFilter.GaussianBlur(0.9))  # a lens has no steps as hard as these
    return np.asarray(image, np.float32), boxes, labels


def _leaf_colour(rng):
    return np.clip(rng.normal(120, 45) + rng.normal(0, 18, 3), 0, 255).astype(int).tolist()


def _encode_to_size(pixels, grain, size_range):
    """JPEG quality 90, with as much grain as brings the file into the range of bytes; six tries."""
    low, high = 0.0, 12.0
    for _ in range(6):
        strength = (low + high) / 2
        buffer = io.BytesIO()
        noisy = np.clip(pixels + strength * grain, 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
        size = buffer.tell()
        if size_range[0] <= size <= size_range[1]:
            break
        low, high = (strength, high) if size < size_range[0] else (low, strength)
    return buffer.getvalue()
