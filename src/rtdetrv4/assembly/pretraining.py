"""Build a pretraining run: L_DSI alone, on images without labels."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from rtdetrv4.assembly.derive import START_WORDS, Choice, Limit
from rtdetrv4.assembly.facts import DataFacts, Machine, Sources, StartKind
from rtdetrv4.assembly.fitting import Fitting
from rtdetrv4.assembly.models import find_variant
from rtdetrv4.assembly.training import (
    LOGGED_ONLY,
    Supervision,
    build_optimizer,
    build_teacher,
    check_teacher,
    chosen_observers,
    set_up_computation,
    settle_course,
)
from rtdetrv4.config import Recipe, flat_settings
from rtdetrv4.data.batch import STRIDE
from rtdetrv4.data.records import Splits
from rtdetrv4.distillation import PIP_TEACHER, DistillationStudent, Injector, Teacher
from rtdetrv4.distillation.teacher import Network
from rtdetrv4.errors import ConfigError
from rtdetrv4.losses import no_terms
from rtdetrv4.models import DetectionModel, SemanticPath
from rtdetrv4.training import BatchSheets, ModelEma, Observer, Trainer, default_observers
from rtdetrv4.training.plan import EMA_SHARE, WARMUP_SHARE

STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 3000, 10, 200
"""Optimizer steps without a limit of time, and bounds of what they make of epochs. In a trial on 2,062 photos at 128
pixels, 770 steps in 12 epochs took L_DSI from 0.76 to 0.43; three times as many is a guess at what still pays."""
BATCH, LR = 32, 1e-3
"""Images per step, and the learning rate for as many; as in that trial."""
BACKBONE_SHARE: Mapping[StartKind, float] = {"none": 1.0, "pretrained": 1.0, "imagenet": 0.2, "coco": 0.2}
"""The backbone's learning rate / that of the rest, a guess."""
CPU_SIZE, LARGEST_SIZE = 192, 640
OPEN_TEACHER = "dinov2-b"
"""Whose weights are fetched if no teacher's are on the machine: their license is an open-source one."""
_TABLE_OF_STAGES = {"schedule.basic_epochs": 0, "schedule.mosaic_until": 0, "schedule.no_aug_epochs": 0}
_OTHER_AUGMENTATION = {f"augment.{name}": 0.0 for name in ("mosaic", "mixup", "zoom_out", "iou_crop")}


