"""When does a teacher help? Arms × labels × budgets, five seeds each, on data sets that two CPU cores can learn.

    python benchmarks/study/study.py pretrain --data ../shared/data --out runs/study
    python benchmarks/study/study.py compare --data ../shared/data --out runs/study --cells bccd-10
    python benchmarks/study/study.py probe --data ../shared/data --own runs/large/weights.safetensors
    python benchmarks/study/study.py page

`--data` holds one folder per data set: bccd, aquarium, facemask. `pretrain` makes the weights that arms such as
`before`, `both` and `random` start from, one file per teacher and seed, from the training images of all three sets
without their labels. `compare` runs the cells one after the other and copies the results of each run to
benchmarks/results/study/CELL/; `probe` asks what each teacher knows of the boxes; `page` writes the tables of
docs/research/study.md from these. All of it resumes, on another machine too: a run whose
results are there is not repeated. Several processes may work in one folder if they share no seed (`--seeds 0,2` and
`--seeds 1,3,4`).

Expected: 10 minutes per pretraining and 2 to 10 per run, on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
from picture import draw

import rtdetrv4
from rtdetrv4 import Detector
from rtdetrv4.comparison.summary import read_comparison
from rtdetrv4.distillation import Teacher, load_teacher, wrap_teacher
from rtdetrv4.ops.networks import load_pip_weights

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "study"
PAGE = HERE.parents[1] / "docs" / "research" / "study.md"
SETS = {"bccd": 292, "aquarium": 448, "facemask": 677}
"""Data sets and their numbers of training images."""
PRETRAINED_AS = {"fast": "scratch"}
"""Students that begin with weights made for another one, from which they differ in training with labels only."""
SEEDS = (0, 1, 2, 3, 4)
LOG = "log.jsonl"
PRETRAINING_EPOCHS, PRETRAINING_BATCH = 8, 16
TEACHER = "efficientnet_lite2"
RANDOM_TEACHER = "tf_efficientnet_lite2"
"""The same network, which timm builds with random weights."""
EARLY_STAGE = 3
"""Of five, with half the stride of the last."""
LOW_F1 = 0.3
"""At which the pseudo-labels of `pseudo-low` may begin, in place of 0.5."""
PROBE = RESULTS / "probe.json"
PROBE_SIZE = 128
HEADER = ("arm", "seeds", "AP", "AP50", "AP − off, in pairs", "95 % interval", "s / epoch")


class Cell(NamedTuple):
    """A comparison: a data set, a share of its labels, a student and a budget."""

    data: str
    fraction: float
    student: str
    """scratch, fast, imagenet or dfine: the recipe beside this file."""
    steps: int
    arms: tuple[str, ...]
    size: int = 128
    """Pixels of a side."""


ALL = (
    "off",
    "train",
    "before",
    "both",
    "unlabeled",
    "pseudo",
    "pseudo-low",
    "random",
    "longer",
    "lite0",
    "early",
    "own",
)
MAIN = ("off", "train", "before", "both", "unlabeled")
CELLS = {
    "bccd-10": Cell("bccd", 0.1, "scratch", 600, ALL),
    "bccd-30": Cell("bccd", 0.3, "scratch", 600, MAIN),
    "bccd-100": Cell("bccd", 1.0, "scratch", 600, ALL[:9]),
    "facemask-100": Cell("facemask", 1.0, "scratch", 600, MAIN, 192),
    "bccd-10-fast": Cell("bccd", 0.1, "fast", 600, ("off", "before", "random", "longer")),
    "bccd-100-fast": Cell("bccd", 1.0, "fast", 600, ("off", "before", "random", "longer")),
    "facemask-100-2000-fast": Cell("facemask", 1.0, "fast", 2000, ("off", "before", "random", "longer"), 160),
    "bccd-10-dfine": Cell("bccd", 0.1, "dfine", 600, ("off", "before", "random", "longer")),
    "bccd-10-imagenet": Cell("bccd", 0.1, "imagenet", 600, MAIN),
    "bccd-100-imagenet": Cell("bccd", 1.0, "imagenet", 600, MAIN),
    "facemask-10-imagenet": Cell("facemask", 0.1, "imagenet", 600, ALL[:9], 160),
    "facemask-10-2000": Cell("facemask", 0.1, "scratch", 2000, ("off", "before", "random", "longer"), 160),
    "facemask-100-2000": Cell("facemask", 1.0, "scratch", 2000, ("off", "before", "random", "longer"), 160),
    "bccd-10-2000": Cell("bccd", 0.1, "scratch", 2000, ("off", "before", "pseudo")),
    "bccd-100-2000": Cell("bccd", 1.0, "scratch", 2000, ("off", "before")),
    "aquarium-100-imagenet": Cell("aquarium", 1.0, "imagenet", 2000, ("off", "before"), 192),
}


def folder_of_pretraining(out: Path, student: str, teacher: str, seed: int | str) -> Path:
    """Where the weights for a student, a teacher of `TEACHERS` and a seed are made."""
    return out / "pretrain" / f"{student}-{teacher}-{seed}"


def lite0() -> Teacher:
    """The smaller network of the same family, with ImageNet weights from pip."""
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True, out_indices=(4,))
    load_pip_weights(network, "efficientnet_lite0")
    half = (0.5, 0.5, 0.5)
    return wrap_teacher(network.eval(), name="efficientnet_lite0", mean=half, std=half, license="apache-2.0")


TEACHERS: Mapping[str, Callable[[str], Teacher | str]] = {
    "taught": lambda _: TEACHER,
    "random": lambda _: load_teacher(RANDOM_TEACHER, pretrained=False),
    "lite0": lambda _: lite0(),
    "early": lambda _: load_teacher(TEACHER, block=EARLY_STAGE),
    "own": lambda own: own,
}
"""What the student learns from before it sees a label; `own` is a file of a larger detector's weights."""


