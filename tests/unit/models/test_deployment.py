"""Deployed models compute the same as the models they are made from, in float64 to the last digits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from rtdetrv4.assembly import create_model
from rtdetrv4.config import VARIANTS
from rtdetrv4.models import DetectionModel, fuse
from rtdetrv4.models.deployment import DeployedQuerySelection
from rtdetrv4.models.fusing import Clamp
from rtdetrv4.models.layers import ConvNorm
from rtdetrv4.models.query_selection import anchor_logits

BOX = {"head": "box", "encoder_blocks": "csp", "activation": "relu", "num_points": (4, 4, 4)}
SUMMED = {
    "summed_fusion": True,
    "swiglu": True,
    "projected_selection": False,
    "update_positions": False,
    "query_position_layers": 3,
}
LITE = {
    **SUMMED,
    "encoder": "lite",
    "out_indices": (2,),
    "last_stage": (48, 1, 3),
    "gated": False,
    "share_box_head": True,
    "num_points": (4, 2),
}


def irregular(name: str) -> DetectionModel:
    """A model in float64 in which every wrong fold shows."""
    torch.manual_seed(0)
    model = create_model(name, 3).double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".lab." in key:  # scales of both signs
                parameter.add_(torch.randn_like(parameter))
            elif parameter.ndim == 1 or key.startswith(("decoder", "query_selection")):
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.train()(torch.rand(2, 3, 64, 64, dtype=torch.float64))
    return model.eval()


@pytest.fixture(params=[{}, BOX], ids=["distribution", "box"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DetectionModel:
    monkeypatch.setattr("rtdetrv4.assembly.models.VARIANTS", {"test": replace(VARIANTS["test"], **request.param)})
    return irregular("test")


@pytest.mark.parametrize("size_hw", [(64, 64), (96, 448)])
def test_outputs_stay_the_same(model: DetectionModel, size_hw: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size_hw, dtype=torch.float64)
    state = torch.random.get_rng_state()
    deployed = fuse(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        expected, actual = model(images), deployed(images)
    # Anchors and positions are float32 in both.
    torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=1e-8)
    torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=1e-8)
    assert expected.logits.std() > 0.1


@pytest.mark.parametrize("parts", [SUMMED, LITE], ids=["summed", "lite"])
def test_deimv2_stays_the_same(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtdetrv4.assembly.models.VARIANTS", {"test": replace(VARIANTS["test"], **parts)})
    model = irregular("test")
    images = torch.rand(2, 3, 96, 448, dtype=torch.float64)
    deployed = fuse(model)
    with torch.no_grad():
        expected, actual = model(images), deployed(images)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=1e-8)
    torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=1e-8)
    assert expected.logits.std() > 0.1
    assert not [each for each in deployed.modules() if isinstance(each, nn.BatchNorm2d)]


def test_affine_activations_are_clamps(model: DetectionModel) -> None:
    deployed = fuse(model)
    clamps = [module for module in deployed.modules() if isinstance(module, Clamp)]
    affine = [key for key, _ in model.named_parameters() if key.endswith(".lab.scale")]
    handed_on = 1 + 5  # in the stem and in each block, the next convolution adds the bias
    assert len(clamps) == len(affine) - handed_on > 20
    assert {clamp.low is None for clamp in clamps} == {True, False}
    assert not [key for key, _ in deployed.named_parameters() if ".lab." in key]


def test_cells_without_an_anchor_are_blank(model: DetectionModel) -> None:
    """On a map 96 cells wide, the outermost have no anchor, however well they score."""
    pyramid = [torch.randn(1, 32, 2, 96, dtype=torch.float64), torch.randn(1, 32, 1, 48, dtype=torch.float64)]
    model.query_selection.num_queries = 2 * 96 + 48
    expected = model.query_selection(pyramid)
    actual = DeployedQuerySelection(model.query_selection)(pyramid)
    for name, tensor in expected._asdict().items():
        torch.testing.assert_close(getattr(actual, name), tensor, rtol=0, atol=1e-8)
    invalid = anchor_logits([(2, 96), (1, 48)], device=torch.device("cpu")).isinf().all(dim=-1).sum()
    assert invalid == (actual.content == DeployedQuerySelection(model.query_selection).blank).all(dim=-1).sum() == 4


def test_convolutions_are_folded_where_that_is_cheaper(model: DetectionModel, request: pytest.FixtureRequest) -> None:
    """A projection of I to C channels and convolutions to O cost I·C + C·O, and folded I·O.

    With I = 256 and C = 32, that is more for ELAN's O = 64, and less for the O = 32 of RT-DETR's block, whose lateral
    convolutions have an activation.
    """
    is_box = "box" in request.node.callspec.id
    encoder = fuse(model).get_submodule("hybrid_encoder")
    kinds = {
        name: {type(each) for each in encoder.get_submodule(name).children()} for name in ("projections", "laterals")
    }
    assert kinds["projections"] == {nn.Identity if is_box else ConvNorm}
    assert kinds["laterals"] == {ConvNorm if is_box else nn.Identity}
