"""The runtimes that run exported files, one module each, imported when a file needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from rtdetrv4.errors import ExportError
from rtdetrv4.runtime.export_metadata import ExportMetadata


class Engine(Protocol):
    """An exported file, loaded by its runtime."""

    metadata: ExportMetadata
    """What the file says of itself; `batch` is what the file itself accepts."""
    name: str
    """The runtime and its version, and what it runs on, such as "ONNX Runtime 1.30.0 on CPU"."""

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run a batch.

        Args:
            images: B×3×H×W float32, as `rtdetrv4.runtime.preprocess` returns it.

        Returns:
            The outputs that `ExportMetadata.outputs` describes, by name; those that are not integers as float32.

        Raises:
            ExportError: the runtime fails, or the file does not accept this batch size.
        """
        ...


def open_engine(path: str | Path, *, device: str | None = None, threads: int | None = None) -> Engine:
    """Load an exported file with the runtime that its suffix names.

    Args:
        path: a file or folder that `Detector.export` wrote.
        device: what to run it on, in the words of the runtime; None for the best that it has.
        threads: threads that work on one batch; None leaves it to the runtime.

    Raises:
        ExportError: the file is missing, broken, or was not written by this package.
        MissingDependencyError: its runtime is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise ExportError(f"{path} does not exist; write it with Detector.export.")
    if path.suffix == ".onnx":
        from rtdetrv4.runtime.engines.onnx import OnnxEngine

        return OnnxEngine(path, device=device, threads=threads)
    raise ExportError(f"{path} is no exported file that can be run here; expected .onnx.")
