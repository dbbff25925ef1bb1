"""Write benchmarks/results/ to docs/benchmarks.md, and profiles of missed targets to docs/research/profiles.md.

    python benchmarks/report.py

`make bench` runs it last.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from _measure import BENCHMARKS, RESULTS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DOCS = BENCHMARKS.parent / "docs"
BEGIN, END = "<!-- results: written by benchmarks/report.py -->", "<!-- end of results -->"
COLORS = {True: "#2a7f62", False: "#b5382a"}
PICTURE = "benchmarks.png"
LABEL_WIDTH = 52


def draw(summary: list[dict[str, Any]], path: Path) -> None:
    """Draw a row per result: a dot for the ratio, a bar for the target it must not exceed."""
    figure = Figure(figsize=(11, 1.2 + 0.3 * len(summary)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, entry in enumerate(summary):
        color = COLORS[entry["met"]]
        axes.plot([entry["ratio"], entry["target"]], [row, row], color=color, linewidth=1, alpha=0.5)
        axes.plot(entry["ratio"], row, "o", color=color)
        axes.plot(entry["target"], row, "|", color="black", markersize=13, markeredgewidth=2)
        axes.annotate(
            f"{entry['ratio']:.3g}  (≤ {entry['target']:.3g})",
            (1.01, row),
            xycoords=("axes fraction", "data"),
            va="center",
            color=color,
        )
    names = [textwrap.fill(entry["name"], LABEL_WIDTH) for entry in summary]
    axes.set_yticks(range(len(summary)), names, fontsize=8, linespacing=0.9)
    axes.set_ylim(len(summary) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", which="both", alpha=0.2)
    axes.set_xlabel("ours / reference, smaller is better\nbar: target (green: met, red: missed)")
    figure.savefig(path, dpi=150)


def results_part(summary: list[dict[str, Any]], details: dict[str, dict[str, Any]]) -> str:
    """Return Markdown with the plot, the machine and the table."""
    lines = [f"![Ratios and targets]({PICTURE})", ""]
    lines += [f"- {scripts}: {machine}" for machine, scripts in _machines(details).items()]
    lines += ["", "| what | ratio | target | | measured | commit, date |", "|---|---|---|---|---|---|"]
    for entry in summary:
        measured = details.get(_script(entry), {}).get("measured", {}).get(entry["name"], {})
        cells = (
            entry["name"],
            f"{entry['ratio']:.3g}",
            f"≤ {entry['target']:.3g}",
            "met" if entry["met"] else "**missed**",
            "; ".join(f"{_label(name)} {_value(value)}" for name, value in measured.items()),
            f"{entry['commit']}, {entry['date']}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def profiles_part(summary: list[dict[str, Any]], details: dict[str, dict[str, Any]]) -> str:
    """Return Markdown with the profiles of scripts that missed a target."""
    lines: list[str] = []
    for script in sorted({_script(entry) for entry in summary if not entry["met"]} & set(details)):
        lines += [f"`benchmarks/{script}.py`", ""]
        lines += [f"- {name}: {_value(value)}" for name, value in details[script]["notes"].items()] + [""]
    return "\n".join(lines).rstrip() or "Every target was met."


def insert(page: Path, part: str) -> None:
    """Replace the text between the two markers of `page`."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{part}\n\n{END}{after}", encoding="utf-8")


def _script(entry: dict[str, Any]) -> str:
    return Path(entry["command"].split()[1]).stem


def _machines(details: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Map each machine to the scripts that ran on it."""
    machines: dict[str, list[str]] = {}
    for script, content in details.items():
        env = content["environment"]
        threads = f", {env['threads']} threads" if "threads" in env else ""
        gpu = f", {env['gpu']}" if "gpu" in env else ""
        versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
        text = f"{env['cpu']}, {env['cores']} cores{threads}{gpu}, Python {env['python']}, {versions}"
        machines.setdefault(text, []).append(script)
    return {machine: ", ".join(f"`{script}.py`" for script in scripts) for machine, scripts in machines.items()}


def _label(name: str) -> str:
    return name.removesuffix("_s").replace("_", " ") + (" second" if name.endswith("_per_s") else "")


def _value(value: Any) -> str:
    """Format timings as "median (least to most) s", shares in percent, and other values unchanged."""
    if isinstance(value, dict) and {"median", "least", "most"} <= value.keys():
        return f"{value['median']:.3g} s ({value['least']:.3g} to {value['most']:.3g})"
    if isinstance(value, dict) and all(isinstance(v, float) and v <= 1 for v in value.values()):
        return ", ".join(f"`{key}` {v:.0%}" for key, v in value.items())
    if isinstance(value, dict):
        return ", ".join(f"{_label(key)} {_value(v)}" for key, v in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Read the results, draw the plot and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="nothing: quick runs leave nothing to report")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    args = parser.parse_args()
    if args.quick:
        return
    summary = json.loads((args.results / "summary.json").read_text(encoding="utf-8"))
    # The folder has results of other kinds, too.
    paths = [args.results / f"{script}.json" for script in sorted(set(map(_script, summary)))]
    details = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()}
    draw(summary, args.docs / PICTURE)
    page = args.docs / "benchmarks.md"
    insert(page, results_part(summary, details))
    insert(args.docs / "research" / "profiles.md", profiles_part(summary, details))
    print(f"{page} and {PICTURE} show {len(summary)} results, {sum(entry['met'] for entry in summary)} of them met")


if __name__ == "__main__":
    main()
