"""Whether an exported file computes what PyTorch computes.

Two runtimes round differently, and a detector sorts in two places: when it chooses queries, and when it lists the best
detections. Nearly tied entries may swap places there without anything being wrong. So detections are compared at the
same place first, and those that differ are then looked for elsewhere; whatever is not found is an error.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rtdetrv4.errors import ExportError, require
from rtdetrv4.models import DetectionModel, postprocess
from rtdetrv4.ops.boxes import xyxy_from_cxcywh
from rtdetrv4.runtime.sessions import METADATA_KEY, ExportMetadata

logger = logging.getLogger(__name__)

MAX_BOX_PX = 0.5
MAX_SCORE = 1e-3
ROUNDING = 1e-4
"""Class logits that are closer than this may change places between two runtimes."""


@dataclass(frozen=True)
class ParityReport:
    """How far an exported file is from PyTorch."""

    model: str
    agrees: bool
    problem: str
    """What is wrong, or an empty string."""
    max_box_px: float
    """Largest difference of a coordinate, in pixels of the input."""
    max_score: float
    """Largest difference of a score."""
    batches: tuple[int, ...]
    """Batch sizes that were run."""
    num_images: int
    num_detections: int
    """Compared."""
    num_moved: int
    """Detections found at another place of the list, next to others with almost the same score."""
    num_undecided: int
    """Images left out because which queries are chosen hangs on rounding; at most half of all."""
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
    """What a detector lists for one image: detections, or raw queries."""

    scores: np.ndarray
    """N×1, or N×K for queries."""
    labels: np.ndarray
    """(N,); all 0 for queries."""
    boxes_xyxy_px: np.ndarray
    """N×4."""


class OutputGap(NamedTuple):
    """Two lists for the same image."""

    max_box_px: float
    max_score: float
    num_moved: int
    num_lost: int
    """Entries without a counterpart in the other list, and no tie at its end to blame."""


def verify_onnx(
    path: str | Path, model: DetectionModel, *, batches: Sequence[int] = (1, 2, 7), report: str | Path | None = None
) -> ParityReport:
    """Run a file written by `export_onnx` in onnxruntime, and compare with PyTorch on noise and on made-up scenes.

    Args:
        path: the file, or one made from it that takes and returns the same.
        model: what it was exported from; not changed.
        batches: numbers of images to run at once; only 1 if the file has a fixed batch size.
        report: where to write the report as JSON; by default beside the file, as NAME.parity.json.

    Raises:
        ExportError: boxes differ by more than 0.5 pixels or scores by more than 0.001, or onnxruntime fails.
    """
    path = Path(path)
    runtime = require("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
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
        problem = "too many scores of this model are tied to compare it; has it been trained?"
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
    report = path.with_suffix(".parity.json") if report is None else Path(report)
    report.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    if problem:
        raise ExportError(f"{result} See {report}.")
    logger.info("%s", result)
    return result


def compare(expected: Listed, actual: Listed) -> OutputGap:
    """Match two lists for one image, and measure the pairs."""
    here, there = _pairs(expected, actual)
    box_px = np.abs(expected.boxes_xyxy_px[here] - actual.boxes_xyxy_px[there]).max(initial=0)
    score = np.abs(expected.scores[here] - actual.scores[there]).max(initial=0)
    lost = max(_num_unexplained(expected, here, actual), _num_unexplained(actual, there, expected))
    return OutputGap(float(box_px), float(score), int((here != there).sum()), lost)


def _pairs(expected: Listed, actual: Listed) -> tuple[np.ndarray, np.ndarray]:
    """Indices of entries that agree: first those at the same place, then, the nearest first, of what is left."""
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
    """Largest difference in units of what is allowed, by broadcasting; infinite for different labels."""
    box = np.abs(a.boxes_xyxy_px - b.boxes_xyxy_px).max(axis=-1) / MAX_BOX_PX
    score = np.abs(a.scores - b.scores).max(axis=-1) / MAX_SCORE
    return np.where(a.labels == b.labels, np.maximum(box, score), np.inf)


def _num_unexplained(listed: Listed, matched: np.ndarray, other: Listed) -> int:
    """Entries of a list that are not in another, although no tie can have pushed them off its end."""
    missing = np.setdiff1d(np.arange(len(listed.labels)), matched)
    if listed.scores.shape[-1] > 1:  # queries are all there, in any order
        return len(missing)
    # Sorted scores cannot differ by more than single ones do, whatever has changed places.
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
    """PyTorch's outputs under the file's names, and for each image by how much the last chosen query was chosen."""
    scores: list[Tensor] = []

    def remember(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        scores.append(output.amax(dim=-1))

    handle = reference.query_selection.score_head.register_forward_hook(remember)
    output = reference(images)
    handle.remove()
    num_queries = output.boxes.shape[1]
    ordered = scores[0].sort(dim=1, descending=True).values
    chosen, passed = ordered[:, num_queries - 1], ordered[:, num_queries:]
    margins = (chosen - passed[:, 0]).tolist() if passed.shape[1] else [np.inf] * len(images)
    if metadata.outputs == "raw":
        return {"logits": output.logits.numpy(), "boxes": output.boxes.numpy()}, margins
    best = postprocess(output.logits, output.boxes, torch.ones(1, 2), actual["scores"].shape[1])
    return {"scores": best.scores.numpy(), "labels": best.labels.numpy(), "boxes": best.boxes_xyxy_px.numpy()}, margins


def _listed(outputs: dict[str, np.ndarray], metadata: ExportMetadata) -> Iterator[Listed]:
    """One list per image."""
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
    """Images B×3×H×W in [0, 1], all different: made-up scenes and, every other one, noise."""
    rng = np.random.default_rng(0)
    for size in sizes:
        images = [_scene(rng, *image_size) if index % 2 == 0 else rng.random((3, *image_size)) for index in range(size)]
        yield torch.from_numpy(np.stack(images).astype(np.float32))


def _scene(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Waves with colored rectangles before them."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    rows, columns, phase = rng.uniform(1, 9, (3, 3, 1, 1))
    scene = 0.5 + 0.3 * np.sin(2 * np.pi * (rows * y + columns * x) + phase)
    for _ in range(12):
        top, left = rng.integers(height), rng.integers(width)
        bottom, right = top + rng.integers(4, height // 2), left + rng.integers(4, width // 2)
        scene[:, top:bottom, left:right] = rng.random((3, 1, 1))
    return np.clip(scene + rng.normal(0, 0.02, scene.shape), 0, 1)
