from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rtdetrv4.models.backbone import Backbone, LeanConvBNAct
from rtdetrv4.models.layers import ConvNorm, ELANRepBlock, match_gradient_layout
from small_training import ROUNDING, assert_same


def saved_bytes(forward) -> tuple[Tensor, int]:
    """The result of `forward`, and how much it keeps for the backward pass."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return forward(), sum(storages.values())


def assert_same_result(block: nn.Module, plain: nn.Module, found: object, expected: object) -> None:
    assert_same(found, expected, rounding=ROUNDING)
    own, other = ({name: p.grad for name, p in module.named_parameters()} for module in (block, plain))
    assert_same(own, other, rounding=ROUNDING)
    assert_same(dict(block.named_buffers()), dict(plain.named_buffers()), rounding=ROUNDING)  # statistics move once


def test_silu_after_a_batch_norm_keeps_no_input_and_changes_no_number() -> None:
    torch.manual_seed(0)
    block = ConvNorm(4, 8, 3, act="silu")
    nn.init.uniform_(block.norm.weight, 0.5, 1.5)
    plain = copy.deepcopy(block)
    x = torch.randn(2, 4, 6, 6)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, held = saved_bytes(lambda: block(one))
    expected, held_before = saved_bytes(lambda: plain.act(plain.norm(plain.conv(two))))
    assert held == held_before - expected.untyped_storage().nbytes()

    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_same_result(block, plain, (output, one.grad), (expected, two.grad))


def test_relu_and_affine_after_a_batch_norm_keep_no_input_and_change_no_number() -> None:
    torch.manual_seed(0)
    block = Backbone("hgnetv2_b0", (0,)).body.stages_0.blocks[0].layers[0]
    assert isinstance(block, LeanConvBNAct)
    nn.init.uniform_(block.bn.weight, 0.5, 1.5)
    nn.init.uniform_(block.bn.bias, -0.5, 0.5)
    nn.init.constant_(block.lab.scale, 1.3)
    plain = copy.deepcopy(block)
    plain.recomputes = False
    x = torch.randn(2, block.conv.in_channels, 6, 6)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, held = saved_bytes(lambda: block(one))
    expected, held_before = saved_bytes(lambda: plain(two))
    hidden = block.lab.scale.nbytes  # kept by the block's own hooks, which those outside do not see
    assert held == held_before - expected.untyped_storage().nbytes() - hidden

    weights = torch.randn_like(output)
    for _ in range(2):  # a graph that is kept gives the same again
        (output * weights).sum().backward(retain_graph=True)
        (expected * weights).sum().backward(retain_graph=True)
    assert_same_result(block, plain, (output, one.grad), (expected, two.grad))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_gradient_comes_in_the_layout_of_its_tensor(layout: torch.memory_format) -> None:
    x = torch.randn(2, 6, 4, 4).to(memory_format=layout).requires_grad_()
    weights = torch.randn(2, 6, 4, 4)
    arrived = []

    class Spy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor: Tensor) -> Tensor:
            return tensor.clone()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            arrived.append(grad)
            return grad

    first, second = match_gradient_layout(Spy.apply(x)).contiguous().chunk(2, dim=1)
    ((first * weights[:, :3]).sum() + (second * weights[:, 3:]).sum()).backward()
    assert arrived[0].is_contiguous(memory_format=layout)
    assert torch.equal(x.grad, weights)


def test_a_fusion_block_computes_the_same_in_either_layout() -> None:
    torch.manual_seed(0)
    block = ELANRepBlock(16, 8, 1, 0.5, "silu")
    other = copy.deepcopy(block).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 8, 8)
    output, twin = block(x), other(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(twin, output)
    output.square().sum().backward()
    twin.square().sum().backward()
    for (name, mine), theirs in zip(block.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-4, atol=1e-4, msg=name)
