from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from rtdetrv4.report.charts import (
    calibration_chart,
    class_chart,
    confusion_chart,
    curve_charts,
    lost_chart,
    operating_charts,
    percent,
)


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("text")]


def curves(*, teacher: bool = True, start: float | None = None) -> dict:
    return {
        "epoch": [1, 2, 3],
        "stages": [{"name": "basic", "first": 1, "last": 3}],
        "losses": {"total, weighted": [30, 15, 10], "mal": [1, 0.5, 0]} | ({"distill": [1, 0.5, 0]} if teacher else {}),
        "ap": [0.1, None, 0.3],
        "ap50": [0.2, None, 0.6],
        "start": None if start is None else {"ap": start, "ap50": start},
        "lr": {"epoch": [1, 2, 3], "value": [1e-3, 1e-3, 5e-4]},
        "distill_weight": [5.0, 4.0, 4.0] if teacher else None,
        "aifi_share": [9.5, 10.5, 11.0] if teacher else None,
        "aifi_band": [[10.0, 12.0], [10.0, 12.0], None] if teacher else None,
        "time_shares": {"data": 0.25, "the rest": 0.75},
    }  # fmt: skip


def result(name: str, ap: float | None) -> dict:
    return {"name": name, "num_boxes": 5, "ap": ap}


@pytest.mark.parametrize(("value", "text"), [(0.4123, "41.2"), (0, "0.0"), (None, "–"), (math.nan, "–")])
def test_percentages(value: float | None, text: str) -> None:
    assert percent(value) == text


def test_only_a_run_with_a_teacher_shows_distillation() -> None:
    common = ["AP on the validation images", "Training losses", "Learning rate", "Where the time went"]
    assert [chart.title for chart in curve_charts(curves(teacher=False))] == common
    assert [chart.title for chart in curve_charts(curves())] == [
        *common[:2],
        "Distillation loss L_DSI",
        "Weight λ of the distillation loss",
        "AIFI's share of the gradient",
        *common[2:],
    ]


def test_the_best_epoch_is_one_of_the_run() -> None:
    assert curve_charts(curves())[0].note.endswith("Best AP 30.0, in epoch 3.")
    chart = curve_charts(curves(start=0.5))[0]
    assert chart.note.endswith("Best AP 30.0, in epoch 3. Epoch 0 is what training started from.")
    line = next(each for each in ElementTree.fromstring(chart.svg).iter("path") if each.get("d", "").count("L") == 2)
    assert "line" in line.get("class", "")  # epochs 0, 1 and 3: the second was not evaluated


def test_a_weight_holds_during_its_epoch() -> None:
    chart = next(chart for chart in curve_charts(curves()) if chart.title.startswith("Weight"))
    path = next(
        each.get("d", "") for each in ElementTree.fromstring(chart.svg).iter("path") if each.get("class") == "line"
    )
    x = [float(point.split()[0]) for point in path[1:].split("L")]
    assert (x[1] - x[0]) * 3 == pytest.approx(x[-1] - x[0], abs=0.3)


def test_classes_go_from_the_best_to_the_weakest() -> None:
    chart = class_chart([result("a", 0.2), result("b", 0.5), result("c", None)])
    assert texts(chart.svg) == ["b", "50.0  (5)", "a", "20.0  (5)"]
    many = class_chart([result(f"class{number}", number / 100) for number in range(60)])
    assert texts(many.svg)[0] == "class39"
    assert "The 40 weakest of 60 classes" in many.note


def test_of_many_classes_the_weakest_lines_are_named() -> None:
    names = [f"class{number}" for number in range(12)]
    by_class = {name: [1.0, number / 12, 0.0] for number, name in enumerate(names)}
    content = {
        "recalls": [0, 0.5, 1],
        "precision_at_recall": {**by_class, "absent": [None, None, None]},
        "mean_precision_at_recall": [1.0, 0.5, 0.0],
        "confidences": [0, 0.5, 1],
        "f1": by_class,
        "mean_f1": [0.2, 0.6, 0.1],
    }
    rows = [*(result(name, number / 12) for number, name in enumerate(names)), result("absent", None)]
    charts = operating_charts(content, rows)
    for chart in charts:
        named = [text for text in texts(chart.svg) if text.startswith(("class", "absent", "mean"))]
        assert sorted(named) == ["class0", "class1", "class2", "class3", "class4", "mean"]
        assert "the 5 weakest of 12 classes" in chart.note
    assert "mean: 0.5, 0.6" in charts[1].svg  # the dot at the best threshold


def test_lost_ap_is_in_points() -> None:
    rows = [{"kind": "missed", "ap_lost": 0.123, "num": 45}, {"kind": "false_positives", "ap_lost": 0.05, "num": 3}]
    assert texts(lost_chart(rows).svg) == ["missed", "12.3  (45)", "all false detections", "5.0  (3)"]


def test_empty_bins_are_no_points_of_the_calibration() -> None:
    bins = [
        {"num": 0, "mean_confidence": None, "precision": None},
        {"num": 4, "mean_confidence": 0.25, "precision": 0.5},
        {"num": 9, "mean_confidence": 0.75, "precision": 1.0},
    ]
    chart = calibration_chart(bins, 0.25)
    assert chart.svg.count("<circle") == 2
    assert chart.note.endswith("Mean gap (ECE): 0.250.")


def test_the_confusion_matrix_shows_counts_and_leaves_out_what_does_not_occur() -> None:
    confusion = {
        "names": ["a", "never", "b"],
        "counts": [[8, 0, 2, 0], [0, 0, 0, 0], [1, 0, 5, 4], [3, 0, 0, 0]],
        "confidence": 0.4,
    }
    chart = confusion_chart(confusion)
    assert [text for text in texts(chart.svg) if text.isdigit()] == ["8", "2", "1", "5", "4", "3"]
    assert "never" not in chart.svg
    styles = [cell.get("style") for cell in ElementTree.fromstring(chart.svg).iter("rect")]
    assert styles[5] == "fill-opacity:0.40"  # 3 of the 12 detections as a: 0.04 + 0.96 · 0.25^0.7
