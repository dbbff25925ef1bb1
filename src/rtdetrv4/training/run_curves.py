"""`curves.png`: a run on one page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import offset_copy

from rtdetrv4.outputs import write_whole

# Okabe and Ito's palette: color-blind readers can tell these apart.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GRAY = "#CC79A7", "#56B4E9", "#777777"
TERMS = (
    ("loss", "total, weighted", GRAY),
    ("mal", "mal", BLUE),
    ("vfl", "vfl", BLUE),
    ("giou", "giou", GREEN),
    ("bbox", "bbox", ORANGE),
    ("fgl", "fgl", PURPLE),
    ("ddf_aux_0", "ddf", SKY),
    ("distill", "distill", RED),
    ("distill_unlabeled", "distill, without labels", "#000000"),
    ("pseudo_loss", "pseudo-labels, weighted", "#8C564B"),
)


def draw_curves(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Losses, AP, distillation and learning rate by epoch.

    Args:
        records: records of a `log.jsonl`.
        path: PNG to write; replaced atomically, so that a viewer never sees half a picture.
    """
    epochs = [record for record in records if record["type"] == "epoch"]
    if not epochs:
        return
    distilled = [record for record in epochs if record["distill_weight"] is not None]
    figure = Figure(figsize=(11, 7), dpi=120, layout="constrained")
    ap = None
    if "distill" in epochs[-1]["losses"] and not distilled:  # pretraining, which has nothing to evaluate
        figure.set_size_inches(11, 4)
        losses, lr = bottom = list(figure.subplots(1, 2, sharex=True).flat)
        _draw_alignment(losses, epochs)
    elif distilled:
        losses, ap, distillation, lr = figure.subplots(2, 2, sharex=True).flat
        _draw_distillation(distillation, distilled)
        bottom = (distillation, lr)
    else:
        figure.set_size_inches(13, 4)
        losses, ap, lr = bottom = list(figure.subplots(1, 3, sharex=True).flat)
    if ap is not None:
        _draw_losses(losses, epochs)
        _draw_ap(ap, epochs, records[0].get("start_metrics"))
    _draw_lr(lr, records, epochs)
    for axes in (losses, *bottom) if ap is None else (losses, ap, lr, *bottom):
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        _draw_stages(axes, epochs, named=axes is lr)
    for axes in figure.axes:
        _add_legend(figure, axes, is_lowest=axes not in (losses, ap) or not distilled)
    for axes in bottom:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    losses.set_xlim(0, 1.02 * max(epochs[-1]["epoch"], 2))
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png"))


def _draw_losses(axes: Axes, epochs: Sequence[dict[str, Any]]) -> None:
    axes.set_title("training losses of the last layer", loc="left")
    for name, label, color in TERMS:
        x, y = _series(epochs, lambda record, name=name: record["losses"].get(name))
        if any(value > 0 for value in y):
            axes.plot(x, y, color=color, label=label, **_style(x, dashed=label.endswith("weighted")))
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 1e-3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter("")


def _draw_alignment(axes: Axes, epochs: Sequence[dict[str, Any]]) -> None:
    axes.set_title("L_DSI: mean of 1 − cos between F5 and the teacher", loc="left")
    x, y = _series(epochs, lambda record: record["losses"].get("distill"))
    axes.plot(x, y, color=RED, **_style(x))
    axes.set_ylim(bottom=0)


def _draw_ap(axes: Axes, epochs: Sequence[dict[str, Any]], start_metrics: dict[str, Any] | None) -> None:
    axes.set_title("validation of the averaged weights, %", loc="left")
    start = [{"epoch": 0, "metrics": start_metrics}] if start_metrics else []
    for name, label, color in (("ap50", "AP50", SKY), ("ap", "AP", BLUE)):
        x, y = _series([*start, *epochs], lambda record, name=name: record["metrics"].get(name))
        axes.plot(x, [100 * value for value in y], color=color, label=label, **_style(x))
    axes.set_ylim(0, max(axes.get_ylim()[1], 5))  # less than that is noise, and should look like it
    x, y = _series(epochs, lambda record: record["metrics"].get("ap"))
    if x:
        best = max(range(len(x)), key=lambda index: (y[index], x[index]))
        axes.plot(
            x[best], 100 * y[best], "o", color=BLUE, zorder=3, label=f"best AP {100 * y[best]:.1f}, epoch {x[best]:g}"
        )
    else:
        axes.text(0.5, 0.5, "not evaluated yet", color=GRAY, ha="center", transform=axes.transAxes)


