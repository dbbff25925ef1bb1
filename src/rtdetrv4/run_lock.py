"""The lock on a run folder: no two processes write to one run at a time."""

from __future__ import annotations

import errno
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rtdetrv4.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger: logging.Logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
_IS_HELD = (errno.EACCES, errno.EAGAIN)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process gets the lock on `folder`; nothing is locked where the system knows no such locks.

    It is a record lock of POSIX, unlike that of the package `filelock`. Its owner is the process alone, so that data
    workers, which may outlive a process that was killed, do not hold it; and the kernel releases it whatever ends the
    process. It does not keep two threads of one process apart. The file names the owner, and is removed at the end.

    Args:
        folder: of the run; it exists.

    Raises:
        ConfigError: another process has the lock; the message names it.
    """
    path = folder / LOCK_FILE
    descriptor = _acquire(path)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink()  # while it is locked: another process may wait to create it anew
            os.close(descriptor)


def _acquire(path: Path) -> int | None:
    """A descriptor that holds the lock; None where there are no locks."""
    if fcntl is None:
        logger.debug("%s is not locked: this system has no record locks.", path.parent)
        return None
    while True:
        descriptor = None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_same_file(descriptor, path):  # its owner has removed it at that very moment
                os.close(descriptor)
                continue
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} {platform.node()}\n".encode())
            return descriptor
        except OSError as error:
            if descriptor is None:  # a folder that cannot be written to, as the run itself will say
                logger.debug("%s is not locked: %s", path.parent, error)
                return None
            owner = os.pread(descriptor, 1000, 0).decode(errors="replace").split()
            os.close(descriptor)
            if error.errno in _IS_HELD:
                raise ConfigError(_refusal(path.parent, owner)) from None
            with suppress(OSError):
                path.unlink()
            logger.debug("%s is not locked: %s", path.parent, error)
            return None


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _refusal(folder: Path, owner: list[str]) -> str:
    process, node = owner[0] if owner else "unknown", " ".join(owner[1:])
    where = f" on {node}" if node and node != platform.node() else ""
    return (
        f"{folder} belongs to a run that is going on, in process {process}{where}. Wait until it is done, stop it, or "
        "give another folder with out=…."
    )
