"""Triton's model repositories, whose ONNX file is run by ONNX Runtime, as the server does."""

from __future__ import annotations

from pathlib import Path

from rtdetrv4.errors import ExportError
from rtdetrv4.runtime.engines import onnx
from rtdetrv4.runtime.engines.engine import EngineOptions

MODEL_PATTERN = "*/*/model.onnx"


def open_file(path: Path, options: EngineOptions) -> onnx.OnnxEngine:
    """Load the one model of a folder NAME_triton/; see `open_engine`."""
    files = sorted(path.glob(MODEL_PATTERN))
    if len(files) != 1:
        found = f"{len(files)} of them: give the path of the one that is meant" if files else "none: export it again"
        raise ExportError(f"{path} should hold one {MODEL_PATTERN}, and holds {found}.")
    return onnx.open_file(files[0], options)
