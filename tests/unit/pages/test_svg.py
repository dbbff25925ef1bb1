from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from rtdetrv4.pages.svg import Bar, Interval, Line, bars, heat_map, histogram, intervals, lines, plain

MARKUP = '<b>&"'


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("text")]


def elements(svg: str, tag: str, style: str) -> list[ElementTree.Element]:
    return [each for each in ElementTree.fromstring(svg).iter(tag) if style in each.get("class", "").split()]


def points(path: str) -> np.ndarray:
    """(n, 2) positions of a path of absolute moves and lines."""
    return np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", path), dtype=float)


def test_bars_are_as_long_as_their_values() -> None:
    svg = bars([Bar("a", 1.0, "100"), Bar("b", 0.25, "25", 2), Bar("c", None, "no boxes")], "AP")
    widths = [float(rect.get("width", "")) for rect in ElementTree.fromstring(svg).iter("rect")]
    assert widths[1] == pytest.approx(widths[0] / 4, abs=0.1)
    assert widths[2] == 1
    assert texts(svg) == ["a", "100", "b", "25", "c", "no boxes"]
    assert elements(svg, "rect", "c2")[0].get("width") == f"{widths[1]:g}"


def test_a_histogram_has_a_column_for_each_bin() -> None:
    svg = histogram([2, 0, 4], [0, 8, 16, 1000], "sizes", x_label="side, px", y_label="boxes")
    rects = list(ElementTree.fromstring(svg).iter("rect"))
    heights = [float(rect.get("height", "")) for rect in rects]
    assert heights[0] == pytest.approx(heights[2] / 2, abs=0.1)
    assert heights[1] == 0
    assert len({rect.get("width") for rect in rects}) == 1
    assert {"0", "8", "16", "1000", "side, px", "boxes"} <= set(texts(svg))
    assert "8 to 16: 0" in svg


def test_a_line_goes_through_its_points() -> None:
    svg = lines([Line("AP", [0, 1, 2], [0.0, 0.5, 1.0], marks=(2.0,))], "AP", x_label="epoch")
    (path,) = elements(svg, "path", "line")
    x, y = points(path.get("d", "")).T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.1)
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.1)
    (dot,) = elements(svg, "circle", "dot")
    assert (float(dot.get("cx", "")), float(dot.get("cy", ""))) == pytest.approx((x[2], y[2]), abs=0.1)
    assert {"0", "0.5", "1", "epoch"} <= set(texts(svg))


@pytest.mark.parametrize("gap", [None, math.nan])
def test_a_gap_interrupts_a_line(gap: float | None) -> None:
    (path,) = elements(lines([Line("", [0, 1, 2, 3], [1, gap, 2, 3])], "", x_label=""), "path", "line")
    assert re.sub(r"[\d. ]", "", path.get("d", "")) == "MML"


def test_a_step_holds_its_value_until_the_next() -> None:
    (path,) = elements(lines([Line("", [0, 1], [1, 2], is_step=True)], "", x_label=""), "path", "line")
    (_, y0), (x1, y1), (x2, y2) = points(path.get("d", ""))
    assert (x1, y1) == (x2, y0)
    assert y2 < y0


def test_a_logarithmic_axis_spaces_decades_evenly_and_omits_zero() -> None:
    (path,) = elements(lines([Line("", [0, 1, 2, 3], [0, 1, 10, 100])], "", x_label="", is_log=True), "path", "line")
    _, y = points(path.get("d", "")).T
    assert len(y) == 3
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.1)


def test_long_lines_are_thinned_out_and_keep_their_ends() -> None:
    (path,) = elements(lines([Line("", range(5000), range(5000))], "", x_label=""), "path", "line")
    found = points(path.get("d", ""))
    assert len(found) == 300
    assert found[0][1] == max(found[:, 1])
    assert found[-1][1] == min(found[:, 1])


def test_epochs_have_whole_numbers() -> None:
    svg = lines([Line("", [1, 2, 3, 4], [10, 20, 30, 40])], "", x_label="epoch")
    assert texts(svg) == ["0", "10", "20", "30", "40", "1", "2", "3", "4", "epoch"]


def test_only_several_lines_have_a_legend() -> None:
    one, two = Line("first", [0, 1], [0, 1]), Line("second", [0, 1], [1, 0], 2)
    assert "first" not in texts(lines([one], "", x_label=""))
    assert {"first", "second"} <= set(texts(lines([one, two], "", x_label="")))


def test_charts_without_data_say_so() -> None:
    assert "no data" in texts(lines([], "", x_label="epoch"))
    assert "no data" in texts(lines([Line("", [1], [None])], "", x_label="epoch"))
    assert texts(bars([], "")) == []


def test_a_heat_map_is_darker_where_the_share_is_larger() -> None:
    shares = np.array([[1.0, 0.0], [0.25, math.nan]])
    svg = heat_map(shares, [["9", ""], ["3", ""]], ["a", "b"], ["c", "d"], "", x_label="found as", y_label="true")
    cells = elements(svg, "rect", "cell")
    assert [cell.get("style") for cell in cells] == ["fill-opacity:1.00", "fill-opacity:0.40"]
    assert set(texts(svg)) == {"9", "3", "a", "b", "c", "d", "found as", "true"}


def test_names_may_be_markup() -> None:
    charts = (
        bars([Bar(MARKUP, 1, MARKUP)], MARKUP),
        histogram([1], [0, 1], MARKUP, x_label=MARKUP, y_label=MARKUP),
        lines([Line(MARKUP, [0], [1]), Line("", [0], [1])], MARKUP, x_label=MARKUP, bands=[(0, 1, MARKUP)]),
        heat_map(np.ones((1, 1)), [[MARKUP]], [MARKUP], [MARKUP], MARKUP, x_label=MARKUP, y_label=MARKUP),
    )
    for svg in charts:
        assert "<b>" not in svg
        assert MARKUP in texts(svg)


@pytest.mark.parametrize(("value", "text"), [(0.2, "0.2"), (20000, "20k"), (2e6, "2M"), (2e-5, "2e-05"), (0, "0")])
def test_numbers_on_axes_are_short(value: float, text: str) -> None:
    assert plain(value) == text


def test_intervals_stand_around_their_mean() -> None:
    rows = [Interval("gam", 2.0, 1.0, 3.0, [1.5, 2.5], "+2.00"), Interval("one", -1.0, None, None, [-1.0], "")]
    svg = intervals(rows, "AP", x_label="points")
    bar, mean, alone = (each.get("d", "") for each in elements(svg, "path", "line"))
    low, high = (float(x) for x in re.findall(r"^M([\d.]+) [\d.]+H([\d.]+)", bar)[0])
    middle = float(re.findall(r"^M([\d.]+)", mean)[0])
    assert middle - low == pytest.approx(high - middle, abs=0.1)
    assert float(re.findall(r"^M([\d.]+)", alone)[0]) == pytest.approx(low - (high - low), abs=0.2)
    dots = [float(dot.get("cx", "")) for dot in elements(svg, "circle", "dot")]
    assert dots[:2] == pytest.approx([(low + middle) / 2, (middle + high) / 2], abs=0.1)
    (zero,) = elements(svg, "path", "axis")
    assert float(re.findall(r"^M([\d.]+)", zero.get("d", ""))[0]) == pytest.approx(low - (middle - low), abs=0.1)
