"""Trained weights by name: downloaded into the cache of huggingface_hub, verified, and reused from there."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from rtdetrv4.errors import WeightsError, first_line
from rtdetrv4.weights.catalog import HUB_FILES, RELEASED, Dataset, HubFile
from rtdetrv4.weights.transformers import CONFIG_FILE, TENSORS_FILE

#: Seconds within which the hub must answer a query. A download may take as long as data keeps arriving.
ANSWER_TIME = 4.0


class FetchedWeights(NamedTuple):
    """A verified file of trained weights."""

    path: Path
    """In the cache."""
    source: HubFile
    dataset: Dataset
    skipped: tuple[str, ...] = ()
    """Preferred weights that could not be obtained, and why; one sentence each."""


class _NoAnswerError(WeightsError):
    """The hub cannot be reached, so there is no point in asking it for another file."""


def find_cached(model: str, dataset: Dataset = "coco") -> FetchedWeights | None:
    """Find intact trained weights in the cache, without asking the hub."""
    for source in HUB_FILES.get(model, {}).get(dataset, ()):
        if path := _cached(source):
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
        WeightsError: none of them can be obtained. The message says why, and how to download them by hand.
    """
    skipped: list[str] = []
    hub_answers = True
    for wanted in (dataset, *next_best):
        if cached := find_cached(model, wanted):
            return cached._replace(skipped=tuple(skipped))
        sources = HUB_FILES.get(model, {}).get(wanted, ())
        if not sources:
            skipped.append(f"no weights of {model} trained on {wanted} are on the hub")
        for source in sources:
            if not hub_answers:
                break
            try:
                return FetchedWeights(fetch_file(source), source, wanted, tuple(skipped))
            except WeightsError as error:
                skipped.append(str(error))
                hub_answers = not isinstance(error, _NoAnswerError)
    raise WeightsError(
        f"There are no {dataset} weights of {model} in the cache, and none can be fetched: {'; '.join(skipped)}. "
        + _by_hand(model, dataset, hub_has_it=not hub_answers)
    )


def fetch_file(source: HubFile, revision: str | None = None) -> Path:
    """Download a file from the hub into the cache; if the hub cannot be reached, use the copy in the cache.

    Its SHA-256 must be that of `source` or, if `source` has none, the one that the hub states. Weights in
    transformers' format come with their config.json, which names the classes.

    Args:
        source: what to fetch.
        revision: a branch, tag or commit; None for the newest.

    Raises:
        ValueError: the hub cannot have a repository or file of that name.
        WeightsError: the file cannot be obtained, or has another SHA-256.
    """
    name = f"{source.repository}/{source.file}"
    url = huggingface_hub.hf_hub_url(source.repository, source.file, revision=revision)
    with _client_logs_once():
        try:
            headers = _ask(url)
        except HfHubHTTPError as error:
            raise WeightsError(_refusal(source, error)) from error
        except Exception as error:  # the client uses requests or httpx, whose errors share no base class
            if cached := _cached(source, revision):
                return cached
            raise _NoAnswerError(_silence(error)) from error
        stated = _hash_or_none(headers.get("X-Linked-Etag") or headers.get("ETag"))
        if source.sha256 and stated and stated != source.sha256:
            raise WeightsError(f"{name} has changed: its SHA-256 is {stated}, expected {source.sha256}")
        # A cached copy that is damaged, or from an older revision, must not be used.
        anew = _cached_copy(source, revision) is not None and _cached(source, revision) is None
        try:
            path = _download(source, revision, force=anew)
        except HfHubHTTPError as error:
            raise WeightsError(_refusal(source, error)) from error
        except Exception as error:  # as above
            raise WeightsError(f"the download of {name} failed ({first_line(error)}); try again") from error
    expected = source.sha256 or stated or _kept_hash(path)
    if expected and (found := file_sha256(path)) != expected:
        _discard(path)
        raise WeightsError(
            f"{name} arrived damaged and was removed from the cache: its SHA-256 is {found}, expected {expected}"
        )
    return path


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _ask(url: str) -> Mapping[str, str]:
    """Ask the hub once for the headers that describe a file, and wait at most `ANSWER_TIME` for them.

    The client's own functions may retry many times. Its timeouts apply to each address and do not cover the name
    lookup, hence the thread.
    """
    answer: Future[Mapping[str, str]] = Future()

    def ask() -> None:
        try:
            session: Any = get_session()
            redirects = "follow_redirects" if hasattr(session, "follow_redirects") else "allow_redirects"
            request = {"headers": build_hf_headers(), "timeout": ANSWER_TIME, redirects: False}
            response = session.request("HEAD", url, **request)
            hf_raise_for_status(response)
            # Renamed repositories and mirrors redirect to where the header is.
            if "X-Repo-Commit" not in response.headers and "Location" not in response.headers:
                raise ConnectionError("something else answers in its place, perhaps a proxy or a login page")
            answer.set_result(response.headers)
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return answer.result(ANSWER_TIME)


