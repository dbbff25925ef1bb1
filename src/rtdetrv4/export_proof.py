"""What an export is proven on, and the report that shows it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtdetrv4.errors import ConfigError, DatasetError, MissingDependencyError, RTDETRError, require
from rtdetrv4.exported_detector import ExportedDetector
from rtdetrv4.runtime.preprocess import ResizeMode
from rtdetrv4.types import ClassMap

if TYPE_CHECKING:
    from rtdetrv4.data.formats import Split

logger: logging.Logger = logging.getLogger(__name__)

Run = Callable[[Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray, np.ndarray]]
NUM_PROOF = 16
"""Photos on which an exported file is compared with PyTorch."""


def proof_on(
    data: str | Path,
    split: str,
    *,
    known: ClassMap,
    chosen: Sequence[int],
    size_hw: tuple[int, int],
    resize: ResizeMode,
    precision: str,
    max_drop: float,
    run: Run,
) -> dict[str, Any]:
    """The arguments of `export_model` that come from a data set: photos, accuracy, and images for int8.

    Args:
        data: as for `Detector.train`.
        split: the part to measure the AP on: "train", "val" or "test".
        known: the classes of the model.
        chosen: indices of the classes that the exported file returns.
        size_hw: height and width that images are scaled to, in pixels.
        resize: how they are scaled.
        precision: of the exported file; "int8" needs training images too, for ranges.
        max_drop: points of AP that the file may lose.
        run: PyTorch, as `ExportedDetector.run`.

    Raises:
        ConfigError: there is no such split.
        DatasetError: the data set cannot be read, or lacks a part that is needed.
        MissingDependencyError: the extra `train` is not installed.
    """
    require("faster_coco_eval", "train")
    from rtdetrv4.appraisal import first_images
    from rtdetrv4.data.formats import read_splits
    from rtdetrv4.evaluation import CocoEvaluator, evaluate_run
    from rtdetrv4.export import Validation
    from rtdetrv4.run_folder import log_findings
    from rtdetrv4.runtime.proof import proven_precision

    if split not in ("train", "val", "test"):
        raise ConfigError(f'There is no split "{split}"; expected train, val or test.')
    needs_ranges = precision == "int8"
    # The training images of a data set without a validation part are those that training leaves for training.
    parts = {split, "train", "val"} if needs_ranges or split == "train" else {split}
    splits = read_splits(data, known, parts, make_val=True)
    log_findings(splits)
    part: Split | None = getattr(splits, split)
    if part is None or (needs_ranges and splits.train is None):
        raise DatasetError(f"{data} has no {split if part is None else 'train'} part.")
    names = [known.names[index] for index in chosen]

    def average_precision(run: Run, batch: int = 1) -> tuple[float, float]:
        """AP and AP50 of the chosen classes, as `val` computes them."""
        evaluator = CocoEvaluator(part.records, known)
        metrics = evaluate_run(run, part, evaluator, image_size=size_hw, resize=resize, batch=batch)
        of_classes = ([each[name] for name in names] for each in (metrics.per_class, metrics.per_class_ap50))
        ap, ap50 = (float(np.nanmean(each)) if np.isfinite(each).any() else 0.0 for each in of_classes)
        return ap, ap50

    def measure(path: Path) -> tuple[float, float]:
        exported = ExportedDetector(path, precision=proven_precision(precision))

        def run_exported(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            scores, labels, boxes = exported.run(images)
            return scores, np.array(chosen)[labels], boxes

        return average_precision(run_exported, exported.metadata.batch or 1)

    logger.info("Measuring the AP in PyTorch on %d images", len(part.records))
    torch_ap, torch_ap50 = average_precision(run)
    arguments: dict[str, Any] = {
        "images": list(first_images(part, NUM_PROOF).values()),
        "validation": Validation(str(data), split, len(part.records), torch_ap, torch_ap50, measure, max_drop),
    }
    if needs_ranges:
        from rtdetrv4.export.calibration import CalibrationImages

        assert splits.train is not None
        arguments["calibration"] = CalibrationImages(splits.train, size_hw, resize)
    return arguments


def renew_report(folder: Path, paths: Sequence[Path]) -> None:
    """Write the report of the run again whose weights were exported, if it has one.

    Args:
        folder: the run folder.
        paths: the files that were written into it.
    """
    if not paths:
        return
    try:
        require("accelerate", "train")
        require("jinja2", "train")
        from rtdetrv4.report import REPORT_PAGE, write_report

        if (folder / REPORT_PAGE).is_file():
            write_report(folder)
    except MissingDependencyError:  # and so this machine writes no reports
        return
    except RTDETRError as error:
        logger.warning("The report of the run does not show the export: %s", error)
