"""A run outlives power cuts, full disks and damaged files, and ends with the same weights as one that met none."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rtdetrv4 import outputs
from rtdetrv4.cli import main
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.errors import ConfigError, WeightsError
from rtdetrv4.run_folder import RunFolder
from rtdetrv4.training import loop
from rtdetrv4.training.checkpoint import check_checkpoint, load_checkpoint, save_checkpoint
from rtdetrv4.training.observers import JsonLog, Observer, read_log
from small_training import assert_same, make_trainer, write_images

FULL = OSError(errno.ENOSPC, "No space left on device")


class PowerCutError(Exception):
    pass


class CutAfter(Observer):
    """Ends the run after a step, as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_end(self, report):
        if report.step == self.step:
            raise PowerCutError


class FullDisk(Observer):
    """Cannot write."""

    def __init__(self) -> None:
        self.calls = 0

    def step_end(self, report):
        self.calls += 1
        raise FULL


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 8)


@pytest.fixture(scope="module")
def uninterrupted(split, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    make_trainer(split, out, observers=[JsonLog(out / "log.jsonl", 1)]).run()
    return out


def assert_same_end(out: Path, uninterrupted: Path) -> None:
    for name in ("last.pt", "best.pt"):
        assert_same(load_checkpoint(out / name), load_checkpoint(uninterrupted / name), name)
    weights, others = (safetensors.torch.load_file(folder / "weights.safetensors") for folder in (out, uninterrupted))
    assert_same(weights, others)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def fail_to_save(monkeypatch: pytest.MonkeyPatch, name: str, calls: set[int], error: BaseException) -> None:
    """Let the given calls to save a file, counted from 0, fail."""
    seen = []

    def save(state: Any, path: Path) -> None:
        if path.name == name:
            seen.append(path)
            if len(seen) - 1 in calls:
                raise error
        save_checkpoint(state, path)

    monkeypatch.setattr(loop, "save_checkpoint", save)


def test_every_bit_of_a_state_is_checked(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint({"values": torch.arange(1000.0)}, path)
    check_checkpoint(path)
    flip_a_byte(path)
    torch.load(path, weights_only=True)  # does not notice
    with pytest.raises(WeightsError, match=r"last\.pt is damaged: the checksum of .* is wrong"):
        load_checkpoint(path)


@pytest.mark.parametrize("damage", [flip_a_byte, Path.unlink, lambda path: os.truncate(path, 1000)])
def test_a_damaged_state_is_named_and_the_one_before_it_used(split, uninterrupted, tmp_path, caplog, damage):
    with pytest.raises(PowerCutError):
        make_trainer(split, tmp_path, observers=[CutAfter(7)]).run()
    damage(tmp_path / "last.pt")
    folder, trainer = RunFolder(tmp_path), make_trainer(split, tmp_path)
    with caplog.at_level(logging.WARNING):
        state = folder.state_to_resume(trainer.accelerator)
    assert state == tmp_path / "best.pt"
    assert "last.pt" in caplog.text
    assert "Resuming from" in caplog.text
    trainer.run(resume=state)
    assert_same_end(tmp_path, uninterrupted)


def test_without_a_whole_state_nothing_is_resumed(split, tmp_path):
    with pytest.raises(PowerCutError):
        make_trainer(split, tmp_path, observers=[CutAfter(3)]).run()
    for name in ("last.pt", "best.pt"):
        flip_a_byte(tmp_path / name)
    with pytest.raises(WeightsError, match=r"last\.pt is damaged"):
        RunFolder(tmp_path).state_to_resume(make_trainer(split, tmp_path).accelerator)


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_power_cut_while_an_epoch_is_saved(split, uninterrupted, tmp_path, monkeypatch, name, call):
    fail_to_save(monkeypatch, name, {call}, PowerCutError())
    with pytest.raises(PowerCutError):
        make_trainer(split, tmp_path, observers=[JsonLog(tmp_path / "log.jsonl", 1)]).run()
    monkeypatch.undo()
    folder, trainer = RunFolder(tmp_path), make_trainer(split, tmp_path)
    trainer.run(resume=folder.state_to_resume(trainer.accelerator) if folder.can_resume else None)
    assert_same_end(tmp_path, uninterrupted)


def test_within_an_epoch_the_state_is_saved_too(split, uninterrupted, tmp_path):
    with pytest.raises(PowerCutError):
        make_trainer(split, tmp_path, save_seconds=0, observers=[CutAfter(4)]).run()
    position = load_checkpoint(tmp_path / "last.pt")["position"]
    assert (position["epoch"], position["step"]) == (1, 1)  # two steps an epoch; the fourth was not saved any more
    make_trainer(split, tmp_path).run(resume=tmp_path / "last.pt")
    assert_same_end(tmp_path, uninterrupted)


def test_a_full_disk_delays_the_checkpoint_and_ends_nothing(split, uninterrupted, tmp_path, monkeypatch, caplog):
    fail_to_save(monkeypatch, "last.pt", {1, 2}, FULL)
    observer = FullDisk()
    make_trainer(split, tmp_path, observers=[observer]).run()
    assert_same_end(tmp_path, uninterrupted)
    assert caplog.text.count("last.pt could not be written (No space left on device)") == 2
    assert caplog.text.count("FullDisk cannot write: No space left on device") == 1
    assert observer.calls == 8


def test_a_disk_that_stays_full_is_an_error_in_the_end(split, tmp_path, monkeypatch):
    fail_to_save(monkeypatch, "last.pt", {3}, FULL)
    with pytest.raises(ConfigError, match=r"come to its end, but .*last\.pt could not be written \(No space left"):
        make_trainer(split, tmp_path).run()
    assert load_checkpoint(tmp_path / "last.pt")["position"]["epoch"] == 3


def test_best_weights_that_could_not_be_saved_do_not_count(split, tmp_path, monkeypatch):
    fail_to_save(monkeypatch, "best.pt", {3}, FULL)
    result = make_trainer(split, tmp_path, evaluate=None).run()  # each epoch is the best
    assert result.best_epoch == 3
    assert load_checkpoint(tmp_path / "best.pt")["position"]["best_epoch"] == 3
    assert load_checkpoint(tmp_path / "last.pt")["position"]["best_epoch"] == 3


def test_a_real_limit_of_the_file_system_is_an_oserror(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "last.pt"
    save_checkpoint({"epoch": 1}, path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint({"values": torch.zeros(1000, 1000)}, path)
        with pytest.raises(OSError, match="File too large"):
            loop.save_weights({"values": torch.zeros(1000, 1000)}, tmp_path / "weights.safetensors", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_checkpoint(path)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files come from Linux")
def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    events: list[str] = []
    flush, rename = os.fsync, Path.replace

    def told_flush(handle: int) -> None:
        events.append(Path(f"/proc/self/fd/{handle}").resolve().name)
        flush(handle)

    def told_rename(path: Path, to: Path) -> Path:
        events.append(f"{path.name} to {to.name}")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", told_flush)
    monkeypatch.setattr(Path, "replace", told_rename)
    outputs.write_whole(tmp_path / "a.txt", lambda temporary: temporary.write_text("text"), durable=True)
    assert events == [".a.txt.tmp", ".a.txt.tmp to a.txt", tmp_path.name]


class TestAutoResume:
    """`resume="auto"`: the same command starts, resumes, and does nothing any more."""

    @pytest.fixture
    def data(self, tmp_path):
        return write_shapes(tmp_path / "data", num_train=4, num_val=2, image_size=64)

    def command(self, data: Path, out: Path, *more: str) -> list[str]:
        size = ["--imgsz", "64", "--device", "cpu", "--amp", "off", "--workers", "0"]
        return ["train", "--data", str(data), "--model", "test", "--out", str(out), "--epochs", "2", *size, *more]

    def test_starts_resumes_and_rests(self, data, tmp_path, monkeypatch, caplog):
        out = tmp_path / "run"
        with monkeypatch.context() as patch:
            fail_to_save(patch, "last.pt", {1}, KeyboardInterrupt())
            assert main(self.command(data, out, "--resume", "auto")) == 130
        assert load_checkpoint(out / "last.pt")["position"]["epoch"] == 1
        assert main(self.command(data, out, "--auto-resume")) == 0
        assert [record["epoch"] for record in read_log(out / "log.jsonl") if record["type"] == "epoch"] == [1, 2]
        before = (out / "last.pt").read_bytes()
        with caplog.at_level(logging.INFO):
            assert main(self.command(data, out, "--resume", "auto")) == 0
        assert "is complete" in caplog.text
        assert (out / "last.pt").read_bytes() == before
        assert not out.with_name("run-2").exists()

    def test_a_run_that_had_saved_nothing_starts_again_in_its_folder(self, data, tmp_path, monkeypatch):
        out = tmp_path / "run"
        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_weights", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
            assert main(self.command(data, out, "--resume", "auto")) == 130
        assert (out / "recipe.yaml").is_file()
        assert main(self.command(data, out, "--resume", "auto")) == 0
        assert not out.with_name("run-2").exists()
