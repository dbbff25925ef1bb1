"""`compare`: arms are paired, runs are kept and resumed, and the table says what follows from the numbers."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import rtdetrv4
from rtdetrv4 import ConfigError, DatasetError, NonFiniteError, WeightsError
from rtdetrv4.cli import main
from rtdetrv4.comparison import ARMS, Comparison, compare, read_comparison
from rtdetrv4.comparison.starts import RunStart, start_of
from rtdetrv4.config import load_recipe, override, to_yaml
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.distillation import Teacher
from rtdetrv4.training import Trainer
from rtdetrv4.training.checkpoint import load_checkpoint
from rtdetrv4.training.observers import read_log
from small_training import assert_same

PAIRS = (("off-seed0", "fixed-seed0"), ("off-seed1", "fixed-seed1"))


def small_teacher() -> Teacher:
    torch.manual_seed(7)
    return Teacher(torch.nn.Conv2d(3, 6, 32, 32), name="tiny", dim=6, stride=32, license="none")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=4, image_size=64)


def compare_two(shapes: Path, out: Path, **given: Any) -> Comparison:
    given = {"arms": ["off", "fixed"], "seeds": 2, "teacher": small_teacher(), "epochs": 2, "out": out} | given
    return compare(shapes, "test", **given)


class Runs:
    """A comparison of two arms and two seeds that was stopped in its second run, and went on."""

    def __init__(self, shapes: Path, out: Path, drawn: Callable[..., AbstractContextManager[None]]) -> None:
        self.out = out
        train_epoch = Trainer._train_epoch

        def stop_in_second_epoch(trainer: Trainer) -> None:
            if trainer.out.name == "fixed-seed0" and trainer.position.epoch == 1:
                raise KeyboardInterrupt
            train_epoch(trainer)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_train_epoch", stop_in_second_epoch)
            with pytest.raises(KeyboardInterrupt) as stop:
                compare_two(shapes, out)
        self.message = str(stop.value)
        self.had_results = sorted(file.parent.name for file in out.glob("*/result.json"))
        self.finished = (out / "off-seed0" / "last.pt").stat().st_mtime_ns
        with drawn("compare.png"):
            self.comparison = compare_two(shapes, out)


@pytest.fixture(scope="module")
def runs(
    shapes: Path, tmp_path_factory: pytest.TempPathFactory, drawn: Callable[..., AbstractContextManager[None]]
) -> Runs:
    return Runs(shapes, tmp_path_factory.mktemp("compare"), drawn)


def first_losses(folder: Path) -> dict[str, float]:
    """Of the detector, before anything was learned."""
    step = next(record for record in read_log(folder / "log.jsonl") if record["type"] == "step")
    return {name: value for name, value in step["losses"].items() if name not in ("loss", "distill")}


def test_arms_of_a_seed_share_weights_images_and_noise(runs: Runs) -> None:
    for off, fixed in PAIRS:
        assert first_losses(runs.out / off) == pytest.approx(first_losses(runs.out / fixed), rel=1e-5)
        states = [load_checkpoint(runs.out / name / "last.pt") for name in (off, fixed)]
        assert_same(states[0]["rng"], states[1]["rng"])  # after two epochs: as many numbers were drawn
        weight = "detector.hybrid_encoder.aifi.linear1.weight"
        assert not torch.equal(states[0]["student"][weight], states[1]["student"][weight])
    assert first_losses(runs.out / "off-seed0") != pytest.approx(first_losses(runs.out / "off-seed1"), rel=1e-2)


def test_a_stopped_comparison_goes_on(runs: Runs) -> None:
    assert runs.message == f"Stopped in {runs.out / 'fixed-seed0'}; the same command resumes."
    assert runs.had_results == ["off-seed0"]
    last = runs.out / "off-seed0" / "last.pt"
    assert last.stat().st_mtime_ns == runs.finished, "a finished run was trained again"
    log = read_log(runs.out / "fixed-seed0" / "log.jsonl")
    assert [record["epoch"] for record in log if record["type"] == "run"] == [0, 1]
    assert [record["epoch"] for record in log if record["type"] == "epoch"] == [1, 2]


def test_runs_are_ordinary_runs_with_a_result(runs: Runs) -> None:
    for name in (name for pair in PAIRS for name in pair):
        files = {path.name for path in (runs.out / name).iterdir()}
        assert files >= {"recipe.yaml", "log.jsonl", "last.pt", "weights.safetensors", "result.json"}
        assert "patience: null" in (runs.out / name / "recipe.yaml").read_text()  # arms have the same length
        result = json.loads((runs.out / name / "result.json").read_text())
        last = [record for record in read_log(runs.out / name / "log.jsonl") if record["type"] == "epoch"][-1]
        assert (result["last_epoch"], result["last_ap"]) == (2, last["metrics"]["ap"])
        assert result["best_ap"] >= result["last_ap"]
        assert result["seconds_per_epoch"] > 0
        assert (result["distill_weight"], result["share"] is None) == ((None, True) if "off" in name else (5.0, False))
    recipe = rtdetrv4.load_recipe(runs.out / "fixed-seed1" / "recipe.yaml")
    assert (recipe.distillation.teacher, recipe.distillation.mode, recipe.run.seed) == ("tiny", "fixed", 1)


def test_the_results_of_all_runs_are_together(runs: Runs) -> None:
    comparison = runs.comparison
    assert [(arm.name, arm.seeds) for arm in comparison.arms] == [("off", (0, 1)), ("fixed", (0, 1))]
    assert {difference.metric for difference in comparison.differences} == {
        "last_ap",
        "last_ap50",
        "best_ap",
        "best_ap50",
    }
    assert comparison.unfinished == ()
    assert json.loads((runs.out / "compare.json").read_text()) == json.loads(json.dumps(comparison.to_dict()))
    assert (runs.out / "compare.png").stat().st_size > 10_000, "it is drawn"
    assert "## Paired difference from off, 2 seeds" in (runs.out / "compare.md").read_text()
    page = (runs.out / "report.html").read_text(encoding="utf-8")
    assert all(f'href="{name}/report.html"' in page for pair in PAIRS for name in pair)


def test_other_settings_are_refused_and_named(
    runs: Runs, shapes: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(ConfigError, match=r"other settings: .*schedule\.epochs was 2, now 3.*--out"):
        compare_two(shapes, runs.out, epochs=3)
    with pytest.raises(ConfigError, match=r"fixed-seed0 was made with other settings: distillation\.weight was 5\.0"):
        compare_two(shapes, runs.out, arms={"fixed": {"distillation.mode": "fixed", "distillation.weight": 7.0}})
    with pytest.raises(ConfigError, match=r"weights was None, now .*weights\.safetensors"):
        compare_two(shapes, runs.out, weights=runs.out / "off-seed0" / "weights.safetensors")
    with pytest.raises(ConfigError, match="other settings: schedule"):  # a new arm under another budget
        compare_two(shapes, runs.out, arms=["gam"], epochs=1)
    other = write_shapes(tmp_path_factory.mktemp("other"), num_train=8, num_val=4, image_size=64, seed=1)
    with pytest.raises(ConfigError, match="the train images or boxes have changed"):
        compare_two(other, runs.out)
    moved = shutil.copytree(shapes, tmp_path / "moved")
    assert compare_two(moved, runs.out).arms == runs.comparison.arms  # the same data elsewhere are the same data


# ---- the order of runs ----------------------------------------------------------------------------------------------


OUTCOME = {
    "last_epoch": 1,
    "last_ap": 0.4,
    "last_ap50": 0.6,
    "best_epoch": 1,
    "best_ap": 0.5,
    "best_ap50": 0.7,
    "seconds_per_epoch": 2.0,
    "distill_weight": None,
    "share": None,
    "gpu_memory_mib": None,
    "host_memory_mib": None,
}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that would have been trained, one after the other; the arm `wild` diverges."""
    names: list[str] = []

    def train(recipe: Any, start: Any, teacher: Any) -> dict[str, Any]:
        folder = Path(recipe.run.out)
        names.append(folder.name)
        folder.mkdir()
        (folder / "recipe.yaml").write_text(to_yaml(recipe))
        if folder.name.startswith("wild"):
            raise NonFiniteError("loss is not finite")
        return OUTCOME

    monkeypatch.setattr("rtdetrv4.comparison.runs._train", train)
    return names


