"""What a run says of itself, and how another call goes on with it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from accelerate import Accelerator

from lock_owner import owner_of
from rtdetrv4.cli.running import run_to_resume
from rtdetrv4.config import load_recipe, override, setting_names
from rtdetrv4.data.formats import Split, Splits
from rtdetrv4.data.records import Record
from rtdetrv4.errors import ConfigError, WeightsError
from rtdetrv4.run_folder import FREE_ON_RESUME, RunFolder, RunKind, fixed_changes, log_findings
from rtdetrv4.training import make_accelerator
from rtdetrv4.types import ClassMap, ImageInfo

RECIPE = override(load_recipe("test"), {"seed": 7, "lr": 2e-4})


NONE = np.zeros(0)
RECORD = Record(ImageInfo(1, "a.jpg", 8, 8), NONE.reshape(0, 4), NONE.astype(int), NONE.astype(bool), NONE)
TRAIN = Split(Path(), (RECORD,), ClassMap(("猫", "dog"), (3, 5)), "0" * 64, ("a.jpg: a box has no area",))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Of a run that wrote a checkpoint."""
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.write_record(RECIPE, Splits(TRAIN, None, None), {"kind": "none"})
    folder.last.touch()
    return folder


def test_a_record_says_what_a_run_is_made_of(folder: RunFolder) -> None:
    assert load_recipe(folder.recipe) == RECIPE
    record = json.loads(folder.record.read_text(encoding="utf-8"))
    assert record["seed"] == 7
    assert folder.recorded_start() == record["start"] == {"kind": "none"}
    assert record["classes"] == {"猫": 3, "dog": 5}
    assert record["data"] == {"train": {"images": 1, "fingerprint": "0" * 64, "problems": ["a.jpg: a box has no area"]}}
    assert set(record["versions"]) >= {"python", "torch", "rtdetrv4"}


def test_what_data_holds_is_told_before_its_problems(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "rtdetrv4")
    log_findings(Splits(TRAIN, TRAIN._replace(records=(RECORD,) * 2, problems=()), None, ("Data read as YOLO",)))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "Data read as YOLO"),
        ("INFO", "train 1 image, val 2 images; 2 classes: 猫, dog"),
        ("WARNING", "train: a.jpg: a box has no area"),
    ]


def test_a_record_names_the_validation_images_that_were_chosen(folder: RunFolder, tmp_path: Path) -> None:
    assert not folder.validation.exists()
    none = np.zeros(0)
    names = ("b.jpg", "gr\udcfc\udcdfe.jpg")  # the second is Latin-1 on the disk
    records = tuple(
        Record(ImageInfo(1, name, 8, 8), none.reshape(0, 4), none.astype(int), none.astype(bool), none)
        for name in names
    )
    part = Split(tmp_path, records, ClassMap(("a",), (1,)), "1" * 64, (f"{names[1]} is odd",))
    folder.write_record(RECIPE, Splits(part, part, None, ("Data read as YOLO", "2 images are taken"), is_val_made=True))
    record = json.loads(folder.record.read_text(encoding="utf-8"))
    assert record["data_notes"] == ["Data read as YOLO", "2 images are taken"]
    assert record["data"]["val"]["problems"] == [f"{names[1]} is odd"]
    assert folder.validation.read_text(encoding="utf-8", errors="surrogatepass").splitlines() == list(names)


def test_a_resumed_run_may_move_to_another_machine(folder: RunFolder) -> None:
    now = folder.resumed_recipe(load_recipe("test"), {"workers": 2, "data": "elsewhere", "run.log_every": 5})
    changes = {"workers": 2, "data": "elsewhere", "run.log_every": 5, "out": str(folder.path)}
    assert now == override(RECIPE, changes)


def test_a_resumed_run_keeps_what_decides_its_numbers(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"but schedule\.epochs was 4, now 9\. Leave them out to resume"):
        folder.resumed_recipe(RECIPE, {"epochs": 9})
    with pytest.raises(ConfigError, match="trains test, not rtdetrv4-n"):
        folder.resumed_recipe(load_recipe("rtdetrv4-n"), {})
    folder.last.unlink()
    folder.record.unlink()
    with pytest.raises(ConfigError, match=r"no run to resume: .*last\.pt does not exist"):
        folder.resumed_recipe(RECIPE, {})


@pytest.mark.parametrize("is_begun", [False, True])
@pytest.mark.parametrize("kind", ["training", "pretraining"])
def test_a_run_that_was_killed_before_its_first_checkpoint_cannot_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: RunKind, *, is_begun: bool
) -> None:
    folder = RunFolder.for_new_run(tmp_path / "run", make_accelerator("cpu"))  # leaves an empty recipe.yaml
    if is_begun:
        folder.write_record(RECIPE, Splits(TRAIN, None, None), kind=kind)
    for resume in (lambda: folder.resumed_recipe(RECIPE, {}, kind), lambda: run_to_resume(str(folder.path), "runs/x")):
        with pytest.raises(ConfigError, match=r"run was stopped before its first checkpoint.* and --exist-ok"):
            resume()
    assert folder.is_worthless  # `--auto-resume` starts there again
    again = RunFolder.for_new_run(folder.path, make_accelerator("cpu"), exist_ok=folder.is_worthless)
    assert again.path == folder.path
    with caplog.at_level("INFO"):
        again.remove_earlier_run()
    assert caplog.messages[-1] == f"The run in {again.path} was stopped before it had saved anything; it begins anew."


