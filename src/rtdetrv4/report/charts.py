"""The charts of a report, from the content of report.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rtdetrv4.pages import Bar, Line, bars, heat_map, lines
from rtdetrv4.pages.svg import Number

MAX_NAMED_LINES = 8
"""With more classes, only the weakest are named, and the others gray."""
NUM_WEAKEST = 5
MAX_OTHERS = 60
MAX_BARS = 40
MAX_CONFUSED = 40
"""With more classes, the confusion matrix shows those that are confused most."""
MAX_COUNTED = 20
"""Up to so many classes, the counts stand in the cells."""
LEAST_LOSS = 1e-3
"""Where the logarithmic axis of losses ends: below, a term says nothing."""
_PAIRED = ((1, False), (2, False), (3, False), (4, False), (5, False), (7, False), (8, False), (6, True))
_LOSS_COLORS = {
    "total, weighted": 0,
    "mal": 1,
    "vfl": 1,
    "giou": 3,
    "bbox": 5,
    "fgl": 4,
    "ddf": 7,
    "distill": 2,
    "pseudo-labels, weighted": 8,
}


class Chart(NamedTuple):
    """A chart with its heading and a note below."""

    title: str
    svg: str
    note: str = ""
    is_broad: bool = False


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage without its sign, "41.2"; "–" where it is undefined."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def curve_charts(curves: Mapping[str, Any]) -> list[Chart]:
    """Losses, AP, learning rate, distillation and time over the epochs of a run."""
    epochs: list[int] = curves["epoch"]
    stages = [(stage["first"] - 1, stage["last"], stage["name"]) for stage in curves["stages"]]
    x_range = (0.0, float(max(epochs[-1], 2)))

    def over_epochs(series: Sequence[Line], title: str, **options: Any) -> str:
        return lines(series, title, x_label="epoch", x_range=x_range, bands=stages, **options)

    charts = []
    if curves["ap"] is not None:
        ap, ap50 = ([None if v is None else 100 * v for v in curves[name]] for name in ("ap", "ap50"))
        start = curves["start"] or {}
        scored = [(value, epoch) for value, epoch in zip(ap, epochs, strict=True) if value is not None]
        best = max(scored)  # of equal ones the last, as in training
        x = [0, *epochs] if start.get("ap") is not None else epochs
        if start.get("ap") is not None:
            ap, ap50 = [100 * start["ap"], *ap], [100 * start["ap50"], *ap50]
        series = [Line("AP50", x, ap50, 3), Line("AP", x, ap, 1, marks=(float(best[1]),))]
        top = max(5.0, *(value for value in (*ap, *ap50) if value is not None))
        note = f"Of the averaged weights. Best AP {best[0]:.1f}, in epoch {best[1]}."
        if len(x) > len(epochs):
            note += " Epoch 0 is what training started from."
        svg = over_epochs(_without_gaps(series), "AP by epoch", y_range=(0, top), y_label="%")
        charts.append(Chart("AP on the validation images", svg, note))
    losses = [
        Line(name, epochs, values, _LOSS_COLORS.get(name, 6), is_dashed=name.endswith("weighted"))
        for name, values in curves["losses"].items()
        if any((value or 0) > 1e-6 for value in values)
    ]
    values = [value for line in losses for value in line.y if value is not None and value > 0]
    low = max(min(values, default=LEAST_LOSS), LEAST_LOSS)
    svg = over_epochs(losses, "Training losses by epoch", is_log=True, y_range=(low, max(values, default=1.0)))
    if curves["losses"].keys() - {"total, weighted", "distill"}:  # else it is L_DSI alone, which follows
        charts.append(Chart("Training losses", svg, "Terms of the last decoder layer, unweighted; logarithmic."))
    if "distill" in curves["losses"]:
        svg = over_epochs([Line("", epochs, curves["losses"]["distill"], 2)], "L_DSI by epoch")
        note = "Mean of 1 − cos between the projected F5 and the teacher: 0 is the same direction, 1 unrelated."
        charts.append(Chart("Distillation loss L_DSI", svg, note))
    if curves["distill_weight"] is not None:
        weights = curves["distill_weight"]
        steps = Line("", [*(epoch - 1 for epoch in epochs), epochs[-1]], [*weights, weights[-1]], 2, is_step=True)
        svg = over_epochs([steps], "Weight λ by epoch")
        charts.append(Chart("Weight λ of the distillation loss", svg))
    if curves["aifi_share"] is not None:
        bands = [band or (None, None) for band in curves["aifi_band"]]
        has_band = any(low is not None for low, _ in bands)
        edges = [Line(name, epochs, side, 0, is_dashed=True) for name, side in
                 zip(("target band", ""), zip(*bands, strict=True), strict=True)] if has_band else []  # fmt: skip
        series = [*edges, Line("share", epochs, curves["aifi_share"], 1)]
        svg = over_epochs(series, "AIFI's share of the gradient by epoch", y_label="%")
        charts.append(Chart("AIFI's share of the gradient", svg, "λ is steered so that it stays in its band."))
    svg = lines([Line("", curves["lr"]["epoch"], curves["lr"]["value"], 3)], "Learning rate by epoch",
                x_label="epoch", x_range=x_range, bands=stages, format_y=_rate)  # fmt: skip
    charts.append(Chart("Learning rate", svg, "Of the parts that learn fastest; the backbone may have a lower one."))
    if curves["time_shares"]:
        rows = [Bar(name, share, f"{100 * share:.0f} %") for name, share in curves["time_shares"].items()]
        rest = "saving and logging" if curves["ap"] is None else "validation, saving and logging"
        note = f"Of all epochs; the rest is {rest}."
        charts.append(Chart("Where the time went", bars(rows, "Share of the time by phase", largest=1.0), note))
    return charts


def class_chart(by_class: Sequence[Mapping[str, Any]]) -> Chart:
    """AP of each class, the best first; of many, the weakest."""
    ranked = sorted((row for row in by_class if row["ap"] is not None), key=lambda row: -row["ap"])
    shown = ranked[-MAX_BARS:]
    rows = [Bar(row["name"], row["ap"], f"{percent(row['ap'])}  ({row['num_boxes']})") for row in shown]
    note = "In brackets: boxes in these images."
    if len(shown) < len(ranked):
        note += f" The {len(shown)} weakest of {len(ranked)} classes; report.json has all."
    return Chart("AP by class, %", bars(rows, "AP by class", largest=1.0), note)


def group_charts(analysis: Mapping[str, Any]) -> list[Chart]:
    """AP by size of the objects, and by their number in an image."""
    sizes: Mapping[str, str] = {"small": "small (< 32² px)", "medium": "medium", "large": "large (> 96² px)"}
    by_size = [
        Bar(sizes[row["name"]], row["ap"], f"{percent(row['ap'])}  ({row['num_boxes']})") for row in analysis["by_size"]
    ]
    by_objects = [
        Bar(_range(row["low"], row["high"]), row["ap"], f"{percent(row['ap'])}  ({row['num_images']})")
        for row in analysis["by_objects"]
    ]
    return [
        Chart(
            "AP by size, %", bars(by_size, "AP by size", largest=1.0), "In brackets: boxes. Sizes are those of COCO."
        ),
        Chart(
            "AP by objects in the image, %",
            bars(by_objects, "AP by number of objects in the image", largest=1.0),
            "In brackets: images.",
        ),
    ]


def operating_charts(curves: Mapping[str, Any], by_class: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Precision over recall, and F1 over the confidence threshold, by class."""
    known = [row for row in by_class if row["ap"] is not None]
    ranked = [row["name"] for row in sorted(known, key=lambda row: -row["ap"])]
    precision = _class_lines(
        ranked, curves["recalls"], curves["precision_at_recall"], curves["mean_precision_at_recall"]
    )
    f1 = _class_lines(ranked, curves["confidences"], curves["f1"], curves["mean_f1"], has_best=True)
    note = "A detection is right from an IoU of 0.5." + _others_note(by_class)
    unit = (0.0, 1.0)
    svg = lines(precision, "Precision over recall", x_label="recall", y_label="precision", x_range=unit, y_range=unit)
    f1_svg = lines(f1, "F1 over confidence", x_label="confidence threshold", y_label="F1", x_range=unit, y_range=unit)
    return [
        Chart("Precision and recall", svg, note),
        Chart("F1 by confidence threshold", f1_svg, "Dots: the best threshold." + _others_note(by_class)),
    ]


