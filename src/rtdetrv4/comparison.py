"""`compare`: what a change, such as distillation, brings on one's own data; arms × seeds, and a table with intervals.

Arms of one seed start from the same weights, see the same images in the same order and draw the same noise, so they are
compared in pairs. The module is not called `compare`, which in the package is the function.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy import stats

from rtdetrv4.build.training import build_teacher
from rtdetrv4.config import Recipe, changed_settings, from_yaml, load_recipe, override, parse_assignment
from rtdetrv4.data.formats import read_splits
from rtdetrv4.detector import FREE_ON_RESUME, WEIGHTS_SUFFIXES, Detector
from rtdetrv4.distillation.teacher import Network, teacher_name
from rtdetrv4.errors import ConfigError, DatasetError, NonFiniteError, did_you_mean
from rtdetrv4.training.curves import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from rtdetrv4.training.observers import read_log

logger = logging.getLogger(__name__)

ARMS: Mapping[str, Mapping[str, Any]] = {
    "off": {"distillation.mode": "off"},
    "static": {"distillation.mode": "fixed"},
    "gam": {"distillation.mode": "gam"},
    "gam_paper": {"distillation.mode": "gam_paper"},
    "auto": {"distillation.mode": "auto"},
}
"""Arms that have a name of their own."""
DEFAULT_ARMS = ("off", "static", "gam")
CONFIDENCE = 0.95
METRICS = {"last_ap": "AP", "last_ap50": "AP50", "best_ap": "AP", "best_ap50": "AP50"}
"""Of the last epoch and of the best one, as in `result.json`."""
SETTINGS_FILE = "settings.json"
RESULT_FILE = "result.json"

_SHARED = ("data.path", "run.out", "run.seed")
_COLOURS = (GREY, BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
_DASHES = ("-", "--", ":")


class Table(NamedTuple):
    """Text in rows, for the terminal and for Markdown."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


@dataclass(frozen=True)
class Spread:
    """Numbers of several seeds in short."""

    mean: float
    sd: float | None
    """Standard deviation of the sample; None for one seed."""
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one number."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % t interval of the mean; None for one seed."""
        if self.sd is None:
            return None
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.n - 1)) * self.sd / math.sqrt(self.n)
        return self.mean - reach, self.mean + reach


@dataclass(frozen=True)
class ArmSummary:
    """The finished runs of one arm. AP is in [0, 1], of the averaged weights on the validation images."""

    name: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    last_ap: Spread
    last_ap50: Spread
    best_ap: Spread
    """Of each run's best epoch, which was picked on the same images."""
    best_ap50: Spread
    seconds_per_epoch: float
    """Median over the seeds of each run's median; validation included."""
    gpu_memory_mib: float | None
    """Largest of the seeds: tensors on the GPU."""
    host_memory_mib: float | None
    """Largest of the seeds: resident memory of the process; None where that cannot be measured."""
    distill_weight: float | None
    """λ in the last epoch, mean over the seeds; None without distillation."""
    share: float | None
    """AIFI's share of the gradient in percent, mean over epochs and seeds."""


@dataclass(frozen=True)
class Difference:
    """What an arm has more than the reference, seed by seed."""

    arm: str
    reference: str
    metric: str
    """A key of `METRICS`."""
    by_seed: Mapping[int, float]
    """Of the seeds that both have finished; at least one."""

    @property
    def spread(self) -> Spread:
        """Of the seeds."""
        return Spread.of(list(self.by_seed.values()))

    @property
    def conclusion(self) -> str:
        """What may be said of it."""
        interval = self.spread.interval
        if interval is None:
            return "one seed: no interval"
        if interval[0] <= 0 <= interval[1]:
            return "no difference that these seeds could show"
        return f"{'higher' if interval[0] > 0 else 'lower'} than {self.reference}"


