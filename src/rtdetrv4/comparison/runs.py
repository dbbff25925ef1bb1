"""`compare`: train arms × seeds to measure what a change gains, with confidence intervals.

Arms with the same seed start from the same weights, see the same images in the same order and draw the same noise, so
they are compared in pairs.
"""

from __future__ import annotations

import gc
import json
import logging
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rtdetrv4.assembly.run_data import check_unlabeled
from rtdetrv4.assembly.training import build_teacher
from rtdetrv4.comparison.results import Comparison
from rtdetrv4.comparison.spread import few_seeds
from rtdetrv4.comparison.starts import SEED, WEIGHTS, RunStart, StartCheck, check_start, split_weights, start_of
from rtdetrv4.comparison.summary import (
    RESULT_FILE,
    SETTINGS_FILE,
    read_comparison,
    read_epochs,
    read_settings,
)
from rtdetrv4.config import Recipe, changed_settings, from_yaml, load_recipe, override, parse_assignment
from rtdetrv4.data.formats import read_splits
from rtdetrv4.data.records import Splits
from rtdetrv4.data.unlabeled import read_unlabeled
from rtdetrv4.detector import Detector
from rtdetrv4.distillation.teacher import Network, teacher_name
from rtdetrv4.errors import ConfigError, DatasetError, NonFiniteError, WeightsError, did_you_mean
from rtdetrv4.ops.hub import NotFetchedError
from rtdetrv4.outputs import make_folder, write_text
from rtdetrv4.run_folder import FREE_ON_RESUME, RECIPE_FILE, RunFolder, fixed_changes
from rtdetrv4.training.observers import progress_console
from rtdetrv4.weights.files import names_weights

logger: logging.Logger = logging.getLogger(__name__)

ARMS: Mapping[str, Mapping[str, Any]] = {
    mode: {"distillation.mode": mode} for mode in ("off", "fixed", "gam", "gam_paper", "auto")
}
"""Predefined arms, each named after its `distillation.mode`."""
DEFAULT_ARMS = ("off", "fixed", "gam")

_SHARED = ("data.path", "run.out", "run.seed")