def lost_chart(lost: Sequence[Mapping[str, Any]]) -> Chart:
    """The AP50 that each kind of mistake costs."""
    colors = {"missed": 2, "false_positives": 0, "false_negatives": 0}
    names: Mapping[str, str] = {"false_positives": "all false detections", "false_negatives": "all missed objects"}
    rows = [
        Bar(
            names.get(kind := str(row["kind"]), kind),
            row["ap_lost"],
            f"{percent(row['ap_lost'])}  ({row['num']})",
            colors.get(row["kind"], 1),
        )
        for row in lost
    ]
    note = (
        "Points of AP50 that would be won if mistakes of this kind alone were undone, as TIDE defines them; in "
        "brackets their number at the best threshold. The kinds do not add up to what is missing from 100."
    )
    return Chart("Where AP is lost", bars(rows, "AP50 lost by kind of mistake"), note)


def calibration_chart(bins: Sequence[Mapping[str, Any]], ece: float | None) -> Chart:
    """Precision over confidence, bin by bin, beside the diagonal of perfect calibration."""
    used = [each for each in bins if each["num"]]
    x, y = [each["mean_confidence"] for each in used], [each["precision"] for each in used]
    series = [Line("perfect", [0, 1], [0, 1], 0, is_dashed=True), Line("measured", x, y, 1, marks=tuple(x))]
    svg = lines(
        series,
        "Precision over confidence",
        x_label="confidence",
        y_label="share of right detections",
        x_range=(0, 1),
        y_range=(0, 1),
    )
    note = "Below the dashed line, the model is too sure of itself; above it, too modest."
    if ece is not None:
        note += f" Mean gap (ECE): {ece:.3f}."
    return Chart("Calibration", svg, note)


