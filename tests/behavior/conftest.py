"""What the tests of whole runs share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from rtdetrv4.config import VARIANTS


@pytest.fixture(autouse=True, scope="module")
def _smaller_backbone() -> Iterator[None]:
    """The `test` model has one of timm's test networks as its backbone, which halves the time of a run.

    In processes that a test starts, it has its own.
    """
    small = replace(VARIANTS["test"], backbone="test_byobnet", out_indices=(2, 3, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rtdetrv4.assembly.models.VARIANTS", {**VARIANTS, "test": small})
        yield


@pytest.fixture(autouse=True, scope="module")
def drawn() -> Iterator[Callable[..., AbstractContextManager[None]]]:
    """Figures are saved blank, for drawing takes half the time of a short run; the unit tests of each figure draw it.

    Returns:
        A context in which figures of these names are drawn, or all of them if none is named.
    """
    blank = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
    wanted: list[str] = []
    original = Figure.savefig

    def save(figure: Figure, path: Path, **options: Any) -> None:
        if any(name in path.name for name in wanted):
            original(figure, path, **options)
        else:
            path.write_bytes(blank)

    @contextmanager
    def draw(*names: str) -> Iterator[None]:
        wanted.extend(names or (".png",))
        try:
            yield
        finally:
            wanted.clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield draw
