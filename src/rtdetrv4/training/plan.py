"""When things happen: epoch → augmentation stage, step → learning rate, and the lengths of all of it on small data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rtdetrv4.errors import ConfigError

#: At most this share of all steps is warm-up, and the EMA looks back over at most twice this share. Published schedules
#: stay far below both (warm-up 0.2–1.4 % of their steps, EMA horizon 2–7 %), so these bounds act on small data only.
WARMUP_SHARE = 0.05
EMA_SHARE = 0.1


class Stage(NamedTuple):
    """What may be done to images in an epoch. The probabilities are the recipe's."""

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
    """A training run in numbers, all of them final: nothing is scaled after this.

    Stages by epoch: [0, basic_epochs) basic, [basic_epochs, mosaic_until) dense, [mosaic_until, refine_from) augmented,
    [refine_from, epochs) refinement.
    """

    epochs: int
    steps_per_epoch: int
    """Optimizer steps; with gradient accumulation one step is several batches."""
    warmup_steps: int
    flat_epoch: float
    """The learning rate starts to fall here; beyond the last epoch it never does."""
    no_aug_epochs: float
    """Length of the tail at the lowest learning rate."""
    lr_gamma: float
    """Lowest learning rate / highest."""
    basic_epochs: int
    mosaic_until: int
    refine_from: int
    ema_decay: float
    ema_warmup: float
    ema_restart_decay: float

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def stage(self, epoch: int) -> Stage:
        """What may be done to images in `epoch`, counted from 0."""
        if epoch >= self.refine_from:
            return REFINEMENT
        if epoch < self.basic_epochs:
            return BASIC
        return DENSE if epoch < self.mosaic_until else AUGMENTED

    def lr(self, step: int, base_lr: float) -> float:
        """Learning rate of the update number `step`, counted from 0.

        The schedule is read at step + 1: at 0 it is zero, and a run must not spend its first update, which may be its
        only one, on nothing.
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


def scale_schedule(
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup_steps: int,
    flat_epoch: float,
    no_aug_epochs: float,
    lr_gamma: float,
    basic_epochs: int,
    mosaic_until: int,
    refine_from: int,
    ema_decay: float,
    ema_warmup: float,
    ema_restart_decay: float,
    scaling: Literal["auto", "published"] = "auto",
) -> Plan:
    """Fit what a schedule counts in steps to the length of this run.

    Published schedules are made for 118k images: 150k to 890k steps. 50 epochs on 300 images are 900 steps, and with
    the published lengths the EMA, which is what is validated and saved, would end up near its starting weights.
    What is counted in epochs follows `epochs` where a recipe is changed; steps are known only now, with the data:

    - warm-up is at most 5 % of all steps. It protects fresh layers and Adam's second moments, which takes a number of
      steps and not a share of the run; so it is cut where it would eat a short run, and never made longer;
    - the EMA's horizon 1 / (1 − decay) is at most 10 % of all steps. A tenth still averages over epochs, and is about
      as long as the refinement stage, so that this ends with a settled average. The EMA's own warm-up shrinks by the
      same factor: the curve of the decay keeps its shape.

    At the published size, and with `scaling="published"`, every number passes unchanged.

    Args:
        epochs: of this run, as all that is counted in epochs.
        steps_per_epoch: optimizer steps.
        warmup_steps: published.
        flat_epoch: see `Plan`.
        no_aug_epochs: see `Plan`.
        lr_gamma: see `Plan`.
        basic_epochs: see `Plan`.
        mosaic_until: see `Plan`.
        refine_from: see `Plan`; `epochs` or more for a run without refinement.
        ema_decay: published final decay.
        ema_warmup: published time constant, in steps, with which the decay rises to its final value.
        ema_restart_decay: published final decay in the refinement stage.
        scaling: "auto" or "published".

    Raises:
        ConfigError: there is no epoch, or no step in one.
    """
    for name, value in (("epochs", epochs), ("steps per epoch", steps_per_epoch)):
        if value < 1:
            raise ConfigError(f"The run has {value} {name}; expected at least 1. Check epochs, batch and the data.")
    total = epochs * steps_per_epoch
    if scaling == "auto":
        horizon, longest = 1 / (1 - ema_decay), max(1.0, EMA_SHARE * total)
        warmup_steps = min(warmup_steps, int(WARMUP_SHARE * total))
        ema_warmup *= min(1.0, longest / horizon)
        ema_decay, ema_restart_decay = min(ema_decay, 1 - 1 / longest), min(ema_restart_decay, 1 - 1 / longest)
    return Plan(
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=warmup_steps,
        flat_epoch=flat_epoch,
        no_aug_epochs=no_aug_epochs,
        lr_gamma=lr_gamma,
        basic_epochs=basic_epochs,
        mosaic_until=mosaic_until,
        refine_from=refine_from,
        ema_decay=ema_decay,
        ema_warmup=ema_warmup,
        ema_restart_decay=ema_restart_decay,
    )


def split_batch(total: int, *, ranks: int, accumulate: int = 1) -> int:
    """Images per device and forward, so that ranks × accumulate × this is the effective batch `total`.

    Raises:
        ConfigError: it does not divide.
    """
    per_device, rest = divmod(total, ranks * accumulate)
    if rest or not per_device:
        down, up = per_device * ranks * accumulate, (per_device + 1) * ranks * accumulate
        raise ConfigError(
            f"A batch of {total} cannot be split over {ranks} device(s) × {accumulate} accumulated batch(es). "
            f"Choose a multiple of {ranks * accumulate}, such as {' or '.join(str(n) for n in (down, up) if n)}."
        )
    return per_device
