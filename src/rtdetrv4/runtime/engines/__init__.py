"""The runtimes that run exported files, one module each, imported when a file needs it."""

from __future__ import annotations

import importlib
from pathlib import Path

from rtdetrv4.errors import ExportError
from rtdetrv4.runtime.engines.engine import Engine, EngineOptions, Hint, Precision

__all__ = ["Engine", "EngineOptions", "Hint", "Precision", "is_exported", "open_engine"]

_MODULES = {
    ".onnx": "onnx",
    "_openvino": "openvino",
    ".xml": "openvino",
    ".pt2": "torch",
    ".torchscript": "torch",
    ".pte": "executorch",
}
"""Modules by the ending of what they run; a folder has the name of its runtime at the end."""
_ELSEWHERE = (".engine", ".mlpackage", ".tflite", "_ncnn")
"""Endings of what other programs run."""


def is_exported(path: str | Path) -> bool:
    """Whether a name is one that exported files and folders have."""
    return Path(path).name.endswith((*_MODULES, *_ELSEWHERE))


def open_engine(
    path: str | Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    precision: Precision | None = None,
    hint: Hint = "latency",
) -> Engine:
    """Load an exported file with the runtime that its name ends with.

    Args:
        path: a file or folder that `Detector.export` wrote.
        device: what to run it on, in the words of the runtime; None for the best that it has and that is known to be
            right.
        threads: threads that work on one batch; None leaves it to the runtime.
        precision: "fp32" computes in float32 what the file holds in floats, "bf16" in bfloat16. None: what the runtime
            prefers; in OpenVINO that is bfloat16 on processors that have instructions for it, and float32 for int8
            files, as they were proven.
        hint: "latency": one batch as fast as possible. "throughput": as many as possible in the same time, if as many
            calls as `Engine.num_parallel` run at once.

    Raises:
        ConfigError: there is no such device, or an option that the runtime does not have.
        ExportError: the file is missing, broken, or was not written by this package.
        MissingDependencyError: its runtime is not installed.
    """
    path = Path(path)
    options = EngineOptions(device, threads, precision, hint).checked()
    ending = next((ending for ending in _MODULES if path.name.endswith(ending)), None)
    if ending is None:
        raise ExportError(f"{path} is no exported file that can be run here; expected {', '.join(_MODULES)}.")
    if not path.exists():
        raise ExportError(f"{path} does not exist; write it with Detector.export.")
    return importlib.import_module(f"{__name__}.{_MODULES[ending]}").open_file(path, options)
