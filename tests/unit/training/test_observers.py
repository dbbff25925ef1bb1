from __future__ import annotations

import errno
import io
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType
from matplotlib.figure import Figure
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from made_up_run import epoch_report, info, play, step_report
from rtdetrv4.errors import ConfigError, MissingDependencyError
from rtdetrv4.training import make_accelerator
from rtdetrv4.training.observers import JsonLog, Tracker, default_observers, read_log
from rtdetrv4.training.reports import Observer, RunResult
from rtdetrv4.training.run_curves import draw_curves


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
    assert records[0]["start_metrics"] == {}


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


class CutOff(io.FileIO):
    """A file on a disk that is full after half of what is written."""

    def write(self, data):
        super().write(bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fails", ["at once", "half-way"])
def test_what_cannot_be_written_comes_later(tmp_path, monkeypatch, fails):
    log = JsonLog(tmp_path / "log.jsonl", 1)
    log.run_start(info(tmp_path))
    log.step_end(step_report(1))
    whole = log.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: CutOff(path, mode) if fails == "half-way" else path.mkdir())
        for step in (2, 3):
            with pytest.raises(OSError, match=r"space|exists"):
                log.step_end(step_report(step))
    assert log.path.read_bytes().startswith(whole)
    log.step_end(step_report(4))
    assert log.path.read_bytes().startswith(whole)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]


def test_a_log_that_is_gone_begins_anew(tmp_path):
    log = JsonLog(tmp_path / "log.jsonl", 1)
    log.run_start(info(tmp_path))
    log.path.unlink()
    log.step_end(step_report(1))
    assert [record["step"] for record in read_log(log.path)] == [1]


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


def test_the_starting_weights_are_logged(tmp_path):
    start = info(tmp_path, start_metrics={"ap": 0.25, "ap50": 0.5, "ap_small": None, "per_class": {"cat": 0.25}})
    tracker, log = Tracker("tensorboard", make_accelerator("cpu"), 1), JsonLog(tmp_path / "log.jsonl", 1)
    for observer in (tracker, log):
        observer.run_start(start)
    tracker.run_end(RunResult(tmp_path, None, None, {}, False))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("val/ap/cat")] == [(0, 0.25)]
    assert read_log(log.path)[0]["start_metrics"]["ap50"] == 0.5


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


def test_files_go_to_trackers_that_take_them(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", FakeTracker)
    monkeypatch.setattr("rtdetrv4.training.observers.get_available_trackers", lambda: [LoggerType.MLFLOW])
    monkeypatch.setattr(FakeTracker, "log_artifact", sent.append, raising=False)
    monkeypatch.setattr("made_up_run.CLASS_AP", {"cat": 0.1, "../c++": 0.2})
    (tmp_path / "report.html").touch()
    files = [tmp_path / "report.html", tmp_path / "missing.png"]
    tracker = Tracker("mlflow", make_accelerator("cpu"), 2, files_follow=True)
    play([tracker], tmp_path)
    assert not FakeTracker.last.is_finished
    names = {name for _, values in FakeTracker.last.logged for name in values}
    assert {"val/ap", "val/class_ap/cat", "val/class_ap/___c__"} <= names
    assert "val/ap/cat" not in names, "val/ap would be a file and a folder"
    tracker.finish(files)
    assert FakeTracker.last.is_finished
    assert sent == [str(files[0])]

    def fail(path):
        raise OSError(f"no connection for {path}")

    monkeypatch.setattr(FakeTracker, "log_artifact", staticmethod(fail))
    play([tracker], tmp_path)
    with pytest.raises(OSError, match="no connection"):
        tracker.finish(files)
    assert FakeTracker.last.is_finished


def test_a_run_that_was_stopped_closes_its_tracker(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "fake", FakeTracker)
    tracker = Tracker("fake", make_accelerator("cpu"), 2, files_follow=True)
    play([tracker], tmp_path)
    tracker.run_end(RunResult(tmp_path, None, None, {}, False))
    assert FakeTracker.last.is_finished


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


def test_the_curves_begin_with_the_starting_weights(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("rtdetrv4.training.run_curves.write_whole", lambda path, write: figures.append(write))
    log = JsonLog(tmp_path / "log.jsonl", 1)
    for start, expected in (({}, [1, 2]), ({"ap": 0.3, "ap50": 0.4}, [0, 1, 2])):
        log.run_start(info(tmp_path, start_metrics=start))
        for epoch in (1, 2):
            log.epoch_end(epoch_report(epoch))
        draw_curves(read_log(log.path), tmp_path / "curves.png")
        (figure,) = (cell.cell_contents for cell in figures[-1].__closure__)
        curve = next(line for line in figure.axes[1].lines if line.get_label() == "AP")
        assert curve.get_xdata().tolist() == expected
        assert curve.get_ydata()[0] == pytest.approx(30 if start else 10)


@pytest.mark.parametrize("teacher", ["dino", None])
def test_legends_cover_nothing(tmp_path, monkeypatch, teacher):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    play(default_observers(tmp_path, log_every=1, console=Console(file=io.StringIO())), tmp_path, teacher=teacher)
    figure = figures[-1]
    figure.draw_without_rendering()
    legends = [axes.get_legend().get_window_extent() for axes in figure.axes if axes.get_legend()]
    assert len(legends) == (3 if teacher else 2)
    for legend in legends:
        assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= legend.y0 < legend.y1 <= figure.bbox.y1
        for axes in figure.axes:
            assert not legend.overlaps(axes.bbox)
            if label := axes.get_xlabel():
                assert not legend.overlaps(axes.xaxis.label.get_window_extent()), label


def test_without_an_epoch_nothing_is_drawn(tmp_path):
    draw_curves([], tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())
