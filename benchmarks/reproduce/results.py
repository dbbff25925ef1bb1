"""Finished rows beside the published numbers, and the gains over their baselines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rows import NUM_RF100VL_SETS, ROWS, Row, run_name
from runs import RESULT_FILE, SETS_FILE

from rtdetrv4.comparison.arms import Difference
from rtdetrv4.comparison.spread import Spread
from rtdetrv4.comparison.tables import Table
from rtdetrv4.errors import ConfigError
from rtdetrv4.outputs import write_text

JSON_FILE, MARKDOWN_FILE = "compare.json", "compare.md"


class SeedResult(NamedTuple):
    """What a row reached with one seed. AP is in [0, 1], of the averaged weights."""

    ap: float
    """Of the best epoch's weights, which were chosen on the validation images; on RF100-VL the mean over the sets, on
    test images where there are some."""
    last_ap: float | None
    """Of the last epoch; None on RF100-VL."""
    hours: float
    tiny: bool
    sets: int | None = None
    """Data sets of RF100-VL."""
    domains: Mapping[str, float] | None = None
    """Mean AP by domain, where the sets have one."""


@dataclass(frozen=True)
class RowResult:
    """The finished runs of a row."""

    run: str
    """Name of the row, with "@teacher" where that is not the row's."""
    row: Row
    by_seed: Mapping[int, SeedResult]

    @property
    def ap(self) -> Spread:
        """Mean and standard deviation over the seeds."""
        return Spread.of([result.ap for result in self.by_seed.values()])

    @property
    def last_ap(self) -> Spread | None:
        """The same of the last epochs."""
        values = [result.last_ap for result in self.by_seed.values()]
        known = [value for value in values if value is not None]
        return Spread.of(known) if known and len(known) == len(values) else None

    @property
    def difference(self) -> float | None:
        """Ours minus the published AP, in points of percent; None where the two are not of the same images."""
        if self.row.published is None or not self.has_all_sets:
            return None
        return 100 * self.ap.mean - self.row.published

    @property
    def is_tiny(self) -> bool:
        """Whether a dry run is among them."""
        return any(result.tiny for result in self.by_seed.values())

    @property
    def has_all_sets(self) -> bool:
        """Whether it is about all of RF100-VL, or about COCO; a dry run passes."""
        return self.is_tiny or all(result.sets in (None, NUM_RF100VL_SETS) for result in self.by_seed.values())


class Comparison(NamedTuple):
    """All finished rows in a folder."""

    rows: tuple[RowResult, ...]
    gains: tuple[Difference, ...]
    """Of rows over their baselines, for the seeds that both have."""
    unfinished: tuple[str, ...]
    """Runs that were begun and have no result, or not one for each set; one sentence each."""

    @property
    def is_tiny(self) -> bool:
        """Whether there are dry runs, whose numbers mean nothing."""
        return any(each.is_tiny for each in self.rows)


def read_results(out: Path) -> Comparison:
    """Read all finished rows in a folder.

    Raises:
        ConfigError: there is none, or a result cannot be read.
    """
    found: dict[str, dict[int, SeedResult]] = {}
    rows: dict[str, Row] = {}
    unfinished: list[str] = []
    for folder in sorted(out.glob("*/seed*")):
        number = folder.name.removeprefix("seed")
        row = ROWS.get(folder.parent.name.partition("@")[0])
        if row is None or not number.isdecimal():  # of something else
            continue
        result = _read_seed(folder)
        if isinstance(result, str):
            unfinished.append(f"{folder}: {result}")
            continue
        rows[folder.parent.name] = row
        found.setdefault(folder.parent.name, {})[int(number)] = result
    if not found:
        begun = f" Unfinished: {'; '.join(unfinished)}." if unfinished else ""
        raise ConfigError(f"There is nothing to compare: {out} holds no finished row.{begun}")
    order = list(ROWS)
    results = [RowResult(name, rows[name], dict(sorted(by_seed.items()))) for name, by_seed in found.items()]
    results.sort(key=lambda each: (order.index(each.row.name), each.run))
    return Comparison(tuple(results), tuple(_gains(results)), tuple(unfinished))


