"""Writing results so that nothing is lost: files that are whole or absent, and folders that hold no earlier results."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from rtdetrv4.errors import ConfigError

logger: logging.Logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"
"""What a run logs, in its folder."""
SIMILARITY_FILE = "similarity.npz"
"""How the student's F5 resembles the teacher, in the folder of an evaluation."""


def write_whole(path: Path, write: Callable[[Path], object], *, durable: bool = False) -> None:
    """Write a file under another name and rename it: a process that dies while writing leaves the old one whole.

    Args:
        path: file to write; missing folders are created.
        write: called with the path to write the content to.
        durable: wait until the content is on the disk before the name is, and then for the name: after a power cut,
            too, the file is the old or the new one. A disk may take a second for that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(unfinished_name(path.name))
    temporary.unlink(missing_ok=True)
    temporary.touch()
    mode = temporary.stat().st_mode
    try:
        write(temporary)
        temporary.chmod(mode)  # what the umask gives; safetensors makes files that only their owner can read
        if durable:
            _flush(temporary)
        temporary.replace(path)
        if durable:
            with suppress(OSError):  # Windows opens no folders, and some network drives flush none
                _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def caches_folder() -> Path:
    """Where this package keeps what it can make again, in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rtdetrv4"


def _flush(path: Path) -> None:
    """Wait until what was written to a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unfinished_name(name: str) -> str:
    """What a file is called while `write_whole` writes it; a process that is killed may leave it."""
    return f".{name}.tmp"


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a UTF-8 file as `write_whole` does; `errors` is that of `str.encode`."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors=errors))


def unused_folder(path: Path, results: Iterable[str]) -> Path:
    """Do as `find_unused_folder`, and say if it is not `path`."""
    unused = find_unused_folder(path, results)
    tell_unused_folder(path, unused)
    return unused


def make_folder(path: Path) -> None:
    """Create a folder for results, with those above it, unless it is there.

    Raises:
        ConfigError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path}: this folder for results cannot be created ({error.strerror}); give another one."
        ) from error


def find_unused_folder(path: Path, results: Iterable[str]) -> Path:
    """Return `path` or, if it holds results already, the first of path-2, path-3, … that does not.

    Args:
        path: the folder to write to; it need not exist.
        results: the files that will be written, as glob patterns relative to the folder.

    Raises:
        ConfigError: `path` is a file; or it holds results, and is the current folder or one above it.
    """
    if path.is_file():
        raise ConfigError(f"{path} is a file, and results go to a folder. Give the name of one, new or existing.")
    patterns = tuple(results)
    if not _holds(path, patterns):
        return path
    here = Path.cwd()
    if path.resolve() in (here, *here.parents):
        raise ConfigError(f"{path} holds earlier results, which are not written over. Give a new folder.")
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in numbered if not _holds(folder, patterns))


def tell_unused_folder(path: Path, unused: Path) -> None:
    """Log that results go to another folder than the one that was asked for, if they do."""
    if unused != path:
        logger.warning("%s holds earlier results; the new ones go to %s.", path, unused)


def unused_file(path: Path) -> Path:
    """Return `path` or, if there is something already, the first of name-2.suffix, name-3.suffix, … that is free."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(file for file in itertools.chain([path], numbered) if not (file.exists() or file.is_symlink()))


def numbered_folders(path: Path) -> list[Path]:
    """Return those of path, path-2, path-3, … that exist, by number."""
    numbers = {path: 1}
    for folder in path.parent.glob("*-*"):
        name, _, number = folder.name.rpartition("-")
        if name == path.name and number.isdecimal() and int(number) > 1:
            numbers[folder] = int(number)
    return sorted((folder for folder in numbers if folder.is_dir()), key=numbers.__getitem__)


def _holds(folder: Path, patterns: Iterable[str]) -> bool:
    # Python before 3.12 finds no broken links when it is given their name.
    return any(next(folder.glob(pattern), None) or os.path.lexists(folder / pattern) for pattern in patterns)
