"""Small data sets on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from rtdetrv4.data.formats import ROBOFLOW_FILE

CATEGORIES = ({"id": 1, "name": "cat"}, {"id": 2, "name": "dog"})


@pytest.fixture
def write_coco() -> Callable[..., Path]:
    """Writes a COCO file in the Roboflow layout, with a PNG of noise for every image."""

    def write(
        folder: Path,
        annotations: Sequence[dict[str, Any]] = (),
        num_images: int = 2,
        categories: Sequence[dict[str, Any]] = CATEGORIES,
        size_hw: tuple[int, int] = (48, 64),
        suffix: str = ".png",
        **replace: Any,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
        images = []
        for image_id in range(num_images):
            name = f"{image_id}{suffix}"
            cv2.imwrite(str(folder / name), cv2.blur(noise, (5, 5)))
            images.append({"id": image_id, "file_name": name, "height": size_hw[0], "width": size_hw[1]})
        rows = [{"id": i, "image_id": 0, "category_id": 1} | row for i, row in enumerate(annotations)]
        content = {"images": images, "annotations": rows, "categories": list(categories)} | replace
        path = folder / ROBOFLOW_FILE
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write
