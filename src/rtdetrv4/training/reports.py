"""What observers of a run are told, and the protocol that they follow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from rtdetrv4.distillation import ModulationReport
from rtdetrv4.training.plan import Plan


class RunInfo(NamedTuple):
    """What is known before the first step."""

    out: Path
    plan: Plan
    epoch: int
    """Epochs already done, in a resumed run; 0 in a new one."""
    step: int
    """Optimizer steps already done."""
    hardware: str
    """Device, ranks and number format."""
    num_parameters: int
    """Trainable parameters."""
    teacher: str | None
    eval_every: int | None
    """Epochs between evaluations; None without validation data."""
    start_metrics: Mapping[str, Any]
    """Metrics of the starting weights; empty if they were not evaluated."""


class StepReport(NamedTuple):
    """An optimizer step. Epochs and steps count from 1; numbers are means over ranks."""

    epoch: int
    step: int
    losses: Mapping[str, float]
    """The unweighted terms, and "loss", their weighted sum. Of images with pseudo-labels, which not every step has:
    "pseudo_loss", the weighted sum of their terms; the terms of the last layer, such as "pseudo_giou"; and
    "pseudo_boxes", boxes per image."""
    grad_norm: float
    """Gradient norm before clipping."""
    lr: float
    """Highest learning rate of all parameter groups."""
    distill_weight: float | None
    """λ."""
    num_images: int
    is_finite: bool
    """False if the step was skipped."""


class PseudoLabelReport(NamedTuple):
    """What the averaged weights have labeled at the start of an epoch."""

    num_images: int
    """Different images that were looked at."""
    num_labeled: int
    """Those in which something was found."""
    num_boxes: int
    num_steps: int
    """Steps of the epoch that have learned from them."""
    thresholds: Mapping[str, float]
    """The minimum confidence of each class; infinite for one that is never found in validation."""


class EpochReport(NamedTuple):
    """An epoch, after its checkpoints are written. Epochs and steps count from 1."""

    epoch: int
    step: int
    stage: str
    losses: Mapping[str, float]
    """Means over the epoch of those of its steps."""
    lr: float
    metrics: Mapping[str, Any]
    """Empty if the epoch was not evaluated."""
    best_score: float | None
    is_best: bool
    distill_weight: float | None
    """λ during the epoch."""
    modulation: ModulationReport | None
    num_skipped: int
    """Steps skipped so far because they were not finite."""
    num_unreadable: int
    """Images that could not be decoded so far."""
    is_late: bool
    """The rest of the flat learning rate, or of the lowest one, is skipped, for the run to end in time."""
    seconds: float
    """Duration, including validation."""
    images_per_second: float
    """Training speed."""
    shares: Mapping[str, float]
    """Share of the training time by phase, see `clock.PHASES`; the rest is logging and waiting."""
    pseudo_labels: PseudoLabelReport | None = None
    """None in an epoch without any."""


class RunResult(NamedTuple):
    """The end of a run, whether complete, interrupted or failed."""

    out: Path
    best_epoch: int | None
    best_score: float | None
    best_metrics: Mapping[str, Any]
    is_complete: bool


@runtime_checkable
class Observer(Protocol):
    """Watches a run. A subclass overrides what it needs.

    All calls are made on rank 0 only. An OSError, as of a full disk or a lost connection, is logged once, and the run
    goes on. Any other exception ends the run and reaches the caller of `train`, after `run_end` was called on every
    observer that was started.
    """

    def run_start(self, info: RunInfo) -> None:
        """Called before the first step."""

    def step_end(self, report: StepReport) -> None:
        """Called after each optimizer step."""

    def epoch_end(self, report: EpochReport) -> None:
        """Called after each epoch, when its checkpoints are written."""

    def run_end(self, result: RunResult) -> None:
        """Called when the run is complete, was interrupted, or has failed."""
