"""Exported models, run without torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from rtdetrv4.errors import ConfigError, ExportError
from rtdetrv4.runtime.detect import detect
from rtdetrv4.runtime.detections import Detections
from rtdetrv4.runtime.engines import Engine, Hint, Precision, open_engine
from rtdetrv4.runtime.export_metadata import ExportMetadata
from rtdetrv4.runtime.postprocess import NUM_TOP, postprocess
from rtdetrv4.runtime.preprocess import preprocess
from rtdetrv4.runtime.regions import Points
from rtdetrv4.runtime.selection import Confidence, Duplicates, Selection
from rtdetrv4.runtime.slicing import OVERLAP, Slicing
from rtdetrv4.runtime.sources import Reading, open_frames
from rtdetrv4.runtime.tracking import steps_of
from rtdetrv4.runtime.videos import RECONNECT
from rtdetrv4.types import ClassMap

logger: logging.Logger = logging.getLogger(__name__)


class ExportedDetector:
    """An exported detector, run by the runtime that its file is for.

    Args:
        path: a file or folder written by `Detector.export`.
        device: what to run it on, in the words of the runtime, such as "cpu" or "cuda"; None for the best that it has
            and that is known to be right.
        threads: threads that work on one batch; None leaves it to the runtime.
        precision: "fp32" or "bf16", where the runtime has the choice; None for what it prefers.
        hint: "throughput" to run as many images as possible in the same time, from several threads; see `open_engine`.
        trust: run the file even if it is a program that was not exported on this machine: .torchscript, .pt2 or .pte.

    Attributes:
        path: the file.
        engine: the runtime with the loaded file.
        metadata: class names, input size and more.

    Raises:
        ConfigError: there is no such device, or an option that the runtime does not have.
        ExportError: the file is missing or broken, or was not written by this package.
        MissingDependencyError: the runtime is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str | None = None,
        threads: int | None = None,
        precision: Precision | None = None,
        hint: Hint = "latency",
        trust: bool = False,
    ) -> None:
        self.path: Path = Path(path)
        self.engine: Engine = open_engine(
            path,
            device=None if device in (None, "auto") else str(device),
            threads=threads,
            precision=precision,
            hint=hint,
            trust=trust,
        )
        self.metadata: ExportMetadata = self.engine.metadata
        if precision is None:  # what the runtime prefers may round more than PyTorch
            logger.info("%s runs in %s", path, self.engine.name)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names."""
        return self.metadata.names

    @overload
    def predict(
        self,
        source: Any,
        *,
        conf: Confidence = ...,
        imgsz: int | str | tuple[int, int] | None = ...,
        batch: int = ...,
        stream: Literal[False] = ...,
        duplicates: Duplicates = ...,
        classes: Sequence[str | int] | str | int | None = ...,
        max_det: int | None = ...,
        slice: int | str | tuple[int, int] | None = ...,
        overlap: float = ...,
        whole: bool = ...,
        every: int = ...,
        latest: bool = ...,
        reconnect: int = ...,
        track: bool | str | None = ...,
        roi: str | Points | Sequence[str | Points] | None = ...,
    ) -> list[Detections]: ...

    @overload
    def predict(
        self,
        source: Any,
        *,
        conf: Confidence = ...,
        imgsz: int | str | tuple[int, int] | None = ...,
        batch: int = ...,
        stream: Literal[True],
        duplicates: Duplicates = ...,
        classes: Sequence[str | int] | str | int | None = ...,
        max_det: int | None = ...,
        slice: int | str | tuple[int, int] | None = ...,
        overlap: float = ...,
        whole: bool = ...,
        every: int = ...,
        latest: bool = ...,
        reconnect: int = ...,
        track: bool | str | None = ...,
        roi: str | Points | Sequence[str | Points] | None = ...,
    ) -> Iterator[Detections]: ...

    def predict(
        self,
        source: Any,
        *,
        conf: Confidence = 0.25,
        imgsz: int | str | tuple[int, int] | None = None,
        batch: int = 1,
        stream: bool = False,
        duplicates: Duplicates = "drop",
        classes: Sequence[str | int] | str | int | None = None,
        max_det: int | None = None,
        slice: int | str | tuple[int, int] | None = None,
        overlap: float = OVERLAP,
        whole: bool = True,
        every: int = 1,
        latest: bool = False,
        reconnect: int = RECONNECT,
        track: bool | str | None = None,
        roi: str | Points | Sequence[str | Points] | None = None,
    ) -> list[Detections] | Iterator[Detections]:
        """Detect objects.

        Args:
            source: a path, folder, glob pattern, list, video, camera number, URL, .streams file, H×W×3 RGB array or PIL
                image.
            conf: minimum confidence, a mapping from class name to minimum confidence, or "best": the threshold of each
                class that was best in the validation after training.
            imgsz: the size the file was exported with; no other is possible.
            batch: images, or tiles of them, per run. Files exported with a fixed batch size always use that.
            stream: yield results one by one instead of returning a list, so that long videos fit in memory.
            duplicates: "drop": one label per query, and of nearly identical boxes of one class only the best; "keep":
                everything the model lists.
            classes: the classes to return, by name or index.
            max_det: the most objects per image.
            slice: detect in tiles of this size, a side or (height, width) in pixels of the image, and join what is
                found; an image that fits a tile is not cut. None: no tiles.
            overlap: the share of a tile that its neighbor shows too.
            whole: with tiles, detect in the whole image as well, for objects that are larger than a tile.
            every: look at each of so many images of videos and streams.
            latest: of cameras, streams and pipes, look at the newest image, and leave out those that came meanwhile.
            reconnect: how often to try to open a camera or stream again, each time it drops; 0: its end is the end.
            track: give objects ids, the same in all images of a source: True or "bytetrack", or "ocsort".
            roi: polygons, of which one must contain the center of an object: (x, y) in pixels, or in shares of the
                image if all are from 0 to 1; or texts such as "0,0 640,0 640,480".

        Raises:
            ConfigError: an option is invalid, or names a class that the model does not have.
            SourceError: something in `source` cannot be read.
            MissingDependencyError: `track` needs trackers, which is not installed.
        """
        self._check_size(imgsz)
        metadata = self.metadata
        steps = steps_of(track, roi)
        found = detect(
            open_frames(source, Reading(every, latest, reconnect)),
            self.run,
            classes=ClassMap(metadata.names, metadata.category_ids),
            size_hw=metadata.image_size,
            mode=metadata.resize,
            training_hw=metadata.training_hw,
            batch=metadata.batch or batch,
            selection=Selection(
                metadata.names,
                conf=conf,
                best=metadata.thresholds,
                classes=classes,
                max_det=max_det,
                duplicates=duplicates,
            ),
            slicing=Slicing.of(slice, overlap, whole),
            steps=steps,
        )
        return found if stream else list(found)

    def run(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run a batch and return all detections, whatever their score.

        Args:
            images: B images, H×W×3 uint8 RGB.

        Returns:
            Scores B×N in descending order, labels B×N, and boxes B×N×4, xyxy in [0, 1] of the input.
        """
        inputs = preprocess(images, self.metadata.image_size, self.metadata.resize)
        fixed_batch = self.metadata.batch
        if fixed_batch is not None:
            inputs = np.pad(inputs, ((0, fixed_batch - len(images)), (0, 0), (0, 0), (0, 0)))
        outputs = self.engine(inputs)
        self._check_outputs(outputs, len(inputs))
        if self.metadata.outputs == "raw":
            logits, boxes = outputs["logits"], outputs["boxes"]
            scores, labels, boxes = postprocess(logits, boxes, max(NUM_TOP, logits.shape[1]))
        else:
            scores, labels, boxes = outputs["scores"], outputs["labels"], outputs["boxes"]
        return scores[: len(images)], labels[: len(images)], boxes[: len(images)]

    __call__ = predict

    def __repr__(self) -> str:
        height, width = self.metadata.image_size
        return f'{type(self).__name__}("{self.path}", {self.engine.name}, {height}x{width}, {self._classes})'

    @property
    def _classes(self) -> str:
        return f"{len(self.names)} class{'es' * (len(self.names) != 1)}"

    def _check_outputs(self, outputs: Mapping[str, np.ndarray], batch: int) -> None:
        """Check that a file returned what its metadata, which a user may have changed or exchanged, announce.

        Raises:
            ExportError: an output is missing or of another shape or kind, or a label has no name.
        """
        wanted = ("logits", "boxes") if self.metadata.outputs == "raw" else ("scores", "labels", "boxes")
        if missing := [name for name in wanted if name not in outputs]:
            raise ExportError(
                f"{self.path}: its metadata announce {', '.join(wanted)}, but the file returned "
                f"{', '.join(outputs)}, without {', '.join(missing)}; export it again."
            )
        first = outputs[wanted[0]]
        rows = (batch, first.shape[1] if first.ndim > 1 else 0)
        shapes = {"logits": (*rows, *first.shape[2:3]), "scores": rows, "labels": rows, "boxes": (*rows, 4)}
        for name in wanted:
            shape, kinds = outputs[name].shape, "iu" if name == "labels" else "f"
            if shape != shapes[name] or (name == "logits" and len(shape) != 3) or outputs[name].dtype.kind not in kinds:
                raise ExportError(
                    f"{self.path}: for {batch} image{'s' * (batch != 1)} the file returned {name} of shape "
                    f"{'×'.join(map(str, shape)) or 'none'}, {outputs[name].dtype}, which no detector returns; export "
                    "it again."
                )
        if self.metadata.outputs == "raw":
            if (scored := outputs["logits"].shape[-1]) != len(self.names):
                raise ExportError(
                    f"{self.path}: its metadata name {self._classes}, but the file returned scores of {scored}; "
                    "export it again."
                )
            return
        labels = outputs["labels"]
        wrong = labels[(labels < 0) | (labels >= len(self.names))]
        if len(wrong):
            raise ExportError(
                f"{self.path}: its metadata name {self._classes}, counted from 0, but the file returned label "
                f"{wrong[0]}; export it again."
            )

    def _check_size(self, imgsz: int | str | tuple[int, int] | None) -> None:
        """Refuse another image size than the file's; its sides may be written as for `Detector`."""
        height, width = self.metadata.image_size
        same = (None, (height, width), f"{height}x{width}", *((height, str(height)) if height == width else ()))
        if (tuple(imgsz) if isinstance(imgsz, list) else imgsz) not in same:
            given = "x".join(map(str, imgsz)) if isinstance(imgsz, tuple | list) else imgsz
            raise ConfigError(
                f"imgsz: got {given}, but {self.path} was exported for {height}x{width}; leave it out, or export again."
            )
