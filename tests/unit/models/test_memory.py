"""Recomputed or checkpointed activations change memory and time, and numbers by no more than rounding."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

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
    recompute_activations,
)
from rtdetrv4.models.layers import ConvNorm
from rtdetrv4.types import Targets
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
        BoxDecoder(
            [DecoderLayer(32, 8, 64, [4, 4, 4], gated=False, project_values=True, act="relu") for _ in range(2)],
            32,
            3,
            act="relu",
        ),
        denoising=ContrastiveDenoising(3, 32, 8, 0.5, 1.0),
    )


def detector(kind: str) -> DetectionModel:
    """With dropout, so that the random state matters too."""
    torch.manual_seed(0)
    model = make_detector() if kind == "distribution" else box_detector(kind)
    model.hybrid_encoder.aifi.act = nn.Sequential(nn.GELU(), nn.Dropout(0.5))
    return model


def targets() -> Targets:
    generator = torch.Generator().manual_seed(1)
    boxes = 0.3 + 0.3 * torch.rand(3, 4, generator=generator)
    return Targets(torch.tensor([0, 2, 1]), boxes, counts=(2, 1))


IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
WEIGHTS = {"mal": 1.0, "bbox": 5.0, "giou": 2.0, "fgl": 0.15, "ddf": 1.5}


def step(model: DetectionModel, local_terms: bool) -> dict[str, Tensor]:
    torch.manual_seed(3)
    criterion = Criterion(HungarianMatcher(), local_terms=local_terms)
    terms = criterion(model.train()(IMAGES, targets()), targets())
    weighted_sum(terms, WEIGHTS).backward()
    terms["random"] = torch.rand(())
    return terms


ARRANGEMENTS = [checkpoint_activations, recompute_activations]


@pytest.mark.parametrize("arrange", ARRANGEMENTS)
@pytest.mark.parametrize("kind", ["distribution", "test_efficientnet", "test_convnext"])
def test_losses_gradients_and_statistics_are_the_same(kind: str, arrange: Callable[[DetectionModel], None]) -> None:
    plain = detector(kind)
    checkpointed = copy.deepcopy(plain)
    arrange(checkpointed)
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


@pytest.mark.parametrize("arrange", ARRANGEMENTS)
def test_a_backward_pass_may_be_repeated(arrange: Callable[[DetectionModel], None]) -> None:
    model = detector("distribution")
    arrange(model)
    loss = model.train()(IMAGES, targets()).training.queries.logits.sum()
    parameter = next(model.backbone.parameters())
    first, second = (torch.autograd.grad(loss, parameter, retain_graph=True)[0] for _ in range(2))
    assert_same(second, first, rounding=ROUNDING)


@pytest.mark.parametrize("arrange", ARRANGEMENTS)
def test_the_model_stays_what_it_was(arrange: Callable[[DetectionModel], None]) -> None:
    model = detector("distribution")
    names = list(model.state_dict())
    before = model.eval()(IMAGES).logits
    arrange(model)
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


# ---- one block ------------------------------------------------------------------------------------------------------


def recomputing(block: nn.Module) -> nn.Module:
    """A copy, pickled on the way."""
    changed = copy.deepcopy(block)
    recompute_activations(changed)  # type: ignore[arg-type]
    assert type(changed) is not type(block)
    return pickle.loads(pickle.dumps(changed))


def result_and_saved_bytes(forward: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """The result of `forward`, and how much it keeps for the backward pass."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        return forward(), sum(storages.values())


def assert_same_result(block: nn.Module, plain: nn.Module, found: object, expected: object) -> None:
    assert_same(found, expected, rounding=ROUNDING)
    own, other = ({name: p.grad for name, p in module.named_parameters()} for module in (block, plain))
    assert_same(own, other, rounding=ROUNDING)
    assert_same(dict(block.named_buffers()), dict(plain.named_buffers()), rounding=ROUNDING)  # statistics move once


def test_silu_after_a_batch_norm_keeps_no_input_and_changes_no_number() -> None:
    torch.manual_seed(0)
    plain = ConvNorm(4, 8, 3, act="silu")
    nn.init.uniform_(plain.norm.weight, 0.5, 1.5)
    block = recomputing(plain)
    x = torch.randn(2, 4, 6, 6)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, held = result_and_saved_bytes(lambda: block(one))
    expected, held_before = result_and_saved_bytes(lambda: plain(two))
    assert held == held_before - expected.untyped_storage().nbytes()

    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_same_result(block, plain, (output, one.grad), (expected, two.grad))


def test_relu_and_affine_after_a_batch_norm_keep_no_input_and_change_no_number() -> None:
    torch.manual_seed(0)
    plain = Backbone("hgnetv2_b0", (0,)).body.stages_0.blocks[0].layers[0]
    nn.init.uniform_(plain.bn.weight, 0.5, 1.5)
    nn.init.uniform_(plain.bn.bias, -0.5, 0.5)
    nn.init.constant_(plain.lab.scale, 1.3)
    block = recomputing(plain)
    x = torch.randn(2, block.conv.in_channels, 6, 6)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, held = result_and_saved_bytes(lambda: block(one))
    expected, held_before = result_and_saved_bytes(lambda: plain(two))
    hidden = block.lab.scale.nbytes  # kept by the block's own hooks, which those outside do not see
    assert held == held_before - expected.untyped_storage().nbytes() - hidden

    weights = torch.randn_like(output)
    for _ in range(2):  # a graph that is kept gives the same again
        (output * weights).sum().backward(retain_graph=True)
        (expected * weights).sum().backward(retain_graph=True)
    assert_same_result(block, plain, (output, one.grad), (expected, two.grad))


def test_maps_stay_in_the_format_of_autocast() -> None:
    plain = Backbone("hgnetv2_b0", (0,)).body.stages_0.blocks[0].layers[0]
    block = recomputing(plain)
    x = torch.randn(2, block.conv.in_channels, 6, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = block(x), plain(x)
    assert (output.dtype, expected.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(output.float(), expected, rtol=0.02, atol=0.02)
    output.sum().backward()
    assert block.lab.scale.grad.dtype == torch.float32


def test_without_gradients_statistics_move_all_the_same() -> None:
    plain = ConvNorm(4, 8, 3, act="silu")
    block = recomputing(plain)
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        assert_same(block(x), plain(x), rounding=ROUNDING)
    assert_same(block.state_dict(), plain.state_dict(), rounding=ROUNDING)


def test_a_batch_norm_that_keeps_its_statistics_elsewhere_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Backbone("hgnetv2_b0", (0,)).body.stages_0.blocks[0].layers[0]
    block = recomputing(plain)
    forward = nn.BatchNorm2d.forward
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda norm, x: forward(norm, x) * 1.0)
    x = torch.randn(2, block.conv.in_channels, 6, 6)
    output, expected = block(x), plain(x)
    output.sum().backward()
    expected.sum().backward()
    assert_same_result(block, plain, output, expected)


def test_batch_norm_is_recomputed_with_an_epsilon_that_every_version_of_torch_accepts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, original = [], torch.nn.functional.batch_norm

    def batch_norm(*args: Any, **kwargs: Any) -> Tensor:
        given.append(kwargs.get("eps", 1e-5))
        return original(*args, **kwargs)

    block = recomputing(ConvNorm(3, 8, 3, act="silu"))
    loss = block(torch.rand(2, 3, 16, 16)).sum()
    monkeypatch.setattr("torch.nn.functional.batch_norm", batch_norm)
    loss.backward()
    assert len(given) == 1  # the recomputation
    assert given[0] > 0
    assert torch.tensor(1.0) + given[0] == 1
