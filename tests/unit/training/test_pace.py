from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch

from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.distillation import DistillationStudent, Injector
from rtdetrv4.losses import Criterion, HungarianMatcher
from rtdetrv4.training import make_accelerator, pace
from rtdetrv4.training.pace import EPOCH_OVERHEAD, FINISH, Pace, measure_pace, most_epochs
from small_training import AUGMENT, SIZE, WEIGHTS, make_detector, make_teacher, write_images


def test_a_run_is_steps_epochs_evaluations_and_an_end() -> None:
    found = Pace(step=0.5, evaluation=3.0).duration(10, steps_per_epoch=4, evaluate_every=3)
    assert found == pytest.approx(10 * (4 * 0.5 + EPOCH_OVERHEAD) + 5 * 3.0 + FINISH)


@pytest.mark.parametrize(("seconds", "epochs"), [(0, 1), (146, 1), (148, 2), (402, 7), (404, 7), (10_000, 9)])
def test_as_many_epochs_as_the_time_allows(seconds: float, epochs: int) -> None:
    # An epoch takes 20 + 1 + 30 seconds, and the end 30 + 15: 147 for two, 402 for seven, 453 for eight.
    assert most_epochs(Pace(2.0, 30.0), seconds, 10, lambda epochs: 1, most=9) == epochs


def test_fewer_evaluations_leave_time_for_epochs() -> None:
    rare = most_epochs(Pace(1.0, 50.0), 500, 10, lambda epochs: epochs, most=100)
    often = most_epochs(Pace(1.0, 50.0), 500, 10, lambda epochs: 1, most=100)
    assert (rare, often) == (35, 7)


def clock(monkeypatch: pytest.MonkeyPatch, *, tick: float) -> None:
    """A clock that goes on by `tick` each time it is read."""
    times = itertools.count()
    monkeypatch.setattr(pace.time, "perf_counter", lambda: tick * next(times))


@pytest.mark.parametrize(
    ("workers", "accumulate", "pseudo", "step"),
    [
        (0, 1, 0.0, 1 + 4 * 0.25 + 1.5),  # a pass, four images, the update
        (2, 1, 0.0, 1 + 4 * 0.125 + 1.5),
        (0, 3, 0.0, 3 * (1 + 4 * 0.25) + 1.5),
        (0, 3, 0.5, 1.5 * 3 * (1 + 4 * 0.25) + 0.5 * 12 * (0.25 + 0.25) + 1.5),  # loaded and detected in, too
    ],
)
def test_everything_in_a_step_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, accumulate: int, pseudo: float, step: float
) -> None:
    student = DistillationStudent(make_detector(), Injector(32, 8))
    samples, teacher = DetectionDataset(write_images(tmp_path / "images"), SIZE, AUGMENT), make_teacher()
    before, rng = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    clock(monkeypatch, tick=1.0)
    found = measure_pace(
        student,
        Criterion(HungarianMatcher()),
        WEIGHTS,
        samples,
        batch=4,
        accumulate=accumulate,
        workers=workers,
        num_val=100,
        accelerator=make_accelerator("cpu", "off"),
        teacher=teacher,
        pseudo_share=pseudo,
    )
    assert found.step == pytest.approx(step)
    assert found.evaluation == pytest.approx(100 * (1 / 4 + 0.25 / max(workers, 1) + 0.002), rel=1e-4)
    assert torch.equal(torch.get_rng_state(), rng)
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in student.parameters())


def test_steps_that_do_not_fit_leave_the_student_as_it_was(tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    student = DistillationStudent(make_detector())
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(torch.OutOfMemoryError):
        measure_pace(
            student,
            full,  # type: ignore[arg-type]
            WEIGHTS,
            DetectionDataset(write_images(tmp_path / "images"), SIZE, AUGMENT),
            batch=4,
            accumulate=1,
            workers=0,
            num_val=0,
            accelerator=make_accelerator("cpu", "off"),
        )
    assert student.training
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name]), name
