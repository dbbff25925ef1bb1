"""Matching and losses."""

from rtdetrv4.losses.criterion import Criterion, TermsOf, no_terms, weighted_sum
from rtdetrv4.losses.matcher import HungarianMatcher

__all__ = ["Criterion", "HungarianMatcher", "TermsOf", "no_terms", "weighted_sum"]
