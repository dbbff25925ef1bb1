"""Box formats and overlaps. Everything broadcasts and is differentiable; nothing checks values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def xyxy_from_cxcywh(boxes: Tensor) -> Tensor:
    """(…, 4) cxcywh → (…, 4) xyxy, in the same frame; a negative width or height counts as 0.

    Edge distributions can put the left edge of a box to the right of its right one. The GIoU of such a box would be
    unbounded, and a detector trained from scratch does exploit that.
    """
    center, size = boxes[..., :2], boxes[..., 2:].clamp(min=0)
    return torch.cat((center - 0.5 * size, center + 0.5 * size), dim=-1)


def cxcywh_from_xyxy(boxes_xyxy: Tensor) -> Tensor:
    """(…, 4) xyxy → (…, 4) cxcywh, in the same frame."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat((0.5 * (low + high), high - low), dim=-1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of `x`, clamped to [0, 1]; `eps` bounds the result to ±log(1/eps) ≈ ±11.5."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def full_precision(x: Tensor) -> Tensor:
    """`x` in at least float32: box arithmetic loses pixels in bfloat16 and overflows in float16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Overlap(NamedTuple):
    """IoU in [0, 1] and generalized IoU in [-1, 1]."""

    iou: Tensor
    giou: Tensor


def overlap(a_xyxy: Tensor, b_xyxy: Tensor) -> Overlap:
    """IoU and GIoU of boxes paired by broadcasting: (…, 4) with (…, 4) → (…).

    Boxes without area are valid input: their IoU is 0, never NaN. Widths and heights must not be negative, which
    `xyxy_from_cxcywh` ensures. The matrix of all pairs is `overlap(a[:, None], b[None])`.

    References:
        Rezatofighi et al., Generalized Intersection over Union, arXiv 1902.09630, algorithm 1.
    """
    tiny = 1e-12
    area_a = (a_xyxy[..., 2] - a_xyxy[..., 0]) * (a_xyxy[..., 3] - a_xyxy[..., 1])
    area_b = (b_xyxy[..., 2] - b_xyxy[..., 0]) * (b_xyxy[..., 3] - b_xyxy[..., 1])
    inner = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    inner = inner.clamp(min=0)
    intersection = inner[..., 0] * inner[..., 1]
    union = area_a + area_b - intersection
    outer = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull = outer[..., 0] * outer[..., 1]
    iou = intersection / union.clamp(min=tiny)
    return Overlap(iou, iou - (hull - union) / hull.clamp(min=tiny))
