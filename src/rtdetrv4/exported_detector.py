"""`ExportedDetector`: predict and evaluate with an exported model, without torch."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from rtdetrv4 import runtime
from rtdetrv4.errors import ConfigError, DatasetError, require
from rtdetrv4.keywords import no_such_method, suggests
from rtdetrv4.outputs import unused_folder, write_text
from rtdetrv4.runtime.slicing import OVERLAP, Slicing
from rtdetrv4.types import ClassMap

if TYPE_CHECKING:
    from rtdetrv4.data.records import Record, Split
    from rtdetrv4.evaluation import Metrics
    from rtdetrv4.runtime.export_metadata import ExportMetadata

logger: logging.Logger = logging.getLogger(__name__)

NUM_TIMED = 8
"""Images with which the speed is measured, one after the other."""


class ExportedDetector(runtime.ExportedDetector):
    """An exported detector, with the methods of `Detector` that need no torch.

    ```python
    from rtdetrv4 import Detector

    detector = Detector("weights.onnx")
    detector.predict("photo.jpg")[0].save("found.jpg")
    print(detector.val("datasets/mine").ap)
    ```

    `Detector` makes one if it is given an exported file; the class itself takes further options.

    Args:
        path: a file or folder written by `Detector.export`.
        device: what to run it on, in the words of the runtime, such as "cpu" or "cuda"; None for the best that it has
            and that is known to be right.
        threads: threads that work on one batch; None leaves it to the runtime.
        precision: "fp32" or "bf16", where the runtime has the choice; None for what it prefers.
        trust: run the file even if it is a program that was not exported on this machine: .torchscript, .pt2 or .pte.

    Attributes:
        engine: the runtime with the loaded file.
        metadata: class names, input size and more.

    Raises:
        ConfigError: there is no such device, or an option that the runtime does not have.
        ExportError: the file is missing, broken or unsafe, or was not written by this package.
        MissingDependencyError: the runtime is not installed.
    """

    def __repr__(self) -> str:
        height, width = self.metadata.image_size
        facts = f"{self.metadata.model}, {height}×{width} pixels, {len(self.names)} classes, in {self.engine.name}"
        return f"ExportedDetector({facts})"

    if not TYPE_CHECKING:  # which would lose the overloads
        predict = __call__ = suggests(runtime.ExportedDetector.predict)

        def __getattr__(self, name: str) -> Any:
            """Say what a method is called here that other packages call `name`."""
            raise AttributeError(no_such_method(name, type(self)))

    @suggests
    def val(
        self,
        data: str | Path,
        *,
        split: Literal["train", "val", "test"] = "val",
        batch: int | None = None,
        imgsz: int | str | tuple[int, int] | None = None,
        workers: int | None = None,
        out: str | Path | None = None,
        slice: int | str | tuple[int, int] | None = None,
        overlap: float = OVERLAP,
        whole: bool = True,
    ) -> Metrics:
        """Compute COCO metrics on a split of a data set as `Detector.val` does, in the runtime of the exported file.

        Args:
            data: as for `Detector.val`.
            split: the split to evaluate on.
            batch: images per run, 1 by default. Files exported with a fixed batch size always use that.
            imgsz: the size the file was exported with; no other is possible.
            workers: threads that read images, 1 by default.
            out: folder for report.html, metrics.json, the confusion matrix and the curves, as for `Detector.val`.
            slice: detect in tiles, as in `predict`, and so are `overlap` and `whole`.
            overlap: see there.
            whole: see there.

        Raises:
            ConfigError: an option is invalid.
            DatasetError: the data set has no such split, or its classes are not the model's.
            ExportError: the runtime fails.
            MissingDependencyError: `out` needs packages that are not installed.
        """
        from rtdetrv4.data.document import some_of
        from rtdetrv4.data.formats import read_splits
        from rtdetrv4.evaluation import CocoEvaluator, evaluate_exported

        self._check_size(imgsz)
        if split not in ("train", "val", "test"):
            raise ConfigError(f'There is no split "{split}"; expected train, val or test.')
        for name, value in (("batch", batch), ("workers", workers)):
            if value is not None and (not isinstance(value, int | np.integer) or value < (name == "batch")):
                raise ConfigError(f"{name}: got {value}, expected a whole number{', 1 or more' * (name == 'batch')}.")
        slicing = Slicing.of(slice, overlap, whole)
        folder = None if out is None else _report_folder(Path(out))
        metadata = self.metadata
        classes = ClassMap(metadata.names, metadata.category_ids)
        # The training images of a data set without a validation part are those that training leaves for training.
        parts = ("train", "val") if split == "train" else (split,)
        splits = read_splits(data, _all_classes(metadata), parts, make_val=True)
        for note in splits.notes:
            logger.info(note)
        part = splits.parts.get(split)
        if part is None:
            raise DatasetError(f"{data} has no {split} part.")
        for problem in part.problems:
            logger.warning("%s: %s", split, problem)
        if metadata.left_out:
            logger.info(
                "Only %s: the file was exported without %s.", some_of(metadata.names), some_of(metadata.left_out)
            )
            part = part._replace(
                records=[_only(record, classes.num_classes) for record in part.records], classes=classes
            )
        evaluator = CocoEvaluator(part.records, part.classes)
        metrics = evaluate_exported(
            self, part, evaluator, batch=batch or 1, slicing=slicing, workers=1 if workers is None else workers
        )
        if folder is not None:
            self._write_report(evaluator, metrics, part, folder, (str(data), split), times=slicing is None)
        return metrics

    def _write_report(
        self,
        evaluator: Any,
        metrics: Metrics,
        part: Split,
        folder: Path,
        data: tuple[str, str],
        *,
        times: bool,
    ) -> None:
        from rtdetrv4 import report
        from rtdetrv4.evaluation import write_report

        write_report(evaluator, folder, metrics)
        facts = {
            "model": self.metadata.model,
            "weights": str(self.path),
            "data": data[0],
            "split": data[1],
            "image_dir": str(part.image_dir.resolve()),
            "num_images": len(part.records),
            "image_size": list(self.metadata.image_size),
            "resize": self.metadata.resize,
            "speed": self._speed(part) if times else None,
            "versions": {"rtdetrv4": importlib.metadata.version("rtdetrv4"), "runtime": self.engine.name},
        }
        write_text(folder / report.FACTS_FILE, json.dumps(facts, indent=2) + "\n")
        report.write_report(folder)

    def _speed(self, part: Split) -> dict[str, Any] | None:
        """How long one of the first images takes on this machine, preparation included."""
        from rtdetrv4.data.decode import read_image
        from rtdetrv4.runtime.machine import processor_name
        from rtdetrv4.runtime.speed import measure_speed

        images = []
        for info in (record.info for record in part.records[:NUM_TIMED]):
            try:
                images.append(read_image(part.image_dir / info.file_name, (info.height, info.width)))
            except DatasetError:  # the evaluation has named it
                continue
        if not images:
            return None
        timed = measure_speed(lambda number: self.run([images[number % len(images)]]))
        return {**timed._asdict(), "processor": processor_name(), "device": self.engine.name}

    def train(self, *args: Any, **options: Any) -> NoReturn:
        """Refused: an exported model cannot be trained."""
        self._refuse("trained", "train")

    def pretrain(self, *args: Any, **options: Any) -> NoReturn:
        """Refused: an exported model cannot be trained."""
        self._refuse("trained", "pretrain")

    def augment(self, *args: Any, **options: Any) -> NoReturn:
        """Refused: an exported model cannot be trained."""
        self._refuse("trained", "augment")

    def export(self, *args: Any, **options: Any) -> NoReturn:
        """Refused: an exported model cannot be exported again."""
        self._refuse("exported again", "export")

    def _refuse(self, what: str, method: str) -> NoReturn:
        raise ConfigError(
            f"{self.path} is an exported model, which cannot be {what}. "
            f'Use the weights it was exported from: Detector("weights.safetensors").{method}(…).'
        )


def _all_classes(metadata: ExportMetadata) -> ClassMap:
    """The classes of the model that was exported: those of the file first, then those that it does not return."""
    next_id = max(metadata.category_ids) + 1
    others = metadata.left_out or ()
    ids = (*metadata.category_ids, *range(next_id, next_id + len(others)))
    return ClassMap((*metadata.names, *others), ids)


def _only(record: Record, num_classes: int) -> Record:
    """The boxes of an image that are of one of the first classes."""
    keep = record.labels < num_classes
    return record._replace(
        **{name: getattr(record, name)[keep] for name in ("boxes_xyxy_px", "labels", "is_crowd", "areas")}
    )


def _report_folder(out: Path) -> Path:
    """The folder to write a report to, if what draws it is installed."""
    for module in ("jinja2", "matplotlib"):
        require(module, "eval")
    from rtdetrv4 import report
    from rtdetrv4.evaluation.report import REPORT_FILES as EVALUATION_FILES

    return unused_folder(out, (*EVALUATION_FILES, report.FACTS_FILE, *report.REPORT_FILES))
