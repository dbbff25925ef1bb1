"""Proof that an exported file computes what PyTorch computes, in the runtime that it is for."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from rtdetrv4.errors import ExportError
from rtdetrv4.export.deployment import DeploymentModule
from rtdetrv4.models import DetectionModel
from rtdetrv4.runtime.agreement import (
    CONFIDENT,
    MAX_BOX_PX,
    MAX_SCORE,
    MOST_COMPARED,
    SAME_SCORE,
    Listed,
    Matched,
    OutputGap,
    compare,
    list_detections,
    list_outputs,
    match,
)
from rtdetrv4.runtime.engines import Engine
from rtdetrv4.runtime.export_metadata import ExportMetadata
from rtdetrv4.runtime.export_report import Accuracy, ExpectedScene, ExportReport, Latency
from rtdetrv4.runtime.machine import processor_name
from rtdetrv4.runtime.preprocess import preprocess
from rtdetrv4.runtime.proof import LEAST_MATCHED, in_batches, open_proven, size_bytes
from rtdetrv4.runtime.scenes import digest, scenes
from rtdetrv4.runtime.speed import measure_speed

BATCHES = (1, 2, 7)
NUM_IMAGES = sum(BATCHES)
"""Made images that every file is run on, whatever batch size it accepts."""
ROUNDING = 1e-4
"""Class logits closer than this may swap places between two runtimes."""
NUDGE, NUM_NUDGES = 1e-6, 3
"""Pixels are multiplied by factors this close to 1, so many times, to see what rounding alone changes."""
NUM_SCENES, FEWEST_STORED = 2, 30
"""Images that a report keeps for `verify`, and detections in each of them."""
SECONDS = 2.0
"""Time to measure latency for."""
PACKAGES = ("rtdetrv4", "torch", "onnx", "onnxruntime", "openvino")


class Validation(NamedTuple):
    """A data set to measure accuracy on."""

    data: str
    split: str
    num_images: int
    torch_ap: float
    torch_ap50: float
    measure: Callable[[Path], tuple[float, float]]
    """From an exported file to AP and AP50, from 0 to 1."""
    max_drop: float = 0.5
    """Points of AP, from 0 to 100, that another precision may cost."""


class Expectation(NamedTuple):
    """What PyTorch computes for an image."""

    outputs: Mapping[str, np.ndarray]
    """Of a batch of 1."""
    margin: float
    """How far the last selected query is ahead of the first one that is not, in class logits."""


def prove(
    path: Path,
    model: DetectionModel,
    deployed: DeploymentModule,
    *,
    format: str,
    file: str,
    images: Sequence[np.ndarray] = (),
    validation: Validation | None = None,
    notes: tuple[str, ...] = (),
) -> ExportReport:
    """Run a file in its runtime at several batch sizes, and compare it with PyTorch.

    In float32, every box and score must agree, except in images in which they change in PyTorch itself once the pixels
    are rounded differently. In other precisions the confident detections must, or AP if there is a data set.

    Args:
        path: the file or folder.
        model: the model that was exported, as it was before anything was fused; not changed.
        deployed: what was exported.
        format: a name of `rtdetrv4.export.formats.FORMATS`.
        file: the name that the file will have.
        images: photos to compare on, besides synthetic scenes and noise; H×W×3 uint8 RGB of any size.
        validation: the data set to measure AP on.
        notes: for the report.

    Raises:
        ExportError: the runtime fails, or it does not agree; the message says how.
    """
    engine = open_proven(path)
    metadata, precision = engine.metadata, engine.metadata.precision
    reference = DeploymentModule(copy.deepcopy(model).float().cpu().eval(), deployed.options)
    batches = BATCHES if metadata.batch is None else (metadata.batch,)
    made = list(islice(scenes(metadata.image_size), max(sum(batches), NUM_IMAGES)))
    inputs = preprocess([*made, *images], metadata.image_size, metadata.resize)
    expected = [_expected(reference, image[None]) for image in inputs]
    actual = list(_in_turns(engine, inputs, batches))
    _check_shapes(expected, actual)

    is_settled = _Settled(reference, metadata)
    gaps: list[OutputGap] = []
    num_undecided = num_detections = 0
    problem = ""
    for image, ours, theirs in zip(inputs, expected, actual, strict=True):
        gap = compare(list_outputs(ours.outputs, metadata)[0], list_outputs(theirs, metadata)[0])
        is_tied = ours.margin < ROUNDING
        matters = precision == "fp32" and not problem  # one image that decides is enough
        if gap.num_lost and (is_tied or (matters and not is_settled(image[None], ours.outputs))):
            num_undecided += 1
            continue
        gaps.append(gap)
        num = theirs["boxes"].shape[1]
        num_detections += num
        if gap.num_lost and not problem:
            problem = (
                f"{gap.num_lost} of {num} detections in an image differ by more than {MAX_BOX_PX} px or {MAX_SCORE} in "
                "score"
            )
    if not problem and num_undecided > len(gaps):
        problem = (
            f"rounding alone changes the detections in {num_undecided} of {len(expected)} images, so that they cannot "
            "be compared; has the model been trained?"
        )
    listed = [list_detections(each.outputs, metadata)[0] for each in expected]
    decided = [index for index, each in enumerate(expected) if each.margin >= ROUNDING]
    matched = match([listed[index] for index in decided], [list_detections(actual[i], metadata)[0] for i in decided])
    accuracy = None if validation is None else _accuracy(path, validation)
    if precision != "fp32":
        problem = _problem(precision, matched, accuracy, None if validation is None else validation.max_drop)
    if problem:
        raise ExportError(f"The exported file does not agree with PyTorch in {engine.name}: {problem}.")
    return ExportReport(
        file=file,
        format=format,
        precision=precision,
        model=metadata.model,
        runtime=engine.name,
        image_size=metadata.image_size,
        batches=batches,
        num_images=len(inputs),
        num_detections=num_detections,
        num_moved=sum(gap.num_moved for gap in gaps),
        num_undecided=num_undecided,
        max_box_px=max(gap.max_box_px for gap in gaps) if precision == "fp32" else matched.max_box_px,
        max_score=max(gap.max_score for gap in gaps) if precision == "fp32" else matched.max_score,
        num_confident=matched.num_confident,
        matched=matched.share,
        accuracy=accuracy,
        latency=_latency(engine, inputs, batches[0]),
        torch_latency=_latency(_InTorch(deployed), inputs, batches[0]),
        size_bytes=size_bytes(path),
        machine=processor_name(),
        versions=_versions(),
        notes=notes,
        expected=tuple(_stored(made, listed, [index for index in decided if index < len(made)])),
    )


def _problem(precision: str, matched: Matched, accuracy: Accuracy | None, max_drop: float | None) -> str:
    """What is wrong with a file in a precision other than float32; an empty string if it may be used."""
    if accuracy is not None and max_drop is not None:
        if accuracy.drop <= max_drop:
            return ""
        return (
            f"{precision} costs {accuracy.drop:.2f} points of AP, from {100 * accuracy.torch_ap:.2f} to "
            f"{100 * accuracy.ap:.2f}, and max_drop is {max_drop:g}"
        )
    share = matched.share
    if share is None or share >= LEAST_MATCHED[precision]:
        return ""
    return (
        f"of {matched.num_confident} confident detections {100 * share:.1f} % are found in {precision} as well, "
        f"expected {100 * LEAST_MATCHED[precision]:g} %; give data=… to let the AP decide"
    )


@torch.no_grad()
def _expected(module: DeploymentModule, image: np.ndarray) -> Expectation:
    """PyTorch's outputs for an image 1×3×H×W."""
    logits: list[torch.Tensor] = []
    selection = module.detector.query_selection
    with selection.score_head.register_forward_hook(lambda *args: logits.append(args[-1])):
        outputs = _InTorch(module)(image)
    ordered = logits[0].amax(dim=-1).sort(dim=1, descending=True).values[0]
    passed = ordered[selection.num_queries :]
    margin = float(ordered[selection.num_queries - 1] - passed[0]) if len(passed) else np.inf
    return Expectation(outputs, margin)


