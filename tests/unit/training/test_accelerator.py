from __future__ import annotations

import platform

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from rtdetrv4.errors import ConfigError
from rtdetrv4.training import make_accelerator
from rtdetrv4.training.accelerator import cpu_computes_in_bf16, keep_freed_memory, synchronize_norms

no_gpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")


def test_a_process_may_train_in_one_format_after_another():
    dtypes = []
    for amp in ("off", "bf16", "off"):
        accelerator = make_accelerator("cpu", amp)
        assert (accelerator.device.type, accelerator.num_processes) == ("cpu", 1)
        with accelerator.autocast():
            dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
    assert dtypes == [torch.float32, torch.bfloat16, torch.float32]


@pytest.mark.parametrize(
    ("has_amx", "most", "mixed_precision"),
    [
        (True, None, "bf16"),
        (True, "all", "bf16"),
        (True, "AVX512_CORE_AMX_FP16", "bf16"),
        (True, "AVX512_CORE_BF16", "no"),
        (False, None, "no"),
    ],
)
def test_auto_is_bfloat16_on_a_cpu_with_instructions_for_it(monkeypatch, has_amx, most, mixed_precision):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    if most is None:
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    else:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert cpu_computes_in_bf16() == (mixed_precision == "bf16")
    assert make_accelerator("cpu", "auto").mixed_precision == mixed_precision
    assert make_accelerator("cpu", "off").mixed_precision == "no"


def test_an_older_torch_that_cannot_tell_computes_in_float32(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not cpu_computes_in_bf16()


@no_gpu
def test_auto_takes_the_cpu_where_there_is_nothing_else():
    assert make_accelerator().device.type == "cpu"


@no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ConfigError, match=f'no device "{device}" here, only cpu'):
        make_accelerator(device)


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match=r'fp16.*use amp="bf16" or amp="off"'):
        make_accelerator("cpu", "fp16")


def test_one_process_has_nothing_to_synchronize():
    model = nn.Sequential(nn.BatchNorm2d(2))
    synchronize_norms(model, make_accelerator("cpu", "off"))
    assert type(model[0]) is nn.BatchNorm2d


def test_norms_of_several_gpus_become_one_but_frozen_ones_stay():
    class Frozen(nn.BatchNorm2d):
        pass

    class TwoGpus:
        num_processes, device = 2, torch.device("cuda")

    model = nn.Sequential(nn.Sequential(nn.BatchNorm2d(2)), Frozen(2), nn.LayerNorm(2), BatchNormAct2d(2))
    weight = model[0][0].weight
    synchronize_norms(model, TwoGpus())
    assert [type(module) for module in (model[0][0], model[1], model[2])] == [nn.SyncBatchNorm, Frozen, nn.LayerNorm]
    assert model[0][0].weight is weight  # the optimizer's
    assert isinstance(model[3], nn.SyncBatchNorm)
    assert isinstance(model[3].act, nn.ReLU)  # timm's norms may have an activation inside


def test_freed_memory_is_kept_where_the_c_library_lets_it() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"has 1 GPU, and was asked to run 2 processes.*--nproc-per-node=1"):
        make_accelerator()