def pretrain(data: Path, out: Path, student: str, teacher: str, seed: int, own: str, device: str) -> None:
    """Make the weights of one seed, unless they are there."""
    folder = folder_of_pretraining(out, student, teacher, seed)
    if (folder / "weights.safetensors").is_file() and (folder / "report.html").is_file():
        return
    recipe = HERE / f"{student}.yaml"
    Detector(str(recipe), "imagenet" if student == "imagenet" else "none", device=device).pretrain(
        [data / name for name in SETS],
        teacher=TEACHERS[teacher](own),
        epochs=PRETRAINING_EPOCHS,
        batch=PRETRAINING_BATCH,
        seed=seed,
        out=folder,
        resume=(folder / "last.pt").is_file(),
        exist_ok=True,
        overrides={"distillation.mode": "fixed", "run.accumulate": 1, "data.workers": 0},
    )


def arms_of(cell: Cell, data: Path, out: Path) -> dict[str, dict[str, Any]]:
    """The settings of each of a cell's arms."""
    fixed = {"distillation.mode": "fixed"}
    others = [str(data / name) for name in SETS]
    student = PRETRAINED_AS.get(cell.student, cell.student)
    starts = {
        teacher: {"weights": str(folder_of_pretraining(out, student, teacher, "{seed}") / "weights.safetensors")}
        for teacher in TEACHERS
    }
    before = starts.pop("taught")
    extra = PRETRAINING_EPOCHS * (sum(SETS.values()) // PRETRAINING_BATCH)
    pseudo = {"data.unlabeled": [str(data / cell.data)], "pseudo_labels.weight": 1.0}
    settings: Mapping[str, dict[str, Any]] = {
        "off": {},
        "train": fixed,
        "before": before,
        "both": before | fixed,
        "unlabeled": fixed | {"data.unlabeled": others},
        "pseudo": pseudo,
        "pseudo-low": pseudo | {"pseudo_labels.least_f1": LOW_F1},
        "longer": schedule(cell, cell.steps + extra),
        **starts,
    }
    return {name: dict(settings[name]) for name in cell.arms}


def schedule(cell: Cell, steps: int) -> dict[str, int]:
    """Epochs for about so many steps: flat for half of them, then a cosine."""
    per_epoch = max(math.floor(SETS[cell.data] * cell.fraction) // 4, 1)
    epochs = max(round(steps / per_epoch), 1)
    return {
        "schedule.epochs": epochs,
        "schedule.basic_epochs": epochs,
        "schedule.mosaic_until": epochs,
        "schedule.refine_from": epochs,
        "schedule.flat_epoch": epochs // 2,
        "schedule.no_aug_epochs": max(epochs // 20, 1),
        "run.eval_every": max(epochs // 3, 1),
    }


def compare(name: str, data: Path, out: Path, seeds: list[int], only: list[str] | None, device: str) -> None:
    """Run what is missing of a cell, seed by seed."""
    cell = CELLS[name]
    arms = arms_of(cell, data, out)
    restore(RESULTS / name, out / name)
    for seed in seeds:
        comparison = rtdetrv4.compare(
            data / cell.data,
            HERE / f"{cell.student}.yaml",
            arms={arm: arms[arm] for arm in arms if only is None or arm in only},
            seeds=[seed],
            imgsz=cell.size,
            out=out / name,
            overrides={
                **({} if cell.fraction == 1 else {"data.fraction": cell.fraction}),
                "schedule.lr_gamma": 0.05,
                "run.device": device,
                **schedule(cell, cell.steps),
            },
        )
        keep(comparison.out, RESULTS / name, data)


def keep(folder: Path, results: Path, data: Path) -> None:
    """Copy what tells of the finished runs: their results and, of their logs, the plan and the evaluated epochs."""
    for result in sorted(folder.glob("*/result.json")):
        to = results / result.parent.name
        to.mkdir(parents=True, exist_ok=True)
        text = result.read_text(encoding="utf-8").replace(str(folder.parent), "runs/study")
        text = text.replace(str(data), "datasets")
        (to / result.name).write_text(text, encoding="utf-8")
        lines = (result.parent / LOG).read_text(encoding="utf-8").splitlines(keepends=True)
        evaluated = (
            line for line in lines if '"type": "run"' in line or ('"type": "epoch"' in line and '"ap":' in line)
        )
        (to / LOG).write_text("".join(evaluated).replace(str(folder.parent), "runs/study"), encoding="utf-8")


def restore(results: Path, folder: Path) -> None:
    """Put the results that are kept where `compare` looks for them, so that it does not repeat the runs."""
    for result in sorted(results.glob("*/result.json")):
        to = folder / result.parent.name
        if not (to / result.name).is_file():
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy(result.parent / LOG, to)
            shutil.copy(result, to)


def probe(data: Path, own: str) -> None:
    """Ask how well each teacher separates the boxes of the smallest set."""
    teachers = [TEACHER, f"random:{RANDOM_TEACHER}", lite0(), f"{TEACHER}@{EARLY_STAGE}", own]
    found = rtdetrv4.probe_teachers(data / "bccd", teachers, imgsz=PROBE_SIZE)
    print(found)
    PROBE.write_text(found.to_json().replace(own, "own").replace(str(data), "datasets") + "\n", encoding="utf-8")


def write_page() -> None:
    """Put each cell's table between `<!-- CELL -->` and `<!-- end -->`, and draw them all."""
    page, drawn = PAGE.read_text(encoding="utf-8"), dict[str, dict[str, Any]]()
    for name in CELLS:
        begin, folder = f"<!-- {name} -->\n", RESULTS / name
        if begin in page:
            with tempfile.TemporaryDirectory() as copy:
                restore(folder, Path(copy))
                read_comparison(copy, [arm for arm in ALL if list(folder.glob(f"{arm}-seed*"))])
                result = json.loads(Path(copy, "compare.json").read_text(encoding="utf-8"))
            off = next(arm for arm in result["arms"] if arm["name"] == "off")
            drawn[f"{title(CELLS[name])} (off: {100 * off['last_ap']['mean']:.1f})"] = result
            table = _table(result)
            page = re.sub(f"(?s){re.escape(begin)}.*?<!-- end -->", lambda _, t=begin + table: f"{t}<!-- end -->", page)
    PAGE.write_text(page, encoding="utf-8")
    draw(drawn, PAGE.with_suffix(".png"))


def title(cell: Cell) -> str:
    """A cell in words."""
    photos = math.floor(SETS[cell.data] * cell.fraction)
    students = {
        "scratch": "random weights",
        "fast": "random weights, backbone at five times the rate",
        "imagenet": "an ImageNet backbone",
        "dfine": "random weights, D-FINE",
    }
    return f"{cell.data}, {photos} photos with labels, {cell.steps} steps from {students[cell.student]}"


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
        f"{arm['seconds_per_epoch']:.0f}",
    )


def _spread(spread: dict[str, Any], form: str) -> str:
    deviation = "" if spread["sd"] is None else f" ± {100 * spread['sd']:.1f}"
    return f"{100 * spread['mean']:{form}}{deviation}"


def main() -> None:
    """Read the command line, and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pretrain", "compare", "probe", "page"))
    parser.add_argument("--data", type=Path, help="folder with one folder per data set")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--cells", default=",".join(CELLS), help="which comparisons, in this order")
    parser.add_argument("--arms", help="only these of the arms")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--students", default="scratch", help="for pretrain: scratch, imagenet, dfine")
    parser.add_argument("--teachers", default="taught", help=f"for pretrain: {', '.join(TEACHERS)}")
    parser.add_argument("--own", default="", help="weights of a larger detector, the teacher `own`")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, …; in float32 in any case")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if options.what == "page":
        write_page()
        return
    if options.data is None:
        parser.error("--data: which folder holds the data sets?")
    data, out = options.data.resolve(), options.out.resolve()
    if options.what == "pretrain":
        for student in options.students.split(","):
            for teacher in options.teachers.split(","):
                for seed in seeds:
                    pretrain(data, out, student, teacher, seed, options.own, options.device)
    elif options.what == "probe":
        probe(data, options.own)
    else:
        for name in options.cells.split(","):
            arms = options.arms.split(",") if options.arms else None
            compare(name, data, out, seeds, arms, options.device)


if __name__ == "__main__":
    main()
