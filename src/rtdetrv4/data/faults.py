"""Faults of single annotations, gathered while a data set is read instead of stopping at the first one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

from rtdetrv4.errors import DatasetError

Unit = Literal["file", "line", "object", "annotations", "images", "categories", "shapes"]
"""What is counted in an annotation file: lines of text, <object>s of XML, or the entries of a list in JSON."""
FaultKind = Literal[
    "damaged file",
    "unknown class",
    "no class",
    "repeated id",
    "unlisted image",
    "missing image",
    "inverted box",
    "box in pixels",
    "no area",
    "file left out",
    "other image",
]

MAX_KEPT = 10_000
"""Faults of one kind that are kept; where every line is wrong, the others are only counted."""


class Fault(NamedTuple):
    """Something in an annotation file that is dropped, corrected, or stops training."""

    kind: FaultKind
    file: Path
    unit: Unit
    number: int
    """Which one of the units, from 1; 0 for the whole file."""
    detail: str
    """What is there, as a short phrase."""


class Faults:
    """Collects the faults of one part of a data set.

    Readers take one where they would otherwise raise at the first fault; they then leave out what is faulty and go on.
    """

    def __init__(self) -> None:
        self.found: list[Fault] = []
        self.counts: Counter[FaultKind] = Counter()
        self.stop: DatasetError | None = None
        """What would have been raised first."""

    def add(self, kind: FaultKind, file: Path, unit: Unit, number: int, detail: str) -> None:
        """Note one fault."""
        self.counts[kind] += 1
        if self.counts[kind] <= MAX_KEPT:
            self.found.append(Fault(kind, file, unit, number, detail))


def stop(error: DatasetError, faults: Faults | None) -> None:
    """Raise an error, or only keep it where faults are collected, if it is the first.

    Raises:
        DatasetError: nothing is collected.
    """
    if faults is None:
        raise error
    faults.stop = faults.stop or error
