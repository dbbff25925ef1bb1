"""What a trained detector can do: its metrics, its speed, pictures of what it finds, and how like its teacher it is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from rtdetrv4.assembly.training import build_evaluation
from rtdetrv4.config import Recipe
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.decode import read_image
from rtdetrv4.data.formats import Split
from rtdetrv4.distillation.similarity import save_similarity, similarity
from rtdetrv4.errors import DatasetError, RTDETRError, SourceError, first_line
from rtdetrv4.evaluation import CocoEvaluator, Metrics
from rtdetrv4.evaluation import write_report as write_evaluation
from rtdetrv4.outputs import SIMILARITY_FILE, write_text
from rtdetrv4.report import FACTS_FILE, write_report
from rtdetrv4.run_folder import RunFolder, package_versions
from rtdetrv4.runtime import Detections, draw_boxes, preprocess
from rtdetrv4.runtime.draw import contact_sheet, draw_text
from rtdetrv4.runtime.machine import processor_name
from rtdetrv4.runtime.slicing import Slicing
from rtdetrv4.runtime.speed import measure_speed
from rtdetrv4.training import Tracker, Trainer, make_accelerator, validate_predictions
from rtdetrv4.training.checkpoint import load_checkpoint

logger: logging.Logger = logging.getLogger(__name__)

NUM_SHOWN = 12
"""Validation images in predictions.jpg."""
SHOWN_ABOVE = 0.4
"""Confidence of the detections there."""
PICTURE_WIDTH, COLUMNS = 640, 3
NUM_COMPARED = 4
"""Validation images on which F5 is compared with the teacher."""
NUM_TIMED = 8
"""Images with which the speed is measured, one after the other."""

Result = TypeVar("Result")


class EndOfRun(NamedTuple):
    """What follows a training run."""

    metrics: Metrics | None
    """None without validation images, or if computing them failed."""
    problems: tuple[str, ...]
    """What failed."""


@dataclass(frozen=True)
class Appraisal:
    """Measures and draws what a detector finds.

    Args:
        recipe: its settings; image size, batch and workers matter.
        device: where it runs.
        source: its weights; None if they come from no file.
        deploy: returns its network, ready for use.
        predict: `Detector.predict`.
        run: all detections in a batch of images, H×W×3 uint8 RGB, at a size (height, width).
        remember: adds facts to the metadata of its weights.
    """

    recipe: Recipe
    device: torch.device
    source: str | None
    deploy: Callable[[], nn.Module]
    predict: Callable[..., list[Detections]]
    run: Callable[[Sequence[np.ndarray], tuple[int, int]], object]
    remember: Callable[[Mapping[str, Any]], None]

    def evaluate(
        self,
        split: Split,
        out: Path | None,
        *,
        data: tuple[str | None, str] | None = None,
        slicing: Slicing | None = None,
        is_final: bool = False,
    ) -> Metrics:
        """Compute the metrics on a split, labeled with the detector's classes; with several ranks, a collective call.

        Args:
            split: images and boxes.
            out: folder for the results; None writes nothing.
            data: the data set and the name of the split; None: the validation part of what was trained on.
            slicing: detect in tiles.
            is_final: have the weights remember the best thresholds.
        """
        accelerator = make_accelerator(str(self.device), "off")
        evaluator = CocoEvaluator(split.records, split.classes)
        size, batch = self.recipe.model.image_size, self.recipe.run.val_batch or self.recipe.schedule.batch
        if slicing is not None and any(slicing.cuts((each.info.height, each.info.width)) for each in split.records):
            metrics = validate_predictions(
                lambda image: self.predict(
                    image,
                    conf=0.0,
                    imgsz=size,
                    batch=batch,
                    duplicates="keep",
                    slice=slicing.size_hw,
                    overlap=slicing.overlap,
                    whole=slicing.whole,
                )[0],
                DetectionDataset(split, size),
                evaluator,
                rank=accelerator.process_index,
            )
        else:
            metrics = build_evaluation(self.recipe, split, accelerator, evaluator)(self.deploy())
        if out is not None and accelerator.is_main_process:
            report = write_evaluation(evaluator, out, metrics)
            facts = self._facts(split, data or (self.recipe.data.path, "val"), times=slicing is None)
            write_text(out / FACTS_FILE, json.dumps(facts, indent=2) + "\n")
            if is_final and report["thresholds"]:
                self.remember({name: report[name] for name in ("confidence", "thresholds")})
        return metrics

    def conclude(self, trainer: Trainer, split: Split | None, folder: RunFolder) -> EndOfRun:
        """Evaluate what a run has trained, and write its report; a collective call.

        What fails is told, because the weights are there.

        Args:
            trainer: of the run, which is complete.
            split: its validation part, if there is one.
            folder: of the run.

        Raises:
            KeyboardInterrupt: Ctrl-C; the message says what is missing.
        """
        problems: list[str] = []

        def attempt(what: str, work: Callable[[], Result]) -> Result | None:
            try:
                return work()
            except Exception as error:  # of whatever kind, it must not take away what hours of training gave
                problems.append(f"{what} failed: {first_line(error)}")
                is_bug = not isinstance(error, RTDETRError | OSError)
                logger.error(
                    "Training is complete, with the weights in %s, but %s",
                    folder.weights,
                    problems[-1],
                    exc_info=is_bug,
                )
                return None

        metrics, writes = None, trainer.accelerator.is_main_process
        trackers = [observer for observer in trainer.observers if isinstance(observer, Tracker)]
        try:
            if split is not None:
                metrics = attempt(
                    "the final evaluation", lambda: self.evaluate(split, folder.evaluation, is_final=True)
                )
            if split is not None and writes:
                attempt("drawing predictions.jpg", lambda: self.draw_predictions(split, folder.predictions))
                attempt("comparing F5 with the teacher", lambda: self.compare_with_teacher(trainer, split, folder))
            if writes:
                attempt("writing the report", lambda: write_report(folder.path))
            for tracker in trackers:
                attempt(f"logging files to {tracker.name}", partial(tracker.finish, folder.pictures_and_pages))
        except KeyboardInterrupt:
            for tracker in trackers:
                tracker.finish(())
            raise KeyboardInterrupt(
                f"Training is complete, with the weights in {folder.weights}; only the final report is missing."
            ) from None
        return EndOfRun(metrics, tuple(problems))

    def compare_with_teacher(self, trainer: Trainer, split: Split, folder: RunFolder) -> None:
        """Save how the best student's F5 resembles the teacher on the first validation images; nothing without one."""
        images = first_images(split, NUM_COMPARED)
        if trainer.teacher is None or not images:
            return
        student = trainer.ema.module
        student.load_state_dict(load_checkpoint(folder.best)["ema"]["module"])
        pixels = preprocess(list(images.values()), self.recipe.model.image_size, self.recipe.model.resize)
        found = similarity(student, trainer.teacher, torch.from_numpy(pixels).to(self.device))
        shown = [(255 * each).round().astype(np.uint8).transpose(1, 2, 0) for each in pixels]
        save_similarity(folder.evaluation / SIMILARITY_FILE, found, shown, list(images))

    def draw_predictions(self, split: Split, path: Path) -> None:
        """Draw the first validation images: ground truth on the left, detections on the right."""
        pictures = []
        for record in split.records:
            if len(pictures) == NUM_SHOWN:
                break
            try:
                found = self.predict(split.image_dir / record.info.file_name, conf=SHOWN_ABOVE)[0]
            except SourceError:  # the evaluation has named it
                continue
            assert found.image is not None
            truth = [split.classes.names[label] for label in record.labels]
            shown = draw_boxes(found.image, record.boxes_xyxy_px, record.labels, truth)
            pictures.append(np.concatenate((shown, found.plot()), axis=1))
        halves = ("labels", f"predictions above {SHOWN_ABOVE}")
        header = np.concatenate([draw_text(text, PICTURE_WIDTH // 2) for text in halves], axis=1)
        columns = min(COLUMNS, max(len(pictures), 1))
        contact_sheet([header] * columns + pictures, path, columns=columns, width=PICTURE_WIDTH)

    def _facts(self, split: Split, data: tuple[str | None, str], *, times: bool) -> dict[str, Any]:
        """What is evaluated, where its images are and, if `times`, how long one takes on this machine."""
        size = self.recipe.model.image_size
        images = list(first_images(split, NUM_TIMED).values()) if times else []
        speed = None
        if images:
            timed = measure_speed(lambda number: self.run([images[number % len(images)]], size))
            is_cuda = self.device.type == "cuda"
            speed = {
                **timed._asdict(),
                "processor": torch.cuda.get_device_name(self.device) if is_cuda else processor_name(),
                "device": str(self.device),
            }
        return {
            "model": self.recipe.model.name,
            "weights": self.source,
            "data": data[0],
            "split": data[1],
            "image_dir": str(split.image_dir.resolve()),
            "num_images": len(split.records),
            "image_size": list(size),
            "resize": self.recipe.model.resize,
            "speed": speed,
            "versions": package_versions(),
        }


def first_images(split: Split, count: int) -> dict[str, np.ndarray]:
    """The first images that can be read, H×W×3 uint8 RGB, by file name."""
    images: dict[str, np.ndarray] = {}
    for info in (record.info for record in split.records):
        if len(images) == count:
            break
        with suppress(DatasetError):  # the evaluation has named it
            images[info.file_name] = read_image(split.image_dir / info.file_name, (info.height, info.width))
    return images
