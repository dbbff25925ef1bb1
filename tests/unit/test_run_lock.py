"""One process at a time writes to a run folder."""

from __future__ import annotations

import errno
import logging
import os
import re
from pathlib import Path

import pytest

from lock_owner import owner_of
from rtdetrv4.errors import ConfigError
from rtdetrv4.run_lock import LOCK_FILE, locked

pytestmark = pytest.mark.skipif(os.name == "nt", reason="record locks are those of POSIX")


def test_a_lock_names_its_owner_and_leaves_nothing(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text().split() == [str(os.getpid()), os.uname().nodename]
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_another_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with owner_of(tmp_path) as process:
        for node, where in ((os.uname().nodename, ""), ("here", f" on {os.uname().nodename}")):
            monkeypatch.setattr("platform.node", lambda node=node: node)
            with pytest.raises(ConfigError, match=re.escape(f"in process {process}{where}. Wait")), locked(tmp_path):
                pytest.fail("two processes have the lock")
        assert (tmp_path / LOCK_FILE).read_text().startswith(f"{process} ")
    with locked(tmp_path):
        pass


def test_what_outlives_its_owner_holds_nothing(tmp_path: Path) -> None:
    with owner_of(tmp_path, kill=True) as process:
        assert (tmp_path / LOCK_FILE).read_text().startswith(f"{process} ")
        with locked(tmp_path):
            assert (tmp_path / LOCK_FILE).read_text().startswith(f"{os.getpid()} ")


def test_a_lock_that_is_removed_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process ends its run between the opening of its lock and the locking."""
    import fcntl

    original, seen = fcntl.lockf, []

    def lockf(descriptor: int, command: int) -> None:
        if not seen:
            (tmp_path / LOCK_FILE).unlink()
        seen.append(os.fstat(descriptor).st_ino)
        original(descriptor, command)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with locked(tmp_path):
        assert len(seen) == 2
        assert (tmp_path / LOCK_FILE).is_file()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_work_goes_on(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lockf(*_: int) -> None:
        raise OSError(code, "no locks here")

    caplog.set_level(logging.DEBUG, "rtdetrv4")
    monkeypatch.setattr("fcntl.lockf", lockf)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with locked(folder):
            pass
    monkeypatch.setattr("rtdetrv4.run_lock.fcntl", None)
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    assert [record.levelname for record in caplog.records] == ["DEBUG"] * 3
