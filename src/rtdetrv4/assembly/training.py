"""Build a training run from a recipe and a data set."""

from __future__ import annotations

import importlib.metadata
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from rtdetrv4.assembly.fitting import Fitting
from rtdetrv4.assembly.models import find_variant
from rtdetrv4.assembly.own_teacher import is_detector, load_own_teacher
from rtdetrv4.assembly.run_data import (
    check_unlabeled,
    features_on_disk,
    image_cache,
    pseudo_labels,
    pseudo_share,
    training_data,
    unlabeled_data,
)
from rtdetrv4.config import Recipe, flat_settings, override
from rtdetrv4.config.schema import DistillationConfig, LossConfig, RunConfig
from rtdetrv4.config.variants import Variant
from rtdetrv4.data.batch import multi_scales
from rtdetrv4.data.cache import ImageCache
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.formats import Split, Splits
from rtdetrv4.data.loader import build_loader
from rtdetrv4.distillation import (
    PIP_TEACHER,
    DistillationStudent,
    Injector,
    Modulation,
    Teacher,
    combine_teachers,
    load_teacher,
    wrap_teacher,
)
from rtdetrv4.distillation.teacher import Network, known_teacher
from rtdetrv4.distillation.teacher_catalog import split_names
from rtdetrv4.errors import ConfigError, DatasetError, WeightsError
from rtdetrv4.evaluation import CocoEvaluator, Metrics
from rtdetrv4.losses import Criterion, HungarianMatcher, TermsOf
from rtdetrv4.models import DetectionModel, checkpoint_activations, compile_parts, recompute_activations
from rtdetrv4.ops.device import is_out_of_memory
from rtdetrv4.training import (
    BatchSheets,
    ModelEma,
    Observer,
    Plan,
    Profiler,
    Tracker,
    Trainer,
    TrainingData,
    UnlabeledData,
    adamw,
    auto_patience,
    default_observers,
    make_accelerator,
    parameter_groups,
    scale_plan,
    split_batch,
    validate,
)
from rtdetrv4.training.batch_sheets import PSEUDO_SHEET
from rtdetrv4.training.fit import (
    USABLE_SHARE,
    USABLE_SHARE_ON_CPU,
    bytes_per_image,
    free_memory,
    parts_that_fit,
    worker_memory,
)
from rtdetrv4.training.pace import Pace, measure_pace
from rtdetrv4.training.symptoms import LossWatch
from rtdetrv4.training.teacher_features import TeacherFeatures
from rtdetrv4.types import ClassMap
from rtdetrv4.weights.files import find_weights

logger: logging.Logger = logging.getLogger(__name__)

#: How long `distillation.mode: auto` measures its band: this share of all epochs, and at least this many.
PROBE_SHARE, MIN_PROBE = 0.1, 2
#: Weights of terms that are only logged: L_DSI with each of several teachers, of which "distill" is the mean.
LOGGED_ONLY = {"teacher": 0.0}
#: Pixels of an input above which a CPU measures the memory of a smaller one.
LARGE_IMAGE = 384 * 384
#: The shorter side in pixels of the smallest input that memory is measured with.
SMALLEST_MEASURED = 64
#: The starting weights are evaluated on at most this many images, or on this share of all that the run trains on, which
#: take several times as long each.
QUICK_IMAGES, QUICK_SHARE = 500, 0.1


def build_criterion(loss: LossConfig, variant: Variant) -> Criterion:
    """The criterion of a recipe for a model."""
    costs = loss.matcher
    return Criterion(
        HungarianMatcher(costs.cls, costs.bbox, costs.giou, costs.alpha, costs.gamma),
        classification=loss.classification,
        alpha=loss.alpha,
        gamma=loss.gamma,
        union_matching=loss.union_matching,
        local_terms=variant.head == "distribution" and loss.weights.fgl + loss.weights.ddf > 0,
        reg_max=variant.reg_max,
        reg_scale=variant.reg_scale,
    )


def loss_weights(loss: LossConfig) -> dict[str, float]:
    """Loss weights by the base names of the criterion's terms, and of those that are only logged."""
    weights = loss.weights.model_dump()
    return {loss.classification: weights.pop("cls"), **weights, **LOGGED_ONLY}


