"""What the doctor finds: a kind of fault, how often it occurs, examples of it, and what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, NamedTuple

Severity = Literal["info", "warning", "error"]
"""Error: training stops or learns something wrong. Warning: it loses something. Info: it does not, but you may care."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""The gravest first."""
MAX_EXAMPLES = 200
"""Kept of a finding, for doctor.json and `--json`; the console and the page show fewer."""
SCHEMA = 1
"""The number of the JSON schema; it changes when a field changes its meaning or goes, not when one is added."""


class Example(NamedTuple):
    """One place where a fault was found."""

    part: str
    """"train", "val", "test", or "" if it is of no part."""
    file: str
    """Relative to the root of the data where possible, with forward slashes."""
    line: int | None
    """Of an annotation file, from 1."""
    detail: str
    """What is there, as a short phrase."""
    image: str | None = None
    """The absolute path of the image to draw."""
    boxes_xyxy_px: tuple[tuple[float, float, float, float], ...] = ()
    """The faulty boxes, to draw; in pixels of the upright image, which they may leave."""
    beside: str | None = None
    """The absolute path of the image that it is a copy of or looks like."""


class Finding(NamedTuple):
    """A kind of fault in a data set."""

    code: str
    """Such as D101: D0 is reading, D1 files, D2 annotations, D3 the set as a whole."""
    title: str
    severity: Severity
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    examples: tuple[Example, ...]
    """At most `MAX_EXAMPLES`, from the parts by turns."""
    effect: str
    """What training does about it, one sentence."""
    remedy: str
    """What to do, one sentence."""


class PartCounts(NamedTuple):
    """How large a part of a data set is, as annotated."""

    images: int
    boxes: int
    classes: int
    """The number of classes that have a box in this part."""


class Findings(NamedTuple):
    """Everything the doctor found in a data set."""

    data: str
    """The data set, as given."""
    is_readable: bool
    """Whether annotations were recognized; without them, only files were checked."""
    findings: tuple[Finding, ...]
    """By severity, the gravest first, then by code."""
    notes: tuple[str, ...]
    """How the data was read, one sentence each."""
    parts: Mapping[str, PartCounts]
    """By "train", "val" and "test"."""

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def exit_code(self, *, strict: bool = False) -> int:
        """0 if there is nothing above info, 1 if there is, 2 if there is no data set to read.

        Args:
            strict: infos count too.
        """
        if not self.is_readable:
            return 2
        return int(any(strict or finding.severity != "info" for finding in self.findings))

    def to_json(self) -> str:
        """The findings as JSON, in the schema that docs/guides/doctor.md describes."""
        content = {
            "schema": SCHEMA,
            "data": self.data,
            "readable": self.is_readable,
            "notes": self.notes,
            "parts": {name: counts._asdict() for name, counts in self.parts.items()},
            "findings": [
                finding._asdict() | {"examples": [example._asdict() for example in finding.examples]}
                for finding in self.findings
            ],
        }
        return json.dumps(content, indent=2)
