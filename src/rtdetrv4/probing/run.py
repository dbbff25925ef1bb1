"""`rtdetrv4 teachers --probe`: linear probes of several teachers on the boxes of a data set."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress

from rtdetrv4.assembly.own_teacher import is_detector
from rtdetrv4.assembly.training import build_teacher
from rtdetrv4.config.schema import DistillationConfig, parse_image_size
from rtdetrv4.data.formats import read_splits
from rtdetrv4.data.records import require_objects
from rtdetrv4.distillation import Teacher, load_teacher
from rtdetrv4.distillation.teacher import Network, known_teacher, teacher_name
from rtdetrv4.errors import ConfigError, DatasetError, MissingDependencyError, WeightsError, first_line
from rtdetrv4.ops.device import find_device, is_out_of_memory
from rtdetrv4.ops.hub import NotFetchedError
from rtdetrv4.probing.features import BATCH, BoxFeatures, box_features
from rtdetrv4.probing.linear_probe import cross_validate
from rtdetrv4.probing.result import Score, TeacherProbe, TeacherRow
from rtdetrv4.probing.sample import FOLDS, BoxSample, draw_sample
from rtdetrv4.runtime.machine import processor_name

RANDOM = "random:"
"""Before the name of a network: its architecture with random weights."""
MAJORITY = "majority"
"""The row that knows no image."""


class _Candidate(NamedTuple):
    label: str
    load: Callable[[], Teacher]


def probe_teachers(
    data: str | Path,
    teachers: str | Teacher | Network | Sequence[str | Teacher | Network],
    *,
    imgsz: int | str | Sequence[int] = 640,
    num_images: int = 300,
    seed: int = 0,
    device: str = "auto",
) -> TeacherProbe:
    """Measure how well the maps of frozen teachers separate the objects of a data set: a guess at which one helps.

    Features are averaged over the boxes of some training images, and over as many boxes of the same sizes that show
    background. Two linear classifiers are fitted to them: one tells classes and background, the other boxes from
    background. Each is judged on images that it was not fitted to, in five folds; copies of an image share a fold. All
    teachers get the same boxes in the same folds.

    Args:
        data: a data set, as for `Detector.train`. Images that validate are not looked at.
        teachers: names as for `train`, files of detectors' weights, `Teacher` objects, or networks as for
            `wrap_teacher`. "NAME@BLOCK" is an earlier block, as `distillation.teacher_block` has it; "random:NAME" the
            same network with random weights.
        imgsz: size of the images of the detector that would learn, which sets the grid of the maps.
        num_images: the most images to look at; every class in turn chooses one.
        seed: of the choice of images and boxes.
        device: as for `Detector`.

    Returns:
        A row for each teacher that could be had, the best first, and one for always answering with the most frequent
        class. The notes say what was left out. `print` shows it, `save` writes it.

    Raises:
        ConfigError: an option is invalid, or timm does not know a name.
        DatasetError: the data set cannot be used, or has too few boxes.
        WeightsError: none of the teachers can be had.
    """
    given = [teachers] if isinstance(teachers, str) or callable(teachers) else list(teachers)
    where = find_device(device)
    candidates = [_candidate(teacher, where) for teacher in dict.fromkeys(given)]
    if not candidates:
        raise ConfigError("There are no teachers to probe. Give names, such as dinov2-s.")
    try:
        image_size = parse_image_size(imgsz)
    except ValueError as error:
        raise ConfigError(f"imgsz: got {imgsz}, {error}.") from None
    if num_images < FOLDS:
        raise ConfigError(f"num_images: got {num_images}, expected at least {FOLDS}.")
    train = read_splits(data, parts=("train", "val"), make_val=True).train  # as training divides them
    if train is None:
        raise DatasetError("The data set has no training part, such as train/ or instances_train*.json.")
    require_objects(train)
    sample = draw_sample(train, num_images, seed)

    rows: list[TeacherRow] = []
    missing: list[str] = []
    notes = list(sample.notes)
    console = Console(stderr=True)
    num_batches = -(-len(sample.split.records) // BATCH)
    with Progress(console=console, transient=True, disable=not console.is_interactive) as progress:
        task = progress.add_task("", total=len(candidates) * (num_batches + 2))
        for number, (label, load) in enumerate(candidates):
            progress.update(task, description=label, completed=number * (num_batches + 2))
            try:
                teacher = load()
                found = box_features(teacher, sample, image_size, where, lambda: progress.advance(task))
            except (ConfigError, WeightsError, MissingDependencyError) as error:
                missing.append(f"{label}: {_why(error)}")
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                missing.append(f"{label}: it does not fit into the memory of {where}.")
                continue
            rows.append(_row(label, teacher, found, sample, lambda: progress.advance(task)))
            if unread := int((~found.is_readable).sum()):
                notes.append(f"Left out: {unread} boxes of images that cannot be read.")
            if is_detector(label):
                notes.append(f"{label} may have learned from these very images, which flatters it.")
    if not rows:
        raise WeightsError(f"There is no teacher left to probe. {' '.join(missing)}")
    rows.sort(key=lambda row: -row.balanced.mean)
    counts = torch.from_numpy(sample.labels).bincount(minlength=len(sample.names)).tolist()
    return TeacherProbe(
        rows=(*rows, _majority(sample)),
        data=str(data),
        num_images=len(sample.split.records),
        num_boxes=dict(zip(sample.names, counts, strict=True)),
        num_folds=FOLDS,
        image_size=image_size,
        seed=seed,
        device=torch.cuda.get_device_name(where) if where.type == "cuda" else processor_name(),
        versions={name: importlib.metadata.version(name) for name in ("rtdetrv4", "timm", "torch")},
        notes=(*(f"Left out: {each}" for each in missing), *dict.fromkeys(notes)),
    )


def _candidate(teacher: Any, device: torch.device) -> _Candidate:
    """What was asked for, and how to load it.

    Raises:
        ConfigError: timm does not know the name.
    """
    if not isinstance(teacher, str):
        return _Candidate(teacher_name(teacher), lambda: _placed(DistillationConfig(), device, teacher))
    if is_detector(teacher):
        if teacher.startswith(RANDOM):
            raise ConfigError(f'"{teacher}": random weights are for networks of timm; give a name.')
        return _Candidate(teacher, lambda: _placed(DistillationConfig(teacher=teacher), device))
    name, at, number = teacher.removeprefix(RANDOM).rpartition("@")
    block = int(number) if at and re.fullmatch(r"-?\d+", number) else None
    if block is None:
        name = teacher.removeprefix(RANDOM)
    known_teacher(name)
    if teacher.startswith(RANDOM):
        return _Candidate(teacher, lambda: load_teacher(name, pretrained=False, block=block).to(device))
    return _Candidate(teacher, lambda: _placed(DistillationConfig(teacher=name, teacher_block=block), device))


def _why(error: Exception) -> str:
    """Why a teacher cannot be had, without what to do for each."""
    cause = error.__cause__
    return (
        f"its weights cannot be fetched ({cause.reason})." if isinstance(cause, NotFetchedError) else first_line(error)
    )


def _placed(distillation: DistillationConfig, device: torch.device, given: Teacher | Network | None = None) -> Teacher:
    """The teacher as training would build it."""
    teacher = build_teacher(distillation, device, given)
    assert teacher is not None, "one is given or named"
    return teacher.to(device)


def _row(label: str, teacher: Teacher, found: BoxFeatures, sample: BoxSample, tick: Callable[[], object]) -> TeacherRow:
    kept = found.is_readable
    features = found.features[kept]
    labels, folds = (torch.from_numpy(each)[kept] for each in (sample.labels, sample.folds))
    background = len(sample.names) - 1
    recalls = cross_validate(features, labels, folds, len(sample.names))
    tick()
    of_boxes = cross_validate(features, (labels == background).long(), folds, 2)
    tick()
    is_random = label.startswith(RANDOM)
    return _scored(
        sample.names,
        recalls,
        of_boxes,
        teacher=label,
        name=teacher.name,
        license="" if is_random else teacher.license,
        dim=teacher.dim,
        stride=teacher.stride,
        ms_per_image=found.ms_per_image,
    )


def _majority(sample: BoxSample) -> TeacherRow:
    """What always answering with the most frequent class gives, or with "box"."""
    objects = sample.labels[sample.labels < len(sample.names) - 1]
    recalls = torch.zeros(FOLDS, len(sample.names))
    recalls[:, torch.from_numpy(objects).mode().values] = 1
    of_boxes = torch.tensor([[1.0, 0.0]]).expand(FOLDS, 2)
    facts = dict.fromkeys(("dim", "stride", "ms_per_image"))
    return _scored(sample.names, recalls, of_boxes, teacher=MAJORITY, name=MAJORITY, license="", **facts)


def _scored(names: Sequence[str], recalls: torch.Tensor, of_boxes: torch.Tensor, **facts: Any) -> TeacherRow:
    """A row from the recalls of each fold, of each category and of boxes and background."""
    return TeacherRow(
        **facts,
        balanced=Score.of(recalls.nanmean(dim=1).tolist()),
        objectness=Score.of(of_boxes.nanmean(dim=1).tolist()),
        recall={name: Score.of(column.tolist()) for name, column in zip(names, recalls.T, strict=True)},
    )