def test_on_the_command_line(
    shapes: Path,
    tmp_path: Path,
    trained: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    arm = "still:augment.flip=0,augment.mosaic_scale=[0.9,1.1]"
    args = ["--data", str(shapes), "--model", "test", "--epochs", "1", "--out", str(tmp_path), "--set", "run.amp=off"]
    assert main(["compare", "--arms", "off", "--arm", arm, "--seed-list", "4", *args]) == 0
    assert trained == ["off-seed4", "still-seed4"]
    out, err = capsys.readouterr()
    assert "Paired difference from off, 1 seed\n" in out
    assert "one seed: no interval" in out
    assert "Run 2 of 2: still with seed 4\n" in err
    recipe = rtdetrv4.load_recipe(tmp_path / "still-seed4" / "recipe.yaml")
    assert (recipe.augment.flip, recipe.augment.mosaic_scale, recipe.run.seed) == (0.0, (0.9, 1.1), 4)
    assert main(["compare", "--report", "--arms", "still,off", "--out", str(tmp_path)]) == 0
    assert "Paired difference from still" in capsys.readouterr().out
    assert json.loads((tmp_path / "compare.json").read_text())["reference"] == "still"


def test_every_arm_of_a_seed_comes_before_the_next_seed(shapes: Path, tmp_path: Path, trained: list[str]) -> None:
    compare_two(shapes, tmp_path, seeds=[3, 0])
    assert trained == ["off-seed3", "fixed-seed3", "off-seed0", "fixed-seed0"]


def test_an_arm_that_diverges_does_not_stop_the_others(
    shapes: Path, tmp_path: Path, trained: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    comparison = compare_two(shapes, tmp_path, arms=["wild:lr=1", "off"], seeds=1)
    assert trained == ["wild-seed0", "off-seed0"]
    assert "wild with seed 0 gave up" in caplog.text
    assert comparison.unfinished == ("wild-seed0",)
    assert [arm.name for arm in comparison.arms] == ["off"]
    assert "left out: wild-seed0" in (tmp_path / "compare.md").read_text()


def test_mistakes_are_told_before_anything_is_trained(shapes: Path, tmp_path: Path, trained: list[str]) -> None:
    def mistake(message: str, error: type[Exception] = ConfigError, **given: Any) -> None:
        with pytest.raises(error, match=message):
            compare_two(given.pop("data", shapes), tmp_path / "out", **given)

    mistake(r"batch: got auto, expected a number", overrides={"batch": "auto"})
    mistake('no arm "fixde".*"fixed"', arms=["fixde"])
    mistake('"static" is now called "fixed".*static:distillation.mode=fixed', arms=["static"])
    mistake("off was given twice", arms=["off", "off:lr=1"])
    mistake("not only in case, but Off, off was given twice", arms=["off", "Off:lr=1"])
    mistake("no arm to train", arms=[])
    mistake("letters, digits", arms=["a/b:lr=1"])
    mistake('Arm "x": "learning" is not a setting', arms=["x:learning=1"])
    mistake(r'Arm "x" cannot change run\.seed', arms=["x:seed=1"])
    mistake('Arm "fixed" needs a teacher', teacher="none")
    mistake("vit_base_patch16_dinov3", teacher="vit_base_patch16_dinov4")
    mistake('Arm "more": nowhere does not exist', DatasetError, arms=["off", "more:data.unlabeled=nowhere,lr=1e-4"])
    mistake(
        'Arm "more": data.unlabeled: to learn from', arms=["off", f"more:distillation.mode=off,data.unlabeled={shapes}"]
    )
    mistake("seeds: got 0", seeds=0)
    mistake("seeds: got", seeds=[-1])
    no_boxes = shutil.copytree(shapes, tmp_path / "empty")
    file = no_boxes / "valid" / "_annotations.coco.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    mistake("no boxes", DatasetError, data=no_boxes)
    assert trained == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--data d --seed-list 0,x", '--seed-list: got "0,x", expected numbers such as 0,2,5.'),
        ("--data d --seeds 0", "--seeds"),
        ("--arms off", "Missing option --data"),
        ("--report --out nowhere", "nowhere holds no finished run"),
    ],
)
def test_mistakes_on_the_command_line(args: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *args.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# ---- the table ------------------------------------------------------------------------------------------------------


def fake_run(
    out: Path, arm: str, seed: int, ap: float, classes: dict[str, float | None] | None = None, **given: Any
) -> None:
    folder = out / f"{arm}-seed{seed}"
    folder.mkdir(parents=True)
    result = {**OUTCOME, "arm": arm, "seed": seed, "settings": {}, "last_ap": ap, "last_ap50": ap + 0.2, **given}
    (folder / "result.json").write_text(json.dumps(result))
    records = [
        {
            "type": "epoch",
            "epoch": epoch,
            "metrics": {"ap": ap * epoch / 3, "per_class": classes if epoch == 3 and classes else {}},
            "distill_weight": given.get("distill_weight"),
            "modulation": {"share": given["share"]} if "share" in given else None,
        }
        for epoch in (1, 2, 3)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_numbers_are_those_computed_by_hand(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"arms": {"off": {}, "static": {}, "gam": {}, "bad": {}}}))
    for seed, ap in enumerate((0.40, 0.42, 0.44)):
        fake_run(tmp_path, "off", seed, ap, seconds_per_epoch=(10, 30, 20)[seed], host_memory_mib=100 + seed)
    for seed, ap in enumerate((0.41, 0.45, 0.46)):
        fake_run(tmp_path, "static", seed, ap, distill_weight=5.0, share=2.0 + seed)
    for seed, ap in enumerate((0.45, 0.47, 0.50)):
        fake_run(tmp_path, "gam", seed, ap, distill_weight=2.0 * seed, share=1.0)
    for seed, ap in ((0, 0.30), (1, 0.321), (8, 0.9)):  # off has no run with seed 8
        fake_run(tmp_path, "bad", seed, ap)

    comparison = read_comparison(tmp_path)
    off, static, gam, bad = comparison.arms
    assert (off.last_ap.mean, off.last_ap.sd, off.last_ap.n) == pytest.approx((0.42, 0.02, 3))
    assert off.last_ap50.mean == pytest.approx(0.62)
    assert off.best_ap.mean == 0.5
    assert (off.seconds_per_epoch, off.host_memory_mib, off.share) == (20, 102, None)
    assert (static.distill_weight, static.share, gam.distill_weight) == (5.0, 3.0, 2.0)
    assert bad.seeds == (0, 1, 8)

    by_arm = {each.arm: each for each in comparison.differences if each.metric == "last_ap"}
    spread = by_arm["static"].spread
    assert (spread.mean, spread.sd, spread.n) == pytest.approx((0.02, 0.01, 3))
    # 0.02 ± 4.302653 · 0.01 / √3, with the 97.5 % point of Student's t with 2 degrees of freedom
    assert spread.interval == pytest.approx((-0.0048414, 0.0448414), abs=1e-6)
    assert by_arm["static"].conclusion == "no difference that these seeds could show"
    # Differences 0.05, 0.05, 0.06: mean 0.16 / 3, s.d. 0.01 / √3, half width 4.302653 · 0.01 / 3
    assert by_arm["gam"].spread.interval == pytest.approx((0.0389912, 0.0676755), abs=1e-6)
    assert by_arm["gam"].conclusion == "higher than off"
    # −0.1 and −0.099: s.d. 0.001 / √2, half width 12.706205 · 0.001 / 2
    assert by_arm["bad"].by_seed == pytest.approx({0: -0.1, 1: -0.099})
    assert by_arm["bad"].spread.interval == pytest.approx((-0.1058531, -0.0931469), abs=1e-6)
    assert by_arm["bad"].conclusion == "lower than off"

    arms, differences, costs = comparison.tables
    assert arms.header == ("arm", "seeds", "AP", "AP50", "best AP")
    assert arms.rows[0] == ("off", "3", "42.00 ± 2.00", "62.00 ± 2.00", "50.00 ± 0.00")
    assert costs.header == ("arm", "s/epoch", "memory, MiB", "last λ", "share, %")
    assert costs.rows[0] == ("off", "20", "102", "", "")
    assert costs.rows[1] == ("static", "2", "", "5", "3.00")
    assert differences.rows[0][:5] == ("static", "AP", "3", "+2.00 ± 1.00", "-0.48 to +4.48")
    assert [row[:3] for row in differences.rows[-2:]] == [("bad", "AP", "2"), ("bad", "AP50", "2")]
    written = json.loads((tmp_path / "compare.json").read_text())
    assert written["differences"][0]["interval"] == pytest.approx([-0.0048414, 0.0448414], abs=1e-6)
    assert written["differences"][0]["by_seed"] == pytest.approx({"0": 0.01, "1": 0.03, "2": 0.02})


