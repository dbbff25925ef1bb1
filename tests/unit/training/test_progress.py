from __future__ import annotations

import io
import logging
import re
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from made_up_run import PLAN, epoch_report, info, play, step_report
from rtdetrv4.training.observers import default_observers
from rtdetrv4.training.progress import RECENT_STEPS, TerminalProgress
from rtdetrv4.training.reports import RunResult

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def terminal(text, **options):
    return Console(**{"file": text, "width": 200, "force_terminal": True, "_environ": {"TERM": "xterm"}} | options)


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    text = io.StringIO()
    play([TerminalProgress(1, Console(file=text, width=60))], tmp_path)
    lines = text.getvalue().splitlines()
    # A start, an end, and three times a step and an epoch, whose last step says nothing more: none is wrapped.
    assert len(lines) == 1 + 3 + 3 + 1
    assert lines[0].startswith("10.43 M parameters on cpu, float32; teacher dino; 3 epochs × 2 steps; ")
    assert lines[3].startswith("epoch 2/3  step 1/2  left 0:00:0")
    for part in ("loss 30.000", "images/s", "mal 0.500  bbox 0.200  giou 0.700  lr 1.0e-03"):
        assert part in lines[3]
    assert lines[2].startswith("epoch 1/3  dense       loss 30.000  AP 10.0  AP50 20.0  best ")
    for part in ("distill 0.800", "λ 5", "AIFI 9.50 % (target 10.00–12.00)"):
        assert part in lines[4]
    assert lines[6].endswith("1 step skipped  2 images unreadable  2 s  8.0 images/s  left 0:00:00")
    assert "AP 20.0" in lines[5]  # of the second epoch, while the third one runs
    assert lines[-1] == f"done: best AP 30.0 in epoch 3; weights in {tmp_path / 'weights.safetensors'}"


def test_nothing_is_evaluated_and_nothing_distilled(tmp_path):
    text = io.StringIO()
    play([TerminalProgress(1, Console(file=text, width=200))], tmp_path, teacher=None, metrics=False)
    assert "teacher none" in text.getvalue()
    assert "AP" not in text.getvalue()
    assert "λ" not in text.getvalue()


def test_validation_images_without_objects_have_no_ap(tmp_path):
    text = io.StringIO()
    progress = TerminalProgress(1, Console(file=text, width=200))
    progress.run_start(info(tmp_path))
    progress.epoch_end(epoch_report(1)._replace(metrics={"ap": None, "ap50": None}, best_score=None))
    progress.step_end(step_report(3))
    progress.run_end(RunResult(tmp_path, 1, None, {}, True))
    lines = text.getvalue().splitlines()
    assert "AP    –  AP50    –  distill" in lines[1]
    assert "AP" not in lines[2]
    assert lines[-1] == f"done: last weights in {tmp_path / 'weights.safetensors'}"


def test_one_is_no_plural(tmp_path):
    text = io.StringIO()
    progress = TerminalProgress(1, Console(file=text, width=200))
    start = info(tmp_path)
    plan = replace(start.plan, epochs=1, steps_per_epoch=1)
    progress.run_start(start._replace(plan=plan, step=1))
    lines = text.getvalue().splitlines()
    assert "; 1 epoch × 1 step; " in lines[0]
    assert lines[1] == "resumed after 1 step"


def test_a_worse_epoch_names_the_best(tmp_path):
    text = io.StringIO()
    progress = TerminalProgress(50, Console(file=text, width=200))
    progress.run_start(info(tmp_path))
    progress.epoch_end(epoch_report(1)._replace(is_best=False, best_score=0.4))
    assert "AP 10.0  AP50 20.0  best 40.0" in text.getvalue()


def test_the_starting_weights_are_shown(tmp_path):
    text = io.StringIO()
    progress = TerminalProgress(1, Console(file=text, width=200))
    progress.run_start(info(tmp_path, start_metrics={"ap": 0.251, "ap50": 0.5}))
    progress.step_end(step_report(1))
    assert "starting weights: AP 25.1  AP50 50.0" in text.getvalue()
    assert "loss 30.000  AP 25.1" in text.getvalue()


def test_losses_are_means_of_recent_finite_steps(tmp_path):
    text = io.StringIO()
    progress = TerminalProgress(1, Console(file=text, width=200))
    progress.run_start(info(tmp_path))
    for loss in (1000.0, 10.0, *[20.0] * (RECENT_STEPS - 2), float("nan")):
        progress.step_end(step_report(1, loss))
    assert "loss 19.474" in text.getvalue().splitlines()[-1]  # the first is forgotten, the last not finite


@pytest.mark.parametrize("width", [200, 70])
def test_a_live_line_on_a_terminal(tmp_path, monkeypatch, width):
    monkeypatch.setattr("rtdetrv4.training.progress.SECONDS_BETWEEN", 0)
    text = io.StringIO()
    progress = TerminalProgress(2, terminal(text, width=width))
    progress.run_start(info(tmp_path))
    progress.step_end(step_report(1))
    shown = CONTROL.sub("", text.getvalue().splitlines()[-1]).split("\r")[-1]
    assert shown.startswith("epoch 1/3 ")
    assert "1/2  left 0:00:0" in shown
    assert shown.rstrip().endswith("lr 1.0e-03" if width == 200 else "loss 30.000")  # no number is cut in two
    assert len(shown) <= width
    progress.step_end(step_report(2))
    assert "validating" in text.getvalue()
    assert "step 2/2" not in text.getvalue()  # no plain lines
    progress.run_end(RunResult(tmp_path, 1, 0.1, {}, True))


