"""Recipes as files: load, extend, override, write.

A recipe file is YAML. `extends: NAME_OR_PATH` starts from another recipe, so that the file holds only the changes:

```yaml
extends: rtdetrv4-s
schedule: {epochs: 50, batch: 16}
```

Settings have dotted names (`schedule.epochs`); the few that everyone changes also have a short one (`epochs`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard

import yaml
from pydantic import BaseModel, ValidationError

from rtdetrv4.config.schema import Recipe
from rtdetrv4.errors import ConfigError, did_you_mean, shown
from rtdetrv4.input_files import is_file, read_file
from rtdetrv4.yaml12 import dump_yaml, load_yaml

SHORT_NAMES: Mapping[str, str] = {
    "amp": "run.amp",
    "batch": "schedule.batch",
    "cache": "data.cache",
    "data": "data.path",
    "device": "run.device",
    "epochs": "schedule.epochs",
    "imgsz": "model.image_size",
    "lr": "optimizer.lr",
    "out": "run.out",
    "seed": "run.seed",
    "teacher": "distillation.teacher",
    "tracker": "run.tracker",
    "workers": "data.workers",
}
"""Short names for the settings that are changed most."""

MAX_BYTES = 100_000
"""Of a recipe file."""
MAX_NUMBER = 1e15
"""Settings that depend on a larger one do not follow it: validation refuses it, and floats would overflow."""
CLOSE = 0.8
"""How similar the last part of an unknown name is to a setting, at least, for it to be suggested; foo is 0.75 floor."""
MAX_PARENTS = 20
"""Recipes that may extend each other in a row."""

_SHIPPED = resources.files("rtdetrv4.config") / "recipes"


def recipe_names() -> tuple[str, ...]:
    """The shipped recipes, one for each model."""
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in _SHIPPED.iterdir() if entry.is_file()))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Load a shipped recipe by name, or a YAML file by path.

    Raises:
        ConfigError: the recipe does not exist or is not valid.
    """
    return _validate(_load_settings(str(name_or_path), Path(), ()), str(name_or_path))


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a recipe with some settings changed.

    Args:
        recipe: the recipe to change.
        changes: values by dotted name, by short name, or nested as in YAML. A short name with the value None is
            ignored, as a keyword that was not given; `teacher="none"` turns distillation off.

    Unless `schedule.scaling` is "published", settings that depend on a changed one follow it, unless they are changed
    too: the stages keep their share of `epochs`, the learning rate scales with the square root of `batch`, and the
    backbone's learning rate keeps its ratio to `lr`.

    Raises:
        ConfigError: a setting is unknown, of the wrong type, out of range, or contradicts another.
    """
    before = flat_settings(recipe)
    return _validate(_follow(before, _resolve(changes, "")), "")


def given_settings(changes: Mapping[str, Any]) -> frozenset[str]:
    """Dotted names of the settings that `override` would set directly.

    Raises:
        ConfigError: a setting is unknown.
    """
    return frozenset(_resolve(changes, ""))


def written_settings(name_or_path: str | Path) -> frozenset[str]:
    """Dotted names of the settings that a recipe file and the files it extends set; none for a shipped recipe.

    Raises:
        ConfigError: the file does not exist or is not valid.
    """
    return frozenset(_written(str(name_or_path), Path()))


def flat_settings(recipe: Recipe) -> dict[str, Any]:
    """Every setting by dotted name."""
    return _flatten(recipe.model_dump())


def changed_settings(before: Recipe, after: Recipe) -> dict[str, tuple[Any, Any]]:
    """Settings that differ between two recipes: (before, after) by dotted name."""
    old, new = flat_settings(before), flat_settings(after)
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


def parse_assignment(text: str) -> tuple[str, Any]:
    """`"schedule.epochs=50"` → `("schedule.epochs", 50)`; the value is YAML.

    Raises:
        ConfigError: there is no `=`, or the value is not YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f'Got "{text}", expected NAME=VALUE such as schedule.epochs=50.')
    return name.strip(), _parse_yaml(value, name.strip())


def to_yaml(recipe: Recipe) -> str:
    """Return the whole recipe as YAML, with every setting written out."""
    return dump_yaml(recipe.model_dump(mode="json"))


