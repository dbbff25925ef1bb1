"""TorchScript programs: NAME.torchscript, for LibTorch in C++ and older programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rtdetrv4.export.deployment import Deployment, quiet
from rtdetrv4.runtime.export_metadata import METADATA_KEY


def write(deployment: Deployment, path: Path) -> tuple[str, ...]:
    """Write NAME.torchscript."""
    module, metadata = deployment.module.eval(), deployment.metadata
    images = module.example(metadata.batch or 2, metadata.image_size)
    with torch.no_grad(), quiet(), _GeneralTrace():
        program = torch.jit.trace(module, (images,), check_trace=False)
        torch.jit.save(program, path, _extra_files={METADATA_KEY: metadata.to_json()})
    return ()


class _GeneralTrace(TorchFunctionMode):
    """Keeps what belongs to the example out of the trace: its batch size and its device.

    `unflatten` makes the sizes of the example constants, so it is asked to look at the tensor's. A call of `arange`
    names the device; its result moves to another one together with the program.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.arange:
            jit: Any = torch._C
            state = jit._get_tracing_state()
            jit._set_tracing_state(None)
            try:
                return func(*map(int, args), **(kwargs or {}))
            finally:
                jit._set_tracing_state(state)
        if func is not Tensor.unflatten:
            return func(*args, **(kwargs or {}))
        tensor, dim, sizes = args
        dim %= tensor.dim()
        return tensor.reshape(*tensor.shape[:dim], *sizes, *tensor.shape[dim + 1 :])
