"""The content of report.json: what the files of a run or an evaluation say, gathered without measuring anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from rtdetrv4.errors import ConfigError, ExportError
from rtdetrv4.outputs import LOG_FILE, SIMILARITY_FILE, write_text
from rtdetrv4.runtime.export_report import REPORT_SUFFIX, ExportReport
from rtdetrv4.yaml12 import load_yaml

REPORT_PAGE, REPORT_DATA = "report.html", "report.json"
MADE_BY = '<meta name="generator" content="rtdetrv4">'
"""What a page of this package begins with."""
METRICS_FILE, ANALYSIS_FILE, FACTS_FILE = "metrics.json", "analysis.json", "evaluation.json"
RECIPE_FILE, RECORD_FILE = "recipe.yaml", "run.json"
REPORT_FILES = (REPORT_PAGE, REPORT_DATA)
RUN_ENTRIES = ("recipe", "record", "start_of_run", "training", "curves")
"""What only the content of a run has; None otherwise."""
ANALYSIS_ENTRIES = (
    "by_class",
    "by_size",
    "by_objects",
    "curves",
    "confusion",
    "lost",
    "calibration",
    "ece",
    "galleries",
)
"""What analysis.json holds, or else it is of another version."""

Content = dict[str, Any]


def gather(folder: Path) -> Content:
    """Return the content of report.json for the folder of a run or of an evaluation.

    Raises:
        ConfigError: the folder holds neither, or one of its files is damaged.
    """
    is_run = (folder / RECIPE_FILE).is_file() and (folder / LOG_FILE).is_file()
    if not is_run and not (folder / METRICS_FILE).is_file():
        raise ConfigError(
            f"{folder} holds nothing to report on: expected the folder of a run (with {RECIPE_FILE} and {LOG_FILE}), "
            f"of `rtdetrv4 val --out` (with {METRICS_FILE}) or of `rtdetrv4 compare`."
        )
    left_out: list[str] = []
    content: Content = header("run" if is_run else "evaluation", folder)
    content |= _run(folder, left_out) if is_run else dict.fromkeys(RUN_ENTRIES)
    content |= _evaluation(folder / "val" if is_run else folder, left_out)
    return content | {"exports": _exports(folder, left_out), "left_out": left_out}


def header(kind: str, folder: Path) -> Content:
    """The first entries of a report.json: what it is about, and which version wrote it when."""
    return {
        "generator": f"rtdetrv4 {metadata.version('rtdetrv4')}",
        "kind": kind,
        "name": folder.resolve().name,
        "written": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    }


def write_files(folder: Path, content: Content, html: str) -> Path:
    """Write report.json and report.html, in place of earlier ones, and return the path of the page.

    Raises:
        ConfigError: a file of one of these names is there that this package did not write.
    """
    page, data = folder / REPORT_PAGE, folder / REPORT_DATA
    for path, mark in ((page, MADE_BY), (data, '{\n  "generator": "rtdetrv4')):
        if path.exists() and mark not in _beginning(path):
            raise ConfigError(f"{path} is there already and was not written here; rename it to get a report.")
    # A file name that is not UTF-8 is written as JSON's own escapes.
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(data, text, errors="backslashreplace")
    write_text(page, html, errors="backslashreplace")
    return page


def _beginning(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(400)


def _run(folder: Path, left_out: list[str]) -> Content:
    from rtdetrv4.training.observers import read_log  # imports torch, which a report on an evaluation does not need

    recipe = _read(folder / RECIPE_FILE, load_yaml)
    record = _read(folder / RECORD_FILE, json.loads)
    if record is None:
        left_out.append(f"Data, versions and seed: {RECORD_FILE} is missing, as in runs of earlier versions.")
    log = read_log(folder / LOG_FILE)
    try:
        runs = [entry for entry in log if entry["type"] == "run"]
        epochs = [entry for entry in log if entry["type"] == "epoch"]
        training = _training(epochs) if epochs else None
        curves = _curves(log, epochs, runs[-1] if runs else None) if epochs else None
    except (LookupError, TypeError) as error:
        raise ConfigError(
            f"{folder / LOG_FILE} is damaged, or not a log of this version; "
            f"`rtdetrv4 report {folder / 'val'}` reports on the evaluation alone."
        ) from error
    if curves is None:
        left_out.append("Curves: no epoch is complete yet.")
    elif curves["distill_weight"] is None and "distill" not in curves["losses"]:
        left_out.append("Distillation: the run had no teacher.")
    start = runs[0] if runs else None
    return {"recipe": recipe, "record": record, "start_of_run": start, "training": training, "curves": curves}


def _training(epochs: Sequence[Mapping[str, Any]]) -> Content:
    """Totals over the epochs of a run."""
    best = [epoch for epoch in epochs if epoch["is_best"]]
    return {
        "epochs": epochs[-1]["epoch"],
        "steps": epochs[-1]["step"],
        "seconds": sum(epoch["seconds"] for epoch in epochs),
        "images_per_second": epochs[-1]["images_per_second"],
        "best_epoch": best[-1]["epoch"] if best else None,
        "num_skipped": epochs[-1]["num_skipped"],
        "num_unreadable": epochs[-1]["num_unreadable"],
    }


def _curves(
    log: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]], start: Mapping[str, Any] | None
) -> Content:
    """Series over the epochs; null where an epoch has no value."""
    from rtdetrv4.training.run_curves import TERMS  # as in `_run`

    def series(value_of: Callable[[Mapping[str, Any]], Any]) -> list[Any] | None:
        values = [value_of(epoch) for epoch in epochs]
        return None if all(value is None for value in values) else values

    losses = {label: series(lambda epoch, name=name: epoch["losses"].get(name)) for name, label, _ in TERMS}
    steps_per_epoch = epochs[-1]["step"] / epochs[-1]["epoch"]
    rates = sorted({entry["step"] / steps_per_epoch: entry["lr"] for entry in log if "lr" in entry}.items())
    phases = list(dict.fromkeys(phase for epoch in epochs for phase in epoch.get("shares", ())))
    seconds = sum(epoch["seconds"] for epoch in epochs)
    shares = {
        phase: sum(epoch.get("shares", {}).get(phase, 0.0) * epoch["seconds"] for epoch in epochs) / seconds
        for phase in phases
    }
    modulation = [epoch["modulation"] or {} for epoch in epochs]
    stages = [(stage, [epoch["epoch"] for epoch in group]) for stage, group in groupby(epochs, lambda e: e["stage"])]
    return {
        "epoch": [epoch["epoch"] for epoch in epochs],
        "stages": [{"name": stage, "first": numbers[0], "last": numbers[-1]} for stage, numbers in stages],
        "losses": {label: values for label, values in losses.items() if values is not None},
        "ap": series(lambda epoch: epoch["metrics"].get("ap")),
        "ap50": series(lambda epoch: epoch["metrics"].get("ap50")),
        "start": (start or {}).get("start_metrics") or None,
        "lr": {"epoch": [epoch for epoch, _ in rates], "value": [rate for _, rate in rates]},
        "distill_weight": series(lambda epoch: epoch["distill_weight"]),
        "aifi_share": [each.get("share") for each in modulation] if any(modulation) else None,
        "aifi_band": [each.get("band") for each in modulation] if any(modulation) else None,
        "time_shares": shares | {"the rest": max(1 - sum(shares.values()), 0.0)} if shares else None,
    }


def _evaluation(folder: Path, left_out: list[str]) -> Content:
    metrics = _read(folder / METRICS_FILE, json.loads)
    analysis = _read(folder / ANALYSIS_FILE, json.loads)
    facts = _read(folder / FACTS_FILE, json.loads)
    if analysis is not None and not analysis.keys() >= set(ANALYSIS_ENTRIES):
        analysis = None
    if metrics is None:
        left_out.append("Results on validation images: there are none.")
    elif analysis is None:
        left_out.append(
            "Curves by class, confusion matrix, lost AP, calibration and examples: these files are of an earlier "
            "version; `rtdetrv4 val --out` makes them anew."
        )
    if metrics is not None and (facts is None or facts.get("speed") is None):
        left_out.append("Speed: it was not measured.")
    return {
        "metrics": metrics,
        "analysis": analysis,
        "evaluation": facts,
        "similarity": str(folder / SIMILARITY_FILE) if (folder / SIMILARITY_FILE).is_file() else None,
    }


def _exports(folder: Path, left_out: list[str]) -> list[dict[str, Any]]:
    """What is known of the files that were exported from the weights in a folder and are still there."""
    exports = []
    for path in sorted(folder.glob(f"*{REPORT_SUFFIX}")):
        if not (folder / path.name.removesuffix(REPORT_SUFFIX)).exists():
            continue
        try:
            report = json.loads(ExportReport.read(path).to_json())
        except ExportError as error:
            left_out.append(f"Export: {error}")
            continue
        exports.append({name: value for name, value in report.items() if name != "expected"})
    return exports


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """The content of a file; None if it is missing."""
    if not path.is_file():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is damaged; restore it, or delete it to get a report without it.") from error
