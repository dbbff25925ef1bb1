"""Parts of a detector through torch.compile, or without it where it does not work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

from rtdetrv4.models.detection_model import DetectionModel

logger = logging.getLogger(__name__)


def compile_parts(model: DetectionModel, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the backbone and the hybrid encoder, in place; they compute most of the forward pass.

    A part that cannot be compiled, for want of a C++ compiler for example, goes on without; this is logged once. Names
    of tensors do not change, and copies of the model, such as its average, are not compiled.

    Args:
        model: whose parts are compiled when they are first called.
        backend: of torch.compile.
    """
    attempt = _Attempt()
    for part in (model.backbone, model.hybrid_encoder):
        part.compile(backend=backend)
        part._compiled_call_impl = _Guarded(part, attempt)


class _Attempt:
    """Whether compiling has failed, for all parts of a model."""

    failed = False


class _Guarded:
    """Calls a compiled module, and after a failure the module itself."""

    def __init__(self, module: nn.Module, attempt: _Attempt) -> None:
        self.module = module
        self.attempt = attempt
        self.compiled: Any = module._compiled_call_impl

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            if not self.attempt.failed:
                return self.compiled(*args, **kwargs)
        except Exception as error:  # of the compiler, in all its parts; the module's own comes again below
            self.attempt.failed = True
            cause = getattr(error, "inner_exception", error)  # the first line of a backend's failure only names it
            reason = next(iter(str(cause).splitlines()), type(cause).__name__)
            logger.warning("torch.compile failed (%s); training goes on without it.", reason)
        self.module._compiled_call_impl = None
        return self.module(*args, **kwargs)
