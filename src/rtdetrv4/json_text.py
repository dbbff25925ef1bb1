"""Reading JSON that a stranger may have written: one kind of error, and no entry silently lost."""

from __future__ import annotations

import json
from typing import Any


def load_json(text: str | bytes) -> Any:
    """Parse JSON; bytes may be UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        ValueError: it is not valid JSON, has lists in lists in lists without end or a number of thousands of digits, or
            an object has a key twice, of which `json.loads` keeps the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it has too many lists and objects inside each other") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f'an object has the key "{twice}" twice')
    return content