def compare(
    data: str | Path | None = None,
    model: str | Path | Recipe | None = None,
    *,
    arms: Iterable[str] | Mapping[str, Mapping[str, Any]] = DEFAULT_ARMS,
    seeds: int | Sequence[int] = 3,
    teacher: str | Network | None = None,
    weights: str | Path | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    imgsz: int | str | tuple[int, int] | None = None,
    lr: float | None = None,
    device: str | None = None,
    workers: int | None = None,
    amp: str | None = None,
    out: str | Path = "runs/compare",
    overrides: Mapping[str, Any] | None = None,
) -> Comparison:
    """Train every arm with every seed, and compare the arms with the first one.

    Called again, it keeps finished runs and resumes one that was stopped. Several processes may share `out` if no two
    have a seed in common.

    Args:
        data: as for `Detector.train`; it needs a validation split.
        model: as for `Detector`.
        arms: keys of `ARMS` or "name:setting=value,setting=value", or a mapping from names to settings. The setting
            `weights` is what the runs of this arm start from, as for `Detector`; `{seed}` in it stands for their seed.
        seeds: their number, counted from 0, or a list. They determine new weights, the data order and all noise.
        teacher: teacher of the arms that distill, unless they name their own.
        weights: what the runs of all other arms start from, as for `Detector`; None: the recipe's backbone.
        epochs: this and the following as for `Detector.train`.
        batch: images per optimizer step.
        imgsz: image size.
        lr: learning rate.
        device: device of all runs.
        workers: number of processes that load images.
        amp: mixed precision.
        out: folder for everything.
        overrides: other settings of all runs, by dotted name.

    Raises:
        ConfigError: a setting is wrong, or `out` holds runs with other settings.
        DatasetError: the data cannot be used, or has nothing to evaluate on.
        WeightsError: weights cannot be loaded.
        KeyboardInterrupt: Ctrl-C; the same call resumes.
    """
    out, changes = Path(out), _parse_arms(arms)
    parts = {name: split_weights(name, settings) for name, settings in changes.items()}
    own_weights = {name: own for name, (own, _) in parts.items()}
    network = None if isinstance(teacher, str) else teacher
    given = {
        "data": data,
        "teacher": teacher if network is None else teacher_name(network),
        "epochs": epochs,
        "batch": batch,
        "imgsz": imgsz,
        "lr": lr,
        "device": device,
        "workers": workers,
        "amp": amp,
    }
    base = override(Detector(model, weights, device="cpu").recipe, {**given, "run.derive": False, **(overrides or {})})
    if base.run.patience == "auto":  # arms are compared after the same number of epochs
        base = override(base, {"run.patience": None})
    if base.run.accumulate == "auto":
        raise ConfigError(
            "batch: got auto, expected a number: what fits depends on the arm and on other programs, but all arms must "
            "use the same. Give run.accumulate a number."
        )
    if isinstance(model, str | Path) and names_weights(model):
        weights = model
    recipes = {name: _recipe_of_arm(base, name, settings) for name, (_, settings) in parts.items()}
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if not numbers or min(numbers) < 0:
        raise ConfigError(f"seeds: got {seeds}, expected a number of at least 1, or a list of seeds of at least 0.")
    runs = {
        (name, seed): override(recipe, {"run.seed": seed, "run.out": str(out / f"{name}-seed{seed}")})
        for seed in numbers  # all arms of a seed first, so that a stopped comparison has complete pairs
        for name, recipe in recipes.items()
    }
    splits = _read_data(base)
    common = {
        "weights": None if weights is None else str(weights),
        "data": {name: part.fingerprint for name, part in splits.parts.items()},
        "recipe": base.model_dump(mode="json"),
    }
    _check_folder(out, runs.values(), base, common)
    waiting = {run: recipe for run, recipe in runs.items() if not Path(recipe.run.out, RESULT_FILE).is_file()}
    starts = _starts(runs, waiting, weights, own_weights, splits)
    _check_teachers(waiting.values(), network)
    _check_unlabeled(waiting, has_val=splits.val is not None)
    make_folder(out)
    known = read_settings(out).get("arms", {})
    write_text(out / SETTINGS_FILE, json.dumps({"arms": {**known, **changes}, **common}, indent=2, default=str) + "\n")
    if warning := _few_seeds(out, {*known, *changes}, numbers):
        logger.warning("%s", warning)
    console = progress_console()
    _say(console, f"{len(runs)} runs in {out}: {len(runs) - len(waiting)} are done, {len(waiting)} to go.")
    for number, ((name, seed), recipe) in enumerate(waiting.items(), start=1):
        _say(console, f"Run {number} of {len(waiting)}: {name} with seed {seed}")
        try:
            result = _train(recipe, starts[name, seed].weights, network)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Stopped in {recipe.run.out}; the same command resumes.") from None
        except NonFiniteError as error:  # a result for this arm that says nothing about the others
            logger.error("%s with seed %d gave up and is left out of the comparison: %s", name, seed, error)
            continue
        start = starts[name, seed].record()
        record = {"arm": name, "seed": seed, "settings": changes[name], "start": start, **result}
        write_text(Path(recipe.run.out, RESULT_FILE), json.dumps(record, indent=2, default=str) + "\n")
    return read_comparison(out)


# ---- before training ------------------------------------------------------------------------------------------------