@dataclass(frozen=True)
class Comparison:
    """All finished runs in a folder."""

    out: Path
    """Holds compare.md, compare.json, compare.png and a folder for each run."""
    arms: tuple[ArmSummary, ...]
    """The first is the reference."""
    differences: tuple[Difference, ...]
    """Of every other arm, for each of `METRICS`."""
    unfinished: tuple[str, ...]
    """Folders of runs that began and have no result, because they were stopped, diverged or are still under way."""

    @property
    def tables(self) -> tuple[Table, ...]:
        """The arms, and how they differ from the first."""
        arms = _arms_table(self.arms)
        return (arms, _differences_table(self.differences)) if self.differences else (arms,)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in compare.json."""
        differences = [
            {
                "arm": each.arm,
                "reference": each.reference,
                "metric": each.metric,
                "by_seed": {str(seed): value for seed, value in each.by_seed.items()},
                **asdict(each.spread),
                "interval": each.spread.interval,
                "conclusion": each.conclusion,
            }
            for each in self.differences
        ]
        return {
            "reference": self.arms[0].name,
            "confidence": CONFIDENCE,
            "arms": [asdict(arm) for arm in self.arms],
            "differences": differences,
            "unfinished": list(self.unfinished),
        }


def compare(
    data: str | Path | None = None,
    model: str | Path | Recipe | None = None,
    *,
    arms: Iterable[str] | Mapping[str, Mapping[str, Any]] = DEFAULT_ARMS,
    seeds: int | Sequence[int] = 3,
    teacher: str | Network | None = None,
    weights: str | Path | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    imgsz: int | str | tuple[int, int] | None = None,
    lr: float | None = None,
    device: str | None = None,
    workers: int | None = None,
    amp: str | None = None,
    out: str | Path = "runs/compare",
    overrides: Mapping[str, Any] | None = None,
) -> Comparison:
    """Train every arm with every seed, and compare the arms with the first one.

    Called again, it leaves finished runs alone and goes on with one that was stopped. Several processes may share
    `out` if no two have a seed in common.

    Args:
        data: as for `Detector.train`; with a validation part.
        model: as for `Detector`.
        arms: what differs: keys of `ARMS`, or "name:setting=value,setting=value"; or a mapping from names to settings.
        seeds: how many, from 0 on; or which. They decide on fresh weights, the order of the data and all noise.
        teacher: of the arms that distil, unless they name their own.
        weights: what every run starts from.
        epochs: as for `Detector.train`, like what follows.
        batch: images per optimizer step.
        imgsz: image size.
        lr: learning rate.
        device: of all runs.
        workers: processes that load images.
        amp: mixed precision.
        out: folder for everything.
        overrides: other settings of all runs, by dotted name.

    Raises:
        ConfigError: a setting is wrong, or `out` holds runs with other settings.
        DatasetError: the data cannot be used, or has nothing to evaluate on.
        WeightsError: weights cannot be loaded.
        KeyboardInterrupt: Ctrl-C; the same call goes on from there.
    """
    out, changes = Path(out), _parse_arms(arms)
    network = None if isinstance(teacher, str) else teacher
    given = {
        "data": None if data is None else str(data),
        "teacher": teacher if network is None else teacher_name(network),
        "epochs": epochs,
        "batch": batch,
        "imgsz": imgsz,
        "lr": lr,
        "device": device,
        "workers": workers,
        "amp": amp,
    }
    base = override(Detector(model, weights, device="cpu").recipe, {**given, **(overrides or {})})
    if base.run.accumulate == "auto":
        raise ConfigError(
            "batch: got auto, expected a number: what fits depends on the arm and on what else runs, and arms must not "
            "differ in it. Give run.accumulate a number."
        )
    if isinstance(model, str | Path) and Path(model).suffix in WEIGHTS_SUFFIXES:
        weights = model
    recipes = {name: _recipe_of_arm(base, name, settings) for name, settings in changes.items()}
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if not numbers or min(numbers) < 0:
        raise ConfigError(f"seeds: got {seeds}, expected how many, at least 1, or a list of them, each at least 0.")
    runs = {
        (name, seed): override(recipe, {"run.seed": seed, "run.out": str(out / f"{name}-seed{seed}")})
        for seed in numbers  # arm after arm, so that a comparison that is stopped has whole pairs
        for name, recipe in recipes.items()
    }
    common = {
        "weights": None if weights is None else str(weights),
        "data": _fingerprints(base),
        "recipe": base.model_dump(mode="json"),
    }
    _check_folder(out, runs.values(), base, common)
    waiting = {run: recipe for run, recipe in runs.items() if not Path(recipe.run.out, RESULT_FILE).is_file()}
    _check_teachers(waiting.values(), network)
    out.mkdir(parents=True, exist_ok=True)
    known = _settings(out).get("arms", {})
    _write(out / SETTINGS_FILE, json.dumps({"arms": {**known, **changes}, **common}, indent=2, default=str) + "\n")
    logger.info("%d runs in %s: %d are done, %d to go.", len(runs), out, len(runs) - len(waiting), len(waiting))
    for number, ((name, seed), recipe) in enumerate(waiting.items(), start=1):
        logger.info("Run %d of %d: %s with seed %d", number, len(waiting), name, seed)
        try:
            result = _train(recipe, weights, network)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Stopped in {recipe.run.out}; the same command goes on from there.") from None
        except NonFiniteError as error:  # which is an answer about this arm, and none about the others
            logger.error("%s with seed %d gave up and is left out: %s", name, seed, error)
            continue
        record = {"arm": name, "seed": seed, "settings": changes[name], **result}
        _write(Path(recipe.run.out, RESULT_FILE), json.dumps(record, indent=2, default=str) + "\n")
    return read_comparison(out)


def read_comparison(out: str | Path, arms: Sequence[str] | None = None) -> Comparison:
    """Compare the finished runs in a folder, and write compare.md, compare.json and compare.png there.

    Args:
        out: of `compare`.
        arms: which, and in which order; the first is the reference. None takes all, in the order they were asked for.

    Raises:
        ConfigError: there is no finished run, or none of an arm.
    """
    out = Path(out)
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in _settings(out).get("arms", {})}
    for file in sorted(out.glob(f"*/{RESULT_FILE}")):
        result = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(result["arm"], {})[result["seed"]] = {**result, "folder": file.parent}
    results = {name: dict(sorted(by_seed.items())) for name, by_seed in found.items() if by_seed}
    if not results:
        raise ConfigError(f"There is nothing to compare: {out} holds no finished run.")
    if arms is not None:
        for name in arms:
            if name not in results:
                known = ", ".join(results)
                raise ConfigError(
                    f'{out} holds no finished run of an arm "{name}".{did_you_mean(name, results)} There are: {known}.'
                )
        results = {name: results[name] for name in arms}

    reference, *others = results
    differences = []
    for name in others:
        common = [seed for seed in results[name] if seed in results[reference]]
        for metric in METRICS if common else ():
            by_seed = {seed: results[name][seed][metric] - results[reference][seed][metric] for seed in common}
            differences.append(Difference(name, reference, metric, by_seed))
    unfinished = [
        file.parent.name for file in sorted(out.glob("*/recipe.yaml")) if not file.with_name(RESULT_FILE).is_file()
    ]
    comparison = Comparison(
        out,
        tuple(_summary(name, by_seed) for name, by_seed in results.items()),
        tuple(differences),
        tuple(unfinished),
    )
    _write(out / "compare.json", json.dumps(comparison.as_dict(), indent=2, ensure_ascii=False) + "\n")
    _write(out / "compare.md", _markdown(comparison))
    _draw(comparison, results, out / "compare.png")
    return comparison


# ---- before training ------------------------------------------------------------------------------------------------


def _parse_arms(arms: Iterable[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    pairs = list(arms.items()) if isinstance(arms, Mapping) else [_parse_arm(text) for text in arms]
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"Each arm needs a name of its own, but {', '.join(sorted(twice))} was given twice.")
    if not names:
        raise ConfigError("There is no arm to train, such as off or gam.")
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(f'Arm "{name}": expected letters, digits, "_", "-" and ".", for it names folders.')
    return dict(pairs)


def _parse_arm(text: str) -> tuple[str, Mapping[str, Any]]:
    """`"off"`, or `"strong:distillation.weight=20,distillation.mode=fixed"`."""
    name, colon, settings = text.strip().partition(":")
    if colon:
        assignments = re.split(r",(?=\s*[\w.]+\s*=)", settings)  # not at the commas of a list
        return name.strip(), dict(parse_assignment(assignment) for assignment in assignments)
    if name not in ARMS:
        raise ConfigError(
            f'There is no arm "{name}".{did_you_mean(name, ARMS)} Known: {", ".join(ARMS)}; any other is written '
            "NAME:SETTING=VALUE,SETTING=VALUE."
        )
    return name, ARMS[name]


def _recipe_of_arm(base: Recipe, name: str, settings: Mapping[str, Any]) -> Recipe:
    try:
        recipe = override(base, settings)
    except ConfigError as error:
        raise ConfigError(f'Arm "{name}": {error}') from error
    if shared := [setting for setting in changed_settings(base, recipe) if setting in _SHARED]:
        raise ConfigError(f'Arm "{name}" cannot change {", ".join(shared)}, which all arms share.')
    distils = any(setting.startswith("distillation") for setting in settings) and recipe.distillation.mode != "off"
    if distils and recipe.distillation.teacher is None:
        raise ConfigError(f'Arm "{name}" needs a teacher, and the recipe has none. Name one: teacher=… or --teacher.')
    return recipe


def _mismatch(before: Recipe, now: Recipe) -> str:
    changed, free = changed_settings(before, now), (*FREE_ON_RESUME, "run.seed")
    return "; ".join(f"{name} was {old}, now {new}" for name, (old, new) in changed.items() if name not in free)


def _check_folder(out: Path, recipes: Iterable[Recipe], base: Recipe, common: Mapping[str, Any]) -> None:
    """Refuse a folder whose runs were made otherwise, and one whose runs had something else in common."""

    def refuse(folder: Path, changed: str) -> None:
        if changed:
            raise ConfigError(
                f"{folder} was made with other settings: {changed}. Take another folder with --out, or delete this one."
            )

    for recipe in recipes:
        record = Path(recipe.run.out, "recipe.yaml")
        if record.is_file():
            refuse(record.parent, _mismatch(load_recipe(record), recipe))
    before = _settings(out)
    if before and any(out.glob("*/recipe.yaml")):
        refuse(out, _mismatch(from_yaml(json.dumps(before["recipe"])), base))
        if before["weights"] != common["weights"]:
            refuse(out, f"weights was {before['weights']}, now {common['weights']}")
        for part, fingerprint in common["data"].items():
            if before["data"][part] != fingerprint:
                refuse(out, f"the {part} images or boxes have changed")


def _fingerprints(base: Recipe) -> dict[str, str]:
    """Of the data, after seeing that it has what a comparison needs."""
    if base.data.path is None:
        raise ConfigError("There is no data to compare on. Give a folder: --data datasets/mine.")
    splits = read_splits(base.data.path)
    for part, source in (("training", splits.train), ("validation", splits.val)):
        if source is None:
            raise DatasetError(f"{base.data.path} has no {part} part; comparisons train and validate.")
    assert splits.train is not None
    assert splits.val is not None
    if not any((~record.is_crowd).any() for record in splits.val.records):
        raise DatasetError(f"The validation part of {base.data.path} has no boxes, so there is no AP to compare.")
    return {"train": splits.train.fingerprint, "val": splits.val.fingerprint}


def _settings(out: Path) -> dict[str, Any]:
    file = out / SETTINGS_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _check_teachers(recipes: Iterable[Recipe], network: Network | None) -> None:
    """Load each teacher once: a wrong name is told now, not after the first arm has been trained without."""
    named = {
        (teaching.teacher, teaching.teacher_weights, teaching.teacher_block): teaching
        for recipe in recipes
        if (teaching := recipe.distillation).mode != "off" and not _learns_from(recipe, network)
    }
    for teaching in named.values():
        build_teacher(teaching, torch.device("cpu"))


def _learns_from(recipe: Recipe, network: Network | None) -> bool:
    """Whether the teacher of an arm is the one that was given as an object."""
    return network is not None and recipe.distillation.is_on and recipe.distillation.teacher == teacher_name(network)


# ---- one run --------------------------------------------------------------------------------------------------------


def _train(recipe: Recipe, weights: str | Path | None, network: Network | None) -> dict[str, Any]:
    """Train, or go on; returns what `result.json` says of the run."""
    folder = Path(recipe.run.out)
    resume = (folder / "last.pt").is_file()
    now: dict[str, Any] = {}
    if resume:  # elsewhere, perhaps: only what may differ does
        changed = changed_settings(load_recipe(folder / "recipe.yaml"), recipe)
        now = {name: new for name, (_, new) in changed.items()}
    host_is_measured = _reset_peak_memory()
    Detector(recipe, weights, device="cpu").train(
        teacher=network if _learns_from(recipe, network) else None, resume=resume, overrides=now
    )
    return _outcome(folder) | _peak_memory(host_is_measured)


def _outcome(folder: Path) -> dict[str, Any]:
    epochs = _epochs(folder)
    last, best = epochs[-1], [record for record in epochs if record["is_best"]][-1]
    distilled = [record for record in epochs if record["modulation"] is not None]
    return {
        "last_epoch": last["epoch"],
        "last_ap": last["metrics"]["ap"],
        "last_ap50": last["metrics"]["ap50"],
        "best_epoch": best["epoch"],
        "best_ap": best["metrics"]["ap"],
        "best_ap50": best["metrics"]["ap50"],
        "seconds_per_epoch": statistics.median(record["seconds"] for record in epochs),
        "distill_weight": distilled[-1]["distill_weight"] if distilled else None,
        "share": statistics.fmean(record["modulation"]["share"] for record in distilled) if distilled else None,
    }


def _epochs(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_log(folder / "log.jsonl") if record["type"] == "epoch"]


def _reset_peak_memory() -> bool:
    """Begin to measure anew; tells whether that works for the memory of the host."""
    gc.collect()
    for index in range(torch.cuda.device_count()):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(index)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the peak of resident memory
    except OSError:
        return False
    return True


def _peak_memory(host_is_measured: bool) -> dict[str, float | None]:
    gpu = max((torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count())), default=0)
    host = None
    if host_is_measured:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        kibibytes = re.search(r"^VmHWM:\s*(\d+) kB", status, flags=re.MULTILINE)
        host = int(kibibytes[1]) / 1024 if kibibytes else None
    return {"gpu_memory_mib": gpu / 2**20 if gpu else None, "host_memory_mib": host}


def _write(path: Path, text: str) -> None:
    """At once, and safe from another process that writes the same file."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


