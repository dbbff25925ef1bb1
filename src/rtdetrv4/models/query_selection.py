"""Uncertainty-free query selection: the Q memory cells with the best class score become the decoder's queries.

References:
    RT-DETR, arXiv 2304.08069, section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rtdetrv4.models.layers import MLP, Activation
from rtdetrv4.ops.boxes import full_precision


class SelectedQueries(NamedTuple):
    """What query selection hands to the decoder (detached) and to the criterion (attached)."""

    content: Tensor
    """B×Q×C, detached."""
    reference_logits: Tensor
    """B×Q×4, detached, cxcywh before the sigmoid."""
    logits: Tensor
    """B×Q×K."""
    boxes: Tensor
    """B×Q×4."""


def anchor_logits(shapes: Sequence[tuple[int, int]], *, device: torch.device, base_size: float = 0.05) -> Tensor:
    """One anchor per cell of every level, S×4 cxcywh before the sigmoid.

    Width and height are base_size · 2^level. A cell whose anchor is not inside (0.01, 0.99) in every coordinate is
    invalid: its logits are +inf.
    """
    anchors = []
    for level, (height, width) in enumerate(shapes):
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        centre = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1)
        anchors.append(torch.cat((centre, torch.full_like(centre, base_size * 2**level)), dim=-1).flatten(0, 1))
    flat = torch.cat(anchors)
    valid = ((flat > 0.01) & (flat < 0.99)).all(dim=-1, keepdim=True)
    return torch.where(valid, torch.log(flat / (1 - flat)), torch.inf)


class QuerySelection(nn.Module):
    """Scores every cell of the pyramid, keeps the best Q, and predicts their boxes.

    Q is in no parameter's shape and can be changed at any time (`num_queries`); images with fewer cells give fewer.
    """

    def __init__(self, dim: int, num_classes: int, num_queries: int, act: Activation) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.projection = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.score_head = score_head(dim, num_classes)
        self.box_head = box_head(dim, 4, act)
        nn.init.xavier_uniform_(self.projection.weight)

    def forward(self, pyramid: Sequence[Tensor]) -> SelectedQueries:
        """Maps B×C×h×w, finest first → the selected queries."""
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid], dim=1)  # B×S×C
        shapes = [(level.shape[-2], level.shape[-1]) for level in pyramid]
        anchors = anchor_logits(shapes, device=memory.device)
        valid = anchors.isfinite().all(dim=-1, keepdim=True)
        cells = self.norm(self.projection(memory * valid.to(memory.dtype)))
        scores = self.score_head(cells)
        num_queries = min(self.num_queries, cells.shape[1])
        index = scores.amax(dim=-1).topk(num_queries, dim=1).indices[..., None]  # B×Q×1
        content = cells.gather(1, index.expand(-1, -1, cells.shape[-1]))
        reference = full_precision(self.box_head(content)) + anchors[index.squeeze(-1)]
        return SelectedQueries(
            content=content.detach(),
            reference_logits=reference.detach(),
            logits=scores.gather(1, index.expand(-1, -1, scores.shape[-1])),
            boxes=reference.sigmoid(),
        )


def score_head(dim: int, num_classes: int, prior: float = 0.01) -> nn.Linear:
    """Class logits, every class starting at probability `prior` (focal loss initialisation)."""
    head = nn.Linear(dim, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - prior) / prior))
    return head


def box_head(dim: int, out_dim: int, act: Activation) -> MLP:
    """A three-layer MLP that starts at "no change"."""
    head = MLP(dim, dim, out_dim, 3, act)
    head.zero_last()
    return head
