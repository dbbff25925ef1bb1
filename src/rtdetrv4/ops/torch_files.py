"""Files of torch.save that a stranger may have made: read without running what is in them.

A pickle is a program: reading it can call any function with any arguments. PyTorch's `weights_only` reads those that
hold nothing but tensors and plain values, and refuses the rest. What it does not look at is looked at here: how much an
archive unpacks to, and how large a tensor is beside the bytes that it has.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdetrv4.archives import archive_problem, is_archive
from rtdetrv4.errors import WeightsError, first_line

MAX_DEPTH = 20
"""Containers inside each other; those of checkpoints are four or five."""
NUM_NAMED = 3
"""Python objects that a message names."""


class UntrustedError(WeightsError):
    """A file holds Python objects, and nobody said that it may be trusted."""


def check_torch_file(path: Path) -> None:
    """Check, without reading its content, that a file of torch.save unpacks to no more than it seems to.

    Raises:
        WeightsError: it does not, or holds a program.
    """
    if not is_archive(path):
        return
    if problem := archive_problem(path, takes_compressed=False):
        raise WeightsError(f"{path} was not loaded: it {problem}.")
    with zipfile.ZipFile(path) as archive:
        is_program = any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
    if is_program:
        raise WeightsError(
            f"{path} was not loaded: it is a TorchScript program, not a file of weights. If it was exported by "
            "rtdetrv4, its name must end in .torchscript."
        )


def load_torch_file(path: Path, *, trust: bool = False) -> Any:
    """The content of a file of torch.save, on the CPU.

    Args:
        path: a file that is there.
        trust: run what is in it, if it cannot be read otherwise.

    Raises:
        UntrustedError: it holds Python objects.
        WeightsError: it is damaged, or claims to be larger than it is.
    """
    check_torch_file(path)
    # Mapped, not read: a released checkpoint holds three more copies of the weights, for its optimizer and EMA.
    options: dict[str, Any] = {"map_location": "cpu", "mmap": is_archive(path)}
    try:
        content = torch.load(path, weights_only=True, **options)
    except pickle.UnpicklingError as error:
        needed = _objects_in(path)
        if not needed:
            raise WeightsError(f"{path} is damaged or not a checkpoint{disguise(path)}.") from error
        if not trust:
            raise UntrustedError(
                f"{path} was not loaded: it holds Python objects ({needed}), and reading these can run any code that "
                f"the file brings along. If you trust whoever made it: rtdetrv4 convert {path} --trust --out "
                "weights.safetensors, or trust=True in Python."
            ) from error
        content = _load_trusted(path, options)
    except Exception as error:  # a damaged pickle can fail in any way
        raise WeightsError(f"{path} is damaged ({first_line(error)}){disguise(path)}.") from error
    require_plain(content, path)
    return content


def require_plain(content: Any, path: Path) -> None:
    """Check that the tensors of a file are no larger than their bytes, and are where they can be read.

    A tensor of a trillion elements can be made of the four bytes of one, by a stride of zero; whoever copies it needs
    the memory of them all.

    Raises:
        WeightsError: one is not.
    """
    for tensor in _tensors(content, path):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise WeightsError(
                f"{path} was not loaded: it holds a tensor that is {tensor.layout} on {tensor.device}, expected plain "
                "ones on the CPU."
            )
        claimed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        if claimed > held:
            raise WeightsError(
                f"{path} was not loaded: a tensor of it claims {tuple(tensor.shape)}, {claimed} bytes, and the file "
                f"holds {held} of them; save it again with .contiguous()."
            )


def _tensors(content: Any, path: Path) -> Iterator[Tensor]:
    """Every tensor in nested containers, each container once: they may hold each other, or one a million times."""
    seen: set[int] = set()
    layer = [content]
    for _ in range(MAX_DEPTH):
        following: list[Any] = []
        for each in layer:
            if isinstance(each, Tensor):
                yield each
            elif isinstance(each, Mapping | list | tuple | set) and id(each) not in seen:
                seen.add(id(each))
                following += each.values() if isinstance(each, Mapping) else each
        layer = following
        if not layer:
            return
    raise WeightsError(f"{path} was not loaded: it has more than {MAX_DEPTH} containers inside each other.")


def _load_trusted(path: Path, options: dict[str, Any]) -> Any:
    try:
        return torch.load(path, weights_only=False, **options)
    except Exception as error:  # whatever its code raises
        raise WeightsError(f"{path} cannot be loaded ({type(error).__name__}: {first_line(error)}).") from error


def _objects_in(path: Path) -> str:
    """The Python objects that a file needs, for a message."""
    try:
        needed = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above
        return ""
    more = f" and {len(needed) - NUM_NAMED} more" if len(needed) > NUM_NAMED else ""
    return f"{', '.join(needed[:NUM_NAMED])}{more}"


def disguise(path: Path) -> str:
    """Say what a file that is not a checkpoint is, if it is one of the usual mistakes."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if not start:
        return ": it is empty"
    if start.startswith(b"<"):
        return ": it is a web page, so its download failed"
    if start.startswith(b"version https://git-lfs"):
        return ": it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    return ""
