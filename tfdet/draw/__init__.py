"""Boxes on pictures: class name and score in the colour of the class. Pillow only."""

import colorsys

from PIL import Image, ImageDraw, ImageFont

GOLDEN_RATIO = 0.618034  # steps round the colour circle: any number of classes, neighbours far apart


def class_colour(label: int) -> tuple[int, int, int]:
    """RGB of a class, the same in every picture."""
    hue = (0.02 + label * GOLDEN_RATIO) % 1.0
    value = (1.0, 0.75, 0.9)[label // 8 % 3]  # other shades once the hues come close to each other
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.9, value))


def draw_boxes(image: Image.Image, boxes, labels, class_names, scores=None) -> Image.Image:
    """A copy of `image` with boxes, the best score on top.

    Args:
        image: any mode; the copy is RGB.
        boxes: [N, 4] xyxy in pixels of the image; they may reach beyond it.
        labels: int [N]; a negative one is drawn gray as "ignored".
        class_names: names by label.
        scores: [N] in [0, 1], written behind the name; None: names only.
    """
    image = image.convert("RGB")
    canvas = ImageDraw.Draw(image)
    line = max(1, round(max(image.size) / 300))
    font = ImageFont.load_default(size=max(10, round(max(image.size) / 45)))
    order = range(len(boxes)) if scores is None else sorted(range(len(boxes)), key=lambda i: scores[i])
    for i in order:  # all boxes first, so that no line crosses a name
        canvas.rectangle(_corners(boxes[i]), outline=_colour(labels[i]), width=line)
    for i in order:
        name = class_names[labels[i]] if labels[i] >= 0 else "ignored"
        text = name if scores is None else f"{name} {scores[i]:.2f}"
        _write(canvas, image.size, boxes[i], text, font, _colour(labels[i]))
    return image


def _colour(label):
    return class_colour(int(label)) if label >= 0 else (128, 128, 128)


def _corners(box):
    """Whole pixels; Pillow wants them in order."""
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _write(canvas, size, box, text, font, colour):
    """The text on a plate above the box, or inside where there is no room, always within the picture."""
    pad = max(1, round(font.size / 6))
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x0, y0, _, _ = _corners(box)
    x = max(0, min(x0, size[0] - width))
    y = y0 - height if y0 >= height else max(0, y0)
    y = max(0, min(y, size[1] - height))
    canvas.rectangle((x, y, x + width, y + height), fill=colour)
    canvas.text((x + pad - left, y + pad - top), text, font=font, fill=_readable_on(colour))


def _readable_on(colour):
    """Black or white, whichever stands out (luma of ITU-R BT.601)."""
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
