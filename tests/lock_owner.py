"""Another process that has the lock on a run folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCRIPT = """
import os, sys
from pathlib import Path
from rtdetrv4.run_lock import locked

with locked(Path(sys.argv[1])):
    if os.fork():
        print(os.getpid(), flush=True)
        sys.stdin.read()
    else:  # as a data worker, which outlives its parent
        sys.stdin.read()
        os._exit(0)
"""


@contextmanager
def owner_of(folder: Path, *, kill: bool = False) -> Iterator[int]:
    """Inside, another process has the lock, and yields its number; then it ends, or with `kill` it has been killed.

    In both cases it has forked a process, which lives on until the end.
    """
    command = [sys.executable, "-c", _SCRIPT, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        number = int(process.stdout.readline())
        if kill:
            process.kill()
            process.wait()
        yield number
        process.stdin.close()
