"""Parts of a detector through torch.compile, or without it where it does not work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtdetrv4.models.detection_model import DetectionModel
from rtdetrv4.ops.networks import CompileAttempt, Compiled


def compile_parts(model: DetectionModel, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the backbone and the hybrid encoder, in place; they compute most of the forward pass.

    A part that cannot be compiled, for want of a C++ compiler for example, runs without; this is logged once. Names of
    tensors do not change, and copies of the model, such as its average, are not compiled.

    Args:
        model: whose parts are compiled when they are first called.
        backend: of torch.compile.
    """
    attempt = CompileAttempt("the detector", backend)
    for part in (model.backbone, model.hybrid_encoder):
        part._compiled_call_impl = Compiled(part._call_impl, attempt)  # as `nn.Module.compile` does
