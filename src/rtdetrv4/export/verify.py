"""Check that an exported file computes the same as PyTorch.

Two runtimes round differently, and a detector sorts twice: to select queries, and to list the best detections. Nearly
tied entries may swap places without anything being wrong. So detections are first compared position by position, and
those that differ are then looked for elsewhere in the list; any that is not found is an error.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rtdetrv4.errors import ExportError, require
from rtdetrv4.models import DetectionModel, postprocess
from rtdetrv4.ops.boxes import xyxy_from_cxcywh
from rtdetrv4.outputs import write_text
from rtdetrv4.runtime.export_metadata import METADATA_KEY, ExportMetadata

logger = logging.getLogger(__name__)

MAX_BOX_PX = 0.5
MAX_SCORE = 1e-3
ROUNDING = 1e-4
"""Class logits closer than this may swap places between two runtimes."""


@dataclass(frozen=True)
class ParityReport:
    """How closely an exported file agrees with PyTorch."""

    model: str
    agrees: bool
    problem: str
    """Description of the disagreement, or an empty string."""
    max_box_px: float
    """Largest difference of a coordinate, in pixels of the input."""
    max_score: float
    """Largest difference of a score."""
    batches: tuple[int, ...]
    """The batch sizes run."""
    num_images: int
    num_detections: int
    """Detections compared."""
    num_moved: int
    """Detections found at another position, among others with almost the same score."""
    num_undecided: int
    """Images left out because rounding decides which queries are selected; at most half of all."""
    versions: dict[str, str]

    def __str__(self) -> str:
        if not self.agrees:
            return f"The exported file does not agree with PyTorch: {self.problem}."
        return (
            f"The exported file agrees with PyTorch on {self.num_images - self.num_undecided} images at batch "
            f"{', '.join(map(str, self.batches))}: boxes within {self.max_box_px:.2g} px, "
            f"scores within {self.max_score:.2g}."
        )


class Listed(NamedTuple):
    """The output for one image: detections, or raw queries."""

    scores: np.ndarray
    """N×1, or N×K for queries."""
    labels: np.ndarray
    """(N,); all 0 for queries."""
    boxes_xyxy_px: np.ndarray
    """N×4."""


class OutputGap(NamedTuple):
    """The differences between two outputs for the same image."""

    max_box_px: float
    max_score: float
    num_moved: int
    num_lost: int
    """Entries without a counterpart in the other list that no tie at its end explains."""


def report_path(path: Path) -> Path:
    """Where the report on an exported file is, beside it."""
    return path.with_suffix(".parity.json")


def verify_onnx(
    path: str | Path, model: DetectionModel, *, batches: Sequence[int] = (1, 2, 7), report: str | Path | None = None
) -> ParityReport:
    """Run a file written by `export_onnx` in onnxruntime, and compare it with PyTorch on noise and synthetic scenes.

    Args:
        path: the file, or one derived from it with the same inputs and outputs.
        model: the model that was exported; not changed.
        batches: batch sizes to run; only 1 if the file has a fixed batch size.
        report: where to write the report as JSON; by default beside the file, as NAME.parity.json.

    Raises:
        ExportError: boxes differ by more than 0.5 pixels or scores by more than 0.001, or onnxruntime fails.
    """
    path = Path(path)
    runtime = require("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ExportError(f"onnxruntime cannot load {path}: {error}") from error
    metadata = ExportMetadata.from_json(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, ""))
    if isinstance(session.get_inputs()[0].shape[0], int):
        batches = (1,)

    reference = copy.deepcopy(model).float().cpu().eval()
    compared: list[OutputGap] = []
    num_detections = num_undecided = 0
    problem = ""
    for number, images in enumerate(_batches(batches, metadata.image_size)):
        try:
            outputs = session.run(None, {"images": images.numpy()})
        except Exception as error:  # as above
            raise ExportError(f"onnxruntime cannot run the exported file at batch {len(images)}: {error}") from error
        actual = dict(zip((output.name for output in session.get_outputs()), outputs, strict=True))
        expected, margins = _expected(reference, images, metadata, actual)
        for name, array in expected.items():
            if actual[name].shape != array.shape:
                raise ExportError(f"The exported file returns {name} of shape {actual[name].shape}, not {array.shape}.")
        for theirs, ours, margin in zip(_listed(expected, metadata), _listed(actual, metadata), margins, strict=True):
            result = compare(theirs, ours)
            if result.num_lost and margin < ROUNDING:
                num_undecided += 1
                continue
            compared.append(result)
            num_detections += len(ours.labels)
            if result.num_lost and not problem:
                problem = (
                    f"at batch {batches[number]}, {result.num_lost} of {len(ours.labels)} detections in an image "
                    f"differ by more than {MAX_BOX_PX} px or {MAX_SCORE} in score"
                )
    if not problem and num_undecided > len(compared):
        problem = "too many scores are tied to compare them; has the model been trained?"
    result = ParityReport(
        model=metadata.model,
        agrees=not problem,
        problem=problem,
        max_box_px=max((one.max_box_px for one in compared), default=0.0),
        max_score=max((one.max_score for one in compared), default=0.0),
        batches=tuple(batches),
        num_images=sum(batches),
        num_detections=num_detections,
        num_moved=sum(one.num_moved for one in compared),
        num_undecided=num_undecided,
        versions={name: version(name) for name in ("rtdetrv4", "torch", "onnx", "onnxruntime")},
    )
    report = report_path(path) if report is None else Path(report)
    write_text(report, json.dumps(asdict(result), indent=2) + "\n")
    if problem:
        raise ExportError(f"{result} See {report}.")
    logger.info("%s", result)
    return result


def compare(expected: Listed, actual: Listed) -> OutputGap:
    """Match two outputs for one image, and measure how the pairs differ."""
    here, there = _pairs(expected, actual)
    box_px = np.abs(expected.boxes_xyxy_px[here] - actual.boxes_xyxy_px[there]).max(initial=0)
    score = np.abs(expected.scores[here] - actual.scores[there]).max(initial=0)
    lost = max(_num_unexplained(expected, here, actual), _num_unexplained(actual, there, expected))
    return OutputGap(float(box_px), float(score), int((here != there).sum()), lost)


def _pairs(expected: Listed, actual: Listed) -> tuple[np.ndarray, np.ndarray]:
    """Return indices of entries that agree: first at the same position, then elsewhere, the nearest first."""
    places = np.arange(len(expected.labels))
    agree = _distance(expected, actual) <= 1
    left = places[~agree]
    apart = _distance(
        Listed(*(array[left, None] for array in expected)), Listed(*(array[None, left] for array in actual))
    )
    pairs = {int(place): int(place) for place in places[agree]}
    taken = set(pairs)
    for flat in np.argsort(apart, axis=None):
        row, column = divmod(int(flat), max(len(left), 1))
        if not apart[row, column] <= 1:
            break
        if int(left[row]) not in pairs and int(left[column]) not in taken:
            pairs[int(left[row])] = int(left[column])
            taken.add(int(left[column]))
    return np.array(list(pairs), dtype=int), np.array(list(pairs.values()), dtype=int)


def _distance(a: Listed, b: Listed) -> np.ndarray:
    """Return the largest difference relative to what is allowed, broadcast; infinite for different labels."""
    box = np.abs(a.boxes_xyxy_px - b.boxes_xyxy_px).max(axis=-1) / MAX_BOX_PX
    score = np.abs(a.scores - b.scores).max(axis=-1) / MAX_SCORE
    return np.where(a.labels == b.labels, np.maximum(box, score), np.inf)


def _num_unexplained(listed: Listed, matched: np.ndarray, other: Listed) -> int:
    """Count entries missing from the other list that no tie can have pushed off its end."""
    missing = np.setdiff1d(np.arange(len(listed.labels)), matched)
    if listed.scores.shape[-1] > 1:  # all queries are listed, in any order
        return len(missing)
    # Sorting never increases the largest difference of scores, whichever entries swapped places.
    apart = np.abs(listed.scores - other.scores)[:, 0]
    misplaced = int((~(apart <= MAX_SCORE)).sum())  # NaN too
    if misplaced:
        return max(misplaced, len(missing))
    tied_with_last = other.scores[-1, 0] + 2 * apart.max(initial=0) + 1e-6
    return int((~(listed.scores[missing, 0] <= tied_with_last)).sum())


@torch.no_grad()
def _expected(
    reference: DetectionModel, images: Tensor, metadata: ExportMetadata, actual: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Compute PyTorch's outputs under the file's names, and each image's margin of the last selected query."""
    logits: list[Tensor] = []
    with reference.query_selection.score_head.register_forward_hook(lambda *args: logits.append(args[-1])):
        output = reference(images)
    num_queries = output.boxes.shape[1]
    ordered = logits[0].amax(dim=-1).sort(dim=1, descending=True).values
    chosen, passed = ordered[:, num_queries - 1], ordered[:, num_queries:]
    margins = (chosen - passed[:, 0]).tolist() if passed.shape[1] else [np.inf] * len(images)
    if metadata.outputs == "raw":
        return {"logits": output.logits.numpy(), "boxes": output.boxes.numpy()}, margins
    best = postprocess(output.logits, output.boxes, torch.ones(1, 2), actual["scores"].shape[1])
    return {"scores": best.scores.numpy(), "labels": best.labels.numpy(), "boxes": best.boxes_xyxy_px.numpy()}, margins