# ---- tables ---------------------------------------------------------------------------------------------------------


def _summary(name: str, by_seed: Mapping[int, Mapping[str, Any]]) -> ArmSummary:
    results = list(by_seed.values())

    def over_seeds(key: str, reduce: Callable[[list[float]], float]) -> float | None:
        values = [result[key] for result in results if result[key] is not None]
        return reduce(values) if values else None

    return ArmSummary(
        name,
        results[0]["settings"],
        tuple(by_seed),
        **{metric: Spread.of([result[metric] for result in results]) for metric in METRICS},
        seconds_per_epoch=statistics.median(result["seconds_per_epoch"] for result in results),
        gpu_memory_mib=over_seeds("gpu_memory_mib", max),
        host_memory_mib=over_seeds("host_memory_mib", max),
        distill_weight=over_seeds("distill_weight", statistics.fmean),
        share=over_seeds("share", statistics.fmean),
    )


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
        "the last epoch: the best one was picked on these images, which flatters every arm, and most the one with the "
        "most restless curve. Seconds are medians, validation included; memory is the largest of any seed."
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
        "Points of AP in percent: the arm minus the reference with the same seed, mean ± standard deviation, and the t "
        "interval of the mean. Each interval stands alone: the more arms and metrics are compared, the more likely it "
        "is that one of them excludes 0 by chance. Seeds vary the training, not the choice of images."
    )
    return Table(f"Difference to {reference}, in pairs", header, tuple(rows), note)