@pytest.mark.parametrize(
    ("train", "changed"),
    [
        (TRAIN._replace(records=(RECORD,) * 3, fingerprint="1"), "its train part had 1 images and now has 3"),
        (TRAIN._replace(fingerprint="1"), "file names, sizes or boxes of its train part have changed"),
        (TRAIN._replace(classes=ClassMap(("dog", "猫"), (3, 5))), "its classes are now in the order dog and 猫"),
        (TRAIN._replace(classes=ClassMap(("猫", "dog", "ox"), (3, 5, 6))), "it now has the class ox too"),
        (TRAIN._replace(classes=ClassMap(("猫",), (3,))), "it no longer has the class dog"),
    ],
)
def test_a_run_does_not_resume_with_other_data(folder: RunFolder, train: Split, changed: str) -> None:
    before = folder.record.read_bytes()
    with pytest.raises(ConfigError, match=re.escape(changed) + r"\. Restore the data, or start .*weights\.safetensors"):
        folder.check_data(Splits(train, None, None))
    assert folder.record.read_bytes() == before


def test_a_run_resumes_with_the_same_data_elsewhere(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    moved = TRAIN._replace(image_dir=Path("elsewhere"), problems=())
    folder.check_data(Splits(moved, None, TRAIN))  # no run uses the test part
    with pytest.raises(ConfigError, match="it had no val part, and now has one"):
        folder.check_data(Splits(TRAIN, TRAIN, None))
    folder.write_record(RECIPE, Splits(TRAIN, TRAIN, None))
    with pytest.raises(ConfigError, match="it had a val part, and now has none"):
        folder.check_data(Splits(TRAIN, None, None))
    for text in ("{", "[]", '{"classes": {"猫": 3, "dog": 5}}'):
        folder.record.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="is damaged and does not tell"):
            folder.check_data(Splits(TRAIN, None, None))
    folder.record.unlink()
    folder.check_data(Splits(TRAIN, None, None))
    assert "run.json is gone, so nothing tells whether" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_record_is_named_before_the_data_is_read(folder: RunFolder, text: str) -> None:
    folder.record.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run\.json is damaged and .*; delete it to go on anyway\."):
        folder.resumed_recipe(RECIPE, {})


def test_a_recipe_that_was_edited_is_named(folder: RunFolder) -> None:
    folder.recipe.write_text(folder.recipe.read_text().replace("\n  lr: 0.0002", "\n  lr: 0.0005"))
    with pytest.raises(ConfigError, match=r"recipe\.yaml optimizer\.lr was 0\.0002 and is 0\.0005 now\. Undo that"):
        folder.resumed_recipe(RECIPE, {})
    record = json.loads(folder.record.read_text(encoding="utf-8"))
    del record["settings"]["optimizer.lr"]  # of a version that does not know it
    folder.record.write_text(json.dumps(record), encoding="utf-8")
    assert folder.resumed_recipe(RECIPE, {}).optimizer.lr == 0.0005


def test_only_what_was_given_is_named(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"began with, but schedule\.batch was \d+, now 3\. Leave them out"):
        folder.resumed_recipe(RECIPE, {"batch": 3})


def test_a_run_whose_states_are_gone_is_told_from_none(folder: RunFolder) -> None:
    folder.last.unlink()
    folder.weights.touch()
    with pytest.raises(ConfigError, match=r"cannot be resumed: .* is gone\. .* --weights .*weights\.safetensors\."):
        folder.require_state()


def test_of_two_damaged_states_both_are_named(folder: RunFolder) -> None:
    folder.best.write_text("hi")
    folder.weights.touch()
    with pytest.raises(WeightsError, match=r"last\.pt.*Nor can the older state be used: .*best\.pt.*--weights"):
        folder.state_to_resume(make_accelerator("cpu"))


@pytest.mark.parametrize("file", ["recipe.yaml", "weights.safetensors", "best.pt", "report.html", "val/metrics.json"])
def test_a_new_run_gets_a_folder_of_its_own(file: str, tmp_path: Path) -> None:
    path, accelerator = tmp_path / "mine", make_accelerator("cpu", "off")
    (path / file).parent.mkdir(parents=True)
    (path / "notes.txt").touch()
    folder = RunFolder.for_new_run(path, accelerator)
    assert folder.path == path
    folder.recipe.unlink()
    (path / file).touch()
    assert RunFolder.for_new_run(path, accelerator).path == tmp_path / "mine-2"
    # Without a recipe it is no run that could be overwritten, but files of the user's.
    taken = path if file == "recipe.yaml" else tmp_path / "mine-3"
    assert RunFolder.for_new_run(path, accelerator, exist_ok=True).path == taken


