"""Exported models, run without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from rtdetrv4.errors import ExportError, require
from rtdetrv4.runtime.detect import detect
from rtdetrv4.runtime.detections import Detections
from rtdetrv4.runtime.preprocess import ResizeMode, preprocess
from rtdetrv4.runtime.selection import Confidence, Duplicates, Selection
from rtdetrv4.runtime.slicing import OVERLAP, Slicing
from rtdetrv4.types import ClassMap

METADATA_KEY = "rtdetrv4"
NUM_TOP = 300
"""Predictions per image that post-processing keeps; as many as there are queries, where they are more."""


class ExportMetadata(NamedTuple):
    """The metadata of an exported file: everything needed to run it, in any language."""

    model: str
    names: tuple[str, ...]
    """K class names."""
    category_ids: tuple[int, ...]
    """Ids of the classes in the annotations."""
    image_size: tuple[int, int]
    """Height and width of the input."""
    outputs: Literal["postprocessed", "raw"]
    """"postprocessed": `scores` B×N, `labels` B×N, `boxes` B×N×4 xyxy in [0, 1] of the input, by descending score.
    "raw": `logits` B×Q×K and `boxes` B×Q×4 cxcywh in [0, 1]."""
    version: str
    """The version of rtdetrv4 that exported the file."""
    resize: ResizeMode = "stretch"
    """How images fill the input; `rtdetrv4.runtime.preprocess.view_of` maps boxes back."""
    scale: str = "1/255"
    channels: str = "RGB"
    thresholds: Mapping[str, float] | None = None
    """The best confidence threshold of each class in validation; absent if it is not known."""

    def to_json(self) -> str:
        """Return the value to store under the key "rtdetrv4"."""
        fields = self._asdict()
        if self.thresholds is None:
            del fields["thresholds"]
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> ExportMetadata:
        """Parse what `to_json` returned.

        Raises:
            ExportError: an entry is missing, or requires something that this version cannot do.
        """
        try:
            fields = json.loads(text)
            metadata = cls(**fields)._replace(
                **{key: tuple(fields[key]) for key in ("names", "category_ids", "image_size")}
            )
        except (ValueError, TypeError) as error:
            raise ExportError(
                f"the metadata of the exported model cannot be read ({error}); export it again"
            ) from error
        known = {
            "resize": {"stretch", "letterbox"},
            "scale": {"1/255"},
            "channels": {"RGB"},
            "outputs": {"postprocessed", "raw"},
        }
        for key, values in known.items():
            value = getattr(metadata, key)
            if value not in values:
                raise ExportError(
                    f'the exported model has {key} "{value}", expected {" or ".join(sorted(values))}; '
                    f"it was written by rtdetrv4 {metadata.version}; install that version"
                )
        return metadata


class OnnxSession:
    """A detector exported to ONNX, run by onnxruntime.

    Args:
        path: a file written by `Detector.export("onnx")`.
        providers: onnxruntime's execution providers in order of preference; by default CUDA if available, then the CPU.

    Attributes:
        metadata: class names, input size and more.

    Raises:
        ExportError: the file is missing or broken, or was not written by this package.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] | None = None) -> None:
        runtime = require("onnxruntime", "export")
        if not Path(path).is_file():
            raise ExportError(f'{path} does not exist; write it with Detector.export("onnx")')
        if providers is None:
            available = runtime.get_available_providers()
            providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ExportError(f"onnxruntime cannot load {path}: {error}") from error
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ExportError(f'{path} has no metadata of rtdetrv4; write it with Detector.export("onnx")')
        self.metadata = ExportMetadata.from_json(text)
        model_input = self._session.get_inputs()[0]
        self._dtype = np.float16 if model_input.type == "tensor(float16)" else np.float32
        self._fixed_batch: int | None = model_input.shape[0] if isinstance(model_input.shape[0], int) else None

    @overload
    def predict(
        self,
        source: Any,
        *,
        conf: Confidence = ...,
        batch: int = ...,
        stream: Literal[False] = ...,
        duplicates: Duplicates = ...,
        classes: Sequence[str | int] | str | int | None = ...,
        max_det: int | None = ...,
        slice: int | str | tuple[int, int] | None = ...,
        overlap: float = ...,
        whole: bool = ...,
    ) -> list[Detections]: ...

    @overload
    def predict(
        self,
        source: Any,
        *,
        conf: Confidence = ...,
        batch: int = ...,
        stream: Literal[True],
        duplicates: Duplicates = ...,
        classes: Sequence[str | int] | str | int | None = ...,
        max_det: int | None = ...,
        slice: int | str | tuple[int, int] | None = ...,
        overlap: float = ...,
        whole: bool = ...,
    ) -> Iterator[Detections]: ...

    def predict(
        self,
        source: Any,
        *,
        conf: Confidence = 0.25,
        batch: int = 1,
        stream: bool = False,
        duplicates: Duplicates = "drop",
        classes: Sequence[str | int] | str | int | None = None,
        max_det: int | None = None,
        slice: int | str | tuple[int, int] | None = None,
        overlap: float = OVERLAP,
        whole: bool = True,
    ) -> list[Detections] | Iterator[Detections]:
        """Detect objects.

        Args:
            source: a path, folder, glob pattern, list, video, camera index, H×W×3 RGB array or PIL image.
            conf: minimum confidence, a mapping from class name to minimum confidence, or "best": the threshold of each
                class that was best in the validation after training.
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

        Raises:
            ConfigError: an option is invalid, or names a class that the model does not have.
            SourceError: something in `source` cannot be read.
        """
        metadata = self.metadata
        found = detect(
            source,
            self.run,
            classes=ClassMap(metadata.names, metadata.category_ids),
            size_hw=metadata.image_size,
            mode=metadata.resize,
            batch=self._fixed_batch or batch,
            selection=Selection(
                metadata.names,
                conf=conf,
                best=metadata.thresholds,
                classes=classes,
                max_det=max_det,
                duplicates=duplicates,
            ),
            slicing=Slicing.of(slice, overlap, whole),
        )
        return found if stream else list(found)

    def run(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run a batch and return all detections, whatever their score.

        Args:
            images: B images, H×W×3 uint8 RGB.

        Returns:
            Scores B×N in descending order, labels B×N, and boxes B×N×4, xyxy in [0, 1] of the input.
        """
        inputs = preprocess(images, self.metadata.image_size, self.metadata.resize).astype(self._dtype, copy=False)
        if self._fixed_batch is not None:
            inputs = np.pad(inputs, ((0, self._fixed_batch - len(images)), (0, 0), (0, 0), (0, 0)))
        feed = {self._session.get_inputs()[0].name: inputs}
        if self.metadata.outputs == "raw":
            logits, boxes = self._session.run(["logits", "boxes"], feed)
            scores, labels, boxes = postprocess(logits, boxes, max(NUM_TOP, logits.shape[1]))
        else:
            scores, labels, boxes = self._session.run(["scores", "labels", "boxes"], feed)
        return scores[: len(images)], labels[: len(images)], boxes[: len(images)]


def postprocess(
    logits: np.ndarray, boxes: np.ndarray, num_top: int = NUM_TOP
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the `num_top` best (query, class) pairs of each image, by descending score; a query may yield several.

    Args:
        logits: B×Q×K.
        boxes: B×Q×4, cxcywh in [0, 1].
        num_top: N; capped at Q·K.

    Returns:
        Scores B×N in [0, 1], labels B×N, boxes B×N×4 xyxy in [0, 1].
    """
    num_classes = logits.shape[-1]
    flat = logits.astype(np.float32).reshape(len(logits), -1)
    num_top = min(num_top, flat.shape[1])
    best = np.argpartition(-flat, num_top - 1, axis=1)[:, :num_top]
    order = np.argsort(-np.take_along_axis(flat, best, axis=1), axis=1, kind="stable")
    index = np.take_along_axis(best, order, axis=1)
    with np.errstate(invalid="ignore"):  # NaN of damaged weights
        scores = np.exp(-np.logaddexp(0, -np.take_along_axis(flat, index, axis=1)))  # the sigmoid, without overflow
    center, half = boxes[..., :2].astype(np.float32), boxes[..., 2:].astype(np.float32) / 2
    corners = np.concatenate([center - half, center + half], axis=-1)
    return scores, index % num_classes, np.take_along_axis(corners, index[..., None] // num_classes, axis=1)
