"""Symptoms of runs that go wrong, each told once, with what usually helps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from statistics import median

from rtdetrv4.training.batch_sheets import FIRST_SHEET
from rtdetrv4.training.reports import EpochReport, Observer, RunInfo, StepReport

logger: logging.Logger = logging.getLogger(__name__)

EPOCHS_OUTSIDE = 4
"""Number of consecutive epochs on one side of GAM's band after which the band counts as out of reach."""
WAITING_SHARE, WAITING_SECONDS = 0.5, 10.0
"""An epoch of at least this length that waits for images for more than this share of its time is worth a warning."""

WINDOW, MAX_WINDOWS = 100, 20
"""Medians over this many steps are compared, because the losses of single batches scatter; over more in long runs, for
the lowest of many medians is low by chance."""
FEW_STEPS, ENOUGH_STEPS, ENOUGH_SHARE = 100, 300, 0.2
"""After warm-up, a loss should fall within this share of the run, but not in fewer or more steps than these."""
START = 10
"""Number of steps whose median is the start of a loss: in a good run it falls at once."""
FALL, RISE = 0.95, 1.3
"""A loss that is not below this multiple of its start has not fallen; one above that multiple of its minimum rises."""
LEARNED_AP = 0.05
"""With this AP a detector has learned something, so that a level loss is no symptom."""
FEWER = 0.5
"""Pseudo-labels that fall below this share of what they began with are on a way down."""
NO_AP50, NO_AP_EVALUATIONS, NO_AP_STEPS, NO_AP_SHARE = 0.005, 3, 1000, 0.5
"""AP50 below this is none. It is a symptom after so many evaluations, and so many steps or that share of the run."""


def rising(losses: Sequence[float]) -> str | None:
    """What a loss does that falls and then rises again, in words; None if it does not.

    Args:
        losses: of the steps of one stage, oldest first.
    """
    medians = _medians(losses)
    if len(medians) < 3 or min(medians[-2:]) <= RISE * min(medians):
        return None
    return f"the loss of the boxes has risen from {min(medians):.2f} to {medians[-1]:.2f}"


def level(losses: Sequence[float], total_steps: int, warmup_steps: int) -> str | None:
    """What a loss does that has not fallen although it should have by now, in words; None if it does not.

    Args:
        losses: of the steps of one stage, oldest first.
        total_steps: length of the run.
        warmup_steps: number of steps at a low learning rate.
    """
    enough = warmup_steps + min(max(ENOUGH_SHARE * total_steps, FEW_STEPS), ENOUGH_STEPS)
    if len(losses) < enough:
        return None
    start, medians = median(losses[:START]), _medians(losses)
    if min(medians) < FALL * start or start == 0:  # 0: no image has boxes
        return None
    return f"the loss of the boxes is {medians[-1]:.2f} after {len(losses)} steps, and was {start:.2f} at the start"


def finds_nothing(scores: Sequence[float], step: int, total_steps: int) -> str | None:
    """What AP does that is still zero although it should not be by now, in words; None if it does not.

    Args:
        scores: AP50 of all evaluations so far.
        step: steps done.
        total_steps: length of the run.
    """
    is_late = step >= max(FEW_STEPS, min(NO_AP_STEPS, NO_AP_SHARE * total_steps))
    if not is_late or len(scores) < NO_AP_EVALUATIONS or max(scores) >= NO_AP50:
        return None
    return f"AP50 is {100 * scores[-1]:.1f} % after {step} steps"


