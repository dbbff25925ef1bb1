"""Files of the Hugging Face Hub: asked for once, fetched into the cache of huggingface_hub, and checked."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

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

from rtdetrv4.addresses import has_public_address, is_this_machine
from rtdetrv4.errors import WeightsError, first_line
from rtdetrv4.input_files import size_text

#: How long the hub may take to say what it has, in seconds. Downloads take as long as bytes arrive.
ANSWER_TIME = 4.0
#: For how many seconds a hub that did not answer in time is not asked again: a run that starts may want several files.
SILENCE_TIME = 10.0
#: The largest file that is fetched; the largest teachers of timm take less.
MAX_BYTES = 32_000_000_000

_silent_until: dict[str, float] = {}
"""By endpoint, on the clock of `time.monotonic`."""


class NoAnswerError(WeightsError):
    """The hub cannot be reached, so there is no point in asking it for another file."""


class MissingFileError(WeightsError):
    """The hub has the repository, but no such file in it."""


class NotFetchedError(WeightsError):
    """Weights that are known by name cannot be had.

    Args:
        what: the weights, as a sentence without its end.
        reason: why they cannot be had.
        advice: what to do by hand, as a sentence.
    """

    def __init__(self, what: str, reason: str, advice: str) -> None:
        super().__init__(f"{what}: {reason}. {advice}")
        self.reason = reason
        self.advice = advice


def fetch_file(
    repository: str, file: str, *, revision: str | None = None, sha256: str | None = None, beside: str | None = None
) -> Path:
    """A file of the hub, in the cache: the newest, or the cached one if the hub cannot be reached.

    Args:
        repository: owner/name.
        file: its path in the repository.
        revision: a branch, tag or commit; None for the newest.
        sha256: what its SHA-256 must be; None for the one that the hub states.
        beside: another file of the repository to fetch with it, if there is one.

    Raises:
        ValueError: the hub could have no repository or file of that name.
        WeightsError: it cannot be had, or is not the file it should be.
    """
    name = f"{repository}/{file}"
    url = huggingface_hub.hf_hub_url(repository, file, revision=revision)
    _require_safe(url)
    with _client_logs_once():
        try:
            headers = _ask(url)
        except HfHubHTTPError as error:
            raise _refusal(repository, file, error) from error
        except Exception as error:  # those of requests and of httpx, of which the client uses either, share no base
            if cached := cached_file(repository, file, revision=revision, sha256=sha256):
                return cached
            raise NoAnswerError(_silence(error)) from error
        if location := headers.get("Location"):
            _require_safe(urljoin(url, location), behind=url)
        _require_size(name, headers.get("X-Linked-Size") or headers.get("Content-Length"))
        stated = _hash_or_none(headers.get("X-Linked-Etag") or headers.get("ETag"))
        if sha256 and stated and stated != sha256:
            raise WeightsError(f"{name} has changed: its SHA-256 is {stated}, expected {sha256}")
        # A cached copy that is damaged, or of an older revision, must not be taken for the file.
        anew = has_copy(repository, file, revision=revision) and not cached_file(
            repository, file, revision=revision, sha256=sha256
        )
        try:
            if beside is not None:
                with contextlib.suppress(EntryNotFoundError):
                    huggingface_hub.hf_hub_download(repository, beside, revision=revision)
            path = Path(huggingface_hub.hf_hub_download(repository, file, revision=revision, force_download=anew))
        except HfHubHTTPError as error:
            raise _refusal(repository, file, error) from error
        except Exception as error:  # as above
            raise WeightsError(f"the download of {name} failed ({first_line(error)}); try again") from error
    expected = sha256 or stated or _kept_hash(path)
    if expected and (found := file_sha256(path)) != expected:
        _discard(path)
        raise WeightsError(
            f"{name} arrived damaged and was removed from the cache: its SHA-256 is {found}, expected {expected}"
        )
    return path


def cached_file(repository: str, file: str, *, revision: str | None = None, sha256: str | None = None) -> Path | None:
    """The copy in the cache, if there is one with the right content; arguments as for `fetch_file`."""
    path = _cached_copy(repository, file, revision)
    if path is None:
        return None
    expected = sha256 or _kept_hash(path)
    return path if expected in (None, file_sha256(path)) else None


def has_copy(repository: str, file: str, *, revision: str | None = None) -> bool:
    """Whether a file of the hub is in the cache, whatever its content; arguments as for `fetch_file`."""
    return _cached_copy(repository, file, revision) is not None


def is_cached(path: str | Path) -> bool:
    """Whether a file is in the cache, where nothing else should be written."""
    return Path(path).is_relative_to(constants.HF_HUB_CACHE)


def by_hand(repository: str, file: str, how: str, *, note: str = "") -> str:
    """How to get a file to a machine that cannot reach the hub, as a sentence.

    Args:
        repository: owner/name.
        file: its path in the repository.
        how: how to use it then, such as "give its path as weights".
        note: what to say after its address.
    """
    return (
        f"Download {huggingface_hub.hf_hub_url(repository, file)}{note} on another machine and {how}, or copy "
        f"models--{repository.replace('/', '--')} from the cache of that machine into {constants.HF_HUB_CACHE}."
    )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _ask(url: str) -> Mapping[str, str]:
    """The headers with which the hub describes a file: asked once, and not for longer than `ANSWER_TIME`.

    The client's own functions may try again and again. Its timeouts count per address and leave out the name lookup,
    hence the thread.
    """
    if time.monotonic() < _silent_until.get(constants.ENDPOINT, 0.0):
        raise TimeoutError
    answer: Future[Mapping[str, str]] = Future()

    def ask() -> None:
        try:
            session: Any = get_session()
            redirects = "follow_redirects" if hasattr(session, "follow_redirects") else "allow_redirects"
            # The client waits for longer than the caller, who alone says that there was no answer.
            request = {"headers": build_hf_headers(), "timeout": 2 * ANSWER_TIME, redirects: False}
            response = session.request("HEAD", url, **request)
            hf_raise_for_status(response)
            # Renamed repositories and mirrors lead on to where the header is.
            if "X-Repo-Commit" not in response.headers and "Location" not in response.headers:
                raise ConnectionError("something else answers in its place, perhaps a proxy or a login page")
            answer.set_result(response.headers)
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(ANSWER_TIME)
    except FutureTimeout:
        _silent_until[constants.ENDPOINT] = time.monotonic() + SILENCE_TIME
        raise


def _require_safe(url: str, behind: str | None = None) -> None:
    """Check where weights would come from.

    Args:
        url: the address.
        behind: what redirects there; None: nothing does.

    Raises:
        WeightsError: it is not encrypted, or a redirect out of the internet into somebody's network.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not (parts.scheme == "https" or (parts.scheme == "http" and is_this_machine(host))):
        what = "the hub" if behind is None else "what the hub redirects to"
        raise WeightsError(
            f"{what} is {parts.scheme}://{host}; weights are fetched by https only, or by http from this machine"
        )
    if behind is not None and not has_public_address(host) and has_public_address(urlsplit(behind).hostname or ""):
        raise WeightsError(f"the hub redirects to {host}, an address that is not public")


