"""predictions.jsonl: what `predict` found, and which pictures and videos in its folder it wrote."""

from __future__ import annotations

from pathlib import Path

from rtdetrv4.input_files import open_file
from rtdetrv4.json_text import load_json

LINES_FILE = "predictions.jsonl"
MAX_BYTES = 2**30
"""Of the file, what is looked at."""
MAX_LINE = 2**24


def pictures_in(folder: Path) -> frozenset[str]:
    """The names of pictures and videos that predictions.jsonl in a folder lists; none if there is no such file."""
    names: set[str] = set()
    try:
        with open_file(Path(folder, LINES_FILE)) as lines:
            while lines.tell() < MAX_BYTES and (line := lines.readline(MAX_LINE)):
                try:
                    content = load_json(line)
                except ValueError:  # cut off, or another program's
                    continue
                if isinstance(content, dict):
                    names.update(name for key in ("picture", "video") if isinstance(name := content.get(key), str))
    except OSError:
        return frozenset()
    return frozenset(names)
