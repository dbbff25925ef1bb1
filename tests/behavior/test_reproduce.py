"""The reproduction kit: rows are valid, data is checked, runs resume, and the comparison's arithmetic is right."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coco
import needs
import pytest
import reproduce
import results
import rf100vl
import rows
import runs
import tiny
from rows import ROWS, Row, recipe_of, run_name, settings_of

from rtdetrv4.config import VARIANTS, changed_settings, flat_settings, given_settings, load_recipe
from rtdetrv4.data.formats import read_splits
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.detector import TrainResult
from rtdetrv4.distillation import PIP_TEACHER
from rtdetrv4.errors import ConfigError
from rtdetrv4.training import Trainer
from rtdetrv4.training.observers import read_log
from rtdetrv4.weights.catalog import HUB_FILES

SMALL = Row(name="small", what="the smallest model", model="test", settings={"distillation.teacher": PIP_TEACHER})
SMALL_RF = Row(name="rf-small", what="the smallest model", model="test", data="rf100vl")


@pytest.fixture
def small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows more, with the smallest model and images."""
    monkeypatch.setattr(rows, "TINY", {**rows.TINY, "model.image_size": (64, 64), "data.workers": 0})
    monkeypatch.setattr(tiny, "COCO_PARTS", {"train": coco.Part(8), "val": coco.Part(4)})
    more = {**ROWS, SMALL.name: SMALL, SMALL_RF.name: SMALL_RF}
    for module in (rows, results, reproduce):
        monkeypatch.setattr(module, "ROWS", more)


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_rows_are_valid_recipes() -> None:
    shipped = {row.model: load_recipe(row.model) for row in ROWS.values()}
    for row in ROWS.values():
        recipe, small = recipe_of(row), recipe_of(row, tiny=True, seed=3)
        assert recipe.model.name == small.model.name == row.model
        assert (small.model.image_size, small.run.seed) == ((96, 96), 3)
        assert recipe.distillation.is_on == small.distillation.is_on == row.distills
        if row.data == "coco":
            wanted = {**rows.AS_PUBLISHED, **row.settings}
            before = flat_settings(shipped[row.model])
            changed = changed_settings(shipped[row.model], recipe)
            assert {name: new for name, (_, new) in changed.items()} == {
                name: value for name, value in wanted.items() if value != before[name]
            }
        assert row.baseline is None or ROWS[row.baseline].data == row.data
    assert not any(ROWS[f"deim-{size}"].distills for size in rows.SIZES)


def test_published_numbers_are_those_of_the_catalogs() -> None:
    numbered = [row for row in ROWS.values() if row.published is not None]
    assert all(row.source for row in numbered)
    for row in numbered:
        if row.data == "coco":
            of_files = [file.ap for file in HUB_FILES.get(row.model, {}).get("coco", ())]
            assert row.published in (VARIANTS[row.model].coco_ap, *of_files), row.name
    assert [ROWS[size].published for size in rows.SIZES] == [49.7, 53.5, 55.4, 57.0]


def test_a_teacher_takes_the_place_of_the_rows() -> None:
    assert settings_of(ROWS["s"], teacher="dinov2-b")["distillation.teacher"] == "dinov2-b"
    assert settings_of(ROWS["s"], tiny=True)["distillation.teacher"] == PIP_TEACHER
    assert settings_of(ROWS["s"], tiny=True, teacher="dinov2-b")["distillation.teacher"] == "dinov2-b"
    with pytest.raises(ConfigError, match="Row deim-s trains without a teacher"):
        settings_of(ROWS["deim-s"], teacher="dinov2-b")
    assert run_name(ROWS["s"], "dinov2-b") == "s@dinov2-b"
    assert run_name(ROWS["s"], "runs/big/weights.safetensors") == "s@big-weights"


def test_downloads_come_with_their_licenses() -> None:
    backbone, teacher = needs.downloads(ROWS["s"])
    assert (backbone.source, backbone.license) == ("timm's hgnetv2_b0.ssld_stage1_in22k_in1k", "apache-2.0")
    assert (teacher.license, "not an open-source license" in teacher.note) == ("dinov3-license", True)
    assert needs.downloads(ROWS["s"], "dinov2-b")[1].license == "apache-2.0"
    (weights,) = needs.downloads(ROWS["rf-dfine-s"])
    assert weights.source == "ustc-community/dfine-small-obj2coco/model.safetensors"


# ---- data -----------------------------------------------------------------------------------------------------------


def bad(folder: Path, **given: Any) -> list[str]:
    parts = {"parts": tiny.COCO_PARTS, "classes": None} | given
    return [finding.text for finding in coco.check(folder, **parts) if not finding.is_good]


