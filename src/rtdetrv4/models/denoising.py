"""Contrastive denoising: noised copies of the true boxes as extra queries, in groups that cannot see each other.

References:
    DINO, arXiv 2203.03605, section 3.3; RT-DETR's implementation of it (label noise 0.5, box noise 1.0).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rtdetrv4.ops.boxes import cxcywh_from_xyxy, inverse_sigmoid, xyxy_from_cxcywh
from rtdetrv4.types import DenoisingGroups, Targets


class DenoisingQueries(NamedTuple):
    """N = 2 · Tmax · G extra queries, which precede the selected ones."""

    content: Tensor
    """B×N×C."""
    reference_logits: Tensor
    """B×N×4."""
    groups: DenoisingGroups


def group_layout(num_denoising: int, max_targets: int) -> DenoisingGroups:
    """As many groups of `max_targets` positives as fit into `num_denoising`, at least one; none without boxes."""
    if max_targets == 0:
        return DenoisingGroups(0, 0)
    return DenoisingGroups(max(num_denoising // max_targets, 1), max_targets)


def attention_allowed(groups: DenoisingGroups, num_queries: int, *, device: torch.device | None = None) -> Tensor:
    """(N+Q)×(N+Q) bool, True where a query (row) may see another (column).

    A group sees itself and the selected queries; selected queries see only each other.
    """
    size = 2 * groups.max_targets
    own = torch.arange(groups.num_groups, device=device).repeat_interleave(size)
    own = torch.cat((own, own.new_full((num_queries,), -1)))
    return (own[:, None] == own[None]) | (own[None] == -1)


class ContrastiveDenoising(nn.Module):
    """Makes denoising queries from targets.

    Args:
        num_classes: K.
        dim: C.
        num_denoising: approximate number of positives per image; determines the number of groups, see `group_layout`.
        label_noise: twice the probability that a label is replaced by a random one.
        box_noise: how far the sides of positives may move, in units of half the box's width or height; those of
            negatives move one to two times as far.
    """

    def __init__(self, num_classes: int, dim: int, num_denoising: int, label_noise: float, box_noise: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_denoising = num_denoising
        self.label_noise = label_noise
        self.box_noise = box_noise
        self.class_embedding: nn.Embedding = nn.Embedding(num_classes + 1, dim, padding_idx=num_classes)

    def forward(self, targets: Targets) -> DenoisingQueries:
        """Draw noise for the targets of a batch.

        A batch without boxes yields no queries but still uses the embedding, so that all ranks of a distributed run
        have the same graph.
        """
        weight = self.class_embedding.weight
        groups = group_layout(self.num_denoising, max(targets.counts))
        if groups.max_targets == 0:
            batch = len(targets.counts)
            empty = weight[:0].expand(batch, 0, -1)
            return DenoisingQueries(empty + 0 * weight.sum(), weight.new_zeros(batch, 0, 4), groups)
        device = targets.labels.device
        counts = torch.tensor(targets.counts).to(device, non_blocking=True)
        real = torch.arange(groups.max_targets, device=device) < counts[:, None]  # B×Tmax; the others are padding
        labels = targets.labels.new_full(real.shape, self.num_classes).masked_scatter_(real, targets.labels)
        boxes = targets.boxes.new_zeros(*real.shape, 4).masked_scatter_(real[..., None], targets.boxes)
        repeats = 2 * groups.num_groups
        labels, boxes, real = labels.repeat(1, repeats), boxes.repeat(1, repeats, 1), real.repeat(1, repeats)
        negative = torch.arange(repeats, device=device).remainder(2).repeat_interleave(groups.max_targets)

        if self.label_noise > 0:
            swapped = (torch.rand_like(labels, dtype=torch.float32) < 0.5 * self.label_noise) & real
            labels = torch.where(swapped, torch.randint_like(labels, self.num_classes), labels)
        if self.box_noise > 0:
            boxes = self._move_sides(boxes, negative[None, :, None])
        return DenoisingQueries(self.class_embedding(labels), inverse_sigmoid(boxes), groups)

    def _move_sides(self, boxes: Tensor, negative: Tensor) -> Tensor:
        distance = torch.rand_like(boxes) + negative
        sign = torch.randint_like(boxes, 2) * 2 - 1
        reach = 0.5 * boxes[..., 2:].repeat(1, 1, 2) * self.box_noise
        moved = (xyxy_from_cxcywh(boxes) + sign * distance * reach).clamp(0, 1)
        # Sides may have crossed; like the released code, take the absolute value of a negative width or height.
        return cxcywh_from_xyxy(moved).abs()