def confusion_chart(confusion: Mapping[str, Any]) -> Chart:
    """True classes against predicted classes; classes that occur in neither are left out."""
    counts = np.array(confusion["counts"], dtype=np.float64)
    last = len(counts) - 1
    mistakes = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    occurring = [k for k in range(last) if counts[k].any() or counts[:, k].any()]
    shown = sorted(sorted(occurring, key=lambda k: -mistakes[k])[:MAX_CONFUSED])
    total = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(total, 1)
    share[-1] = counts[-1] / np.maximum(counts.sum(axis=0), 1)  # false detections have no true class
    share[-1, -1] = math.nan  # true negatives cannot be counted
    kept = [*shown, last]
    share, counts = share[np.ix_(kept, kept)], counts[np.ix_(kept, kept)]
    has_texts = len(shown) <= MAX_COUNTED
    texts = [[f"{count:.0f}" if count and has_texts else "" for count in row] for row in counts]
    names = [confusion["names"][k] for k in shown]
    svg = heat_map(
        share,
        texts,
        [*names, "no box"],
        [*names, "missed"],
        "Boxes by true and predicted class",
        x_label="found as",
        y_label="true class",
        separated=True,
    )
    note = (
        f"At a confidence of {confusion['confidence']:.2f} and an IoU of 0.5. Color: the share of the boxes of a "
        "class; in the last row, of the detections."
    )
    if len(shown) < len(occurring):
        note += f" The {len(shown)} classes with most mistakes of {len(occurring)}; report.json has all."
    return Chart("Confusion matrix", svg, note, is_broad=len(shown) > 8)


def _class_lines(
    ranked: Sequence[str],
    x: Sequence[float],
    by_class: Mapping[str, Sequence[Number]],
    mean: Sequence[Number],
    *,
    has_best: bool = False,
) -> list[Line]:
    """A line for each class, the best first, and their mean; of many classes, only the weakest in color."""

    def best(values: Sequence[Number]) -> tuple[float, ...]:
        known = [(value, at) for value, at in zip(values, x, strict=True) if value is not None]
        return (max(known, key=lambda pair: pair[0])[1],) if has_best and known else ()

    named = ranked if len(ranked) <= MAX_NAMED_LINES else ranked[-NUM_WEAKEST:]
    others = [name for name in ranked if name not in named]
    others = others[:: max(1, math.ceil(len(others) / MAX_OTHERS))]
    series = [Line("others" if index == 0 else "", x, by_class[name], 0) for index, name in enumerate(others)]
    for name, (color, is_dashed) in zip(named, _PAIRED, strict=False):
        series.append(Line(name, x, by_class[name], color, is_dashed, marks=best(by_class[name])))
    if len(ranked) > 1:
        series.append(Line("mean", x, mean, 0, is_dashed=True, marks=best(mean)))
    return series


def _others_note(by_class: Sequence[Mapping[str, Any]]) -> str:
    num = sum(row["ap"] is not None for row in by_class)
    return f" Named are the {NUM_WEAKEST} weakest of {num} classes." if num > MAX_NAMED_LINES else ""


def _without_gaps(series: Sequence[Line]) -> list[Line]:
    """The lines without the epochs that were not evaluated."""
    shortened = []
    for line in series:
        known = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None]
        shortened.append(line._replace(x=[x for x, _ in known], y=[y for _, y in known]))
    return shortened


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _rate(value: float) -> str:
    return f"{value:.1e}" if value else "0"
