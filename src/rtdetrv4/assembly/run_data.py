"""What a run loads: labeled images, images for the teacher, and those for pseudo-labels, with their caches on disk."""

from __future__ import annotations

import logging
import math
import os

from accelerate import Accelerator

from rtdetrv4.config import Recipe
from rtdetrv4.config.schema import PseudoLabelsConfig, parse_size
from rtdetrv4.data.cache import ImageCache, describe, open_cache
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.formats import Split, Splits
from rtdetrv4.data.loader import DetectionLoader, build_list_loader, build_loader
from rtdetrv4.data.sampling import repeat_factors
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.distillation import Teacher
from rtdetrv4.errors import ConfigError
from rtdetrv4.evaluation import CocoEvaluator
from rtdetrv4.training import Plan, PseudoLabels, TrainingData, UnlabeledData, split_batch
from rtdetrv4.training.pseudo_labels import STRONG, usual_epochs
from rtdetrv4.training.teacher_features import TeacherFeatures, features_folder

logger: logging.Logger = logging.getLogger(__name__)


def training_data(
    recipe: Recipe, split: Split, accumulate: int, accelerator: Accelerator, cache: ImageCache | None
) -> TrainingData:
    """The images with labels, in the batches of this rank."""
    stage = _augmentation(recipe, split)
    seed, rank = recipe.run.seed, accelerator.process_index
    per_rank = split_batch(recipe.schedule.batch, ranks=accelerator.num_processes, accumulate=accumulate)
    return TrainingData(
        loader=_training_loader(recipe, split, stage, per_rank, accelerator, cache),
        augment=stage,
        image_size=recipe.model.image_size,
        multi_scale_repeat=recipe.augment.multi_scale_repeat,
        seed=seed,
        rank=rank,
    )


def features_on_disk(
    recipe: Recipe, split: Split, teacher: Teacher | None, accelerator: Accelerator
) -> TeacherFeatures | None:
    """The teacher's features of a split on disk, computed if they are not there yet; a collective call."""
    if teacher is None or recipe.distillation.cache == "none":
        return None
    height, width = recipe.model.image_size
    scale = recipe.distillation.cache_scale
    size, teacher = (scale * height, scale * width), teacher.to(accelerator.device)
    features = TeacherFeatures(split, size, teacher, features_folder(), recipe.model.resize)
    batch = split_batch(recipe.schedule.batch, ranks=accelerator.num_processes)
    features.fill(accelerator, batch=batch, workers=recipe.data.workers)
    return features


def check_unlabeled(recipe: Recipe, *, has_teacher: bool, has_val: bool) -> None:
    """Check that a run can learn from its images without labels.

    Raises:
        ConfigError: neither a teacher nor pseudo-labels are there for them, or the thresholds cannot be measured.
    """
    settings = recipe.pseudo_labels
    if not has_teacher and not settings.weight:
        raise ConfigError(
            "data.unlabeled: to learn from images without labels, name a teacher, such as dinov2-b, or set "
            "pseudo_labels.weight=1; or leave the images out."
        )
    if settings.weight and settings.threshold == "best" and not has_val:
        raise ConfigError(
            "pseudo_labels.threshold: best needs validation images, and there are none. Give a number, such as 0.5."
        )


def _batches_beside(recipe: Recipe, accumulate: int, accelerator: Accelerator, share: float) -> tuple[int, int]:
    """Size and number per step of batches that hold `share` times as many images as those with labels.

    They are no larger than these, so that they fit in memory.
    """
    per_rank = split_batch(recipe.schedule.batch, ranks=accelerator.num_processes, accumulate=accumulate)
    per_step = accumulate * math.ceil(share)
    return max(round(per_rank * accumulate * share / per_step), 1), per_step


def unlabeled_data(
    recipe: Recipe,
    split: Split | None,
    accumulate: int,
    accelerator: Accelerator,
    features: TeacherFeatures | None,
    cache: ImageCache | None,
) -> UnlabeledData | None:
    """The images without labels that the teacher is asked for."""
    if split is None:
        return None
    size, per_step = _batches_beside(recipe, accumulate, accelerator, recipe.distillation.unlabeled_share)
    stage = _augmentation(recipe, split)
    loader = _training_loader(recipe, split, stage, size, accelerator, cache)
    return UnlabeledData(loader=loader, augment=stage, per_step=per_step, features=features)


