"""Export to files for other runtimes, checked against PyTorch."""

from rtdetrv4.export.onnx import export_onnx
from rtdetrv4.export.verify import ParityReport, verify_onnx

__all__ = ["ParityReport", "export_onnx", "verify_onnx"]
