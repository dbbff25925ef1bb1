"""Reading, writing and converting weights."""

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
