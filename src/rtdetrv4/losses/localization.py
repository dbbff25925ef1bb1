"""Box losses on matched pairs: L1, GIoU, and the two local terms on edge distributions."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from rtdetrv4.ops.boxes import Overlap, overlap, xyxy_from_cxcywh
from rtdetrv4.ops.distribution import EdgeTarget


class BoxTerms(NamedTuple):
    """(H,) sums over matched pairs, and the pairs' IoU."""

    bbox: Tensor
    giou: Tensor
    iou: Tensor
    """H×M, attached."""


def box_losses(predicted: Tensor, true: Tensor) -> BoxTerms:
    """L1 of cxcywh and 1 − GIoU of matched boxes, both H×M×4, summed over M."""
    paired: Overlap = overlap(xyxy_from_cxcywh(predicted), xyxy_from_cxcywh(true))
    return BoxTerms((predicted - true).abs().sum(dim=(1, 2)), (1 - paired.giou).sum(dim=1), paired.iou)


def fine_grained_localization(corners: Tensor, target: EdgeTarget, iou: Tensor) -> Tensor:
    """FGL: cross-entropy to the two bins around the true offset, weighted by IoU; → (L,), summed.

    Args:
        corners: L×M×4×R logits of the matched queries.
        target: M×4.
        iou: L×M, detached: the weight of each pair.

    References:
        D-FINE, arXiv 2410.13842, equation 6.
    """
    log_p = corners.log_softmax(dim=-1)
    left = target.left_bin.expand(corners.shape[:-1])[..., None]
    entropy = -(
        log_p.gather(-1, left).squeeze(-1) * target.weight_left
        + log_p.gather(-1, left + 1).squeeze(-1) * target.weight_right
    )
    return (entropy * iou[..., None]).sum(dim=(1, 2))


class EdgeBalance(NamedTuple):
    """Weights of the matched and the unmatched part of DDF: the square root of the number of edges in each."""

    matched: float
    unmatched: float


def edge_balance(num_matched: int, num_queries: int) -> EdgeBalance:
    """The balance for the numbers of matched queries and of all queries in a batch.

    The released code multiplies both numbers of edges by 8 / B, which cancels in the mixture and is left out.
    """
    return EdgeBalance((4 * num_matched) ** 0.5, (4 * (num_queries - num_matched)) ** 0.5)


def decoupled_distillation_focal(
    corners: Tensor,
    teacher_corners: Tensor,
    teacher_scores: Tensor,
    image: Tensor,
    query: Tensor,
    iou: Tensor,
    balance: EdgeBalance,
    *,
    temperature: float = 5.0,
) -> Tensor:
    """DDF: earlier layers learn the edge distributions of the last one; → (L−1,).

    Args:
        corners: (L−1)×B×Q×4×R logits of the earlier layers.
        teacher_corners: B×Q×4×R of the last layer.
        teacher_scores: B×Q best class probabilities of the last layer: the weight of unmatched queries.
        image: (M,) of the matched queries.
        query: (M,) of the matched queries.
        iou: (L−1)×M, detached: the weight of matched queries.
        balance: mixture of the two parts.
        temperature: T of the softmax.

    References:
        D-FINE, arXiv 2410.13842, equation 7.
    """
    layers, batch, num_queries = corners.shape[:3]
    teacher = (teacher_corners.detach() / temperature).log_softmax(dim=-1)
    student = (corners / temperature).log_softmax(dim=-1)
    divergence = F.kl_div(student, teacher.expand_as(student), reduction="none", log_target=True)
    divergence = temperature**2 * divergence.sum(dim=(-1, -2))  # (L−1)×B×Q, summed over the four edges
    at_match = divergence[:, image, query]
    weighted = divergence * teacher_scores.detach()
    unmatched = weighted.sum(dim=(1, 2)) - weighted[:, image, query].sum(dim=1)
    matched = (at_match * iou).sum(dim=1)
    num_matched = query.numel()
    num_unmatched = batch * num_queries - num_matched
    mixed = balance.matched * matched / (4 * max(num_matched, 1)) + balance.unmatched * unmatched / (
        4 * max(num_unmatched, 1)
    )
    total = balance.matched + balance.unmatched
    return mixed / total if total > 0 else corners.new_zeros(layers)