def test_complete_data_passes(tmp_path: Path) -> None:
    assert bad(tiny.write_tiny_coco(tmp_path / "coco")) == []


def test_what_is_wrong_with_the_data_is_found(tmp_path: Path) -> None:
    folder = tiny.write_tiny_coco(tmp_path / "coco")
    image = folder / "val2017" / "shapes_00002.jpg"
    image.write_bytes(image.read_bytes()[:200])
    (folder / "train2017" / "more.jpg").touch()
    (folder / "val2017.zip").touch()
    found = bad(folder)
    assert found[0] == "val2017.zip: bytes: 0, expected 815585330"
    assert found[1] == "train2017: image files: 17, expected 16"
    assert found[2].startswith("val2017: 7 of 8 sampled images can be read; ")
    assert len(found) == 3
    counted = bad(folder, parts={"val": coco.Part(8, 1000)}, classes=coco.COCO)
    assert re.fullmatch(r"val2017: annotations: \d+, expected 1000", counted[1])
    assert counted[-1] == "the 80 classes and their ids"
    assert bad(folder, md5=True)[1] == (
        "val2017.zip: MD5 d41d8cd98f00b204e9800998ecf8427e, expected 442b8da7639aecaf257c1dceb8ba8c80"
    )
    shutil.rmtree(folder / "val2017")
    with pytest.raises(ConfigError, match=r"not laid out as COCO: val2017, a folder of images, is missing"):
        bad(folder)


def test_data_sets_are_found_with_their_domains(tmp_path: Path) -> None:
    for place in ("b", "Sea/a", "train"):
        (tmp_path / place / "train").mkdir(parents=True)
        (tmp_path / place / "train" / "_annotations.coco.json").touch()
    sets = rf100vl.find_sets(tmp_path, {"train": "Lab"})
    assert [(each.name, each.domain) for each in sets] == [("a", "Sea"), ("b", None), ("train", "Lab")]
    with pytest.raises(ConfigError, match="holds no data set"):
        rf100vl.find_sets(tmp_path / "b" / "train")


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run deim-xx", 'There is no row "deim-xx". Did you mean "deim-x"? `list` shows all of them.'),
        ("run s", "Missing option --coco: the folder of COCO 2017."),
        ("run rf-s", "Missing option --rf100vl: the folder of the data sets."),
        ("run s --set schedule.epochs=3", "--set schedule.epochs: a row is trained with the settings it has."),
        ("run rf-s --tiny --share 5/4", '--share: got "5/4", expected I/N such as 2/4'),
        ("compare", "There is nothing to compare"),
    ],
)
def test_mistakes_are_one_line(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reproduce.main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_the_list_fits_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert reproduce.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : len(ROWS) + 1]] == list(ROWS)  # a line for each


# ---- runs -----------------------------------------------------------------------------------------------------------


def command(words: str, out: Path) -> int:
    return reproduce.main([*words.split(), "--tiny", "--out", str(out)])


