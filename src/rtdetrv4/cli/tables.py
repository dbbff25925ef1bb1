"""Results as they are printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rtdetrv4.errors import one_line

if TYPE_CHECKING:
    from rtdetrv4.benchmark import Benchmark
    from rtdetrv4.doctor import Findings
    from rtdetrv4.evaluation import Metrics

NUM_EXAMPLES = 5
"""Of each finding of `doctor`, on the console."""


def print_metrics(metrics: Metrics) -> None:
    """Print metrics in percent, as every AP on the console is, those of each class last."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    numbers = metrics.to_dict()
    if numbers["ap"] is None:
        print("There is nothing to measure: the images have no objects.")
        return
    table = Table("metric", Column("%", justify="right"))
    for name, value in numbers.items():
        if isinstance(value, float):
            table.add_row(name, f"{100 * value:.2f}")
    for label, value in numbers["per_class"].items():
        # Text, because brackets in a class name are not markup.
        table.add_row(Text(one_line(f"ap of {label}")), "" if value is None else f"{100 * value:.2f}")
    Console().print(table)


def print_proof(path: Path) -> None:
    """Say what was written, and what of its report the user has to know."""
    from rtdetrv4.runtime.export_report import ExportReport, report_path

    print(f"Exported: {path}")
    file = report_path(path)
    if not file.is_file():
        return
    report = ExportReport.read(file)
    latency, in_torch = report.latency, report.torch_latency
    size = f"{report.size_bytes / 1e6:.1f} MB"
    times = [f"{each.median_ms:.1f} ms{' (one run)' * (each.num_runs == 1)}" for each in (latency, in_torch)]
    print(f"  {size}, {times[0]} per batch of {latency.batch}, in PyTorch {times[1]}")
    for note in report.notes:
        print(f"  {note}")


def print_benchmark(benchmark: Benchmark) -> None:
    """Print latencies as a table."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    def number(value: float | None, factor: float = 1.0) -> str:
        return "" if value is None else f"{factor * value:.3g}" if factor * value < 100 else f"{factor * value:.0f}"

    rows = benchmark.rows
    columns = {
        "batch": [str(row.batch) for row in rows],
        "threads": [str(row.threads or "") for row in rows],
        "at once": ["" if row.num_parallel == 1 else str(row.num_parallel) for row in rows],
        "ms": [number(row.median_ms) for row in rows],
        "p95": [number(row.p95_ms) for row in rows],
        "images/s": [number(row.images_per_second) for row in rows],
        "before": [number(row.preprocess_ms) for row in rows],
        "after": [number(row.postprocess_ms) for row in rows],
        "AP": [number(row.ap, 100) for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table(
        Column("model", overflow="fold"),
        Column("runtime", overflow="fold"),
        *(Column(name, justify="right", no_wrap=True) for name in columns),
        title=benchmark.machine,
        caption="ms: median of a batch in the network alone. before: from 1280×720 frames to its input, in ms; after: "
        "from its outputs to detections.",
        title_justify="left",
        caption_justify="left",
        box=None,
        pad_edge=False,
    )
    sizes = {row.image_size for row in rows}
    for row, *cells in zip(rows, *columns.values(), strict=True):
        size = f" {row.image_size[0]}×{row.image_size[1]}" if len(sizes) > 1 else ""
        table.add_row(Text(f"{row.file}{size}"), row.runtime, *cells)  # brackets in a name are not markup
    Console().print(table)
    for note in benchmark.notes:
        print(f"Left out: {note}")


def print_findings(findings: Findings) -> None:
    """Print what `doctor` found, with some examples of each."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console()

    def show(text: str, style: str = "") -> None:
        # Names of files and classes hold what no terminal can show, or what controls it.
        console.print(Text(one_line(text), style), soft_wrap=True)

    for note in findings.notes:
        show(note)
    if findings.parts:
        table = Table("part", *(Column(name, justify="right") for name in ("images", "boxes", "classes")), box=None)
        for name, counts in findings.parts.items():
            table.add_row(name, *map(str, counts))
        console.print(table)
    styles = {"error": "bold red", "warning": "yellow", "info": "dim"}
    table = Table("code", "", Column("count", justify="right"), "finding", box=None)
    for finding in findings.findings:
        severity = Text(finding.severity, styles[finding.severity])
        table.add_row(finding.code, severity, str(finding.count), finding.title)
    for finding in findings.findings:
        console.print()
        show(f"{finding.code} {finding.title} ({finding.count})", styles[finding.severity])
        show(f"  Training: {finding.effect}")
        show(f"  To do: {finding.remedy}")
        for example in finding.examples[:NUM_EXAMPLES]:
            line = "" if example.line is None else f":{example.line}"
            part = f"[{example.part}] " if example.part else ""
            show(f"    {part}{example.file}{line}  {example.detail}")
        if finding.count > NUM_EXAMPLES:
            show(f"    and {finding.count - NUM_EXAMPLES} more")
    if findings.findings:
        console.print()
        console.print(table)
    else:
        show("Nothing found.")