def _require_size(name: str, stated: str | None) -> None:
    if stated is not None and stated.isdecimal() and int(stated) > MAX_BYTES:
        raise WeightsError(f"{name} has {size_text(int(stated))}, expected at most {size_text(MAX_BYTES)}")


def _cached_copy(repository: str, file: str, revision: str | None) -> Path | None:
    path = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
    return Path(path) if isinstance(path, str) else None


def _discard(path: Path) -> None:
    """Remove a file of the cache, and the content that it links to."""
    content = path.parent / path.readlink() if path.is_symlink() else path
    path.unlink()
    content.unlink(missing_ok=True)


def _kept_hash(path: Path) -> str | None:
    """The SHA-256 that the hub stated for a cached file: the client links to it under this name, where links work."""
    return _hash_or_none(path.readlink().name) if path.is_symlink() else None


def _hash_or_none(etag: str | None) -> str | None:
    """What an ETag says if it is a SHA-256, as those of large files are."""
    match = re.fullmatch('"?([0-9a-f]{64})"?', etag or "")
    return match and match[1]


@contextlib.contextmanager
def _client_logs_once() -> Iterator[None]:
    """The client prints its log itself; handlers of the root logger would print it once more."""
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


def _refusal(repository: str, file: str, error: HfHubHTTPError) -> WeightsError:
    page = f"{constants.ENDPOINT}/{repository}"
    status = getattr(error.response, "status_code", None)
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        return WeightsError(
            f"there is no public repository {page}; for a private one, log in with `hf auth login` or set HF_TOKEN"
        )
    if status in (401, 403):
        return WeightsError(
            f"access to {page} is refused ({status}): accept its terms on that page if it has any, and log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if status == 404:
        return MissingFileError(f"{page} has no file {file}")
    return WeightsError(f"{page} answers with an error ({first_line(error)})")
