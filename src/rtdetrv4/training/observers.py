"""Observers of a run: progress, logs, curves. They change nothing, and are notified on rank 0 only."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rtdetrv4.distillation import ModulationReport
from rtdetrv4.errors import ConfigError, MissingDependencyError, did_you_mean
from rtdetrv4.training.checkpoint import WEIGHTS_FILE
from rtdetrv4.training.plan import Plan
from rtdetrv4.training.run_curves import draw_curves

logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"
EPOCHS_OUTSIDE = 4
"""Number of consecutive epochs on one side of GAM's band after which the band counts as out of reach."""


class RunInfo(NamedTuple):
    """What is known before the first step."""

    out: Path
    plan: Plan
    epoch: int
    """Epochs already done, in a resumed run; 0 in a new one."""
    step: int
    """Optimizer steps already done."""
    hardware: str
    """Device, ranks and number format."""
    num_parameters: int
    """Trainable parameters."""
    teacher: str | None


class StepReport(NamedTuple):
    """An optimizer step. Epochs and steps count from 1; numbers are means over ranks."""

    epoch: int
    step: int
    losses: Mapping[str, float]
    """The unweighted terms, and "loss", their weighted sum."""
    grad_norm: float
    """Gradient norm before clipping."""
    lr: float
    """Highest learning rate of all parameter groups."""
    distill_weight: float | None
    """λ."""
    num_images: int
    is_finite: bool
    """False if the step was skipped."""


class EpochReport(NamedTuple):
    """An epoch, after its checkpoints are written. Epochs and steps count from 1."""

    epoch: int
    step: int
    stage: str
    losses: Mapping[str, float]
    """Means over the epoch: the unweighted terms, and "loss", their weighted sum."""
    lr: float
    metrics: Mapping[str, Any]
    """Empty if the epoch was not evaluated."""
    best_score: float | None
    is_best: bool
    distill_weight: float | None
    """λ during the epoch."""
    modulation: ModulationReport | None
    num_skipped: int
    """Steps skipped so far because they were not finite."""
    num_unreadable: int
    """Images that could not be decoded so far."""
    seconds: float
    """Duration, including validation."""
    images_per_second: float
    """Training speed."""
    shares: Mapping[str, float]
    """Share of the training time by phase, see `clock.PHASES`; the rest is logging and waiting."""


class RunResult(NamedTuple):
    """The end of a run, whether complete, interrupted or failed."""

    out: Path
    best_epoch: int | None
    best_score: float | None
    best_metrics: Mapping[str, Any]
    is_complete: bool


@runtime_checkable
class Observer(Protocol):
    """Watches a run. A subclass overrides what it needs.

    All calls are made on rank 0 only. An exception ends the run and reaches the caller of `train`, after `run_end` was
    called on every observer that was started.
    """

    def run_start(self, info: RunInfo) -> None:
        """Called before the first step."""

    def step_end(self, report: StepReport) -> None:
        """Called after each optimizer step."""

    def epoch_end(self, report: EpochReport) -> None:
        """Called after each epoch, when its checkpoints are written."""

    def run_end(self, result: RunResult) -> None:
        """Called when the run is complete, was interrupted, or has failed."""


def default_observers(out: Path, *, log_every: int = 50, console: Console | None = None) -> list[Observer]:
    """Progress on the terminal, `log.jsonl`, `curves.png`, and a warning if GAM's band is out of reach."""
    return [
        TerminalProgress(log_every, console or Console(stderr=True)),
        JsonLog(out / LOG_FILE, log_every),
        CurvePlot(out / LOG_FILE, out / "curves.png"),
        BandWatch(),
    ]


