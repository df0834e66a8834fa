"""The inspection of a data set as one HTML page that needs nothing else: plots, problems with pictures, photos."""

import base64
import contextlib
import io
from collections import Counter, defaultdict
from html import escape
from string import Template

import numpy as np
from PIL import Image, ImageDraw, ImageFile, ImageFont

from tfdet.data.annotations import KINDS, NOTES, relative_boxes
from tfdet.data.errors import DataError
from tfdet.data.images import read_header, read_thumbnail
from tfdet.data.statistics import LARGE, SMALL, Facts
from tfdet.draw import distributions, draw_boxes

MOST_PICTURES = 500  # of images with problems; a page with more takes a browser too long
_SIDE = 320  # of a picture, in pixels
_REACH = 0.5  # of the image's side that is shown around it, for boxes that lie outside


def write_page(path, title, diagnosis, summary, policies, samples):
    """Writes the page.

    Args:
        diagnosis: `doctor.Diagnosis`.
        summary: what `statistics.summarise` gives.
        policies: as `checks.make_policies` gives them.
        samples: listings for the contact sheet.
    """
    parts = {
        "title": escape(title),
        "verdict": _verdict(diagnosis, summary),
        "kinds": _kinds(diagnosis.problems, policies),
        "problems": _problems(diagnosis),
        "numbers": _numbers(summary),
        "plots": "".join(_figure(name, svg) for name, svg in _plots(diagnosis.facts, diagnosis.class_names)),
        "sheet": "".join(_sample(listing, diagnosis.class_names) for listing in samples),
    }
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(_PAGE.substitute(parts))


# --- text ---------------------------------------------------------------------------------------


def _verdict(diagnosis, summary) -> str:
    notes = sum(problem.kind in NOTES for problem in diagnosis.problems)
    faults = len(diagnosis.problems) - notes
    found = f"{_count(faults, 'fault')}, {_count(notes, 'note')}"
    what = f"{_count(summary['images'], 'image')}, {summary['boxes']:,} boxes, {len(diagnosis.class_names)} classes"
    colour = "bad" if faults else "good"
    return f'<p class="verdict {colour}"><b>{found}</b> &middot; usable: {what}</p>'


def _count(number, noun) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _kinds(problems, policies) -> str:
    counts = Counter(problem.kind for problem in problems)
    if not counts:
        return "<p>Nothing was found.</p>"
    rows = "".join(
        f"<tr><td>{'note' if kind in NOTES else 'fault'}</td><td>{kind}</td><td class=n>{counts[kind]:,}</td>"
        f"<td>{policies[kind]}</td><td>{escape(KINDS[kind][1])}</td></tr>"
        for kind in KINDS
        if counts[kind]
    )
    return f"<table><tr><th></th><th>kind</th><th>found</th><th>policy</th><th>what to do</th></tr>{rows}</table>"


def _numbers(summary) -> str:
    """The statistics as tables."""
    spreads = {name: value for name, value in summary.items() if isinstance(value, dict) and "median" in value}
    columns = ("min", "median", "mean", "p95", "max")
    rows = "".join(
        f"<tr><td>{name.replace('_', ' ')}</td>"
        + "".join(f"<td class=n>{value[c]:.4g}</td>" for c in columns)
        + "</tr>"
        for name, value in spreads.items()
    )
    head = "".join(f"<th>{column}</th>" for column in columns)
    classes = "".join(
        f"<tr><td class=n>{c['id']}</td><td>{escape(c['name'])}</td><td class=n>{c['boxes']:,}</td>"
        f"<td class=n>{c['images']:,}</td></tr>"
        for c in summary["classes"]
    )
    sizes = "".join(
        f"<tr><td>{s['width']} x {s['height']}</td><td class=n>{s['images']:,}</td></tr>"
        for s in summary["image_sizes"]
    )
    counts = {"images without boxes": summary["empty_images"], "difficult boxes": summary["difficult"]}
    counts |= {f"{name} boxes (COCO)": number for name, number in summary["coco_sizes"].items()}
    counts |= {f"images of format {name}": number for name, number in summary["formats"].items()}
    counts |= {f"to be encoded anew: {name}": number for name, number in summary["changes"].items()}
    others = "".join(f"<tr><td>{escape(name)}</td><td class=n>{number:,}</td></tr>" for name, number in counts.items())
    return (
        f"<table><tr><th></th>{head}</tr>{rows}</table>"
        f"<table><tr><th>id</th><th>class</th><th>boxes</th><th>images</th></tr>{classes}</table>"
        f"<table>{others}</table><table><tr><th>commonest sizes</th><th>images</th></tr>{sizes}</table>"
    )


