"""Plots of a comparison: AP by epoch, differences by seed, λ, and AIFI's share of the gradient."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rtdetrv4.comparison.results import Comparison
from rtdetrv4.comparison.spread import CONFIDENCE, Spread
from rtdetrv4.training.run_curves import BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, SKY

_COLORS = (GRAY, BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
MAX_LABELS = 45
"""Characters of the arms' names that fit beside each other."""
LEAST_REACH = 0.1
"""Points of AP that the axis of differences shows at least, to either side of 0."""
_DASHES = ("-", "--", ":")

Curve = Mapping[int, float]
"""A value by epoch."""
Log = Sequence[Mapping[str, Any]]
"""The records of a run's epochs."""


def draw_comparison(comparison: Comparison, logs: Mapping[str, Sequence[Log]], path: Path) -> None:
    """Write a PNG of 11 × 7.5 inches, or 11 × 4.2 if no arm distills.

    Args:
        comparison: the comparison to draw.
        logs: for each arm, one log per seed.
        path: the file to write.
    """
    shares = _curves(logs, lambda record: record["modulation"] and record["modulation"]["share"])
    has_distillation = any(any(curves) for curves in shares.values())
    figure = Figure(figsize=(11, 7.5 if has_distillation else 4.2), dpi=120, layout="constrained")
    panels = list(figure.subplots(2 if has_distillation else 1, 2, squeeze=False).flat)
    over_seeds = "thin: a seed; thick: mean; band: ± s.d."

    def ap_of(record: Mapping[str, Any]) -> float | None:
        ap = record["metrics"].get("ap")
        return None if ap is None else 100 * ap

    _draw_curves(panels[0], _curves(logs, ap_of), f"AP of the averaged weights, %\n{over_seeds}")
    panels[0].set_ylim(bottom=0)
    if panels[0].lines:
        panels[0].legend(loc="lower right", frameon=False, fontsize="small")
    _draw_differences(panels[1], comparison)
    by_epoch = panels[:1]
    if has_distillation:
        weights = _curves(logs, lambda record: record["distill_weight"])
        _draw_curves(panels[2], weights, "weight λ of distillation")
        values = [value for curves in weights.values() for curve in curves for value in curve.values() if value > 0]
        if values and max(values) > 20 * min(values):
            panels[2].set_yscale("log")
            panels[2].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            panels[2].set_ylim(bottom=0)
        _draw_curves(panels[3], shares, "AIFI's share of the gradient, %")
        panels[3].set_ylim(bottom=0)
        by_epoch += panels[2:]
    for axes in by_epoch:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    for axes in panels:
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def _curves(
    logs: Mapping[str, Sequence[Log]], value_of: Callable[[Mapping[str, Any]], float | None]
) -> dict[str, list[Curve]]:
    """The curves of each arm, one per seed; epochs without a value are left out."""
    return {
        name: [
            {record["epoch"]: value for record in records if (value := value_of(record)) is not None}
            for records in by_seed
        ]
        for name, by_seed in logs.items()
    }


def _style(index: int) -> dict[str, Any]:
    return {"color": _COLORS[index % len(_COLORS)], "linestyle": _DASHES[index // len(_COLORS) % len(_DASHES)]}


def _draw_curves(axes: Axes, arms: Mapping[str, Sequence[Curve]], title: str) -> None:
    axes.set_title(title, loc="left", fontsize="medium")
    for index, (name, curves) in enumerate(arms.items()):
        style = _style(index)
        common = sorted(set.intersection(*(set(curve) for curve in curves)))
        if not common:
            continue
        spreads = [Spread.of([curve[epoch] for curve in curves]) for epoch in common]
        means = [spread.mean for spread in spreads]
        if len(curves) > 1:
            for curve in curves:
                axes.plot(list(curve), list(curve.values()), linewidth=0.7, alpha=0.5, **style)
            reach = [spread.sd or 0.0 for spread in spreads]
            low = [mean - sd for mean, sd in zip(means, reach, strict=True)]
            high = [mean + sd for mean, sd in zip(means, reach, strict=True)]
            axes.fill_between(common, low, high, color=style["color"], alpha=0.15, linewidth=0)
        marker = "." if len(common) < 25 else None
        axes.plot(common, means, linewidth=2, marker=marker, label=f"{name} ({len(curves)})", **style)


def _draw_differences(axes: Axes, comparison: Comparison) -> None:
    names = [arm.name for arm in comparison.arms]
    legend = f"dots: a seed; bar: mean with its {CONFIDENCE:.0%} interval"
    axes.set_title(f"AP of the last epoch minus that of {names[0]}, points\n{legend}", loc="left", fontsize="medium")
    axes.axhline(0, color=GRAY, linewidth=1.2)
    shown = {each.arm: each for each in comparison.differences if each.metric == "last_ap"}
    for place, (name, difference) in enumerate(shown.items()):
        color = _style(names.index(name))["color"]
        values = [100 * value for value in difference.by_seed.values()]
        spread = difference.spread
        middle = (len(values) - 1) / 2
        beside = [place - 0.18 + 0.06 * (number - middle) / max(middle, 1) for number in range(len(values))]
        axes.plot(beside, values, "o", color=color, markersize=5, alpha=0.7, linestyle="none")
        axes.plot([place - 0.08, place + 0.28], [100 * spread.mean] * 2, color=color, linewidth=2.5)
        if spread.interval is not None:
            low, high = (100 * end for end in spread.interval)
            axes.vlines(place + 0.1, low, high, color=color, linewidth=1.5)
    if shown:
        is_crowded = sum(map(len, shown)) > MAX_LABELS
        axes.set_xticks(range(len(shown)), list(shown), **({"rotation": 20, "ha": "right"} if is_crowded else {}))
        axes.set_xlim(-0.6, len(shown) - 0.4)
        reach = max(map(abs, axes.get_ylim()))
        if reach < LEAST_REACH:  # differences of nothing are not blown up to the height of the picture
            axes.set_ylim(-LEAST_REACH, LEAST_REACH)
    else:
        axes.set_xticks([])
        axes.text(0.5, 0.6, "nothing to compare yet", color=GRAY, ha="center", transform=axes.transAxes)
