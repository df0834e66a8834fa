"""Contact sheets: parts of many photos side by side, each with its boxes and a caption. Pillow only."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tfdet.draw import class_colour

_BACKGROUND, _TEXT, _OTHER = (255, 255, 255), (20, 20, 20), (255, 255, 255)


@dataclass(frozen=True)
class Cell:
    """A part of a photo.

    Attributes:
        photo: the whole photo.
        box: xyxy in pixels, shown with its surroundings, in the colour of the class `label`.
        others: [N, 4] boxes drawn thin and white.
        caption: lines of text.
    """

    photo: Image.Image
    box: np.ndarray
    label: int
    others: np.ndarray
    caption: tuple[str, ...]


def contact_sheet(sections, columns: int = 6, side: int = 220) -> Image.Image:
    """A picture of cells under headings.

    Args:
        sections: heading -> list of Cell.
        side: of a cell's picture, in pixels.
    """
    font, large = ImageFont.load_default(size=13), ImageFont.load_default(size=20)
    gap, line = 10, 17
    row_height = side + gap + line * max((len(c.caption) for cells in sections.values() for c in cells), default=1)
    rows = {heading: -(-len(cells) // columns) for heading, cells in sections.items()}
    height = sum(40 + max(count, 1) * row_height for count in rows.values())
    sheet = Image.new("RGB", (columns * (side + gap) + gap, height + gap), _BACKGROUND)
    canvas, top = ImageDraw.Draw(sheet), gap
    for heading, cells in sections.items():
        canvas.text((gap, top), heading, _TEXT, large)
        top += 40 - gap
        if not cells:
            canvas.text((gap, top), "none", _TEXT, font)
        for number, cell in enumerate(cells):
            x, y = gap + number % columns * (side + gap), top + number // columns * row_height
            sheet.paste(_picture(cell, side), (x, y))
            for place, text in enumerate(cell.caption):
                canvas.text((x, y + side + 2 + place * line), _shortened(text, font, side), _TEXT, font)
        top += max(rows[heading], 1) * row_height + gap
    return sheet


def _picture(cell, side):
    """The box with as much around it again, as a square."""
    box = np.asarray(cell.box, np.float64)
    centre, reach = (box[:2] + box[2:]) / 2, max(*(box[2:] - box[:2]), 16.0)
    low = np.floor(centre - reach).astype(int)
    window = (*low, *(low + int(np.ceil(2 * reach))))
    scale = side / (window[2] - window[0])
    picture = cell.photo.convert("RGB").crop(window).resize((side, side), Image.Resampling.BILINEAR)
    canvas = ImageDraw.Draw(picture)
    for other in cell.others:
        canvas.rectangle(_placed(other, low, scale), outline=_OTHER, width=1)
    canvas.rectangle(_placed(box, low, scale), outline=class_colour(cell.label), width=3)
    return picture


def _placed(box, low, scale):
    corners = (np.asarray(box, np.float64) - np.tile(low, 2)) * scale
    return tuple(np.concatenate([np.minimum(corners[:2], corners[2:]), np.maximum(corners[:2], corners[2:])]))


def _shortened(text, font, width):
    while font.getlength(text) > width:
        text = text[:-2] + "…"
    return text
