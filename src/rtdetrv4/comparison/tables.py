"""Tables of a comparison, as Markdown and as text for a terminal."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from rtdetrv4.comparison.arms import METRICS, ArmSummary, Difference
from rtdetrv4.comparison.spread import CONFIDENCE, Spread
from rtdetrv4.data.document import count_of
from rtdetrv4.errors import one_line

MAX_CLASSES = 20
"""Most rows in the table of classes."""
NARROWEST = 16
"""Characters to which a column of words may shrink in a terminal; columns of numbers keep their width."""
GAP = 3
"""Characters between columns."""


class Table(NamedTuple):
    """A table of text, for the terminal, for Markdown and for the page."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def arms_table(arms: Sequence[ArmSummary]) -> Table:
    """AP of each arm."""
    header = ("arm", "seeds", "AP", "AP50", "best AP")
    rows = [
        (arm.name, str(len(arm.seeds)), *(_percent(spread) for spread in (arm.last_ap, arm.last_ap50, arm.best_ap)))
        for arm in arms
    ]
    note = (
        "Mean ± standard deviation over seeds, in percent, of the averaged weights on the validation images. AP and "
        "AP50 are those of the last epoch; compare these. The best epoch was chosen on the same images, which flatters "
        "every arm, and most of all the one with the noisiest curve."
    )
    return Table("Arms", header, tuple(rows), note)


def costs_table(arms: Sequence[ArmSummary]) -> Table:
    """Time and memory of each arm, and what distillation came to."""
    optional = {
        "GPU, MiB": [_number(arm.gpu_memory_mib, ".0f") for arm in arms],
        "memory, MiB": [_number(arm.host_memory_mib, ".0f") for arm in arms],
        "last λ": [_number(arm.distill_weight, ".3g") for arm in arms],
        "share, %": [_number(arm.share, ".2f") for arm in arms],
    }
    shown = {title: column for title, column in optional.items() if set(column) != {""}}
    rows = [
        (arm.name, f"{arm.seconds_per_epoch:.3g}", *(column[index] for column in shown.values()))
        for index, arm in enumerate(arms)
    ]
    parts = ["Seconds are medians and include validation."]
    if {"GPU, MiB", "memory, MiB"} & shown.keys():
        parts.append("Memory is the largest over seeds.")
    if "share, %" in shown:
        parts.append("Share: of AIFI in the gradient, the mean.")
    return Table("Time, memory and distillation", ("arm", "s/epoch", *shown), tuple(rows), " ".join(parts))


def differences_table(differences: Sequence[Difference]) -> Table:
    """Differences from the reference in the last epoch."""
    shown = [each for each in differences if each.metric.startswith("last")]
    counts = {each.spread.n for each in shown}
    rows = []
    for each in shown:
        low, high = each.spread.interval or (math.nan, math.nan)
        interval = "" if math.isnan(low) else f"{100 * low:+.2f} to {100 * high:+.2f}"
        seeds = (str(each.spread.n),) if len(counts) > 1 else ()
        rows.append(
            (each.arm, METRICS[each.metric], *seeds, _percent(each.spread, sign="+"), interval, each.conclusion)
        )
    seeds = ("seeds",) if len(counts) > 1 else ()
    header = ("arm", "", *seeds, "difference", f"{CONFIDENCE:.0%} interval", "")
    (same, *_) = counts
    over = "" if len(counts) > 1 else f", {count_of(same, 'seed', 'seeds')}"
    note = (
        "Points of AP in the last epoch: the arm minus the reference with the same seed, mean ± standard deviation, "
        "and the t interval of the mean. Intervals are not corrected for multiple comparisons: the more arms and "
        "metrics, the likelier that one excludes 0 by chance. Seeds vary the training, not the choice of images."
    )
    return Table(f"Paired difference from {shown[0].reference}{over}", header, tuple(rows), note)


def classes_table(reference: ArmSummary, differences: Sequence[Difference]) -> Table:
    """Differences from the reference in the last epoch, by class."""
    arms = list(dict.fromkeys(each.arm for each in differences))
    found = {(each.class_name, each.arm): each.spread for each in differences}

    def largest(name: str) -> float:
        return max((abs(found[name, arm].mean) for arm in arms if (name, arm) in found), default=0.0)

    def cell(spread: Spread | None) -> str:
        if spread is None:
            return ""
        clear = spread.interval is not None and not spread.interval[0] <= 0 <= spread.interval[1]
        return _percent(spread, sign="+") + (" *" if clear else "")

    names = sorted(reference.class_ap, key=largest, reverse=True)
    rows = [
        (name, _percent(reference.class_ap[name]), *(cell(found.get((name, arm))) for arm in arms))
        for name in names[:MAX_CLASSES]
    ]
    left_out = len(names) - len(rows)
    note = (
        "AP of the last epoch in percent, largest differences first. *: the 95% interval of this difference excludes "
        "0, as one in twenty does by chance, so expect some among many classes."
        + (f" {left_out} more classes are in compare.json." if left_out else "")
    )
    header = ("class", reference.name, *(f"{arm} − {reference.name}" for arm in arms))
    return Table("Class by class", header, tuple(rows), note)


def _percent(spread: Spread, sign: str = "") -> str:
    deviation = "" if spread.sd is None else f" ± {100 * spread.sd:.2f}"
    return f"{100 * spread.mean:{sign}.2f}{deviation}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def as_markdown(table: Table) -> str:
    """The table in Markdown, without title and note."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    align = ["---", *("---:" for _ in table.header[1:])]
    return "\n".join(map(line, (table.header, align, *table.rows)))


def as_text(table: Table, width: int) -> str:
    """The table as lines of at most `width` characters, title first.

    Words wrap, numbers do not: columns for which there is no room follow below, beside the first one again.
    """
    lines = [table.title, ""]
    for columns in _groups(table, width):
        drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in columns:
            is_words = _is_words(table, column)
            drawn.add_column(
                Text(table.header[column]),
                justify="left" if is_words else "right",
                no_wrap=not is_words,
                overflow="fold",
            )
        for row in table.rows:
            drawn.add_row(*(Text(one_line(row[column])) for column in columns))
        file = io.StringIO()
        Console(file=file, width=width, color_system=None, force_terminal=False, force_jupyter=False).print(drawn)
        lines += [line.rstrip() for line in file.getvalue().splitlines()]
        lines.append("")
    return "\n".join([*lines, wrapped(table.note, width)])


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most `width` characters; paths stay whole."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _groups(table: Table, width: int) -> Iterator[list[int]]:
    """Columns that stand beside each other; the first is in every group."""

    def room_of(column: int) -> int:
        widest = max(cell_len(cells[column]) for cells in (table.header, *table.rows))
        return min(widest, NARROWEST) if _is_words(table, column) else widest

    group, used = [0], room_of(0)
    for column in range(1, len(table.header)):
        room = GAP + room_of(column)
        if len(group) > 1 and used + room > width:
            yield group
            group, used = [0], room_of(0)
        group.append(column)
        used += room
    yield group


def _is_words(table: Table, column: int) -> bool:
    return column == 0 or not table.header[column]