def from_yaml(text: str) -> Recipe:
    """Parse what `to_yaml` returned; `extends` is accepted too.

    Raises:
        ConfigError: the text is not a valid recipe.
    """
    return _validate(_read_settings(text, "text", Path(), ()), "")


# ---- settings as a flat mapping: dotted name → value ----------------------------------------------------------------


@cache
def setting_names() -> tuple[str, ...]:
    """Every setting by dotted name."""
    return tuple(_leaves(Recipe, ""))


def _leaves(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, leaf = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    return nested


def _resolve(changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the changes by dotted name; raise on unknown names."""
    known = set(setting_names())
    resolved: dict[str, Any] = {}
    for name, value in _flatten(changes).items():
        if name in SHORT_NAMES:
            if value is None:
                continue
            if name == "teacher" and value == "none":
                value = None
            elif name == "batch" and value == "auto":
                resolved["run.accumulate"] = "auto"
                continue
            elif name in ("data", "out"):
                value = str(value)
            name = SHORT_NAMES[name]
        if name not in known:
            raise ConfigError(f"{where}{_unknown(name)}")
        resolved[name] = value
    return resolved


def _unknown(name: str) -> str:
    inside = [known for known in setting_names() if known.startswith(f"{name}.")]
    if inside:
        return f'"{name}" is a group of settings, expected one of them: {", ".join(inside)}.'
    section, _, leaf = name.rpartition(".")
    by_leaf = {known.rpartition(".")[2]: known for known in reversed(setting_names())}
    if leaf in by_leaf:
        same = [known for known in setting_names() if known.rpartition(".")[2] == leaf]
        nearest = max(same, key=lambda known: _similarity(section, known.rpartition(".")[0]))
        suggestion = f' Did you mean "{nearest}"?'
    elif not (suggestion := did_you_mean(name, (*SHORT_NAMES, *setting_names()))):
        near = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=CLOSE)
        suggestion = f' Did you mean "{by_leaf[near[0]]}"?' if near else ""
    return f'"{name}" is not a setting.{suggestion}'


def _similarity(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _follow(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings after `changes`, with dependent settings adjusted; see `override`."""
    after = {**before, **changes}
    if after.get("schedule.scaling") == "published":
        return after

    def growth(name: str) -> float:
        old, new = before.get(name), after.get(name)
        # Validation reports values that are not positive numbers.
        return new / old if _is_number(old) and _is_number(new) and old > 0 and new > 0 else 1.0

    def adjust(name: str, new: Callable[[Any], Any]) -> None:
        if name not in changes and _is_number(before.get(name)):
            after[name] = new(before[name])

    epochs, old_epochs = growth("schedule.epochs"), before.get("schedule.epochs")
    for name in ("basic_epochs", "mosaic_until", "flat_epoch", "refine_from"):
        adjust(f"schedule.{name}", lambda boundary: _round(boundary * epochs))
    if _is_number(old_epochs):
        # Rounded from the start, like the boundaries, so that it still meets the boundary at the same epoch.
        adjust(
            "schedule.no_aug_epochs", lambda tail: _round(old_epochs * epochs) - _round((old_epochs - tail) * epochs)
        )
    batch = growth("schedule.batch")
    adjust("optimizer.lr", lambda lr: lr * math.sqrt(batch))
    lr_growth = growth("optimizer.lr")
    adjust("optimizer.backbone_lr", lambda lr: lr * lr_growth)
    return after


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def _round(value: float) -> int:
    """Round to the nearest integer, halves up."""
    return math.floor(value + 0.5)


# ---- files ----------------------------------------------------------------------------------------------------------


def _load_settings(name_or_path: str, folder: Path, children: tuple[str, ...]) -> dict[str, Any]:
    """Read the settings of a shipped recipe or a file, parents included; paths are relative to `folder`."""
    shipped, path = _shipped(name_or_path), folder / name_or_path
    if shipped is not None:
        source, place = shipped, Path()
    elif is_file(path) and (path.suffix in (".yaml", ".yml") or not children):
        source, place = str(path.resolve()), path.parent
    elif path.suffix in (".yaml", ".yml"):
        raise ConfigError(f'Recipe file "{path}" does not exist.')
    elif is_file(weights := path / "weights.safetensors"):
        raise ConfigError(f'"{name_or_path}" is the folder of a run; give its weights, {weights}.')
    else:
        raise ConfigError(
            f'"{name_or_path}" is neither a model nor a recipe file.{did_you_mean(name_or_path, recipe_names())} '
            "See `rtdetrv4 models`."
        )
    if source in children:
        raise ConfigError(f'Recipe "{name_or_path}" extends itself.')
    if len(children) > MAX_PARENTS:
        raise ConfigError(f'Recipe "{name_or_path}" is extended by more than {MAX_PARENTS} recipes in a row.')
    return _read_settings(_read_text(source, name_or_path), name_or_path, place, (*children, source))


def _shipped(name: str) -> str | None:
    path = str(_SHIPPED / f"{name}.yaml")
    return path if is_file(path) and ".." not in name else None


def _read_text(source: str | Path, name: str) -> str:
    advice = "Give a model's name, a recipe (.yaml) or weights (.safetensors, .pth, .pt)."
    try:
        return read_file(source, MAX_BYTES).decode()
    except UnicodeDecodeError:
        raise ConfigError(f'"{name}" is no recipe: it holds no text. {advice}') from None
    except OSError as error:
        raise ConfigError(f'"{name}" cannot be read as a recipe: {error.strerror}. {advice}') from error


def _written(name_or_path: str, folder: Path) -> Iterator[str]:
    """Yield the settings that `_load_settings`, which has raised for whatever is wrong, read from files."""
    path = folder / name_or_path
    if _shipped(name_or_path) is not None or not is_file(path):
        return
    content = dict(_parse_yaml(_read_text(path, name_or_path), name_or_path) or {})
    parent = content.pop("extends", None)
    yield from _resolve(content, f'Recipe "{name_or_path}": ')
    if parent is not None:
        yield from _written(str(parent), path.parent)


def _read_settings(text: str, name: str, folder: Path, children: tuple[str, ...]) -> dict[str, Any]:
    content = _parse_yaml(text, name) or {}
    if not isinstance(content, dict):
        raise ConfigError(f'Recipe "{name}": got {_show(content)}, expected settings such as "epochs: 50".')
    parent = content.pop("extends", None)
    before = _load_settings(str(parent), folder, children) if parent is not None else {}
    return _follow(before, _resolve(content, f'Recipe "{name}": '))


def _validate(flat: Mapping[str, Any], name: str) -> Recipe:
    try:
        return Recipe.model_validate(_nest(flat))
    except ValidationError as error:
        where = f'Recipe "{name}": ' if name else ""
        raise ConfigError(where + _describe(error)) from error


def _describe(error: ValidationError) -> str:
    """Describe the first wrong setting in one line: what was got and what was expected."""
    first, *others = error.errors(include_url=False)
    # A union reports one error per member, with the member's name appended to the location.
    setting = _setting_of(first["loc"])
    alternatives = [first, *(other for other in others if _setting_of(other["loc"]) == setting)]
    messages = (
        each["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("expected ")
        for each in alternatives
    )
    expected = " or ".join(dict.fromkeys(messages))
    num_others = len(others) - len(alternatives) + 1
    more = f" (And {num_others} more.)" if num_others else ""
    stop = "" if expected.endswith(("?", ".")) else "."
    if first["type"] == "missing":
        return f"{setting} is not set; extend a shipped recipe, such as rtdetrv4-s, to have every setting.{more}"
    if setting not in setting_names():  # a contradiction between settings, which the message names
        return f"{setting}{'.' if setting else ''}{expected}{stop}{more}"
    return f"{setting}: got {_show(first['input'])}, expected {expected}{stop}{more}"


def _setting_of(location: tuple[int | str, ...]) -> str:
    """`("model", "pretrained_backbone", "bool")` → `"model.pretrained_backbone"`."""
    dotted = ".".join(map(str, location))
    return next((name for name in setting_names() if dotted == name or dotted.startswith(f"{name}.")), dotted)


def _show(value: Any) -> str:
    return f"{shown(value)} ({type(value).__name__})"


def _parse_yaml(text: str, name: str) -> Any:
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f'"{name}" is not valid YAML{line}: {getattr(error, "problem", None) or error}.') from error
