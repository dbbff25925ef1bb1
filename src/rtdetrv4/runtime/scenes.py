"""Images to compare runtimes on, the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np


def scenes(size_hw: tuple[int, int], seed: int = 0) -> Iterator[np.ndarray]:
    """Yield images without end, H×W×3 uint8, all different: synthetic scenes and noise in turn."""
    rng = np.random.default_rng(seed)
    while True:
        yield _scene(rng, *size_hw)
        yield rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)


def digest(image: np.ndarray) -> str:
    """The beginning of an image's SHA-256."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16]


def _scene(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw colored rectangles in front of waves."""
    y, x = (each[..., None] for each in np.mgrid[:height, :width] / max(height, width))
    rows, columns, phase = rng.integers(1, 10, (3, 3))
    scene = 128 + 76 * np.sin(2 * np.pi * (rows * y + columns * x) + phase)
    scene += rng.integers(-5, 6, scene.shape)
    for _ in range(12):
        top, left = rng.integers(height), rng.integers(width)
        bottom, right = top + rng.integers(4, height // 2), left + rng.integers(4, width // 2)
        scene[top:bottom, left:right] = rng.integers(0, 256, 3)
    return scene.clip(0, 255).round().astype(np.uint8)