def test_a_new_folder_holds_nothing_to_overwrite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder.for_new_run(tmp_path / "mine", make_accelerator("cpu", "off"), exist_ok=True)
    folder.remove_earlier_run()
    assert folder.recipe.is_file()
    assert not caplog.records


def test_runs_that_begin_at_once_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = make_accelerator("cpu", "off")
    first = RunFolder.for_new_run(tmp_path / "mine", accelerator)
    assert RunFolder.for_new_run(tmp_path / "mine", accelerator).path == tmp_path / "mine-2"
    # Both have seen that a folder is free; the other one takes it first.
    free = iter([first.path, first.path, tmp_path / "mine-3"])
    monkeypatch.setattr("rtdetrv4.run_folder.unused_folder", lambda *_: next(free))
    assert RunFolder.for_new_run(tmp_path / "mine", accelerator).path == tmp_path / "mine-3"


def test_a_broken_link_does_not_keep_a_run_waiting(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").symlink_to(tmp_path / "nowhere")
    found = RunFolder.for_new_run(tmp_path, make_accelerator("cpu", "off"))
    assert found.path == tmp_path.with_name(f"{tmp_path.name}-2")


@pytest.mark.parametrize("is_new", [True, False])
def test_a_run_that_fails_before_it_begins_leaves_nothing(tmp_path: Path, is_new: bool) -> None:
    path = tmp_path / "runs" / "mine"
    if not is_new:
        path.mkdir(parents=True)
    folder = RunFolder.for_new_run(path, make_accelerator("cpu", "off"))
    assert folder.recipe.is_file()
    with pytest.raises(KeyboardInterrupt), folder.held(make_accelerator("cpu", "off")):
        raise KeyboardInterrupt
    assert path.exists() == path.parent.exists() == (not is_new)
    assert not folder.recipe.exists()


def test_only_the_main_process_looks_for_a_folder(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def receive(chosen: list[str]) -> None:
        chosen[:] = ["of the main process"]

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", receive)
    other = cast("Accelerator", SimpleNamespace(is_main_process=False))
    assert RunFolder.for_new_run(folder.path, other).path == Path("of the main process")


def test_a_folder_in_which_another_process_trains_is_refused(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the main process, which asks for the lock, and to the others, which learn of it."""
    with owner_of(folder.path) as process:
        before = sorted(folder.path.iterdir())
        with pytest.raises(ConfigError, match=f"in process {process}"), folder.held(make_accelerator("cpu", "off")):
            pytest.fail("the lock of another process was taken")
        assert sorted(folder.path.iterdir()) == before
    with folder.held(make_accelerator("cpu", "off")):
        pass

    def hear(refusal: list[str | None]) -> None:
        refusal[0] = "It is in use."

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", hear)
    with (
        pytest.raises(ConfigError, match="in use"),
        folder.held(cast("Accelerator", SimpleNamespace(is_main_process=False))),
    ):
        pytest.fail("a rank went on alone")
    assert folder.recipe.is_file(), "a run that has begun is kept"


def test_what_a_killed_run_was_just_writing_is_removed(folder: RunFolder) -> None:
    (folder.path / "val").mkdir(exist_ok=True)
    mine, left = (".notes.txt.tmp", "photo.jpg"), (".last.pt.tmp", ".train_batch.jpg.tmp", "val/.metrics.json.tmp")
    for name in (*mine, *left):
        (folder.path / name).touch()
    with folder.held(make_accelerator("cpu", "off")):
        assert all((folder.path / name).is_file() for name in mine)
        assert not any((folder.path / name).exists() for name in left)


def test_overwriting_removes_the_earlier_run_and_nothing_else(folder: RunFolder) -> None:
    mine = ("notes.txt", "val/photo.jpg", "best.txt")
    for name in (*mine, "log.jsonl", "weights.safetensors", "val/metrics.json", "tensorboard/events.out.tfevents.1"):
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).touch()
    folder.remove_earlier_run()
    left = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}
    assert left == set(mine)


def test_the_latest_run_is_the_one_that_was_trained_in_last(tmp_path: Path) -> None:
    assert RunFolder.latest(tmp_path / "train").path == tmp_path / "train"
    for seconds, name in enumerate(("train-3", "train", "train-2", "other")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.pt").touch()
        os.utime(tmp_path / name / "last.pt", (seconds, seconds))
    (tmp_path / "train-4").mkdir()  # stopped before it had anything to resume from
    assert RunFolder.latest(tmp_path / "train").path == tmp_path / "train-2"


def test_a_run_that_was_killed_tells_how_to_go_on(folder: RunFolder) -> None:
    assert folder.how_to_go_on().endswith(f"{folder.last}; the same command with --resume continues from there.")
    folder.last.unlink()
    assert "no training state" in folder.how_to_go_on()


def test_what_may_differ_are_settings() -> None:
    assert set(FREE_ON_RESUME) <= set(setting_names())
    other = override(RECIPE, {"workers": 2, "seed": 8})
    assert fixed_changes(RECIPE, other) == "run.seed was 7, now 8"
    assert fixed_changes(RECIPE, other, (*FREE_ON_RESUME, "run.seed")) == ""
