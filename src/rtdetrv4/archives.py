"""Zip archives that a stranger may have made, looked at before anything unpacks them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from rtdetrv4.input_files import size_text

MAX_GROWTH = 4
"""How many times its own size an archive may unpack to; texts shrink more, and may."""
SMALL_BYTES = 64 << 20
"""What any archive may unpack to."""
MAX_MEMBERS = 1_000_000
UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged archive raises."""


def archive_problem(path: Path, *, takes_compressed: bool) -> str | None:
    """What is wrong with the directory of a zip archive, as a sentence without a subject, or None.

    Only the directory is read, so that an archive of a few bytes that claims gigabytes costs nothing.

    Args:
        path: a file that `zipfile.is_zipfile` takes for one.
        takes_compressed: whether members may be compressed. PyTorch does not compress tensors, and reads compressed
            ones that it maps into memory as if they were not.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        size = path.stat().st_size
    except UNREADABLE as error:
        return f"is damaged ({error})"
    if len(members) > MAX_MEMBERS:
        return f"is a zip archive of {len(members)} files, expected at most {MAX_MEMBERS}"
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        return "is a zip archive that has a file twice"
    if any(member.flag_bits & 1 for member in members):
        return "is an encrypted zip archive"
    claimed = sum(member.file_size for member in members)
    if claimed > max(MAX_GROWTH * size, SMALL_BYTES):
        return f"is a zip bomb: it has {size_text(size)} and claims to unpack to {size_text(claimed)}"
    if not takes_compressed and any(member.compress_type != zipfile.ZIP_STORED for member in members):
        return "is a compressed zip archive; torch.save writes none, so save it again with torch.save"
    return None
