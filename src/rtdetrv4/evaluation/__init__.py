"""How good a detector is: COCO metrics, and a report to look at."""

from rtdetrv4.evaluation.coco import CocoEvaluator, GroundTruth, ImageDetections, Metrics

__all__ = ["CocoEvaluator", "GroundTruth", "ImageDetections", "Metrics"]
