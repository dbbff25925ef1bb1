"""Activation checkpointing: parts of a detector compute their activations again in the backward pass.

References:
    Training deep nets with sublinear memory cost, arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from rtdetrv4.models.backbone import LeanConvBNAct
from rtdetrv4.models.detection_model import DetectionModel
from rtdetrv4.models.layers import ConvNorm


def checkpoint_activations(model: DetectionModel) -> None:
    """Let a detector keep only what enters its larger parts, in place: less memory and more time, same numbers.

    These parts are the stages or blocks of the backbone, AIFI, the fusion blocks of CCFF and the decoder's layers. Only
    train mode changes; names of tensors, copies of the model and fusing do not.
    """
    encoder = model.hybrid_encoder
    fusions = (*encoder.ccff.top_down, *encoder.ccff.bottom_up)
    parts: list[nn.Module] = [*_blocks(_root(model.backbone.body)), encoder.aifi, *fusions, *model.decoder.layers]
    for part in parts:
        part.__class__ = _checkpointed(type(part))
        for module in part.modules():
            if isinstance(module, ConvNorm | LeanConvBNAct):  # which would hold what is to be let go
                module.recomputes = False


@cache
def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    """The same class with another forward pass, so that its modules stay what they are in every other respect."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and is_grad_enabled()):
            return kind.forward(self, *args, **kwargs)
        contexts = partial(_contexts, self)
        return checkpoint(partial(kind.forward, self), *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward})


def _contexts(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _BuffersApart(module)


class _BuffersApart:
    """Meanwhile a module has copies of its buffers, so that batch norms count every batch once."""

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
    """The network itself, where timm has wrapped it whole."""
    children = list(body.children())
    return _root(children[0]) if len(children) == 1 else body


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost parts that have parts of their own. Whether a list of such is called as one cannot be seen."""
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList) and any(_has_parts(part) for part in child):
            yield from _blocks(child)
        elif _has_parts(child):
            yield child


def _has_parts(module: nn.Module) -> bool:
    return any(next(child.parameters(), None) is not None for child in module.children())
