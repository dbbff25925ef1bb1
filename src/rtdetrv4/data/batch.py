"""Samples to batches: packing, MixUp, multi-scale sizes, and the way to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from rtdetrv4.data.dataset import Sample
from rtdetrv4.types import Batch, ImageInfo, Target

STRIDE = 32
MIXUP_RATIO = (0.45, 0.55)
_SIZE_STREAM, _MIXUP_STREAM = 1, 2


class PackedBatch(NamedTuple):
    """A batch on its way out of a worker.

    Every tensor that crosses processes costs a file descriptor, and two per image exhaust them ("received 0 items of
    ancdata"); arrays travel as plain bytes.
    """

    images: Tensor
    """B×3×H×W uint8."""
    boxes: NDArray[np.float32]
    """(N, 4) of all images, cxcywh in [0, 1]."""
    labels: NDArray[np.int64]
    """(N,)."""
    counts: tuple[int, ...]
    """B numbers of boxes that sum to N."""
    infos: tuple[ImageInfo, ...]


def pack(samples: Sequence[Sample]) -> PackedBatch:
    """Put samples of one size together; in a worker, images go straight to shared memory."""
    # Stacked as H×W×3, the layout they lie in, this is a plain copy.
    images = default_collate([sample.image.permute(1, 2, 0) for sample in samples]).permute(0, 3, 1, 2)
    return PackedBatch(
        images=images,
        boxes=np.concatenate([sample.target.boxes.numpy() for sample in samples]),
        labels=np.concatenate([sample.target.labels.numpy() for sample in samples]),
        counts=tuple(len(sample.target.labels) for sample in samples),
        infos=tuple(sample.info for sample in samples),
    )


def unpack(packed: PackedBatch) -> Batch:
    """The batch that was packed."""
    labels, boxes = torch.from_numpy(packed.labels), torch.from_numpy(packed.boxes)
    return Batch(packed.images, _split(labels, boxes, packed.counts), packed.infos)


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples of one size together."""
    return unpack(pack(samples))


def multi_scales(base: int, repeat: int) -> list[int]:
    """Sides to choose from with equal chance: 3/4 to 5/4 of `base` in steps of 32, and `base` `repeat` times."""
    low, high = (int(base * factor / STRIDE) * STRIDE for factor in (0.75, 1.25))
    steps = [STRIDE * i for i in range((base - low) // STRIDE)]
    return [low + step for step in steps] + [base] * repeat + [high - step for step in steps]


def draw_size(image_size: tuple[int, int], repeat: int | None, seed: int, epoch: int, step: int) -> tuple[int, int]:
    """The size (H, W) of the batch at `step` of `epoch`, the same on every rank.

    Args:
        image_size: (H, W) that images are loaded in.
        repeat: see `multi_scales`; None keeps `image_size`.
        seed: of the run.
        epoch: from 0.
        step: of the epoch, from 0.
    """
    if repeat is None:
        return image_size
    base = max(image_size)
    side = np.random.default_rng((seed, epoch, step, _SIZE_STREAM)).choice(multi_scales(base, repeat))
    height, width = (max(STRIDE, round(length * side / base / STRIDE) * STRIDE) for length in image_size)
    return height, width


def draw_mixup(probability: float, seed: int, epoch: int, step: int, rank: int = 0) -> float | None:
    """The share of its own image that each sample of the batch keeps, or None for no MixUp."""
    rng = np.random.default_rng((seed, epoch, step, _MIXUP_STREAM, rank))
    return float(rng.uniform(*MIXUP_RATIO)) if rng.random() < probability else None


def mix_up(batch: Batch, ratio: float) -> Batch:
    """Blend every image with the one before it and keep the boxes of both (DEIM, section 3.1).

    Args:
        batch: with float images.
        ratio: share of the own image.
    """
    if len(batch.infos) < 2:
        return batch
    images = torch.lerp(batch.images.roll(1, dims=0), batch.images, ratio)
    others = (batch.targets[-1], *batch.targets[:-1])
    targets = tuple(
        Target(torch.cat([own.labels, other.labels]), torch.cat([own.boxes, other.boxes]))
        for own, other in zip(batch.targets, others, strict=True)
    )
    return Batch(images, targets, batch.infos)


def prepare_images(images: Tensor, size_hw: tuple[int, int], device: torch.device | str) -> Tensor:
    """Bring uint8 images to the device, and only there to float32 in [0, 1] and to `size_hw` (bilinear)."""
    images = images.to(device, non_blocking=True)
    images = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if images.shape[-2:] != size_hw:
        images = F.interpolate(images, size=size_hw, mode="bilinear", align_corners=False)
    return images


def prepare_batch(batch: Batch, size_hw: tuple[int, int], device: torch.device | str) -> Batch:
    """`prepare_images`, and all boxes and labels in one transfer each."""
    counts = [len(target.labels) for target in batch.targets]
    labels = torch.cat([target.labels for target in batch.targets]).to(device, non_blocking=True)
    boxes = torch.cat([target.boxes for target in batch.targets]).to(device, non_blocking=True)
    return Batch(prepare_images(batch.images, size_hw, device), _split(labels, boxes, counts), batch.infos)


def _split(labels: Tensor, boxes: Tensor, counts: Sequence[int]) -> tuple[Target, ...]:
    pairs = zip(labels.split(list(counts)), boxes.split(list(counts)), strict=True)
    return tuple(Target(own_labels, own_boxes) for own_labels, own_boxes in pairs)
