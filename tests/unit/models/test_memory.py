"""Activation checkpointing changes memory and time, and numbers by no more than rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from rtdetrv4.losses import Criterion, HungarianMatcher, weighted_sum
from rtdetrv4.models import (
    AIFI,
    CCFF,
    Backbone,
    BoxDecoder,
    ContrastiveDenoising,
    DecoderLayer,
    DetectionModel,
    HybridEncoder,
    QuerySelection,
    checkpoint_activations,
    fuse,
)
from rtdetrv4.types import Target
from small_training import ROUNDING, assert_same, make_detector


def box_detector(backbone: str) -> DetectionModel:
    body = Backbone(backbone, (-3, -2, -1))
    return DetectionModel(
        body,
        HybridEncoder(
            body.channels,
            32,
            aifi=AIFI(32, 8, 64),
            ccff=CCFF(32, 3, blocks="elan", depth=1, expansion=0.5, act="silu"),
        ),
        QuerySelection(32, 3, 20, "relu"),
        BoxDecoder([DecoderLayer(32, 8, 64, [4, 4, 4], gated=False, act="relu") for _ in range(2)], 32, 3, act="relu"),
        denoising=ContrastiveDenoising(3, 32, 8, 0.5, 1.0),
    )


def detector(kind: str) -> DetectionModel:
    """With dropout, so that the random state matters too."""
    torch.manual_seed(0)
    model = make_detector() if kind == "distribution" else box_detector(kind)
    model.hybrid_encoder.aifi.act = nn.Sequential(nn.GELU(), nn.Dropout(0.5))
    return model


def targets() -> list[Target]:
    generator = torch.Generator().manual_seed(1)
    return [
        Target(torch.tensor([0, 2]), 0.3 + 0.3 * torch.rand(2, 4, generator=generator)),
        Target(torch.tensor([1]), 0.3 + 0.3 * torch.rand(1, 4, generator=generator)),
    ]


IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
WEIGHTS = {"mal": 1.0, "bbox": 5.0, "giou": 2.0, "fgl": 0.15, "ddf": 1.5}


def step(model: DetectionModel, local_terms: bool) -> dict[str, Tensor]:
    torch.manual_seed(3)
    criterion = Criterion(HungarianMatcher(), local_terms=local_terms)
    terms = criterion(model.train()(IMAGES, targets()), targets())
    weighted_sum(terms, WEIGHTS).backward()
    terms["random"] = torch.rand(())
    return terms


@pytest.mark.parametrize("kind", ["distribution", "test_efficientnet", "test_convnext"])
def test_losses_gradients_and_statistics_are_the_same(kind: str) -> None:
    plain = detector(kind)
    checkpointed = copy.deepcopy(plain)
    checkpoint_activations(checkpointed)
    for _ in range(2):
        losses = [step(model, local_terms=kind == "distribution") for model in (plain, checkpointed)]
        assert_same(losses[1], losses[0], rounding=ROUNDING)
    own, other = ({name: p.grad for name, p in model.named_parameters()} for model in (plain, checkpointed))
    assert_same(other, own, rounding=ROUNDING)
    assert_same(checkpointed.state_dict(), plain.state_dict(), rounding=ROUNDING)
    counters = [value for name, value in plain.state_dict().items() if name.endswith("num_batches_tracked")]
    assert {counter.item() for counter in counters} == {2}


def saved_bytes(model: DetectionModel) -> int:
    """What the forward pass keeps for the backward pass, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.train()(IMAGES, targets())
    assert output.training is not None
    return sum(kept.values())


@pytest.mark.parametrize("kind", ["distribution", "test_efficientnet"])
def test_less_is_kept(kind: str) -> None:
    model = detector(kind)
    before = saved_bytes(model)
    checkpoint_activations(model)
    assert saved_bytes(model) < before / 2


def test_a_backward_pass_may_be_repeated() -> None:
    model = detector("distribution")
    checkpoint_activations(model)
    loss = model.train()(IMAGES, targets()).training.queries.logits.sum()
    parameter = next(model.backbone.parameters())
    first, second = (torch.autograd.grad(loss, parameter, retain_graph=True)[0] for _ in range(2))
    assert_same(second, first, rounding=ROUNDING)


def test_the_model_stays_what_it_was() -> None:
    model = detector("distribution")
    names = list(model.state_dict())
    before = model.eval()(IMAGES).logits
    checkpoint_activations(model)
    average = copy.deepcopy(model).requires_grad_(False)
    assert list(model.state_dict()) == names
    assert isinstance(model.hybrid_encoder.aifi, AIFI)
    with torch.no_grad():
        assert_same(model(IMAGES).logits, before, rounding=ROUNDING)
        assert_same(average(IMAGES).logits, before, rounding=ROUNDING)
        torch.testing.assert_close(fuse(average)(IMAGES).logits, before, rtol=1e-4, atol=1e-4)
        model.hybrid_encoder.aifi.linear1.weight.zero_()  # a copy has its own weights
        assert (model(IMAGES).logits - before).abs().max() > 100 * ROUNDING * before.abs().max()
        assert_same(average(IMAGES).logits, before, rounding=ROUNDING)
