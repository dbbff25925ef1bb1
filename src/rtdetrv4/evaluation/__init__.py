"""Evaluation of detectors: COCO metrics, an analysis of the mistakes, and a report with pictures."""

from rtdetrv4.evaluation.analysis import Analysis, analyze
from rtdetrv4.evaluation.coco_evaluator import CocoEvaluator, ImageDetections, Metrics
from rtdetrv4.evaluation.exported import evaluate_exported, evaluate_run
from rtdetrv4.evaluation.report import write_report

__all__ = [
    "Analysis",
    "CocoEvaluator",
    "ImageDetections",
    "Metrics",
    "analyze",
    "evaluate_exported",
    "evaluate_run",
    "write_report",
]