def test_arms_that_learned_nothing_are_told_from_arms_that_do_not_differ(tmp_path: Path) -> None:
    for seed in range(3):
        fake_run(tmp_path, "off", seed, 0.0002 * seed, {"a": 0.0, "b": 0.0}, best_ap50=0.0099)
        fake_run(tmp_path, "gam", seed, 0.0, {"a": 0.0, "b": 0.0}, best_ap50=0.0)
        fake_run(tmp_path, "late", seed, 0.2 * seed, best_ap50=0.0101 if seed == 2 else 0.0)
    comparison = read_comparison(tmp_path, ["off", "gam", "late"])
    assert [arm.has_learned for arm in comparison.arms] == [False, False, True]
    conclusions = {(each.arm, each.conclusion) for each in comparison.differences + comparison.class_differences}
    assert conclusions == {("gam", "neither learned anything"), ("late", "only late learned anything")}
    (warning,) = comparison.warnings
    assert warning.startswith("off, gam learned nothing: AP50 stays below 1% in every run.")
    for file in ("compare.md", "compare.json", "report.html"):
        text = (tmp_path / file).read_text(encoding="utf-8")
        assert warning in text
        assert "neither learned anything" in text
        assert "no difference" not in text.replace("shows no difference", "")
    (difference, *_) = read_comparison(tmp_path, ["late", "off"]).differences
    assert difference.conclusion == "only late learned anything"


