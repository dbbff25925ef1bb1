"""Reading files that a stranger may have made: never a pipe or a device, and never more than was asked for.

A pipe may wait forever for its other end, and a device such as /dev/zero never ends; both can be called train.json. A
file that claims terabytes takes no room on the disk, but would in memory.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISDIR, "it is a folder, expected a file"),
    (stat.S_ISFIFO, "it is a pipe, expected a file"),
    (stat.S_ISSOCK, "it is a socket, expected a file"),
    (stat.S_ISCHR, "it is a device, expected a file"),
    (stat.S_ISBLK, "it is a device, expected a file"),
)
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading bytes, without ever waiting for somebody to write them.

    Raises:
        OSError: there is none, or something else is there; `strerror` says what.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise OSError(errno.EINVAL, "its name has a null character", name)
    _require_file(os.stat(name).st_mode, name)  # noqa: PTH116 - opening a device can have effects
    descriptor = os.open(name, _FLAGS)
    try:
        _require_file(os.fstat(descriptor).st_mode, name)  # it may have been replaced meanwhile
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        max_bytes: the most that it may have; a longer file is not read at all.

    Raises:
        OSError: it cannot be read, is no file, or is longer; `strerror` says what.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= max_bytes:
            try:
                return file.read(size)  # what is added meanwhile is left out
            except MemoryError as error:
                raise OSError(errno.ENOMEM, f"its {size_text(size)} do not fit into memory", os.fspath(path)) from error
    raise OSError(errno.EFBIG, f"it has {size_text(size)}, expected at most {size_text(max_bytes)}", os.fspath(path))


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file; False, too, for a name that no file can have."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder, as `is_file`."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file, a folder or anything else; False, too, for a name that nothing can have."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def of_home(path: str | os.PathLike[str]) -> Path:
    """The path with ~ replaced by the home folder, if there is such a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _require_file(mode: int, name: str) -> None:
    if not stat.S_ISREG(mode):
        what = next((what for is_kind, what in _KINDS if is_kind(mode)), "it is no file")
        raise OSError(errno.EINVAL, what, name)


def size_text(num_bytes: int) -> str:
    """A number of bytes for a message.

    >>> size_text(1_500_000)
    '1.5 MB'
    """
    value, unit = float(num_bytes), "bytes"
    for larger in ("KB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
