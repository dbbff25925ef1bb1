"""torch.compile for the parts of a detector that it can compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtdetrv4.models.detection_model import DetectionModel
from rtdetrv4.ops.networks import CompileAttempt, Compiled


def compile_parts(model: DetectionModel, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the backbone and the hybrid encoder, in place; they compute most of the forward pass.

    A part that cannot be compiled, for example because there is no C++ compiler, runs uncompiled; this is logged once.
    Tensor names do not change, and copies of the model, such as its EMA, are not compiled.

    Args:
        model: its parts are compiled on their first call.
        backend: of torch.compile.
    """
    attempt = CompileAttempt("the detector", backend)
    for part in (model.backbone, model.hybrid_encoder):
        part._compiled_call_impl = Compiled(part._call_impl, attempt)  # as `nn.Module.compile` does