def _parse_arms(arms: Iterable[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    pairs = list(arms.items()) if isinstance(arms, Mapping) else [_parse_arm(text) for text in arms]
    names = [name for name, _ in pairs]
    folded = [name.casefold() for name in names]  # they name folders, of which some systems do not see the case
    if twice := {name for name in names if folded.count(name.casefold()) > 1}:
        raise ConfigError(
            f"Arm names must differ, and not only in case, but {', '.join(sorted(twice))} was given twice."
        )
    if not names:
        raise ConfigError("There is no arm to train; give at least one, such as off or gam.")
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(
                f'Arm "{name}": expected only letters, digits, "_", "-" and ".", because it names folders.'
            )
    return dict(pairs)


def _parse_arm(text: str) -> tuple[str, Mapping[str, Any]]:
    """`"off"`, or `"strong:distillation.weight=20,distillation.mode=fixed"`."""
    name, colon, settings = text.strip().partition(":")
    if colon:
        assignments = re.split(r",(?=\s*[\w.]+\s*=)", settings)  # not at the commas of a list
        return name.strip(), dict(map(_parse_setting, assignments))
    if name == "static":
        raise ConfigError(
            'The arm "static" is now called "fixed"; to resume old runs, write static:distillation.mode=fixed.'
        )
    if name not in ARMS:
        raise ConfigError(
            f'There is no arm "{name}".{did_you_mean(name, ARMS)} Known: {", ".join(ARMS)}; write any other as '
            "NAME:SETTING=VALUE,SETTING=VALUE."
        )
    return name, ARMS[name]


def _parse_setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return (WEIGHTS, value) if name.strip() == WEIGHTS else parse_assignment(text)  # {seed} would be a mapping in YAML


def _recipe_of_arm(base: Recipe, name: str, settings: Mapping[str, Any]) -> Recipe:
    try:
        recipe = override(base, settings)
    except ConfigError as error:
        raise ConfigError(f'Arm "{name}": {error}') from error
    if shared := [setting for setting in changed_settings(base, recipe) if setting in _SHARED]:
        raise ConfigError(f'Arm "{name}" cannot change {", ".join(shared)}, which all arms share.')
    distils = any(setting.startswith("distillation") for setting in settings) and recipe.distillation.mode != "off"
    if distils and recipe.distillation.teacher is None:
        raise ConfigError(
            f'Arm "{name}" needs a teacher, but the recipe has none. Name one with teacher=… or --teacher.'
        )
    return recipe


def _check_folder(out: Path, recipes: Iterable[Recipe], base: Recipe, common: Mapping[str, Any]) -> None:
    """Raise if the folder holds runs of the same arms, or a comparison, with other settings, weights or data."""

    def refuse(folder: Path, changed: str) -> None:
        if changed:
            raise ConfigError(
                f"{folder} was made with other settings: {changed}. Choose another folder with --out, or delete it."
            )

    free = (*FREE_ON_RESUME, "run.seed")
    for recipe in recipes:
        folder = RunFolder(recipe.run.out)
        if folder.recipe.is_file():
            refuse(folder.path, fixed_changes(load_recipe(folder.recipe), recipe, free))
    before = read_settings(out)
    if before and any(out.glob(f"*/{RECIPE_FILE}")):
        refuse(out, fixed_changes(from_yaml(json.dumps(before["recipe"])), base, free))
        if before["weights"] != common["weights"]:
            refuse(out, f"weights was {before['weights']}, now {common['weights']}")
        for part, fingerprint in common["data"].items():
            if before["data"][part] != fingerprint:
                refuse(out, f"the {part} images or boxes have changed")


def _read_data(base: Recipe) -> Splits:
    """Read the data, and check that it has what a comparison needs."""
    if base.data.path is None:
        raise ConfigError("There is no data to compare on. Give a folder: --data datasets/mine.")
    splits = read_splits(base.data.path, parts=("train", "val"), make_val=True)
    if splits.train is None or splits.val is None:
        part = "training" if splits.train is None else "validation"
        raise DatasetError(
            f"{base.data.path} has no {part} part; a comparison needs both training and validation images."
        )
    if not any((~record.is_crowd).any() for record in splits.val.records):
        raise DatasetError(f"The validation part of {base.data.path} has no boxes, so there is no AP to compare.")
    return splits


def _starts(
    runs: Mapping[tuple[str, int], Recipe],
    waiting: Collection[tuple[str, int]],
    weights: str | Path | None,
    own_weights: Mapping[str, str | None],
    splits: Splits,
) -> dict[tuple[str, int], RunStart]:
    """What each run starts from, after checking that it can be had, fits, and is what runs before began with."""
    assert splits.train is not None
    check = StartCheck(splits.train.classes)
    starts: dict[tuple[str, int], RunStart] = {}
    for (name, seed), recipe in runs.items():
        own = own_weights[name]
        is_finished = (name, seed) not in waiting
        try:
            start = start_of(recipe, weights, own, is_finished=is_finished)
            if not is_finished and (start.is_own or start.is_named):
                check(recipe, start)
        except WeightsError as error:
            is_common = isinstance(error, NotFetchedError) and own is None  # and no run may take the next best
            advice = " Or compare from random weights: --weights none." if is_common else ""
            raise WeightsError(f'Arm "{name}", seed {seed}: {error}{advice}') from error
        except ConfigError as error:
            raise ConfigError(f'Arm "{name}", seed {seed}: {error}') from error
        check_start(RunFolder(recipe.run.out), start)
        starts[name, seed] = start
    seeds = {seed for _, seed in runs}
    for name, own in own_weights.items():
        if own is not None and SEED not in own and starts[name, min(seeds)].sha256 and len(seeds) > 1:
            logger.info(
                "All runs of %s start from the same file, so the intervals do not cover how its making varies. To have "
                "that, make one for every seed, and write %s where its number stands.",
                name,
                SEED,
            )
    return starts


def _check_teachers(recipes: Iterable[Recipe], network: Network | None) -> None:
    """Load each teacher once, so that a wrong name fails now and not after the first arm has been trained."""
    named = {
        (teaching.teacher, teaching.teacher_weights, teaching.teacher_block): teaching
        for recipe in recipes
        if (teaching := recipe.distillation).mode != "off" and not _learns_from(recipe, network)
    }
    for teaching in named.values():
        build_teacher(teaching, torch.device("cpu"))


def _check_unlabeled(runs: Mapping[tuple[str, int], Recipe], *, has_val: bool) -> None:
    """Check for the same reason that each arm can learn from its images without labels, and read these once."""
    read: set[tuple[Any, ...]] = set()
    for (name, _), recipe in runs.items():
        if not recipe.data.unlabeled:
            continue
        images = (recipe.data.unlabeled, recipe.data.unlabeled_parts)
        try:
            check_unlabeled(recipe, has_teacher=recipe.distillation.is_on, has_val=has_val)
            if images not in read:
                read.add(images)
                read_unlabeled(*images)
        except DatasetError as error:
            raise DatasetError(f'Arm "{name}": {error}') from error
        except ConfigError as error:
            raise ConfigError(f'Arm "{name}": {error}') from error


def _learns_from(recipe: Recipe, network: Network | None) -> bool:
    """Whether an arm distills from the teacher that was given as an object."""
    return network is not None and recipe.distillation.is_on and recipe.distillation.teacher == teacher_name(network)


def _few_seeds(out: Path, arms: Collection[str], seeds: Iterable[int]) -> str:
    """A warning if the runs in a folder, together with new ones, leave too few pairs; empty if not."""
    if len(arms) < 2:
        return ""
    before = {int(found[1]) for file in out.glob("*/") if (found := re.fullmatch(r".*-seed(\d+)", file.name))}
    return few_seeds(len(before | set(seeds)))


def _say(console: Console, line: str) -> None:
    """Print a line of progress, between those of the runs: logs of this level do not show in Python by default."""
    console.print(line, highlight=False, soft_wrap=True, markup=False)


# ---- one run --------------------------------------------------------------------------------------------------------


def _train(recipe: Recipe, start: str, network: Network | None) -> dict[str, Any]:
    """Train or resume one run, and return the entries for its `result.json`."""
    folder = RunFolder(recipe.run.out)
    resume = folder.can_resume
    now: dict[str, Any] = {"run.out": recipe.run.out}
    if resume:  # perhaps on another machine; `_check_folder` has refused changes that matter
        changed = changed_settings(load_recipe(folder.recipe), recipe)
        now |= {name: new for name, (_, new) in changed.items()}
    host_is_measured = _reset_peak_memory()
    Detector(recipe, start, device="cpu").train(
        teacher=network if _learns_from(recipe, network) else None,
        resume=resume,
        exist_ok=True,  # a run that was stopped before its first checkpoint starts again
        overrides=now,
    )
    return _outcome(folder.path) | _peak_memory(host_is_measured)


def _outcome(folder: Path) -> dict[str, Any]:
    epochs = read_epochs(folder)
    last, best = epochs[-1], [record for record in epochs if record["is_best"]][-1]
    distilled = [record for record in epochs if record["modulation"] is not None]
    return {
        "last_epoch": last["epoch"],
        "last_ap": last["metrics"]["ap"],
        "last_ap50": last["metrics"]["ap50"],
        "best_epoch": best["epoch"],
        "best_ap": best["metrics"]["ap"],
        "best_ap50": best["metrics"]["ap50"],
        "seconds_per_epoch": statistics.median(record["seconds"] for record in epochs),
        "distill_weight": last["distill_weight"],
        "share": statistics.fmean(record["modulation"]["share"] for record in distilled) if distilled else None,
    }


def _reset_peak_memory() -> bool:
    """Reset the peaks, and return whether that worked for host memory."""
    gc.collect()
    for index in range(torch.cuda.device_count()):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(index)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the peak of resident memory
    except OSError:
        return False
    return True


def _peak_memory(host_is_measured: bool) -> dict[str, float | None]:
    gpu = max((torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count())), default=0)
    host = None
    if host_is_measured:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        kibibytes = re.search(r"^VmHWM:\s*(\d+) kB", status, flags=re.MULTILINE)
        host = int(kibibytes[1]) / 1024 if kibibytes else None
    return {"gpu_memory_mib": gpu / 2**20 if gpu else None, "host_memory_mib": host}
