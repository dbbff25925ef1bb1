"""Save to and restore from checkpoints everything that changes during a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from rtdetrv4.distillation import DistillationStudent, Modulation
from rtdetrv4.errors import ConfigError
from rtdetrv4.training.checkpoint import rng_state, set_rng_state
from rtdetrv4.training.ema import ModelEma
from rtdetrv4.training.plan import Plan
from rtdetrv4.training.position import Position
from rtdetrv4.training.pseudo_labels import PseudoLabels

logger: logging.Logger = logging.getLogger(__name__)


@dataclass
class RunState:
    """The owners of state, each with its own `state_dict`, in one place.

    The teacher is not one of them: it does not change.

    Args:
        student: not wrapped by DDP.
        ema: average of the student.
        optimizer: optimizer of the student.
        modulation: owner of λ, if there is one.
        plan: constant; stored to check that a run resumes with the plan that it started with.
        accelerator: owner of the fp16 loss scale.
        recipe: plain values that describe how the run was made; stored for readers of a checkpoint.
        metadata: plain values that describe how to build and use the detector; stored for the same readers.
        pseudo_labels: owner of these, if there are any.
        position: current epoch, step and best score.
    """

    student: DistillationStudent
    ema: ModelEma[DistillationStudent]
    optimizer: torch.optim.Optimizer
    modulation: Modulation | None
    plan: Plan
    accelerator: Accelerator
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pseudo_labels: PseudoLabels | None = None
    position: Position = field(default_factory=Position)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume exactly; a collective call."""
        scaler = self.accelerator.scaler
        return {
            "student": self.student.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "modulation": None if self.modulation is None else self.modulation.state_dict(),
            "pseudo_labels": None if self.pseudo_labels is None else self.pseudo_labels.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "position": asdict(self.position),
            "plan": asdict(self.plan),
            "recipe": dict(self.recipe),
            "metadata": dict(self.metadata),
            "rng": gather_object([rng_state(self.accelerator.device)]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from where `state` was saved.

        Raises:
            ConfigError: the saved run had another plan.
        """
        plan = asdict(self.plan)
        changed = [
            f"{name} {state['plan'].get(name)}, now {plan[name]}"
            for name in plan
            if state["plan"].get(name) != plan[name]
        ]
        if changed:
            raise ConfigError(
                f"A run must resume with the plan that it started with, which had {'; '.join(changed)}. Resume with "
                "the same settings, data and batch, or start a new run from its weights.safetensors."
            )
        scaler = self.accelerator.scaler
        self.student.load_state_dict(state["student"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        _lay_out_as_parameters(self.optimizer)
        if self.modulation is not None and state["modulation"] is not None:
            self.modulation.load_state_dict(state["modulation"])
        if self.pseudo_labels is not None and state.get("pseudo_labels") is not None:
            self.pseudo_labels.load_state_dict(state["pseudo_labels"])
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])
        self.position = Position(**state["position"])
        before, now = len(state["rng"]), self.accelerator.num_processes
        if before == now:
            set_rng_state(state["rng"][self.accelerator.process_index], self.accelerator.device)
        else:
            logger.warning("The run had %d processes and now has %d: it will not repeat bit for bit.", before, now)


def is_complete(state: Mapping[str, Any], patience: int | None) -> bool:
    """Whether a run that resumes from a training state has nothing more to train.

    Args:
        state: the content of last.pt.
        patience: that of the run, see `Trainer`.
    """
    position = Position(**state["position"])
    return position.epoch >= state["plan"]["epochs"] or position.is_out_of_patience(patience)


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give averages the memory format of their parameter, which may have been different when they were saved.

    Fused kernels refuse a mixture.
    """
    for parameter, averages in optimizer.state.items():
        for name, average in averages.items():
            if average.shape == parameter.shape and average.stride() != parameter.stride():
                averages[name] = torch.empty_like(parameter, dtype=average.dtype).copy_(average)
