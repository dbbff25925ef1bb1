"""Fold batch norms and affine activations into convolutions, for deployment."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.models.hgnet import ConvBNAct, LearnableAffineBlock
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from rtdetrv4.models.backbone import FrozenNorm
from rtdetrv4.models.layers import RepVGGBlock

# Not their subclasses, which may do more, such as standardizing their weights on every call.
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
NORMS = (nn.BatchNorm2d, FrozenNorm, BatchNormAct2d)


def fuse_conv_norms(module: nn.Module, images: Tensor) -> nn.Module:
    """A copy in eval mode: batch norms are folded into the convolutions before them, and RepVGG branches merged.

    A forward pass shows which convolution feeds which norm; in some networks, the order of definition does not. A
    convolution whose output is also used elsewhere is left unchanged.

    Args:
        module: is called with `images`.
        images: B×3×H×W; their values do not matter.
    """
    fused = copy.deepcopy(module).eval()
    for conv_name, norm_name in _pairs(fused, images):
        conv, norm = fused.get_submodule(conv_name), fused.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        fused.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        rest = norm.get_submodule("act") if isinstance(norm, BatchNormAct2d) else nn.Identity()
        fused.set_submodule(norm_name, rest)
    for block in list(fused.modules()):
        if isinstance(block, RepVGGBlock):
            block.fuse()
    return fused


class Clamp(nn.Module):
    """Bounds every element on one side or both."""

    def __init__(self, low: float | None = None, high: float | None = None) -> None:
        super().__init__()
        self.low: float | None = low
        self.high: float | None = high

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same."""
        return x.clamp(self.low, self.high)


def fold_affine_activations(module: nn.Module) -> None:
    """Turn the activation of HGNetV2's blocks into a clamp, in place, after norms have been folded.

    It is scale · relu(x) + bias, with two learned numbers, which equals max(scale · x + bias, bias), or the minimum if
    the scale is negative. The convolution before it can scale and add, and runtimes clamp as they write its output.
    """
    for block in module.modules():
        if not (isinstance(block, ConvBNAct) and isinstance(block.lab, LearnableAffineBlock)):
            continue
        conv = block.conv
        if not (isinstance(conv, nn.Conv2d) and isinstance(block.act, nn.ReLU) and isinstance(block.bn, nn.Identity)):
            continue
        assert conv.bias is not None
        scale, bias = block.lab.scale.detach(), block.lab.bias.detach()
        conv.weight.data.mul_(scale)
        conv.bias.data.mul_(scale).add_(bias)
        clamp = Clamp(low=bias.item()) if scale >= 0 else Clamp(high=bias.item())
        block.set_submodule("act", clamp)
        block.set_submodule("lab", nn.Identity())


class _Uses(TorchFunctionMode):
    """Counts how often each tensor, by id, is passed to a function."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if result is None or any(isinstance(each, Tensor) for each in _items(result)):  # not a query such as size()
            for value in (*args, *kwargs.values()):
                for each in _items(value):
                    self.counts[id(each)] += isinstance(each, Tensor)
        return result


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


@torch.no_grad()
def _pairs(module: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions, each with that of the batch norm that is the only user of its output."""
    uses = _Uses()
    calls: Counter[str] = Counter()
    results: dict[int, tuple[str, Tensor]] = {}  # kept alive, so that no other tensor gets their ids
    found: list[tuple[str, str, int]] = []

    def convolved(name: str, result: Tensor) -> None:
        calls[name] += 1
        results[id(result)] = name, result
        uses.counts[id(result)] = 0

    def normalized(name: str, given: Tensor) -> None:
        calls[name] += 1
        if id(given) in results:
            found.append((results[id(given)][0], name, id(given)))

    handles = []
    for name, part in module.named_modules():
        if type(part) in CONVOLUTIONS:
            handles.append(part.register_forward_hook(lambda _, __, result, name=name: convolved(name, result)))
        elif type(part) in NORMS:
            handles.append(part.register_forward_pre_hook(lambda _, given, name=name: normalized(name, given[0])))
    try:
        with uses:
            module(images)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (conv, norm) for conv, norm, result in found if uses.counts[result] == 1 and calls[conv] == calls[norm] == 1
    ]
