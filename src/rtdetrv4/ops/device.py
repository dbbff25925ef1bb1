"""Which devices PyTorch finds on this machine, and whether their memory ran out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rtdetrv4.errors import ConfigError


def find_device(name: str = "auto") -> torch.device:
    """The device of a name such as "cuda:1"; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        ConfigError: there is no such device; the message lists those that are there.
    """
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return current or torch.device("cpu")
    kind, _, index = name.partition(":")
    count = torch.accelerator.device_count() if current is not None and current.type == kind else 0
    if name != "cpu" and not (count and (not index or int(index) < count)):
        reason = "" if kind != "cuda" or torch.backends.cuda.is_built() else "; this PyTorch is built without CUDA"
        raise ConfigError(f'PyTorch finds no device "{name}" here, only {_found(current)}{reason}. Use device="auto".')
    return torch.device(name)


def tensor_like(values: Sequence[float], like: Tensor) -> Tensor:
    """(len(values),): the values in the dtype and on the device of another tensor, without waiting for the device."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated, on whatever device.

    PyTorch has a class for it on accelerators only; on a CPU, and in libraries of CUDA, the message tells.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")
    )


def _found(current: torch.device | None) -> str:
    """The CPU and the accelerators, "cpu, cuda:0 and cuda:1"."""
    if current is None:
        return "cpu"
    names = [f"{current.type}:{index}" for index in range(torch.accelerator.device_count())]
    return " and ".join((", ".join(["cpu", *names[:-1]]), names[-1]))