def write_results(out: Path) -> tuple[Comparison, list[Table]]:
    """Read all finished rows in a folder, and write compare.json and compare.md there."""
    comparison = read_results(out)
    tables = tables_of(comparison)
    write_text(out / JSON_FILE, json.dumps(as_dict(comparison), indent=2, ensure_ascii=False) + "\n")
    write_text(out / MARKDOWN_FILE, _markdown(comparison, tables))
    return comparison, tables


def tables_of(comparison: Comparison) -> list[Table]:
    """The tables of a comparison: against the published numbers, gains, and domains of RF100-VL."""
    cells = []
    for each in comparison.rows:
        sets = next(iter(each.by_seed.values())).sets
        cells.append(
            (
                each.run,
                _percent(each.ap),
                "" if each.last_ap is None else _percent(each.last_ap),
                "" if each.row.published is None else f"{each.row.published:.1f}",
                "" if each.difference is None else f"{each.difference:+.1f}",
                str(len(each.by_seed)),
                "" if sets is None else str(sets),
            )
        )
    note = (
        "AP in percent of the averaged weights, mean ± standard deviation over seeds. AP is that of the best epoch, "
        "chosen on the images that it is measured on, as published numbers are; last is that of the last epoch. On "
        f"RF100-VL it is the mean over the sets, and compared only with all {NUM_RF100VL_SETS}."
    )
    tables = [
        Table("Rows", ("row", "AP", "last", "published", "difference", "seeds", "sets"), tuple(cells), note),
    ]
    if comparison.gains:
        tables.append(_gains_table(comparison.gains))
    for each in comparison.rows:
        if domains := _domains(each):
            rows = tuple((name, _percent(spread)) for name, spread in domains.items())
            tables.append(Table(f"Domains of {each.run}", ("domain", "mean AP"), rows, ""))
    return tables


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """The contents of compare.json; AP in [0, 1], published numbers and differences from them in percent."""
    return {
        "dry_run": comparison.is_tiny,
        "rows": [
            {
                "run": each.run,
                "row": each.row.name,
                "seeds": list(each.by_seed),
                "ap": {**asdict(each.ap), "interval": each.ap.interval},
                "last_ap": None if each.last_ap is None else asdict(each.last_ap),
                "by_seed": {str(seed): result._asdict() for seed, result in each.by_seed.items()},
                "domains": {name: asdict(spread) for name, spread in _domains(each).items()},
                "published": each.row.published,
                "source": each.row.source,
                "difference": each.difference,
                "note": each.row.note,
            }
            for each in comparison.rows
        ],
        "gains": [
            {
                "run": each.arm,
                "baseline": each.reference,
                "by_seed": {str(seed): value for seed, value in each.by_seed.items()},
                **asdict(each.spread),
                "interval": each.spread.interval,
                "conclusion": each.conclusion,
                "published": published_gain(each),
            }
            for each in comparison.gains
        ],
        "unfinished": list(comparison.unfinished),
    }


def published_gain(gain: Difference) -> float | None:
    """The published difference between a row and its baseline, in points of percent; None if either is not known."""
    row, baseline = (ROWS[name.partition("@")[0]].published for name in (gain.arm, gain.reference))
    return None if row is None or baseline is None else round(row - baseline, 6)


def _read_seed(folder: Path) -> SeedResult | str:
    """The result of a run, or of the runs on all data sets; or what is missing, in words."""
    if (file := folder / RESULT_FILE).is_file():
        record = _read(file)
        return SeedResult(record["ap"], record["last_ap"], record["hours"], record["tiny"])
    if not (file := folder / SETS_FILE).is_file():
        return "no result yet"
    sets = json.loads(file.read_text(encoding="utf-8"))
    records = [_read(file) for name in sets if (file := folder / name / RESULT_FILE).is_file()]
    if len(records) < len(sets):
        mean = f", mean AP so far {100 * fmean(record['ap'] for record in records):.1f}" if records else ""
        return f"{len(records)} of {len(sets)} data sets{mean}"
    return _over_sets(records)


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not {"ap", "last_ap", "hours", "tiny"} <= record.keys():
            raise ValueError("entries are missing")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{file} is damaged ({error}); delete it, and `run` writes it again.") from error
    return record


