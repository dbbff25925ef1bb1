"""Self-attention and multi-scale deformable cross-attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetrv4.ops.deformable import deformable_sample


class SelfAttention(nn.Module):
    """Multi-head self-attention that adds positions to queries and keys, but not to values."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj: nn.Linear = nn.Linear(dim, 3 * dim)
        self.out_proj: nn.Linear = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: B×N×C.
            position: broadcastable to B×N×C.
            allowed: N×N bool, True where the query in that row may see the key in that column.

        Returns:
            B×N×C.
        """
        dim = x.shape[-1]
        weight, bias = self.in_proj.weight, self.in_proj.bias
        query, key = F.linear(x + position, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=-1)
        value = F.linear(x, weight[2 * dim :], bias[2 * dim :])
        query, key, value = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class DeformableAttention(nn.Module):
    """Cross-attention in which each query samples a few points around its reference box on every level.

    References:
        Deformable DETR, arXiv 2010.04159, section 4.1; RT-DETRv2, arXiv 2407.17140 (points per level);
        D-FINE drops the value and output projections.
    """

    points_share: Tensor

    def __init__(
        self, dim: int, num_heads: int, num_points: Sequence[int], *, project_values: bool, offset_scale: float = 0.5
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_points: tuple[int, ...] = tuple(num_points)
        self.offset_scale = offset_scale
        total = sum(num_points)
        self.sampling_offsets: nn.Linear = nn.Linear(dim, num_heads * total * 2)
        self.attention_weights: nn.Linear = nn.Linear(dim, num_heads * total)
        self.value_proj: nn.Linear | None = nn.Linear(dim, dim) if project_values else None
        self.output_proj: nn.Linear | nn.Identity = nn.Linear(dim, dim) if project_values else nn.Identity()
        share = torch.cat([torch.full((n,), 1 / n) for n in num_points])
        self.register_buffer("points_share", share, persistent=False)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        # Initially, heads look in evenly spaced directions, each point of a level one step farther out.
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        steps = torch.cat([torch.arange(1, n + 1) for n in self.num_points])
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.data = (direction[:, None] * steps[None, :, None]).flatten()
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            if isinstance(projection, nn.Linear):
                nn.init.xavier_uniform_(projection.weight)
                nn.init.zeros_(projection.bias)

    def values(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """The maps to sample: those of `pyramid` (B×C×h×w each), projected if this layer projects values."""
        projection = self.value_proj
        if projection is None:
            return list(pyramid)
        kernel = projection.weight[:, :, None, None]
        return [F.conv2d(level, kernel, projection.bias) for level in pyramid]

    def forward(self, query: Tensor, reference: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """Sample and mix.

        Args:
            query: B×Q×C.
            reference: B×Q×4 boxes; offsets are in units of half their width and height.
            pyramid: one B×C×h×w map per level.

        Returns:
            B×Q×C.
        """
        offsets = self.sampling_offsets(query).unflatten(-1, (self.num_heads, -1, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(dim=-1)
        unit = self.points_share[:, None] * reference[:, :, None, None, 2:] * self.offset_scale
        locations = reference[:, :, None, None, :2] + offsets * unit
        return self.output_proj(deformable_sample(self.values(pyramid), locations, weights, self.num_points))
