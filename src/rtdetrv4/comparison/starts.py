"""What the runs of a comparison start from: the same for all arms, unless an arm has `weights` of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from rtdetrv4.assembly.models import build_detector
from rtdetrv4.assembly.recipes import recipe_of_weights, without_pretrained
from rtdetrv4.assembly.start import START_NAMES, StartName, choose_start
from rtdetrv4.config import Recipe
from rtdetrv4.errors import ConfigError, WeightsError
from rtdetrv4.models import DetectionModel
from rtdetrv4.ops.hub import file_sha256
from rtdetrv4.run_folder import RunFolder
from rtdetrv4.types import ClassMap
from rtdetrv4.weights import load_weights, read_checkpoint
from rtdetrv4.weights.files import find_weights

WEIGHTS = "weights"
"""The entry of an arm's settings that is none of the recipe."""
SEED = "{seed}"
"""Stands for the run's seed in an arm's `weights`."""


class RunStart(NamedTuple):
    """What one run starts from."""

    weights: str
    """A name, such as "imagenet" or "none", or a file."""
    is_own: bool
    """Whether the arm has weights of its own."""
    sha256: str | None = None
    """Of the file; None for a name, or if the file of a finished run is gone."""

    @property
    def is_named(self) -> bool:
        """Whether the weights are fetched, or left out, by name."""
        return self.weights in START_NAMES

    def record(self) -> dict[str, Any] | None:
        """What `result.json` says of weights that the arm alone has."""
        return {"weights": self.weights, "sha256": self.sha256} if self.is_own else None


def split_weights(name: str, settings: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Take an arm's own weights, if it has some, from its settings.

    Raises:
        ConfigError: the weights are neither a name nor a path.
    """
    rest = dict(settings)
    weights = rest.pop(WEIGHTS, None)
    if not (weights is None or (isinstance(weights, str | Path) and str(weights).strip())):
        raise ConfigError(
            f'Arm "{name}": weights: got {weights!r}, expected {", ".join(START_NAMES)} or a file, such as '
            f"runs/pre-{SEED}/weights.safetensors."
        )
    return None if weights is None else str(weights).strip(), rest


def start_of(recipe: Recipe, weights: str | Path | None, own: str | None, *, is_finished: bool) -> RunStart:
    """What a run starts from.

    Args:
        recipe: of the run.
        weights: those of all arms; None: the recipe's backbone.
        own: those of its arm.
        is_finished: a finished run no longer needs its file.

    Raises:
        WeightsError: the file does not exist.
    """
    # Runs can be compared only if it is known what they start from, so none may take the next best.
    common = weights or ("imagenet" if recipe.model.pretrained_backbone else "none")
    text = str(common) if own is None else own.replace(SEED, str(recipe.run.seed))
    if text in START_NAMES:
        return RunStart(text, own is not None)
    try:
        return RunStart(text, own is not None, file_sha256(find_weights(text)))
    except WeightsError:
        if not is_finished:
            raise
        return RunStart(text, own is not None)


def check_start(folder: RunFolder, start: RunStart) -> None:
    """Raise if the run in a folder, if there is one, began with other weights.

    Raises:
        ConfigError: it did.
    """
    before = folder.recorded_start()
    if before is None:
        return
    if before["kind"] in START_NAMES:  # by name: the run has derived nothing else from it
        is_same, was = start.is_named and start.weights == before["kind"], before["kind"]
    elif start.sha256 is not None:
        is_same, was = start.sha256 == before["sha256"], before["source"]
    else:  # the run is finished, and its file is gone
        is_same, was = not start.is_named and Path(start.weights) == Path(before["source"]), before["source"]
    if is_same:
        return
    changed = f"it started from {was}, now {start.weights}"
    if not start.is_named and Path(start.weights) == Path(was):
        changed = f"what {was} holds has changed since"
    raise ConfigError(
        f"{folder.path} was made with other weights: {changed}. Choose another folder with --out, or delete it."
    )


class StartCheck:
    """Loads the weights of arms into their model before anything is trained.

    Args:
        classes: of the training images.
    """

    def __init__(self, classes: ClassMap) -> None:
        self._classes = classes
        self._networks: dict[str, DetectionModel] = {}
        self._done: set[tuple[str, str | None]] = set()

    def __call__(self, recipe: Recipe, start: RunStart) -> None:
        """Try the start of one run.

        Raises:
            ConfigError: a name contradicts the recipe, or the file is for another backbone.
            WeightsError: it cannot be had, or does not fit.
        """
        model = recipe.model.model_dump_json()
        if (model, start.sha256 or start.weights) in self._done:
            return
        self._done.add((model, start.sha256 or start.weights))
        if start.is_named:
            choose_start(recipe, cast("StartName", start.weights))
            return
        checkpoint = read_checkpoint(start.weights, takes_pretrained=True)
        recipe_of_weights(recipe, checkpoint.metadata)
        facts = checkpoint.metadata.facts
        if "backbone" in facts and facts["backbone"] != recipe.model.backbone:
            theirs, ours = facts["backbone"] or "the model's own", recipe.model.backbone or "the model's own"
            setting = facts["backbone"] or "null"
            raise ConfigError(
                f"{start.weights} is for another backbone: {theirs}, and the arm has {ours}. Give all arms the same: "
                f"--set model.backbone={setting}."
            )
        if model not in self._networks:
            self._networks[model] = build_detector(without_pretrained(recipe), self._classes.num_classes)
        load_weights(self._networks[model], checkpoint, names=self._classes.names)
