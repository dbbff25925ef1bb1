from __future__ import annotations

import io
import json
import math

import cv2
import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rtdetrv4.distillation import ModulationReport
from rtdetrv4.errors import ConfigError, MissingDependencyError
from rtdetrv4.training import make_accelerator
from rtdetrv4.training.observers import (
    EPOCHS_OUTSIDE,
    BandWatch,
    EpochReport,
    JsonLog,
    Observer,
    RunInfo,
    RunResult,
    StepReport,
    TerminalProgress,
    Tracker,
    default_observers,
    read_log,
)
from rtdetrv4.training.plan import Plan
from rtdetrv4.training.run_curves import draw_curves

PLAN = Plan(
    epochs=3,
    steps_per_epoch=2,
    warmup_steps=0,
    flat_epoch=2,
    no_aug_epochs=1,
    lr_gamma=0.5,
    basic_epochs=0,
    mosaic_until=1,
    refine_from=2,
    ema_decay=0.9,
    ema_warmup=1,
    ema_restart_decay=0.9,
)


def info(out, epoch=0, step=0, teacher="dino"):
    return RunInfo(out, PLAN, epoch, step, "cpu, float32", 10_430_000, teacher)


def step_report(step: int, loss: float = 30.0):
    losses = {"loss": loss, "mal": 0.5, "giou": 0.7}
    return StepReport((step + 1) // 2, step, losses, 4.0, PLAN.lr(step - 1, 1e-3), 5.0, 8, math.isfinite(loss))


def epoch_report(epoch: int, teacher: bool = True, metrics: bool = True):
    ap = {"ap": 0.1 * epoch, "ap50": 0.2 * epoch, "ap_small": None, "per_class": {"cat": 0.1}}
    return EpochReport(
        epoch=epoch,
        step=2 * epoch,
        stage=PLAN.stage(epoch - 1).name,
        losses={"loss": 30.0 / epoch, "mal": 0.5, "giou": 0.7, **({"distill": 0.8} if teacher else {})},
        lr=1e-3,
        metrics=ap if metrics else {},
        best_score=0.1 * epoch if metrics else None,
        is_best=True,
        distill_weight=5.0 if teacher else None,
        modulation=ModulationReport(6.0, 9.5, "below", (10.0, 12.0)) if teacher else None,
        num_skipped=1,
        num_unreadable=2,
        seconds=2.0,
        images_per_second=8.0,
        shares={"data": 0.25, "backward": 0.5},
    )


def play(observers, out, *, teacher="dino", metrics=True, epochs=3):
    for observer in observers:
        observer.run_start(info(out, teacher=teacher))
    for epoch in range(1, epochs + 1):
        for step in (2 * epoch - 1, 2 * epoch):
            for observer in observers:
                observer.step_end(step_report(step))
        for observer in observers:
            observer.epoch_end(epoch_report(epoch, teacher is not None, metrics))
    for observer in observers:
        observer.run_end(RunResult(out, epochs, 0.3 if metrics else None, {}, True))


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    text = io.StringIO()
    play([TerminalProgress(2, Console(file=text, width=60))], tmp_path)
    lines = text.getvalue().splitlines()
    assert len(lines) == 1 + 3 + 3 + 1  # a start, a step and an epoch three times, an end: none is wrapped
    assert lines[0].startswith("10.43 M parameters on cpu, float32; teacher dino; 3 epochs × 2 steps; ")
    assert lines[1].startswith("epoch 1/3  step 2/2  lr 1.00e-03  loss 30.000  left 0:00:0")
    for part in (
        "epoch 2/3",
        "augmented",
        "AP 20.0 (best)",
        "AP50 40.0",
        "distill 0.800",
        "λ 5",
        "AIFI 9.50 % (target 10.00–12.00)",
    ):
        assert part in lines[4]
    assert "1 steps skipped  2 images unreadable  8.0 images/s (data 25% backward 50%)  left 0:00:00" in lines[6]
    assert lines[-1] == f"done: best AP 30.0 in epoch 3; weights in {tmp_path / 'weights.safetensors'}"


@pytest.mark.parametrize("side", ["below", "above"])
def test_a_band_out_of_reach_is_told_once(side, caplog):
    def see(reason, band=(10.0, 12.0)):
        weights[:] = [weights[-1], 10 * weights[-1]]
        report = ModulationReport(weights[1], 3.5, reason, band)
        watch.epoch_end(epoch_report(1)._replace(distill_weight=weights[0], modulation=report))

    watch, weights = BandWatch(), [5.0]
    for reason in (*[side] * (EPOCHS_OUTSIDE - 1), "inside", *[side] * (EPOCHS_OUTSIDE - 1)):
        see(reason)
    see("above" if side == "below" else "below")
    see("fixed", band=None)
    assert caplog.text == ""
    weights = [5.0]
    for _ in range(2 * EPOCHS_OUTSIDE):
        see(side)
    (message,) = (record.getMessage() for record in caplog.records)
    assert f"now 3.50 %, has been {side} the target 10.00–12.00 % for 4 epochs, while λ went from 5 to 5e+04" in message
    assert "distillation.mode=auto" in message


def test_a_bar_on_a_terminal(tmp_path):
    text = io.StringIO()
    play([TerminalProgress(2, Console(file=text, width=200, force_terminal=True))], tmp_path)
    assert "step 2/2" not in text.getvalue()
    assert "2/2  loss 30.000  left" in text.getvalue()


def test_nothing_is_evaluated_and_nothing_distilled(tmp_path):
    text = io.StringIO()
    play([TerminalProgress(1, Console(file=text, width=200))], tmp_path, teacher=None, metrics=False)
    assert "teacher none" in text.getvalue()
    assert "AP" not in text.getvalue()
    assert "λ" not in text.getvalue()


def test_the_log_is_strict_json(tmp_path):
    log = JsonLog(tmp_path / "log.jsonl", 2)
    play([log], tmp_path)
    log.step_end(step_report(8, loss=math.nan))
    records = [json.loads(line, parse_constant=pytest.fail) for line in log.path.read_text().splitlines()]
    assert [r["type"] for r in records] == ["run", *["step", "epoch"] * 3, "step"]
    assert [r["step"] for r in records] == [0, 2, 2, 4, 4, 6, 6, 8]
    assert records[-1]["losses"]["loss"] is None
    assert records[2]["modulation"] == {"weight": 6.0, "share": 9.5, "reason": "below", "band": [10.0, 12.0]}
    assert records[2]["shares"] == {"data": 0.25, "backward": 0.5}
    assert records[2]["distill_weight"] == 5.0
    assert records[2]["losses"]["distill"] == 0.8
    assert records[0]["plan"]["refine_from"] == 2


def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    play([JsonLog(path, 1)], tmp_path)
    with path.open("a") as file:
        file.write('{"type": "step", "step"')  # power failed here
    JsonLog(path, 1).run_start(info(tmp_path, epoch=1, step=3))
    assert [(r["type"], r["step"]) for r in read_log(path)] == [
        ("run", 0),
        ("step", 1),
        ("step", 2),
        ("epoch", 2),
        ("step", 3),
        ("run", 3),
    ]


def test_a_checkpoint_from_before_validation_keeps_no_epoch_that_is_still_to_come(tmp_path):
    path = tmp_path / "log.jsonl"
    play([JsonLog(path, 1)], tmp_path)
    JsonLog(path, 1).run_start(info(tmp_path, epoch=1, step=4))
    assert [r["epoch"] for r in read_log(path) if r["type"] == "epoch"] == [1]


def test_a_new_run_begins_a_new_log(tmp_path):
    path = tmp_path / "log.jsonl"
    play([JsonLog(path, 1)], tmp_path)
    JsonLog(path, 1).run_start(info(tmp_path))
    assert [r["type"] for r in read_log(path)] == ["run"]


def test_tensorboard(tmp_path):
    play([Tracker("tensorboard", make_accelerator("cpu"), 1, {"run.seed": 3})], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
    assert all(path.is_file() for path in (tmp_path / "tensorboard").iterdir())
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    values = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert values["step/loss"] == [30.0] * 6
    assert values["val/ap"] == pytest.approx([0.1, 0.2, 0.3])
    assert values["distill/weight"] == [5.0] * 3
    assert values["distill/aifi_share"] == [9.5] * 3
    assert values["epoch/distill"] == pytest.approx([0.8] * 3)
    assert "val/ap_small" not in values
    assert [event.step for event in events.Scalars("val/ap/cat")] == [2, 4, 6]


def test_tensorboard_hides_what_was_logged_after_the_checkpoint(tmp_path):
    play([Tracker("tensorboard", make_accelerator("cpu"), 1)], tmp_path)
    again = Tracker("tensorboard", make_accelerator("cpu"), 1)
    again.run_start(info(tmp_path, epoch=1, step=3))
    again.step_end(step_report(4, loss=7.0))
    again.run_end(RunResult(tmp_path, None, None, {}, False))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("step/loss")] == [(1, 30), (2, 30), (3, 30), (4, 7)]


class FakeTracker(GeneralTracker):
    """Keeps what it is told."""

    name = "fake"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, project, **options):
        super().__init__()
        self.project, self.options, self.settings = project, options, {}
        self.logged, self.is_finished = [], False
        FakeTracker.last = self

    @property
    def tracker(self):
        return self.logged

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step=None, **options):
        self.logged.append((step, values))

    def finish(self):
        self.is_finished = True


