"""Deep Semantic Injector: align F5 with a teacher's features, in training only.

References:
    RT-DETRv4, arXiv 2510.25257, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Injector(nn.Module):
    """One linear layer from the student's channels to the teacher's, applied at every position.

    The paper's ablation: a single linear layer beats deeper projectors, and F5 beats every other place.
    """

    def __init__(self, dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.projector: nn.Linear = nn.Linear(dim, teacher_dim)

    def forward(self, f5: Tensor) -> Tensor:
        """B×C×h×w → B×D×h×w."""
        return self.projector(f5.movedim(1, -1)).movedim(-1, 1)


def unit_parts(features: Tensor, parts: Mapping[str, int], dim: int = 1) -> Tensor:
    """Features of one or more teachers, those of each with length 1 along `dim`; `parts` are their widths by name."""
    return torch.cat([F.normalize(part, dim=dim) for part in features.split(list(parts.values()), dim=dim)], dim=dim)


def alignment_terms(
    projected: Tensor, teacher_map: Tensor, parts: Mapping[str, int], valid: Tensor | None = None
) -> dict[str, Tensor]:
    """L_DSI with each of one or more teachers, by name; see `alignment_loss`.

    Args:
        projected: B×D×h×w.
        teacher_map: B×D×h×w.
        parts: the widths of the teachers by name, of which D is the sum.
        valid: B×h×w.
    """
    widths = list(parts.values())
    pairs = zip(parts, projected.split(widths, dim=1), teacher_map.split(widths, dim=1), strict=True)
    return {name: alignment_loss(own, wanted, valid) for name, own, wanted in pairs}


def alignment_loss(projected: Tensor, teacher_map: Tensor, valid: Tensor | None = None) -> Tensor:
    """L_DSI: the mean over positions of 1 − cos, in float32, a scalar in [0, 2].

    Args:
        projected: B×D×h×w.
        teacher_map: B×D×h×w, without gradient.
        valid: B×h×w, boolean: the positions that count, such as those that are not padding; None counts all. Without
            any, the loss is 0.
    """
    distance = 1 - F.cosine_similarity(projected.float(), teacher_map.float(), dim=1)
    if valid is None:
        return distance.mean()
    return (distance * valid).sum() / valid.sum().clamp(min=1)
