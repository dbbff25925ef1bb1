"""Recompute activations in the backward pass instead of keeping them, to save memory in training.

Both functions change a built detector in place: some of its modules become instances of a subclass with a different
forward pass. Unlike a hook or a patched instance, a subclass survives copying the model, as for its EMA. Nothing else
changes: tensor names, evaluation, fusing, and every number stay the same.

References:
    Training deep nets with sublinear memory cost, arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from timm.models.hgnet import ConvBNAct, LearnableAffineBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rtdetrv4.models.detection_model import DetectionModel
from rtdetrv4.models.hybrid_encoder import LiteEncoder
from rtdetrv4.models.layers import ConvNorm


def recompute_activations(model: DetectionModel) -> None:
    """Make every block of convolution, batch norm and activation keep only the output of its convolution.

    Normalizing a second time is cheap. Not for a compiled detector, because the hooks on saved tensors would break up
    its graph, nor for one with checkpointed activations, which keeps even less.
    """
    for module in model.modules():
        if (kind := _RECOMPUTING.get(type(module))) is not None:
            module.__class__ = kind


class _RecomputingConvNorm(ConvNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not (isinstance(self.act, nn.SiLU) and _learns(self.norm)):
            return super().forward(x)
        return _recomputed_activation(self.conv(x), self.norm, self.act)


class _RecomputingConvBNAct(ConvBNAct):  # the block of timm's HGNetV2
    def forward(self, x: Tensor) -> Tensor:
        if not (isinstance(self.act, nn.ReLU) and _learns(self.bn)):
            return super().forward(x)
        affine = self.lab if isinstance(self.lab, LearnableAffineBlock) else None
        return _recomputed_activation(self.conv(x), self.bn, F.relu_, affine)


_RECOMPUTING: dict[type[nn.Module], type[nn.Module]] = {
    ConvNorm: _RecomputingConvNorm,
    ConvBNAct: _RecomputingConvBNAct,
}


def _learns(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether this is a plain batch norm that normalizes with the statistics of the batch and gets a gradient."""
    return type(norm) is nn.BatchNorm2d and norm.training and norm.weight.requires_grad and torch.is_grad_enabled()


def _recomputed_activation(
    x: Tensor, norm: nn.BatchNorm2d, act: Callable[[Tensor], Tensor], affine: LearnableAffineBlock | None = None
) -> Tensor:
    """affine(act(norm(x))), keeping only x for the backward pass, which recomputes the rest.

    Results are the same to rounding, and the running statistics are updated once. Operations are in place where
    possible, to avoid allocating maps.

    Args:
        x: B×C×H×W.
        norm: in train mode, with a gradient.
        act: SiLU, whose gradient needs its input, or in-place ReLU, whose gradient needs its output.
        affine: a scale, whose gradient needs its input, and a bias.
    """
    normalized = norm(x)
    node: Any = normalized.grad_fn
    if not hasattr(node, "_saved_result2"):  # a backend whose batch norm keeps its statistics elsewhere
        normalized = act(normalized)
        return normalized if affine is None else affine(normalized)
    # The forward pass's statistics are kept: computing them again would take longer than everything else here.
    held, mean, inverse_deviation = x.detach(), node._saved_result1, node._saved_result2
    scale, bias = (norm.weight * inverse_deviation).detach(), norm.bias.detach()
    num_kept, computed = 0, []

    def pack(tensor: Tensor) -> Tensor | None:
        nonlocal num_kept
        if tensor.shape != held.shape:  # parameters
            return tensor
        num_kept += 1
        return None

    def unpack(kept: Tensor | None) -> Tensor:
        if kept is not None:
            return kept
        if computed:
            return computed.pop()
        # 1 + eps is 1; older versions of torch refuse 0.
        eps = torch.finfo(mean.dtype).tiny
        again = F.batch_norm(held, mean, torch.ones_like(mean), scale, bias, training=False, eps=eps)
        if not isinstance(act, nn.SiLU):
            again = act(again)
        computed.extend([again] * (num_kept - 1))  # for `act` and `affine`, which both need it
        return again

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        x = act(normalized)
        if affine is None:
            return x
        # In the map's dtype: under autocast, the result would otherwise be float32, twice as large.
        return (affine.scale.to(x.dtype) * x).add_(affine.bias.to(x.dtype))


def checkpoint_activations(model: DetectionModel) -> None:
    """Make a detector keep only the inputs of its larger parts: much less memory, at the cost of time.

    These parts are the stages or blocks of the backbone, AIFI, the encoder's fusion blocks and the decoder's layers.
    """
    encoder = model.hybrid_encoder
    if isinstance(encoder, LiteEncoder):
        fusions = (encoder.top_down, encoder.bottom_up)
    else:
        fusions = (*encoder.ccff.top_down, *encoder.ccff.bottom_up)
    parts: list[nn.Module] = [*_blocks(_root(model.backbone.body)), encoder.aifi, *fusions, *model.decoder.layers]
    for part in parts:
        part.__class__ = _checkpointed(type(part))


@cache
def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose forward pass is checkpointed."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return kind.forward(self, *args, **kwargs)
        contexts = partial(_contexts, self)
        return checkpoint(partial(kind.forward, self), *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward})


def _contexts(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _BuffersApart(module)


class _BuffersApart:
    """Gives a module copies of its buffers for the recomputation, so that batch norms count every batch only once."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kept: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        self.kept = [
            (part, name, buffer) for part in self.module.modules() for name, buffer in part.named_buffers(recurse=False)
        ]
        for part, name, buffer in self.kept:
            setattr(part, name, buffer.clone())

    def __exit__(self, *_: object) -> None:
        for part, name, buffer in self.kept:
            setattr(part, name, buffer)


def _root(body: nn.Module) -> nn.Module:
    """The network itself, without any wrapper of timm's around it."""
    children = list(body.children())
    return _root(children[0]) if len(children) == 1 else body


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that have parts of their own. Containers are opened: they may not be called as a whole."""
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList) and any(_has_parts(part) for part in child):
            yield from _blocks(child)
        elif _has_parts(child):
            yield child


def _has_parts(module: nn.Module) -> bool:
    return any(next(child.parameters(), None) is not None for child in module.children())
