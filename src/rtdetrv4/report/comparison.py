"""report.html of a comparison: the differences between its arms on one page."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rtdetrv4.pages import Interval, Line, intervals, lines, render
from rtdetrv4.report.charts import Chart
from rtdetrv4.report.content import REPORT_PAGE, header, write_files

COLORS = (0, 1, 2, 3, 4, 5, 7, 8)
"""Of the arms; the reference is gray."""
MAX_CLASS_ROWS = 20
"""Differences by class in the chart; compare.json has all."""

Log = Sequence[Mapping[str, Any]]
"""The records of a run's epochs."""
Table = tuple[str, Sequence[str], Sequence[Sequence[str]], str]
"""Title, header, rows and note."""


def write_comparison_report(
    folder: Path, summary: Mapping[str, Any], tables: Sequence[Table], logs: Mapping[str, Mapping[int, Log]]
) -> Path:
    """Write report.html and report.json for a comparison, and return the path of the page.

    Args:
        folder: of the comparison.
        summary: the content of compare.json.
        tables: what its results are in words and numbers.
        logs: for each arm and seed, the records of its epochs.

    Raises:
        ConfigError: the folder holds a report.html or report.json of another origin.
        MissingDependencyError: jinja2 is not installed.
    """
    content = header("comparison", folder) | dict(summary)
    colors = {name: COLORS[index % len(COLORS)] for index, name in enumerate(logs)}
    starts = {arm["name"]: arm.get("starts", {}) for arm in summary["arms"]}
    runs = [
        (name, seed, _link(folder, f"{name}-seed{seed}"), starts[name].get(seed))
        for name, by_seed in logs.items()
        for seed in by_seed
    ]
    html = render(
        "report/comparison.html.jinja",
        content=content,
        tables=tables,
        charts=_charts(summary, logs, colors),
        runs=runs,
        settings=[(arm["name"], arm["settings"]) for arm in summary["arms"]],
    )
    return write_files(folder, content, html)


def _link(folder: Path, run: str) -> str:
    """The relative address of a run's own report; empty if it has none."""
    return f"{quote(run)}/{REPORT_PAGE}" if (folder / run / REPORT_PAGE).is_file() else ""


def _charts(
    summary: Mapping[str, Any], logs: Mapping[str, Mapping[int, Log]], colors: Mapping[str, int]
) -> list[Chart]:
    charts = []
    rows = [_interval(each, colors) for each in summary["differences"] if each["metric"] == "last_ap"]
    if rows:
        svg = intervals(rows, f"Difference from {summary['reference']}", x_label="points of AP")
        note = (
            f"Last epoch, same seeds. Dots: a seed; line: the mean; bar: its {summary['confidence']:.0%} interval. "
            "A bar that crosses zero shows no difference."
        )
        charts.append(Chart(f"AP: difference from {summary['reference']}", svg, note))
    by_class = sorted(summary["class_differences"], key=lambda each: -abs(each["mean"]))
    if len({each["class"] for each in by_class}) > 1:
        rows = [_interval(each, colors, of_class=True) for each in by_class[:MAX_CLASS_ROWS]]
        svg = intervals(rows, "Difference by class", x_label="points of AP")
        note = "The largest differences first; among many, some are large by chance."
        charts.append(Chart(f"AP by class: difference from {summary['reference']}", svg, note))

    def curve(title: str, label: str, value_of: Callable[[Mapping[str, Any]], float | None], note: str = "") -> None:
        series = _series(logs, colors, value_of)
        if series:
            charts.append(Chart(title, lines(series, title, x_label="epoch", y_label=label), note))

    curve("AP by epoch", "%", lambda epoch: _times_100(epoch["metrics"].get("ap")), "Thin: a seed; thick: the mean.")
    curve("Weight λ of distillation", "", lambda epoch: epoch["distill_weight"])
    curve("AIFI's share of the gradient", "%", lambda epoch: (epoch["modulation"] or {}).get("share"))
    return charts


def _interval(difference: Mapping[str, Any], colors: Mapping[str, int], *, of_class: bool = False) -> Interval:
    low, high = difference["interval"] or (None, None)
    name = f"{difference['class']}, {difference['arm']}" if of_class else difference["arm"]
    return Interval(
        name,
        100 * difference["mean"],
        _times_100(low),
        _times_100(high),
        [100 * value for value in difference["by_seed"].values()],
        f"{100 * difference['mean']:+.2f}",
        colors[difference["arm"]],
    )


def _series(
    logs: Mapping[str, Mapping[int, Log]],
    colors: Mapping[str, int],
    value_of: Callable[[Mapping[str, Any]], float | None],
) -> list[Line]:
    """A thin line for each seed, and above them the mean of each arm over the epochs that all its seeds have."""
    thin, thick = [], []
    for name, by_seed in logs.items():
        curves = [
            {epoch["epoch"]: value for epoch in log if (value := value_of(epoch)) is not None}
            for log in by_seed.values()
        ]
        common = sorted(set.intersection(*map(set, curves))) if curves else []
        if not common:
            continue
        if len(curves) > 1:
            thin += [Line(name, list(each), list(each.values()), colors[name], is_thin=True) for each in curves]
        means = [statistics.fmean(each[epoch] for each in curves) for epoch in common]
        thick.append(Line(name, common, means, colors[name]))
    return thin + thick


def _times_100(value: float | None) -> float | None:
    return None if value is None else 100 * value
