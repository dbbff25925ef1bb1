"""A loaded model of any runtime, with what is needed to find objects with it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rtdetrv4.runtime import ExportedDetector
from rtdetrv4.runtime.detect import Run
from rtdetrv4.runtime.engines import Hint, Precision, chooses_precision
from rtdetrv4.runtime.machine import num_cores
from rtdetrv4.runtime.preprocess import ResizeMode
from rtdetrv4.serving.batching import batch_sizes
from rtdetrv4.types import ClassMap

ROUNDS = 4
"""Runs of each batch size that are timed; the fastest counts, and the first one may have to prepare something."""
GAIN = 0.03
"""The share of the time per image that a larger batch must save to be worth the waiting."""
TUNING_S = 5.0
"""After which no larger batch is tried."""
MAX_SIZES = 4
"""Batch sizes for which OpenVINO is prepared: each takes seconds at the start, and memory while the server runs."""


class Network(NamedTuple):
    """A model that is ready to run."""

    architecture: str
    """The model, such as "rtdetrv4-s"."""
    runtime: str
    """What runs it, and on what."""
    classes: ClassMap
    size_hw: tuple[int, int]
    """Height and width of its input."""
    resize: ResizeMode
    """How images fill it."""
    run: Run
    training_hw: tuple[float, float] | None = None
    """Height and width of an image that the input shows at the scale of training."""
    thresholds: Mapping[str, float] | None = None
    """The best confidence of each class in validation."""
    precision: str = "fp32"
    sizes: tuple[int, ...] | None = None
    """The only batch sizes to run it with, ascending; None: any."""
    num_parallel: int = 1
    """Runs at once, each in its own thread."""

    @classmethod
    def of_file(
        cls,
        path: str | Path,
        *,
        max_batch: int,
        device: str | None = None,
        threads: int | None = None,
        precision: Precision | None = None,
        hint: Hint = "latency",
        trust: bool = False,
    ) -> Network:
        """Load an exported file.

        Args:
            path: written by `Detector.export`.
            max_batch: the most images that it will be run with.
            device: what to run it on, in the words of its runtime; None for the best.
            threads: threads that work on one batch; None leaves it to the runtime, or to `hint`.
            precision: "fp32" or "bf16", where the runtime has the choice; None for what it prefers.
            hint: "latency": one batch after the other, each on all cores. "throughput": several batches at once, which
                wait for each other less.
            trust: run the file even if it is a program that was not exported on this machine.

        Raises:
            ConfigError: there is no such device, or an option that the runtime does not have.
            ExportError: the file is missing, broken or unsafe, or was not written by this package.
            MissingDependencyError: its runtime is not installed.
        """
        path = Path(path)
        is_openvino = chooses_precision(path)
        num_parallel = 1
        if hint == "throughput" and path.suffix == ".onnx" and device in (None, "auto", "cpu"):
            threads = threads or 1
            num_parallel = max(num_cores() // threads, 1)
        detector = ExportedDetector(path, device=device, threads=threads, precision=precision, hint=hint, trust=trust)
        if hint == "throughput" and is_openvino:
            num_parallel = detector.engine.num_parallel
        elif not detector.engine.name.endswith("on CPU"):
            num_parallel = 1
        metadata = detector.metadata
        sizes = None
        if metadata.batch is not None:  # `run` fills the batch
            sizes = tuple(range(1, metadata.batch + 1))
        elif is_openvino:  # it compiles a model for each size
            sizes = batch_sizes(max_batch, MAX_SIZES)
        return cls(
            architecture=metadata.model,
            runtime=detector.engine.name,
            classes=ClassMap(metadata.names, metadata.category_ids),
            size_hw=metadata.image_size,
            resize=metadata.resize,
            run=detector.run,
            training_hw=metadata.training_hw,
            thresholds=metadata.thresholds,
            precision=metadata.precision,
            sizes=sizes,
            num_parallel=num_parallel,
        )

    def run_black(self, size: int) -> float:
        """Run a batch of black images, as after loading and to time it: seconds."""
        images = [np.zeros((*self.size_hw, 3), dtype=np.uint8)] * size
        start = time.perf_counter()
        self.run(images)
        return time.perf_counter() - start

    def warmed_up(self, max_batch: int) -> Network:
        """Run it with the batch sizes that it is prepared for, so that no request waits for that; returns itself."""
        for size in self.sizes or (1, max_batch):
            self.run_black(size)
        return self

    def tuned(self, max_batch: int) -> Network:
        """Find out how many images per run pay here, and keep to that.

        On a GPU, or where threads wait for each other, a batch takes less time than its images one by one. On few
        cores it may take more, because its features no longer fit the caches, and everyone in it waits for all.

        Args:
            max_batch: the most images of a run.

        Returns:
            The network, with the sizes that are to be used.
        """
        possible = self.sizes or tuple(range(1, max_batch + 1))
        best, best_s = possible[0], math.inf
        begun = time.perf_counter()
        for size in (size for size in possible if size & (size - 1) == 0 or size == possible[-1]):
            seconds = min(self.run_black(size) for _ in range(ROUNDS)) / size
            if seconds < best_s * (1 - GAIN):
                best, best_s = size, seconds
            elif seconds > best_s * (1 + GAIN):
                break
            if time.perf_counter() - begun > TUNING_S:
                break
        return self._replace(sizes=tuple(size for size in possible if size <= best))
