"""Measure what a change, such as distillation, gains on your data: `compare` trains arms × seeds and reports.

The package is not called `compare`, because `rtdetrv4.compare` is the function.
"""

from rtdetrv4.comparison.arms import METRICS, ArmSummary, Difference
from rtdetrv4.comparison.results import Comparison
from rtdetrv4.comparison.runs import ARMS, compare
from rtdetrv4.comparison.spread import Spread
from rtdetrv4.comparison.summary import read_comparison
from rtdetrv4.comparison.tables import Table

__all__ = [
    "ARMS",
    "METRICS",
    "ArmSummary",
    "Comparison",
    "Difference",
    "Spread",
    "Table",
    "compare",
    "read_comparison",
]
