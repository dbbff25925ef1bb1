"""`last.pt` and `best.pt`: the whole state of a training run, to resume from."""

from __future__ import annotations

import pickle
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rtdetrv4.archives import UNREADABLE
from rtdetrv4.errors import WeightsError, first_line
from rtdetrv4.ops.torch_files import check_torch_file, require_plain
from rtdetrv4.outputs import write_whole
from rtdetrv4.weights.files import WEIGHTS_FILE

LAST_FILE, BEST_FILE = "last.pt", "best.pt"

#: Incremented when the content of a checkpoint changes; files with another number are refused.
FORMAT = 1


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write a training state, made of tensors and plain Python values.

    Raises:
        OSError: it could not be written; what was there before is whole.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            try:
                torch.save({"format": FORMAT, **state}, file)
            except RuntimeError as error:
                if isinstance(cause := error.__context__, OSError):  # torch's writer has words of its own for it
                    raise cause from error
                raise

    write_whole(path, write, durable=True)


def check_checkpoint(path: str | Path) -> None:
    """Compare the content of a training state with its checksums (CRC-32), which `torch.load` does not.

    Raises:
        WeightsError: there is no such file, or it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; a run can be resumed from the {LAST_FILE} in its output folder.")
    check_torch_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if damaged is not None:
        raise WeightsError(f"{path} is damaged: the checksum of {damaged} is wrong.")


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training state onto the CPU. Nothing in the file is executed (`weights_only`).

    Raises:
        WeightsError: there is no such file, it is damaged, or it is not a training state of this package.
    """
    path = Path(path)
    check_checkpoint(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} cannot be read as a checkpoint: its pickle is damaged, or holds Python objects, which can run any "
            "code and which no training state has."
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise _unreadable(path, error) from error
    require_plain(state, path)
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise WeightsError(
            f"{path} has checkpoint format {found}, expected {FORMAT}; it was written by another program."
        )
    return state


def _unreadable(path: Path, error: Exception) -> WeightsError:
    if path.name in (LAST_FILE, BEST_FILE):
        return WeightsError(f"{path} is damaged or cut off ({first_line(error)}).")
    return WeightsError(
        f"{path} cannot be read as a checkpoint ({first_line(error)}). "
        f"Only {LAST_FILE} and {BEST_FILE} hold a training state; {WEIGHTS_FILE} is for prediction and fine-tuning."
    )


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of every random number generator of this process."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """The inverse of `rng_state`. From a checkpoint of another kind of device, it restores what both have."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"], device)
