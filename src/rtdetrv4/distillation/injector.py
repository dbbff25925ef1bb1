"""Deep Semantic Injector: align F5 with a teacher's features, in training only.

References:
    RT-DETRv4, arXiv 2510.25257, section 3.2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Injector(nn.Module):
    """One linear layer from the student's channels to the teacher's, applied at every position.

    The paper's ablation: a single linear layer beats deeper projectors, and F5 beats every other place.
    """

    def __init__(self, dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.projector = nn.Linear(dim, teacher_dim)

    def forward(self, f5: Tensor) -> Tensor:
        """B×C×h×w → B×D×h×w."""
        return self.projector(f5.movedim(1, -1)).movedim(-1, 1)


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
