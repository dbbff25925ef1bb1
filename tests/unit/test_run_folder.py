"""What a run says of itself, and how another call goes on with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rtdetrv4.config import load_recipe, override, setting_names
from rtdetrv4.data.formats import Split, Splits
from rtdetrv4.data.records import Record
from rtdetrv4.errors import ConfigError
from rtdetrv4.run_folder import FREE_ON_RESUME, RunFolder, fixed_changes
from rtdetrv4.types import ClassMap, ImageInfo

RECIPE = override(load_recipe("test"), {"seed": 7, "lr": 2e-4})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Of a run that wrote a checkpoint."""
    none = np.zeros(0)
    record = Record(ImageInfo(1, "a.jpg", 8, 8), none.reshape(0, 4), none.astype(int), none.astype(bool), none)
    train = Split(tmp_path, (record,), ClassMap(("猫", "dog"), (3, 5)), "0" * 64, ("a.jpg: a box has no area",))
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.write_record(RECIPE, Splits(train, None, None), {"kind": "none"})
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
    assert now == override(RECIPE, {"workers": 2, "data": "elsewhere", "run.log_every": 5})


def test_a_resumed_run_keeps_what_decides_its_numbers(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"but schedule\.epochs was 4, now 9; .*Leave them out to resume"):
        folder.resumed_recipe(RECIPE, {"epochs": 9})
    with pytest.raises(ConfigError, match="trains test, not rtdetrv4-n"):
        folder.resumed_recipe(load_recipe("rtdetrv4-n"), {})
    folder.last.unlink()
    with pytest.raises(ConfigError, match=r"no run to resume: .*last\.pt does not exist"):
        folder.resumed_recipe(RECIPE, {})


def test_what_may_differ_are_settings() -> None:
    assert set(FREE_ON_RESUME) <= set(setting_names())
    other = override(RECIPE, {"workers": 2, "seed": 8})
    assert fixed_changes(RECIPE, other) == "run.seed was 7, now 8"
    assert fixed_changes(RECIPE, other, (*FREE_ON_RESUME, "run.seed")) == ""
