"""Progress of a training run: epoch, step, best score, and running means of the losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Position:
    """Plain values, equal on every rank, stored in every checkpoint."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Optimizer steps done in the current epoch."""
    best_epoch: int | None = None
    """The epoch, counted from 1, that ended with the best weights."""
    best_score: float | None = None
    best_metrics: dict[str, Any] = field(default_factory=dict)
    evaluations_without_gain: int = 0
    num_skipped: int = 0
    """Steps that were not finite."""
    num_skipped_in_row: int = 0
    num_unreadable: int = 0
    """Images that could not be decoded."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sum of every loss term over the finite steps of the epoch."""
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, losses: Mapping[str, float]) -> None:
        """Add the losses of a finite step."""
        self.num_skipped_in_row = 0
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Mean of every loss term over the finite steps of the epoch."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def judge(self, score: float | None, metrics: Mapping[str, Any]) -> bool:
        """Record a score, and return whether it is the best so far; among equal scores, the latest is.

        Without any score, the latest weights count as the best.

        Args:
            score: None without validation data; NaN if the validation images have no objects.
            metrics: the metrics that the score comes from.
        """
        if score is not None and not math.isnan(score):
            best = -math.inf if self.best_score is None else self.best_score
            self.evaluations_without_gain = 0 if score > best else self.evaluations_without_gain + 1
            if score < best:
                return False
            self.best_score = score
        elif self.best_score is not None:
            return False
        self.best_epoch, self.best_metrics = self.epoch + 1, dict(metrics)
        return True

    def forget_best(self, before: Position) -> None:
        """Take back what `judge` recorded of the best weights, which could not be saved."""
        self.best_epoch, self.best_score, self.best_metrics = before.best_epoch, before.best_score, before.best_metrics

    def is_out_of_patience(self, patience: int | None) -> bool:
        """Whether `patience` evaluations in a row brought no better score."""
        return patience is not None and self.evaluations_without_gain >= patience

    def begin(self, epoch: int) -> None:
        """Go on with an epoch, usually the next one."""
        self.epoch = epoch
        self.step = 0
        self.sums, self.counts = {}, {}
