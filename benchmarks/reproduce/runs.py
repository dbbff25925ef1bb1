"""Train and evaluate a row: fetch what it starts from, train or resume, and record the result."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rf100vl import DataSet
from rows import Row, run_name, settings_of, teacher_of

from rtdetrv4 import Detector
from rtdetrv4.assembly.own_teacher import is_detector
from rtdetrv4.comparison.summary import read_epochs, write_text
from rtdetrv4.config import load_recipe
from rtdetrv4.distillation import PIP_TEACHER
from rtdetrv4.distillation.teacher_catalog import timm_name
from rtdetrv4.errors import ConfigError, RTDETRError
from rtdetrv4.evaluation import Metrics
from rtdetrv4.ops.networks import fetch_timm_weights
from rtdetrv4.run_folder import FREE_ON_RESUME, RunFolder, package_versions
from rtdetrv4.runtime.machine import processor_name
from rtdetrv4.weights import fetch_weights

logger = logging.getLogger(__name__)

RESULT_FILE, SETS_FILE = "result.json", "sets.json"
OWN_FILES = ("model.pretrained_backbone", "distillation.teacher_weights")
"""Settings that say where the weights of backbone and teacher are, instead of the hub."""
MAY_BE_SET = frozenset(FREE_ON_RESUME) - {"data.path", "data.unlabeled", "run.derive", "run.out"} | {*OWN_FILES}
"""Settings that do not change what a row computes."""


def leads() -> bool:
    """Whether this is the first of the processes that run one command together; known before they meet."""
    return os.environ.get("RANK", "0") == "0"


def check_changes(changes: Mapping[str, Any]) -> None:
    """Raise for settings that would make another row of it."""
    if wrong := [name for name in changes if name not in MAY_BE_SET]:
        raise ConfigError(
            f"--set {wrong[0]}: a row is trained with the settings it has. Only what does not change the result may "
            f"be set: {', '.join(sorted(MAY_BE_SET))}."
        )


def fetch(row: Row, teacher: str | None = None) -> list[Path]:
    """Fetch the weights that a row starts from and learns from into the cache, and return where they are.

    Raises:
        WeightsError: they cannot be had; the message says what to do by hand.
    """
    if row.start == "imagenet":
        start = fetch_timm_weights(row.imagenet_weights, "model.pretrained_backbone")
    else:
        start = fetch_weights(row.model, row.start).path if row.start in ("coco", "obj365", "obj2coco") else None
    name = teacher_of(row, teacher)
    of_teacher = None
    if name is not None and name != PIP_TEACHER and not is_detector(name):
        of_teacher = fetch_timm_weights(timm_name(name), "distillation.teacher_weights")
    return [path for path in (start, of_teacher) if path is not None]


def run_folder(out: Path, row: Row, seed: int, teacher: str | None = None) -> Path:
    """The folder of a row's run with a seed."""
    return out / run_name(row, teacher) / f"seed{seed}"