def test_any_tracker_of_accelerate(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "fake", FakeTracker)
    settings = {"run.seed": 3, "run.patience": None, "model.image_size": (64, 64)}
    play([Tracker("fake", make_accelerator("cpu"), 2, settings)], tmp_path)
    tracker = FakeTracker.last
    assert tracker.project == "rtdetrv4"
    assert tracker.settings == {"run.seed": 3, "run.patience": None, "model.image_size": "(64, 64)"}
    assert [step for step, _ in tracker.logged] == [2, 2, 4, 4, 6, 6]
    assert tracker.logged[0][1]["step/loss"] == 30.0
    assert tracker.logged[1][1]["val/ap"] == 0.1
    assert tracker.is_finished


def test_a_tracker_that_is_not_there(monkeypatch):
    monkeypatch.setattr("rtdetrv4.training.observers.get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(MissingDependencyError, match=r"^wandb is not installed; install it with: pip install wandb$"):
        Tracker("wandb", make_accelerator("cpu"), 1)
    with pytest.raises(ConfigError, match=r'run\.tracker: got "wandbb", expected .*mlflow.* Did you mean "wandb"\?'):
        Tracker("wandbb", make_accelerator("cpu"), 1)


def test_an_observer_needs_no_more_than_what_it_overrides(tmp_path):
    class Count(Observer):
        steps = 0

        def step_end(self, report):
            self.steps += 1

    count = Count()
    play([count], tmp_path)
    assert count.steps == 6
    assert isinstance(count, Observer)
    assert not isinstance(print, Observer)


@pytest.mark.parametrize(("teacher", "metrics", "epochs"), [("dino", True, 3), (None, False, 1)])
def test_curves_are_drawn_for_any_run(tmp_path, teacher, metrics, epochs):
    quiet = Console(file=io.StringIO())
    play(
        default_observers(tmp_path, log_every=1, console=quiet),
        tmp_path,
        teacher=teacher,
        metrics=metrics,
        epochs=epochs,
    )
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture.shape[:2] == ((840, 1320) if teacher else (480, 1560))
    assert np.unique(picture.reshape(-1, 3), axis=0).shape[0] > 50
    assert not list(tmp_path.glob(".*"))


def test_without_an_epoch_nothing_is_drawn(tmp_path):
    draw_curves([], tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())
