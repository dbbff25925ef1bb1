"""predictions.jsonl: what `predict` found, and which pictures in its folder it wrote."""

from __future__ import annotations

from pathlib import Path

from rtdetrv4.input_files import open_file
from rtdetrv4.json_text import load_json

LINES_FILE = "predictions.jsonl"
MAX_BYTES = 2**30
"""Of the file, what is looked at."""
MAX_LINE = 2**24


def pictures_in(folder: Path) -> frozenset[str]:
    """The names of the pictures that predictions.jsonl in a folder lists; none if there is no such file."""
    names: set[str] = set()
    try:
        with open_file(Path(folder, LINES_FILE)) as lines:
            while lines.tell() < MAX_BYTES and (line := lines.readline(MAX_LINE)):
                try:
                    content = load_json(line)
                except ValueError:  # cut off, or another program's
                    continue
                if isinstance(content, dict) and isinstance(content.get("picture"), str):
                    names.add(content["picture"])
    except OSError:
        return frozenset()
    return frozenset(names)
