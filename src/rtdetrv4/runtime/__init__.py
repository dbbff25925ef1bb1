"""Running detectors without torch: images in, detections out."""

from rtdetrv4.runtime.detections import Detection, Detections
from rtdetrv4.runtime.draw import draw_boxes
from rtdetrv4.runtime.export_metadata import ExportMetadata
from rtdetrv4.runtime.exported_detector import ExportedDetector
from rtdetrv4.runtime.pipes import Pipe, PipeFormat
from rtdetrv4.runtime.prediction_folder import PredictionFolder
from rtdetrv4.runtime.preprocess import preprocess, resize
from rtdetrv4.runtime.regions import Counting
from rtdetrv4.runtime.sources import Frame, read_source

__all__ = [
    "Counting",
    "Detection",
    "Detections",
    "ExportMetadata",
    "ExportedDetector",
    "Frame",
    "Pipe",
    "PipeFormat",
    "PredictionFolder",
    "draw_boxes",
    "preprocess",
    "read_source",
    "resize",
]