class TerminalProgress(Observer):
    """A progress bar on a terminal, or plain lines in a file or pipe; and one line per epoch in both."""

    def __init__(self, log_every: int, console: Console) -> None:
        self.log_every = log_every
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[status]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = TaskID(0)

    def run_start(self, info: RunInfo) -> None:
        """Print the model, the hardware and the length of the run."""
        self._plan = info.plan
        self._first_step, self._started = info.step, time.monotonic()
        self._print(
            f"{info.num_parameters / 1e6:.2f} M parameters on {info.hardware}; teacher {info.teacher or 'none'}; "
            f"{info.plan.epochs} epochs × {info.plan.steps_per_epoch} steps; results in {info.out}"
        )
        if info.step:
            self._print(f"resumed after {info.step} steps")
        self._task = self._bar.add_task("", total=info.plan.steps_per_epoch, status="")
        self._bar.start()

    def step_end(self, report: StepReport) -> None:
        """Move the bar, or print a line every `log_every` steps."""
        done = (report.step - 1) % self._plan.steps_per_epoch + 1
        epoch = f"epoch {report.epoch}/{self._plan.epochs}"
        status = f"loss {report.losses['loss']:.3f}  left {self._left(report.step)}"
        self._bar.update(self._task, completed=done, description=epoch, status=status)
        if not self.console.is_terminal and report.step % self.log_every == 0:
            self._print(f"{epoch}  step {done}/{self._plan.steps_per_epoch}  lr {report.lr:.2e}  {status}")

    def epoch_end(self, report: EpochReport) -> None:
        """Print one line."""
        parts = [
            f"epoch {report.epoch}/{self._plan.epochs}",
            f"{report.stage:<10}",
            f"loss {_number(report.losses, 'loss')}",
        ]
        if report.metrics:
            best = "best" if report.is_best else f"best {_percent(report.best_score)}"
            parts.append(f"AP {_percent(report.metrics['ap'])} ({best})  AP50 {_percent(report.metrics['ap50'])}")
        if report.modulation is not None:
            parts.append(
                f"distill {_number(report.losses, 'distill')}  λ {report.distill_weight:.3g}  "
                f"AIFI {report.modulation.share:.2f} %{_target(report.modulation)}"
            )
        if report.num_skipped:
            parts.append(f"{report.num_skipped} steps skipped")
        if report.num_unreadable:
            parts.append(f"{report.num_unreadable} images unreadable")
        shares = " ".join(f"{phase} {100 * share:.0f}%" for phase, share in report.shares.items())
        parts.append(f"{report.images_per_second:.1f} images/s ({shares})  left {self._left(report.step)}")
        self._print("  ".join(parts))

    def run_end(self, result: RunResult) -> None:
        """Print where the results are."""
        self._bar.stop()
        if result.is_complete:
            score = result.best_score
            best = "" if score is None else f"best AP {_percent(score)} in epoch {result.best_epoch}; "
            self._print(f"done: {best}weights in {result.out / WEIGHTS_FILE}")

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _left(self, step: int) -> str:
        passed = time.monotonic() - self._started
        seconds = round(passed / max(step - self._first_step, 1) * (self._plan.total_steps - step))
        return str(timedelta(seconds=seconds))


class JsonLog(Observer):
    """One JSON object per line: {"type": "run" | "step" | "epoch", …}. NaN and infinity are null.

    A resumed run continues the file, after dropping what an earlier run logged after the checkpoint.
    """

    def __init__(self, path: Path, log_every: int) -> None:
        self.path = path
        self.log_every = log_every

    def run_start(self, info: RunInfo) -> None:
        """Begin a new file, or cut the old one to where the run resumes."""
        kept = [r for r in read_log(self.path) if r["step"] <= info.step] if info.step else []
        # An epoch that was over but not yet validated at the checkpoint will be logged after its validation.
        kept = [r for r in kept if r["type"] != "epoch" or r["epoch"] <= info.epoch]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", encoding="utf-8") as file:
            file.writelines(_json_line(record) for record in kept)
        plan = asdict(info.plan)
        self._write("run", info._replace(plan=plan, out=str(info.out))._asdict())  # type: ignore[arg-type]

    def step_end(self, report: StepReport) -> None:
        """Log every `log_every` steps."""
        if report.step % self.log_every == 0:
            self._write("step", report._asdict())

    def epoch_end(self, report: EpochReport) -> None:
        """Log the epoch."""
        modulation = None if report.modulation is None else report.modulation._asdict()
        self._write("epoch", {**report._asdict(), "modulation": modulation})

    def _write(self, kind: str, record: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_json_line({"type": kind, **record}))


