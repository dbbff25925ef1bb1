"""What the benchmarks of deployed networks share: running files, and comparing what they find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou

from rtdetrv4.assembly import create_model
from rtdetrv4.data.decode import read_image
from rtdetrv4.data.formats import read_splits
from rtdetrv4.data.records import Split
from rtdetrv4.data.synthetic import CLASSES, write_shapes
from rtdetrv4.evaluation import CocoEvaluator
from rtdetrv4.export import export_model
from rtdetrv4.runtime import preprocess
from rtdetrv4.runtime.engines import open_engine
from rtdetrv4.runtime.export_metadata import ExportMetadata
from rtdetrv4.runtime.preprocess import ResizeMode, view_of
from rtdetrv4.types import ClassMap, PostprocessedBatch

Run = Callable[[np.ndarray], dict[str, np.ndarray]]
"""From images B×3×H×W float32 to outputs by name, post-processed."""

MIN_SCORE = 0.3
MIN_OVERLAP = 0.95


def onnx_run(path: Path, threads: int = 2) -> Run:
    """A file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def openvino_run(path: Path, precision: str = "f32", threads: int = 2) -> Run:
    """A file in OpenVINO, one image at a time, with the precision it may compute floats in: "f32", "f16" or "bf16"."""
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    model = core.read_model(path)
    size = model.input().get_partial_shape().to_string().split(",")[1:]
    model.reshape(f"[1,{','.join(size)}")  # fixed shapes are computed faster
    compiled = core.compile_model(model, "CPU", settings)
    names = [output.get_any_name() for output in compiled.outputs]
    request = compiled.create_infer_request()

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        found = request.infer({0: images})
        return {name: np.array(found[name]) for name in names}

    return run


class Accuracy(NamedTuple):
    """How good the detections of a file are."""

    ap: float
    ap50: float
    matched: float
    """Share of the confident detections of either side that the other side has too; 1 for the reference itself."""


class Evaluation:
    """Evaluates files on the images of a split, which are read once.

    Args:
        split: images and boxes, labeled by the classes of the network.
        size_hw: height and width of the input.
        resize: how images fill it.
    """

    def __init__(self, split: Split, size_hw: tuple[int, int], resize: ResizeMode) -> None:
        self._split = split
        self._views = [view_of((each.info.height, each.info.width), size_hw, resize) for each in split.records]
        self.inputs: list[np.ndarray] = []
        for record in split.records:
            info = record.info
            image = read_image(split.image_dir / info.file_name, (info.height, info.width))
            self.inputs.append(preprocess([image], size_hw, resize))
        self._reference: list[dict[str, np.ndarray]] = []

    def refer_to(self, run: Run) -> None:
        """Compare with what this file finds."""
        self._reference = [run(images) for images in self.inputs]

    def __call__(self, run: Run) -> Accuracy:
        """Run a file on all images."""
        found = [run(images) for images in self.inputs]
        evaluator = CocoEvaluator(self._split.records, self._split.classes)
        for record, view, outputs in zip(self._split.records, self._views, found, strict=True):
            boxes = view.boxes_px(outputs["boxes"][0])[None]
            arrays = (outputs["scores"], outputs["labels"], boxes)
            evaluator.update([record.info], PostprocessedBatch(*(torch.from_numpy(array) for array in arrays)))
        metrics = evaluator.compute()
        return Accuracy(metrics.ap, metrics.ap50, matched_share(self._reference, found))


def matched_share(expected: Sequence[dict[str, np.ndarray]], actual: Sequence[dict[str, np.ndarray]]) -> float:
    """The share of confident detections that the other side has too: of the same class, with an IoU of 0.95 or more."""
    is_matched = [
        has
        for one, other in zip(expected, actual, strict=True)
        for mine, theirs in ((one, other), (other, one))
        for has in _has_counterpart(mine, theirs)
    ]
    return float(np.mean(is_matched)) if is_matched else 1.0


def _has_counterpart(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> np.ndarray:
    """Whether the other side has each of the confident detections, even if it is half as sure of it."""
    sure, known = mine["scores"][0] >= MIN_SCORE, theirs["scores"][0] >= MIN_SCORE / 2
    ious = box_iou(torch.from_numpy(mine["boxes"][0][sure]), torch.from_numpy(theirs["boxes"][0][known])).numpy()
    is_same = mine["labels"][0][sure][:, None] == theirs["labels"][0][known]
    return ((ious >= MIN_OVERLAP) & is_same).any(axis=1)


class Case(NamedTuple):
    """A float32 file, and the data to calibrate and evaluate with."""

    path: Path
    metadata: ExportMetadata
    train: Split
    val: Split


def case_of(model: Path | None, data: Path | None, folder: Path, *, quick: bool, val_data: Path | None = None) -> Case:
    """What a benchmark runs on: a file of Detector.export and a data set, or random weights and drawn shapes.

    Args:
        model: a float32 ONNX file with post-processing.
        data: a data set with the classes of the model; both or neither.
        folder: where to write files that are made.
        quick: of the smallest size, if it is made.
        val_data: a data set whose validation part is used instead.
    """
    if model is None or data is None:
        size = 64 if quick else 640
        data = write_shapes(
            folder / "shapes", num_train=4 if quick else 100, num_val=2 if quick else 20, image_size=size
        )
        model = folder / "random.onnx"
        torch.manual_seed(0)
        name = "test" if quick else "rtdetrv4-s"
        classes = ClassMap(CLASSES, tuple(range(1, len(CLASSES) + 1)))
        network = create_model(name, len(CLASSES))
        export_model(network, {"onnx": model}, model_name=name, classes=classes, image_size=(size, size))
    metadata = open_engine(model).metadata
    classes = ClassMap(metadata.names, metadata.category_ids)
    splits = read_splits(data, classes, ("train", "val"), make_val=True)
    train, val = splits.train, splits.val if val_data is None else read_splits(val_data, classes, ("val",)).val
    assert train is not None
    assert val is not None
    return Case(model, metadata, train, val)
