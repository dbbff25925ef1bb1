"""What training says about its data at the start: what is severe, and how much else there is."""

from __future__ import annotations

from rtdetrv4.doctor.finding import Finding, Findings

TOLD_BY_READING = frozenset(
    {"D207", "D211", "D214", "D217", "D218", "D219", "D220", "D223", "D225", "D226", "D228", "D229", "D230", "D231"}
)
"""Codes of what reading a data set reports itself, in `Split.problems`."""
NUM_NAMED = 3
"""Examples that are named."""


def summarize(findings: Findings) -> list[str]:
    """The findings worth a line when training starts: each error, and one line for all warnings.

    Args:
        findings: of a quick check.

    Returns:
        Sentences, none of which repeats what reading the data has reported.
    """
    new = [finding for finding in findings.findings if finding.code not in TOLD_BY_READING]
    lines = [_line(finding) for finding in new if finding.severity == "error"]
    if rest := sum(finding.severity == "warning" for finding in new):
        kinds = "1 more kind of fault" if rest == 1 else f"{rest} more kinds of faults"
        lines.append(f"{kinds} in the data: rtdetrv4 doctor {findings.data} shows them")
    return lines


def _line(finding: Finding) -> str:
    named = [f"{example.part} {example.detail}".strip() for example in finding.examples[:NUM_NAMED]]
    more = f" and {finding.count - len(named)} more" if finding.count > len(named) else ""
    return f"{finding.title} ({', '.join(named)}{more}). {finding.effect} {finding.remedy}"
