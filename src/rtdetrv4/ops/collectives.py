"""Collective calls of all ranks, which do nothing if there is only one."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks; 1 without an initialized process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_ranks(values: Tensor) -> Tensor:
    """Elementwise mean over all ranks, on every rank; a collective call."""
    ranks = world_size()
    if ranks == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / ranks


def texts_of_ranks(text: str) -> list[str]:
    """Every rank's text, on every rank; a collective call."""
    texts = [text] * world_size()
    if len(texts) > 1:
        dist.all_gather_object(texts, text)
    return texts
