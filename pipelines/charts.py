"""Charts as PNG, drawn without any window or state of the process."""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from models.evaluation import Interval


class Curve(NamedTuple):
    """One line: a name, where its points are, and their heights with intervals."""

    name: str
    x: Sequence[float]
    heights: Sequence[Interval]


def privacy_utility(panels: Mapping[str, Sequence[Curve]], mark: float | None = None) -> bytes:
    """Returns a PNG of one panel beside the other, by what its heights are; epsilon goes to the right, on a logarithmic scale.

    Args:
        panels: the curves of each.
        mark: an epsilon to draw a line at.
    """
    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    for place, (title, curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), place)
        for curve in curves:
            middle = [each.mean for each in curve.heights]
            [line] = axes.plot(curve.x, middle, marker="o", markersize=4, label=curve.name)
            low, high = ([getattr(each, end) for each in curve.heights] for end in ("low", "high"))
            axes.fill_between(curve.x, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        if mark is not None:
            axes.axvline(mark, color="grey", linestyle="--", linewidth=1)
        axes.set_xscale("log")
        points = sorted({x for curve in curves for x in curve.x})
        axes.set_xticks(points, [f"{x:g}" for x in points])
        axes.minorticks_off()
        axes.set_ylim(0, 1.1 * max(each.high for curve in curves for each in curve.heights))
        axes.set_xlabel("epsilon")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    drawn = io.BytesIO()
    # Without the date and version that it would have: the same figures are the same file.
    figure.savefig(drawn, format="png", dpi=130, metadata={"Software": None})
    return drawn.getvalue()
