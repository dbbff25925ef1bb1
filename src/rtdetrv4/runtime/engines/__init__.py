"""The runtimes that run exported files, one module each, imported when a file needs it."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from rtdetrv4.errors import ExportError, MissingDependencyError
from rtdetrv4.runtime.engines.engine import Engine, EngineOptions, Hint, Precision

__all__ = [
    "Engine",
    "EngineOptions",
    "Hint",
    "Precision",
    "check_name",
    "chooses_precision",
    "is_exported",
    "open_engine",
]

_MODULES = {
    ".onnx": "onnx",
    "_openvino": "openvino",
    "_triton": "triton",
    ".xml": "openvino",
    ".pt2": "torch",
    ".torchscript": "torch",
    ".pte": "executorch",
}
"""Modules by the ending of what they run; a folder has the name of its runtime at the end."""
_OF_TORCH = (".safetensors", ".pt", ".pth", ".yaml", ".yml")
"""Endings of weights and recipes."""
_ELSEWHERE = (".engine", ".mlpackage", ".tflite", "_ncnn")
"""Endings of what other programs run."""


def is_exported(path: str | Path) -> bool:
    """Whether a name is one that exported files and folders have."""
    return Path(path).name.endswith((*_MODULES, *_ELSEWHERE))


def check_name(model: object) -> None:
    """Check, where torch is not installed, that a model is no file whose name does not tell its runtime.

    Args:
        model: what a detector of PyTorch is to be made of.

    Raises:
        MissingDependencyError: it is a path that is there, and neither weights nor a recipe.
    """
    if not isinstance(model, str | Path) or importlib.util.find_spec("torch") is not None:
        return
    path = Path(model)
    if str(model) and path.suffix not in _OF_TORCH and path.exists():
        raise MissingDependencyError(
            f"{path} has no name of an exported file or folder, which end in {', '.join(_MODULES)}; if it is one, "
            'give it its name back. Weights and runs need torch, which is not installed: pip install "rtdetrv4[torch]"'
        )


def chooses_precision(path: Path) -> bool:
    """Whether the runtime of an exported file decides in what its floats are computed."""
    return any(path.name.endswith(ending) and module == "openvino" for ending, module in _MODULES.items())


def open_engine(
    path: str | Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    precision: Precision | None = None,
    hint: Hint = "latency",
    trust: bool = False,
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
        trust: run the file even if it is a program that was not exported on this machine, see
            `rtdetrv4.runtime.trust`.

    Raises:
        ConfigError: there is no such device, or an option that the runtime does not have.
        ExportError: the file is missing, broken, unsafe, or was not written by this package.
        MissingDependencyError: its runtime is not installed.
    """
    path = Path(path)
    options = EngineOptions(device, threads, precision, hint, trust).checked()
    ending = next((ending for ending in _MODULES if path.name.endswith(ending)), None)
    if ending is None:
        raise ExportError(f"{path} is no exported file that can be run here; expected {', '.join(_MODULES)}.")
    if not path.exists():
        raise ExportError(f"{path} does not exist; write it with Detector.export.")
    return importlib.import_module(f"{__name__}.{_MODULES[ending]}").open_file(path, options)
