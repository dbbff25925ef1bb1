"""Lines of annotation files: where an object of an XML file or an entry of a list in JSON stands."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from rtdetrv4.data.faults import Unit
from rtdetrv4.data.text import read_text
from rtdetrv4.errors import DatasetError

_SPACE = re.compile(r"[ \t\r\n]*")
_OBJECT = re.compile(r"<object[\s>]")
_FILES_KEPT = 4


def line_of(file: Path, unit: Unit, number: int) -> int | None:
    """The line of the annotation file, from 1, where one of its units begins.

    Args:
        file: the annotation file.
        unit: what `number` counts.
        number: which one, from 1.

    Returns:
        None if the number means the whole file, or the file has only one line.
    """
    if unit == "file" or number < 1:
        return None
    if unit == "line":
        return number
    lines = _lines_of_units(file, unit)
    return lines[number - 1] if number <= len(lines) else None


def text_of(file: Path, line: int) -> str:
    """A line of a text file, from 1; empty if there is none."""
    lines = _lines(file)
    return lines[line - 1] if 0 < line <= len(lines) else ""


def forget_files() -> None:
    """Read files again when they are next asked for: they may have been corrected since."""
    _lines.cache_clear()
    _lines_of_units.cache_clear()


@lru_cache(_FILES_KEPT)
def _lines(file: Path) -> list[str]:
    try:
        return read_text(file).splitlines()
    except DatasetError:
        return []


@lru_cache(_FILES_KEPT)
def _lines_of_units(file: Path, unit: Unit) -> list[int]:
    try:
        text = read_text(file)
    except DatasetError:
        return []
    if "\n" not in text:
        return []
    try:
        starts = [found.start() for found in _OBJECT.finditer(text)] if unit == "object" else _entries(text, unit)
    except (ValueError, IndexError, RecursionError):
        return []
    ends = list(accumulate(len(line) for line in text.splitlines(keepends=True)))
    return [bisect_right(ends, start) + 1 for start in starts]


def _entries(text: str, key: str) -> list[int]:
    """Where the entries of a list of a JSON object begin.

    Raises:
        ValueError: the text is no JSON object.
        IndexError: the text ends early.
    """
    decode = json.JSONDecoder().raw_decode
    starts: list[int] = []
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "}":
        name, at = decode(text, at)
        at = _skip(text, _skip(text, at) + 1)
        if name == key and text[at] == "[":
            at = _skip(text, at + 1)
            while text[at] != "]":
                starts.append(at)
                _, at = decode(text, at)
                at = _past_comma(text, at)
            at += 1
        else:
            _, at = decode(text, at)
        at = _past_comma(text, at)
    return starts


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None, "the pattern matches nothing at all, too"
    return found.end()


def _past_comma(text: str, at: int) -> int:
    at = _skip(text, at)
    return _skip(text, at + 1) if text[at] == "," else at
