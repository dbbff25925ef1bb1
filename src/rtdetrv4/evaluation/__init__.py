"""How good a detector is: COCO metrics, and a report to look at."""

from rtdetrv4.evaluation.coco_evaluator import CocoEvaluator, ImageDetections, Metrics
from rtdetrv4.evaluation.report import write_report

__all__ = ["CocoEvaluator", "ImageDetections", "Metrics", "write_report"]
