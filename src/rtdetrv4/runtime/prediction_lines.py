"""predictions.jsonl: what `predict` found, and which pictures in its folder it wrote."""

from __future__ import annotations

import json
from pathlib import Path

LINES_FILE = "predictions.jsonl"


def pictures_in(folder: Path) -> frozenset[str]:
    """The names of the pictures that predictions.jsonl in a folder lists; none if there is no such file."""
    names: set[str] = set()
    try:
        with Path(folder, LINES_FILE).open("rb") as lines:
            for line in lines:
                try:
                    content = json.loads(line)
                except (ValueError, RecursionError):  # cut off, or another program's
                    continue
                if isinstance(content, dict) and isinstance(content.get("picture"), str):
                    names.add(content["picture"])
    except OSError:
        return frozenset()
    return frozenset(names)
