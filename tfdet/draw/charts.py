"""Charts of an evaluation as PNG files: precision over recall, and which class is taken for which. matplotlib only."""

import numpy as np
from matplotlib.figure import Figure

from tfdet.draw import class_colour

_MOST_NAMED = 20  # classes; a legend or a table with more cannot be read


def save_precision_recall(path, curves, averages, class_names, min_score=None):
    """One line a class in its colour, the worst on top; named are the 20 with the lowest average precision.

    Args:
        path: PNG file.
        curves: C of `metrics.Curve`.
        averages: float [C], average precision, NaN where it is not known.
        min_score: the point of each curve that this score gives is marked.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    worst_last = [label for label in np.argsort(averages)[::-1] if curves[label].known]
    for place, label in enumerate(worst_last):
        named = place >= len(worst_last) - _MOST_NAMED
        colour = np.array(class_colour(label)) / 255 if named else "0.85"
        text = f"{class_names[label]}  {averages[label]:.3f}" if named else None
        _draw_curve(axes, curves[label], colour, text, min_score)
    axes.grid(alpha=0.3)
    axes.set_title("IoU 0.5" + ("" if min_score is None else f"; dots: score {min_score:g}"))
    if worst_last:
        figure.legend(loc="outside right upper", title="AP", reverse=True)
    figure.savefig(path, dpi=120)


def _draw_curve(axes, curve, colour, text, min_score):
    recall, precision = np.append(0.0, curve.recall), np.append(curve.precision[:1], curve.precision)
    if not len(precision):  # nothing was found
        recall, precision = [0.0], [0.0]
    axes.plot(recall, precision, color=colour, label=text, linewidth=1.5)
    shown = np.count_nonzero(curve.scores > min_score) if min_score is not None else 0
    if shown:
        axes.plot(curve.recall[shown - 1], curve.precision[shown - 1], "o", color=colour, markersize=5)


def save_confusion(path, counts, class_names, title=""):
    """The matrix that `metrics.confusion` gives; a cell is the darker the larger its share of the row."""
    rows, columns = [*class_names, "nothing there"], [*class_names, "missed"]
    side = min(4 + 0.45 * len(rows), 24)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot(xlabel="detected", ylabel="annotated", title=title)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    size = 9 if len(rows) <= _MOST_NAMED else 6
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(len(rows)), rows, fontsize=size)
    for row, column in np.argwhere(counts > 0):
        colour = "white" if share[row, column] > 0.6 else "black"
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=size)
    figure.savefig(path, dpi=120)
