"""Small charts as SVG text, to stand inside a page.

Drawn here and not by matplotlib, because the page's style sheet colors them, light or dark, and its fonts write them:
a chart takes a few kilobytes, and its text can be searched and read aloud. `style.css` knows the classes: `c0` (gray)
to `c8` are colors, `grid`, `axis`, `label` and `muted` the rest. A chart is 420 units wide, at which its text has the
size of the page's small text; shown wider or narrower, it scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

WIDTH = 420
FONT = 12
CHARACTER = 0.65 * FONT
"""Width of an average character, for what has to fit."""
MAX_POINTS = 300
NUM_COLORS = 8

_TOP, _BOTTOM, _RIGHT = 10, 36, 14
_PLOT_HEIGHT = 200
_ROW = 22
_MAX_NAME = 26

Number = float | None
Format = Callable[[float], str]


class Bar(NamedTuple):
    """A bar of `bars`."""

    name: str
    value: Number
    """None: undefined, and so shown."""
    text: str
    """What stands beside it."""
    color: int = 1


class Line(NamedTuple):
    """A line of `lines`; None and NaN interrupt it."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[Number] | np.ndarray
    color: int = 1
    """0 (gray) to 8."""
    is_dashed: bool = False
    marks: tuple[float, ...] = ()
    """Values of x at which a dot is drawn."""
    is_step: bool = False
    """Whether a value holds until the next one."""
    is_thin: bool = False
    """Whether it is one of several behind a line that matters more; it has no place in the legend."""


class Interval(NamedTuple):
    """A row of `intervals`."""

    name: str
    mean: float
    low: Number
    """None: there is no interval."""
    high: Number
    points: Sequence[float]
    """The values behind the mean."""
    text: str
    """What stands beside it."""
    color: int = 1


def plain(value: float) -> str:
    """A number for an axis: 0.2, 20, 20k, 2e-05."""
    if 1e4 <= abs(value) < 1e7:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:g}"


def bars(rows: Sequence[Bar], title: str, *, largest: float | None = None) -> str:
    """Draw horizontal bars, one below the other, each with its name and its text.

    Args:
        rows: from top to bottom.
        title: what the chart shows, for readers who do not see it.
        largest: the value of a bar of full length; None: the largest value.
    """
    full = largest or max((row.value or 0.0 for row in rows), default=0.0) or 1.0
    left = min(max((_width(_short(row.name)) for row in rows), default=0.0) + 10, 190)
    right = max((_width(row.text) for row in rows), default=0.0) + 10
    room = WIDTH - left - right
    svg = _svg(WIDTH, max(len(rows), 1) * _ROW + 4, title)
    for index, row in enumerate(rows):
        y = index * _ROW + 2
        group = _add(svg, "g")
        _add(group, "title").text = f"{row.name}: {row.text}"
        _text(group, left - 8, y + 15, _short(row.name), "label", anchor="end")
        length = room * min(max(row.value or 0.0, 0.0) / full, 1.0)
        _add(group, "rect", x=left, y=y + 3, width=max(length, 1), height=_ROW - 8, rx=2, class_=f"bar c{row.color}")
        _text(group, left + length + 6, y + 15, row.text, "label")
    return _string(svg)