def build_modulation(distillation: DistillationConfig, epochs: int) -> Modulation:
    """The owner of λ in a run of `epochs` epochs."""
    assert distillation.mode != "off", "there is no λ without a teacher"
    probe_epochs = 0
    if distillation.mode == "auto":
        probe_epochs = distillation.probe_epochs or max(round(PROBE_SHARE * epochs), MIN_PROBE)
    return Modulation(
        distillation.weight,
        rho=distillation.rho,
        delta=distillation.delta,
        default_weight=distillation.default_weight,
        rule=distillation.mode,
        probe_epochs=probe_epochs,
    )


def build_plan(recipe: Recipe, steps_per_epoch: int) -> Plan:
    """The plan of a run, scaled to the run's length unless the recipe asks for the published numbers."""
    schedule = recipe.schedule.model_dump(exclude={"batch", "scaling"})
    ema = {f"ema_{name}": value for name, value in recipe.ema.model_dump().items()}
    plan = Plan(steps_per_epoch=steps_per_epoch, **schedule, **ema)
    return plan if recipe.schedule.scaling == "published" else scale_plan(plan)


def patience_of(recipe: Recipe) -> int | None:
    """After how many evaluations without a better score a phase of the run ends; None: never."""
    if recipe.run.patience == "auto":
        return auto_patience(recipe.schedule.epochs, recipe.run.eval_every)
    return recipe.run.patience


def build_teacher(
    distillation: DistillationConfig, device: torch.device, given: Teacher | Network | None = None
) -> Teacher | None:
    """The teacher of a run: the given one, or else the one that the settings name; None without distillation.

    Raises:
        ConfigError: there is no such teacher or block, or a given network returns no feature maps.
        WeightsError: its weights cannot be loaded.
    """
    teacher = distillation.teacher if given is None else given
    if teacher is None or distillation.mode == "off":
        return None
    if isinstance(teacher, Teacher):
        return teacher
    if isinstance(teacher, str) and len(names := split_names(teacher)) > 1:
        if distillation.teacher_weights is not None or distillation.teacher_block is not None:
            raise ConfigError("distillation: teacher_weights and teacher_block need a single teacher.")
        alone = [build_teacher(distillation.model_copy(update={"teacher": name}), device) for name in names]
        return combine_teachers([each for each in alone if each is not None])
    if distillation.teacher_dtype != "auto":
        dtype = getattr(torch, distillation.teacher_dtype)
    else:
        has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        dtype = torch.bfloat16 if has_bf16 else None
    weights, block, compiles = distillation.teacher_weights, distillation.teacher_block, distillation.teacher_compile
    if isinstance(teacher, str) and is_detector(teacher) and weights is None and block is None:
        return load_own_teacher(teacher, dtype=dtype, compile=compiles)
    if isinstance(teacher, str) and not is_detector(teacher):
        return load_teacher(teacher, weights, dtype=dtype, compile=compiles, block=block)
    if weights is not None or block is not None:
        raise ConfigError(
            "distillation: teacher_weights and teacher_block need a teacher given by name; a network has its own."
        )
    assert not isinstance(teacher, str), "it was loaded above"
    return wrap_teacher(teacher, dtype=dtype, compile=compiles)


def check_teacher(distillation: DistillationConfig) -> None:
    """Check what can be known of a teacher before it is needed: its name, and that its files are there.

    Raises:
        ConfigError: there is no such teacher.
        WeightsError: there is no such file.
    """
    if distillation.teacher is None or distillation.mode == "off":
        return
    for name in split_names(distillation.teacher):
        if not is_detector(name):
            if name != PIP_TEACHER:
                known_teacher(name)
        elif not name.startswith("hf://"):
            find_weights(name)
    weights = distillation.teacher_weights
    if weights is not None and not Path(weights).is_file():
        raise WeightsError(f'distillation.teacher_weights: there is no file "{weights}".')