class LossWatch(Observer):
    """Warns, once, when the loss or AP do what those of a failing run do, and says what usually helps.

    It watches the losses of the boxes, which fall in every run that learns. The others may rise, because the better the
    boxes, the more is asked of confidences (VFL, MAL) and of edge distributions (FGL).
    """

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._scores: list[float] = []
        self._best_ap = 0.0
        self._stage = ""
        self._has_warned = False

    def run_start(self, info: RunInfo) -> None:
        """Remember the schedule, and what the starting weights can do."""
        self._plan = info.plan
        self._best_ap = info.start_metrics.get("ap") or 0.0

    def step_end(self, report: StepReport) -> None:
        """Add the losses of the step, and judge them once per window."""
        stage = self._plan.stage(report.epoch - 1).name
        if stage != self._stage:  # with other augmentations, losses are higher or lower
            self._stage, self._losses = stage, []
        if not report.is_finite:
            return
        self._losses.append(report.losses["bbox"] + report.losses["giou"])
        if len(self._losses) % WINDOW:
            return
        if (does := rising(self._losses)) is not None:
            self._warn(
                does,
                f"The learning rate, now {report.lr:.1e}, is probably too high: start again with a quarter of it.",
            )
        elif (
            self._best_ap < LEARNED_AP
            and (does := level(self._losses, self._plan.total_steps, self._plan.warmup_steps)) is not None
        ):
            self._warn(
                does,
                f"Look at {FIRST_SHEET} in the run folder: do the boxes sit on the objects? If they do, the learning "
                f"rate, now {report.lr:.1e}, is probably too high or far too low.",
            )

    def epoch_end(self, report: EpochReport) -> None:
        """Judge the metrics."""
        if report.metrics.get("ap50") is None:  # not evaluated, or on images without objects
            return
        self._best_ap = max(self._best_ap, report.metrics["ap"])
        self._scores.append(report.metrics["ap50"])
        if (does := finds_nothing(self._scores, report.step, self._plan.total_steps)) is not None:
            self._warn(
                does,
                f"Look at {FIRST_SHEET} in the run folder: do boxes and class names fit the objects? If they do, the "
                "run needs trained weights to start from, or more steps: more epochs, or a smaller batch.",
            )

    def _warn(self, does: str, cure: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("This run looks like one that fails: %s. %s", does, cure)


class LoaderWatch(Observer):
    """Warns, once, when training waits for images most of the time."""

    def __init__(self) -> None:
        self._num_epochs = 0
        self._has_warned = False

    def epoch_end(self, report: EpochReport) -> None:
        """Judge the epoch, unless it is the first, which starts the workers and fills the cache."""
        self._num_epochs += 1
        waiting = report.shares.get("data", 0.0)
        is_slow = waiting > WAITING_SHARE and report.seconds >= WAITING_SECONDS
        if is_slow and self._num_epochs > 1 and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "Training waits for images %.0f %% of the time. What helps: more processes that load them "
                "(data.workers), or keeping them decoded (data.cache=ram or disk).",
                100 * waiting,
            )


class PseudoLabelWatch(Observer):
    """Warns, once, when the weights find fewer and fewer objects to label.

    What they miss is taught to be background, so they miss more. In a run that began at a mean F1 of 0.3, 10 boxes per
    image became 3, and AP fell (docs/research/study.md).
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._has_warned = False

    def epoch_end(self, report: EpochReport) -> None:
        """Compare the boxes per image with those of the first epoch that has some."""
        labels = report.pseudo_labels
        if labels is None or not labels.num_images:
            return
        boxes = labels.num_boxes / labels.num_images
        self._first = self._first or boxes
        if boxes < FEWER * self._first and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "The weights find fewer and fewer objects in the images without labels, %.1f per image now and %.1f "
                "when the pseudo-labels began: what they miss is learned as background. Start again with a higher "
                "pseudo_labels.least_f1, so that they begin later, or without them.",
                boxes,
                self._first,
            )


def _medians(losses: Sequence[float]) -> list[float]:
    """The medians of all windows, oldest first; the newest window ends with the newest loss."""
    window = max(WINDOW, len(losses) // MAX_WINDOWS)
    return [median(losses[start : start + window]) for start in range(len(losses) % window, len(losses), window)]


class BandWatch(Observer):
    """Warns, once, when AIFI's share stays on one side of GAM's band, so that λ runs away."""

    def __init__(self) -> None:
        self._outside: list[EpochReport] = []
        self._has_warned = False

    def epoch_end(self, report: EpochReport) -> None:
        """Count the epochs on the same side of the band, and warn."""
        modulation = report.modulation
        if modulation is None or modulation.band is None or modulation.reason not in ("below", "above"):
            self._outside = []
            return
        before = self._outside[-1].modulation if self._outside else None
        if before is not None and before.reason != modulation.reason:
            self._outside = []
        self._outside.append(report)
        if len(self._outside) == EPOCHS_OUTSIDE and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "AIFI's share of the gradient, now %.2f %%, has been %s the target %.2f–%.2f %% for %d epochs, while λ "
                "went from %.3g to %.3g. This band does not seem to suit your data, and a runaway λ costs accuracy: "
                "start again with distillation.mode=auto, which measures a band, or with mode=fixed.",
                modulation.share,
                modulation.reason,
                *modulation.band,
                len(self._outside),
                self._outside[0].distill_weight,
                modulation.weight,
            )
