from __future__ import annotations

import pytest
import torch
from torch import nn

from rtdetrv4.assembly import create_model
from rtdetrv4.distillation import DistillationStudent, Injector
from rtdetrv4.training import adamw, parameter_groups

WEIGHT_DECAY = 0.1


@pytest.fixture(scope="module")
def student():
    model = create_model("test", num_classes=3, num_queries=20, num_denoising=8)
    return DistillationStudent(model, Injector(32, 16))


def settings_by_name(student: nn.Module, **options) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(student, lr=1.0, backbone_lr=0.5, weight_decay=WEIGHT_DECAY, **options)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    found = {}
    for group in groups:
        assert group["initial_lr"] == group["lr"]
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    return found


def test_every_trainable_parameter_is_in_one_of_few_groups(student):
    found = settings_by_name(student)
    assert set(found) == {name for name, p in student.named_parameters() if p.requires_grad}
    assert len(set(found.values())) == 3


def one(found: dict[str, tuple[float, float]], *parts: str) -> tuple[float, float]:
    values = {value for name, value in found.items() if all(part in name for part in parts)}
    assert len(values) == 1, (parts, values)
    return values.pop()


def test_what_a_parameter_belongs_to_decides(student):
    found = settings_by_name(student, backbone_norm_lr="head", decay_backbone_norm=False, decay_bias=False)
    assert one(found, "backbone", "conv.weight") == (0.5, WEIGHT_DECAY)
    assert one(found, "backbone", ".bn.") == (1.0, 0.0)
    assert one(found, "backbone", ".lab.") == (0.5, WEIGHT_DECAY)  # HGNetV2's learnable affine, its bias too
    assert one(found, "hybrid_encoder", "norm") == (1.0, 0.0)
    assert one(found, "decoder", "in_proj.bias") == (1.0, 0.0)
    assert one(found, "decoder", "in_proj.weight") == (1.0, WEIGHT_DECAY)
    assert one(found, "injector", "weight") == (1.0, WEIGHT_DECAY)
    assert one(found, "injector", "bias") == (1.0, 0.0)


def test_options_move_norms_of_the_backbone_and_biases_of_the_head(student):
    found = settings_by_name(student, backbone_norm_lr="backbone", decay_backbone_norm=True, decay_bias=True)
    assert one(found, "backbone") == (0.5, WEIGHT_DECAY)
    assert one(found, "injector") == (1.0, WEIGHT_DECAY)
    assert one(found, "hybrid_encoder", "norm") == (1.0, 0.0)


def test_frozen_parameters_are_left_out(student):
    model = create_model("test", num_classes=3)
    model.backbone.requires_grad_(False)
    found = settings_by_name(model)
    assert found
    assert not [name for name in found if name.startswith("backbone")]


def test_adamw_steps_each_group_at_its_rate():
    weights = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))]
    groups = [{"params": [w], "lr": lr, "weight_decay": 0.0} for w, lr in zip(weights, (0.1, 0.01), strict=True)]
    optimizer = adamw(groups, betas=(0.8, 0.9))
    sum(weights).backward()
    optimizer.step()
    assert [1 - w.item() for w in weights] == pytest.approx([0.1, 0.01])
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
