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
from torch.func import functional_call

from rtdetrv4.models.layers import MLP, Activation
from rtdetrv4.ops.boxes import full_precision


class SelectedQueries(NamedTuple):
    """What query selection passes to the decoder (detached) and to the criterion (attached)."""

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
        center = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1)
        anchors.append(torch.cat((center, torch.full_like(center, base_size * 2**level)), dim=-1).flatten(0, 1))
    flat = torch.cat(anchors)
    valid = ((flat > 0.01) & (flat < 0.99)).all(dim=-1, keepdim=True)
    return torch.where(valid, torch.log(flat / (1 - flat)), torch.inf)


class QuerySelection(nn.Module):
    """Scores every cell of the pyramid, keeps the best Q, and predicts their boxes.

    No parameter's shape depends on Q, so `num_queries` can be changed at any time. Images with fewer cells get fewer
    queries.

    Args:
        projected: with a linear layer and a norm before the heads; DEIMv2 has neither.
    """

    def __init__(
        self, dim: int, num_classes: int, num_queries: int, act: Activation, *, projected: bool = True
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.projection: nn.Linear | nn.Identity = nn.Linear(dim, dim) if projected else nn.Identity()
        self.norm: nn.LayerNorm | nn.Identity = nn.LayerNorm(dim) if projected else nn.Identity()
        self.score_head: nn.Linear = score_head(dim, num_classes)
        self.box_head: MLP = box_head(dim, 4, act)
        if isinstance(self.projection, nn.Linear):
            nn.init.xavier_uniform_(self.projection.weight)

    def forward(self, pyramid: Sequence[Tensor]) -> SelectedQueries:
        """Maps B×C×h×w, finest first → the selected queries."""
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid], dim=1)  # B×S×C
        shapes = [(level.shape[-2], level.shape[-1]) for level in pyramid]
        anchors = anchor_logits(shapes, device=memory.device)
        valid = anchors.isfinite().all(dim=-1, keepdim=True)
        valid = valid.to(memory.dtype)
        num_queries = min(self.num_queries, memory.shape[1])
        if self.training:
            # Only selected cells get a gradient, so all cells are scored without a graph, and the selected ones, a few
            # percent, once more with one. Parameters are detached instead of using `no_grad`, under which autocast
            # would cache casts that have no graph and reuse them in the second pass.
            index = _top_cells(self._detached_scores(memory.detach() * valid), num_queries)
            content = self.norm(self.projection(_gather(memory, index) * valid[index.squeeze(-1)]))
            logits = self.score_head(content)
        else:
            cells = self.norm(self.projection(memory * valid))
            scores = self.score_head(cells)
            index = _top_cells(scores, num_queries)
            content, logits = _gather(cells, index), _gather(scores, index)
        reference = full_precision(self.box_head(content)) + anchors[index.squeeze(-1)]
        return SelectedQueries(
            content=content.detach(),
            reference_logits=reference.detach(),
            logits=logits,
            boxes=reference.sigmoid(),
        )

    def _detached_scores(self, x: Tensor) -> Tensor:
        """B×S×C → B×S×K."""
        for module in (self.projection, self.norm, self.score_head):
            x = functional_call(module, {name: tensor.detach() for name, tensor in module.named_parameters()}, x)
        return x


def _top_cells(scores: Tensor, count: int) -> Tensor:
    """Class logits B×S×K → the B×count×1 indices of the best cells, best first."""
    return scores.amax(dim=-1).topk(count, dim=1).indices[..., None]


def _gather(cells: Tensor, index: Tensor) -> Tensor:
    """B×S×C and B×Q×1 → B×Q×C."""
    return cells.gather(1, index.expand(-1, -1, cells.shape[-1]))


def score_head(dim: int, num_classes: int, prior: float = 0.01) -> nn.Linear:
    """A linear layer for class logits; every class starts at probability `prior` (focal loss initialization)."""
    head = nn.Linear(dim, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - prior) / prior))
    return head


def box_head(dim: int, out_dim: int, act: Activation) -> MLP:
    """A three-layer MLP whose initial output is zero: no change to a box."""
    head = MLP(dim, dim, out_dim, 3, act)
    head.zero_last()
    return head