def test_a_dry_run_is_stopped_and_resumed(
    small_rows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_epoch = Trainer._train_epoch

    def stop_in_third_epoch(trainer: Trainer) -> None:
        if trainer.position.epoch == 2:
            raise KeyboardInterrupt
        train_epoch(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", stop_in_third_epoch)
        assert command("run small", tmp_path) == 130
    folder = tmp_path / "small" / "seed0"
    assert f"interrupted. Stopped in {folder}; the same command resumes." in capsys.readouterr().err
    assert not (folder / "result.json").exists()

    assert command("run small", tmp_path) == 0
    log = read_log(folder / "log.jsonl")
    assert [record["epoch"] for record in log if record["type"] == "run"] == [0, 2]
    stages = [record["stage"] for record in log if record["type"] == "epoch"]
    assert stages == ["basic", "dense", "augmented", "refinement"]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert (result["row"], result["seed"], result["tiny"], result["epochs"]) == ("small", 0, True, 4)
    assert result["teacher"] == PIP_TEACHER
    measured = json.loads((folder / "val" / "metrics.json").read_text(encoding="utf-8"))
    assert result["ap"] == pytest.approx(measured["ap"])
    assert (folder / "report.html").is_file()

    last = (folder / "last.pt").stat()
    assert command("run small", tmp_path) == 0  # nothing is left to do
    assert (folder / "last.pt").stat() == last
    assert command("compare", tmp_path) == 0
    assert "The numbers mean nothing" in (tmp_path / "compare.md").read_text(encoding="utf-8")


def test_a_row_starts_from_the_weights_of_the_released_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Stub:
        def __init__(self, model: str, start: str) -> None:
            seen.append((model, start))

        def train(self, data: Path, *, resume: bool, overrides: dict[str, Any], **given: Any) -> TrainResult:
            seen.append((resume, overrides))
            return TrainResult(tmp_path, tmp_path, tmp_path, tmp_path, None, ("the report failed",))

    monkeypatch.setattr(runs, "Detector", Stub)
    monkeypatch.setattr(runs, "fetch_timm_weights", lambda name, setting: Path("cache", name))
    folder = tmp_path / "s" / "seed1"

    def run() -> dict[str, Any]:
        with pytest.raises(ConfigError, match=r"seed1 has no result: the report failed\. The same"):
            runs.run_coco(ROWS["s"], tmp_path, tmp_path, seed=1, changes={"data.workers": 7})
        assert seen[-2] == ("rtdetrv4-s", "imagenet")
        return dict([seen[-1]])

    first = {"schedule.scaling": "published", "run.patience": None, "run.seed": 1, "run.out": str(folder)}
    first |= {"data.workers": 7}
    weights = {"model.pretrained_backbone": str(Path("cache", "hgnetv2_b0.ssld_stage1_in22k_in1k"))}
    assert run() == {False: {**first, **weights, "run.accumulate": "auto"}}
    folder.mkdir(parents=True)
    (folder / "last.pt").touch()
    assert run() == {True: first}


def test_a_data_set_that_fails_does_not_stop_the_others(
    small_rows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tiny, "RF100VL_SETS", {"Lab": ("a",), "Sea": ("b",)})
    monkeypatch.setattr(tiny, "NUM_EACH", 4)
    folder = tiny.write_tiny_rf100vl(tmp_path / "rf100vl")
    annotations = folder / "Lab" / "a" / "train" / "_annotations.coco.json"
    intact = annotations.read_text(encoding="utf-8")
    annotations.write_text("{", encoding="utf-8")
    assert command("run rf-small", tmp_path) == 1
    assert "failed: a: " in capsys.readouterr().err
    done = tmp_path / "rf-small" / "seed0" / "b"
    result = json.loads((done / "result.json").read_text(encoding="utf-8"))
    assert (result["set"], result["domain"], result["part"]) == ("b", "Sea", "test")
    assert json.loads((done / "test" / "metrics.json").read_text(encoding="utf-8"))["num_images"] == 4
    assert command("compare", tmp_path) == 2  # no row is finished
    assert "1 of 2 data sets" in capsys.readouterr().err

    annotations.write_text(intact, encoding="utf-8")
    written = (done / "result.json").stat()
    assert command("run rf-small --share 1/2", tmp_path) == 0  # a is the first of two
    assert (done / "result.json").stat() == written
    comparison = results.read_results(tmp_path)
    assert [(each.run, each.by_seed[0].sets) for each in comparison.rows] == [("rf-small", 2)]


def test_the_plan_measures_steps_and_fetches_nothing(
    small_rows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **given: object) -> None:
        raise AssertionError("something was fetched")

    for module in ("distillation.teacher", "models.backbone"):
        monkeypatch.setattr(f"rtdetrv4.{module}.fetch_timm_weights", refuse)
    splits = read_splits(write_shapes(tmp_path, 4, 2, 64))
    recipe = recipe_of(SMALL, tiny=True, teacher="vit_tiny_patch16_224")
    cost = needs.cost_on_coco(recipe, splits, (100, 10), 2)
    assert (cost.num_gpus, cost.images, cost.steps) == (2, 2, 4 * 25)  # of batches of 4
    assert cost.seconds == cost.pace.duration(4, 25, 1)
    assert cost.pace.step > 0
    assert cost.memory > 2 * cost.bytes_per_image > 0
    with pytest.raises(ConfigError, match=r"3 GPUs cannot share the batch of test, 4 images, equally; use one of 1, 2"):
        needs.cost_on_coco(recipe, splits, (100, 10), 3)


def test_the_plan_adds_up_all_data_sets(small_rows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "RF100VL_SETS", {"Lab": ("a", "b")})
    sets = rf100vl.find_sets(tiny.write_tiny_rf100vl(tmp_path))
    settled = given_settings(settings_of(SMALL_RF, tiny=True))
    cost = needs.cost_on_rf100vl(recipe_of(SMALL_RF, tiny=True), settled, "none", sets)
    assert cost.steps == len(sets) * 2 * (tiny.NUM_EACH // 2)  # two epochs in batches of two
    # As many validation as training images: every other epoch is evaluated.
    assert cost.seconds == pytest.approx(len(sets) * cost.pace.duration(2, tiny.NUM_EACH // 2, 2))


# ---- comparison -----------------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    """Writes results as `run` does."""

    def write_result(run: str, seed: int, ap: float, last: float | None = None, **more: Any) -> None:
        folder = tmp_path / run / f"seed{seed}" / more.get("set", "")
        folder.mkdir(parents=True, exist_ok=True)
        record = {"row": run.partition("@")[0], "ap": ap, "last_ap": last, "hours": 2.0, "tiny": False, **more}
        (folder / "result.json").write_text(json.dumps(record), encoding="utf-8")

    return write_result


def test_differences_and_gains_by_hand(write: Callable[..., None], tmp_path: Path) -> None:
    for seed, (ap, last) in enumerate([(0.490, 0.488), (0.500, 0.492)]):
        write("s", seed, ap, last)
    for seed, ap in enumerate([0.480, 0.4855, 0.530]):
        write("deim-s", seed, ap, ap)
    write("s@dinov2-b", 0, 0.484, 0.484)
    write("s-fixed@dinov2-b", 0, 0.470, 0.470)
    comparison, tables = results.write_results(tmp_path)
    ours = {each.run: each for each in comparison.rows}
    assert list(ours) == ["s", "s@dinov2-b", "deim-s", "s-fixed@dinov2-b"]
    assert ours["s"].difference == pytest.approx(49.5 - 49.7)
    assert ours["deim-s"].difference == pytest.approx((48.0 + 48.55 + 53.0) / 3 - 49.0)
    assert ours["s-fixed@dinov2-b"].difference is None  # no number is published
    # Only the seeds that both have: 49.0 − 48.0 and 50.0 − 48.55.
    gains = {(each.arm, each.reference): each for each in comparison.gains}
    assert list(gains) == [("s", "deim-s"), ("s@dinov2-b", "deim-s"), ("s-fixed@dinov2-b", "s@dinov2-b")]
    assert gains["s", "deim-s"].spread.mean == pytest.approx(0.01225)
    assert results.published_gain(gains["s", "deim-s"]) == pytest.approx(0.7)
    assert gains["s-fixed@dinov2-b", "s@dinov2-b"].spread.mean == pytest.approx(-0.014)
    assert tables[0].rows[0] == ("s", "49.5 ± 0.7", "49.0 ± 0.3", "49.7", "-0.2", "2", "")
    # t of 97.5 % with one degree of freedom is 12.706; sd / √2 = 0.225.
    assert tables[1].rows[0] == ("s", "deim-s", "+1.2 ± 0.3", "-1.6 to +4.1", "+0.7", "2")
    written = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    assert (written["dry_run"], written["rows"][0]["published"]) == (False, 49.7)
    assert written["rows"][0]["source"] == rows.ABSTRACT
    assert "| s | 49.5 ± 0.7 | 49.0 ± 0.3 | 49.7 | -0.2 | 2 |  |" in (tmp_path / "compare.md").read_text("utf-8")


def test_means_over_data_sets_and_domains_by_hand(write: Callable[..., None], tmp_path: Path) -> None:
    names = [f"set{number}" for number in range(100)]
    for number, name in enumerate(names[:99]):
        domain = "Sea" if number < 20 else "Lab"
        write("rf-dfine-s", 0, 0.50 if domain == "Sea" else 0.60, set=name, domain=domain)
    (tmp_path / "rf-dfine-s" / "seed0" / "sets.json").write_text(json.dumps(dict.fromkeys(names)), encoding="utf-8")
    write("s", 0, 0.4, 0.4)
    (unfinished,) = results.read_results(tmp_path).unfinished
    mean = (20 * 50 + 79 * 60) / 99
    assert unfinished.endswith(f"99 of 100 data sets, mean AP so far {mean:.1f}")
    write("rf-dfine-s", 0, 0.60, set=names[99], domain=None)
    finished = results.read_results(tmp_path).rows[-1]
    assert finished.ap.mean == pytest.approx(0.58)
    assert finished.difference == pytest.approx(58.0 - 60.3)
    assert finished.by_seed[0].domains == pytest.approx({"Lab": 0.60, "Sea": 0.50})


def test_other_data_sets_are_not_compared_with_the_benchmark(write: Callable[..., None], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write("rf-dfine-s", 0, 0.5, set=name, domain=None)
    (tmp_path / "rf-dfine-s" / "seed0" / "sets.json").write_text('{"a": null, "b": null}', encoding="utf-8")
    (row,) = results.read_results(tmp_path).rows
    assert math.isclose(row.ap.mean, 0.5)
    assert row.difference is None


def test_a_damaged_result_is_named(write: Callable[..., None], tmp_path: Path) -> None:
    write("s", 0, 0.5, 0.5)
    (tmp_path / "s" / "seed0" / "result.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"seed0/result\.json is damaged .* delete it, and `run` writes it again"):
        results.read_results(tmp_path)
