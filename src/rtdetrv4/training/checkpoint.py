"""Files a training run writes: `last.pt` and `best.pt` (everything, to go on), `weights.safetensors` (to predict).

Each is written beside its place and then renamed, so that a run that dies while writing leaves the old file whole.
"""

from __future__ import annotations

import pickle
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rtdetrv4.errors import WeightsError, first_line
from rtdetrv4.weights import files

#: Raised when what a checkpoint holds changes; an older one is refused with its number in the message.
FORMAT = 1


def save_checkpoint(state: Mapping[str, Any], path: Path, *copies: Path) -> None:
    """Write a training state, of tensors and plain Python values, to `path` and as a copy to `copies`."""
    files.write_whole(path, lambda temporary: torch.save({"format": FORMAT, **state}, temporary))
    for copy in copies:
        files.write_whole(copy, lambda temporary: shutil.copyfile(path, temporary))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training state onto the CPU. Nothing in the file is executed (`weights_only`).

    Raises:
        WeightsError: there is no such file, or it is not a training state of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; a run can be resumed from the last.pt in its output folder.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"{path} cannot be read as a checkpoint ({first_line(error)}). "
            "Only last.pt and best.pt hold a training state; weights.safetensors is for prediction and fine-tuning."
        ) from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise WeightsError(
            f"{path} has checkpoint format {found}, expected {FORMAT}; it was written by another program."
        )
    return state


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a model's weights for inference.

    Args:
        model: usually the EMA of the detector.
        path: of a safetensors file.
        metadata: any JSON: what one needs to build and use the model. Stored as one string under "rtdetrv4".
    """
    files.save_weights(model.state_dict(), path, metadata)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of every random generator of this process."""
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
    """The opposite of `rng_state`. A checkpoint from another kind of device restores what the two have in common."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"], device)