def test_few_seeds_are_warned_of(
    shapes: Path, tmp_path: Path, trained: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def warning_of(seeds: Any, arms: list[str]) -> str:
        caplog.clear()
        compare_two(shapes, tmp_path, seeds=seeds, arms=arms)
        return " ".join(record.getMessage() for record in caplog.records if "seed" in record.getMessage())

    assert "seed" not in warning_of(1, ["off"]).lower(), "with one arm, nothing is compared"
    one = warning_of(1, ["off", "fixed"])
    assert one.startswith("One seed: there is no interval")
    assert read_comparison(tmp_path).warnings == (one,)
    two = warning_of([4], ["off", "fixed"])
    # 12.706 / √2, 4.303 / √3 and 2.776 / √5
    assert two.startswith("Two seeds: the 95% interval of a difference reaches 9.0 standard deviations")
    assert two.endswith("With three seeds it reaches 2.5, with five 1.2.")
    assert read_comparison(tmp_path).warnings == (two,)
    assert two in (tmp_path / "compare.md").read_text()
    assert two in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert warning_of([7], ["off", "fixed"]) == "", "with those before, there are three"


def test_classes_are_compared_too(tmp_path: Path) -> None:
    for seed in (0, 1):
        fake_run(tmp_path, "off", seed, 0.4, {"cat": 0.5, "dog|wolf": 0.3 + 0.1 * seed, "[red]": None})
        fake_run(tmp_path, "gam", seed, 0.4, {"cat": 0.51 + 0.02 * seed, "dog|wolf": 0.5 + 0.1 * seed, "[red]": None})
    comparison = read_comparison(tmp_path, ["off", "gam"])
    assert {name: spread.mean for name, spread in comparison.arms[0].class_ap.items()} == pytest.approx(
        {"cat": 0.5, "dog|wolf": 0.35}
    )
    cat, dog = comparison.class_differences
    assert (cat.class_name, cat.metric, cat.by_seed) == ("cat", "last_ap", pytest.approx({0: 0.01, 1: 0.03}))
    assert cat.conclusion == "no difference that these seeds could show"
    table = comparison.tables[2]
    assert table.header == ("class", "off", "gam − off")
    assert [row[0] for row in table.rows] == ["dog|wolf", "cat"]  # the larger difference first
    assert table.rows[1][1:] == ("50.00 ± 0.00", "+2.00 ± 1.41")
    assert dog.spread.mean == pytest.approx(0.2)
    assert table.rows[0][2].startswith("+20.00 ± 0.00")
    assert "| dog\\|wolf | 35.00 ± 7.07 |" in (tmp_path / "compare.md").read_text()
    written = json.loads((tmp_path / "compare.json").read_text())["class_differences"]
    assert [each["class"] for each in written] == ["cat", "dog|wolf"]


def test_of_many_classes_those_that_differ_most_are_shown(tmp_path: Path) -> None:
    names = [f"c{index}" for index in range(25)]
    fake_run(tmp_path, "off", 0, 0.4, dict.fromkeys(names, 0.1))
    fake_run(tmp_path, "gam", 0, 0.4, {name: 0.1 + 0.01 * index for index, name in enumerate(names)})
    comparison = read_comparison(tmp_path, ["off", "gam"])
    assert [row[0] for row in comparison.tables[2].rows] == names[:4:-1]
    assert "5 more classes are in compare.json" in comparison.tables[2].note
    assert len(comparison.class_differences) == 25


def test_the_first_arm_named_is_the_reference(tmp_path: Path) -> None:
    fake_run(tmp_path, "off", 0, 0.4)
    fake_run(tmp_path, "gam", 0, 0.5, share=1.0, distill_weight=3.0)
    fake_run(tmp_path, "auto", 1, 0.5)
    (difference, *_) = read_comparison(tmp_path, ["gam", "off"]).differences
    assert (difference.reference, difference.arm, difference.spread.mean) == ("gam", "off", pytest.approx(-0.1))
    assert difference.spread.sd is difference.spread.interval is None
    assert read_comparison(tmp_path, ["off", "auto"]).differences == ()  # no seed in common
    with pytest.raises(ConfigError, match=r'no finished run of an arm "of".*"off".*There are: auto, gam, off'):
        read_comparison(tmp_path, ["of"])


@pytest.mark.parametrize(("pretrained", "start"), [(True, "imagenet"), (False, "none")])
def test_no_run_takes_the_next_best_start(pretrained: bool, start: str) -> None:
    recipe = override(load_recipe("test"), {"model.pretrained_backbone": pretrained})
    assert start_of(recipe, None, None, is_finished=False) == RunStart(start, is_own=False)
    assert start_of(recipe, "coco", None, is_finished=False) == RunStart("coco", is_own=False)


@pytest.fixture
def many_arms(tmp_path: Path) -> Comparison:
    """Of five arms with long names, and classes."""
    names = ["off", *(f"pretrained-before-{letter}" for letter in "abcd")]
    for seed in range(3):
        for number, name in enumerate(names):
            ap = 0.4 + 0.01 * number + 0.001 * seed * number
            extra: dict[str, Any] = {"host_memory_mib": 1234.0, "gpu_memory_mib": 5678.0, "share": 2.5}
            fake_run(tmp_path, name, seed, ap, {"[cat]": ap, "dog": ap}, distill_weight=5.0, **extra)
    return read_comparison(tmp_path, names)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_tables_fit_the_terminal(many_arms: Comparison, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = str(many_arms)
    lines = text.splitlines()
    assert max(len(line) for line in lines if str(many_arms.out) not in line) <= columns
    assert "…" not in text
    for table in many_arms.tables:
        for row in table.rows:
            numbers = [cell for cell, title in zip(row, table.header, strict=True) if title not in ("", "arm", "class")]
            missing = [cell for cell in numbers if not any(cell in line for line in lines)]
            assert not missing, "a number is cut or wrapped"
    if columns >= 80:
        (line,) = [line for line in lines if "pretrained-before-d   AP50" in line]
        assert "+4.40 ± 0.40   +3.41 to +5.39   higher than off" in line


def test_python_shows_what_the_command_prints(
    many_arms: Comparison, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["compare", "--report", "--out", str(many_arms.out), "--arms", "off,pretrained-before-a"]) == 0
    printed = capsys.readouterr().out
    comparison = read_comparison(many_arms.out, ["off", "pretrained-before-a"])
    comparison.show()
    assert capsys.readouterr().out == printed == f"{comparison}\n"
    shown = comparison._repr_markdown_()  # in a notebook
    assert shown in (many_arms.out / "compare.md").read_text()
    assert "| pretrained-before-a | AP | +1.10 ± 0.10 | +0.85 to +1.35 | higher than off |" in shown


def test_python_sees_the_progress_of_the_command(
    shapes: Path, tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    compare_two(shapes, tmp_path, seeds=1)
    lines = capsys.readouterr().err.splitlines()
    assert f"2 runs in {tmp_path}: 0 are done, 2 to go." in lines
    assert [line for line in lines if line.startswith("Run ")] == [
        "Run 1 of 2: off with seed 0",
        "Run 2 of 2: fixed with seed 0",
    ]
    assert trained == ["off-seed0", "fixed-seed0"]


# ---- arms with weights of their own ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pretrained backbones and encoders, pre-0 and pre-1."""
    folder = tmp_path_factory.mktemp("pretrained")
    for seed in (0, 1):
        rtdetrv4.Detector("test", "none", device="cpu").pretrain(
            shapes,
            teacher=small_teacher(),
            seed=seed,
            out=folder / f"pre-{seed}",
            imgsz=64,
            batch=4,
            workers=0,
            tracker="none",
            epochs=1,
            amp="off",
        )
    return folder


def test_an_arm_starts_from_weights_of_its_own(shapes: Path, pretrained: Path, tmp_path: Path) -> None:
    own = f"{pretrained}/pre-{{seed}}/weights.safetensors"
    given = {"arms": ["off", f"before:weights={own},distillation.mode=off"], "epochs": 1}
    comparison = compare_two(shapes, tmp_path, **given)
    for seed in (0, 1):
        file = pretrained / f"pre-{seed}" / "weights.safetensors"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        record = json.loads((tmp_path / f"before-seed{seed}" / "run.json").read_text())
        assert (record["start"]["kind"], record["start"]["sha256"]) == ("pretrained", digest)
        result = json.loads((tmp_path / f"before-seed{seed}" / "result.json").read_text())
        assert result["start"] == {"weights": str(file), "sha256": digest}
        assert result["settings"] == {"weights": own, "distillation.mode": "off"}
        assert f"seed {seed}: `{file}`, SHA-256 `{digest}`" in (tmp_path / "compare.md").read_text()
        assert f"{file} (SHA-256 {digest[:12]}…)" in (tmp_path / "report.html").read_text(encoding="utf-8")
        off, before = (load_recipe(tmp_path / f"{arm}-seed{seed}" / "recipe.yaml") for arm in ("off", "before"))
        assert off.optimizer == before.optimizer, "weights of its own change no learning rate"
        assert first_losses(tmp_path / f"off-seed{seed}") != first_losses(tmp_path / f"before-seed{seed}")
    assert json.loads((tmp_path / "settings.json").read_text())["arms"]["before"]["weights"] == own
    off, before = comparison.arms
    assert (off.starts, set(before.starts)) == ({}, {0, 1})

    compare_two(shapes, tmp_path, **given)  # all is as it was
    moved = shutil.copytree(pretrained, tmp_path / "moved")
    given["arms"] = {"off": ARMS["off"], "before": {"weights": moved / "pre-{seed}/weights.safetensors", **ARMS["off"]}}
    compare_two(shapes, tmp_path, **given)  # the same weights elsewhere are the same weights
    file = moved / "pre-1" / "weights.safetensors"
    shutil.copy(moved / "pre-0" / "weights.safetensors", file)
    with pytest.raises(ConfigError, match=rf"before-seed1 was made with other weights: .*pre-1.*, now {file}.*--out"):
        compare_two(shapes, tmp_path, **given)
    given["arms"] = {"off": ARMS["off"], "before": {"weights": "none", **ARMS["off"]}}
    with pytest.raises(ConfigError, match=r"before-seed0 was made with other weights: .*pre-0.*, now none\."):
        compare_two(shapes, tmp_path, **given)
    given["arms"] = {"off": {"weights": own, **ARMS["off"]}}
    with pytest.raises(ConfigError, match="off-seed0 was made with other weights: it started from none, now"):
        compare_two(shapes, tmp_path, **given)


def test_changed_and_lost_weights_of_runs(shapes: Path, runs: Runs, trained: list[str], tmp_path: Path) -> None:
    file = tmp_path / "start.safetensors"
    shutil.copy(runs.out / "off-seed0" / "weights.safetensors", file)
    given = {"arms": [f"tuned:weights={file},lr=1e-4"], "seeds": 1}
    compare_two(shapes, tmp_path / "out", **given)
    record = {"start": {"kind": "file", "source": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}}
    (tmp_path / "out" / "tuned-seed0" / "run.json").write_text(json.dumps(record))
    shutil.copy(runs.out / "off-seed1" / "weights.safetensors", file)
    with pytest.raises(ConfigError, match=rf"tuned-seed0 was made with other weights: what {file} holds has changed"):
        compare_two(shapes, tmp_path / "out", **given)
    file.unlink()  # a finished run does not need it any more
    assert compare_two(shapes, tmp_path / "out", **given).arms[0].starts[0]["weights"] == str(file)
    assert trained == ["tuned-seed0"]


def test_weights_are_checked_before_anything_is_trained(
    shapes: Path,
    pretrained: Path,
    tmp_path: Path,
    trained: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def mistake(message: str, own: Any, error: type[Exception] = ConfigError, **given: Any) -> None:
        with pytest.raises(error, match=message) as found:
            compare_two(shapes, tmp_path / "out", arms={"off": ARMS["off"], "x": {"weights": own}}, **given)
        assert "\n" not in str(found.value)

    own = f"{pretrained}/pre-{{seed}}/weights.safetensors"
    missing = rf'Arm "x", seed 2: There is no file {pretrained}/pre-2/weights\.safetensors'
    mistake(missing, own, WeightsError, seeds=[0, 2])
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"nothing")
    mistake('Arm "x", seed 0: .*damaged', damaged, WeightsError)
    mistake('Arm "x": weights: got 5, expected coco, .*or a file', 5)
    mistake('Arm "x", seed 0: weights: got "imagenet", but model.pretrained_backbone is false', "imagenet")
    other_backbone = r"another backbone: the model's own, and the arm has test_byobnet.*model\.backbone=null"
    mistake(other_backbone, own, overrides={"model.backbone": "test_byobnet"})
    other_model = 'Arm "x", seed 0: .* holds test, not rtdetrv4-s'
    mistake(other_model, own, WeightsError, overrides={"model.name": "rtdetrv4-s"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    s = {"model.name": "rtdetrv4-s", "model.pretrained_backbone": True}
    nowhere = 'Arm "x", seed 0: There are no coco weights of rtdetrv4-s in the cache, and none can be fetched'
    mistake(nowhere, "coco", WeightsError, overrides=s, weights="none")
    no_start = 'Arm "off", seed 0: The weights of hgnetv2_b0 .* cannot be fetched: .*Or compare from random weights'
    mistake(no_start, "none", WeightsError, overrides=s)
    assert trained == []

    file = f"{pretrained}/pre-0/weights.safetensors"
    with caplog.at_level("INFO"):
        compare_two(shapes, tmp_path / "out", arms=["off", f"x:weights={file}"])
    assert "All runs of x start from the same file" in caplog.text
