"""How long one image takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

WARM_UP = 3
"""Runs that do not count: the first ones allocate memory and choose kernels."""
LEAST = 3
"""Runs that count, however long they take: a single one may be that in which the machine was busy."""


class Speed(NamedTuple):
    """Latency over some runs, in milliseconds."""

    median_ms: float
    p90_ms: float
    """A tenth of the runs took longer."""
    num_runs: int


def measure_speed(run: Callable[[int], object], *, seconds: float = 2.0, most: int = 30) -> Speed:
    """Time `run(0)`, `run(1)`, …, which must not return before its result is there.

    Args:
        run: processes one image; called with a number that grows, to vary the image.
        seconds: when this much time has passed, no further run begins, unless fewer than three have been counted.
        most: the largest number of runs that are counted.
    """
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < WARM_UP + most and (len(times) < WARM_UP + LEAST or time.perf_counter() - started < seconds):
        before = time.perf_counter()
        run(len(times))
        times.append(1000 * (time.perf_counter() - before))
    median, p90 = np.percentile(times[WARM_UP:], (50, 90))
    return Speed(round(float(median), 2), round(float(p90), 2), len(times) - WARM_UP)