def histogram(
    counts: Sequence[float] | np.ndarray,
    edges: Sequence[float] | np.ndarray,
    title: str,
    *,
    x_label: str,
    y_label: str = "",
    format_x: Format = plain,
    color: int = 1,
) -> str:
    """Draw the counts of n bins as columns of equal width, with the n + 1 edges below.

    Args:
        counts: (n,).
        edges: (n + 1,), ascending; they need not be equally far apart.
        title: what the chart shows, for readers who do not see it.
        x_label: the quantity that is binned, with its unit.
        y_label: what is counted.
        format_x: how an edge is written.
        color: 1 to 8.
    """
    largest = max((float(count) for count in counts), default=0.0)
    svg, frame = _frame(title, (0.0, float(len(counts))), (0.0, largest or 1.0), y_label, x_label, plain)
    base = frame.y(0)
    for index, count in enumerate(counts):
        left, right, top = frame.x(index), frame.x(index + 1), frame.y(float(count))
        rect = _add(
            svg,
            "rect",
            x=left + 0.5,
            y=top,
            width=max(right - left - 1, 0.5),
            height=base - top,
            class_=f"bar c{color}",
        )
        _add(rect, "title").text = f"{format_x(edges[index])} to {format_x(edges[index + 1])}: {plain(float(count))}"
    widest = max((_width(format_x(edge)) for edge in edges), default=0.0) + 12
    every = max(1, math.ceil(widest * len(counts) / (frame.right - frame.left)))
    for index in range(0, len(edges), every):
        _text(svg, frame.x(index), base + 16, format_x(edges[index]), "muted", anchor="middle")
    return _string(svg)


