"""Numbers recorded from the released code, to test against. README.md says what each file holds."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .inputs import fill, image, state_dict, targets

__all__ = ["RECIPES", "Golden", "fill", "image", "load", "state_dict", "table", "targets", "weights"]

_FOLDER = Path(__file__).parent


class Golden(NamedTuple):
    """One recording."""

    facts: dict[str, Any]
    """NAME.json."""
    arrays: dict[str, np.ndarray]
    """NAME.npz."""


def load(name: str) -> Golden:
    """The recording of a model ("rtdetrv4_s") or of a criterion ("criterion_s")."""
    with np.load(_FOLDER / f"{name}.npz") as archive:
        arrays = dict(archive)
    return Golden(table(name), arrays)


@functools.lru_cache(maxsize=1)
def weights(name: str) -> dict[str, np.ndarray]:
    """The released state dict with which the model `name` was recorded; kept until another is asked for."""
    recording = load(name)
    return state_dict(recording.facts["keys"], recording.arrays)


def table(name: str) -> Any:
    """The content of NAME.json: "schedules", "denoising"."""
    return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


RECIPES: dict[str, dict[str, Any]] = table("recipes")
"""How each of the 21 released models is built and trained, by name ("rtdetrv4_s")."""