class Tracker(Observer):
    """Scalars for one of accelerate's experiment trackers: TensorBoard, Weights & Biases, MLflow and others.

    Args:
        name: "tensorboard", "wandb", "mlflow", or another one that accelerate knows.
        accelerator: the run's accelerator.
        log_every: steps between two entries.
        settings: the run's settings by name. Not sent to TensorBoard: recipe.yaml is beside its folder.

    Raises:
        ConfigError: accelerate has no such tracker.
        MissingDependencyError: its package is not installed.
    """

    def __init__(
        self, name: str, accelerator: Accelerator, log_every: int, settings: Mapping[str, Any] | None = None
    ) -> None:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise ConfigError(
                f'run.tracker: got "{name}", expected {known} or none.{did_you_mean(name, LOGGER_TYPE_TO_CLASS)}'
            )
        if name in set(map(str, LoggerType)) - set(map(str, get_available_trackers())):
            raise MissingDependencyError(f"{name} is not installed; install it with: pip install {name}")
        self.name = name
        self.accelerator = accelerator
        self.log_every = log_every
        self.settings = settings or {}

    def run_start(self, info: RunInfo) -> None:
        """Open the tracker; TensorBoard hides what an earlier run logged after the checkpoint."""
        is_local = self.name == "tensorboard"
        self.accelerator.log_with = [self.name]  # pyright: ignore[reportAttributeAccessIssue]
        self.accelerator.project_configuration.logging_dir = str(info.out)
        self.accelerator.init_trackers(
            "tensorboard" if is_local else "rtdetrv4",  # for TensorBoard the folder, elsewhere the project
            None if is_local else {name: _scalar(value) for name, value in self.settings.items()},
            {
                "tensorboard": {"purge_step": info.step + 1},
                "wandb": {"name": info.out.name, "dir": str(info.out)},
                "mlflow": {"run_name": info.out.name},
            },
        )
        self._tracker = self.accelerator.trackers[-1]

    def step_end(self, report: StepReport) -> None:
        """Log every `log_every` steps."""
        if report.step % self.log_every == 0:
            scalars = {f"step/{name}": value for name, value in report.losses.items()}
            self._tracker.log({**scalars, "step/grad_norm": report.grad_norm, "step/lr": report.lr}, step=report.step)

    def epoch_end(self, report: EpochReport) -> None:
        """Log the epoch."""
        scalars = {f"epoch/{name}": value for name, value in report.losses.items()}
        scalars |= {f"val/{name}": value for name, value in report.metrics.items() if isinstance(value, float)}
        scalars |= {
            f"val/ap/{name}": value for name, value in report.metrics.get("per_class", {}).items() if value is not None
        }
        if report.modulation is not None:
            scalars |= {"distill/weight": report.distill_weight, "distill/aifi_share": report.modulation.share}
        self._tracker.log(scalars, step=report.step)

    def run_end(self, result: RunResult) -> None:
        """Close the tracker."""
        self._tracker.finish()


class CurvePlot(Observer):
    """`curves.png`, redrawn from the log after an epoch, at most twice a minute, and at the end."""

    def __init__(self, log: Path, picture: Path, seconds_between: float = 30.0) -> None:
        self.log = log
        self.picture = picture
        self.seconds_between = seconds_between
        self._drawn = -math.inf

    def epoch_end(self, report: EpochReport) -> None:
        """Draw, unless that was done recently: on small data, drawing can take longer than an epoch."""
        if time.monotonic() - self._drawn >= self.seconds_between:
            self._draw()

    def run_end(self, result: RunResult) -> None:
        """Draw the final curves."""
        self._draw()

    def _draw(self) -> None:
        draw_curves(read_log(self.log), self.picture)
        self._drawn = time.monotonic()


class BandWatch(Observer):
    """Warns, once, when AIFI's share stays on one side of GAM's band, so that λ runs away."""

    def __init__(self) -> None:
        self._outside: list[EpochReport] = []
        self._has_warned = False

    def epoch_end(self, report: EpochReport) -> None:
        """Count the epochs on the same side of the band, and warn."""
        modulation = report.modulation
        if modulation is None or modulation.band is None or modulation.reason not in ("below", "above"):
            self._outside = []
            return
        before = self._outside[-1].modulation if self._outside else None
        if before is not None and before.reason != modulation.reason:
            self._outside = []
        self._outside.append(report)
        if len(self._outside) == EPOCHS_OUTSIDE and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "AIFI's share of the gradient, now %.2f %%, has been %s the target %.2f–%.2f %% for %d epochs, while λ "
                "went from %.3g to %.3g. This band does not seem to suit your data, and a runaway λ costs accuracy: "
                "start again with distillation.mode=auto, which measures a band, or with mode=fixed.",
                modulation.share,
                modulation.reason,
                *modulation.band,
                len(self._outside),
                self._outside[0].distill_weight,
                modulation.weight,
            )


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a `log.jsonl`, oldest first; empty if there is no such file. Truncated lines are dropped."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def _json_line(record: Mapping[str, Any]) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, float):
            return float(f"{value:.7g}") if math.isfinite(value) else None
        return value

    return json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n"


def _scalar(value: Any) -> bool | float | str | None:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _number(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:.3f}" if name in values else "–"


def _target(modulation: ModulationReport) -> str:
    if modulation.reason == "probe":
        return " (probe)"
    return "" if modulation.band is None else f" (target {modulation.band[0]:.2f}–{modulation.band[1]:.2f})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
