"""Reading, writing and converting weights.

Names are imported on first use, so that `rtdetrv4.weights.catalog`, which is plain data, needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtdetrv4.weights.catalog import COCO
    from rtdetrv4.weights.convert import from_released, to_released
    from rtdetrv4.weights.files import (
        Checkpoint,
        WeightsMetadata,
        find_weights,
        read_checkpoint,
        read_metadata,
        save_weights,
    )
    from rtdetrv4.weights.hub import FetchedWeights, fetch_weights, find_cached
    from rtdetrv4.weights.load import LoadReport, load_weights
    from rtdetrv4.weights.transformers import from_transformers, save_transformers, to_transformers

__all__ = [
    "COCO",
    "Checkpoint",
    "FetchedWeights",
    "LoadReport",
    "WeightsMetadata",
    "fetch_weights",
    "find_cached",
    "find_weights",
    "from_released",
    "from_transformers",
    "load_weights",
    "read_checkpoint",
    "read_metadata",
    "save_transformers",
    "save_weights",
    "to_released",
    "to_transformers",
]

_HOMES = {
    "COCO": "catalog",
    "Checkpoint": "files",
    "FetchedWeights": "hub",
    "LoadReport": "load",
    "WeightsMetadata": "files",
    "fetch_weights": "hub",
    "find_cached": "hub",
    "find_weights": "files",
    "from_released": "convert",
    "from_transformers": "transformers",
    "load_weights": "load",
    "read_checkpoint": "files",
    "read_metadata": "files",
    "save_transformers": "transformers",
    "save_weights": "files",
    "to_released": "convert",
    "to_transformers": "transformers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
