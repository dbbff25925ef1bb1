"""An exponential moving average of the student: what is validated, saved, and refined."""

from __future__ import annotations

import copy
import math
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Model = TypeVar("Model", bound=nn.Module)


class ModelEma(Generic[Model]):
    """Averaged parameters and batch norm statistics; counters are copied.

    The decay of update n is decay · (1 − e^(−n / warmup)): while n is small, the average quickly forgets its starting
    point.

    Args:
        model: not wrapped by DDP; copied.
        decay: final decay; the average looks back about 1 / (1 − decay) steps.
        warmup: time constant of the decay's rise, in steps; 0 for none.
    """

    def __init__(self, model: Model, decay: float, warmup: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay: float = decay
        self.warmup = warmup
        self.num_updates: int = 0

    def decay_at(self, update: int) -> float:
        """Decay of an update, counted from 1."""
        return self.decay * (1 - math.exp(-update / self.warmup)) if self.warmup > 0 else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average toward `model`; called once per optimizer step."""
        self.num_updates += 1
        average = get_ema_multi_avg_fn(self.decay_at(self.num_updates))
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        average([mine for mine, _ in floating], [theirs for _, theirs in floating], self.num_updates)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)

    @torch.no_grad()
    def restore_buffers(self, model: nn.Module) -> None:
        """Give `model` the averaged batch norm statistics, after a forward pass has put NaN into its own."""
        for mine, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            theirs.copy_(mine)

    def restart(self, model: nn.Module, decay: float) -> None:
        """Begin the refinement stage: `model` continues from the averaged weights, and the average with a new decay.

        The number of updates is kept. Resetting it would make the average follow the model closely for a while, and so
        lose what it has averaged.
        """
        model.load_state_dict(self.module.state_dict())
        self.decay = decay

    def state_dict(self) -> dict[str, Any]:
        """Weights, decay and counter."""
        return {"module": self.module.state_dict(), "decay": self.decay, "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.module.load_state_dict(state["module"])
        self.decay = state["decay"]
        self.num_updates = state["num_updates"]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
