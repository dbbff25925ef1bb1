"""Verify an exported file on any machine, without torch: `rtdetrv4 verify`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rtdetrv4.errors import ExportError
from rtdetrv4.runtime.agreement import Listed, Matched, list_detections, match
from rtdetrv4.runtime.engines import Engine, chooses_precision, open_engine
from rtdetrv4.runtime.engines.engine import Precision
from rtdetrv4.runtime.export_report import ExpectedScene, ExportReport, Latency, report_path
from rtdetrv4.runtime.preprocess import preprocess
from rtdetrv4.runtime.scenes import digest, scenes
from rtdetrv4.runtime.speed import measure_speed

LEAST_MATCHED = {"fp32": 0.99, "fp16": 0.85, "bf16": 0.5, "int8": 0.3}
"""Share of the confident detections that must be found, by precision.

It tells a wrong file from a rounded one, not a good one from a bad one: in synthetic scenes, a trained model is sure of
little, and rounding changes what it is least sure of. Accuracy needs data.
"""


class Verification(NamedTuple):
    """What a file does on this machine."""

    runtime: str
    report: ExportReport
    """What it did where it was exported."""
    matched: Matched
    least_matched: float
    """The share of confident detections that must be found, which was."""
    latency: Latency
    elsewise: str | None
    """What `ExportedDetector` computes in on this machine, if it is told nothing and that is something else."""


def verify_file(
    path: str | Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    precision: Precision | None = None,
    trust: bool = False,
) -> Verification:
    """Run an exported file, and compare what it finds with what PyTorch found when it was exported.

    Args:
        path: the file or folder, with its report beside it.
        device: what to run it on, in the words of the runtime; None for the best that it has.
        threads: threads that work on one batch; None leaves it to the runtime.
        precision: "fp32" or "bf16", where the runtime has the choice; None for what the file is meant for.
        trust: run the file even if it is a program that was not exported on this machine.

    Raises:
        ConfigError: the runtime does not have this precision.
        ExportError: the file or its report is missing or broken, or it does not find the same.
        MissingDependencyError: its runtime is not installed.
    """
    path = Path(path)
    engine = open_proven(path, device=device, threads=threads, precision=precision, trust=trust)
    preferred = engine.name
    if chooses_precision(path):
        preferred = open_engine(path, device=device, threads=threads, trust=trust).name
    report = ExportReport.read(report_path(path))
    metadata = engine.metadata
    if not report.expected:
        raise ExportError(f"{report_path(path)} holds no detections to compare with; the model was hardly trained.")
    wanted = {scene.number: scene for scene in report.expected}
    every = enumerate(islice(scenes(metadata.image_size), max(wanted) + 1))
    made = {number: image for number, image in every if number in wanted}
    if any(digest(image) != wanted[number].digest for number, image in made.items()):
        raise ExportError(
            f"This version of rtdetrv4 or numpy makes other images than the one that exported {path.name}; verify it "
            f"with rtdetrv4 {metadata.version}, or with data."
        )
    inputs = preprocess(list(made.values()), metadata.image_size, metadata.resize)
    found = [list_detections(each, metadata)[0] for each in in_batches(engine, inputs, metadata.batch or 1)]
    matched = match([_listed(wanted[number]) for number in made], found)
    share = matched.share
    least = min(LEAST_MATCHED[report.precision], LEAST_MATCHED[precision or "fp32"])
    if share is not None and share < least:
        raise ExportError(
            f"{path} does not find on {engine.name} what PyTorch found when it was exported: {100 * share:.1f} % of "
            f"{matched.num_confident} confident detections are the same, expected "
            f"{100 * least:g} %."
        )
    batch = metadata.batch or 1
    some = np.repeat(inputs[:1], batch, axis=0)
    latency = Latency(batch, *measure_speed(lambda _: engine(some)))
    return Verification(engine.name, report, matched, least, latency, None if preferred == engine.name else preferred)


def proven_precision(precision: str) -> Precision:
    """What a runtime is to compute floats in when a file of this precision is compared with PyTorch.

    Left to itself, OpenVINO computes in bfloat16 on processors that have it.
    """
    return "bf16" if precision == "bf16" else "fp32"


def open_proven(
    path: Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    precision: Precision | None = None,
    trust: bool = False,
) -> Engine:
    """Load a file that is to be compared with PyTorch, in the precision that it is meant for, or in another."""
    if precision is not None:
        return open_engine(path, device=device, threads=threads, precision=precision, trust=trust)
    engine = open_engine(path, device=device, threads=threads, precision="fp32", trust=trust)
    if proven_precision(engine.metadata.precision) == "bf16":
        engine = open_engine(path, device=device, threads=threads, precision="bf16", trust=trust)
    return engine


def in_batches(engine: Engine, inputs: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
    """The outputs for each image of M×3×H×W, as batches of 1; the last batch may be smaller where the file lets it."""
    for start in range(0, len(inputs), size):
        images = inputs[start : start + size]
        missing = 0 if engine.metadata.batch is None else size - len(images)
        outputs = engine(np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else images)
        for index in range(len(images)):
            yield {name: array[index : index + 1] for name, array in outputs.items()}


def size_bytes(path: Path) -> int:
    """The size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


def _listed(scene: ExpectedScene) -> Listed:
    boxes = np.array(scene.boxes_xyxy_px, dtype=np.float32).reshape(-1, 4)
    return Listed(np.array(scene.scores, dtype=np.float32)[:, None], np.array(scene.labels), boxes)
