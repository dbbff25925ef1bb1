"""Reports of a run that never was, for tests of observers."""

from __future__ import annotations

import math

from rtdetrv4.distillation import ModulationReport
from rtdetrv4.training.plan import Plan
from rtdetrv4.training.reports import EpochReport, RunInfo, RunResult, StepReport

PLAN = Plan(
    epochs=3,
    steps_per_epoch=2,
    warmup_steps=0,
    flat_epoch=2,
    no_aug_epochs=1,
    lr_gamma=0.5,
    basic_epochs=0,
    mosaic_until=1,
    refine_from=2,
    ema_decay=0.9,
    ema_warmup=1,
    ema_restart_decay=0.9,
)
CLASS_AP = {"cat": 0.1}


def info(out, epoch=0, step=0, teacher="dino", eval_every=1, start_metrics=None):
    return RunInfo(out, PLAN, epoch, step, "cpu, float32", 10_430_000, teacher, eval_every, start_metrics or {})


def step_report(step: int, loss: float = 30.0):
    losses = {"loss": loss, "mal": 0.5, "giou": 0.7, "bbox": 0.2}
    return StepReport((step + 1) // 2, step, losses, 4.0, PLAN.lr(step - 1, 1e-3), 5.0, 8, math.isfinite(loss))


def epoch_report(epoch: int, teacher: bool = True, metrics: bool = True):
    ap = {"ap": 0.1 * epoch, "ap50": 0.2 * epoch, "ap_small": None, "per_class": CLASS_AP}
    return EpochReport(
        epoch=epoch,
        step=2 * epoch,
        stage=PLAN.stage(epoch - 1).name,
        losses={"loss": 30.0 / epoch, "mal": 0.5, "giou": 0.7, **({"distill": 0.8} if teacher else {})},
        lr=1e-3,
        metrics=ap if metrics else {},
        best_score=0.1 * epoch if metrics else None,
        is_best=True,
        distill_weight=5.0 if teacher else None,
        modulation=ModulationReport(6.0, 9.5, "below", (10.0, 12.0)) if teacher else None,
        num_skipped=1,
        num_unreadable=2,
        is_late=False,
        seconds=2.0,
        images_per_second=8.0,
        shares={"data": 0.25, "backward": 0.5},
    )


def play(observers, out, *, teacher="dino", metrics=True, epochs=3):
    for observer in observers:
        observer.run_start(info(out, teacher=teacher))
    for epoch in range(1, epochs + 1):
        for step in (2 * epoch - 1, 2 * epoch):
            for observer in observers:
                observer.step_end(step_report(step))
        for observer in observers:
            observer.epoch_end(epoch_report(epoch, teacher is not None, metrics))
    for observer in observers:
        observer.run_end(RunResult(out, epochs, 0.3 if metrics else None, {}, True))
