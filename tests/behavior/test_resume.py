"""A run that is cut off and resumed ends as one that is not: the same weights and state, bit for bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import safetensors.torch

from rtdetrv4.errors import ConfigError, WeightsError
from rtdetrv4.training.checkpoint import load_checkpoint
from rtdetrv4.training.observers import JsonLog, Observer, read_log
from rtdetrv4.training.state import is_complete
from small_training import assert_same, fixed_score, make_plan, make_trainer, score_of_weights, write_images


class Cut(Observer):
    """Does something to the run after a step or an epoch."""

    def __init__(self, action, *, step: int | None = None, epoch: int | None = None):
        self.action, self.step, self.epoch = action, step, epoch

    def step_end(self, report):
        if report.step == self.step:
            self.action()

    def epoch_end(self, report):
        if report.epoch == self.epoch:
            self.action()


class PowerCutError(Exception):
    pass


def cut_power():
    raise PowerCutError


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 8)


@pytest.fixture(scope="module")
def uninterrupted(split, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    make_trainer(split, out, observers=[JsonLog(out / "log.jsonl", 1)]).run()
    return out


def assert_same_results(out: Path, uninterrupted: Path):
    for name in ("last.pt", "best.pt"):
        assert_same(load_checkpoint(out / name), load_checkpoint(uninterrupted / name), name)
    weights = [safetensors.torch.load_file(folder / "weights.safetensors") for folder in (out, uninterrupted)]
    assert_same(*weights)
    clocks = ("seconds", "images_per_second", "shares")
    logs = [
        [{k: v for k, v in record.items() if k not in clocks} for record in read_log(folder / "log.jsonl")]
        for folder in (out, uninterrupted)
    ]
    assert [record for record in logs[0] if record["type"] != "run"] == logs[1][1:]


def resume(split, out: Path, **options):
    return make_trainer(split, out, observers=[JsonLog(out / "log.jsonl", 1)], **options).run(resume=out / "last.pt")


def test_after_two_of_four_epochs(split, uninterrupted, tmp_path):
    # Power fails in the third epoch, after its first step has been logged; last.pt is from the end of the second.
    observers = [JsonLog(tmp_path / "log.jsonl", 1), Cut(cut_power, step=5)]
    with pytest.raises(PowerCutError):
        make_trainer(split, tmp_path, observers=observers).run()
    assert load_checkpoint(tmp_path / "last.pt")["position"]["epoch"] == 2
    assert read_log(tmp_path / "log.jsonl")[-1]["step"] == 5
    resume(split, tmp_path)
    assert_same_results(tmp_path, uninterrupted)


@pytest.mark.parametrize("epoch", [2, 4])  # with mosaics and MixUp; in the first epoch of refinement
def test_in_the_middle_of_an_epoch(split, uninterrupted, tmp_path, epoch):
    observers = [JsonLog(tmp_path / "log.jsonl", 1), Cut(press_ctrl_c, epoch=epoch - 1)]
    with pytest.raises(KeyboardInterrupt, match=rf"epoch {epoch} of 4 after 1 of 2 steps.*last\.pt.*--resume"):
        make_trainer(split, tmp_path, observers=observers).run()
    resume(split, tmp_path)
    assert_same_results(tmp_path, uninterrupted)


def test_after_early_stopping_has_skipped_epochs(split, tmp_path):
    options = {
        "plan": make_plan(epochs=6, steps_per_epoch=1, flat_epoch=3, refine_from=4),
        "patience": 1,
        "evaluate": lambda detector: fixed_score(detector, 0.5),
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    make_trainer(split, whole, observers=[JsonLog(whole / "log.jsonl", 1)], **options).run()
    with pytest.raises(PowerCutError):
        make_trainer(split, cut, observers=[JsonLog(cut / "log.jsonl", 1), Cut(cut_power, epoch=2)], **options).run()
    state = load_checkpoint(cut / "last.pt")
    assert state["position"]["epoch"] == 3  # the third epoch is skipped
    assert not is_complete(state, 1)
    resume(split, cut, **options)
    assert_same_results(cut, whole)
    assert [record["epoch"] for record in read_log(cut / "log.jsonl") if record["type"] == "epoch"] == [1, 2, 4, 5]
    state = load_checkpoint(cut / "last.pt")
    assert [is_complete(state, patience) for patience in (1, 2, None)] == [True, False, False]
    resume(split, cut, **options)  # it has stopped early, and stays so
    assert_same_results(cut, whole)


def test_during_validation(split, uninterrupted, tmp_path):
    calls = []

    def slow_validation(detector):
        calls.append(detector)
        if len(calls) == 2:
            press_ctrl_c()
        return score_of_weights(detector)

    with pytest.raises(KeyboardInterrupt, match="epoch 2 of 4 after 2 of 2 steps"):
        make_trainer(split, tmp_path, evaluate=slow_validation, observers=[JsonLog(tmp_path / "log.jsonl", 1)]).run()
    resume(split, tmp_path)
    assert_same_results(tmp_path, uninterrupted)


def test_with_accumulation_workers_and_bf16(split, tmp_path):
    options = {"accumulate": 2, "workers": 1, "amp": "bf16", "plan": make_plan(epochs=2, refine_from=2)}
    make_trainer(split, tmp_path / "whole", **options).run()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(split, tmp_path / "cut", observers=[Cut(press_ctrl_c, epoch=1)], **options).run()
    make_trainer(split, tmp_path / "cut", **options).run(resume=tmp_path / "cut" / "last.pt")
    assert_same(load_checkpoint(tmp_path / "cut" / "last.pt"), load_checkpoint(tmp_path / "whole" / "last.pt"))


def test_a_finished_run_stays_finished(split, uninterrupted):
    before = (uninterrupted / "last.pt").read_bytes()
    assert is_complete(load_checkpoint(uninterrupted / "last.pt"), None)
    result = make_trainer(split, uninterrupted).run(resume=uninterrupted / "last.pt")
    assert result.is_complete
    assert result.best_score == load_checkpoint(uninterrupted / "best.pt")["position"]["best_score"]
    assert (uninterrupted / "last.pt").read_bytes() == before


def test_another_plan_is_refused(split, uninterrupted):
    trainer = make_trainer(split, uninterrupted, plan=make_plan(epochs=5))
    with pytest.raises(ConfigError, match="epochs 4, now 5"):
        trainer.run(resume=uninterrupted / "last.pt")


def test_a_missing_checkpoint_is_named(split, tmp_path):
    with pytest.raises(WeightsError, match=r"last\.pt does not exist"):
        make_trainer(split, tmp_path).run(resume=tmp_path / "last.pt")
