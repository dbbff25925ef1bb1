"""The schedule: epoch → augmentation stage, step → learning rate, and how both scale to small data."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from rtdetrv4.errors import ConfigError

#: Warm-up is at most this share of all steps, and the EMA looks back over at most twice this share. Published schedules
#: stay far below both (warm-up 0.2–1.4 % of their steps, EMA horizon 2–7 %), so only small data reach these bounds.
WARMUP_SHARE = 0.05
EMA_SHARE = 0.1
#: With fewer optimizer steps, a detector that does not start from a trained one finds little
#: (docs/research/experiments.md).
FEW_STEPS = 1000
#: `run.patience: auto`: this share of all evaluations, and at least this many.
PATIENCE_SHARE, MIN_PATIENCE = 0.3, 10


class Stage(NamedTuple):
    """Augmentations allowed in an epoch. Their probabilities are the recipe's."""

    name: str
    mosaic: bool = False
    mixup: bool = False
    photometric: bool = False
    geometric: bool = False
    """Zoom-out and IoU crop."""
    multi_scale: bool = True
    refinement: bool = False


BASIC = Stage("basic")
DENSE = Stage("dense", mosaic=True, mixup=True, photometric=True, geometric=True)
AUGMENTED = Stage("augmented", photometric=True, geometric=True)
REFINEMENT = Stage("refinement", multi_scale=False, refinement=True)


def flat_cosine(
    step: int, *, total: int, warmup: float, flat: float, no_aug: float, base_lr: float, min_lr: float
) -> float:
    """Learning rate of a step: quadratic warm-up, flat, cosine, constant tail. All lengths are in steps.

    References:
        DEIM, arXiv 2412.04234, appendix; RTMDet, arXiv 2212.07784.
    """
    if step < warmup:
        return base_lr * (step / warmup) ** 2
    if step <= flat:
        return base_lr
    if step >= total - no_aug:
        return min_lr
    progress = (step - flat) / (total - flat - no_aug)
    return min_lr + 0.5 * (base_lr - min_lr) * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Plan:
    """The schedule of a training run.

    Stages by epoch: [0, basic_epochs) basic, [basic_epochs, mosaic_until) dense, [mosaic_until, refine_from) augmented,
    [refine_from, epochs) refinement.

    Raises:
        ConfigError: there is no epoch, or no step in one.
    """

    epochs: int
    steps_per_epoch: int
    """Optimizer steps; with gradient accumulation one step is several batches."""
    warmup_steps: int
    flat_epoch: float
    """The learning rate starts to fall here; never if this is beyond the last epoch."""
    no_aug_epochs: float
    """Length of the tail at the lowest learning rate."""
    lr_gamma: float
    """Lowest learning rate / highest."""
    basic_epochs: int
    mosaic_until: int
    refine_from: int
    """`epochs` or more for a run without refinement."""
    ema_decay: float
    """Final decay."""
    ema_warmup: float
    """Time constant, in steps, with which the decay rises to its final value."""
    ema_restart_decay: float
    """Final decay in the refinement stage."""

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("steps per epoch", self.steps_per_epoch)):
            if value < 1:
                raise ConfigError(f"The run has {value} {name}; expected at least 1. Check epochs, batch and the data.")

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def stage(self, epoch: int) -> Stage:
        """The stage of `epoch`, counted from 0."""
        if epoch >= self.refine_from:
            return REFINEMENT
        if epoch < self.basic_epochs:
            return BASIC
        return DENSE if epoch < self.mosaic_until else AUGMENTED

    @property
    def stages(self) -> list[tuple[Stage, range]]:
        """The stages of the run in order, each with its epochs, counted from 0."""
        grouped = ((stage, list(epochs)) for stage, epochs in itertools.groupby(range(self.epochs), self.stage))
        return [(stage, range(epochs[0], epochs[-1] + 1)) for stage, epochs in grouped]

    def starts_stage(self, epoch: int) -> bool:
        """Whether `epoch`, counted from 0, is the first of its stage."""
        return epoch == 0 or self.stage(epoch) != self.stage(epoch - 1)

    def next_phase(self, epoch: int) -> int | None:
        """The first epoch from `epoch` on in which the learning rate starts to fall or refinement starts, if any."""
        starts = [self.refine_from]
        if self.lr_gamma < 1:
            starts.append(math.ceil(self.flat_epoch))
        return min((start for start in starts if epoch <= start < self.epochs), default=None)

    @property
    def first_lowest_step(self) -> int:
        """The first step, counted from 0, with the learning rate that the run then keeps."""
        if self.lr_gamma == 1:
            return self.warmup_steps
        return max(math.ceil(self.total_steps - self.no_aug_epochs * self.steps_per_epoch) - 1, 0)

    def lr(self, step: int, base_lr: float) -> float:
        """Learning rate of update `step`, counted from 0.

        The schedule is read at step + 1: at 0 it is zero, which would waste the first update, possibly the only one.
        """
        return flat_cosine(
            step + 1,
            total=self.total_steps,
            warmup=self.warmup_steps,
            flat=self.flat_epoch * self.steps_per_epoch,
            no_aug=self.no_aug_epochs * self.steps_per_epoch,
            base_lr=base_lr,
            min_lr=base_lr * self.lr_gamma,
        )


