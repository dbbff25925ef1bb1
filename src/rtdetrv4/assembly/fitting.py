"""Fit a recipe to the data, the machine and the time that there is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from rtdetrv4.assembly.derive import (
    MOST_EPOCHS,
    Choice,
    Limit,
    apply_choices,
    as_table,
    derive,
    doubts,
    evaluate_every,
    with_final_values,
)
from rtdetrv4.assembly.facts import DataFacts, Machine, Sources, StartKind, data_facts, find_teacher, machine_facts
from rtdetrv4.assembly.start import Start
from rtdetrv4.config import Recipe
from rtdetrv4.data.records import Splits
from rtdetrv4.training.pace import FINISH, Pace, most_epochs

logger: logging.Logger = logging.getLogger(__name__)

CPU_SECONDS = 30 * 60
"""What a run on a CPU may take if neither a budget nor a number of epochs is given."""
Derivation = Callable[
    [Recipe, Collection[str], DataFacts, Machine, Sources, Limit | None],
    tuple[Choice, ...],
]
"""From a recipe, the user's settings and all facts to choices; see `assembly.derive.derive`."""
USABLE_TIME = 0.9
"""Share of the time to plan with; measured steps are rarely the slowest ones."""
FULL_BUDGET = 4
"""A budget makes a run at most this many times as long as it would be without one."""
_UNTRAINED: Mapping[str, StartKind] = {"imagenet": "imagenet", "none": "none"}
"""Starts that are no trained detector, but for pretrained ones."""


@dataclass
class Fitting:
    """The choices for a run, and what they come from; made before the run, and completed while it is built."""

    given: Collection[str]
    data: DataFacts
    machine: Machine
    sources: Sources
    budget: float | None = None
    """Seconds, counted from `begun`."""
    begun: float = field(default_factory=time.monotonic)
    choices: tuple[Choice, ...] = ()
    duration: float | None = None
    """Seconds that the run will take, once measured."""
    deadline: float | None = None
    """`time.monotonic()` at which the epochs should be over, if their number follows from the time."""
    derivation: Derivation = derive

    @classmethod
    def gather(
        cls,
        recipe: Recipe,
        given: Collection[str],
        splits: Splits,
        accelerator: Accelerator,
        *,
        start: Start,
        budget: float | None,
        derivation: Derivation = derive,
    ) -> Fitting:
        """Gather the facts; a collective call, with rank 0's facts for all ranks.

        Args:
            recipe: the model's recipe with the user's settings.
            given: dotted names of the user's settings.
            splits: the data; `train` is required.
            accelerator: device and ranks.
            start: what training starts from.
            budget: seconds for the whole run, or None.
            derivation: from the facts to the choices.
        """
        assert splits.train is not None, "there is nothing to train on"
        facts = [
            data_facts(splits.train, splits.val),
            machine_facts(accelerator),
            Sources(_kind_of(start), find_teacher(recipe)),
        ]
        broadcast_object_list(facts)
        return cls(given, *facts, budget=budget, derivation=derivation)

    def fit(self, recipe: Recipe) -> Recipe:
        """The recipe with everything derived but the length of the run, which `fit_time` may still change."""
        self.choices = self.derivation(recipe, self.given, self.data, self.machine, self.sources, None)
        return apply_choices(recipe, self.given, self.choices)

    @property
    def asks_for_pace(self) -> bool:
        """Whether `fit_time` should be called: a pace is measured for a budget, and on CPUs, which are slow."""
        return self.budget is not None or (self.machine.kind == "cpu" and bool(self.choices))

    def fit_time(self, recipe: Recipe, pace: Pace) -> Recipe:
        """The recipe with as many epochs as the time allows, and with everything that depends on them; collective."""
        elapsed = [time.monotonic() - self.begun]
        broadcast_object_list(elapsed)  # or ranks might come to different numbers
        steps = max(self.data.num_images // recipe.schedule.batch, 1)
        wanted = recipe.schedule.epochs
        every = recipe.run.eval_every if "run.eval_every" in self.given else None

        def spacing(epochs: int) -> int:
            return evaluate_every(epochs, self.data) if every is None else every

        if "schedule.epochs" not in self.given:
            seconds = (self.budget or CPU_SECONDS) - elapsed[0]
            self.deadline = time.monotonic() + seconds - pace.evaluation - FINISH
            most = wanted if self.budget is None else min(FULL_BUDGET * wanted, MOST_EPOCHS)
            epochs = most_epochs(pace, USABLE_TIME * seconds, steps, spacing, most)
            if self.budget is None:
                reason = f"{epochs * steps} steps in half an hour on a CPU; --budget allows more"
            elif epochs < most:
                reason = f"{epochs * steps} steps, as many as {words(self.budget)} allow"
            else:
                reason = f"{epochs * steps} steps; more would hardly help"
            if epochs != wanted:
                # What does not depend on the epochs comes out as before, except that the parts have been measured.
                limited = self.derivation(
                    recipe, self.given, self.data, self.machine, self.sources, Limit(epochs, reason)
                )
                self.choices = tuple(
                    choice._replace(value=recipe.run.accumulate) if choice.name == "run.accumulate" else choice
                    for choice in limited
                )
                recipe = apply_choices(recipe, self.given, self.choices)
        self.duration = pace.duration(recipe.schedule.epochs, steps, spacing(recipe.schedule.epochs))
        return recipe

    def report(self, recipe: Recipe) -> None:
        """Log the choices as a table, how long the run will take, and why it may not work."""
        self.choices = with_final_values(self.choices, recipe)
        if self.choices:
            logger.info("Chosen for this data and machine; set any of them to change it:")
            for line in as_table(self.choices).splitlines():  # a log may write each message in one line
                logger.info("%s", line)
        if self.duration is not None:
            logger.info("Training will take about %s.", words(self.duration))
            if self.budget is not None and self.duration > self.budget:
                logger.warning("That is more than the budget of %s: one epoch is the least.", words(self.budget))
        for doubt in doubts(recipe, self.data, self.given):
            logger.warning("%s", doubt)


def words(seconds: float) -> str:
    """`1500` → "25 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _kind_of(start: Start) -> StartKind:
    if start.kind == "pretrained":
        return "pretrained" if start.origin == "none" else "imagenet"
    return _UNTRAINED.get(start.kind, "coco")
