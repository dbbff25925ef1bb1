"""Progress on the console: a live line on a terminal, plain lines elsewhere, and one line per epoch in both."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import chain
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from rtdetrv4.data.document import count_of
from rtdetrv4.distillation import ModulationReport
from rtdetrv4.training.reports import EpochReport, Observer, RunInfo, RunResult, StepReport
from rtdetrv4.weights.files import WEIGHTS_FILE

RECENT_STEPS = 20
"""The live line shows means over this many steps: a single batch says little."""
SECONDS_BETWEEN = 0.1
"""At most this often is the live line drawn."""
BAR_WIDTH = 20
SHOWN_TERMS = ("mal", "vfl", "bbox", "giou", "distill")


class TerminalProgress(Observer):
    """A live line on a terminal, plain lines in a file, a pipe or a notebook; and one line per epoch in all of them.

    Args:
        log_every: steps between two plain lines.
        console: where to write.
    """

    def __init__(self, log_every: int, console: Console) -> None:
        self.log_every = log_every
        self.console = console
        self._bar = Progress(
            *(TextColumn("{task.description}"), BarColumn(BAR_WIDTH), TextColumn("{task.fields[status]}")),
            console=console,
            # No thread: a loader worker that is forked while it draws would inherit a lock that nobody releases.
            auto_refresh=False,
            transient=True,
            disable=not console.is_interactive,
        )
        self._task = TaskID(0)
        self._moved_handlers: list[tuple[logging.StreamHandler, Any]] = []

    def run_start(self, info: RunInfo) -> None:
        """Print the model, the hardware, the length of the run, and what the starting weights can do."""
        self._plan, self._eval_every = info.plan, info.eval_every
        self._best: float | None = info.start_metrics.get("ap")
        self._last_epoch, self._is_late = info.epoch, False
        self._steps_done, self._started, self._drawn = 0, time.monotonic(), 0.0
        self._recent: deque[tuple[float, StepReport]] = deque(maxlen=RECENT_STEPS + 1)
        self._print(
            f"{info.num_parameters / 1e6:.2f} M parameters on {info.hardware}; teacher {info.teacher or 'none'}; "
            f"{count_of(info.plan.epochs, 'epoch', 'epochs')} × "
            f"{count_of(info.plan.steps_per_epoch, 'step', 'steps')}; results in {info.out}"
        )
        if info.step:
            self._print(f"resumed after {count_of(info.step, 'step', 'steps')}")
        if info.start_metrics:
            metrics = info.start_metrics
            self._print(f"starting weights: AP {_percent(metrics['ap'])}  AP50 {_percent(metrics['ap50'])}")
        self._task = self._bar.add_task("", total=info.plan.steps_per_epoch, status="first step")
        if self.console.is_interactive:
            self._start_bar()

    def step_end(self, report: StepReport) -> None:
        """Redraw the live line, or print a line every `log_every` steps."""
        now = time.monotonic()
        self._steps_done += 1
        self._recent.append((now, report))
        if report.epoch > self._last_epoch + 1:
            first, self._last_epoch = self._last_epoch + 1, report.epoch - 1
            skipped = f"epoch {first}" if first == self._last_epoch else f"epochs {first} to {self._last_epoch}"
            reason = "slower than expected, and to end in time" if self._is_late else "no better score (run.patience)"
            self._print(f"{skipped} skipped: {reason}")
        done = (report.step - 1) % self._plan.steps_per_epoch + 1
        is_last = done == self._plan.steps_per_epoch
        if self.console.is_interactive:
            if is_last or now - self._drawn >= SECONDS_BETWEEN:
                self._drawn = now
                epoch = self._epoch(report)
                parts = ["validating"] if is_last and self._is_evaluated(report.epoch) else self._parts(report)
                room = self.console.width - len(epoch) - BAR_WIDTH - 3
                status = _fitting([f"{done}/{self._plan.steps_per_epoch}", *parts], room)
                self._bar.update(self._task, completed=done, description=epoch, status=status)
                self._bar.refresh()
        elif report.step % self.log_every == 0 and not is_last:  # else the line of the epoch follows
            parts = [self._epoch(report), f"step {done}/{self._plan.steps_per_epoch}", *self._parts(report)]
            self._print("  ".join(parts))

    def epoch_end(self, report: EpochReport) -> None:
        """Print one line."""
        line = Text(self._epoch(report))
        line.stylize("bold")
        line.append(f"  {report.stage:<10}  loss {_number(report.losses, 'loss')}")
        if report.metrics:
            line.append(f"  AP {_percent(report.metrics['ap']):>4}  AP50 {_percent(report.metrics['ap50']):>4}")
            self._best = report.best_score
            if report.best_score is not None and report.is_best:  # else the validation images have no objects
                line.append("  best     ", style="green")
            elif report.best_score is not None:
                line.append(f"  best {_percent(report.best_score):>4}", style="dim")
        self._last_epoch, self._is_late = report.epoch, report.is_late
        parts = []
        if report.modulation is not None:
            parts.append(
                f"distill {_number(report.losses, 'distill')}  λ {report.distill_weight:.3g}  "
                f"AIFI {report.modulation.share:.2f} %{_target(report.modulation)}"
            )
        if report.pseudo_labels is not None:
            pseudo = report.pseudo_labels
            parts.append(f"pseudo-labels in {pseudo.num_labeled} of {count_of(pseudo.num_images, 'image', 'images')}")
        if report.num_skipped:
            parts.append(f"{count_of(report.num_skipped, 'step', 'steps')} skipped")
        if report.num_unreadable:
            parts.append(f"{count_of(report.num_unreadable, 'image', 'images')} unreadable")
        parts.append(f"{report.seconds:.0f} s")
        if not self.console.is_interactive:  # else it stands in the live line
            parts += [f"{report.images_per_second:.1f} images/s", f"left {self._left(report)}"]
        line.append("".join(f"  {part}" for part in parts))
        self._bar.update(self._task, completed=0, description="next epoch", status="")
        self._bar.refresh()
        self._print(line)

    def run_end(self, result: RunResult) -> None:
        """Print where the results are."""
        self._stop_bar()
        if result.is_complete:
            if self._is_late:
                self._print(f"stopped in epoch {self._last_epoch}: slower than expected, and to end in time")
            elif self._last_epoch < self._plan.epochs:
                self._print(f"stopped after epoch {self._last_epoch}: no better score (run.patience)")
            score = result.best_score
            best = "last " if score is None else f"best AP {_percent(score)} in epoch {result.best_epoch}; "
            self._print(f"done: {best}weights in {result.out / WEIGHTS_FILE}")

    def _start_bar(self) -> None:
        """Show the live line, and let log handlers write above it instead of into it."""
        streams = (sys.stderr, sys.stdout)
        self._bar.start()  # from here on, sys.stderr and sys.stdout write above the live line
        for handler in chain(logging.getLogger().handlers, logging.getLogger("rtdetrv4").handlers):
            if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
                self._moved_handlers.append((handler, handler.stream))
                handler.setStream(sys.stderr)

    def _stop_bar(self) -> None:
        for handler, stream in self._moved_handlers:
            handler.setStream(stream)
        self._moved_handlers.clear()
        self._bar.stop()

    def _parts(self, report: StepReport) -> list[str]:
        """Time left, mean losses, the best AP, and speed; the most important first."""
        reports = [each for _, each in self._recent][-RECENT_STEPS:]
        losses = {
            name: sum(values) / len(values)
            for name in ("loss", *SHOWN_TERMS)
            if (values := [each.losses[name] for each in reports if name in each.losses and each.is_finite])
        }
        parts = [f"left {self._left(report)}", f"loss {_number(losses, 'loss')}"]
        if self._best is not None:
            parts.append(f"AP {_percent(self._best)}")
        if len(self._recent) > 1:
            seconds = self._recent[-1][0] - self._recent[0][0]
            images = sum(each.num_images for _, each in self._recent) - self._recent[0][1].num_images
            parts.append(f"{images / max(seconds, 1e-9):.1f} images/s")
        parts += [f"{name} {_number(losses, name)}" for name in SHOWN_TERMS if name in losses]
        return [*parts, f"lr {report.lr:.1e}"]

    def _epoch(self, report: StepReport | EpochReport) -> str:
        width = len(str(self._plan.epochs))
        return f"epoch {report.epoch:>{width}}/{self._plan.epochs}"

    def _is_evaluated(self, epoch: int) -> bool:
        return self._eval_every is not None and (epoch % self._eval_every == 0 or epoch == self._plan.epochs)

    def _left(self, report: StepReport | EpochReport) -> str:
        passed = time.monotonic() - self._started
        seconds = round(passed / max(self._steps_done, 1) * (self._plan.total_steps - report.step))
        return str(timedelta(seconds=seconds))

    def _print(self, line: str | Text) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)


def _fitting(parts: Sequence[str], width: int) -> str:
    """As many parts, from the first on, as a line of `width` characters holds."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) > width:
            break
        line += f"  {part}"
    return line


def _number(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:.3f}" if name in values else "–"


def _target(modulation: ModulationReport) -> str:
    if modulation.reason == "probe":
        return " (probe)"
    return "" if modulation.band is None else f" (target {modulation.band[0]:.2f}–{modulation.band[1]:.2f})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