def _download(source: HubFile, revision: str | None, *, force: bool) -> Path:
    if source.file.rpartition("/")[2] == TENSORS_FILE:
        with contextlib.suppress(EntryNotFoundError):
            config = source.file.removesuffix(TENSORS_FILE) + CONFIG_FILE
            huggingface_hub.hf_hub_download(source.repository, config, revision=revision)
    return Path(
        huggingface_hub.hf_hub_download(source.repository, source.file, revision=revision, force_download=force)
    )


def _cached(source: HubFile, revision: str | None = None) -> Path | None:
    """The copy in the cache, if there is one and its SHA-256 is right."""
    path = _cached_copy(source, revision)
    if path is None:
        return None
    expected = source.sha256 or _kept_hash(path)
    return path if expected in (None, file_sha256(path)) else None


def _cached_copy(source: HubFile, revision: str | None) -> Path | None:
    path = huggingface_hub.try_to_load_from_cache(source.repository, source.file, revision=revision)
    return Path(path) if isinstance(path, str) else None


def _discard(path: Path) -> None:
    """Remove a file from the cache, and the content that it links to."""
    content = path.parent / path.readlink() if path.is_symlink() else path
    path.unlink()
    content.unlink(missing_ok=True)


def _kept_hash(path: Path) -> str | None:
    """The SHA-256 that the hub stated for a cached file: where links work, the client names the content after it."""
    return _hash_or_none(path.readlink().name) if path.is_symlink() else None


def _hash_or_none(etag: str | None) -> str | None:
    """The SHA-256 in an ETag, which only large files have; None if it is something else."""
    match = re.fullmatch('"?([0-9a-f]{64})"?', etag or "")
    return match and match[1]


@contextlib.contextmanager
def _client_logs_once() -> Iterator[None]:
    """Keep the client's log from the root logger's handlers, because the client prints it itself."""
    client = logging.getLogger("huggingface_hub")
    before, client.propagate = client.propagate, False
    try:
        yield
    finally:
        client.propagate = before


def _silence(error: BaseException) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return f"{constants.ENDPOINT} does not answer ({first_line(error)})"


def _refusal(source: HubFile, error: HfHubHTTPError) -> str:
    page = f"{constants.ENDPOINT}/{source.repository}"
    status = getattr(error.response, "status_code", None)
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        return f"there is no public repository {page}; for a private one, log in with `hf auth login` or set HF_TOKEN"
    if status in (401, 403):
        return (
            f"access to {page} is refused ({status}): accept its terms on that page if it has any, and log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if status == 404:
        return f"{page} has no file {source.file}"
    return f"{page} answers with an error ({first_line(error)})"


def _by_hand(model: str, dataset: Dataset, *, hub_has_it: bool) -> str:
    """Say how to get weights onto this machine without this package."""
    sources = HUB_FILES.get(model, {}).get(dataset, ())
    released = RELEASED.get(model if dataset == "coco" else f"{model}-{dataset}")
    if sources and hub_has_it:
        source = sources[0]
        size = "" if source.size_mb is None else f" ({source.size_mb:g} MB)"
        config = f" and the {CONFIG_FILE} beside it" if source.file.endswith(TENSORS_FILE) else ""
        return (
            f"Download {huggingface_hub.hf_hub_url(source.repository, source.file)}{size}{config} on another machine "
            f"and give its path as weights, or copy models--{source.repository.replace('/', '--')} from the cache of "
            f"that machine into {constants.HF_HUB_CACHE}."
        )
    if released is not None:
        return f"Download {released.url} and give the path of that file as weights."
    return "Give the path of a file as weights."
