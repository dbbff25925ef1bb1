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


def bilinear_by_gather(
    values: Tensor,
    points: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """What `torch.nn.functional.grid_sample` returns, from gathers and products, for runtimes that get it wrong.

    Args:
        values: N×C×h×w.
        points: N×Q×P×2, (x, y) in [-1, 1] of the map.
        mode: only "bilinear".
        padding_mode: only "zeros": samples outside the map are 0.
        align_corners: only False.

    Returns:
        N×C×Q×P.
    """
    assert (mode, padding_mode, align_corners) == ("bilinear", "zeros", False)
    channels, height, width = values.shape[1:]
    x, y = (points + 1).unbind(-1)
    x, y = x * (width / 2) - 0.5, y * (height / 2) - 0.5
    left, top = x.floor(), y.floor()
    right_share, bottom_share = x - left, y - top
    cells = values.flatten(2)
    sampled = None
    for column, across in ((left, 1 - right_share), (left + 1, right_share)):
        for row, down in ((top, 1 - bottom_share), (top + 1, bottom_share)):
            is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            # Integers before they are multiplied: float16 cannot count beyond 2048.
            index = torch.where(is_inside, row.long() * width + column.long(), 0)
            picked = cells.gather(2, index.flatten(1)[:, None].expand(-1, channels, -1)).view(
                -1, channels, *index.shape[1:]
            )
            part = picked * (across * down * is_inside)[:, None]
            sampled = part if sampled is None else sampled + part
    assert sampled is not None
    return sampled
