"""Batches: packing samples, multi-scale sizes, MixUp, and the transfer to the device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from rtdetrv4.data.dataset import Sample
from rtdetrv4.types import Batch, Targets, View

STRIDE = 32
MIXUP_RATIO = (0.45, 0.55)
_SIZE_STREAM, _MIXUP_STREAM = 1, 2


def pack(samples: Sequence[Sample]) -> Batch:
    """Combine samples of one size into a batch; in a worker, the images go straight to shared memory.

    A batch is three tensors, however many images it has. Every tensor sent between processes takes a file descriptor,
    and tensors for each image would exhaust them ("received 0 items of ancdata").
    """
    # Stacked as H×W×3, the layout they have in memory, this is a plain copy.
    images = default_collate([sample.image.permute(1, 2, 0) for sample in samples]).permute(0, 3, 1, 2)
    targets = Targets(
        labels=torch.from_numpy(np.concatenate([sample.labels for sample in samples])),
        boxes=torch.from_numpy(np.concatenate([sample.boxes for sample in samples])),
        counts=tuple(len(sample.labels) for sample in samples),
    )
    return Batch(images, targets, tuple(sample.info for sample in samples), tuple(sample.views for sample in samples))


def multi_scales(base: int, repeat: int) -> list[int]:
    """The equally likely side lengths: 3/4 to 5/4 of `base` in steps of 32, with `base` itself `repeat` times."""
    low, high = (int(base * factor / STRIDE) * STRIDE for factor in (0.75, 1.25))
    steps = [STRIDE * i for i in range((base - low) // STRIDE)]
    return [low + step for step in steps] + [base] * repeat + [high - step for step in steps]


def draw_size(image_size: tuple[int, int], repeat: int | None, seed: int, epoch: int, step: int) -> tuple[int, int]:
    """Draw the size (H, W) of a batch; it is the same on every rank.

    Args:
        image_size: the (H, W) at which images are loaded.
        repeat: see `multi_scales`; None keeps `image_size`.
        seed: the seed of the run.
        epoch: counted from 0.
        step: the step within the epoch, counted from 0.
    """
    if repeat is None:
        return image_size
    base = max(image_size)
    side = np.random.default_rng((seed, epoch, step, _SIZE_STREAM)).choice(multi_scales(base, repeat))
    height, width = (max(STRIDE, round(length * side / base / STRIDE) * STRIDE) for length in image_size)
    return height, width


def draw_mixup(probability: float, seed: int, epoch: int, step: int, rank: int = 0) -> float | None:
    """Draw the weight of each sample's own image in MixUp, or None for a batch without MixUp."""
    rng = np.random.default_rng((seed, epoch, step, _MIXUP_STREAM, rank))
    return float(rng.uniform(*MIXUP_RATIO)) if rng.random() < probability else None


def mix_up(batch: Batch, ratio: float) -> Batch:
    """Blend every image with the previous one in the batch, keeping the boxes of both (DEIM, section 3.1).

    Args:
        batch: a batch of float images; one of a single image is returned as it is.
        ratio: the weight of the image itself.
    """
    num_images = len(batch.images)
    if num_images < 2:
        return batch
    images = torch.lerp(batch.images.roll(1, dims=0), batch.images, ratio)
    counts, own = batch.targets.counts, batch.targets.split()
    labels, boxes = zip(*(own[image] for index in range(num_images) for image in (index, index - 1)), strict=True)
    mixed = tuple(counts[index] + counts[index - 1] for index in range(num_images))
    views = tuple(
        (*_weighed(batch.views[index], ratio), *_weighed(batch.views[index - 1], 1 - ratio))
        for index in range(len(batch.views))
    )
    return Batch(images, Targets(torch.cat(labels), torch.cat(boxes), mixed), batch.infos, views)


def _weighed(views: Sequence[View], share: float) -> list[View]:
    return [view._replace(weight=share * view.weight) for view in views]


def split_images(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into parts of nearly the same size, at most one for each image; the tensors are views."""
    num_images = len(batch.images)
    parts = min(parts, num_images)
    if parts == 1:
        return [batch]
    labels, boxes, counts = batch.targets
    cuts = [num_images * part // parts for part in range(parts + 1)]
    first_box = [0, *itertools.accumulate(counts)]
    return [
        Batch(
            batch.images[low:high],
            Targets(
                labels[first_box[low] : first_box[high]], boxes[first_box[low] : first_box[high]], counts[low:high]
            ),
            batch.infos[low:high],
            batch.views[low:high],
        )
        for low, high in itertools.pairwise(cuts)
    ]


def prepare_images(images: Tensor, size_hw: tuple[int, int], device: torch.device | str) -> Tensor:
    """Move uint8 images to the device, and convert them there to float32 in [0, 1] of `size_hw` (bilinear)."""
    images = images.to(device, non_blocking=True)
    images = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if images.shape[-2:] != size_hw:
        images = F.interpolate(images, size=size_hw, mode="bilinear", align_corners=False)
    return images


def prepare_batch(batch: Batch, size_hw: tuple[int, int], device: torch.device | str) -> Batch:
    """Move a batch to the device; see `prepare_images`."""
    labels, boxes, counts = batch.targets
    targets = Targets(labels.to(device, non_blocking=True), boxes.to(device, non_blocking=True), counts)
    return batch._replace(images=prepare_images(batch.images, size_hw, device), targets=targets)
