"""Write the tables of docs/research/experiments.md from results/compare/, the `compare.json` of each comparison.

    python benchmarks/compare/tables.py

A table goes between `<!-- NAME -->` and `<!-- end -->`, for each results/compare/NAME.json.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1]
PAGE = BENCHMARKS.parent / "docs" / "research" / "experiments.md"
HEADER = ("arm", "seeds", "AP", "AP50", "AP − off, in pairs", "95 % interval", "last λ", "AIFI's share, %", "s / epoch")


def main() -> None:
    """Write them all."""
    page = PAGE.read_text(encoding="utf-8")
    for file in sorted((BENCHMARKS / "results" / "compare").glob("*.json")):
        begin = f"<!-- {file.stem} -->\n"
        if begin in page:
            table = _table(json.loads(file.read_text(encoding="utf-8")))
            page = re.sub(f"(?s){re.escape(begin)}.*?<!-- end -->", lambda _, t=begin + table: f"{t}<!-- end -->", page)
    PAGE.write_text(page, encoding="utf-8")


def _table(result: dict[str, Any]) -> str:
    differences = {each["arm"]: each for each in result["differences"] if each["metric"] == "last_ap"}
    rows = [HEADER, ("---",) * len(HEADER), *(_row(arm, differences.get(arm["name"])) for arm in result["arms"])]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(arm: dict[str, Any], difference: dict[str, Any] | None) -> tuple[str, ...]:
    interval = difference and difference["interval"]
    return (
        f"`{arm['name']}`",
        str(len(arm["seeds"])),
        _spread(arm["last_ap"], ".1f"),
        _spread(arm["last_ap50"], ".1f"),
        _spread(difference, "+.1f") if difference else "–",
        "{:+.1f} to {:+.1f}".format(*(100 * end for end in interval)) if interval else "–",
        "–" if arm["distill_weight"] is None else f"{arm['distill_weight']:.3g}",
        "–" if arm["share"] is None else f"{arm['share']:.1f}",
        f"{arm['seconds_per_epoch']:.0f}",
    )


def _spread(spread: dict[str, Any], form: str) -> str:
    deviation = "" if spread["sd"] is None else f" ± {100 * spread['sd']:.1f}"
    return f"{100 * spread['mean']:{form}}{deviation}"


if __name__ == "__main__":
    main()
