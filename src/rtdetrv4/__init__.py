"""RT-DETRv4: train, evaluate and export real-time detectors distilled from vision foundation models.

Names are imported on first use, so `import rtdetrv4` is fast and whatever does not need torch works without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtdetrv4.assembly import create_model
    from rtdetrv4.comparison import compare
    from rtdetrv4.config import load_recipe
    from rtdetrv4.detector import Detector
    from rtdetrv4.errors import (
        ConfigError,
        DatasetError,
        ExportError,
        MissingDependencyError,
        NonFiniteError,
        RTDETRError,
        SourceError,
        WeightsError,
    )
    from rtdetrv4.exported_detector import ExportedDetector
    from rtdetrv4.probing import probe_teachers
    from rtdetrv4.runtime.detections import Detections
    from rtdetrv4.training.reports import Observer

    __version__: str

__all__ = [
    "ConfigError",
    "DatasetError",
    "Detections",
    "Detector",
    "ExportError",
    "ExportedDetector",
    "MissingDependencyError",
    "NonFiniteError",
    "Observer",
    "RTDETRError",
    "SourceError",
    "WeightsError",
    "__version__",
    "compare",
    "create_model",
    "load_recipe",
    "probe_teachers",
]

_HOMES = {
    "Detections": "rtdetrv4.runtime.detections",
    "Detector": "rtdetrv4.detector",
    "Observer": "rtdetrv4.training.reports",
    "ExportedDetector": "rtdetrv4.exported_detector",
    "compare": "rtdetrv4.comparison",
    "create_model": "rtdetrv4.assembly",
    "load_recipe": "rtdetrv4.config",
    "probe_teachers": "rtdetrv4.probing",
}
_NEEDS = {  # a package outside the base install, and the extra that installs it
    "Observer": ("accelerate", "train"),
    "compare": ("accelerate", "train"),
    "create_model": ("torch", "torch"),
    "probe_teachers": ("accelerate", "train"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("rtdetrv4")
    if name not in __all__:
        raise AttributeError(f"module 'rtdetrv4' has no attribute {name!r}")
    errors = importlib.import_module("rtdetrv4.errors")
    if name in _NEEDS:
        errors.require(*_NEEDS[name])
    home = _HOMES.get(name)
    return getattr(importlib.import_module(home) if home else errors, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
