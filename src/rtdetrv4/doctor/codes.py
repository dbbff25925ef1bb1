"""What each code means: its title, its severity, what training does about it, and what to do."""

from __future__ import annotations

from typing import NamedTuple

from rtdetrv4.doctor.finding import Severity


class Code(NamedTuple):
    """A kind of fault."""

    title: str
    severity: Severity
    effect: str
    """What training does about it, one sentence."""
    remedy: str
    """What to do, one sentence."""


CODES: dict[str, Code] = {}
