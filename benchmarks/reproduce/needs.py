"""What a row takes: what has to be fetched and under which license, hours and memory, from a few measured steps."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from rf100vl import DataSet
from rows import Row, teacher_of
from timm.models import get_pretrained_cfg

from rtdetrv4.assembly import build_detector
from rtdetrv4.assembly.fitting import Fitting
from rtdetrv4.assembly.own_teacher import is_detector
from rtdetrv4.assembly.recipes import without_pretrained
from rtdetrv4.assembly.start import Start, StartName
from rtdetrv4.assembly.training import Supervision, build_student, build_teacher, image_memory, settle_course
from rtdetrv4.config import Recipe, override
from rtdetrv4.data.formats import read_splits
from rtdetrv4.data.records import Splits
from rtdetrv4.distillation import PIP_TEACHER, Teacher, load_teacher
from rtdetrv4.distillation.teacher_catalog import BY_NAME, timm_name
from rtdetrv4.errors import ConfigError, DatasetError
from rtdetrv4.ops.hub import has_copy
from rtdetrv4.ops.networks import has_pip_weights, has_timm_weights
from rtdetrv4.runtime.machine import processor_name
from rtdetrv4.training import make_accelerator
from rtdetrv4.training.fit import STATES_PER_PARAMETER, USABLE_SHARE, USABLE_SHARE_ON_CPU
from rtdetrv4.training.pace import Pace, measure_pace
from rtdetrv4.weights.catalog import HUB_FILES


class Download(NamedTuple):
    """Weights that a row needs."""

    what: str
    source: str
    license: str
    note: str = ""
    is_here: bool = False


class Cost(NamedTuple):
    """What one GPU of those that train a row does and needs, from a few steps measured on one."""

    device: str
    num_gpus: int
    images: int
    """Of a step, on this GPU."""
    parts: int
    """In which it computes them."""
    pace: Pace
    bytes_per_image: int
    """That a step keeps for the backward pass, at the largest size of the run."""
    memory: int
    """Bytes that should be free on the device to compute a part at once."""
    peak: int | None
    """Bytes of tensors at most while steps of the base size were measured; None if the device does not tell."""
    seconds: float
    """The whole run, without the exchange of gradients between GPUs."""
    steps: int
    """Of the whole run."""


def downloads(row: Row, teacher: str | None = None) -> list[Download]:
    """The weights that a row starts from and learns from, and whether they are on this machine."""
    found = []
    if row.start == "imagenet":
        name = row.imagenet_weights
        found.append(Download("backbone", f"timm's {name}", _timm_license(name), is_here=has_timm_weights(name)))
    elif row.start != "none":
        file = HUB_FILES[row.model][row.start][0]
        size = "" if file.size_mb is None else f"{file.size_mb:g} MB"
        source, here = f"{file.repository}/{file.file}", has_copy(file.repository, file.file)
        found.append(Download(f"{row.start} weights", source, file.license or "unknown", size, here))
    name = teacher_of(row, teacher)
    if name is None:
        return found
    if is_detector(name):
        return [*found, Download("teacher", name, "your own", is_here=Path(name).is_file())]
    facts = BY_NAME.get(name) or next((each for each in BY_NAME.values() if each.timm_name == name), None)
    here = has_pip_weights(name) if name == PIP_TEACHER else has_timm_weights(timm_name(name))
    if facts is None:
        return [*found, Download("teacher", f"timm's {name}", _timm_license(name), is_here=here)]
    note = facts.note if facts.is_open else f"{facts.note}; not an open-source license, read it first"
    return [*found, Download("teacher", f"timm's {facts.timm_name}", facts.license, note, here)]


def cost_on_coco(recipe: Recipe, splits: Splits, counts: tuple[int, int], num_gpus: int) -> Cost:
    """Measure a few steps of a row as one of several GPUs would compute them; nothing is fetched.

    Args:
        recipe: of the row.
        splits: images to measure with.
        counts: training and validation images of the run, which may be more than those.
        num_gpus: that share the batch.

    Raises:
        ConfigError: the batch cannot be shared equally, or does not fit into memory.
    """
    batch = recipe.schedule.batch
    if num_gpus < 1 or batch % num_gpus:
        raise ConfigError(
            f"{num_gpus} GPUs cannot share the batch of {recipe.model.name}, {batch} images, equally; use one of "
            f"{', '.join(str(n) for n in range(1, batch + 1) if batch % n == 0)}."
        )
    num_train, num_val = counts
    accelerator = make_accelerator(recipe.run.device, recipe.run.amp)
    of_one = override(recipe, {"schedule.batch": batch // num_gpus})
    measured = _measure(of_one, splits, accelerator, math.ceil(num_val / num_gpus))
    steps = num_train // batch
    seconds = measured.pace.duration(recipe.schedule.epochs, steps, recipe.run.eval_every)
    return measured._replace(num_gpus=num_gpus, seconds=seconds, steps=recipe.schedule.epochs * steps)


def cost_on_rf100vl(recipe: Recipe, settled: Collection[str], start: StartName, sets: Sequence[DataSet]) -> Cost:
    """Measure a few steps on the largest data set, and add up what all of them take on one GPU; nothing is fetched.

    Args:
        recipe: of the row.
        settled: dotted names of the settings that the row fixes.
        start: what the row starts from.
        sets: all data sets.

    Raises:
        DatasetError: a data set cannot be used.
    """
    accelerator = make_accelerator(recipe.run.device, recipe.run.amp)
    kind = Start(start, start)  # only its kind counts, so nothing is fetched
    runs: list[tuple[Recipe, Splits, int, int]] = []
    for each in sets:
        splits = read_splits(each.path, parts=("train", "val"), make_val=True)
        if splits.train is None or splits.val is None:
            raise DatasetError(f"{each.path} has no images to train on.")
        fitting = Fitting.gather(recipe, settled, splits, accelerator, start=kind, budget=None)
        runs.append((fitting.fit(recipe), splits, len(splits.train.records), len(splits.val.records)))
    fitted, splits, _, num_val = max(runs, key=lambda run: run[2])
    measured = _measure(fitted, splits, accelerator, num_val)
    per_image, per_val = measured.pace.step / measured.images, measured.pace.evaluation / num_val
    seconds, total = 0.0, 0
    for fitted, _, num_train, num_val in runs:
        batch, epochs = fitted.schedule.batch, fitted.schedule.epochs
        steps = max(num_train // batch, 1)
        seconds += Pace(batch * per_image, num_val * per_val).duration(epochs, steps, fitted.run.eval_every)
        total += epochs * steps
    return measured._replace(seconds=seconds, steps=total)


def _measure(recipe: Recipe, splits: Splits, accelerator: Accelerator, num_val: int) -> Cost:
    """The pace and the memory of one device; the run's length is for the caller."""
    assert splits.train is not None, "nothing to train on"
    device = accelerator.device
    teacher = _teacher_without_weights(recipe, device)
    network = build_detector(without_pretrained(recipe), splits.train.classes.num_classes)
    student = build_student(recipe, network, teacher, accelerator)
    course = settle_course(recipe, splits, student, accelerator, teacher)
    supervision = Supervision.of(recipe)
    images = min(course.data.loader.batch_size or 1, len(course.data.loader.dataset))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    pace = measure_pace(
        student,
        *supervision,
        course.data.loader.dataset,
        batch=images,
        accumulate=course.accumulate,
        workers=recipe.data.workers,
        num_val=num_val,
        accelerator=accelerator,
        teacher=None if teacher is None else teacher.to(device),
    )
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    per_image = image_memory(recipe, splits.train, student, accelerator)
    state = STATES_PER_PARAMETER * sum(p.numel() * p.element_size() for p in student.parameters())
    share = USABLE_SHARE_ON_CPU if device.type == "cpu" else USABLE_SHARE
    return Cost(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        num_gpus=1,
        images=images * course.accumulate,
        parts=course.accumulate,
        pace=pace,
        bytes_per_image=per_image,
        memory=int((images * per_image + state) / share),
        peak=peak,
        seconds=0.0,
        steps=0,
    )


def _teacher_without_weights(recipe: Recipe, device: torch.device) -> Teacher | None:
    """The run's teacher with random weights, which take as long and need no fetching; None without distillation."""
    name = recipe.distillation.teacher
    if name is None or not recipe.distillation.is_on or is_detector(name):
        return build_teacher(recipe.distillation, device)
    return build_teacher(recipe.distillation, device, load_teacher(name, pretrained=False).network)


def _timm_license(name: str) -> str:
    config = get_pretrained_cfg(name)
    return str(config.license) if config is not None and config.license else "unknown"
