"""Every model can be taught: F5 has the width that the injector expects, and everything gets a gradient."""

from __future__ import annotations

import pytest
import torch

from rtdetrv4.assembly import build_detector
from rtdetrv4.assembly.models import find_variant
from rtdetrv4.assembly.training import build_criterion, loss_weights
from rtdetrv4.config import VARIANTS, load_recipe, override
from rtdetrv4.distillation import DistillationStudent, Injector, alignment_loss
from rtdetrv4.losses import weighted_sum
from rtdetrv4.types import Targets

TEACHER_DIM = 24
RECTANGLE, SQUARE = (96, 160), (160, 160)
"""Every layer takes any multiple of 32 alike, so a square is shown only to the smallest of each family."""
SMALLEST = ("rtdetrv4-n", "deim-n", "dfine-n", "rtdetrv2-r18", "deim-rtdetrv2-r18", "deimv2-atto", "deimv2-n")


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "test"])
@pytest.mark.slow
def test_a_step_of_distillation(name: str) -> None:
    changes = {"model.pretrained_backbone": False, "model.num_queries": 10, "model.num_denoising": 4}
    recipe, variant = override(load_recipe(name), changes), find_variant(name)
    student = DistillationStudent(build_detector(recipe, 3), Injector(variant.hidden_dim, TEACHER_DIM)).train()
    criterion, weights = build_criterion(recipe.loss, variant), loss_weights(recipe.loss) | {"distill": 5.0}
    targets = Targets(torch.tensor([0, 2]), torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.3, 0.5]]), (2,))
    for height, width in (RECTANGLE, SQUARE) if name in SMALLEST else (RECTANGLE,):
        grid_hw = (height // 32, width // 32)
        student.zero_grad()
        output, projected = student(torch.rand(1, 3, height, width), targets)
        assert projected is not None
        assert projected.shape == (1, TEACHER_DIM, *grid_hw)

        distill = alignment_loss(projected, torch.randn(1, TEACHER_DIM, *grid_hw))
        last = "mix.conv.weight" if variant.encoder == "lite" else "linear2.weight"
        (reached,) = torch.autograd.grad(distill, [student.aifi.get_parameter(last)], retain_graph=True)
        assert reached.abs().sum() > 0
        terms = criterion(output, targets) | {"distill": distill}
        weighted_sum(terms, weights).backward()
        assert all(term.isfinite() for term in terms.values())
        without = [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []
        assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)
