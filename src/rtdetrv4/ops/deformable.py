"""Multi-scale deformable sampling.

References:
    Deformable DETR, arXiv 2010.04159, equation 3; RT-DETRv2, arXiv 2407.17140, section 3 (points per level).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def deformable_sample(
    values: Sequence[Tensor], locations: Tensor, weights: Tensor, num_points: Sequence[int]
) -> Tensor:
    """Weighted sums of bilinear samples.

    Args:
        values: one map per level, B×C×h×w; the C channels are M heads of C / M.
        locations: B×Q×M×P×2, (x, y) in [0, 1] of the image; P = sum(num_points), the points of level 0 first. Samples
            outside the map are 0.
        weights: B×Q×M×P.
        num_points: points per level.

    Returns:
        B×Q×C.
    """
    num_heads = locations.shape[2]
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # BM×Q×P×2
    sampled = [
        F.grid_sample(
            value.unflatten(1, (num_heads, -1)).flatten(0, 1),
            points,
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        for value, points in zip(values, grid.split(list(num_points), dim=2), strict=True)
    ]
    heads = (torch.cat(sampled, dim=-1) * weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)).sum(dim=-1)
    return heads.unflatten(0, (-1, num_heads)).flatten(1, 2).transpose(1, 2)