def build_student(
    recipe: Recipe, detector: DetectionModel, teacher: Teacher | None, accelerator: Accelerator
) -> DistillationStudent:
    """The detector with an injector if there is a teacher, on the device and set up to compute as the recipe says."""
    injector = None if teacher is None else Injector(find_variant(recipe.model.name).hidden_dim, teacher.dim)
    student = DistillationStudent(detector, injector).to(accelerator.device)
    set_up_computation(detector, recipe.run, accelerator.device)
    return student


class Supervision(NamedTuple):
    """What the labels of a run supervise."""

    criterion: TermsOf
    weights: Mapping[str, float]
    """Of its terms, by base name."""

    @classmethod
    def of(cls, recipe: Recipe) -> Supervision:
        """That of a recipe."""
        return cls(build_criterion(recipe.loss, find_variant(recipe.model.name)), loss_weights(recipe.loss))


class Course(NamedTuple):
    """The course of a run: what each of its steps sees."""

    recipe: Recipe
    """With numbers where it said "auto"."""
    accumulate: int
    """Batches per optimizer step."""
    data: TrainingData
    plan: Plan
    unlabeled: UnlabeledData | None
    """For the teacher."""
    features: TeacherFeatures | None
    unlabeled_cache: ImageCache | None


def settle_course(
    recipe: Recipe,
    splits: Splits,
    student: DistillationStudent,
    accelerator: Accelerator,
    teacher: Teacher | None = None,
    fitting: Fitting | None = None,
    supervision: Supervision | None = None,
) -> Course:
    """Settle what takes measurements: into how many parts batches are split, and how long the run is.

    Args:
        recipe: all settings.
        splits: the data; `train` is required.
        student: from `build_student`.
        accelerator: device and ranks.
        teacher: its time counts too.
        fitting: adjusts the length of the run to its pace; None keeps the recipe's.
        supervision: None: the recipe's.
    """
    assert splits.train is not None, "nothing to train on"
    supervision = supervision or Supervision.of(recipe)
    asks_for_pace = fitting is not None and fitting.asks_for_pace
    if accelerator.is_main_process and (asks_for_pace or not isinstance(recipe.run.accumulate, int)):
        logger.info("Measuring what a training step takes here.")
    recipe, accumulate = _fit_batch(recipe, splits.train, student, accelerator, supervision)
    cache = image_cache(recipe, splits.train, splits, accelerator)
    features = features_on_disk(recipe, splits.train, teacher, accelerator)
    # Without a weight the teacher leaves these images to pseudo-labels, which have loaders of their own.
    is_taught = teacher is not None and (recipe.distillation.unlabeled_weight or not recipe.pseudo_labels.weight)
    taught = splits.unlabeled if is_taught else None
    of_taught = None if taught is None else features_on_disk(recipe, taught, teacher, accelerator)
    others_cache = None if splits.unlabeled is None else image_cache(recipe, splits.unlabeled, splits, accelerator)
    if fitting is not None and asks_for_pace:
        unlabeled = unlabeled_data(recipe, taught, accumulate, accelerator, of_taught, others_cache)
        pace = _pace(recipe, splits, accumulate, student, accelerator, cache, teacher, supervision, unlabeled, features)
        recipe = fitting.fit_time(recipe, pace)
    data = training_data(recipe, splits.train, accumulate, accelerator, cache)
    plan = build_plan(recipe, max(len(data.loader) // accumulate, 1))
    unlabeled = unlabeled_data(recipe, taught, accumulate, accelerator, of_taught, others_cache)
    return Course(recipe, accumulate, data, plan, unlabeled, features, others_cache)


def build_trainer(
    recipe: Recipe,
    splits: Splits,
    detector: DetectionModel,
    *,
    accelerator: Accelerator | None = None,
    teacher: Teacher | Network | None = None,
    callbacks: Sequence[Observer] = (),
    start: Mapping[str, Any] | None = None,
    fitting: Fitting | None = None,
    knows_classes: bool = False,
    files_follow: bool = False,
) -> Trainer:
    """A training run.

    Args:
        recipe: all settings.
        splits: the data; `train` is required.
        detector: from `build_detector`, for the classes of `splits.train`, possibly with weights loaded.
        accelerator: device and ranks; None makes one from the recipe.
        teacher: replaces the recipe's teacher; a network that is not a `Teacher` is wrapped in one.
        callbacks: observers notified after the package's own.
        start: what the run starts from, to be remembered with the weights; see `rtdetrv4.assembly.start.Start.record`.
        fitting: adjusts the length of the run to its pace; None keeps the recipe's.
        knows_classes: `detector` starts from weights that are trained for some of the classes, so that it is evaluated
            before the first step, unless that would take long.
        files_follow: whether the caller will finish the run's tracker, see `rtdetrv4.training.Tracker`.

    Raises:
        ConfigError: settings that contradict each other or the machine.
        DatasetError: there is nothing to train on.
        WeightsError: the teacher's weights cannot be loaded.
    """
    if splits.train is None:
        raise DatasetError("The data set has no training part, such as train/ or instances_train*.json.")
    accelerator = accelerator or make_accelerator(recipe.run.device, recipe.run.amp)
    evaluates_start = knows_classes and _is_quickly_evaluated(splits, recipe.schedule.epochs)
    teacher = build_teacher(recipe.distillation, accelerator.device, teacher)
    if splits.unlabeled is not None:
        check_unlabeled(recipe, has_teacher=teacher is not None, has_val=splits.val is not None)
    student = build_student(recipe, detector, teacher, accelerator)
    course = settle_course(recipe, splits, student, accelerator, teacher, fitting)
    recipe, accumulate, data, plan, unlabeled, features, others_cache = course
    evaluator = None if splits.val is None else CocoEvaluator(splits.val.records, splits.val.classes)
    out, names = Path(recipe.run.out), splits.train.classes.names
    observers = default_observers(out, log_every=recipe.run.log_every)
    if evaluates_start or not knows_classes:  # a detector that may be trained already need not get any better
        observers.append(LossWatch())
    observers += chosen_observers(recipe, accelerator, files_follow=files_follow)
    return Trainer(
        student=student,
        ema=ModelEma(student, plan.ema_decay, plan.ema_warmup),
        optimizer=build_optimizer(recipe, student),
        plan=plan,
        data=data,
        **Supervision.of(recipe)._asdict(),
        evaluate=None
        if splits.val is None
        else build_evaluation(
            recipe, splits.val, accelerator, evaluator, image_cache(recipe, splits.val, splits, accelerator)
        ),
        accelerator=accelerator,
        out=out,
        teacher=None if teacher is None else teacher.to(accelerator.device),
        modulation=None if teacher is None else build_modulation(recipe.distillation, recipe.schedule.epochs),
        teach_every=recipe.distillation.every,
        teach_epochs=math.ceil(recipe.distillation.until * recipe.schedule.epochs),
        unlabeled=unlabeled,
        unlabeled_weight=recipe.distillation.unlabeled_weight,
        pseudo_labels=pseudo_labels(recipe, splits, plan, accumulate, accelerator, evaluator, others_cache),
        features=features,
        observers=[*observers, *callbacks],
        sheets=BatchSheets(out, names),
        pseudo_sheets=BatchSheets(out, names, PSEUDO_SHEET),
        clip_norm=recipe.optimizer.clip_norm,
        accumulate=accumulate,
        eval_every=recipe.run.eval_every,
        evaluate_start=evaluates_start,
        patience=patience_of(recipe),
        deadline=None if fitting is None else fitting.deadline,
        max_skipped=recipe.run.max_skipped,
        save_seconds=60 * recipe.run.save_minutes,
        seed=recipe.run.seed,
        recipe=recipe.model_dump(mode="json"),
        metadata=weights_metadata(recipe, splits.train.classes, teacher, start, usual_size(splits.train)),
    )


def build_optimizer(recipe: Recipe, student: DistillationStudent) -> torch.optim.AdamW:
    """The optimizer of a run, for what the student trains."""
    groups = parameter_groups(student, **recipe.optimizer.model_dump(exclude={"betas", "clip_norm"}))
    return adamw(groups, betas=recipe.optimizer.betas)


def chosen_observers(recipe: Recipe, accelerator: Accelerator, *, files_follow: bool) -> list[Observer]:
    """The tracker and the profiler, if the recipe asks for them."""
    run, observers = recipe.run, list[Observer]()
    if run.tracker != "none":
        settings = flat_settings(recipe)
        observers.append(Tracker(run.tracker, accelerator, run.log_every, settings, files_follow=files_follow))
    if run.profile:
        observers.append(Profiler(Path(run.out) / "profile"))
    return observers


def build_evaluation(
    recipe: Recipe,
    split: Split,
    accelerator: Accelerator,
    evaluator: CocoEvaluator | None = None,
    cache: ImageCache | None = None,
) -> Callable[[nn.Module], Metrics]:
    """A function from a detector to its metrics on `split`; with several ranks, calls are collective.

    Args:
        recipe: image size, batch and workers.
        split: labeled with the detector's classes.
        accelerator: device and ranks.
        evaluator: keeps the detections, for a report; None makes one.
        cache: image cache, for a run that evaluates many times.
    """
    parts = recipe.run.accumulate if isinstance(recipe.run.accumulate, int) else 1
    per_rank = max(recipe.schedule.batch // (accelerator.num_processes * parts), 1)
    loader = build_loader(
        DetectionDataset(split, recipe.model.image_size, cache=cache, resize=recipe.model.resize),
        recipe.run.val_batch or per_rank,
        recipe.data.workers,
        shuffle=False,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    return partial(
        validate,
        loader=loader,
        evaluator=evaluator or CocoEvaluator(split.records, split.classes),
        image_size=recipe.model.image_size,
        resize=recipe.model.resize,
    )


def usual_size(split: Split) -> tuple[int, int]:
    """The median height and the median width of the images of a split."""
    height, width = np.median([(record.info.height, record.info.width) for record in split.records], axis=0)
    return round(float(height)), round(float(width))


def weights_metadata(
    recipe: Recipe,
    classes: ClassMap,
    teacher: Teacher | None,
    start: Mapping[str, Any] | None = None,
    training_image_size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Metadata of `weights.safetensors`: how to build the detector, and where it came from."""
    return {
        "model": recipe.model.name,
        "backbone": recipe.model.backbone,
        "names": list(classes.names),
        "category_ids": list(classes.category_ids),
        "image_size": list(recipe.model.image_size),
        "resize": recipe.model.resize,
        "num_queries": recipe.model.num_queries,
        "training_image_size": training_image_size,
        "teacher": None if teacher is None else {"name": teacher.name, "license": teacher.license},
        "start": start,
        "version": importlib.metadata.version("rtdetrv4"),
    }


def image_memory(
    recipe: Recipe,
    split: Split,
    student: DistillationStudent,
    accelerator: Accelerator,
    supervision: Supervision | None = None,
) -> int:
    """Bytes per image that a training step keeps for the backward pass, at the largest size of the run.

    Args:
        recipe: sizes, augmentation and queries.
        split: training images; those with the most boxes count.
        student: from `build_student`.
        accelerator: device and number format.
        supervision: None: the recipe's.
    """

    def half_of(size: tuple[int, int]) -> tuple[int, int]:
        return max(round(size[0] / 64) * 32, 32), max(round(size[1] / 64) * 32, 32)

    height, width = _largest_size(recipe)
    # Large images are measured at half their size, because measuring them takes gigabytes and seconds itself.
    measured_hw = (height, width)
    if accelerator.device.type == "cpu" and height * width > LARGE_IMAGE:
        measured_hw = half_of(measured_hw)
    images_in_one = (4 if recipe.augment.mosaic else 1) * (2 if recipe.augment.mixup else 1)
    most_boxes = max((len(record.labels) for record in split.records), default=1)
    num_boxes = max(min(images_in_one * most_boxes, recipe.model.num_queries), 1)
    terms_and_weights = supervision or Supervision.of(recipe)
    while True:
        try:
            per_image = bytes_per_image(student, *terms_and_weights, measured_hw, num_boxes, accelerator)
            return per_image * height * width // math.prod(measured_hw)
        except (RuntimeError, MemoryError) as error:
            # Several ranks would not agree on the number of parts.
            if not is_out_of_memory(error) or min(measured_hw) < SMALLEST_MEASURED or accelerator.num_processes > 1:
                raise
        measured_hw = half_of(measured_hw)  # four images may not fit where the run's parts are smaller


def _largest_size(recipe: Recipe) -> tuple[int, int]:
    """The largest (H, W) of a run's batches."""
    height, width = recipe.model.image_size
    repeat = recipe.augment.multi_scale_repeat
    if repeat is None:
        return height, width
    largest = max(multi_scales(max(height, width), repeat)) / max(height, width)
    return round(height * largest / 32) * 32, round(width * largest / 32) * 32


def _fit_batch(
    recipe: Recipe,
    split: Split,
    student: DistillationStudent,
    accelerator: Accelerator,
    supervision: Supervision | None = None,
) -> tuple[Recipe, int]:
    """The recipe with a number for `run.accumulate`, and that number; for auto, the fewest parts that fit."""
    if isinstance(recipe.run.accumulate, int):
        return recipe, recipe.run.accumulate
    batch, ranks = recipe.schedule.batch, accelerator.num_processes
    split_batch(batch, ranks=ranks)  # raises if it cannot
    per_image = image_memory(recipe, split, student, accelerator, supervision)
    height, width = _largest_size(recipe)
    most_pixels = max((record.info.height * record.info.width for record in split.records), default=0)
    reserved = worker_memory(
        recipe.data.workers, 3 * most_pixels, 4 if recipe.augment.mosaic else 1, 3 * height * width * batch // ranks
    )
    share = USABLE_SHARE_ON_CPU if accelerator.device.type == "cpu" else USABLE_SHARE
    parts = parts_that_fit(batch, ranks, per_image, student, free_memory(accelerator, reserved), share)
    return override(recipe, {"run.accumulate": parts}), parts


def _pace(
    recipe: Recipe,
    splits: Splits,
    accumulate: int,
    student: DistillationStudent,
    accelerator: Accelerator,
    cache: ImageCache | None,
    teacher: Teacher | None,
    supervision: Supervision,
    unlabeled: UnlabeledData | None,
    features: TeacherFeatures | None,
) -> Pace:
    """Measure the pace of the run."""
    assert splits.train is not None
    loader = training_data(recipe, splits.train, accumulate, accelerator, cache).loader
    batch = min(loader.batch_size or 1, len(loader.dataset))
    measure = partial(
        measure_pace,
        student,
        *supervision,
        loader.dataset,
        workers=recipe.data.workers,
        num_val=0 if splits.val is None else math.ceil(len(splits.val.records) / accelerator.num_processes),
        accelerator=accelerator,
        teacher=None if teacher is None else teacher.to(accelerator.device),
        unlabeled=unlabeled,
        features=features,
        pseudo_share=pseudo_share(recipe, splits, build_plan(recipe, max(len(loader) // accumulate, 1))),
    )
    while True:
        try:
            return measure(batch=batch, accumulate=accumulate)
        except (RuntimeError, MemoryError) as error:
            # The run itself will cut its batches like this; with several ranks, the others would wait for this one.
            if not is_out_of_memory(error) or batch == 1 or accelerator.num_processes > 1:
                raise
        batch, accumulate = math.ceil(batch / 2), 2 * accumulate


def _is_quickly_evaluated(splits: Splits, epochs: int) -> bool:
    """Whether one evaluation hardly adds to the run's duration."""
    assert splits.train is not None, "nothing to train on"
    longest = max(QUICK_IMAGES, QUICK_SHARE * epochs * len(splits.train.records))
    return splits.val is not None and len(splits.val.records) <= longest


def set_up_computation(detector: DetectionModel, run: RunConfig, device: torch.device) -> None:
    """Set how the detector computes, without changing what it computes."""
    if run.channels_last is True or (run.channels_last == "auto" and device.type in ("cpu", "cuda")):
        # With channels-last weights, a convolution returns channels-last maps, whatever the format of its input.
        detector.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if run.checkpoint_activations:
        checkpoint_activations(detector)
    elif run.compile:
        compile_parts(detector)
    else:
        recompute_activations(detector)
