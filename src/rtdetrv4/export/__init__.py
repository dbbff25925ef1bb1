"""Export to files for other runtimes, checked against PyTorch."""

from rtdetrv4.export.onnx import export_onnx
from rtdetrv4.export.verify import ParityReport, report_path, verify_onnx

__all__ = ["ParityReport", "export_onnx", "report_path", "verify_onnx"]
