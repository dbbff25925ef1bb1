"""The folder of a training run: its files, the record of its settings, and what may change on resume."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdetrv4.config import Recipe, changed_settings, load_recipe, override, to_yaml
from rtdetrv4.errors import ConfigError
from rtdetrv4.training.checkpoint import BEST_FILE, LAST_FILE, WEIGHTS_FILE
from rtdetrv4.training.observers import LOG_FILE

if TYPE_CHECKING:
    from rtdetrv4.data.formats import Splits

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
FREE_ON_RESUME = (
    "data.cache",
    "data.cache_size",
    "data.path",
    "data.workers",
    "distillation.teacher_compile",
    "run.channels_last",
    "run.checkpoint_activations",
    "run.compile",
    "run.device",
    "run.log_every",
    "run.out",
    "run.tracker",
    "run.val_batch",
)
"""Settings that do not change the results, or that may have to differ on another machine."""
_RECORDED_PACKAGES = ("rtdetrv4", "torch", "torchvision", "timm", "accelerate", "numpy")


class RunFolder:
    """Paths in a run folder; `docs/guides/training.md` lists the other files there."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.weights = self.path / WEIGHTS_FILE
        """The best weights, for prediction, export and fine-tuning."""
        self.best = self.path / BEST_FILE
        """The training state that the best weights come from."""
        self.last = self.path / LAST_FILE
        """The latest training state, to resume from."""
        self.recipe = self.path / RECIPE_FILE
        """Every setting of the run."""
        self.record = self.path / "run.json"
        """Versions, seed, classes, and fingerprints of the data."""
        self.validation = self.path / "validation.txt"
        """The validation images, if the data had no validation part and some were taken from training."""
        self.log = self.path / LOG_FILE
        self.predictions = self.path / "predictions.jpg"
        self.report = self.path / "val"

    def recorded_start(self) -> dict[str, Any] | None:
        """What the run in this folder started from, as run.json says; None if it does not."""
        return json.loads(self.record.read_text(encoding="utf-8")).get("start") if self.record.is_file() else None

    def write_record(self, recipe: Recipe, splits: Splits, start: Mapping[str, Any] | None = None) -> None:
        """Write recipe.yaml, run.json, and the list of validation images if these were chosen here.

        Args:
            recipe: all settings.
            splits: the data.
            start: what the run started from, see `rtdetrv4.assembly.start.Start.record`.
        """
        parts = splits.parts
        names, ids = parts["train"].classes
        record = {
            "versions": {
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in _RECORDED_PACKAGES},
            },
            "seed": recipe.run.seed,
            "start": start,
            "classes": dict(zip(names, ids, strict=True)),
            "data": {
                name: {"images": len(part.records), "fingerprint": part.fingerprint, "problems": list(part.problems)}
                for name, part in parts.items()
            },
            "data_notes": list(splits.notes),
        }
        self.path.mkdir(parents=True, exist_ok=True)
        self.recipe.write_text(to_yaml(recipe), encoding="utf-8")
        # A file name that is not UTF-8 is written as JSON's own escapes.
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        self.record.write_text(text, encoding="utf-8", errors="backslashreplace")
        if splits.is_val_made and splits.val is not None:
            chosen = "".join(f"{record.info.file_name}\n" for record in splits.val.records)
            self.validation.write_text(chosen, encoding="utf-8", errors="surrogatepass")

    def resumed_recipe(self, recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
        """Return the recipe that the run began with, with the changes that a resumed run may make.

        Args:
            recipe: the recipe of the detector that resumes the run.
            given: changed settings by dotted or short name.

        Raises:
            ConfigError: there is no run, it trains another model, or a changed setting must stay as it was.
        """
        if not self.last.is_file() or not self.recipe.is_file():
            raise ConfigError(f"There is no run to resume: {self.last} does not exist. Give its folder with out=….")
        before = load_recipe(self.recipe)
        if recipe.model.name != before.model.name:
            raise ConfigError(f"The run in {self.path} trains {before.model.name}, not {recipe.model.name}.")
        now = override(before, given)
        if changed := fixed_changes(before, now):
            raise ConfigError(
                f"A run resumes with the settings it began with, but {changed}. Leave them out to resume, or "
                f"start a new run from its {WEIGHTS_FILE}."
            )
        return now


def log_findings(splits: Splits) -> None:
    """Log how a data set was read, and what was dropped, corrected or looks wrong."""
    for note in splits.notes:
        logger.info(note)
    for name, part in splits.parts.items():
        for problem in part.problems:
            logger.warning("%s: %s", name, problem)


def fixed_changes(before: Recipe, now: Recipe, free: tuple[str, ...] = FREE_ON_RESUME) -> str:
    """List changed settings outside `free` as "schedule.epochs was 50, now 60; …"; empty if there are none."""
    changed = changed_settings(before, now)
    return "; ".join(f"{name} was {old}, now {new}" for name, (old, new) in changed.items() if name not in free)
