"""`train_batch.jpg`: the first training images of each stage as the model sees them, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rtdetrv4.ops.boxes import xyxy_from_cxcywh
from rtdetrv4.runtime.draw import contact_sheet, draw_boxes
from rtdetrv4.runtime.preprocess import resize
from rtdetrv4.types import Batch

FIRST_SHEET, PSEUDO_SHEET = "train_batch.jpg", "pseudo_batch.jpg"
NUM_IMAGES = 12
COLUMNS = 4
WIDTH = 480
"""Width of an image in pixels; small ones are enlarged first, so that their labels can be read."""


class BatchSheets:
    """Contact sheets of the first batches of each stage, after augmentation: wrong labels show here first.

    Args:
        out: run folder.
        names: class names.
        first: the name of the first sheet.
    """

    def __init__(self, out: Path, names: Sequence[str], first: str = FIRST_SHEET) -> None:
        self.out = out
        self.names = names
        self.first = first
        self._path: Path | None = None
        self._pictures: list[np.ndarray] = []

    def begin(self, stage: str, *, is_first: bool) -> None:
        """Begin the sheet of a stage: `train_batch.jpg` for the first one, `train_batch-STAGE.jpg` for the others."""
        path = self.out / self.first
        self._path = path if is_first else path.with_stem(f"{path.stem}-{stage}")
        self._pictures = []

    def add(self, batch: Batch) -> None:
        """Draw a batch of float images, until the sheet is full; a stage that was begun before a resume has its own."""
        if self._path is None:
            return
        missing = NUM_IMAGES - len(self._pictures)
        for image, (labels, boxes) in zip(batch.images[:missing], batch.targets.split(), strict=False):
            self._pictures.append(draw_sample(image, labels, boxes, self.names))
        contact_sheet(self._pictures, self._path, columns=min(COLUMNS, len(self._pictures)), width=WIDTH)
        if len(self._pictures) == NUM_IMAGES:
            self._path = None


def draw_sample(
    image: Tensor, labels: Tensor, boxes: Tensor, names: Sequence[str], width: int = WIDTH
) -> NDArray[np.uint8]:
    """Draw an image of a batch with its boxes.

    Args:
        image: 3×H×W in [0, 1].
        labels: (n,).
        boxes: (n, 4), cxcywh in [0, 1].
        names: class names.
        width: width of the picture, in pixels.

    Returns:
        h×w×3 RGB of the image's aspect ratio.
    """
    pixels = np.ascontiguousarray(image.mul(255).round().byte().permute(1, 2, 0).cpu().numpy())
    height = max(1, round(width * pixels.shape[0] / pixels.shape[1]))
    xyxy = xyxy_from_cxcywh(boxes.cpu()).numpy() * (width, height, width, height)
    return draw_boxes(resize(pixels, (height, width)), xyxy, labels.cpu().numpy(), [names[int(i)] for i in labels])
