"""Whole files, and folders that hold no earlier results."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdetrv4.errors import ConfigError
from rtdetrv4.outputs import make_folder, numbered_folders, unused_file, unused_folder, write_text, write_whole

RESULTS = ("metrics.json", "val/*.png")


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    write_text(tmp_path / "notes" / "a.txt", "old: 猫")
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "notes" / "a.txt", fail)
    assert [(path.name, path.read_text("utf-8")) for path in tmp_path.glob("notes/*")] == [("a.txt", "old: 猫")]


def test_a_folder_with_results_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine = tmp_path / "mine"
    assert unused_folder(mine, RESULTS) == mine
    (mine / "val").mkdir(parents=True)
    (mine / "notes.txt").touch()
    assert unused_folder(mine, RESULTS) == mine
    assert not caplog.records
    (mine / "val" / "curve.png").touch()
    (tmp_path / "mine-2").mkdir()
    assert unused_folder(mine, RESULTS) == tmp_path / "mine-2"
    (tmp_path / "mine-2" / "metrics.json").touch()
    (tmp_path / "mine-4").mkdir()
    caplog.clear()
    assert unused_folder(mine, RESULTS) == tmp_path / "mine-3"
    assert caplog.messages == [f"{mine} holds earlier results; the new ones go to {tmp_path / 'mine-3'}."]


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    make_folder(tmp_path / "runs" / "train")
    make_folder(tmp_path / "runs" / "train")
    (tmp_path / "notes").touch()
    with pytest.raises(ConfigError, match=r"notes/train: this folder .* cannot be created \(Not a directory\)"):
        make_folder(tmp_path / "notes" / "train")
    assert (tmp_path / "notes").is_file()


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    sheet = tmp_path / "augment.jpg"
    assert unused_file(sheet) == sheet
    sheet.touch()
    (tmp_path / "augment-2.jpg").symlink_to("nowhere")
    (tmp_path / "augment-4.jpg").touch()
    assert unused_file(sheet) == tmp_path / "augment-3.jpg"


@pytest.mark.parametrize("name", [".", "..", "../work"])
def test_the_current_folder_has_no_sibling_to_write_to(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "metrics.json").touch()
    (tmp_path / "work" / "metrics.json").touch()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ConfigError, match=r"holds earlier results, which are not written over\. Give a new folder"):
        unused_folder(Path(name), RESULTS)


def test_numbered_folders_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("train-10", "train", "train-2", "train-1", "train-b", "train-2-3", "trainer-2", "a-train-2"):
        (tmp_path / name).mkdir()
    (tmp_path / "train-3").touch()
    assert [folder.name for folder in numbered_folders(tmp_path / "train")] == ["train", "train-2", "train-10"]
    assert numbered_folders(tmp_path / "absent") == []
