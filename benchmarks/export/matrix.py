"""Every format in every precision: is it the same model, and what does it cost?

    python benchmarks/export/matrix.py --out exported/
    python benchmarks/export/matrix.py --out exported/ --weights runs/mine/weights.safetensors --data datasets/mine

Models without trained weights get made-up ones, whose scores are spread as in a trained model. Each file is run at
batch 1, 2 and 7; what does not agree with PyTorch is in the table with the reason. Results go to
benchmarks/results/export_matrix.json after each file, a table to the terminal, and another to
docs/research/export-matrix.md. What is in the results already is not repeated; --anew forgets it.

Expected: some minutes for each model on two cores. `--models test --sizes 64 --results /tmp/matrix.json` only shows
that it runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from rtdetrv4 import Detector
from rtdetrv4.assembly import create_model
from rtdetrv4.errors import RTDETRError
from rtdetrv4.export import FORMATS, export_model
from rtdetrv4.export.formats import target
from rtdetrv4.models import DetectionModel
from rtdetrv4.runtime.export_report import ExportReport, report_path
from rtdetrv4.types import ClassMap

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "export_matrix.json"
PAGE = ROOT / "docs" / "research" / "export-matrix.md"
PAGE_HEAD = """# Formats and precisions

Written by `benchmarks/export/matrix.py`, which repeats it on your machine. Every file was run in its own runtime at
batch 1, 2 and 7 and compared with PyTorch on the same images. *Matched* is the share of confident detections that both
have, of the same class and with an IoU of at least 0.95; AP is that of 72 photos of blood cells. Weights that are not
trained are made up, with scores spread as in a trained model. Many of their detections are nearly tied, so they are a
hard test of float32, and none of the precisions below: rounding alone reorders them. L reorders them in float32, too:
with weights made up as for the others, 165 and 300 of 300 detections in two images differed between float32 and
float64 in PyTorch itself. It got gentler ones. Still, in one of ten images two of its cells are tied for the last of
the 300 places of the decoder but for 0.0004 in their class logits, and in three of the seven files 26 or 27
detections differ. With its layers fused, PyTorch selects the other one of the two, and loses the same 26; a change of
each pixel by one part in a million does as much (`benchmarks/export/rounding.py`). Such images decide nothing and are
counted in the report. With trained weights, no file in float32 differed anywhere.
"""
MODELS = "rtdetrv4-s,rtdetrv4-l,dfine-s,rtdetrv2-r18"
SIZES = "640x640,384x640"
NUM_CLASSES = 20
DEEP = 4
"""Decoder layers."""
KEYS = ("model", "size", "format", "precision")
COLUMNS = ("model", "size", "format", "precision", "matched, %", "AP", "AP in PyTorch", "px", "score", "MB", "remark")


Known = list[dict[str, Any]]


def made_up(name: str) -> DetectionModel:
    """A model whose heads are far from their initial zeros, and whose norms have seen images."""
    torch.manual_seed(0)
    model = create_model(name, NUM_CLASSES)
    # The scores of six layers shift by more, and a shift counts by how steep they are.
    is_deep = len(model.decoder.score_heads) > DEEP
    noise, steepness = (0.02, 0.03) if is_deep else (0.05, 0.3)
    with torch.no_grad():
        for part in (model.query_selection, model.decoder):
            for parameter in part.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
        for head in (model.query_selection.score_head, *model.decoder.score_heads):
            nn.init.normal_(head.get_parameter("weight"), std=steepness)
            nn.init.normal_(head.get_parameter("bias"), mean=-3)
        for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]:
            norm.momentum = 1.0  # statistics of the next batch alone
        model.train()(torch.rand(4, 3, 256, 256))
    return model


def row_of(report: ExportReport) -> dict[str, Any]:
    """What the table says of a file."""
    accuracy = report.accuracy
    return {
        "matched": report.matched,
        "ap": None if accuracy is None else accuracy.ap,
        "torch_ap": None if accuracy is None else accuracy.torch_ap,
        "max_box_px": report.max_box_px,
        "max_score": report.max_score,
        "megabytes": round(report.size_bytes / 1e6, 1),
        "batches": report.batches,
        "runtime": report.runtime,
        "machine": report.machine,
        "remark": "",
    }


def rows_of_made_up(name: str, size: tuple[int, int], out: Path, known: Known) -> Iterator[dict[str, Any]]:
    """Export a model with made-up weights in every format. Only trained weights tell what lower precisions cost."""
    model = made_up(name)
    numbers = tuple(range(NUM_CLASSES))
    for kind in FORMATS.values():
        path = target(out / f"{name}-{size[0]}x{size[1]}", kind, "fp32")
        row: dict[str, Any] = {"model": name, "size": list(size), "format": kind.name, "precision": "fp32"}
        if row in known:
            continue
        try:
            (report,) = export_model(
                model,
                {kind.name: path},
                model_name=name,
                classes=ClassMap(tuple(map(str, numbers)), numbers),
                image_size=size,
                batch=1 if kind.needs_batch else None,
            )
            yield row | row_of(report)
        except RTDETRError as error:
            yield row | {"remark": str(error)}


def rows_of_trained(weights: Path, data: str, out: Path, known: Known) -> Iterator[dict[str, Any]]:
    """Export trained weights in every way, and measure the AP of each."""
    detector = Detector(weights=weights, device="cpu")
    for kind in FORMATS.values():
        for precision in kind.precisions:
            path = target(out / weights.stem, kind, precision)
            size = detector.recipe.model.image_size
            row: dict[str, Any] = {"model": f"{detector.recipe.model.name}, trained", "size": list(size)}
            row |= {"format": kind.name, "precision": precision}
            if row in known:
                continue
            try:
                batch = 1 if kind.needs_batch else None
                detector.export(kind.name, precision=precision, data=data, out=path, batch=batch)
                yield row | row_of(ExportReport.read(report_path(path)))
            except RTDETRError as error:
                yield row | {"remark": str(error)}


def cells_of(row: dict[str, Any]) -> list[str]:
    """A row of the table."""

    def number(name: str, how: str, factor: float = 1.0) -> str:
        value = row.get(name)
        return "" if value is None else format(factor * value, how)

    accuracy = [number("matched", ".1f", 100), number("ap", ".2f", 100), number("torch_ap", ".2f", 100)]
    rest = [number("max_box_px", ".2g"), number("max_score", ".2g"), str(row.get("megabytes", "")), row["remark"]]
    return [row["model"], "×".join(map(str, row["size"])), row["format"], row["precision"], *accuracy, *rest]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(*COLUMNS, box=None)
    for row in rows:
        table.add_row(*cells_of(row))
    Console().print(table)


def write_page(rows: list[dict[str, Any]]) -> None:
    """Write the table for the documentation."""
    machines = sorted({row["machine"] for row in rows if "machine" in row})
    runtimes = sorted({row["runtime"] for row in rows if "runtime" in row})
    lines = [PAGE_HEAD, f"Machine: {'; '.join(machines)}. Runtimes: {', '.join(runtimes)}.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells_of(row)) + " |" for row in rows]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Export everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS, help=f"by name, with commas between; default {MODELS}")
    parser.add_argument("--sizes", default=SIZES, help=f"height x width, with commas between; default {SIZES}")
    parser.add_argument("--weights", type=Path, help="trained weights, to measure the AP of")
    parser.add_argument("--data", help="their data set")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the results; default %(default)s")
    parser.add_argument("--anew", action="store_true", help="repeat what is in the results already")
    args = parser.parse_args()
    sizes = [tuple(map(int, (text if "x" in text else f"{text}x{text}").split("x"))) for text in args.sizes.split(",")]
    is_known = args.results.is_file() and not args.anew
    rows: list[dict[str, Any]] = json.loads(args.results.read_text(encoding="utf-8")) if is_known else []
    known = [{key: row[key] for key in KEYS} for row in rows]
    works = [rows_of_trained(args.weights, args.data, args.out, known)] if args.weights and args.data else []
    works += [rows_of_made_up(name, size, args.out, known) for name in args.models.split(",") if name for size in sizes]
    for row in chain.from_iterable(works):
        print(*cells_of(row), flush=True)
        rows.append(row)
        args.results.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    show(rows)
    if args.results == RESULTS:
        write_page(rows)


if __name__ == "__main__":
    main()
