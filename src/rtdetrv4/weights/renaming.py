"""Tables of tensor names, read in either direction.

A row holds the same name twice, theirs and ours; `{i}`, `{j}` stand for a number, `{path}` and `{rest}` for any part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Row = tuple[str, str]

_FIELDS = {"{i}": r"(?P<i>\d+)", "{j}": r"(?P<j>\d+)", "{path}": r"(?P<path>.+)", "{rest}": r"(?P<rest>.+)"}


class Renaming:
    """Their names ↔ ours. The first row of the table that fits a name counts."""

    def __init__(self, table: Iterable[Row]) -> None:
        rows = tuple(table)
        self._to_ours = [_compile(theirs, ours) for theirs, ours in rows]
        self._to_theirs = [_compile(ours, theirs) for theirs, ours in rows]

    def to_ours(self, name: str) -> str | None:
        """Our name for theirs; None if no row fits."""
        return _first(self._to_ours, name)

    def to_theirs(self, name: str) -> str | None:
        """Their name for ours; None if no row fits."""
        return _first(self._to_theirs, name)


def prefixed(theirs: str, ours: str, rows: Iterable[Row], **fields: str) -> list[Row]:
    """The rows of a block in its place, with `fields` filled in on our side."""

    def fill(template: str) -> str:
        for name, value in fields.items():
            template = template.replace(f"{{{name}}}", value)
        return template

    return [(theirs + row[0], ours + fill(row[1])) for row in rows]


#: `CSPRepBlock`, which the released code and transformers name alike.
CSP: tuple[Row, ...] = (
    ("conv1.{rest}", "deep.{rest}"),
    ("conv2.{rest}", "shortcut.{rest}"),
    ("conv3.{rest}", "widen.{rest}"),
    ("bottlenecks.{j}.conv1.{rest}", "blocks.{j}.conv3x3.{rest}"),
    ("bottlenecks.{j}.conv2.{rest}", "blocks.{j}.conv1x1.{rest}"),
)


def _compile(source: str, destination: str) -> tuple[re.Pattern[str], str]:
    pattern = re.escape(source)
    template = destination
    for field, group in _FIELDS.items():
        pattern = pattern.replace(re.escape(field), group, 1)
        template = template.replace(field, rf"\g<{field[1:-1]}>")
    return re.compile(pattern), template


def _first(rows: Iterable[tuple[re.Pattern[str], str]], name: str) -> str | None:
    matches = ((pattern.fullmatch(name), template) for pattern, template in rows)
    return next((match.expand(template) for match, template in matches if match), None)
