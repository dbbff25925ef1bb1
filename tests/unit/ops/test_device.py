from __future__ import annotations

import pytest
import torch

from rtdetrv4.errors import ConfigError
from rtdetrv4.ops.device import find_device, is_out_of_memory


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Make PyTorch find so many accelerators of a kind; None: no accelerator."""
    kind, count = request.param
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind) if count else None)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: kind == "cuda")


@pytest.mark.parametrize(
    ("devices", "name", "found"),
    [
        (("cpu", 0), "auto", "cpu"),
        (("cpu", 0), "cpu", "cpu"),
        (("cuda", 2), "auto", "cuda"),
        (("cuda", 2), "cuda:1", "cuda:1"),
        (("cuda", 2), "cpu", "cpu"),
        (("mps", 1), "auto", "mps"),
    ],
    indirect=["devices"],
)
@pytest.mark.usefixtures("devices")
def test_devices_that_are_there(name: str, found: str) -> None:
    assert find_device(name) == torch.device(found)


@pytest.mark.parametrize(
    ("devices", "name", "message"),
    [
        (("cpu", 0), "cuda", 'no device "cuda" here, only cpu; this PyTorch is built without CUDA. Use'),
        (("cpu", 0), "mps", 'no device "mps" here, only cpu. Use device="auto".'),
        (("cuda", 0), "cuda:0", 'no device "cuda:0" here, only cpu. Use'),
        (("cuda", 1), "cuda:7", 'no device "cuda:7" here, only cpu and cuda:0. Use'),
        (("cuda", 2), "cuda:2", 'no device "cuda:2" here, only cpu, cuda:0 and cuda:1. Use'),
        (("mps", 1), "cuda", 'no device "cuda" here, only cpu and mps:0; this PyTorch is built without CUDA'),
    ],
    indirect=["devices"],
)
@pytest.mark.usefixtures("devices")
def test_devices_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as told:
        find_device(name)
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
            True,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_a_cpu_that_cannot_allocate_is_recognized() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
