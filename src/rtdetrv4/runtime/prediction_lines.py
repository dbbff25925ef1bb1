"""predictions.jsonl: what `predict` found, and which pictures and videos in its folder it wrote."""

from __future__ import annotations

import json
from pathlib import Path

LINES_FILE = "predictions.jsonl"


def pictures_in(folder: Path) -> frozenset[str]:
    """The names of pictures and videos that predictions.jsonl in a folder lists; none if there is no such file."""
    names: set[str] = set()
    try:
        with Path(folder, LINES_FILE).open("rb") as lines:
            for line in lines:
                try:
                    content = json.loads(line)
                except (ValueError, RecursionError):  # cut off, or another program's
                    continue
                if isinstance(content, dict):
                    names.update(name for key in ("picture", "video") if isinstance(name := content.get(key), str))
    except OSError:
        return frozenset()
    return frozenset(names)
