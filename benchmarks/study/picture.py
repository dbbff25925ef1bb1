"""The picture of docs/research/study.md: what each arm gained over labels alone, by data set and number of labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HIGHER, LOWER, OPEN = "#2a7f62", "#b5382a", "#7a7a7a"
"""Intervals above zero, below zero, and those that include it."""
PANEL, ROW = 0.75, 0.27
"""Inches that a panel takes without its rows, and that a row takes."""


def draw(cells: Mapping[str, dict[str, Any]], path: Path) -> None:
    """Draw a panel per cell and a row per arm: the mean difference, its interval, and a tick per pair.

    Args:
        cells: by title, what compare.json holds.
        path: PNG file to write.
    """
    rows = {title: _differences(cell) for title, cell in cells.items()}
    heights = [PANEL + ROW * len(each) for each in rows.values()]
    figure = Figure(figsize=(9, 0.5 + sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, (title, differences) in zip(panels[:, 0], rows.items(), strict=True):
        _draw_panel(axes, title, differences)
    values = [end for each in rows.values() for row in each for end in _ends(row)]
    panels[0, 0].set_xlim(min(*values, 0) - 1, max(values) + 2)
    panels[-1, 0].set_xlabel(
        "points of AP above or below labels alone (off), same seed\n"
        "dot: mean, line: 95 % interval, ticks: pairs; green: above zero, red: below, gray: not told from it"
    )
    figure.savefig(path, dpi=130)


def _differences(cell: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in cell["differences"] if each["metric"] == "last_ap"]


def _ends(difference: dict[str, Any]) -> list[float]:
    """What must be visible; an interval of two pairs may be longer than all the rest."""
    ends = list(difference["by_seed"].values())
    if difference["n"] > 2:
        ends += difference["interval"]
    return [100 * end for end in ends]


def _draw_panel(axes: Axes, title: str, differences: list[dict[str, Any]]) -> None:
    for row, each in enumerate(differences):
        low, high = (100 * end for end in each["interval"] or (float("-inf"), float("inf")))
        color = HIGHER if low > 0 else LOWER if high < 0 else OPEN
        if each["interval"]:
            axes.plot([low, high], [row, row], color=color, linewidth=2, alpha=0.5)
        pairs = [100 * pair for pair in each["by_seed"].values()]
        axes.plot(pairs, [row] * len(pairs), "|", color=color, markersize=9)
        axes.plot(100 * each["mean"], row, "o", color=color)
        axes.annotate(
            f"{100 * each['mean']:+.1f}".replace("-", "−"),
            (1.01, row),
            xycoords=("axes fraction", "data"),
            va="center",
            color=color,
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(differences)), [each["arm"] for each in differences])
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="x", alpha=0.25)