# --- plots --------------------------------------------------------------------------------------


def _plots(facts: Facts, class_names):
    """(heading, SVG) of each plot."""
    counts = np.bincount(facts.labels, minlength=len(class_names))
    sides = facts.box_sides()
    yield "Classes", distributions.bars(class_names, counts, "boxes")
    yield "Boxes an image", distributions.histogram(facts.counts, "boxes", "images")
    if len(sides):
        areas, marks = np.sqrt(sides.prod(axis=1)), (SMALL**0.5, LARGE**0.5)
        label = "√area in pixels; lines: small, medium, large"
        yield "Size of boxes", distributions.log_histogram(areas, label, "boxes", marks)
        shape = sides[:, 0] / sides[:, 1]
        yield "Shape of boxes", distributions.log_histogram(shape, "width / height", "boxes", (1,))
        centres = (facts.boxes[:, :2] + facts.boxes[:, 2:]) / 2
        yield "Where boxes are", distributions.heat_map(*centres.T, "x of the centre", "y of the centre")
    if len(facts.sizes):
        found, weights = np.unique(facts.sizes, axis=0, return_counts=True)
        yield "Size of images", distributions.scatter(found[:, 1], found[:, 0], "width", "height", weights)


def _figure(name, svg) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return f'<figure><figcaption>{name}</figcaption><img src="data:image/svg+xml;base64,{data}" alt="{name}"></figure>'


# --- pictures -----------------------------------------------------------------------------------


def _problems(diagnosis) -> str:
    """A card an image, with all that was found there."""
    groups = defaultdict(list)
    for finding in diagnosis.findings:
        groups[_image_of(finding) or finding.problem.where].append(finding)
    cards, pictures = [], 0
    for findings in groups.values():
        path, picture = _image_of(findings[0]), ""
        if path and pictures < MOST_PICTURES:
            listing = next((finding.listing for finding in findings if finding.listing), None)
            picture, pictures = _picture(path, listing, [finding.problem for finding in findings]), pictures + 1
        lines = "".join(_line(finding.problem) for finding in findings)
        cards.append(f'<div class="card">{picture or "<div class=none>no picture</div>"}<ul>{lines}</ul></div>')
    left_out = sum(bool(_image_of(group[0])) for group in groups.values()) - pictures
    more = f"<p>The pictures of {left_out:,} more images with problems are left out.</p>" if left_out > 0 else ""
    return "".join(cards) + more


def _image_of(finding) -> str:
    return finding.listing.image_path if finding.listing else finding.problem.image_path


def _line(problem) -> str:
    mark = "note" if problem.kind in NOTES else "fault"
    text = f"{escape(problem.reason)}; {escape(problem.advice)}"
    return f'<li><b class="{mark}">{problem.kind}</b> <code>{escape(problem.where)}</code><br>{text}</li>'


def _picture(path, listing, problems) -> str:
    """The image with its boxes: red and numbered those that problems name, white the others."""
    try:
        with _tolerant():
            image = read_thumbnail(path, _SIDE)
        if listing is None:
            return _img(image, path)
        boxes = _relative(listing)
    except DataError:
        return ""
    named = {number for problem in problems for number in problem.boxes}
    bad = np.isin(listing.numbers, list(named))
    return _img(_draw(image, boxes, listing.numbers, bad), listing.image_id)


