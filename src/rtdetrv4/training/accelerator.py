"""Device, number format and ranks of a run."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import nn

from rtdetrv4.errors import ConfigError
from rtdetrv4.ops.device import find_device

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def make_accelerator(device: str = "auto", amp: Literal["auto", "bf16", "fp16", "off"] = "auto") -> Accelerator:
    """The Accelerator of this process: for one device, or for one rank if torchrun or `accelerate launch` started it.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or "xpu". With several ranks, each takes the device of its local
            rank.
        amp: number format of the model's forward pass (losses are always float32). "auto" is bf16 on NVIDIA GPUs
            since Ampere and on CPUs with AMX, otherwise off.

    Raises:
        ConfigError: there is no such device, or none for this rank, or it cannot compute in that format.
    """
    kind = device.partition(":")[0]
    on_cpu = find_device(kind if "LOCAL_RANK" in os.environ else device).type == "cpu"
    if not on_cpu and int(os.environ.get("LOCAL_RANK", 0)) >= (count := torch.accelerator.device_count()):
        raise ConfigError(
            f"This machine has {count} GPU{'s' if count > 1 else ''}, and was asked to run "
            f"{os.environ.get('LOCAL_WORLD_SIZE', 'more')} processes, each of which takes one. Start fewer with "
            f"--nproc-per-node={count}, or use device=cpu."
        )
    chosen = {} if kind in ("auto", "cpu") or "LOCAL_RANK" in os.environ else {"ACCELERATE_TORCH_DEVICE": device}
    # accelerate keeps one device and number format per process, but a notebook may train twice.
    AcceleratorState._reset_state(reset_partial_state=True)
    with patch_environment(**chosen):
        found = PartialState(cpu=on_cpu).device
        assert found is not None
        if amp == "auto":
            amp = "bf16" if _computes_in_bf16(found) else "off"
        if amp == "fp16" and found.type == "cpu":
            raise ConfigError('amp="fp16" needs a GPU; on a CPU use amp="bf16" or amp="off".')
        if found.type == "cpu":
            keep_freed_memory()
        try:
            return Accelerator(cpu=on_cpu, mixed_precision="no" if amp == "off" else amp)
        except ValueError as error:
            raise ConfigError(f'amp="{amp}" does not work on {found}: {error} Use amp="off".') from error


def cpu_computes_in_bf16() -> bool:
    """Whether bfloat16 makes a training step faster on this CPU (benchmarks/bf16_step.py), that is, whether it has AMX.

    AMX does not count if ONEDNN_MAX_CPU_ISA keeps oneDNN from using it.
    """
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)  # False if torch is too old to tell
    return has_amx() and any(word in most for word in ("ALL", "DEFAULT", "AMX"))


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cpu":
        return cpu_computes_in_bf16()
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def synchronize_norms(model: nn.Module, accelerator: Accelerator) -> None:
    """Make batch norms share their statistics across GPUs, so that they normalize with the whole batch.

    Frozen ones are left unchanged. So are all on CPUs, where PyTorch does not support it: each rank normalizes with its
    own images.
    """
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        for module in list(model.modules()):
            for name, child in module.named_children():
                if type(child) in (nn.BatchNorm2d, BatchNormAct2d):
                    setattr(module, name, convert_sync_batchnorm(child))


def keep_freed_memory() -> bool:
    """Make the C library keep large freed blocks, instead of returning them to the kernel at once.

    A training step on a CPU allocates and frees gigabytes, and a block from the kernel is cleared page by page when it
    is first written: up to a third of the time of a step, see docs/research/profiles.md. The price is that the process
    never shrinks. Does nothing without glibc.

    Returns:
        Whether it took effect.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
