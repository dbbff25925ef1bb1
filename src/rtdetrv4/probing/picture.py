"""The picture of a probe: bars with their spread over folds."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from rtdetrv4.outputs import write_whole
from rtdetrv4.probing.result import TeacherProbe
from rtdetrv4.training.run_curves import BLUE, GRAY, GREEN

LONGEST_NAME = 40


def draw_probe(probe: TeacherProbe, path: Path) -> None:
    """Draw both accuracies of every teacher, and what knowing the frequencies alone gives.

    Args:
        probe: the results.
        path: the PNG to write.
    """
    *rows, majority = probe.rows
    places = range(len(rows))[::-1]  # the first on top
    figure = Figure(figsize=(9, 1.9 + 0.42 * len(rows)), dpi=130, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    num_classes = len(probe.num_boxes) - 1
    titles = (
        f"balanced accuracy, %:\n{num_classes} class{'es' if num_classes > 1 else ''} and background",
        "balanced accuracy, %:\nbox or background",
    )
    for axes, title, color, name in zip(panels, titles, (BLUE, GREEN), ("balanced", "objectness"), strict=True):
        scores = [getattr(row, name) for row in rows]
        means = [100 * score.mean for score in scores]
        spreads = [100 * score.sd for score in scores]
        axes.barh(places, means, height=0.6, xerr=spreads, color=color, error_kw={"capsize": 3, "elinewidth": 1.2})
        for place, mean in zip(places, means, strict=True):
            axes.annotate(
                f"{mean:.1f}", (0, place), xytext=(4, 0), textcoords="offset points", color="white", va="center"
            )
        axes.axvline(100 * getattr(majority, name).mean, color=GRAY, linestyle="--", linewidth=1.2)
        axes.set_xlim(0, 105)
        axes.set_title(title, loc="left", fontsize="medium")
        axes.grid(color="#e6e6e6", linewidth=0.8, axis="x")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(places, [_short(row.teacher) for row in rows], parse_math=False)
    height, width = probe.image_size
    figure.suptitle(
        f"{probe.data}, {probe.num_images} training images, for a detector that sees {height}×{width}\n"
        f"bar: mean of {probe.num_folds} folds of images ± standard deviation; dashed: always the most frequent answer",
        x=0.01,
        ha="left",
        fontsize="medium",
        parse_math=False,
    )
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png"))


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
