"""The results of a comparison: means and spreads over seeds, paired differences, and tables of both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

CONFIDENCE = 0.95
METRICS = {"last_ap": "AP", "last_ap50": "AP50", "best_ap": "AP", "best_ap50": "AP50"}
"""Keys of the last and the best epoch's metrics in `result.json`, and their titles."""
MAX_CLASSES = 20
"""Most rows in the table of classes."""
LEARNED = 0.01
"""AP50 of a run's best epoch from which on it has learned something; below, its numbers are chance."""


class Table(NamedTuple):
    """A table of text, for the terminal and for Markdown."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def reach_of_interval(num_seeds: int) -> float:
    """How far the interval reaches to either side of the mean, in standard deviations, from two seeds on."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, num_seeds - 1)) / math.sqrt(num_seeds)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds."""

    mean: float
    sd: float | None
    """Standard deviation of the sample; None for one seed."""
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one or more numbers."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % t interval of the mean; None for one seed."""
        if self.sd is None:
            return None
        reach = reach_of_interval(self.n) * self.sd
        return self.mean - reach, self.mean + reach


@dataclass(frozen=True)
class ArmSummary:
    """The finished runs of one arm. AP is in [0, 1], from the averaged weights on the validation images."""

    name: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    has_learned: bool
    """False if AP50 stays below 1 % in the best epoch of every run."""
    last_ap: Spread
    last_ap50: Spread
    best_ap: Spread
    """AP of each run's best epoch, which was chosen on the same images."""
    best_ap50: Spread
    class_ap: Mapping[str, Spread]
    """Last-epoch AP of each class that has boxes in the validation split."""
    seconds_per_epoch: float
    """Median over seeds of each run's median, including validation."""
    gpu_memory_mib: float | None
    """Peak memory of tensors on the GPU, largest over seeds."""
    host_memory_mib: float | None
    """Peak resident memory of the process, largest over seeds; None where it cannot be measured."""
    distill_weight: float | None
    """λ in the last epoch, mean over seeds; None without distillation."""
    share: float | None
    """AIFI's share of the gradient in percent, mean over epochs and seeds."""
    starts: Mapping[int, Mapping[str, Any]]
    """By seed, the `weights` and their `sha256` (None for a name) of an arm that starts from its own; else empty."""


@dataclass(frozen=True)
class Difference:
    """The difference between an arm and the reference, seed by seed."""

    arm: str
    reference: str
    metric: str
    """A key of `METRICS`."""
    by_seed: Mapping[int, float]
    """Differences by seed, for the seeds that both have finished; at least one."""
    class_name: str | None = None
    """The class compared; None: all classes."""
    without_learning: tuple[str, ...] = ()
    """Those of the two arms that have learned nothing."""

    @property
    def spread(self) -> Spread:
        """Mean and standard deviation over the seeds."""
        return Spread.of(list(self.by_seed.values()))

    @property
    def conclusion(self) -> str:
        """What the interval supports, in words; a difference means little if an arm has learned nothing."""
        if len(self.without_learning) > 1:
            return "neither learned anything"
        if self.without_learning:
            return f"only {self.reference if self.arm in self.without_learning else self.arm} learned anything"
        interval = self.spread.interval
        if interval is None:
            return "one seed: no interval"
        if interval[0] <= 0 <= interval[1]:
            return "no difference that these seeds could show"
        return f"{'higher' if interval[0] > 0 else 'lower'} than {self.reference}"


def few_seeds(num_seeds: int) -> str:
    """A warning about one or two seeds; empty for more."""
    if num_seeds > 2:
        return ""
    if num_seeds == 1:
        problem = "One seed: there is no interval, so nothing tells a difference from chance."
    else:
        problem = (
            f"Two seeds: the {CONFIDENCE:.0%} interval of a difference reaches {reach_of_interval(2):.1f} standard "
            "deviations to either side, so that hardly any difference can be shown."
        )
    return f"{problem} With three seeds it reaches {reach_of_interval(3):.1f}, with five {reach_of_interval(5):.1f}."


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
        """Tables of the arms, of their differences from the first, and by class if there are several classes."""
        tables = [_arms_table(self.arms)]
        if self.differences:
            tables.append(_differences_table(self.differences))
        if self.class_differences and len(self.arms[0].class_ap) > 1:
            tables.append(_classes_table(self.arms[0], self.class_differences))
        return tuple(tables)

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


