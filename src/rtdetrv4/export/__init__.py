"""Export to files for other runtimes, proven against PyTorch."""

from rtdetrv4.export.deployment import DeploymentModule, GraphOptions
from rtdetrv4.export.exporter import export_model
from rtdetrv4.export.formats import FORMATS, Format, find_formats
from rtdetrv4.export.proof import Validation

__all__ = ["FORMATS", "DeploymentModule", "Format", "GraphOptions", "Validation", "export_model", "find_formats"]
