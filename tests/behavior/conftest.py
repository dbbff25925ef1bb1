"""What the tests of whole runs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure


@pytest.fixture(autouse=True)
def _blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are saved blank, for drawing takes half the time of a short run.

    They are drawn in runs that a module's tests share, which begin before this, and by the unit tests of each figure.
    """

    def save(figure: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes())

    monkeypatch.setattr(Figure, "savefig", save)