def _arms_table(arms: Sequence[ArmSummary]) -> Table:
    optional = {
        "GPU memory, MiB": [_number(arm.gpu_memory_mib, ".0f") for arm in arms],
        "memory, MiB": [_number(arm.host_memory_mib, ".0f") for arm in arms],
        "last λ": [_number(arm.distill_weight, ".3g") for arm in arms],
        "mean share, %": [_number(arm.share, ".2f") for arm in arms],
    }
    shown = {title: column for title, column in optional.items() if set(column) != {""}}
    header = ("arm", "seeds", "AP, last", "AP50, last", "AP, best", "AP50, best", "s/epoch", *shown)
    rows = [
        (
            arm.name,
            str(len(arm.seeds)),
            *(_percent(spread) for spread in (arm.last_ap, arm.last_ap50, arm.best_ap, arm.best_ap50)),
            f"{arm.seconds_per_epoch:.3g}",
            *(column[index] for column in shown.values()),
        )
        for index, arm in enumerate(arms)
    ]
    note = (
        "Mean ± standard deviation over seeds, in percent, of the averaged weights on the validation images. Compare "
        "the last epoch: the best one was chosen on these images, which flatters every arm, and most of all the one "
        "with the noisiest curve. Seconds are medians and include validation; memory is the largest over seeds."
    )
    return Table("Arms", header, tuple(rows), note)


def _differences_table(differences: Sequence[Difference]) -> Table:
    reference = differences[0].reference
    rows = []
    for each in differences:
        if each.metric.startswith("last"):
            low, high = each.spread.interval or (math.nan, math.nan)
            interval = "" if math.isnan(low) else f"{100 * low:+.2f} to {100 * high:+.2f}"
            metric = METRICS[each.metric]
            rows.append(
                (each.arm, metric, str(each.spread.n), _percent(each.spread, sign="+"), interval, each.conclusion)
            )
    header = ("arm", "of the last epoch", "seeds", "difference", f"{CONFIDENCE:.0%} interval", "")
    note = (
        "AP points in percent: the arm minus the reference with the same seed, mean ± standard deviation, and the t "
        "interval of the mean. Intervals are not corrected for multiple comparisons: the more arms and metrics, the "
        "likelier that one excludes 0 by chance. Seeds vary the training, not the choice of images."
    )
    return Table(f"Paired difference from {reference}", header, tuple(rows), note)


def _classes_table(reference: ArmSummary, differences: Sequence[Difference]) -> Table:
    arms = list(dict.fromkeys(each.arm for each in differences))
    found = {(each.class_name, each.arm): each.spread for each in differences}

    def largest(name: str) -> float:
        return max((abs(found[name, arm].mean) for arm in arms if (name, arm) in found), default=0.0)

    def cell(spread: Spread | None) -> str:
        if spread is None:
            return ""
        clear = spread.interval is not None and not spread.interval[0] <= 0 <= spread.interval[1]
        return _percent(spread, sign="+") + (" *" if clear else "")

    names = sorted(reference.class_ap, key=largest, reverse=True)
    rows = [
        (name, _percent(reference.class_ap[name]), *(cell(found.get((name, arm))) for arm in arms))
        for name in names[:MAX_CLASSES]
    ]
    left_out = len(names) - len(rows)
    note = (
        "AP of the last epoch in percent, largest differences first. *: the 95 % interval of this difference excludes "
        "0, as one in twenty does by chance, so expect some among many classes."
        + (f" {left_out} more classes are in compare.json." if left_out else "")
    )
    header = ("class", reference.name, *(f"{arm} − {reference.name}" for arm in arms))
    return Table("Class by class", header, tuple(rows), note)


def _percent(spread: Spread, sign: str = "") -> str:
    deviation = "" if spread.sd is None else f" ± {100 * spread.sd:.2f}"
    return f"{100 * spread.mean:{sign}.2f}{deviation}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def markdown(comparison: Comparison) -> str:
    """The contents of compare.md."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    parts = list(comparison.warnings)
    for table in comparison.tables:
        align = ["---", *("---:" for _ in table.header[1:])]
        parts += [f"## {table.title}", "\n".join(map(line, (table.header, align, *table.rows))), table.note]
    settings = []
    for arm in comparison.arms:
        changes = ", ".join(f"`{name}: {value}`" for name, value in arm.settings.items())
        settings.append(f"- {arm.name}: {changes or 'as in the recipe'}")
        settings += [
            f"    - seed {seed}: `{start['weights']}`, SHA-256 `{start['sha256']}`"
            for seed, start in arm.starts.items()
            if start["sha256"]
        ]
    parts += ["## Settings of the arms", "\n".join(settings)]
    if comparison.unfinished:
        parts.append(f"Unfinished and left out: {', '.join(comparison.unfinished)}.")
    parts.append("![AP by epoch, and differences by seed](compare.png)")
    return "\n\n".join(parts) + "\n"
