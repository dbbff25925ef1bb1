"""The results of a comparison: means and spreads over seeds, paired differences, and tables of both."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rtdetrv4.comparison.arms import LEARNED, ArmSummary, Difference
from rtdetrv4.comparison.spread import CONFIDENCE, few_seeds
from rtdetrv4.comparison.tables import (
    Table,
    arms_table,
    as_markdown,
    as_text,
    classes_table,
    costs_table,
    differences_table,
    wrapped,
)
from rtdetrv4.report import REPORT_PAGE


@dataclass(frozen=True)
class Comparison:
    """All finished runs in a folder."""

    out: Path
    """Holds compare.md, compare.json, compare.png and a folder for each run."""
    arms: tuple[ArmSummary, ...]
    """The first is the reference."""
    differences: tuple[Difference, ...]
    """Differences of every other arm from the reference, for each of `METRICS`."""
    class_differences: tuple[Difference, ...]
    """Differences of every other arm from the reference in last-epoch AP, by class."""
    unfinished: tuple[str, ...]
    """Folders of runs without a result, because they were stopped, diverged or are still running."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before reading the tables; empty if nothing stands in the way."""
        idle = [arm.name for arm in self.arms if not arm.has_learned]
        found = []
        if idle:
            found.append(
                f"{', '.join(idle)} learned nothing: AP50 stays below {LEARNED:.0%} in every run. Train for more "
                "epochs, or start from trained weights, to have something to compare."
            )
        if self.differences:
            found.append(few_seeds(min(each.spread.n for each in self.differences)))
        return tuple(filter(None, found))

    @property
    def tables(self) -> tuple[Table, ...]:
        """The arms, their differences from the first, by class if there are several classes, and what they took."""
        tables = [arms_table(self.arms)]
        if self.differences:
            tables.append(differences_table(self.differences))
        if self.class_differences and len(self.arms[0].class_ap) > 1:
            tables.append(classes_table(self.arms[0], self.class_differences))
        return *tables, costs_table(self.arms)

    def __str__(self) -> str:
        """The tables, as wide as the terminal."""
        width = Console(force_jupyter=False).width
        parts = [as_text(table, width) for table in self.tables]
        notes = [*(f"WARNING: {text}" for text in self.warnings), *self._left_out]
        notes.append(f"Results: {self.out / REPORT_PAGE}, compare.md, compare.json and compare.png beside it")
        return "\n\n".join([*parts, *(wrapped(note, width) for note in notes)])

    def show(self) -> None:
        """Print the tables, as wide as the terminal."""
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # redirected on Windows, not one that has λ
        sys.stdout.write(f"{self}\n".encode(encoding, "backslashreplace").decode(encoding))

    def _repr_markdown_(self) -> str:
        """The tables in a notebook."""
        parts = [*self.warnings]
        for table in self.tables:
            parts += [f"## {table.title}", as_markdown(table), table.note]
        settings = []
        for arm in self.arms:
            changes = ", ".join(f"`{name}: {value}`" for name, value in arm.settings.items())
            settings.append(f"- {arm.name}: {changes or 'as in the recipe'}")
            settings += [
                f"    - seed {seed}: `{start['weights']}`, SHA-256 `{start['sha256']}`"
                for seed, start in arm.starts.items()
                if start["sha256"]
            ]
        return "\n\n".join([*parts, "## Settings of the arms", "\n".join(settings), *self._left_out])

    @property
    def _left_out(self) -> list[str]:
        return [f"Unfinished and left out: {', '.join(self.unfinished)}."] if self.unfinished else []

    def to_dict(self) -> dict[str, Any]:
        """The contents of compare.json."""

        def plain(each: Difference) -> dict[str, Any]:
            return {
                "arm": each.arm,
                "reference": each.reference,
                "metric": each.metric,
                **({} if each.class_name is None else {"class": each.class_name}),
                "by_seed": {str(seed): value for seed, value in each.by_seed.items()},
                **asdict(each.spread),
                "interval": each.spread.interval,
                "conclusion": each.conclusion,
            }

        return {
            "reference": self.arms[0].name,
            "confidence": CONFIDENCE,
            "arms": [asdict(arm) for arm in self.arms],
            "differences": [plain(each) for each in self.differences],
            "class_differences": [plain(each) for each in self.class_differences],
            "unfinished": list(self.unfinished),
            "warnings": list(self.warnings),
        }


def markdown(comparison: Comparison) -> str:
    """The contents of compare.md."""
    return f"{comparison._repr_markdown_()}\n\n![AP by epoch, and differences by seed](compare.png)\n"
