"""Exported files that are programs: whose they are, before they are run.

What TorchScript, torch.export and ExecuTorch write are programs. The first reads and writes files if it wants to, the
second names Python functions and holds pickles, the third jumps to where its file says; no look at such a file tells
that it does no harm. So nobody's are run but one's own, those that were exported on this machine, which are known by
their hashes, and those that the user says may be trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from rtdetrv4.errors import ExportError
from rtdetrv4.input_files import open_file
from rtdetrv4.outputs import caches_folder

PROGRAMS = {".torchscript": "TorchScript", ".pt2": "torch.export", ".pte": "ExecuTorch"}
"""Endings of files that are programs, and what they are programs of."""
CHUNK = 1 << 20


def remember_own(path: Path) -> None:
    """Note that a file was exported on this machine, if it is a program; its name and place may change later."""
    if path.suffix not in PROGRAMS:
        return
    with contextlib.suppress(OSError):  # a home that cannot be written to: the file needs trust then
        folder = own_folder()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _sha256(path)).touch()


def check_trust(path: Path, *, trust: bool) -> None:
    """Check that a file may be run.

    Args:
        path: an exported file.
        trust: whether the user said that it may be trusted.

    Raises:
        ExportError: it is a program of somebody else.
    """
    if trust or path.suffix not in PROGRAMS:
        return
    try:
        is_own = (own_folder() / _sha256(path)).is_file()
    except OSError:  # what is wrong with it, its runtime says
        is_own = False
    if not is_own:
        raise ExportError(
            f"{path} was not loaded: it is a program of {PROGRAMS[path.suffix]} that was not exported on this machine, "
            "and it can do whatever you can. If you trust whoever made it, say so with --trust, or trust=True in "
            "Python; .onnx and OpenVINO files need no trust."
        )


def own_folder() -> Path:
    """Where the hashes of own programs are kept."""
    return caches_folder() / "exported"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_file(path) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
