"""The recipe of a detector: by name, from a file, or as its weights remember it."""

from __future__ import annotations

from pathlib import Path

from rtdetrv4.config import Recipe, load_recipe, override, setting_names, written_settings
from rtdetrv4.errors import WeightsError
from rtdetrv4.weights import WeightsMetadata
from rtdetrv4.weights.files import listing


def named_recipe(model: str | Path | Recipe) -> Recipe:
    """The recipe of a model by name, of a file, or itself."""
    return model if isinstance(model, Recipe) else load_recipe(model)


def settled_settings(model: str | Path | Recipe | None) -> frozenset[str]:
    """The settings of a model's recipe that are the user's: those written in a file, or all of a `Recipe`."""
    if isinstance(model, Recipe):
        return frozenset(setting_names())
    return frozenset() if model is None else written_settings(model)


def recipe_of_weights(model: str | Path | Recipe | None, metadata: WeightsMetadata) -> Recipe:
    """The recipe to use with weights: with the backbone, image size and number of queries they were trained with."""
    recipe = named_recipe(model or metadata.model)
    if recipe.model.name not in metadata.models:
        raise WeightsError(
            f"{metadata.source} holds {listing(metadata.models, 'or') or 'another model'}, not {recipe.model.name}. "
            "Leave the model out, or name the one that the weights belong to."
        )
    if isinstance(model, Recipe):
        return recipe
    if metadata.is_pretrained:  # the size of its images is no detector's
        backbone = metadata.facts.get("backbone")
        return recipe if backbone is None else override(recipe, {"model.backbone": backbone})
    remembered = {
        "model.backbone": metadata.facts.get("backbone"),
        "model.image_size": metadata.image_size,
        "model.resize": metadata.facts.get("resize"),
        "model.num_queries": metadata.facts.get("num_queries"),
    }
    return override(recipe, {name: value for name, value in remembered.items() if value is not None})


def without_pretrained(recipe: Recipe) -> Recipe:
    """The recipe without pretrained backbone weights, for networks whose weights all come from elsewhere."""
    return override(recipe, {"model.pretrained_backbone": False})