def derive_pretraining(
    recipe: Recipe,
    given: Collection[str],
    data: DataFacts,
    machine: Machine,
    sources: Sources,
    limit: Limit | None = None,
) -> tuple[Choice, ...]:
    """Settings of a pretraining run; a pure function, as `assembly.derive.derive` is.

    Args:
        recipe: the model's recipe with the user's settings.
        given: dotted names of the user's settings; they are not derived.
        data: facts of the images.
        machine: facts of the machine.
        sources: what the run starts from and learns from.
        limit: the epochs that time allows; None does not limit them.
    """
    settings, found = flat_settings(recipe), list[Choice]()

    def choose(name: str, value: Any, reason: str) -> Any:
        if name in given:
            return settings[name]
        found.append(Choice(name, value, reason))
        return value

    if "distillation.teacher" not in given:
        teacher, reason = sources.teacher, "its weights are on this machine"
        if teacher is None:
            teacher, reason = OPEN_TEACHER, "no teacher's weights are on this machine; these are fetched"
        elif teacher == PIP_TEACHER:
            reason = "the one that came with pip; --teacher names another"
        choose("distillation.teacher", teacher, reason)
    choose("distillation.mode", "fixed", "L_DSI is the only loss")
    side, reason = (CPU_SIZE, "a CPU") if machine.kind == "cpu" else (LARGEST_SIZE, "a GPU")
    pixels = math.sqrt(math.prod(data.image_hw))
    if pixels < side - STRIDE / 2:
        side = max(round(pixels / STRIDE) * STRIDE, STRIDE)
        reason = f"images of {data.image_hw[1]}×{data.image_hw[0]} have no more pixels"
    choose("model.image_size", (side, side), reason)
    unit = machine.ranks
    wanted = max(min(BATCH, data.num_images) // unit, 1) * unit
    batch = choose("schedule.batch", wanted, f"of {data.num_images} images")
    choose("run.accumulate", "auto", "as few parts as fit in memory")
    per_epoch = max(data.num_images // batch, 1)
    epochs = min(max(math.ceil(STEPS / per_epoch), FEWEST_EPOCHS), MOST_EPOCHS)
    epochs, reason = (epochs, f"{epochs * per_epoch} steps") if limit is None else limit
    epochs = choose("schedule.epochs", epochs, reason)
    steps = epochs * per_epoch

    lr = LR * min(math.sqrt(batch / BATCH), 1.0)
    lr = choose("optimizer.lr", float(f"{lr:.2g}"), f"in batches of {batch}")
    share = BACKBONE_SHARE[sources.start]
    choose("optimizer.backbone_lr", float(f"{share * lr:.2g}"), f"{share:g} of lr from {START_WORDS[sources.start]}")
    for name, value in _OTHER_AUGMENTATION.items():
        choose(name, value, "for labels only")
    choose("augment.photometric", 0.5, "moderate; the order of channels stays")
    choose("augment.multi_scale_repeat", None, "random crops change the scale")
    for name, value in _TABLE_OF_STAGES.items():
        choose(name, value, "one stage")
    choose("schedule.refine_from", epochs, "one stage")
    choose("schedule.flat_epoch", epochs // 2, "falls in the second half, to a hundredth")
    choose("schedule.lr_gamma", 0.01, "falls in the second half, to a hundredth")
    choose("schedule.warmup_steps", int(WARMUP_SHARE * steps), f"{WARMUP_SHARE:.0%} of {steps} steps")
    longest = max(EMA_SHARE * steps, 1.0)
    decay = min(settings["ema.decay"], 1 - 1 / longest)
    choose("ema.decay", round(decay, 6), f"looks back over at most {EMA_SHARE:.0%} of {steps} steps")
    choose("ema.warmup", max(round(longest / 10), 1), f"looks back over at most {EMA_SHARE:.0%} of {steps} steps")
    workers = min(machine.cores // 2, 4) if machine.kind == "cpu" else min(max(machine.cores - 1, 1), 8)
    choose("data.workers", workers, f"{machine.cores} cores")
    return tuple(found)


def check_pretraining(recipe: Recipe, given: Collection[str], teacher: Teacher | Network | None = None) -> None:
    """Check, before anything is read, that the user's settings leave a teacher that exists.

    Args:
        recipe: the model's recipe with the user's settings.
        given: dotted names of the user's settings.
        teacher: replaces the recipe's teacher.

    Raises:
        ConfigError: they leave none, or there is no such teacher.
        WeightsError: there is no such file.
    """
    settings = recipe.distillation
    if settings.mode == "off" and "distillation.mode" in given:
        raise ConfigError(
            'distillation.mode: got "off", but pretraining has no other loss. Set distillation.mode to "fixed".'
        )
    if teacher is None and "distillation.teacher" in given:
        if settings.teacher is None:
            raise ConfigError("Pretraining needs a teacher, such as dinov2-b; `rtdetrv4 teachers` lists them.")
        check_teacher(settings)


def build_pretrainer(
    recipe: Recipe,
    splits: Splits,
    detector: DetectionModel,
    *,
    accelerator: Accelerator,
    teacher: Teacher | Network | None = None,
    callbacks: Sequence[Observer] = (),
    start: Mapping[str, Any] | None = None,
    fitting: Fitting | None = None,
) -> Trainer:
    """A pretraining run of a detector's backbone, AIFI and a projector.

    Args:
        recipe: all settings.
        splits: `train` holds the images.
        detector: from `build_detector`, possibly with weights loaded; its other parts are not trained.
        accelerator: device and ranks.
        teacher: replaces the recipe's teacher.
        callbacks: observers notified after the package's own.
        start: what the run starts from, to be remembered with the weights.
        fitting: adjusts the length of the run to its pace; None keeps the recipe's.

    Raises:
        ConfigError: settings contradict each other or the machine.
        WeightsError: the teacher's weights cannot be loaded.
    """
    assert splits.train is not None, "there are no images"
    built = build_teacher(recipe.distillation, accelerator.device, teacher)
    assert built is not None, "a teacher is checked for, or derived"
    student = build_path(recipe, detector, built, accelerator.device)
    supervision = Supervision(no_terms, {"distill": 1.0, **LOGGED_ONLY})
    course = settle_course(recipe, splits, student, accelerator, built, fitting, supervision)
    recipe, accumulate, data, plan, _, features, _ = course
    out = Path(recipe.run.out)
    observers = default_observers(out, log_every=recipe.run.log_every)
    return Trainer(
        student=student,
        ema=ModelEma(student, plan.ema_decay, plan.ema_warmup),
        optimizer=build_optimizer(recipe, student),
        plan=plan,
        data=data,
        **supervision._asdict(),
        evaluate=None,
        accelerator=accelerator,
        out=out,
        teacher=built.to(accelerator.device),
        features=features,
        observers=[*observers, *chosen_observers(recipe, accelerator, files_follow=False), *callbacks],
        sheets=BatchSheets(out, ()),
        clip_norm=recipe.optimizer.clip_norm,
        accumulate=accumulate,
        deadline=None if fitting is None else fitting.deadline,
        max_skipped=recipe.run.max_skipped,
        save_seconds=60 * recipe.run.save_minutes,
        seed=recipe.run.seed,
        recipe=recipe.model_dump(mode="json"),
        metadata={
            "model": recipe.model.name,
            "backbone": recipe.model.backbone,
            "trained": False,
            "pretrained": {
                "parts": ["backbone", *(f"hybrid_encoder.{part}" for part in detector.hybrid_encoder.f5_path())],
                "num_images": len(splits.train.records),
                "image_size": list(recipe.model.image_size),
            },
            "teacher": {"name": built.name, "license": built.license},
            "start": start,
            "version": importlib.metadata.version("rtdetrv4"),
        },
    )


def build_path(recipe: Recipe, detector: DetectionModel, teacher: Teacher, device: torch.device) -> DistillationStudent:
    """What pretraining trains: the parts of the detector that compute F5, and a projector to the teacher's width."""
    set_up_computation(detector.to(device), recipe.run, device)
    injector = Injector(find_variant(recipe.model.name).hidden_dim, teacher.dim)
    return DistillationStudent(SemanticPath(detector.backbone, detector.hybrid_encoder), injector).to(device)
