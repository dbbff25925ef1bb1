"""Timing models side by side, round by round, so that a machine that gets slower slows all of them."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from rtdetrv4.benchmark.result import Benchmark, Row
from rtdetrv4.benchmark.subject import Runtime, Subject, open_subject
from rtdetrv4.errors import ConfigError
from rtdetrv4.exported_detector import ExportedDetector
from rtdetrv4.runtime.detections import Detections
from rtdetrv4.runtime.engines import EngineOptions, Hint, Precision, is_exported
from rtdetrv4.runtime.export_metadata import ExportMetadata
from rtdetrv4.runtime.export_report import report_path
from rtdetrv4.runtime.machine import processor_name
from rtdetrv4.runtime.postprocess import NUM_TOP, postprocess
from rtdetrv4.runtime.preprocess import preprocess, view_of
from rtdetrv4.runtime.proof import proven_precision
from rtdetrv4.runtime.selection import Selection
from rtdetrv4.runtime.speed import measure_speed

BENCHMARK_FILES = ("bench.json", "bench.png")
FRAME_HW = (720, 1280)
"""Size of the frames with which preparing and drawing boxes are timed."""
WARM_UP = 3
"""Runs of each case before the first round, which allocate memory and choose kernels."""
ROUNDS = 7


class _Case(NamedTuple):
    """A loaded model, and how often to run it at once on what."""

    path: Path
    subject: Subject
    options: EngineOptions
    in_openvino: bool
    batch: int
    num_parallel: int
    feed: Any


def run_benchmark(
    models: Sequence[str | Path],
    *,
    batches: Sequence[int] = (1,),
    threads: Sequence[int | None] = (None,),
    image_sizes: Sequence[tuple[int, int]] = (),
    hints: Sequence[Hint] = ("latency",),
    runtimes: Sequence[Runtime] = (),
    precisions: Sequence[Precision | None] = (None,),
    device: str | None = None,
    seconds: float = 3.0,
    data: str | Path | None = None,
    split: Literal["train", "val", "test"] = "val",
    trust: bool = False,
) -> Benchmark:
    """Time exported models, and those of other programs, in every combination of the options.

    Every case runs in seven rounds, one case after the other and back again; in each round, the first run does not
    count. Preparing images and reading the outputs are timed apart.

    Args:
        models: exported files and folders; .onnx and .xml files of other programs, which are fed random values.
        batches: images per run. Files with a fixed batch size are timed with that alone.
        threads: threads per run; None leaves it to the runtime.
        image_sizes: heights and widths for models of other programs that take any; 640×640 if there are none.
        hints: "latency" runs one batch after the other, "throughput" as many at once as the runtime suggests.
        runtimes: "onnxruntime" and "openvino": what to run .onnx files with. None: ONNX Runtime.
        precisions: what OpenVINO computes in, "fp32" or "bf16"; None: what it prefers.
        device: see `open_engine`.
        seconds: to time each case for.
        data: a data set to measure the AP of exported files on; None takes it from the reports of their export.
        split: the split of `data`.
        trust: run files even if they are programs that were not exported on this machine.

    Raises:
        ConfigError: an option is invalid, or nothing is left to time.
        DatasetError: `data` cannot be used.
        ExportError: a file is missing or broken, or cannot be run.
        MissingDependencyError: a runtime is not installed.
    """
    paths = [Path(model) for model in models]
    _check(paths, batches, seconds)
    notes: list[str] = []
    cases = list(_cases(paths, batches, threads, image_sizes, hints, runtimes, precisions, device, notes, trust))
    if not cases:
        raise ConfigError(f"There is nothing to time: {' '.join(notes)}")
    aps: dict[tuple[Path, str], float | None] = {}
    for case in cases:
        if (case.path, case.subject.name) not in aps:
            aps[case.path, case.subject.name] = _ap(case, data, split)
    times = _timed(cases, seconds)
    around: dict[tuple[Path, int], tuple[float | None, float | None]] = {}
    for case in cases:
        if (case.path, case.batch) not in around:
            around[case.path, case.batch] = _around(case)
    rows = [
        _row(case, *times[index], around[case.path, case.batch], aps[case.path, case.subject.name])
        for index, case in enumerate(cases)
    ]
    versions = {}
    for name in ("rtdetrv4", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "executorch"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return Benchmark(
        tuple(rows),
        processor_name(),
        None if data is None else f"{data}, {split}",
        versions,
        tuple(dict.fromkeys(notes)),
    )


def _check(paths: Sequence[Path], batches: Sequence[int], seconds: float) -> None:
    for path in paths:
        if not is_exported(path):
            raise ConfigError(f"{path} is no exported file; export the model first: rtdetrv4 export {path}")
    if not batches or any(batch < 1 for batch in batches):
        raise ConfigError(f"batches: got {list(batches)}, expected numbers of images, 1 or more.")
    if not seconds > 0:
        raise ConfigError(f"seconds: got {seconds}, expected a time.")


def _cases(
    paths: Sequence[Path],
    batches: Sequence[int],
    threads: Sequence[int | None],
    image_sizes: Sequence[tuple[int, int]],
    hints: Sequence[Hint],
    runtimes: Sequence[Runtime],
    precisions: Sequence[Precision | None],
    device: str | None,
    notes: list[str],
    trust: bool,
) -> Iterator[_Case]:
    """Load every model and yield what to time with it; `notes` takes what is left out."""
    for path, num_threads, hint in itertools.product(paths, threads, hints):
        for runtime in runtimes if path.suffix == ".onnx" and runtimes else (None,):
            in_openvino = runtime == "openvino" or path.suffix == ".xml" or path.name.endswith("_openvino")
            if hint == "throughput" and not in_openvino:
                notes.append(f"{path} with the hint throughput: only OpenVINO runs several batches at once.")
                continue
            sizes = set()
            for precision, size in itertools.product(precisions if in_openvino else (None,), image_sizes or (None,)):
                options = EngineOptions(device, num_threads, precision, hint, trust)
                subject = open_subject(path, options, runtime=runtime, image_size=size)
                if size not in (None, subject.image_size):
                    notes.append(f"{path} at {_times(size)}: it takes {_times(subject.image_size)} only.")
                if (precision, subject.image_size) in sizes:
                    continue
                sizes.add((precision, subject.image_size))
                if subject.batch is not None and set(batches) != {subject.batch}:
                    notes.append(f"{path} at other batch sizes than {subject.batch}, the only one it takes.")
                for batch in batches if subject.batch is None else (subject.batch,):
                    parallel = subject.num_parallel if hint == "throughput" else 1
                    yield _Case(path, subject, options, in_openvino, batch, parallel, subject.feed(batch))


def _timed(cases: Sequence[_Case], seconds: float) -> list[tuple[np.ndarray, list[float]]]:
    """For each case, the milliseconds of its runs, and the images per second in each round."""
    times: list[list[float]] = [[] for _ in cases]
    rates: list[list[float]] = [[] for _ in cases]
    console = Console(stderr=True)
    pools = [ThreadPoolExecutor(case.num_parallel) for case in cases]
    try:
        with Progress(console=console, transient=True, disable=not console.is_interactive) as progress:
            task = progress.add_task("Warming up", total=len(cases) * (ROUNDS + 1))
            for case, pool in zip(cases, pools, strict=True):
                for _ in range(WARM_UP):
                    list(pool.map(case.subject, [case.feed] * case.num_parallel))
                progress.advance(task)
            for number in range(ROUNDS):
                progress.update(task, description=f"Round {number + 1} of {ROUNDS}")
                order = range(len(cases)) if number % 2 == 0 else reversed(range(len(cases)))
                for index in order:
                    found, elapsed = _one_round(cases[index], pools[index], seconds / ROUNDS)
                    times[index] += found
                    rates[index].append(len(found) * cases[index].batch / elapsed)
                    progress.advance(task)
    finally:
        for pool in pools:
            pool.shutdown()
    return [(np.array(each), rate) for each, rate in zip(times, rates, strict=True)]


def _one_round(case: _Case, pool: ThreadPoolExecutor, seconds: float) -> tuple[list[float], float]:
    """Milliseconds of the runs in a round, and how long it took in seconds; the first run of each thread counts not."""
    run, feed = case.subject, case.feed

    def repeat(until: float) -> list[float]:
        found: list[float] = []
        while not found or time.perf_counter() < until:
            before = time.perf_counter()
            run(feed)
            found.append(1000 * (time.perf_counter() - before))
        return found

    if case.num_parallel == 1:  # in this thread: a pool hands over in its own time
        run(feed)
        started = time.perf_counter()
        found = repeat(started + seconds)
    else:
        list(pool.map(run, [feed] * case.num_parallel))
        started = time.perf_counter()
        found = list(itertools.chain(*pool.map(repeat, [started + seconds] * case.num_parallel)))
    return found, time.perf_counter() - started


def _around(case: _Case) -> tuple[float | None, float | None]:
    """Milliseconds of preparing a batch of frames, and of reading the outputs; None for models of other programs."""
    metadata = case.subject.metadata
    if metadata is None:
        return None, None
    frame = np.random.default_rng(0).integers(256, size=(*FRAME_HW, 3), dtype=np.uint8)
    frames = [frame] * case.batch
    before = measure_speed(lambda _: preprocess(frames, metadata.image_size, metadata.resize), seconds=0.5)
    read = _reader(metadata, frame)
    outputs = case.subject(case.feed)
    after = measure_speed(lambda _: read(outputs), seconds=0.5)
    return before.median_ms, after.median_ms


def _reader(metadata: ExportMetadata, frame: np.ndarray) -> Callable[[Any], list[Detections]]:
    """What `predict` does with the outputs for a batch of frames."""
    selection = Selection(metadata.names)
    view = view_of(FRAME_HW, metadata.image_size, metadata.resize)

    def read(outputs: Any) -> list[Detections]:
        if metadata.outputs == "raw":
            found = postprocess(outputs["logits"], outputs["boxes"], max(NUM_TOP, outputs["logits"].shape[1]))
        else:
            found = outputs["scores"], outputs["labels"], outputs["boxes"]
        results = []
        for scores, labels, boxes in zip(*found, strict=True):
            chosen = selection(scores, labels, boxes)
            results.append(
                Detections.from_predictions(
                    scores[chosen],
                    labels[chosen],
                    view.boxes_px(boxes[chosen]),
                    names=metadata.names,
                    category_ids=metadata.category_ids,
                    image=frame,
                    path=None,
                )
            )
        return results

    return read


def _row(
    case: _Case,
    times: np.ndarray,
    rates: Sequence[float],
    around: tuple[float | None, float | None],
    ap: float | None,
) -> Row:
    median, p95 = np.percentile(times, (50, 95))
    metadata = case.subject.metadata
    return Row(
        file=str(case.path),
        runtime=case.subject.name,
        image_size=case.subject.image_size,
        batch=case.batch,
        threads=case.options.threads,
        hint=case.options.hint,
        num_parallel=case.num_parallel,
        median_ms=round(float(median), 3),
        p95_ms=round(float(p95), 3),
        least_ms=round(float(times.min()), 3),
        images_per_second=round(float(np.median(rates)), 2),
        num_runs=len(times),
        preprocess_ms=around[0],
        postprocess_ms=around[1],
        precision=None if metadata is None else metadata.precision,
        ap=ap,
        size_mb=round(_num_bytes(case.path) / 1e6, 2),
    )


def _ap(case: _Case, data: str | Path | None, split: Literal["train", "val", "test"]) -> float | None:
    """AP of an exported file on `data`, or else what the report on its export says; None in another file's runtime."""
    path, options = case.path, case.options
    if case.subject.metadata is None or (path.suffix == ".onnx" and case.in_openvino):
        return None
    report = report_path(path)
    if data is not None:
        detector = ExportedDetector(path, device=options.device, precision=options.precision, trust=options.trust)
        return round(detector.val(data, split=split).ap, 4)
    if not report.is_file():
        return None
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
        computed = "bf16" if case.subject.name.endswith("bf16") else "fp32"
        if computed != proven_precision(content["precision"]):  # the AP of the report is that of another computation
            return None
        return content["accuracy"]["ap"]
    except (ValueError, LookupError, TypeError):  # of another version, or without data
        return None


def _num_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _times(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[0]}×{size_hw[1]}"
