"""What each of two processes does in `unit/distillation/test_tap.py`, where a new process can import it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rtdetrv4.distillation import Modulation, Tap, Teacher
from rtdetrv4.errors import ConfigError

IMAGES = 4
KINDS = {"plain": (False, False), "spare": (True, False), "spare, maps in a tuple": (True, True)}
"""Detectors by name, as arguments of `make_tapped`."""


class OfMaps(nn.Conv2d):
    """A layer whose input is not a tensor, but has some."""

    def forward(self, maps: Any) -> Tensor:
        return super().forward(maps[0]["map"])


class Detector(nn.Module):
    """A layer that gives F5, and what else a detector has. `spare` gets no gradient."""

    def __init__(self, spare: bool = False, nested: bool = False) -> None:
        super().__init__()
        self.encoder = (OfMaps if nested else nn.Conv2d)(3, 4, 32, stride=32)
        self.head = nn.Conv2d(4, 2, 1)
        self.spare = nn.Linear(2, 2) if spare else None
        self.nested = nested

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(({"map": images}, None) if self.nested else images))


def make_teacher(dim: int = 6) -> Teacher:
    network = nn.Conv2d(3, dim, 32, stride=32, bias=False)
    nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(1))
    return Teacher(network, name="patches", dim=dim, stride=32)


def make_tapped(spare: bool = False, nested: bool = False) -> tuple[Detector, Tap]:
    model = Detector(spare, nested)
    modulation = Modulation(5.0, rho=3, delta=0.5, default_weight=10.0, rule="gam")
    return model, Tap(model, "encoder", make_teacher(), modulation, dim=4)


def make_images() -> Tensor:
    return torch.rand(IMAGES, 3, 64, 96, generator=torch.Generator().manual_seed(2))


def step(wrapped: nn.Module, tap: Tap, images: Tensor) -> None:
    loss = wrapped(images).square().mean() + tap.loss(images)
    loss.backward()
    tap.observe()


def run(rank: int, folder: Path, port: int) -> None:
    """A step as one of two ranks, with half the images; leaves weights, gradients and λ in <kind><rank>.pt."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        for kind, (spare, nested) in KINDS.items():
            torch.manual_seed(rank)  # DDP makes the weights equal
            model, tap = make_tapped(spare, nested)
            wrapped = DistributedDataParallel(model, find_unused_parameters=spare)
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            step(wrapped, tap, make_images().chunk(2)[rank])
            gradients = {name: p.grad for name, p in model.named_parameters() if "spare" not in name}
            facts = {"weights": weights, "gradients": gradients, "report": tuple(tap.end_epoch())[:2]}
            torch.save(facts, folder / f"{kind}{rank}.pt")
            with pytest.raises(ConfigError, match="Make the tap first"):
                Tap(wrapped, "encoder", make_teacher(), Modulation(5.0), dim=4)
    finally:
        dist.destroy_process_group()
