from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from rtdetrv4.models.layers import ELANRepBlock, match_gradient_layout


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
