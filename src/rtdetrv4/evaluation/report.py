"""The report on an evaluation: metrics.json and three plots."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtdetrv4.errors import require
from rtdetrv4.evaluation.analysis import analyze, mean_of_rows
from rtdetrv4.evaluation.average_precision import RECALLS
from rtdetrv4.evaluation.coco_evaluator import CocoEvaluator, Metrics
from rtdetrv4.evaluation.matching import IOU_THRESHOLD
from rtdetrv4.evaluation.operating_curves import CONFIDENCES, OperatingCurves, best_confidence
from rtdetrv4.outputs import write_text, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_FILES = ("metrics.json", "analysis.json", "precision_recall.png", "f1_confidence.png", "confusion_matrix.png")
# Okabe and Ito's colors, distinguishable with any color vision, except for two that are hard to see on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_WIDE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC", "Arial Unicode MS")
_MAX_NAMED_LINES = 10
_NUM_NAMED_OF_MANY = 5
_MAX_CLASSES_SHOWN = 60
_MAX_CLASSES_WITH_COUNTS = 20


def write_report(evaluator: CocoEvaluator, folder: str | Path, metrics: Metrics | None = None) -> dict[str, Any]:
    """Write metrics.json, analysis.json, confusion_matrix.png, precision_recall.png and f1_confidence.png.

    analysis.json holds `Analysis.to_dict()`.

    Args:
        evaluator: an evaluator that has seen all images.
        folder: created if missing; the files of an earlier report are replaced.
        metrics: the result of `evaluator.compute()`, if already computed.

    Returns:
        The contents of metrics.json: the fields of `Metrics`; "confidence", the threshold with the best mean F1;
        "thresholds", the best one for each class; and "classes", with precision, recall and F1 of each class there.
    """
    folder = Path(folder)
    names = evaluator.classes.names
    metrics = metrics or evaluator.compute()
    analysis = analyze(evaluator.records, evaluator.detections, evaluator.classes, metrics)
    content = metrics.to_dict() | {
        "iou_threshold": IOU_THRESHOLD,
        "confidence": analysis.confidence,
        "thresholds": dict(analysis.thresholds),
        "classes": {
            each.name: {
                "num_boxes": each.num_boxes,
                "confidence": each.confidence,
                "precision": each.precision,
                "recall": each.recall,
                "f1": each.f1,
            }
            for each in analysis.by_class
        },
    }
    write_text(folder / "metrics.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "analysis.json", json.dumps(analysis.to_dict()) + "\n")

    with require("matplotlib", "eval").rc_context({"font.family": _fonts()}):
        _save(draw_precision_recall(analysis.curves, names), folder / "precision_recall.png")
        _save(draw_f1_confidence(analysis.curves, names), folder / "f1_confidence.png")
        picture = draw_confusion_matrix(analysis.confusion, names, analysis.confusion_confidence)
        _save(picture, folder / "confusion_matrix.png")
    return content


def draw_precision_recall(curves: OperatingCurves, names: Sequence[str]) -> Figure:
    """Draw precision over recall, a line per class and their mean."""
    lines = np.vstack([curves.precision_at_recall, mean_of_rows(curves.precision_at_recall)])
    ap50 = lines.mean(axis=1)
    return _draw_lines(
        RECALLS,
        lines,
        [f"{ap:.2f}  {_short(name)}" for ap, name in zip(ap50, [*names, "mean"], strict=True)],
        quality=ap50,
        title="Precision and recall, IoU 0.5",
        axis_labels=("recall", "precision"),
        legend_title="AP50",
    )


def draw_f1_confidence(curves: OperatingCurves, names: Sequence[str]) -> Figure:
    """Draw F1 over the confidence threshold, a line per class and their mean, with a dot at the best threshold."""
    lines = np.vstack([curves.f1, mean_of_rows(curves.f1)])
    best = [best_confidence(f1) for f1 in lines]
    quality = np.array([math.nan if np.isnan(f1).all() else f1.max() for f1 in lines])
    labels = [
        f"{f1:.2f}  at {'–' if at is None else f'{at:.2f}'}  {_short(name)}"
        for f1, at, name in zip(quality, best, [*names, "mean"], strict=True)
    ]
    return _draw_lines(
        CONFIDENCES,
        lines,
        labels,
        quality=quality,
        title="F1 by confidence threshold, IoU 0.5",
        axis_labels=("confidence threshold", "F1"),
        legend_title="best F1",
        marked=best,
    )


def draw_confusion_matrix(counts: np.ndarray, names: Sequence[str], confidence: float) -> Figure:
    """Draw true classes (rows) against predicted classes (columns), omitting classes that occur in neither.

    Of many, those with the most mistakes are drawn; the picture of a thousand would take gigabytes.

    Args:
        counts: (K+1)×(K+1), from `confusion_matrix`.
        names: the K class names.
        confidence: the threshold of the detections, for the title.
    """
    last = len(names)
    occurring = [k for k in range(last) if counts[k].any() or counts[:, k].any()] or list(range(last))
    num_true, num_found = counts.sum(axis=1), counts.sum(axis=0)
    mistakes = num_true + num_found - 2 * counts.diagonal()
    shown = sorted(sorted(occurring, key=lambda k: -mistakes[k])[:_MAX_CLASSES_SHOWN])
    rows = [*shown, last]
    counts = counts[np.ix_(rows, rows)].astype(float)
    share = counts / np.maximum(num_true[rows], 1)[:, None]
    share[-1] = counts[-1] / np.maximum(num_found[rows], 1)  # false positives have no true class
    counts[-1, -1] = share[-1, -1] = np.nan  # true negatives cannot be counted
    num_shown = len(counts)

    cell = min(max(9.0 / num_shown, 0.16), 0.75)  # inches
    font = min(max(cell * 18, 5.5), 10)
    longest = max(len(_short(names[k])) for k in shown)
    margin = 1.3 + longest * font * 0.6 / 72
    side = num_shown * cell
    figure = _figure(max(side, 3.2) + margin + 0.9, max(side, 2.4) + margin + 0.4)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", norm=require("matplotlib.colors", "eval").PowerNorm(0.6, 0, 1))
    labels = [_short(names[k]) for k in shown]
    ticks = range(num_shown)
    axes.set_xticks(ticks, [*labels, "missed"], rotation=90 if longest > 3 else 0, fontsize=font, parse_math=False)
    axes.set_yticks(ticks, [*labels, "no box"], fontsize=font, parse_math=False)
    axes.set_xlabel("found as")
    axes.set_ylabel("true class")
    left_out = (
        f"\nthe {len(shown)} of {len(occurring)} classes with the most mistakes" if len(shown) < len(occurring) else ""
    )
    axes.set_title(
        f"Boxes by true and predicted class\nconfidence ≥ {confidence:.2f}, IoU ≥ {IOU_THRESHOLD}{left_out}", loc="left"
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for line in (axes.axhline, axes.axvline):  # separate the classes from the rest
        line(num_shown - 1.5, color="#555555", linewidth=0.8)
    if len(shown) <= _MAX_CLASSES_WITH_COUNTS:
        for row, column in zip(*np.nonzero(np.nan_to_num(counts)), strict=True):
            color = "white" if share[row, column] > 0.45 else "#222222"
            text = f"{counts[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=font)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, fraction=0.04, pad=0.03, format="{x:.0%}")
    bar.set_ticks([0, 0.05, 0.25, 0.5, 0.75, 1])
    bar.set_label("share of boxes (last row: of detections)", fontsize=8)
    bar.outline.set_visible(False)
    return figure


def _draw_lines(
    x: np.ndarray,
    lines: np.ndarray,
    labels: Sequence[str],
    *,
    quality: np.ndarray,
    title: str,
    axis_labels: tuple[str, str],
    legend_title: str,
    marked: Sequence[float | None] | None = None,
) -> Figure:
    """Draw K classes' lines and then their mean in [0, 1]², best class first; with many, name only the worst."""
    figure = _figure(9, 5)
    axes = figure.add_subplot()
    ranked = [k for k in np.argsort(-quality[:-1]) if not math.isnan(quality[k])]  # NaN: the class has no boxes
    named = ranked if len(ranked) <= _MAX_NAMED_LINES else ranked[-_NUM_NAMED_OF_MANY:]
    handles, texts = [], []

    def draw(index: int, **style: Any) -> None:
        handles.extend(axes.plot(x, lines[index], **style))
        texts.append(labels[index])
        if marked is not None and (at := marked[index]) is not None:
            y = np.interp(at, x, lines[index])
            axes.plot(at, y, "o", color=style["color"], markersize=6, markeredgecolor="white", zorder=9)

    if len(ranked) > 1:
        draw(-1, color="black", linewidth=2.6, zorder=8)
    others = [axes.plot(x, lines[k], color="#BBBBBB", linewidth=0.6)[0] for k in ranked if k not in named]
    for i, k in enumerate(named):
        style = "-" if i < len(_COLORS) else "--"
        draw(k, color=_COLORS[i % len(_COLORS)], linestyle=style, linewidth=1.6)
    if others:
        handles.insert(1, others[0])
        texts.insert(1, f"{len(others)} others; below, the {len(named)} weakest")

    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=axis_labels[0], ylabel=axis_labels[1])
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left")
    if not ranked:
        axes.text(0.5, 0.5, "no boxes in the ground truth", ha="center", va="center", backgroundcolor="white")
        return figure
    # Texts are set afterwards, because matplotlib skips labels that begin with an underscore, as class names may.
    legend = axes.legend(
        handles, [str(i) for i in range(len(handles))], title=legend_title, alignment="left", frameon=False,
        loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0,
    )  # fmt: skip
    for text, content in zip(legend.get_texts(), texts, strict=True):
        text.set_text(content)
        text.set_parse_math(False)
    return figure


def _figure(width: float, height: float) -> Figure:
    """Make a figure of this size in inches, outside pyplot's global state."""
    return require("matplotlib.figure", "eval").Figure(figsize=(width, height), layout="constrained")


def _fonts() -> list[str]:
    """Return matplotlib's own font, then installed ones with Chinese, Japanese and Korean characters."""
    installed = {font.name for font in require("matplotlib.font_manager", "eval").fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _WIDE_FONTS if name in installed)]


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():  # characters missing from every font are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:22] + "…"
