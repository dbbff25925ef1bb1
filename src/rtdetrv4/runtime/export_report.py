"""What is known of an exported file: NAME.onnx.report.json beside NAME.onnx."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rtdetrv4.errors import ExportError

REPORT_SUFFIX = ".report.json"


class Latency(NamedTuple):
    """The time of a batch, without preparing images and drawing."""

    batch: int
    median_ms: float
    p90_ms: float
    num_runs: int


class Accuracy(NamedTuple):
    """COCO metrics of the file in its runtime, and of the same model in PyTorch, from 0 to 1."""

    data: str
    split: str
    num_images: int
    ap: float
    ap50: float
    torch_ap: float
    torch_ap50: float

    @property
    def drop(self) -> float:
        """Points of AP that the file loses, from 0 to 100; negative for a gain."""
        return 100 * (self.torch_ap - self.ap)


class ExpectedScene(NamedTuple):
    """What PyTorch finds in an image of `rtdetrv4.runtime.scenes`, so that a file can be verified without it."""

    number: int
    digest: str
    scores: tuple[float, ...]
    labels: tuple[int, ...]
    boxes_xyxy_px: tuple[tuple[float, ...], ...]
    """Pixels of the input."""


class ExportReport(NamedTuple):
    """The proof that an exported file computes what PyTorch computes, and what it costs."""

    file: str
    format: str
    precision: str
    model: str
    runtime: str
    """What the file was run with, such as "ONNX Runtime 1.30.0 on CPU"."""
    image_size: tuple[int, int]
    batches: tuple[int, ...]
    """The batch sizes run."""
    num_images: int
    num_detections: int
    """Detections compared one by one."""
    num_moved: int
    """Detections found at another position, among others with almost the same score."""
    num_undecided: int
    """Images that were not compared: there, rounding alone changes what PyTorch finds."""
    max_box_px: float
    """Largest difference of a coordinate, in pixels of the input; of matched detections if the precision is another."""
    max_score: float
    """Largest difference of a score, likewise."""
    num_confident: int
    matched: float | None
    """Share of confident detections that both have: same class, IoU of at least 0.95; None if there are none."""
    accuracy: Accuracy | None
    """None without a data set."""
    latency: Latency
    torch_latency: Latency
    size_bytes: int
    machine: str
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    expected: tuple[ExpectedScene, ...] = ()

    def to_json(self) -> str:
        """Return the content of the file."""
        fields = {name: _plain(value) for name, value in self._asdict().items()}
        scenes = fields.pop("expected")
        # A scene in a line: the file is to be read.
        lines = ",\n    ".join(json.dumps(scene) for scene in scenes)
        body = json.dumps(fields, indent=2, ensure_ascii=False)
        return f'{body[:-2]},\n  "expected": [{lines}]\n}}\n'

    @classmethod
    def read(cls, path: Path) -> ExportReport:
        """Read a report.

        Raises:
            ExportError: the file is missing or damaged.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            for name, kind in (("accuracy", Accuracy), ("latency", Latency), ("torch_latency", Latency)):
                fields[name] = None if fields[name] is None else kind(**fields[name])
            for name in ("image_size", "batches", "notes"):
                fields[name] = tuple(fields[name])
            fields["expected"] = tuple(ExpectedScene(**scene) for scene in fields["expected"])
            return cls(**fields)
        except FileNotFoundError:
            raise ExportError(f"{path} does not exist; it is written by Detector.export, beside the file.") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ExportError(f"{path} is damaged or of another version ({error}); export again.") from error

    def __str__(self) -> str:
        parts = [f"{self.file} agrees with PyTorch in {self.runtime}"]
        if self.precision == "fp32":
            parts.append(f"boxes within {self.max_box_px:.2g} px and scores within {self.max_score:.2g}")
        if self.matched is not None:
            parts.append(f"{100 * self.matched:.1f} % of the {self.num_confident} most confident detections matched")
        if self.accuracy is not None:
            parts.append(f"AP {100 * self.accuracy.ap:.2f}, in PyTorch {100 * self.accuracy.torch_ap:.2f}")
        sizes = ", ".join(map(str, self.batches))
        return f"{', '.join(parts)}; {self.num_images} images, in batches of {sizes}."


def report_path(path: Path) -> Path:
    """Where the report on an exported file or folder is, beside it."""
    return path.with_name(path.name + REPORT_SUFFIX)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(each) for name, each in value._asdict().items()}  # pyright: ignore[reportAttributeAccessIssue]
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
