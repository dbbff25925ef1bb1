"""Trained weights by name: downloaded into the cache of huggingface_hub, verified, and reused from there."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rtdetrv4.errors import WeightsError
from rtdetrv4.ops import hub
from rtdetrv4.weights.catalog import HUB_FILES, RELEASED, Dataset, HubFile
from rtdetrv4.weights.transformers import CONFIG_FILE, TENSORS_FILE


class FetchedWeights(NamedTuple):
    """A verified file of trained weights."""

    path: Path
    """In the cache."""
    source: HubFile
    dataset: Dataset
    skipped: tuple[str, ...] = ()
    """Preferred weights that could not be obtained, and why; one sentence each."""


def find_cached(model: str, dataset: Dataset = "coco") -> FetchedWeights | None:
    """Find intact trained weights in the cache, without asking the hub."""
    for source in HUB_FILES.get(model, {}).get(dataset, ()):
        if path := hub.cached_file(source.repository, source.file, sha256=source.sha256):
            return FetchedWeights(path, source, dataset)
    return None


def fetch_weights(model: str, dataset: Dataset = "coco", *next_best: Dataset) -> FetchedWeights:
    """Get the trained weights of a model from the cache, or download them into it.

    Args:
        model: a key of `HUB_FILES`.
        dataset: what they were trained on.
        next_best: what to use instead, in this order, if those weights cannot be obtained.

    Returns:
        The first weights that can be obtained; all files of a data set are tried before those of the next.

    Raises:
        NotFetchedError: none of them can be obtained. The message says why, and how to download them by hand.
    """
    skipped: list[str] = []
    hub_answers = True
    for wanted in (dataset, *next_best):
        if cached := find_cached(model, wanted):
            return cached._replace(skipped=tuple(skipped))
        sources = HUB_FILES.get(model, {}).get(wanted, ())
        if not sources:
            others = f", only on {', '.join(HUB_FILES[model])}" if model in HUB_FILES else ""
            skipped.append(f"no weights of {model} trained on {wanted} are on the hub{others}")
        for source in sources:
            if not hub_answers:
                break
            try:
                return FetchedWeights(fetch_file(source), source, wanted, tuple(skipped))
            except WeightsError as error:
                skipped.append(str(error))
                hub_answers = not isinstance(error, hub.NoAnswerError)
    raise hub.NotFetchedError(
        f"There are no {dataset} weights of {model} in the cache, and none can be fetched",
        "; ".join(skipped),
        _by_hand(model, dataset, hub_has_it=not hub_answers),
    )


def fetch_file(source: HubFile, revision: str | None = None) -> Path:
    """Download a file from the hub into the cache, see `rtdetrv4.ops.hub.fetch_file`.

    Weights in transformers' format come with their config.json, which names the classes.

    Args:
        source: what to fetch.
        revision: a branch, tag or commit; None for the newest.

    Raises:
        ValueError: the hub cannot have a repository or file of that name.
        WeightsError: the file cannot be obtained, or has another SHA-256.
    """
    of_transformers = source.file.rpartition("/")[2] == TENSORS_FILE
    config = source.file.removesuffix(TENSORS_FILE) + CONFIG_FILE if of_transformers else None
    return hub.fetch_file(source.repository, source.file, revision=revision, sha256=source.sha256, beside=config)


def _by_hand(model: str, dataset: Dataset, *, hub_has_it: bool) -> str:
    """Say how to get weights onto this machine without this package."""
    sources = HUB_FILES.get(model, {}).get(dataset, ())
    released = RELEASED.get(model if dataset == "coco" else f"{model}-{dataset}")
    if sources and hub_has_it:
        source = sources[0]
        size = "" if source.size_mb is None else f" ({source.size_mb:g} MB)"
        config = f" and the {CONFIG_FILE} beside it" if source.file.endswith(TENSORS_FILE) else ""
        return hub.by_hand(source.repository, source.file, "give its path as weights", note=size + config)
    if released is not None:
        return f"Download {released.url} and give the path of that file as weights."
    return "Give the path of a file as weights."
