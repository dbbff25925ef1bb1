"""`rtdetrv4 pretrain`: a detector's backbone and encoder learn from a teacher on images without labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from rtdetrv4.appraisal import Appraisal
from rtdetrv4.assembly.fitting import Fitting
from rtdetrv4.assembly.pretraining import build_pretrainer, check_pretraining, derive_pretraining
from rtdetrv4.assembly.start import Start
from rtdetrv4.config import Recipe, override
from rtdetrv4.data.records import Splits
from rtdetrv4.data.unlabeled import describe_unlabeled, read_unlabeled
from rtdetrv4.distillation import Teacher
from rtdetrv4.distillation.teacher import Network
from rtdetrv4.errors import ConfigError, RTDETRError, WeightsError, first_line
from rtdetrv4.models import DetectionModel
from rtdetrv4.ops.collectives import texts_of_ranks
from rtdetrv4.report import write_report
from rtdetrv4.run_folder import RunFolder
from rtdetrv4.training import Observer, check_tracker, make_accelerator
from rtdetrv4.training.observers import read_log

logger: logging.Logger = logging.getLogger(__name__)

DEFAULT_OUT = "runs/pretrain"


@dataclass(frozen=True)
class PretrainResult:
    """The results of a pretraining run."""

    out: Path
    """The run folder, which also holds report.html, curves.png, log.jsonl, recipe.yaml and run.json."""
    weights: Path
    """Backbone and encoder, for `train`; averaged over the last steps."""
    last: Path
    """The final training state, to resume from."""
    loss: float | None
    """Mean L_DSI of the last epoch; None if the log is gone."""
    problems: tuple[str, ...] = ()
    """What failed after the run was complete: comparing with the teacher, or the report."""


def pretrain(
    recipe: Recipe,
    settled: Collection[str],
    *,
    choose_start: Callable[[Recipe], Start],
    build_network: Callable[[Recipe, Start | None], DetectionModel],
    appraise: Callable[[Recipe], Appraisal],
    teacher: Teacher | Network | None = None,
    callbacks: Sequence[Observer] = (),
    budget: float | None = None,
    resume: bool = False,
    exist_ok: bool = False,
) -> PretrainResult:
    """Run L_DSI alone; a collective call.

    Args:
        recipe: the model's recipe with the user's settings, or that of the run that resumes.
        settled: dotted names of the user's settings.
        choose_start: from the recipe to what the run starts from, which it may have to fetch.
        build_network: a detector with the weights of the start; None: all weights follow.
        appraise: what draws F5 beside the teacher's features.
        teacher: replaces the recipe's teacher.
        callbacks: observers of the run.
        budget: seconds for the whole run, or None.
        resume: go on with the run in `recipe.run.out`.
        exist_ok: write to that folder even if it holds another run.

    Raises:
        ConfigError: there are no images or no teacher, or settings contradict each other.
        DatasetError: the images cannot be used.
        WeightsError: weights that are needed cannot be had.
    """
    if not recipe.data.unlabeled:
        raise ConfigError("There are no images to learn from. Give folders: detector.pretrain('datasets/photos').")
    check_pretraining(recipe, settled, teacher)
    check_tracker(recipe.run.tracker)
    accelerator = make_accelerator(recipe.run.device, recipe.run.amp)
    folder = RunFolder(recipe.run.out)
    if resume and folder.is_complete(recipe, accelerator):
        if accelerator.is_main_process:
            logger.info("The run in %s is complete, and nothing is left to do.", folder.path)
        return _result(folder)
    images = read_unlabeled(recipe.data.unlabeled, recipe.data.unlabeled_parts)
    splits = Splits(images, None, None)
    if accelerator.is_main_process:
        logger.info("%s", describe_unlabeled(images))
        for problem in images.problems:
            logger.info("%s", problem)
    if resume:
        folder.check_data(splits)
    else:
        folder = RunFolder.for_new_run(recipe.run.out, accelerator, exist_ok=exist_ok)
        recipe = override(recipe, {"run.out": str(folder.path)})
    with folder.held(accelerator):
        start = fitting = None
        if not resume:
            with accelerator.local_main_process_first():  # the others find in the cache what it fetched
                start = choose_start(recipe)
            if len(starts := set(texts_of_ranks(start.text))) > 1:
                raise WeightsError(f"The ranks cannot all start from the same: {' / '.join(sorted(starts))}.")
            recipe = override(recipe, start.settings)
            fitting = Fitting.gather(
                recipe, settled, splits, accelerator, start=start, budget=budget, derivation=derive_pretraining
            )
            recipe = fitting.fit(recipe)
        set_seed(recipe.run.seed)
        network = build_network(recipe, start)
        if start is not None and accelerator.is_main_process:
            logger.info("%s", start.line(None))
        start_record = folder.recorded_start() if start is None else start.record()
        trainer = build_pretrainer(
            recipe,
            splits,
            network,
            accelerator=accelerator,
            teacher=teacher,
            callbacks=callbacks,
            start=start_record,
            fitting=fitting,
        )
        recipe = Recipe.model_validate(trainer.recipe)  # settings given as "auto" are now numbers
        if accelerator.is_main_process:
            if exist_ok and not resume:
                folder.remove_earlier_run()
            if fitting is not None:
                fitting.report(recipe)
            derived = None if fitting is None else fitting.choices
            folder.write_record(recipe, splits, start_record, derived, kind="pretraining")
        with folder.failures_explained(recipe, trainer.accumulate * trainer.num_parts):
            trainer.run(folder.state_to_resume(accelerator) if resume else None)
        accelerator.wait_for_everyone()
        problems: list[str] = []
        if accelerator.is_main_process:
            steps: dict[str, Callable[[], Any]] = {
                "comparing F5 with the teacher": lambda: replace(
                    appraise(recipe), device=accelerator.device
                ).compare_with_teacher(trainer, images, folder),
                "writing the report": lambda: write_report(folder.path),
            }
            for what, work in steps.items():
                try:
                    work()
                except Exception as error:  # of whatever kind, it must not take away what the run gave
                    problems.append(f"{what} failed: {first_line(error)}")
                    is_bug = not isinstance(error, RTDETRError | OSError)
                    logger.error("%s", problems[-1], exc_info=is_bug)
        return _result(folder, tuple(problems))


def _result(folder: RunFolder, problems: tuple[str, ...] = ()) -> PretrainResult:
    epochs = [record for record in read_log(folder.log) if record["type"] == "epoch"]
    loss = epochs[-1]["losses"].get("distill") if epochs else None
    return PretrainResult(folder.path, folder.weights, folder.last, loss, problems)