def _percent(spread: Spread, sign: str = "") -> str:
    deviation = "" if spread.sd is None else f" ± {100 * spread.sd:.2f}"
    return f"{100 * spread.mean:{sign}.2f}{deviation}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _markdown(comparison: Comparison) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    parts = []
    for table in comparison.tables:
        align = ["---", *("---:" for _ in table.header[1:])]
        parts += [f"## {table.title}", "\n".join(map(line, (table.header, align, *table.rows))), table.note]
    settings = [
        f"- {arm.name}: {', '.join(f'`{name}: {value}`' for name, value in arm.settings.items()) or 'as the recipe'}"
        for arm in comparison.arms
    ]
    parts += ["## Settings of the arms", "\n".join(settings)]
    if comparison.unfinished:
        parts.append(f"Without a result, and left out: {', '.join(comparison.unfinished)}.")
    parts.append("![AP by epoch, and differences by seed](compare.png)")
    return "\n\n".join(parts) + "\n"


# ---- picture --------------------------------------------------------------------------------------------------------

Curve = Mapping[int, float]
"""A value by epoch."""


def _draw(comparison: Comparison, results: Mapping[str, Mapping[int, Mapping[str, Any]]], path: Path) -> None:
    logs = {name: [_epochs(result["folder"]) for result in by_seed.values()] for name, by_seed in results.items()}
    shares = _curves(logs, lambda record: record["modulation"] and record["modulation"]["share"])
    has_distillation = any(any(curves) for curves in shares.values())
    figure = Figure(figsize=(11, 7.5 if has_distillation else 4.2), dpi=120, layout="constrained")
    panels = list(figure.subplots(2 if has_distillation else 1, 2, squeeze=False).flat)
    over_seeds = "thin: a seed; thick: mean; band: ± s.d."

    def ap_of(record: Mapping[str, Any]) -> float | None:
        ap = record["metrics"].get("ap")
        return None if ap is None else 100 * ap

    _draw_curves(panels[0], _curves(logs, ap_of), f"AP of the averaged weights, %\n{over_seeds}")
    panels[0].set_ylim(bottom=0)
    if panels[0].lines:
        panels[0].legend(loc="lower right", frameon=False, fontsize="small")
    _draw_differences(panels[1], comparison)
    by_epoch = panels[:1]
    if has_distillation:
        weights = _curves(logs, lambda record: record["distill_weight"])
        _draw_curves(panels[2], weights, "weight λ of distillation")
        values = [value for curves in weights.values() for curve in curves for value in curve.values() if value > 0]
        if values and max(values) > 20 * min(values):
            panels[2].set_yscale("log")
            panels[2].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            panels[2].set_ylim(bottom=0)
        _draw_curves(panels[3], shares, "AIFI's share of the gradient, %")
        panels[3].set_ylim(bottom=0)
        by_epoch += panels[2:]
    for axes in by_epoch:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    for axes in panels:
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def _curves(
    logs: Mapping[str, Sequence[Sequence[dict[str, Any]]]], value_of: Callable[[dict[str, Any]], float | None]
) -> dict[str, list[Curve]]:
    """Of each arm, one for each seed."""
    return {
        name: [
            {record["epoch"]: value for record in records if (value := value_of(record)) is not None}
            for records in by_seed
        ]
        for name, by_seed in logs.items()
    }