def test_no_validation_is_announced_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("rtdetrv4.training.progress.SECONDS_BETWEEN", 0)
    for eval_every, validated in ((None, ()), (2, (2, 3)), (1, (1, 2, 3))):
        seen = []
        for epoch in (1, 2, 3):
            text = io.StringIO()
            progress = TerminalProgress(2, terminal(text))
            progress.run_start(info(tmp_path, eval_every=eval_every))
            progress.step_end(step_report(2 * epoch))
            progress.run_end(RunResult(tmp_path, None, None, {}, False))
            if "validating" in text.getvalue():
                seen.append(epoch)
        assert tuple(seen) == validated


def test_warnings_stand_above_the_live_line(tmp_path, monkeypatch):
    """Also those of a handler that took hold of sys.stderr before the run, as logging.basicConfig does."""
    text = io.StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    handler = logging.StreamHandler()
    logging.getLogger("rtdetrv4").addHandler(handler)
    try:
        progress = TerminalProgress(2, terminal(None, stderr=True))
        progress.run_start(info(tmp_path))
        progress.step_end(step_report(1))
        logging.getLogger("rtdetrv4.test").warning("something [red] is odd")
        before, _, after = text.getvalue().rpartition("something [red] is odd")
        assert before.endswith("\r\x1b[2K")  # the live line was erased
        assert after.startswith("\n")
        assert "epoch 1/3" in after  # and drawn again below
        progress.run_end(RunResult(tmp_path, None, None, {}, False))
        assert handler.stream is text
        assert sys.stderr is text
    finally:
        logging.getLogger("rtdetrv4").removeHandler(handler)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "unknown"}])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(tmp_path, environment):
    text = io.StringIO()
    play([TerminalProgress(1, terminal(text, _environ=environment))], tmp_path)
    assert "\x1b" not in text.getvalue()
    assert "step 1/2" in text.getvalue()


def test_no_color(tmp_path):
    text = io.StringIO()
    play([TerminalProgress(2, terminal(text, _environ={"TERM": "xterm", "NO_COLOR": "1"}))], tmp_path)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7][0-9;]*m", text.getvalue())
    text = io.StringIO()
    play([TerminalProgress(2, terminal(text))], tmp_path)
    assert re.search(r"\x1b\[[0-9;]*3[0-7][0-9;]*m", text.getvalue())


def test_a_log_file_gets_no_live_line_even_if_colors_are_forced(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = io.StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    progress = next(o for o in default_observers(tmp_path, log_every=1) if isinstance(o, TerminalProgress))
    play([progress], tmp_path)
    assert "step 1/2" in text.getvalue()
    assert "\r" not in text.getvalue()


def test_skipped_epochs_are_told(tmp_path):
    text = io.StringIO()
    progress = TerminalProgress(50, Console(file=text, width=200))
    progress.run_start(info(tmp_path, epoch=1, step=2))
    for step in (5, 6):
        progress.step_end(step_report(step))
    progress.epoch_end(epoch_report(3))
    progress.step_end(step_report(13))
    progress.run_end(RunResult(tmp_path, 1, 0.5, {}, True))
    told = [line for line in text.getvalue().splitlines() if "no better score" in line]
    assert told == [
        "epoch 2 skipped: no better score (run.patience)",
        "epochs 4 to 6 skipped: no better score (run.patience)",
    ]


def test_epochs_skipped_for_lack_of_time_are_told(tmp_path):
    text = io.StringIO()
    progress = TerminalProgress(50, Console(file=text, width=200))
    progress.run_start(info(tmp_path))
    progress.step_end(step_report(1))
    progress.epoch_end(epoch_report(1)._replace(is_late=True))
    progress.step_end(step_report(7))
    assert "epochs 2 to 3 skipped: slower than expected, and to end in time" in text.getvalue().splitlines()


def test_an_early_end_is_told(tmp_path):
    text = io.StringIO()
    play([TerminalProgress(50, Console(file=text, width=200))], tmp_path, epochs=2)
    assert "stopped after epoch 2: no better score (run.patience)" in text.getvalue().splitlines()
    text = io.StringIO()
    play([TerminalProgress(50, Console(file=text, width=200))], tmp_path)
    assert "stopped" not in text.getvalue()


def test_time_left_counts_the_steps_that_were_made(tmp_path, monkeypatch):
    """Also after a resume, and when early stopping has skipped epochs."""
    now = iter([100.0, 110.0, 110.0, 120.0, 120.0])
    monkeypatch.setattr("rtdetrv4.training.progress.time.monotonic", lambda: next(now))
    text = io.StringIO()
    progress = TerminalProgress(1, Console(file=text, width=200))
    progress.run_start(info(tmp_path, epoch=1, step=2))
    progress.step_end(step_report(3))  # 10 s a step, 3 of 6 left
    progress.step_end(step_report(5))  # 1 of 6 left
    assert PLAN.total_steps == 6
    assert "left 0:00:30" in text.getvalue()
    assert "left 0:00:10" in text.getvalue()