def _over_sets(records: Sequence[Mapping[str, Any]]) -> SeedResult:
    """The mean over data sets, and over those of each domain."""
    by_domain: dict[str, list[float]] = {}
    for record in records:
        if record["domain"] is not None:
            by_domain.setdefault(record["domain"], []).append(record["ap"])
    return SeedResult(
        ap=fmean(record["ap"] for record in records),
        last_ap=None,
        hours=sum(record["hours"] for record in records),
        tiny=any(record["tiny"] for record in records),
        sets=len(records),
        domains={name: fmean(values) for name, values in sorted(by_domain.items())} or None,
    )


def _gains(results: Iterable[RowResult]) -> Iterable[Difference]:
    by_run = {each.run: each for each in results}
    for each in by_run.values():
        if each.row.baseline is None:
            continue
        baseline = ROWS[each.row.baseline]
        _, at, teacher = each.run.partition("@")
        reference = by_run.get(run_name(baseline) + (at + teacher if baseline.distills else ""))
        if reference is None or (reference.is_tiny, _sets(reference)) != (each.is_tiny, _sets(each)):
            continue
        common = [seed for seed in each.by_seed if seed in reference.by_seed]
        if common:
            by_seed = {seed: each.by_seed[seed].ap - reference.by_seed[seed].ap for seed in common}
            yield Difference(each.run, reference.run, "best_ap", by_seed)


def _sets(each: RowResult) -> set[int | None]:
    return {result.sets for result in each.by_seed.values()}


def _domains(each: RowResult) -> dict[str, Spread]:
    """AP by domain over the seeds, for the domains that all seeds have."""
    by_seed = [result.domains or {} for result in each.by_seed.values()]
    return {
        name: Spread.of([domains[name] for domains in by_seed])
        for name in by_seed[0]
        if all(name in d for d in by_seed)
    }


def _gains_table(gains: Sequence[Difference]) -> Table:
    cells = []
    for each in gains:
        published, interval = published_gain(each), each.spread.interval
        cells.append(
            (
                each.arm,
                each.reference,
                _percent(each.spread, "+"),
                "" if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}",
                "" if published is None else f"{published:+.1f}",
                str(each.spread.n),
            )
        )
    note = (
        "AP of the row minus that of its baseline with the same seed, in points, and the 95 % t interval of the mean."
    )
    return Table("Gains", ("row", "over", "gain", "95 % interval", "published", "seeds"), tuple(cells), note)


def _percent(spread: Spread, sign: str = "") -> str:
    deviation = "" if spread.sd is None else f" ± {100 * spread.sd:.1f}"
    return f"{100 * spread.mean:{sign}.1f}{deviation}"


def _markdown(comparison: Comparison, tables: Sequence[Table]) -> str:
    parts = ["**A dry run: tiny images and a few steps. The numbers mean nothing.**"] if comparison.is_tiny else []
    for table in tables:
        lines = [table.header, ["---", *("---:" for _ in table.header[1:])], *table.rows]
        parts += [f"## {table.title}", "\n".join(f"| {' | '.join(cells)} |" for cells in lines), table.note]
    sources = dict.fromkeys(each.row.source for each in comparison.rows if each.row.source)
    for source in sources:
        names = ", ".join(dict.fromkeys(each.row.name for each in comparison.rows if each.row.source == source))
        parts.append(f"Published AP of {names}: {source}.")
    for note in dict.fromkeys(each.row.note for each in comparison.rows if each.row.note):
        names = ", ".join(dict.fromkeys(each.row.name for each in comparison.rows if each.row.note == note))
        parts.append(f"{names}: {note}.")
    parts += [f"Unfinished: {each}." for each in comparison.unfinished]
    return "\n\n".join(part for part in parts if part) + "\n"
