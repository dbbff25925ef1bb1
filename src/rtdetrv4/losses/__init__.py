"""Matching and losses."""

from rtdetrv4.losses.criterion import Criterion, weighted_sum
from rtdetrv4.losses.matcher import HungarianMatcher

__all__ = ["Criterion", "HungarianMatcher", "weighted_sum"]