def _style(index: int) -> dict[str, Any]:
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": _DASHES[index // len(_COLOURS) % len(_DASHES)]}


def _draw_curves(axes: Axes, arms: Mapping[str, Sequence[Curve]], title: str) -> None:
    axes.set_title(title, loc="left", fontsize="medium")
    for index, (name, curves) in enumerate(arms.items()):
        style = _style(index)
        common = sorted(set.intersection(*(set(curve) for curve in curves)))
        if not common:
            continue
        spreads = [Spread.of([curve[epoch] for curve in curves]) for epoch in common]
        means = [spread.mean for spread in spreads]
        if len(curves) > 1:
            for curve in curves:
                axes.plot(list(curve), list(curve.values()), linewidth=0.7, alpha=0.5, **style)
            reach = [spread.sd or 0.0 for spread in spreads]
            low = [mean - sd for mean, sd in zip(means, reach, strict=True)]
            high = [mean + sd for mean, sd in zip(means, reach, strict=True)]
            axes.fill_between(common, low, high, color=style["color"], alpha=0.15, linewidth=0)
        marker = "." if len(common) < 25 else None
        axes.plot(common, means, linewidth=2, marker=marker, label=f"{name} ({len(curves)})", **style)


def _draw_differences(axes: Axes, comparison: Comparison) -> None:
    reference = comparison.arms[0].name
    legend = f"dots: a seed; bar: mean with its {CONFIDENCE:.0%} interval"
    axes.set_title(f"AP of the last epoch minus that of {reference}, points\n{legend}", loc="left", fontsize="medium")
    axes.axhline(0, color=GREY, linewidth=1.2)
    shown = {each.arm: each for each in comparison.differences if each.metric == "last_ap"}
    for place, (index, arm) in enumerate(
        (index, arm) for index, arm in enumerate(comparison.arms) if arm.name in shown
    ):
        difference, colour = shown[arm.name], _style(index)["color"]
        values = [100 * value for value in difference.by_seed.values()]
        spread = difference.spread
        middle = (len(values) - 1) / 2
        beside = [place - 0.18 + 0.06 * (number - middle) / max(middle, 1) for number in range(len(values))]
        axes.plot(beside, values, "o", color=colour, markersize=5, alpha=0.7, linestyle="none")
        axes.plot([place - 0.08, place + 0.28], [100 * spread.mean] * 2, color=colour, linewidth=2.5)
        if spread.interval is not None:
            low, high = (100 * end for end in spread.interval)
            axes.vlines(place + 0.1, low, high, color=colour, linewidth=1.5)
    if shown:
        axes.set_xticks(range(len(shown)), list(shown))
        axes.set_xlim(-0.6, len(shown) - 0.4)
    else:
        axes.set_xticks([])
        axes.text(0.5, 0.6, "nothing to compare with yet", color=GREY, ha="center", transform=axes.transAxes)
