"""RT-DETRv4's training augmentation as it is usually written: PIL images through torchvision.transforms.v2.

The random choices and their probabilities are those of `rtdetrv4.data`; the arithmetic is torchvision's. Both end with
uint8 3×H×W, because the device converts to float32.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from rtdetrv4.data.transforms import Augmentation


class Labeled(NamedTuple):
    """An image on disk and its boxes."""

    path: Path
    boxes_xyxy_px: Tensor
    labels: Tensor


class TorchvisionPipeline:
    """A data set whose samples have one size.

    Args:
        images: the images to read.
        image_size: (H, W) of the samples.
        stage: probabilities, and the ranges of rotation, translation and scale of mosaics.
    """

    def __init__(self, images: Sequence[Labeled], image_size: tuple[int, int], stage: Augmentation) -> None:
        self.images = images
        self.stage = stage
        self.fit_tile = v2.Resize(min(image_size) // 2)
        self.move = v2.RandomAffine(
            degrees=stage.rotation,
            translate=(stage.translation, stage.translation),
            scale=(stage.min_scale, stage.max_scale),
        )
        self.recolor = v2.RandomPhotometricDistort(p=stage.photometric)
        self.crop = v2.Compose(
            [v2.RandomZoomOut(p=stage.zoom_out), v2.RandomApply([v2.RandomIoUCrop()], p=stage.iou_crop)]
        )
        self.finish = v2.Compose(
            [
                v2.SanitizeBoundingBoxes(min_size=1),
                v2.RandomHorizontalFlip(p=stage.flip),
                v2.Resize(image_size),
                v2.SanitizeBoundingBoxes(min_size=1),
                v2.ConvertBoundingBoxFormat("CXCYWH"),
                v2.PILToTensor(),
            ]
        )

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Return the image, 3×H×W uint8, and its boxes, cxcywh in [0, 1], with labels."""
        if random.random() < self.stage.mosaic:
            image, target = self.recolor(*self._mosaic(index))
        else:
            image, target = self.crop(*self.recolor(*self._read(index)))
        image, target = self.finish(image, target)
        height, width = image.shape[-2:]
        target["boxes"] = target["boxes"] / torch.tensor([width, height, width, height])
        return image, target

    def _read(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        path, boxes, labels = self.images[index]
        image = Image.open(path).convert("RGB")
        size = (image.height, image.width)
        return image, {"boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size), "labels": labels}

    def _mosaic(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        chosen = [index, *(random.randrange(len(self.images)) for _ in range(3))]
        parts = [self.fit_tile(*self._read(i)) for i in chosen]
        width = max(image.width for image, _ in parts)
        height = max(image.height for image, _ in parts)
        canvas = Image.new("RGB", (2 * width, 2 * height))
        boxes = []
        for (left, top), (image, target) in zip(((0, 0), (width, 0), (0, height), (width, height)), parts, strict=True):
            canvas.paste(image, (left, top))
            boxes.append(target["boxes"].as_subclass(Tensor) + torch.tensor([left, top, left, top]))
        size = (canvas.height, canvas.width)
        joined = tv_tensors.BoundingBoxes(torch.cat(boxes), format="XYXY", canvas_size=size)
        labels = torch.cat([target["labels"] for _, target in parts])
        return self.move(canvas, {"boxes": joined, "labels": labels})
