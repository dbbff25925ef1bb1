"""Reading weights, and the names of released checkpoints."""

from rtdetrv4.weights.catalog import COCO
from rtdetrv4.weights.convert import from_released, to_released
from rtdetrv4.weights.files import WeightsMetadata, find_weights, read_metadata
from rtdetrv4.weights.load import LoadReport, load_weights

__all__ = [
    "COCO",
    "LoadReport",
    "WeightsMetadata",
    "find_weights",
    "from_released",
    "load_weights",
    "read_metadata",
    "to_released",
]
