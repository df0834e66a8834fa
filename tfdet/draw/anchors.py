"""Boxes and their anchors in the plane of width and height. matplotlib only."""

import numpy as np
from matplotlib.figure import Figure

_MOST = 20_000  # dots; more only make the picture slower


def save_clusters(path, sides, nearest, anchors, title=""):
    """A dot a box, coloured by the anchor that fits it best, and the anchors in black, numbered from 1.

    Args:
        sides: [N, 2] width, height in pixels; nearest: int [N], the anchor of each; anchors: [K, 2].
    """
    if len(sides) > _MOST:
        chosen = np.random.default_rng(0).choice(len(sides), _MOST, replace=False)
        sides, nearest = sides[chosen], nearest[chosen]
    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.add_subplot(xlabel="width at the network input (pixels)", ylabel="height (pixels)", title=title)
    axes.scatter(*sides.T, s=8, c=nearest, cmap="tab20", vmin=0, vmax=19, alpha=0.6, linewidths=0)
    axes.scatter(*anchors.T, s=150, c="black", edgecolors="white", linewidths=1, zorder=3)
    for number, (width, height) in enumerate(anchors, 1):
        axes.text(width, height, number, c="white", size=7, weight="bold", ha="center", va="center_baseline", zorder=3)
        axes.plot([], [], "o", c="black", label=f"{number}:  {width:g} x {height:g}")
    axes.legend(title="anchors", loc="upper left", handlelength=0, handletextpad=0, markerscale=0, frameon=False)
    axes.set(xlim=(0, None), ylim=(0, None), aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