class _Settled:
    """Whether PyTorch finds the same in an image however it is rounded.

    Args:
        reference: the model.
        metadata: how to read its outputs.
    """

    def __init__(self, reference: DeploymentModule, metadata: ExportMetadata) -> None:
        # Frames of whole numbers cannot be changed by a little.
        self._module = _InTorch(DeploymentModule(reference.detector, reference.options._replace(frames=False)))
        self._metadata = metadata

    def __call__(self, image: np.ndarray, outputs: Mapping[str, np.ndarray]) -> bool:
        """An image 1×3×H×W, and what was computed of it."""
        before = list_outputs(outputs, self._metadata)[0]
        random = np.random.default_rng(0)
        for _ in range(NUM_NUDGES):
            factors = 1 + NUDGE * random.uniform(-1, 1, image.shape).astype(np.float32)
            if compare(before, list_outputs(self._module(image * factors), self._metadata)[0]).num_lost:
                return False
        return True


class _InTorch:
    """A module as an engine."""

    def __init__(self, module: DeploymentModule) -> None:
        self._module = module.eval()

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        pixels = torch.from_numpy(images)
        if self._module.options.frames:
            pixels = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        with torch.no_grad():
            found = self._module(pixels)
        return {name: each.numpy() for name, each in zip(self._module.output_names, found, strict=True)}