def lines(
    series: Sequence[Line],
    title: str,
    *,
    x_label: str,
    y_label: str = "",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    is_log: bool = False,
    format_y: Format = plain,
    bands: Sequence[tuple[float, float, str]] = (),
) -> str:
    """Draw lines over a common x, with a legend above them if there are several.

    Args:
        series: the lines; later ones are drawn above earlier ones.
        title: what the chart shows, for readers who do not see it.
        x_label: the quantity on the x axis.
        y_label: the quantity on the y axis.
        x_range: ends of the x axis; None: those of the points.
        y_range: ends of the y axis; None: from 0, or the least positive value if `is_log`, to the largest.
        is_log: logarithmic y axis; what is not positive is left out.
        format_y: how a value of y is written.
        bands: (from, to, name) of stretches of x that are shaded in turn, such as stages of a run.
    """
    points = [_points(line, is_log=is_log) for line in series]
    x_all = np.concatenate([x for x, _ in points]) if points else np.zeros(0)
    y_all = np.concatenate([y for _, y in points]) if points else np.zeros(0)
    x_all, y_all = x_all[np.isfinite(y_all)], y_all[np.isfinite(y_all)]
    if x_range is None:
        x_range = (float(x_all.min()), float(x_all.max())) if len(x_all) else (0.0, 1.0)
    if y_range is None:
        low = float(y_all.min()) if is_log and len(y_all) else min(0.0, float(y_all.min(initial=0)))
        y_range = (low, float(y_all.max(initial=low)) if len(y_all) else 1.0)
    legend = [line for line in series if line.name and not line.is_thin] if len(series) > 1 else []
    rows = _legend_rows(legend)
    svg, frame = _frame(
        title,
        x_range,
        y_range,
        y_label,
        x_label,
        format_y,
        top=_TOP + 18 * len(rows),
        is_log=is_log,
        least_step_x=1.0 if np.array_equal(x_all, x_all.round()) else 1e-9,
    )
    _draw_bands(svg, frame, bands)
    for number, row in enumerate(rows):
        for line, x in row:
            y = 12 + 18 * number
            style = f"line c{line.color}" + (" dashed" if line.is_dashed else "")
            _add(svg, "path", d=f"M{x:.0f} {y - 4}h16", class_=style)
            _text(svg, x + 21, y, _short(line.name), "label")
    for line, (x, y) in zip(series, points, strict=True):
        _draw_line(svg, frame, line, x, y)
    if not len(x_all):
        _text(svg, (frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2, "no data", "muted", anchor="middle")
    return _string(svg)


def intervals(rows: Sequence[Interval], title: str, *, x_label: str) -> str:
    """Draw means with their intervals, one row each, against a line at zero.

    Args:
        rows: from top to bottom.
        title: what the chart shows, for readers who do not see it.
        x_label: the quantity, with its unit.
    """
    values = [0.0]
    for row in rows:
        values += [row.mean, *row.points, *(end for end in (row.low, row.high) if end is not None)]
    ticks = _ticks(min(values), max(values) if max(values) > min(values) else min(values) + 1, count=5)
    left = min(max((_width(_short(row.name)) for row in rows), default=0.0) + 12, 190)
    right = max((_width(row.text) for row in rows), default=0.0) + 14
    height = 30.0
    bottom = height * max(len(rows), 1) + 4
    frame = _Frame(left, WIDTH - right, 0, bottom, (ticks[0], ticks[-1]), (0, 1), False)
    svg = _svg(WIDTH, bottom + _BOTTOM, title)
    for tick in ticks:
        style = "grid" if tick else "axis"
        _add(svg, "path", d=f"M{frame.x(tick):.1f} 0V{bottom:.1f}", class_=style)
        _text(svg, frame.x(tick), bottom + 15, plain(tick), "muted", anchor="middle")
    _text(svg, (frame.left + frame.right) / 2, bottom + 31, x_label, "muted", anchor="middle")
    for index, row in enumerate(rows):
        y = height * (index + 0.5) + 2
        group = _add(svg, "g", class_=f"c{row.color}")
        _add(group, "title").text = f"{row.name}: {row.text}"
        _text(group, left - 8, y + 4, _short(row.name), "label", anchor="end")
        if row.low is not None and row.high is not None:
            _add(group, "path", d=f"M{frame.x(row.low):.1f} {y:.1f}H{frame.x(row.high):.1f}", class_="line")
        for point in row.points:
            _add(group, "circle", cx=frame.x(point), cy=y - 7, r=2.5, class_="dot")
        _add(group, "path", d=f"M{frame.x(row.mean):.1f} {y - 6:.1f}v12", class_="line")
        _text(group, WIDTH - right + 8, y + 4, row.text, "label")
    return _string(svg)


def heat_map(
    shares: np.ndarray,
    texts: Sequence[Sequence[str]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    title: str,
    *,
    x_label: str,
    y_label: str,
    separated: bool = False,
) -> str:
    """Draw a table of cells that are the darker the larger their share; cells without share and text stay empty.

    Args:
        shares: R×C in [0, 1] or NaN.
        texts: R rows of C texts, which stand in the cells; "" for none.
        row_names: R names, at the left.
        column_names: C names, at the top.
        title: what the chart shows, for readers who do not see it.
        x_label: what the columns are.
        y_label: what the rows are.
        separated: whether a line sets the last row and the last column apart.
    """
    num_rows, num_columns = shares.shape
    left = max((_width(_short(name)) for name in row_names), default=0.0) + 28
    longest = max((_width(_short(name)) for name in column_names), default=0.0)
    room = WIDTH - left - 2
    is_slanted = longest > min(room / max(num_columns, 1), 76.0) - 4
    overhang = longest * 0.72 if is_slanted else 0.0  # at 45°
    cell = min(max((room - overhang) / max(num_columns, 1), 22.0), 76.0)
    top = overhang + 30 if is_slanted else 38.0
    height = min(cell, 44.0)
    svg = _svg(
        max(WIDTH, math.ceil(left + cell * num_columns + overhang + 2)), math.ceil(top + height * num_rows + 4), title
    )
    _text(svg, left, 12, x_label, "muted")
    _add(svg, "text", x=11, y=top + height * num_rows / 2, class_="muted", text_anchor="middle").text = y_label
    svg[-1].set("transform", f"rotate(-90 11 {top + height * num_rows / 2:.0f})")
    for column, name in enumerate(column_names):
        x = left + cell * (column + 0.5)
        if is_slanted:
            slanted = _text(svg, x, top - 6, _short(name), "label")
            slanted.set("transform", f"rotate(-45 {x:.1f} {top - 6:.1f})")
        else:
            _text(svg, x, top - 6, name, "label", anchor="middle")
    for row, name in enumerate(row_names):
        y = top + height * row
        _text(svg, left - 8, y + height / 2 + 4, _short(name), "label", anchor="end")
        for column in range(num_columns):
            share = float(shares[row, column])
            if not share > 0 and not texts[row][column]:
                continue
            group = _add(svg, "g")
            _add(group, "title").text = f"{name} – {column_names[column]}: {texts[row][column] or f'{share:.0%}'}"
            x = left + cell * column
            _add(group, "rect", x=x + 1, y=y + 1, width=cell - 2, height=height - 2, rx=2, class_="cell")
            group[-1].set("style", f"fill-opacity:{0.04 + 0.96 * min(max(share, 0.0), 1.0) ** 0.7:.2f}")
            if text := texts[row][column]:
                style = "label on" if share > 0.6 else "label"
                _text(group, x + cell / 2, y + height / 2 + 4, text, style, anchor="middle")
    if separated and num_rows > 1 and num_columns > 1:
        x, y = left + cell * (num_columns - 1), top + height * (num_rows - 1)
        _add(
            svg,
            "path",
            d=f"M{x:.1f} {top:.1f}V{top + height * num_rows:.1f}M{left:.1f} {y:.1f}h{cell * num_columns:.1f}",
        )
        svg[-1].set("class", "axis")
    return _string(svg)


class _Frame(NamedTuple):
    """The plot area, and how values become positions in it."""

    left: float
    right: float
    top: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    is_log: bool

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (self.right - self.left) * (value - low) / ((high - low) or 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = (value - low) / ((high - low) or 1)
        return self.bottom - (self.bottom - self.top) * min(max(share, 0.0), 1.0)


def _frame(
    title: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    y_label: str,
    x_label: str,
    format_y: Format,
    *,
    top: float = _TOP,
    is_log: bool = False,
    least_step_x: float | None = None,
) -> tuple[ElementTree.Element, _Frame]:
    """Begin a chart with axes, grid and labels; without ticks on the x axis if `least_step_x` is None."""
    low, high = y_range
    if is_log:
        low = max(low, 1e-12)
        ticks = _log_ticks(low, high := max(high, 1.5 * low))
    else:
        ticks = _ticks(low, high if high > low else low + 1)
        low, high = min(low, ticks[0]), max(high, ticks[-1])
    if y_label:
        top += 16
    left = max(_width(format_y(tick)) for tick in ticks) + 12
    frame = _Frame(left, WIDTH - _RIGHT, top, top + _PLOT_HEIGHT, x_range, (low, high), is_log)
    svg = _svg(WIDTH, top + _PLOT_HEIGHT + _BOTTOM, title)
    if y_label:
        _text(svg, 2, top - 9, y_label, "muted")
    for tick in ticks:
        y = frame.y(tick)
        _add(svg, "path", d=f"M{left:.1f} {y:.1f}H{frame.right}", class_="grid")
        _text(svg, left - 6, y + 4, format_y(tick), "muted", anchor="end")
    _add(svg, "path", d=f"M{left:.1f} {frame.bottom:.1f}H{frame.right}", class_="axis")
    if least_step_x is not None:
        for tick in _ticks(*x_range, count=6, least=least_step_x):
            if x_range[0] <= tick <= x_range[1]:
                _text(svg, frame.x(tick), frame.bottom + 15, plain(tick), "muted", anchor="middle")
    _text(svg, (left + frame.right) / 2, frame.bottom + 31, x_label, "muted", anchor="middle")
    return svg, frame


def _points(line: Line, *, is_log: bool) -> tuple[np.ndarray, np.ndarray]:
    """The points of a line, thinned out to what can be seen; NaN where it is interrupted."""
    x = np.asarray(line.x, dtype=np.float64)
    y = np.array([math.nan if value is None else value for value in line.y], dtype=np.float64)
    if is_log:
        y = np.where(y > 0, y, math.nan)
    if len(x) > MAX_POINTS:
        kept = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(np.int64))
        x, y = x[kept], y[kept]
    return x, y


def _draw_line(svg: ElementTree.Element, frame: _Frame, line: Line, x: np.ndarray, y: np.ndarray) -> None:
    path, pen, level = [], "M", 0.0
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if math.isnan(b):
            pen = "M"
            continue
        if line.is_step and pen == "L":
            path.append(f"L{frame.x(a):.1f} {level:.1f}")
        level = frame.y(b)
        path.append(f"{pen}{frame.x(a):.1f} {level:.1f}")
        pen = "L"
    group = _add(svg, "g", class_=f"c{line.color}")
    if line.name:
        _add(group, "title").text = line.name
    style = "line" + (" dashed" if line.is_dashed else "") + (" thin" if line.is_thin else "")
    _add(group, "path", d="".join(path) or "M0 0", class_=style)
    finite = np.isfinite(y)
    dots = x[finite] if finite.sum() == 1 else np.array(line.marks)
    for at in dots.tolist():
        value = float(np.interp(at, x[finite], y[finite])) if finite.any() else math.nan
        if not math.isnan(value):
            dot = _add(group, "circle", cx=frame.x(at), cy=frame.y(value), r=3.5, class_="dot")
            _add(dot, "title").text = f"{line.name}: {plain(round(at, 4))}, {plain(round(value, 4))}"


def _draw_bands(svg: ElementTree.Element, frame: _Frame, bands: Sequence[tuple[float, float, str]]) -> None:
    for number, (begin, end, name) in enumerate(bands):
        left, right = frame.x(max(begin, frame.x_range[0])), frame.x(min(end, frame.x_range[1]))
        if right <= left:
            continue
        if number % 2:
            shade = _add(svg, "rect", x=left, y=frame.top, width=right - left, height=frame.bottom - frame.top)
            shade.set("class", "shade")
            svg.remove(shade)
            svg.insert(0, shade)  # below the grid
        if _width(name) < right - left:
            _text(svg, (left + right) / 2, frame.bottom - 5, name, "muted halo", anchor="middle")


def _legend_rows(legend: Sequence[Line]) -> list[list[tuple[Line, float]]]:
    """Rows of (line, position of its entry), as many in a row as fit."""
    rows: list[list[tuple[Line, float]]] = []
    x = math.inf
    for line in legend:
        width = 21 + _width(_short(line.name)) + 14
        if x + width > WIDTH:
            rows.append([])
            x = 2.0
        rows[-1].append((line, x))
        x += width
    return rows


def _ticks(low: float, high: float, count: int = 4, least: float = 1e-9) -> list[float]:
    """About `count` round numbers, at least `least` apart, that enclose low and high."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    factors = (1, 2, 2.5, 5, 10) if power < 1 or least < 1 else (1, 2, 5, 10)
    step = max(next(factor * power for factor in factors if span / (factor * power) <= count + 0.5), least)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 12) for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in a range or, if it holds fewer than two, other round numbers too."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [float(f"{factor}e{decade}") for decade in decades for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            return inside[:: math.ceil(len(inside) / 6)]
    return [low, high]


def _width(text: str) -> float:
    """The width of a text, about: wide characters, such as Chinese ones, count twice."""
    return CHARACTER * sum(2 if ord(character) > 0x2E80 else 1 for character in text)


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def _svg(width: float, height: float, title: str) -> ElementTree.Element:
    svg = ElementTree.Element("svg", {"viewBox": f"0 0 {math.ceil(width)} {math.ceil(height)}", "role": "img"})
    svg.set("aria-label", title)
    if width > WIDTH:
        svg.set("class", "wide")
        svg.set("style", f"min-width:{math.ceil(width)}px")
    return svg


def _add(parent: ElementTree.Element, tag: str, **attributes: float | str) -> ElementTree.Element:
    """Add an element; "class_" and "text_anchor" stand for class and text-anchor."""
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    text = {
        name: value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0") for name, value in named.items()
    }
    return ElementTree.SubElement(parent, tag, text)


def _text(
    parent: ElementTree.Element, x: float, y: float, text: str, style: str, *, anchor: str = "start"
) -> ElementTree.Element:
    element = _add(parent, "text", x=x, y=y, class_=style, **({} if anchor == "start" else {"text_anchor": anchor}))
    element.text = text
    return element


def _string(svg: ElementTree.Element) -> str:
    return ElementTree.tostring(svg, encoding="unicode")
