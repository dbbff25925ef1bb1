"""Recipes, model variants, and how to override settings. Plain data, no torch."""

from __future__ import annotations

from rtdetrv4.config.recipe import (
    changed_settings,
    flat_settings,
    from_yaml,
    given_settings,
    load_recipe,
    override,
    parse_assignment,
    recipe_names,
    setting_names,
    to_yaml,
    written_settings,
)
from rtdetrv4.config.schema import Recipe
from rtdetrv4.config.variants import DEFAULT_MODEL, VARIANTS, Variant

__all__ = [
    "DEFAULT_MODEL",
    "VARIANTS",
    "Recipe",
    "Variant",
    "changed_settings",
    "flat_settings",
    "from_yaml",
    "given_settings",
    "load_recipe",
    "override",
    "parse_assignment",
    "recipe_names",
    "setting_names",
    "to_yaml",
    "written_settings",
]
