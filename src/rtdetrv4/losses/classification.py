"""Classification losses whose target is the quality (IoU) of the matched box.

Both are dense sums over all queries and classes, in which only the matched entries differ from "background". They are
computed as the background term of every entry plus a correction at the M matched ones, so no dense target is built.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Quality(NamedTuple):
    """The matched entries of H heads: where they are, and how good their boxes are."""

    image: Tensor
    """H×M."""
    query: Tensor
    """H×M."""
    label: Tensor
    """H×M."""
    iou: Tensor
    """H×M in [0, 1], detached."""


def matchability_aware_loss(logits: Tensor, quality: Quality, *, gamma: float = 1.5) -> Tensor:
    """MAL: H×B×Q×K logits → (H,), summed, not normalized.

    References:
        DEIM, arXiv 2412.04234, equation 2: target q^γ with weight 1 at the match, weight p^γ elsewhere.
    """
    background = logits.detach().sigmoid().pow(gamma)
    target = quality.iou.pow(gamma)
    return _sum_terms(logits, background, quality, matched_weight=1.0, target=target)


def varifocal_loss(logits: Tensor, quality: Quality, *, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """VFL: H×B×Q×K logits → (H,), summed, not normalized.

    References:
        VarifocalNet, arXiv 2008.13367, equation 2: target q with weight q at the match, weight α·p^γ elsewhere.
    """
    background = alpha * logits.detach().sigmoid().pow(gamma)
    return _sum_terms(logits, background, quality, matched_weight=quality.iou, target=quality.iou)


def _sum_terms(
    logits: Tensor, background: Tensor, quality: Quality, matched_weight: Tensor | float, target: Tensor
) -> Tensor:
    dense = (background * F.softplus(logits)).sum(dim=(1, 2, 3))
    head = torch.arange(len(logits), device=logits.device)[:, None]
    at_match = (head, quality.image, quality.query, quality.label)
    x = logits[at_match]
    matched = matched_weight * (F.softplus(x) - target * x) - background[at_match] * F.softplus(x)
    return dense + matched.sum(dim=1)
