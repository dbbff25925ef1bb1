"""Export to ONNX files that carry everything needed to use them."""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rtdetrv4.errors import ExportError, require
from rtdetrv4.export.graph import pad_in_pools
from rtdetrv4.export.verify import report_path, verify_onnx
from rtdetrv4.models import DetectionModel, fuse, postprocess
from rtdetrv4.runtime.export_metadata import METADATA_KEY, ExportMetadata
from rtdetrv4.runtime.preprocess import ResizeMode
from rtdetrv4.types import ClassMap

if TYPE_CHECKING:
    import onnx

STRIDE = 32
OPSETS = range(18, 24)
"""Since opset 17 a layer norm is one operator; its decomposition overflows in float16 and loses detections."""


class ExportedDetector(nn.Module):
    """The module to export: a detector and, unless `num_top` is None, its post-processing."""

    def __init__(self, detector: DetectionModel, num_top: int | None) -> None:
        super().__init__()
        self.detector = detector
        self.num_top = num_top

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the tensors that `forward` returns."""
        return ("logits", "boxes") if self.num_top is None else ("labels", "boxes", "scores")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images B×3×H×W in [0, 1] → the tensors described at `ExportMetadata.outputs`."""
        output = self.detector(images)
        if self.num_top is None:
            return output.logits, output.boxes
        best = postprocess(output.logits, output.boxes, images.new_ones(1, 2), self.num_top)
        return best.labels, best.boxes_xyxy_px, best.scores


def export_onnx(
    model: DetectionModel,
    path: str | Path,
    *,
    model_name: str,
    classes: ClassMap,
    image_size: tuple[int, int],
    resize: ResizeMode = "stretch",
    opset: int = 18,
    dynamic: bool = True,
    postprocess: bool = True,
    num_top: int = 300,
    simplify: bool = True,
    facts: Mapping[str, str] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Path:
    """Write an ONNX file, after checking that onnxruntime computes the same with it as PyTorch.

    Args:
        model: not changed; a fused copy is exported, in float32.
        path: the file to write. A report on the check is written beside it; see `verify_onnx`.
        model_name: stored in the file.
        classes: stored in the file.
        image_size: height and width of the input, multiples of 32.
        resize: how images fill the input; stored in the file.
        opset: version of the ONNX operators, 18 to 23.
        dynamic: accept any batch size, not only 1.
        postprocess: outputs are `labels` B×N, `boxes` B×N×4 (xyxy in [0, 1]) and `scores` B×N, by descending score;
            otherwise `logits` B×Q×K and `boxes` B×Q×4 (cxcywh in [0, 1]).
        num_top: N.
        simplify: simplify the graph, mostly with onnxslim.
        facts: further entries to store, such as the teacher and its license.
        thresholds: the best confidence threshold of each class, by name; stored in the file.

    Returns:
        `path`.

    Raises:
        ExportError: the size or the opset is impossible, or the file does not agree with PyTorch.
        MissingDependencyError: onnx, onnxscript or onnxslim is not installed.
    """
    if not image_size or any(side <= 0 or side % STRIDE for side in image_size):
        raise ExportError(f"image_size is {image_size}, expected (height, width), both multiples of {STRIDE}.")
    if opset not in OPSETS:
        raise ExportError(f"opset is {opset}, expected {OPSETS[0]} to {OPSETS[-1]}.")
    num_classes = model.query_selection.score_head.out_features
    if classes.num_classes != num_classes:
        raise ExportError(f"The model has {num_classes} classes, but `classes` names {classes.num_classes}.")

    deployed = fuse(model).requires_grad_(False).float().cpu()
    graph = _trace(ExportedDetector(deployed, num_top if postprocess else None), image_size, opset, dynamic)
    if simplify:
        graph = require("onnxslim", "export").slim(graph)
        pad_in_pools(graph)
    metadata = ExportMetadata(
        model=model_name,
        names=classes.names,
        category_ids=classes.category_ids,
        image_size=image_size,
        outputs="postprocessed" if postprocess else "raw",
        version=importlib.metadata.version("rtdetrv4"),
        resize=resize,
        thresholds=thresholds,
    )
    _finish(graph, {METADATA_KEY: metadata.to_json(), **(facts or {})})

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unchecked = path.with_name(f".{path.name}")
    try:
        require("onnx", "export").save(graph, unchecked)
        verify_onnx(unchecked, model, report=report_path(path))
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)
    return path


def _trace(module: ExportedDetector, image_size: tuple[int, int], opset: int, dynamic: bool) -> onnx.ModelProto:
    """Trace the graph with torch.export; docs/adr/0007-onnx-exporter.md says why not with TorchScript."""
    require("onnxscript", "export")
    # torch.export treats a batch of 1 as constant, even if its dimension is declared dynamic.
    images = torch.zeros(2 if dynamic else 1, 3, *image_size)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            (images,),
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=list(module.output_names),
            dynamic_shapes={"images": {0: torch.export.Dim("batch")} if dynamic else {}},
            verbose=False,
        )
    assert program is not None
    graph: Any = program.model_proto
    found = next(entry.version for entry in graph.opset_import if not entry.domain)
    if found != opset:
        raise ExportError(f"This model cannot be exported with opset {opset}; use opset {found}.")
    return graph


def _finish(graph: onnx.ModelProto, entries: Mapping[str, str]) -> None:
    """Replace the exporter's notes on this machine's source files with the entries that users of the file need."""
    onnx = require("onnx", "export")
    for item in (*graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    del graph.graph.metadata_props[:]
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, dict(entries))
    # The oldest version that has the operators; the exporter writes its newest, which older runtimes refuse to read.
    graph.ir_version = onnx.helper.find_min_ir_version_for(list(graph.opset_import))
    onnx.checker.check_model(graph)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which warns of its own deprecations and of every optional pass that it skips."""
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