def pseudo_labels(
    recipe: Recipe,
    splits: Splits,
    plan: Plan,
    accumulate: int,
    accelerator: Accelerator,
    evaluator: CocoEvaluator | None,
    cache: ImageCache | None,
) -> PseudoLabels | None:
    """The owner of pseudo-labels for the images without labels, if the recipe asks for them."""
    settings, split = recipe.pseudo_labels, splits.unlabeled
    if split is None or splits.train is None or not settings.weight:
        return None
    epochs = pseudo_epochs(settings, plan)
    if not epochs and accelerator.is_main_process:
        logger.warning(
            "pseudo_labels: none of the %d epochs is from epoch %d and before epoch %d, so nothing is labeled.",
            plan.epochs,
            epochs.start,
            epochs.stop,
        )
    size, per_step = _batches_beside(recipe, accumulate, accelerator, settings.share)
    augment = recipe.augment
    stage = STRONG
    if settings.augment == "recipe":
        stage = Augmentation(photometric=augment.photometric, zoom_out=augment.zoom_out, iou_crop=augment.iou_crop)
    stage = stage._replace(flip=augment.flip)
    image_size, resize, workers = recipe.model.image_size, recipe.model.resize, recipe.data.workers
    students = DetectionDataset(split, image_size, stage, recipe.run.seed, cache, resize)
    return PseudoLabels(
        loader=build_list_loader(students, size, workers),
        plain=build_list_loader(DetectionDataset(split, image_size, cache=cache, resize=resize), size, workers),
        augment=stage,
        names=splits.train.classes.names,
        epochs=epochs,
        steps_per_epoch=plan.steps_per_epoch,
        per_step=per_step,
        weight=settings.weight,
        threshold=None if settings.threshold == "best" else settings.threshold,
        floor=settings.floor,
        least_f1=settings.least_f1,
        evaluator=evaluator,
        seed=recipe.run.seed,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
    )


def pseudo_epochs(settings: PseudoLabelsConfig, plan: Plan) -> range:
    """The epochs of a run that have pseudo-labels."""
    usual = usual_epochs(plan)
    first = usual.start if settings.from_epoch == "auto" else settings.from_epoch
    end = usual.stop if settings.until_epoch == "auto" else settings.until_epoch
    return range(first, min(end, plan.epochs))


def pseudo_share(recipe: Recipe, splits: Splits, plan: Plan) -> float:
    """How many images with pseudo-labels a run has for each with labels, at most."""
    settings = recipe.pseudo_labels
    if splits.unlabeled is None or not settings.weight:
        return 0.0
    return settings.share * len(pseudo_epochs(settings, plan)) / plan.epochs


def _augmentation(recipe: Recipe, split: Split) -> Augmentation:
    """The augmentation of a split's images; boxes are what many kinds are for."""
    augment = recipe.augment
    stage = Augmentation(
        mosaic=augment.mosaic,
        mixup=augment.mixup,
        photometric=augment.photometric,
        zoom_out=augment.zoom_out,
        iou_crop=augment.iou_crop,
        flip=augment.flip,
        rotation=augment.mosaic_rotation,
        translation=augment.mosaic_translation,
        min_scale=augment.mosaic_scale[0],
        max_scale=augment.mosaic_scale[1],
    )
    if not split.classes.names:  # images without labels
        stage = stage._replace(mosaic=0.0, mixup=0.0, zoom_out=0.0, iou_crop=0.0, permutes=0.0)
        stage = stage._replace(random_crop=augment.unlabeled_crop)
    return stage


def _training_loader(
    recipe: Recipe,
    split: Split,
    stage: Augmentation,
    batch: int,
    accelerator: Accelerator,
    cache: ImageCache | None,
) -> DetectionLoader:
    is_balanced = recipe.data.sampling == "balanced" and bool(split.classes.names)
    return build_loader(
        DetectionDataset(split, recipe.model.image_size, stage, recipe.run.seed, cache, recipe.model.resize),
        batch,
        recipe.data.workers,
        shuffle=True,
        seed=recipe.run.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        drop_last=True,
        weights=repeat_factors(split) if is_balanced else None,
    )


def image_cache(recipe: Recipe, split: Split, splits: Splits, accelerator: Accelerator) -> ImageCache | None:
    """The cache of one split, whose share of the cache size is its share of the images."""
    data = recipe.data
    if data.cache == "none":
        return None
    parts = (splits.train, splits.val, splits.unlabeled)
    num_images = sum(len(part.records) for part in parts if part is not None)
    cache = open_cache(
        data.cache,
        split,
        parse_size(data.cache_size) * len(split.records) // num_images,
        workers=data.workers,
        ranks=int(os.environ.get("LOCAL_WORLD_SIZE", "0")) or accelerator.num_processes,
    )
    if cache is not None and accelerator.is_main_process:
        logger.info("Image cache (%s) for %s: %s.", data.cache, split.image_dir, describe(cache, split))
    return cache
