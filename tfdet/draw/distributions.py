"""How the boxes and images of a data set are distributed, as SVG pictures. matplotlib only."""

import io
import warnings

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

_MOST_CLASSES = 30  # bars that can be read
_COLOUR, _SIZE = "#33658a", (3.8, 2.9)  # inches


def bars(names, counts, label) -> str:
    """One bar a class, the most frequent on top."""
    order = np.argsort(counts, kind="stable")[::-1][:_MOST_CLASSES]
    title = "" if len(order) == len(counts) else f"the {len(order)} most frequent of {len(counts)} classes"
    figure, axes = _figure(xlabel=label, title=title, height=max(2.0, 0.6 + 0.24 * len(order)))
    drawn = axes.barh([_short(names[i]) for i in order], [counts[i] for i in order], color=_COLOUR)
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    return _svg(figure)


def histogram(values, label, ylabel) -> str:
    """Of whole numbers."""
    figure, axes = _figure(xlabel=label, ylabel=ylabel)
    width = max(1, -(-int(max(values, default=0)) // 40))
    axes.hist(values, np.arange(0, max(values, default=0) + 2 * width, width) - 0.5, color=_COLOUR, rwidth=0.9)
    return _svg(figure)


def log_histogram(values, label, ylabel, marks=()) -> str:
    """Of positive numbers, on a logarithmic axis with dashed lines at `marks`."""
    figure, axes = _figure(xlabel=label, ylabel=ylabel)
    low, high = min(values, default=1), max(values, default=1)
    axes.hist(values, np.geomspace(low / 1.05, high * 1.05, 50), color=_COLOUR)
    axes.set_xscale("log")
    _plain(axes.xaxis)
    for mark in marks:
        axes.axvline(mark, color="0.4", linestyle="--", linewidth=1)
    return _svg(figure)


def scatter(x, y, xlabel, ylabel, weights=None) -> str:
    """Dots on logarithmic axes; larger where `weights` are."""
    figure, axes = _figure(xlabel=xlabel, ylabel=ylabel)
    sizes = 6 if weights is None else 12 + 200 * np.asarray(weights) / max(weights, default=1)
    axes.scatter(x, y, s=sizes, alpha=0.35, color=_COLOUR, linewidths=0, rasterized=True)
    axes.set(xscale="log", yscale="log")
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    return _svg(figure)


def heat_map(x, y, xlabel, ylabel) -> str:
    """Counts of points in [0, 1] x [0, 1]; y runs down, as rows of pixels do."""
    figure, axes = _figure(xlabel=xlabel, ylabel=ylabel)
    counts = np.histogram2d(y, x, bins=24, range=((0, 1), (0, 1)))[0]
    picture = axes.imshow(counts, cmap="viridis", extent=(0, 1, 1, 0))
    figure.colorbar(picture, ax=axes, label="boxes")
    return _svg(figure)


def _figure(height=None, **labels):
    figure = Figure(figsize=(_SIZE[0], height or _SIZE[1]), layout="constrained")
    axes = figure.add_subplot(**labels)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain(axis):
    """Numbers such as 300 instead of 3 x 10^2."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


def _short(name, most=24):
    name = name if len(name) <= most else name[: most - 1] + "…"
    return name.replace("$", r"\$")  # else a formula begins


def _svg(figure) -> str:
    buffer = io.StringIO()
    style = {"svg.fonttype": "none", "svg.hashsalt": "tfdet", "font.family": "sans-serif"}
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # matplotlib measures text; the browser has letters that it has not
        figure.savefig(buffer, format="svg", dpi=130, metadata={"Date": None})
    return buffer.getvalue()