def _listed(outputs: dict[str, np.ndarray], metadata: ExportMetadata) -> Iterator[Listed]:
    """Split the outputs of a batch by image."""
    height, width = metadata.image_size
    boxes = outputs["boxes"]
    if metadata.outputs == "raw":
        scores = torch.from_numpy(outputs["logits"]).sigmoid().numpy()
        labels = np.zeros(boxes.shape[:2], dtype=np.int64)
        boxes = xyxy_from_cxcywh(torch.from_numpy(boxes)).numpy()
    else:
        scores, labels = outputs["scores"][..., None], outputs["labels"]
    for image in range(len(boxes)):
        yield Listed(scores[image], labels[image], boxes[image] * np.array([width, height] * 2, dtype=np.float32))


def _batches(sizes: Sequence[int], image_size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield images B×3×H×W in [0, 1], all different, alternating between synthetic scenes and noise."""
    rng = np.random.default_rng(0)
    for size in sizes:
        images = [_scene(rng, *image_size) if index % 2 == 0 else rng.random((3, *image_size)) for index in range(size)]
        yield torch.from_numpy(np.stack(images).astype(np.float32))


def _scene(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw colored rectangles in front of waves."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    rows, columns, phase = rng.uniform(1, 9, (3, 3, 1, 1))
    scene = 0.5 + 0.3 * np.sin(2 * np.pi * (rows * y + columns * x) + phase)
    for _ in range(12):
        top, left = rng.integers(height), rng.integers(width)
        bottom, right = top + rng.integers(4, height // 2), left + rng.integers(4, width // 2)
        scene[:, top:bottom, left:right] = rng.random((3, 1, 1))
    return np.clip(scene + rng.normal(0, 0.02, scene.shape), 0, 1)