def _in_turns(engine: Engine, inputs: np.ndarray, batches: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
    """The outputs for each image, as batches of 1; the first images are run in batches of these sizes."""
    start = 0
    for size in batches:
        yield from in_batches(engine, inputs[start : start + size], size)
        start += size
    yield from in_batches(engine, inputs[start:], batches[0])


def _check_shapes(expected: Sequence[Expectation], actual: Sequence[Mapping[str, np.ndarray]]) -> None:
    for ours, theirs in zip(expected, actual, strict=True):
        for name, array in ours.outputs.items():
            if name not in theirs or theirs[name].shape != array.shape:
                got = theirs[name].shape if name in theirs else "nothing"
                raise ExportError(f"The exported file returns {got} for {name}, expected {array.shape}.")


def _accuracy(path: Path, validation: Validation) -> Accuracy:
    ap, ap50 = validation.measure(path)
    return Accuracy(
        validation.data,
        validation.split,
        validation.num_images,
        *(round(float(each), 4) for each in (ap, ap50, validation.torch_ap, validation.torch_ap50)),
    )


def _latency(run: Callable[[np.ndarray], object], inputs: np.ndarray, batch: int) -> Latency:
    return Latency(batch, *measure_speed(lambda _: run(inputs[:batch]), seconds=SECONDS))


def _stored(made: Sequence[np.ndarray], listed: Sequence[Listed], decided: Sequence[int]) -> Iterator[ExpectedScene]:
    for index in decided[:NUM_SCENES]:
        scores = listed[index].scores[:, 0]
        most = min(max(int((scores >= CONFIDENT - SAME_SCORE).sum()), FEWEST_STORED), MOST_COMPARED + FEWEST_STORED)
        kept = Listed(*(array[:most] for array in listed[index]))
        yield ExpectedScene(
            index,
            digest(made[index]),
            tuple(round(float(score), 4) for score in kept.scores[:, 0]),
            tuple(kept.labels.tolist()),
            tuple(tuple(round(side, 2) for side in box) for box in kept.boxes_xyxy_px.tolist()),
        )


def _versions() -> dict[str, str]:
    """Versions of the packages that have a part in an export, where they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
