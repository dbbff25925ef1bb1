"""The picture of a benchmark: accuracy against latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rtdetrv4.benchmark.result import Benchmark, Row
from rtdetrv4.errors import require
from rtdetrv4.outputs import write_whole

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, distinguishable with any color vision."""


def draw_benchmark(benchmark: Benchmark, path: Path) -> bool:
    """Draw AP over the median latency of one image, a color per runtime, and write it as a PNG.

    Args:
        benchmark: the results. Rows with several images per run or several runs at once are left out.
        path: the file to write.

    Returns:
        Whether there was anything to draw: the AP of a file is known.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    shown = [row for row in benchmark.rows if row.ap is not None and row.batch == row.num_parallel == 1]
    if not shown:
        return False
    figure: Any = require("matplotlib.figure", "eval").Figure(figsize=(8, 5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    runtimes = list(dict.fromkeys(row.runtime for row in shown))
    for number, row in enumerate(sorted(shown, key=lambda row: row.median_ms)):
        index = runtimes.index(row.runtime)
        point = (row.median_ms, 100 * (row.ap or 0.0))
        axes.plot(*point, "os^Dv"[index // len(_COLORS) % 5], color=_COLORS[index % len(_COLORS)], markersize=7)
        axes.annotate(
            _label(row, shown),
            point,
            xytext=(0, 9 if number % 2 == 0 else -9),  # neighbors are named above and below
            textcoords="offset points",
            ha="center",
            va="bottom" if number % 2 == 0 else "top",
            fontsize="small",
            parse_math=False,
        )
    slowest = max(row.median_ms for row in shown)
    axes.set_xlim(0, 1.15 * slowest)
    aps = [100 * (row.ap or 0.0) for row in shown]
    middle, reach = (min(aps) + max(aps)) / 2, max(0.7 * (max(aps) - min(aps)), 2.5)  # a tenth is not to look like much
    axes.set_ylim(middle - reach, middle + reach)
    axes.set_xlabel("latency of the network, one image, ms (median)")
    axes.set_ylabel("AP, %")
    where = "" if benchmark.data is None else f", AP on {benchmark.data}"
    axes.set_title(f"{benchmark.machine}{where}", loc="left", fontsize="medium", parse_math=False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [
        axes.plot([], [], "os^Dv"[index // len(_COLORS) % 5], color=_COLORS[index % len(_COLORS)])[0]
        for index in range(len(runtimes))
    ]
    legend = figure.legend(handles, runtimes, loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png"))
    return True


def _label(row: Row, shown: list[Row]) -> str:
    """The name of the file, with its threads if they differ among the rows."""
    threads = "" if len({each.threads for each in shown}) == 1 else f", {row.threads or 'all'} threads"
    return f"{Path(row.file).name}{threads}"
