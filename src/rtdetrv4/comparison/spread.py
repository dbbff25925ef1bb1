"""Means over seeds, and how far they can be trusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


def reach_of_interval(num_seeds: int) -> float:
    """How far the interval reaches to either side of the mean, in standard deviations, from two seeds on."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, num_seeds - 1)) / math.sqrt(num_seeds)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds."""

    mean: float
    sd: float | None
    """Standard deviation of the sample; None for one seed."""
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one or more numbers."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % t interval of the mean; None for one seed."""
        if self.sd is None:
            return None
        reach = reach_of_interval(self.n) * self.sd
        return self.mean - reach, self.mean + reach


def few_seeds(num_seeds: int) -> str:
    """A warning about one or two seeds; empty for more."""
    if num_seeds > 2:
        return ""
    if num_seeds == 1:
        problem = "One seed: there is no interval, so nothing tells a difference from chance."
    else:
        problem = (
            f"Two seeds: the {CONFIDENCE:.0%} interval of a difference reaches {reach_of_interval(2):.1f} standard "
            "deviations to either side, so that hardly any difference can be shown."
        )
    return f"{problem} With three seeds it reaches {reach_of_interval(3):.1f}, with five {reach_of_interval(5):.1f}."
