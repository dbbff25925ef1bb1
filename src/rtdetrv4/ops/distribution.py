"""Edge distributions of fine-grained distribution refinement: their support W(n), decoding and encoding.

Each edge of a box (left, top, right, bottom) is a distribution over R = reg_max + 1 bins. Bin n stands for the offset
W(n), in units of the initial box's width or height divided by `reg_scale`; W is fine around zero and coarse far out.

References:
    D-FINE, arXiv 2410.13842, section 4.1 (equations 1 to 3) and section 4.2 for the targets.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from rtdetrv4.ops.boxes import cxcywh_from_xyxy


def weighting(reg_max: int, reg_scale: float, up: float = 0.5) -> Tensor:
    """W(n): the R = reg_max + 1 offsets of the bins, increasing, antisymmetric, float32.

    The inner bins grow geometrically up to ±up·reg_scale; the two outer ones are at ±2·up·reg_scale.
    """
    bound = torch.tensor([abs(up) * abs(reg_scale)])
    # Powers are rounded to float32, as in the code that trained the released checkpoints.
    step = (bound + 1) ** (2 / (reg_max - 2))
    right = torch.cat([step**n - 1 for n in range(1, reg_max // 2)])
    return torch.cat((-2 * bound, -right.flip(0), torch.zeros(1), right, 2 * bound))


def expected_offset(corners: Tensor, weights: Tensor) -> Tensor:
    """Expectation of W(n): logits (…, 4, R) and `weights` (R,) → (…, 4), in their dtype even under autocast."""
    device = corners.device.type
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        return corners.softmax(dim=-1) @ weights


def decode_boxes(reference: Tensor, offsets: Tensor, reg_scale: float) -> Tensor:
    """Move the edges of `reference` (…, 4; cxcywh) outward by `offsets` (…, 4; l, t, r, b in W units) → cxcywh."""
    unit = reference[..., 2:] / reg_scale
    low = reference[..., :2] - (0.5 * reg_scale + offsets[..., :2]) * unit
    high = reference[..., :2] + (0.5 * reg_scale + offsets[..., 2:]) * unit
    return cxcywh_from_xyxy(torch.cat((low, high), dim=-1))


class EdgeTarget(NamedTuple):
    """Where the true edges lie among the bins: between `left_bin` and `left_bin + 1`, with weights that sum to 1."""

    left_bin: Tensor
    """(…, 4) int64 in [0, reg_max − 1]."""
    weight_left: Tensor
    weight_right: Tensor


def encode_edges(reference: Tensor, boxes_xyxy: Tensor, weights: Tensor, reg_scale: float) -> EdgeTarget:
    """The bins that reproduce `boxes_xyxy` (…, 4) from `reference` (…, 4; cxcywh); inverse of `decode_boxes`.

    An offset beyond an outermost bin goes to that bin entirely.
    """
    unit = reference[..., 2:] / reg_scale + 1e-16
    low = (reference[..., :2] - boxes_xyxy[..., :2]) / unit - 0.5 * reg_scale
    high = (boxes_xyxy[..., 2:] - reference[..., :2]) / unit - 0.5 * reg_scale
    offsets = torch.cat((low, high), dim=-1)
    last = len(weights) - 1
    index = torch.searchsorted(weights, offsets.contiguous(), right=True) - 1
    left_bin = index.clamp(0, last - 1)
    below, above = weights[left_bin], weights[left_bin + 1]
    weight_right = ((offsets - below) / (above - below)).clamp(0, 1)
    return EdgeTarget(left_bin, 1 - weight_right, weight_right)