def scale_plan(plan: Plan) -> Plan:
    """Shorten a plan's numbers of steps to suit a short run.

    Published schedules are made for 118k images: 150k to 890k steps. 50 epochs on 300 images are 900 steps, and with
    the published lengths the EMA, which is what is validated and saved, would end up near its starting weights:

    - warm-up is at most 5 % of all steps. It protects newly initialized layers and Adam's second moments, which takes a
      number of steps, not a share of the run; so it is cut if it would take up a short run, and never extended;
    - the EMA's horizon 1 / (1 − decay) is at most 10 % of all steps. A tenth still averages over epochs, and is about
      as long as the refinement stage, so that the stage ends with a settled average. The EMA's own warm-up shrinks by
      the same factor, so the decay curve keeps its shape.

    At the published size, no number changes.
    """
    horizon, longest = 1 / (1 - plan.ema_decay), max(1.0, EMA_SHARE * plan.total_steps)
    return replace(
        plan,
        warmup_steps=min(plan.warmup_steps, int(WARMUP_SHARE * plan.total_steps)),
        ema_decay=min(plan.ema_decay, 1 - 1 / longest),
        ema_warmup=plan.ema_warmup * min(1.0, longest / horizon),
        ema_restart_decay=min(plan.ema_restart_decay, 1 - 1 / longest),
    )


def auto_patience(epochs: int, eval_every: int) -> int:
    """The number of evaluations without a better score after which a phase of a run has nothing more to give.

    Scores scatter from one evaluation to the next, and rise slowly while the learning rate is flat.
    """
    return max(MIN_PATIENCE, math.ceil(PATIENCE_SHARE * epochs / eval_every))


def few_steps_advice(plan: Plan, *, recipe_warmup: int, batch: int) -> str | None:
    """Advice for a run from random weights that is too short; None if it is long enough, or short on purpose.

    Args:
        plan: the run's plan.
        recipe_warmup: warm-up steps in the recipe. If they fit into the run uncut, the recipe is meant for short runs.
        batch: images per optimizer step.
    """
    steps = plan.total_steps
    if steps >= FEW_STEPS or recipe_warmup <= WARMUP_SHARE * steps:
        return None
    smaller = max(4, 1 << (steps * batch // FEW_STEPS).bit_length() >> 1)
    more = f"batch={smaller} makes {steps * batch // smaller} from the same images. " if smaller < batch else ""
    return (
        f"{steps} optimizer steps are few for a detector whose encoder and decoder start from random weights: it may "
        f"find next to nothing. {more}More epochs help too; starting from a trained detector's weights helps most."
    )


def split_batch(total: int, *, ranks: int, accumulate: int = 1) -> int:
    """Images per device and forward pass: the effective batch `total`, divided by ranks × accumulate.

    Raises:
        ConfigError: `total` is not a multiple of ranks × accumulate.
    """
    per_device, rest = divmod(total, ranks * accumulate)
    if rest or not per_device:
        down, up = per_device * ranks * accumulate, (per_device + 1) * ranks * accumulate
        raise ConfigError(
            f"A batch of {total} cannot be split over {ranks} device(s) × {accumulate} accumulated batch(es). "
            f"Choose a multiple of {ranks * accumulate}, such as {' or '.join(str(n) for n in (down, up) if n)}."
        )
    return per_device
