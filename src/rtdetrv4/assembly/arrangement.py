"""Arrange a run: check the data, choose what it starts from, and fit the recipe to both."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from accelerate import Accelerator

from rtdetrv4.assembly.fitting import Fitting
from rtdetrv4.assembly.start import Start
from rtdetrv4.config import Recipe, override
from rtdetrv4.data.formats import load_data
from rtdetrv4.data.fraction import take_fraction
from rtdetrv4.data.records import Splits, require_objects
from rtdetrv4.data.unlabeled import image_files, read_unlabeled
from rtdetrv4.doctor import Findings, quick_findings
from rtdetrv4.errors import ConfigError, DatasetError, WeightsError
from rtdetrv4.ops.collectives import texts_of_ranks


class Arrangement(NamedTuple):
    """What a new run is made of, before its network is built."""

    recipe: Recipe
    """Fitted to the data, but for the length of the run, which `fitting` may still change."""
    start: Start
    fitting: Fitting | None
    """None for a recipe that is taken as it is."""


class TrainingImages(NamedTuple):
    """The data of a run."""

    splits: Splits
    """With `train`, or `data.fraction` of it, with `val` where there is one or some could be taken from the whole of
    `train`, and with `unlabeled` if asked for."""
    findings: Findings
    """Of a quick check of the annotations."""


def read_training_data(recipe: Recipe) -> TrainingImages:
    """The training and validation images of a recipe.

    Raises:
        ConfigError: the recipe names no data.
        DatasetError: there is nothing to train on.
    """
    if recipe.data.path is None:
        raise ConfigError("There is no data to train on. Give a folder: detector.train('datasets/mine').")
    loaded = load_data(recipe.data.path, parts=("train", "val"), make_val=True)
    splits = loaded.splits
    if splits.train is None:
        raise DatasetError(f"{recipe.data.path} has no training part, such as train/ or instances_train*.json.")
    require_objects(splits.train)
    findings = quick_findings(recipe.data.path, loaded)
    if recipe.data.unlabeled:
        seen_in_validation = set() if splits.val is None or splits.val is splits.train else image_files(splits.val)
        unlabeled = read_unlabeled(recipe.data.unlabeled, recipe.data.unlabeled_parts, seen_in_validation)
        splits = splits._replace(unlabeled=unlabeled)
    if recipe.data.fraction < 1:
        splits = _with_fraction(splits, recipe)
    return TrainingImages(splits, findings)


def _with_fraction(splits: Splits, recipe: Recipe) -> Splits:
    """Leave out training images; those of validation stay."""
    assert splits.train is not None
    settings = recipe.data
    seed = recipe.run.seed if settings.fraction_seed == "run" else settings.fraction_seed
    train, note = take_fraction(splits.train, settings.fraction, seed)
    return splits._replace(train=train, notes=(*splits.notes, note))


def arrange(
    recipe: Recipe,
    settled: Collection[str],
    splits: Splits,
    accelerator: Accelerator,
    *,
    choose_start: Callable[[Recipe], Start],
    budget: float | None,
) -> Arrangement:
    """Choose what a run starts from, and derive what the user has not set; a collective call.

    Args:
        recipe: the model's recipe with the user's settings.
        settled: dotted names of the user's settings.
        splits: the data; `train` is required.
        accelerator: device and ranks.
        choose_start: from the recipe to what training starts from, which it may have to fetch.
        budget: seconds for the whole run, or None.

    Raises:
        WeightsError: the ranks cannot all start from the same.
    """
    with accelerator.local_main_process_first():  # the others find in the cache what it fetched
        start = choose_start(recipe)
    if len(starts := set(texts_of_ranks(start.text))) > 1:
        raise WeightsError(
            f"The ranks cannot all start from the same: {' / '.join(sorted(starts))}. Ask for one by name, "
            'such as weights="imagenet", or fill the cache of every machine.'
        )
    recipe = override(recipe, start.settings)
    if not recipe.run.derive or recipe.schedule.scaling != "auto":
        return Arrangement(recipe, start, None)
    if start.kind == "file":  # the weights have their own
        settled = {*settled, "model.backbone", "model.image_size"}
    elif start.kind == "pretrained":
        settled = {*settled, "model.backbone"}
    fitting = Fitting.gather(recipe, settled, splits, accelerator, start=start, budget=budget)
    return Arrangement(fitting.fit(recipe), start, fitting)
