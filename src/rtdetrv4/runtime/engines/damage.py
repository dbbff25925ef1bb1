"""What is wrong with a file that its runtime cannot load, in plain words."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from rtdetrv4.archives import archive_problem
from rtdetrv4.errors import ExportError
from rtdetrv4.input_files import open_file
from rtdetrv4.runtime.engines.onnx_structure import DAMAGED, onnx_problem
from rtdetrv4.runtime.trust import check_trust

NUM_READ = 4096
"""The bytes at the beginning of a file that tell what it is."""
MAX_REASON = 160
"""Letters of a runtime's own words that are repeated."""
OTHER_KINDS = (
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself with: git lfs pull"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"<!doctype html", "a web page; download the file itself"),
    (b"<html", "a web page; download the file itself"),
)
"""How files of other kinds begin, in lower case but for the images."""
ARCHIVES = (".pt2", ".torchscript")


def check_file(path: Path, runtime: str, *, trust: bool = False) -> None:
    """Check that a file may be what its name says, before its runtime sees it and answers in words of its own.

    Args:
        path: a file that is there.
        runtime: the name of its package.
        trust: run the file if it is a program, whoever made it.

    Raises:
        ExportError: it is a folder, empty, or of another kind; it claims to be larger than it is, or leads to files
            elsewhere; or it is a program that nobody trusts.
    """
    what = _mistake(path)
    if what is not None:
        raise ExportError(f"{runtime} cannot load {path}: it is {what}.")
    problem = None
    if path.suffix == ".onnx":
        problem = onnx_problem(path)
        if problem == DAMAGED:
            raise ExportError(f"{runtime} cannot load {path}: it {problem}.")
    elif path.suffix in ARCHIVES:
        problem = archive_problem(path, takes_compressed=True)
    elif path.suffix == ".xml":
        problem = _weights_problem(path.with_suffix(".bin"))
    if problem is not None:
        raise ExportError(f"{path} was not loaded: it {problem}.")
    check_trust(path, trust=trust)


def _weights_problem(path: Path) -> str | None:
    """What is wrong with the weights beside a file of OpenVINO, which may have none."""
    try:
        with open_file(path):
            return None
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot be used with {path.name} beside it: {error.strerror}"


def _mistake(path: Path) -> str | None:
    if path.is_dir():
        return "a folder, expected a file"
    try:
        with open_file(path) as file:
            start = file.read(NUM_READ)
    except OSError as error:
        return f"not readable ({error.strerror})"
    if not start:
        return "empty; export it again, or copy it again"
    for beginning, kind in OTHER_KINDS:
        if start.startswith(beginning) or start.lstrip().lower().startswith(beginning):
            return kind
    if start[8:9] == b"{" and start[4:8] == bytes(4):  # the length of a header in JSON, and the header
        return "a file of weights under another name; rename it to NAME.safetensors, and export that"
    if path.suffix in ARCHIVES and not zipfile.is_zipfile(path):
        return f"damaged or truncated, or no {path.suffix} file: these are zip archives; export it again"
    if path.suffix not in ARCHIVES and start.startswith(b"PK\x03\x04"):
        return "a zip archive, such as weights of PyTorch, under another name"
    if path.suffix == ".xml" and b"<net" not in start:
        return "damaged, or no file of OpenVINO, which has <net> at its beginning; export it again"
    return None


def cannot_load(path: Path, runtime: str, reason: str) -> ExportError:
    """The error for a file that its runtime refuses.

    Args:
        path: the file.
        runtime: the name of its package.
        reason: what the runtime complains about, in one line; shortened here.
    """
    reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", reason)
    reason = re.sub(r"^Load model from .*? failed: ?", "", reason)
    reason = reason.replace(str(path), path.name).partition(". ")[0].rstrip(". !")
    if len(reason) > MAX_REASON:
        reason = f"{reason[:MAX_REASON]}…"
    return ExportError(
        f"{runtime} cannot load {path}: it is damaged or truncated, or needs another version of {runtime}; "
        f"export it again ({reason})."
    )
