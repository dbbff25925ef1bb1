"""Parameter counts and optimizer groups of the released models, name by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import golden
from rtdetrv4.assembly import create_model
from rtdetrv4.config import load_recipe
from rtdetrv4.distillation import DistillationStudent, Injector
from rtdetrv4.models.deployment import without_training_parts
from rtdetrv4.training.optimizer import parameter_groups
from rtdetrv4.weights.convert import our_name


def build(name: str) -> DistillationStudent:
    """The student as it is trained, without memory for its weights."""
    facts = golden.RECIPES[name]["model"]["encoder"]
    with torch.device("meta"):
        detector = create_model(name.replace("_", "-"))
        teacher_dim = facts.get("distill_teacher_dim")
        return DistillationStudent(detector, Injector(facts["hidden_dim"], teacher_dim) if teacher_dim else None)


@pytest.mark.parametrize("name", golden.RECIPES)
def test_optimizer_groups(name: str) -> None:
    facts = golden.RECIPES[name]
    student = build(name)
    optimizer = load_recipe(name.replace("_", "-")).optimizer
    names = {id(p): key.removeprefix("detector.") for key, p in student.named_parameters()}
    ours = {
        names[id(parameter)]: _settings(group)
        for group in parameter_groups(
            student,
            lr=optimizer.lr,
            backbone_lr=optimizer.backbone_lr,
            weight_decay=optimizer.weight_decay,
            backbone_norm_lr=optimizer.backbone_norm_lr,
            decay_backbone_norm=optimizer.decay_backbone_norm,
            decay_bias=optimizer.decay_bias,
        )
        for parameter in group["params"]
    }
    released = {our_name(key): _settings(group) for group in facts["param_groups"] for key in group["names"]}
    assert {key: (ours.get(key), value) for key, value in released.items() if ours.get(key) != value} == {}
    assert ours.keys() == released.keys()
    assert sum(p.numel() for p in student.parameters() if p.requires_grad) == facts["trainable_params"]


def _settings(group: dict[str, Any]) -> tuple[float, float]:
    return round(group["lr"], 12), round(group["weight_decay"], 12)


@pytest.mark.parametrize("name", ["rtdetrv4_s", "rtdetrv4_m", "rtdetrv4_l", "rtdetrv4_x", "deim_n", "dfine_m"])
def test_deployed_parameters(name: str) -> None:
    """The released count, less what the released deployment leaves in and ours does not."""
    student = build(name)
    detector = student.detector
    unfused = [detector.backbone, detector.hybrid_encoder.projections, detector.memory_projections]
    left_in = [
        sum(parameter.numel() for parameter in student.injector.parameters()) if student.injector else 0,
        detector.denoising.class_embedding.weight.numel(),
        # A fused batch norm leaves one bias where the norm had a weight and a bias.
        sum(m.num_features for part in unfused if part for m in part.modules() if isinstance(m, nn.BatchNorm2d)),
        2,  # `up` and `reg_scale`, constants that the released code counts
    ]
    deployed = sum(parameter.numel() for parameter in without_training_parts(detector).parameters())
    assert deployed == golden.RECIPES[name]["deploy_params"] - sum(left_in)