def run_coco(
    row: Row,
    data: Path,
    out: Path,
    *,
    seed: int = 0,
    teacher: str | None = None,
    tiny: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Train a row on COCO, or go on where it was stopped, and return the file of its result.

    Args:
        row: the row.
        data: COCO.
        out: folder for all runs.
        seed: of the run.
        teacher: replaces the row's.
        tiny: a dry run.
        changes: settings that do not change the result.
    """
    folder = run_folder(out, row, seed, teacher)
    return _run(row, data, folder, seed=seed, teacher=teacher, tiny=tiny, changes=changes)


def run_rf100vl(
    row: Row,
    sets: Sequence[DataSet],
    out: Path,
    *,
    share: tuple[int, int] = (1, 1),
    seed: int = 0,
    teacher: str | None = None,
    tiny: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> list[str]:
    """Train a row on each of the data sets that has no result yet.

    A set on which a run fails does not stop the others.

    Args:
        row: the row.
        sets: all data sets.
        out: folder for all runs.
        share: (i, n) for the i-th of n processes that divide the sets, each on its own GPU.
        seed: of all runs.
        teacher: replaces the row's.
        tiny: a dry run.
        changes: settings that do not change the result.

    Returns:
        What failed, one sentence each.
    """
    folder = run_folder(out, row, seed, teacher)
    known = json.dumps({each.name: each.domain for each in sets}, indent=2, ensure_ascii=False) + "\n"
    if leads() and not ((folder / SETS_FILE).is_file() and (folder / SETS_FILE).read_text(encoding="utf-8") == known):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / SETS_FILE, known)
    failed: list[str] = []
    for number, each in enumerate(sets):
        if number % share[1] != share[0] - 1:
            continue
        logger.info("Set %d of %d: %s", number + 1, len(sets), each.name)
        try:
            _run(row, each, folder / each.name, seed=seed, teacher=teacher, tiny=tiny, changes=changes)
        except RTDETRError as error:
            logger.error("%s: %s", each.name, error)
            failed.append(f"{each.name}: {error}")
    return failed


def _run(
    row: Row,
    data: Path | DataSet,
    folder: Path,
    *,
    seed: int,
    teacher: str | None,
    tiny: bool,
    changes: Mapping[str, Any] | None,
) -> Path:
    """Train and evaluate once, unless that is done."""
    file = folder / RESULT_FILE
    if file.is_file():
        logger.info("%s is done.", folder)
        return file
    run = RunFolder(folder)
    resume = run.last.is_file()
    given = {**settings_of(row, seed=seed, teacher=teacher, tiny=tiny), **(changes or {}), "run.out": str(folder)}
    start = "none" if tiny else row.start
    if resume:
        # The run has numbers where they said auto, and its weights.
        given = {name: value for name, value in given.items() if value != "auto" and name not in OWN_FILES}
    elif start == "imagenet" and "model.pretrained_backbone" not in given:
        weights = fetch_timm_weights(row.imagenet_weights, "model.pretrained_backbone")
        given["model.pretrained_backbone"] = True if weights is None else str(weights)
    detector = Detector(row.model, start)
    path = data.path if isinstance(data, DataSet) else data
    try:
        # A run that was stopped before its first checkpoint starts again.
        result = detector.train(path, resume=resume, exist_ok=True, overrides=given)
        metrics, part = result.metrics, "val"
        if isinstance(data, DataSet) and data.has_test:
            metrics, part = detector.val(path, split="test", out=folder / "test"), "test"
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped in {folder}; the same command resumes.") from None
    if metrics is None:
        why = "; ".join(result.problems) or "the validation images have no objects"
        raise ConfigError(f"{folder} has no result: {why}. The same command tries again.")
    if leads():
        record = {"row": row.name, "run": run_name(row, teacher), "seed": seed, "tiny": tiny, "part": part}
        if isinstance(data, DataSet):
            record |= {"set": data.name, "domain": data.domain}
        write_text(file, json.dumps(record | _outcome(folder, metrics), indent=2, ensure_ascii=False) + "\n")
    return file


def _outcome(folder: Path, metrics: Metrics) -> dict[str, Any]:
    """What a finished run reached, and how."""
    epochs = read_epochs(folder)
    recipe = load_recipe(RunFolder(folder).recipe)
    state = PartialState()
    on_gpu = state.device is not None and state.device.type == "cuda"
    return {
        "ap": metrics.ap,
        "ap50": metrics.ap50,
        "best_epoch": [record["epoch"] for record in epochs if record["is_best"]][-1],
        "last_ap": epochs[-1]["metrics"].get("ap"),
        "epochs": recipe.schedule.epochs,
        "batch": recipe.schedule.batch,
        "parts": recipe.run.accumulate,
        "teacher": recipe.distillation.teacher if recipe.distillation.is_on else None,
        "processes": state.num_processes,
        "device": torch.cuda.get_device_name(state.device) if on_gpu else processor_name(),
        "hours": round(sum(record["seconds"] for record in epochs) / 3600, 3),
        "versions": package_versions(),
    }
