"""Finds F5 in whatever the layer of a foreign detector returns, and the cells of a padded batch that are image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from rtdetrv4.errors import ConfigError

Size = tuple[int, int]
"""Height and width."""
Select = Callable[[Any, Size], Tensor]
"""From what the layer returned, and the size of the images in pixels, to F5."""

_STRIDES = (8, 16, 32, 64)
"""Of maps whose last row or column may reach over the border, as convolutions with padding make them."""


class F5Reader(NamedTuple):
    """How to read F5 from what a layer returns."""

    layer: str
    """Its name, for messages."""
    dim: int
    """C."""
    select: Select | None
    batch_first: bool

    def read(self, output: Any, images: Tensor, grid_hw: Size | None) -> Tensor:
        """What the layer returned for `images` → F5, B×C×h×w.

        Raises:
            ConfigError: it cannot be read as F5, or not as that of these images.
        """
        height, width = images.shape[-2:]
        found = tensors_in(output) if self.select is None else tensors_in(self.select(output, (height, width)))
        fitting = [
            tensor
            for tensor in found
            if tensor.ndim in (3, 4) and tensor.shape[1 if tensor.ndim == 4 else 2] == self.dim
        ]
        if len(fitting) != 1:
            raise ConfigError(
                f'Layer "{self.layer}" returns {_shapes(found)}, of which {len(fitting)} can be F5: B×{self.dim}×h×w '
                f"or tokens with {self.dim} channels last. Choose one with `select`, or correct `dim`."
            )
        (f5,) = fitting
        is_map = f5.ndim == 4
        if not is_map and not self.batch_first:
            f5 = f5.transpose(0, 1)
        if len(f5) != len(images):
            hint = "" if is_map else " Tokens are read as B×N×C, or as N×B×C with batch_first=False."
            raise ConfigError(
                f'Layer "{self.layer}" returns {_shapes(fitting)} for {len(images)} images. Give `loss` the images '
                f"that the model saw last.{hint}"
            )
        if is_map:
            return f5
        tokens = f5.shape[1]
        grid = grid_hw or _grid(tokens, (height, width))
        if grid is None or math.prod(grid) != tokens:
            wanted = f"images of {height}×{width} in squares" if grid is None else f"a grid of {grid[0]}×{grid[1]}"
            raise ConfigError(
                f'Layer "{self.layer}" returns {tokens} tokens, which do not fill {wanted}. Give the grid_hw, and drop '
                "tokens that are not part of the map with `select`."
            )
        return f5.transpose(1, 2).unflatten(2, grid)


def tokens_of_stride(stride: int, strides: Sequence[int]) -> Select:
    """A `select` for layers that return the tokens of several maps one after another, as in Deformable DETR.

    Args:
        stride: of the map that is F5.
        strides: of all maps, in their order: (8, 16, 32, 64) in Deformable DETR.

    Raises:
        ConfigError: `stride` is not one of `strides`; later: the layer returns another number of tokens.
    """
    strides = tuple(strides)
    if stride not in strides:
        raise ConfigError(f"stride: got {stride}, expected one of strides, {strides}.")
    index = strides.index(stride)

    def select(output: Any, image_hw: Size) -> Tensor:
        tokens = tensors_in(output)[0]
        counts = [math.prod(_cells(image_hw, each)) for each in strides]
        if tokens.shape[1] != sum(counts):
            raise ConfigError(
                f"The layer returns {tokens.shape[1]} tokens for images of {image_hw[0]}×{image_hw[1]}; maps of "
                f"strides {strides} would have {' + '.join(map(str, counts))}. Correct `strides`."
            )
        return tokens[:, sum(counts[:index]) : sum(counts[: index + 1])]

    return select


def valid_cells(mask: Tensor, grid: Size, images: Tensor) -> Tensor:
    """Padding mask of pixels, B×H×W with nonzero where there is image → B×h×w, boolean.

    A cell counts as its first pixel does, as in DETR and its relatives.

    Raises:
        ConfigError: the mask does not fit the images, B×3×H×W.
    """
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim != 3 or mask.shape != (len(images), *images.shape[-2:]):
        raise ConfigError(
            f"mask: got {_shapes([mask])} for images of {_shapes([images])}, expected B×H×W: nonzero where there is "
            "image, 0 where there is padding."
        )
    return F.interpolate(mask[:, None].float(), size=grid)[:, 0].bool()


def in_whole_cells(images: Tensor, grid: Size) -> Tensor:
    """Extend images whose last cells reach over the border, as a map of stride 32 does on 800×1066 pixels.

    Without this, the teacher would see them stretched, and its last cells beside those of the student.
    """
    height, width = images.shape[-2:]
    for stride in _STRIDES:
        if _cells((height, width), stride) == grid:
            below, beside = grid[0] * stride - height, grid[1] * stride - width
            return F.pad(images, (0, beside, 0, below), mode="replicate") if below or beside else images
    return images


def tensors_in(output: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join("×".join(map(str, tensor.shape)) for tensor in tensors) or "no tensor"


def _grid(tokens: int, image_hw: Size) -> Size | None:
    """The grid (h, w) of `tokens` square cells that tile an image, or cover it at a usual stride; None if none does."""
    height, width = image_hw
    stride = math.isqrt(height * width // max(tokens, 1))
    exact = stride > 0 and height % stride == width % stride == 0
    for each in (*((stride,) if exact else ()), *_STRIDES):
        grid = _cells(image_hw, each)
        if math.prod(grid) == tokens:
            return grid
    return None


def _cells(image_hw: Size, stride: int) -> Size:
    """The grid that convolutions with padding make of an image."""
    return math.ceil(image_hw[0] / stride), math.ceil(image_hw[1] / stride)
