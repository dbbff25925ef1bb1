"""What is exported: a detector with what belongs before and after it, and what its files say of themselves."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rtdetrv4.models import DetectionModel, postprocess
from rtdetrv4.ops.boxes import xyxy_from_cxcywh
from rtdetrv4.ops.deformable import bilinear_by_gather
from rtdetrv4.outputs import write_text
from rtdetrv4.runtime.engines.engine import METADATA_FILE
from rtdetrv4.runtime.export_metadata import ExportMetadata
from rtdetrv4.runtime.selection import SAME_OBJECT_IOU

if TYPE_CHECKING:
    import onnx

    from rtdetrv4.export.int8 import Quantize

LONGEST_CHAIN = 4
"""Duplicates of duplicates that are told apart: of boxes that each repeat the one before, so many in a row."""


class GraphOptions(NamedTuple):
    """What a graph takes and returns."""

    num_top: int | None = 300
    """Detections per image, at most; None: logits and boxes of all queries."""
    frames: bool = False
    """Whether the input is B×H×W×3 uint8, as cameras and decoders give it, instead of B×3×H×W float32 in [0, 1]."""
    grid_sample: bool = True
    """Whether to sample with GridSample; without, by gathering, for runtimes that get GridSample wrong."""
    classes: tuple[int, ...] | None = None
    """The classes to return; None: all."""
    duplicates: Literal["keep", "drop"] = "keep"
    """"drop": one label per query, and score 0, at the end, for what repeats a better detection."""


class DeploymentModule(nn.Module):
    """A detector whose input and outputs are as `GraphOptions` say."""

    class_index: Tensor | None

    def __init__(self, detector: DetectionModel, options: GraphOptions) -> None:
        super().__init__()
        self.detector = detector
        self.options = options
        chosen = None if options.classes is None else torch.tensor(options.classes)
        self.register_buffer("class_index", chosen, persistent=False)

    @property
    def input_name(self) -> str:
        """Name of the input."""
        return "frames" if self.options.frames else "images"

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the tensors that `forward` returns."""
        return ("logits", "boxes") if self.options.num_top is None else ("labels", "boxes", "scores")

    def example(self, batch: int, image_size: tuple[int, int]) -> Tensor:
        """An input of the right shape."""
        if self.options.frames:
            return torch.zeros(batch, *image_size, 3, dtype=torch.uint8)
        return torch.zeros(batch, 3, *image_size)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images or frames → the tensors described at `ExportMetadata.outputs`."""
        options = self.options
        if options.frames:
            images = images.permute(0, 3, 1, 2).float() / 255
        with nullcontext() if options.grid_sample else _GatherInstead():
            output = self.detector(images)
        logits, boxes = output.logits, output.boxes
        if self.class_index is not None:
            logits = logits.index_select(-1, self.class_index)
        if options.num_top is None:
            return logits, boxes
        if options.duplicates == "drop":
            return _distinct(logits, boxes, options.num_top)
        best = postprocess(logits, boxes, images.new_ones(1, 2), options.num_top)
        return best.labels, best.boxes_xyxy_px, best.scores


class _GatherInstead(TorchFunctionMode):
    """Samples by gathering wherever the code inside samples with `grid_sample`."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return (bilinear_by_gather if func is F.grid_sample else func)(*args, **(kwargs or {}))


def _distinct(logits: Tensor, boxes: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels B×N, boxes B×N×4 xyxy and scores B×N as `rtdetrv4.runtime.selection.drop_duplicates` chooses them.

    The number of detections is constant, so those that it would drop get score 0 and go to the end.
    """
    best, labels = logits.float().max(dim=-1)
    num_top = min(num_top, best.shape[1])
    scores, query = best.sigmoid().topk(num_top, dim=1)
    labels = labels.gather(1, query)
    corners = xyxy_from_cxcywh(boxes.float()).gather(1, query[..., None].expand(-1, -1, 4))
    low, high = corners.split(2, dim=-1)
    shared = torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])
    overlap = shared.clamp(min=0).prod(dim=-1)
    areas = (high - low).prod(dim=-1)
    union = areas[:, :, None] + areas[:, None] - overlap
    is_better = scores.new_ones(num_top, num_top).triu(1).bool()
    repeats = (labels[:, :, None] == labels[:, None]) & is_better & (overlap > 0) & (overlap >= SAME_OBJECT_IOU * union)
    repeats = repeats.type_as(scores)  # row: the better one, column: the one that repeats it
    kept = torch.ones_like(scores)
    for _ in range(LONGEST_CHAIN):
        kept = 1 - (repeats * kept[:, :, None]).amax(dim=1)
    scores, order = (scores * kept).topk(num_top, dim=1)
    return labels.gather(1, order), corners.gather(1, order[..., None].expand(-1, -1, 4)), scores


class Calibration(NamedTuple):
    """What int8 needs to know: images to measure ranges on, and how much accuracy it may cost."""

    images: Sequence[np.ndarray]
    """Inputs of the network, B×3×H×W float32 in [0, 1]."""
    evaluate: Callable[[Path], float]
    """From a file to its AP, from 0 to 1."""
    torch_ap: float
    max_drop: float
    """Points of AP, from 0 to 100."""


@dataclass(frozen=True)
class Deployment:
    """A module and everything that the formats need to write it; its ONNX graph is traced once for all of them."""

    module: DeploymentModule
    metadata: ExportMetadata
    facts: Mapping[str, str]
    """Further entries to store where a format has room for them."""
    opset: int = 18
    simplify: bool = True
    calibration: Calibration | None = None

    @property
    def precision(self) -> str:
        """In what the network computes."""
        return self.metadata.precision

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """The ONNX graph in float32, with metadata."""
        from rtdetrv4.export.onnx import trace_graph

        return trace_graph(self)

    def quantize(self, quantize: Quantize, source: Path, path: Path) -> tuple[str, ...]:
        """Quantize as much as accuracy allows, and return what to note of it.

        Raises:
            ExportError: it costs more than it may.
        """
        from rtdetrv4.export.int8 import quantize_within

        assert self.calibration is not None
        images, measure, torch_ap, max_drop = self.calibration

        def evaluate(file: Path) -> float:
            if file.suffix == ".xml":
                write_text(file.with_name(METADATA_FILE), self.metadata.to_json())
            return measure(file)

        quantized = quantize_within(
            quantize, source, path, images, evaluate, reference=torch_ap, max_drop=max_drop
        ).quantized
        counts = f"{quantized.num_int8} convolutions and matrix products in int8, {quantized.num_float} in float"
        return (
            f"{counts}, ranges from {quantized.num_images} images",
            *(f"{part} in float: {why}" for part, why in quantized.in_float.items()),
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence exporters, which warn of their own deprecations and of every optional pass that they skip."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
