"""The folder of a comparison: its settings, the results of its runs, and the report on them."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rtdetrv4.comparison.arms import LEARNED, METRICS, ArmSummary, Difference
from rtdetrv4.comparison.picture import draw_comparison
from rtdetrv4.comparison.results import Comparison, markdown
from rtdetrv4.comparison.spread import Spread
from rtdetrv4.errors import ConfigError, did_you_mean
from rtdetrv4.report import write_comparison_report
from rtdetrv4.run_folder import RECIPE_FILE, RunFolder
from rtdetrv4.training.observers import read_log

SETTINGS_FILE = "settings.json"
RESULT_FILE = "result.json"


def read_comparison(out: str | Path, arms: Sequence[str] | None = None) -> Comparison:
    """Compare the finished runs in a folder, and write report.html, compare.md, .json and .png there.

    Args:
        out: folder of the comparison.
        arms: which to report and in which order; the first is the reference. None: all, in the order first given.

    Raises:
        ConfigError: there is no finished run, or none of a named arm.
    """
    out = Path(out)
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in read_settings(out).get("arms", {})}
    for file in sorted(out.glob(f"*/{RESULT_FILE}")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            arm, seed = result["arm"], result["seed"]
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"{file} is damaged, or no result of a comparison; move it away, or delete it to train that run again."
            ) from error
        found.setdefault(arm, {})[seed] = {**result, "folder": file.parent}
    results = {name: dict(sorted(by_seed.items())) for name, by_seed in found.items() if by_seed}
    if not results:
        raise ConfigError(f"There is nothing to compare: {out} holds no finished run.")
    if arms is not None:
        for name in arms:
            if name not in results:
                known = ", ".join(results)
                raise ConfigError(
                    f'{out} holds no finished run of an arm "{name}".{did_you_mean(name, results)} There are: {known}.'
                )
        results = {name: results[name] for name in arms}
    logs = {
        name: {seed: read_epochs(result["folder"]) for seed, result in by_seed.items()}
        for name, by_seed in results.items()
    }
    class_ap = {name: _class_ap(by_seed) for name, by_seed in logs.items()}
    summaries = [_summary(name, by_seed, class_ap[name]) for name, by_seed in results.items()]
    idle = [arm.name for arm in summaries if not arm.has_learned]

    reference, *others = results
    differences, class_differences = [], []
    for name in others:
        without_learning = tuple(each for each in (name, reference) if each in idle)
        common = [seed for seed in results[name] if seed in results[reference]]
        for metric in METRICS if common else ():
            by_seed = {seed: results[name][seed][metric] - results[reference][seed][metric] for seed in common}
            differences.append(Difference(name, reference, metric, by_seed, None, without_learning))
        for label, of_reference in class_ap[reference].items():
            by_seed = {
                seed: ap - of_reference[seed]
                for seed, ap in class_ap[name].get(label, {}).items()
                if seed in of_reference
            }
            if by_seed:
                class_differences.append(Difference(name, reference, "last_ap", by_seed, label, without_learning))
    unfinished = [
        file.parent.name for file in sorted(out.glob(f"*/{RECIPE_FILE}")) if not file.with_name(RESULT_FILE).is_file()
    ]
    comparison = Comparison(
        out,
        tuple(summaries),
        tuple(differences),
        tuple(class_differences),
        tuple(unfinished),
    )
    write_text(out / "compare.json", json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False) + "\n")
    write_text(out / "compare.md", markdown(comparison))
    draw_comparison(comparison, {name: list(by_seed.values()) for name, by_seed in logs.items()}, out / "compare.png")
    write_comparison_report(out, comparison.to_dict(), comparison.tables, logs)
    return comparison


def read_settings(out: Path) -> dict[str, Any]:
    """Read the arms of a comparison and what its runs share; empty if it has not begun."""
    file = out / SETTINGS_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """Read the records of a run's finished epochs."""
    return [record for record in read_log(RunFolder(folder).log) if record["type"] == "epoch"]


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically, even if another process writes the same file."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _class_ap(by_seed: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, dict[int, float]]:
    """Last-epoch AP of each class, by seed; classes without ground truth are left out."""
    found: dict[str, dict[int, float]] = {}
    for seed, epochs in by_seed.items():
        last = epochs[-1]["metrics"] if epochs else {}
        for label, ap in last.get("per_class", {}).items():
            if ap is not None:
                found.setdefault(label, {})[seed] = ap
    return found


def _summary(
    name: str, by_seed: Mapping[int, Mapping[str, Any]], class_ap: Mapping[str, Mapping[int, float]]
) -> ArmSummary:
    results = list(by_seed.values())

    def over_seeds(key: str, reduce: Callable[[list[float]], float]) -> float | None:
        values = [result[key] for result in results if result[key] is not None]
        return reduce(values) if values else None

    return ArmSummary(
        name,
        results[0]["settings"],
        tuple(by_seed),
        any(result["best_ap50"] >= LEARNED for result in results),
        **{metric: Spread.of([result[metric] for result in results]) for metric in METRICS},
        class_ap={label: Spread.of(list(values.values())) for label, values in class_ap.items()},
        seconds_per_epoch=statistics.median(result["seconds_per_epoch"] for result in results),
        gpu_memory_mib=over_seeds("gpu_memory_mib", max),
        host_memory_mib=over_seeds("host_memory_mib", max),
        distill_weight=over_seeds("distill_weight", statistics.fmean),
        share=over_seeds("share", statistics.fmean),
        starts={seed: start for seed, result in by_seed.items() if (start := result.get("start"))},
    )
