"""A budget: the time for a whole run, from which its number of epochs follows."""

from __future__ import annotations

from collections.abc import Collection

from rtdetrv4.config.schema import Recipe, parse_duration
from rtdetrv4.errors import ConfigError


def parse_budget(budget: str | float) -> float:
    """The seconds of a duration such as "30m", or of a number of them.

    Raises:
        ConfigError: it is neither, or not above zero.
    """
    try:
        return float(budget) if isinstance(budget, int | float) and budget > 0 else parse_duration(budget)
    except ValueError as error:
        raise ConfigError(f'budget: got "{budget}", {error}.') from None


def budget_seconds(budget: str | float, recipe: Recipe, settled: Collection[str], *, resume: bool) -> float:
    """The seconds of a budget.

    Args:
        budget: a duration such as "30m", or seconds.
        recipe: the model's recipe with the user's settings.
        settled: dotted names of the user's settings.
        resume: whether a run goes on, which has its epochs already.

    Raises:
        ConfigError: it is no duration, or the number of epochs is settled otherwise.
    """
    seconds = parse_budget(budget)
    if resume:
        raise ConfigError("A run resumes with the epochs that it began with; leave out budget.")
    if "schedule.epochs" in settled:
        raise ConfigError("Got both epochs and budget, which chooses the epochs. Give only one.")
    if not recipe.run.derive or recipe.schedule.scaling == "published":
        why = "run.derive is false" if not recipe.run.derive else "schedule.scaling is published"
        cure = "run.derive=true" if not recipe.run.derive else "schedule.scaling=auto"
        raise ConfigError(
            f"budget: the numbers of this {recipe.model.name} are taken as they are, because {why}; give epochs, or "
            f"set {cure}."
        )
    return seconds