def _draw_distillation(axes: Axes, epochs: Sequence[dict[str, Any]]) -> None:
    axes.set_title("distillation", loc="left")
    x, weight = _series(epochs, lambda record: record["distill_weight"])
    axes.step(x, weight, where="mid", color=RED, **_style(x))
    axes.set_ylabel("weight λ", color=RED)
    axes.set_ylim(0, 1.15 * max(weight) or 1)
    right = axes.twinx()
    x, share = _series(epochs, lambda record: record["modulation"] and record["modulation"]["share"])
    right.plot(x, share, color=BLUE, **_style(x))
    right.set_ylabel("AIFI's share of the gradient, %", color=BLUE)
    right.set_ylim(0, 1.15 * max(share) or 1)
    right.spines[["top", "left"]].set_visible(False)
    x, bands = _series(epochs, lambda record: record["modulation"] and record["modulation"]["band"])
    if x:
        low, high = zip(*bands, strict=True)
        # Half an epoch wider, because a single epoch has no width.
        right.fill_between(
            [x[0] - 0.5, *x, x[-1] + 0.5],
            [low[0], *low, low[-1]],
            [high[0], *high, high[-1]],
            color=BLUE,
            alpha=0.12,
            linewidth=0,
            label="target share",
        )
        right.set_ylim(0, 1.15 * max(*share, *high))


def _draw_lr(axes: Axes, records: Sequence[dict[str, Any]], epochs: Sequence[dict[str, Any]]) -> None:
    axes.set_title("highest learning rate", loc="left")
    steps_per_epoch = epochs[-1]["step"] / epochs[-1]["epoch"]
    points = sorted({record["step"] / steps_per_epoch: record["lr"] for record in records if "lr" in record}.items())
    axes.plot(*zip(*points, strict=True), color=GREEN, **_style(points))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1e}" if value else "0"))


def _add_legend(figure: Figure, axes: Axes, *, is_lowest: bool) -> None:
    """Put the legend under the axes, where it covers nothing."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(0, 0),
            bbox_transform=offset_copy(axes.transAxes, figure, y=-36 if is_lowest else -6, units="points"),
            borderaxespad=0,
            borderpad=0,
            ncols=4,
            frameon=False,
            fontsize="small",
            columnspacing=1.2,
            handlelength=1.4,
        )


def _draw_stages(axes: Axes, epochs: Sequence[dict[str, Any]], *, named: bool) -> None:
    for index, (stage, members) in enumerate(groupby(epochs, key=lambda record: record["stage"])):
        numbers = [record["epoch"] for record in members]
        first, last = numbers[0] - 1, numbers[-1]
        if index % 2:
            axes.axvspan(first, last, color="#f3f3f3", linewidth=0, zorder=0)
        if named:
            is_narrow = last - first < 0.2 * epochs[-1]["epoch"]
            axes.annotate(
                stage,
                ((first + last) / 2, 0),
                (0, 4),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                va="bottom",
                rotation=90 if is_narrow else 0,
                fontsize="small",
                color=GRAY,
            )


def _series(epochs: Sequence[dict[str, Any]], value_of: Any) -> tuple[list[float], list[Any]]:
    pairs = [(record["epoch"], value_of(record)) for record in epochs]
    return [x for x, y in pairs if y is not None], [y for _, y in pairs if y is not None]


def _style(points: Sequence[Any], *, dashed: bool = False) -> dict[str, Any]:
    return {"linewidth": 1.6, "linestyle": "--" if dashed else "-", "marker": "." if len(points) < 25 else None}
