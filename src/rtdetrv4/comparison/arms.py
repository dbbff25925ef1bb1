"""What the finished runs of an arm reached, and how far that is from another arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rtdetrv4.comparison.spread import Spread

METRICS = {"last_ap": "AP", "last_ap50": "AP50", "best_ap": "AP", "best_ap50": "AP50"}
"""Keys of the last and the best epoch's metrics in `result.json`, and their titles."""
LEARNED = 0.01
"""AP50 of a run's best epoch from which on it has learned something; below, its numbers are chance."""


@dataclass(frozen=True)
class ArmSummary:
    """The finished runs of one arm. AP is in [0, 1], from the averaged weights on the validation images."""

    name: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    has_learned: bool
    """False if AP50 stays below 1 % in the best epoch of every run."""
    last_ap: Spread
    last_ap50: Spread
    best_ap: Spread
    """AP of each run's best epoch, which was chosen on the same images."""
    best_ap50: Spread
    class_ap: Mapping[str, Spread]
    """Last-epoch AP of each class that has boxes in the validation split."""
    seconds_per_epoch: float
    """Median over seeds of each run's median, including validation."""
    gpu_memory_mib: float | None
    """Peak memory of tensors on the GPU, largest over seeds."""
    host_memory_mib: float | None
    """Peak resident memory of the process, largest over seeds; None where it cannot be measured."""
    distill_weight: float | None
    """λ in the last epoch, mean over seeds; None without distillation."""
    share: float | None
    """AIFI's share of the gradient in percent, mean over epochs and seeds."""
    starts: Mapping[int, Mapping[str, Any]]
    """By seed, the `weights` and their `sha256` (None for a name) of an arm that starts from its own; else empty."""


@dataclass(frozen=True)
class Difference:
    """The difference between an arm and the reference, seed by seed."""

    arm: str
    reference: str
    metric: str
    """A key of `METRICS`."""
    by_seed: Mapping[int, float]
    """Differences by seed, for the seeds that both have finished; at least one."""
    class_name: str | None = None
    """The class compared; None: all classes."""
    without_learning: tuple[str, ...] = ()
    """Those of the two arms that have learned nothing."""

    @property
    def spread(self) -> Spread:
        """Mean and standard deviation over the seeds."""
        return Spread.of(list(self.by_seed.values()))

    @property
    def conclusion(self) -> str:
        """What the interval supports, in words; a difference means little if an arm has learned nothing."""
        if len(self.without_learning) > 1:
            return "neither learned anything"
        if self.without_learning:
            return f"only {self.reference if self.arm in self.without_learning else self.arm} learned anything"
        interval = self.spread.interval
        if interval is None:
            return "one seed: no interval"
        if interval[0] <= 0 <= interval[1]:
            return "no difference that these seeds could show"
        return f"{'higher' if interval[0] > 0 else 'lower'} than {self.reference}"
