"""Evaluation of detectors: COCO metrics, and a report with pictures."""

from rtdetrv4.evaluation.coco_evaluator import CocoEvaluator, ImageDetections, Metrics
from rtdetrv4.evaluation.report import write_report

__all__ = ["CocoEvaluator", "ImageDetections", "Metrics", "write_report"]