@contextlib.contextmanager
def _tolerant():
    """Lets Pillow show what is left of an image that is cut off."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _relative(listing) -> np.ndarray:
    """float64 [N, 4] xyxy relative to the displayed image, whatever they are."""
    header = read_header(listing.image_path)
    return relative_boxes(listing, header.source_size, header.orientation)[0]


def _draw(image, boxes, numbers, bad) -> Image.Image:
    """The picture, with as much gray around it as bad boxes reach beyond."""
    shown = np.isfinite(boxes).all(axis=1)
    boxes = np.clip(boxes, -_REACH, 1 + _REACH)
    reach = boxes[shown & bad].reshape(-1, 2)
    low, high = np.minimum(reach.min(axis=0, initial=0), 0), np.maximum(reach.max(axis=0, initial=1), 1)
    size = np.array(image.size)
    canvas = Image.new("RGB", tuple(np.ceil((high - low) * size).astype(int) + 1), (128, 128, 128))
    canvas.paste(image, tuple(np.round(-low * size).astype(int)))
    pencil, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for i in sorted(np.flatnonzero(shown), key=lambda i: bad[i]):
        corners = np.sort((boxes[i].reshape(2, 2) - low) * size, axis=0)
        colour, width = ((230, 30, 30), 3) if bad[i] else ((255, 255, 255), 1)
        if not bad[i]:  # white is seen on any ground
            pencil.rectangle([tuple(corners[0] - 1), tuple(corners[1] + 1)], outline=(0, 0, 0), width=3)
        pencil.rectangle([tuple(corners[0] - bad[i]), tuple(corners[1] + bad[i])], outline=colour, width=width)
        if bad[i]:
            place = tuple(np.clip(corners[0] + 4, 0, np.array(canvas.size) - 16))
            pencil.text(place, str(numbers[i]), (255, 255, 255), font, stroke_width=2, stroke_fill=(180, 0, 0))
    return canvas


def _sample(listing, class_names) -> str:
    """A picture of the contact sheet; none where the image cannot be read."""
    try:
        image, boxes = read_thumbnail(listing.image_path, _SIDE), _relative(listing)
    except DataError:
        return ""
    good = np.isfinite(boxes).all(axis=1)
    corners = np.clip(boxes[good], 0, 1) * np.tile(image.size, 2)
    drawn = draw_boxes(image, corners, listing.labels[good], class_names)
    return f"<figure>{_img(drawn, listing.image_id)}<figcaption>{escape(listing.image_id)}</figcaption></figure>"


def _img(image, name) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    width, height = image.size
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(name)}" width={width} height={height} loading=lazy>'


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title><style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1180px; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; margin: .7rem 2rem .7rem 0; display: inline-block; vertical-align: top }
td, th { padding: .15rem .7rem; text-align: left; border-bottom: 1px solid #eee; vertical-align: top }
.n { text-align: right; font-variant-numeric: tabular-nums }
.verdict { padding: .6rem 1rem; border-left: 5px solid } .good { border-color: #3a7d44 } .bad { border-color: #c1292e }
.card { display: flex; gap: 1rem; padding: .8rem 0; border-bottom: 1px solid #eee; align-items: flex-start }
.card ul { margin: 0; padding-left: 1rem; overflow-wrap: anywhere; min-width: 0 } .card img { flex: none }
.card li { margin-bottom: .4rem } .fault { color: #c1292e } .note { color: #9a6700 } code { font-size: .85em }
.none { flex: none; width: 320px; color: #888; background: #f4f4f4; padding: 2rem 0; text-align: center }
.grid { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0; max-width: 100% }
figcaption { font-size: .8rem; color: #555; overflow-wrap: anywhere; max-width: 320px }
img { max-width: 100%; height: auto }
</style></head><body>
<h1>$title</h1>$verdict
<h2>Found</h2>$kinds
<h2>Statistics of what is usable</h2>$numbers<div class="grid">$plots</div>
<h2>Problems</h2><p>Red, with its number: a box that a problem names. White: the others.</p>$problems
<h2>Contact sheet</h2><div class="grid">$sheet</div>
</body></html>
""")
