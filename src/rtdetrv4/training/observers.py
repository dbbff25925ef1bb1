"""Observers of a run: logs, curves, trackers. They change nothing, and are notified on rank 0 only."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from rich.console import Console

from rtdetrv4.errors import ConfigError, MissingDependencyError, did_you_mean
from rtdetrv4.outputs import LOG_FILE, write_text
from rtdetrv4.training.progress import TerminalProgress
from rtdetrv4.training.reports import EpochReport, Observer, PseudoLabelReport, RunInfo, RunResult, StepReport
from rtdetrv4.training.run_curves import draw_curves
from rtdetrv4.training.symptoms import BandWatch, LoaderWatch, PseudoLabelWatch


def progress_console() -> Console:
    """Where runs show their progress: stderr."""
    # FORCE_COLOR asks for colors in a log file, not for a line that redraws itself.
    return Console(stderr=True, force_interactive=None if sys.stderr.isatty() else False)


def default_observers(out: Path, *, log_every: int = 50, console: Console | None = None) -> list[Observer]:
    """Progress on the console, `log.jsonl`, `curves.png`, and warnings about a run that goes wrong."""
    return [
        TerminalProgress(log_every, progress_console() if console is None else console),
        JsonLog(out / LOG_FILE, log_every),
        CurvePlot(out / LOG_FILE, out / "curves.png"),
        BandWatch(),
        LoaderWatch(),
        PseudoLabelWatch(),
    ]


class JsonLog(Observer):
    """One JSON object per line: {"type": "run" | "step" | "epoch", …}. NaN and infinity are null.

    A resumed run continues the file, after dropping what an earlier run logged after the checkpoint. Lines that cannot
    be written, because the disk is full, come with the first one that can.
    """

    MAX_WAITING = 10_000
    """Lines that are kept until they can be written; the oldest are given up."""

    def __init__(self, path: Path, log_every: int) -> None:
        self.path = path
        self.log_every = log_every
        self._waiting: deque[bytes] = deque(maxlen=self.MAX_WAITING)
        self._end: int | None = None  # of the last whole line, after a write that failed

    def run_start(self, info: RunInfo) -> None:
        """Begin a new file, or cut the old one to where the run resumes."""
        kept = [r for r in read_log(self.path) if r["step"] <= info.step] if info.step else []
        # An epoch that was over but not yet validated at the checkpoint will be logged after its validation.
        kept = [r for r in kept if r["type"] != "epoch" or r["epoch"] <= info.epoch]
        write_text(self.path, "".join(_json_line(record) for record in kept))
        plan = asdict(info.plan)
        self._write("run", info._replace(plan=plan, out=str(info.out))._asdict())  # type: ignore[arg-type]

    def step_end(self, report: StepReport) -> None:
        """Log every `log_every` steps."""
        if report.step % self.log_every == 0:
            self._write("step", report._asdict())

    def epoch_end(self, report: EpochReport) -> None:
        """Log the epoch."""
        nested = {"modulation": report.modulation, "pseudo_labels": report.pseudo_labels}
        plain = {name: None if value is None else value._asdict() for name, value in nested.items()}
        self._write("epoch", {**report._asdict(), **plain})

    def _write(self, kind: str, record: Mapping[str, Any]) -> None:
        self._waiting.append(_json_line({"type": kind, **record}).encode())
        with self.path.open("ab") as file:
            end = file.tell()
            if self._end is not None and self._end < end:  # a part of what is written again now
                end = file.truncate(self._end)
            self._end = end
            file.write(b"".join(self._waiting))
        self._waiting.clear()
        self._end = None


def check_tracker(name: str) -> None:
    """Refuse a tracker that does not exist, before anything is read for the run.

    Args:
        name: as of `Tracker`, or "none".

    Raises:
        ConfigError: accelerate has no such tracker.
        MissingDependencyError: its package is not installed.
    """
    if name == "none":
        return
    if name not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(LOGGER_TYPE_TO_CLASS)
        raise ConfigError(
            f'run.tracker: got "{name}", expected {known} or none.{did_you_mean(name, LOGGER_TYPE_TO_CLASS)}'
        )
    if name in set(map(str, LoggerType)) - set(map(str, get_available_trackers())):
        raise MissingDependencyError(f"{name} is not installed; install it with: pip install {name}")


class Tracker(Observer):
    """Scalars for one of accelerate's experiment trackers: TensorBoard, Weights & Biases, MLflow and others.

    Args:
        name: "tensorboard", "wandb", "mlflow", or another one that accelerate knows.
        accelerator: the run's accelerator.
        log_every: steps between two entries.
        settings: the run's settings by name. Not sent to TensorBoard: recipe.yaml is beside its folder.
        files_follow: whether `finish` will be called after the end of a complete run, with more to log.

    Raises:
        ConfigError: accelerate has no such tracker.
        MissingDependencyError: its package is not installed.
    """

    def __init__(
        self,
        name: str,
        accelerator: Accelerator,
        log_every: int,
        settings: Mapping[str, Any] | None = None,
        *,
        files_follow: bool = False,
    ) -> None:
        check_tracker(name)
        self.name = name
        self.accelerator = accelerator
        self.log_every = log_every
        self.settings: Mapping[str, Any] = settings or {}
        self.files_follow = files_follow

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
        if info.start_metrics:
            self._tracker.log(self._validation_scalars(info.start_metrics), step=info.step)

    def step_end(self, report: StepReport) -> None:
        """Log every `log_every` steps."""
        if report.step % self.log_every == 0:
            scalars = {f"step/{name}": value for name, value in report.losses.items()}
            self._tracker.log({**scalars, "step/grad_norm": report.grad_norm, "step/lr": report.lr}, step=report.step)

    def epoch_end(self, report: EpochReport) -> None:
        """Log the epoch."""
        scalars = {f"epoch/{name}": value for name, value in report.losses.items()}
        scalars |= self._validation_scalars(report.metrics)
        if report.modulation is not None:
            scalars |= {"distill/weight": report.distill_weight, "distill/aifi_share": report.modulation.share}
        if report.pseudo_labels is not None:
            scalars |= _pseudo_scalars(report.pseudo_labels)
        self._tracker.log(scalars, step=report.step)

    def run_end(self, result: RunResult) -> None:
        """Close the tracker, unless files follow."""
        if not (self.files_follow and result.is_complete):
            self._tracker.finish()

    def finish(self, files: Iterable[Path]) -> None:
        """Log pictures and pages of a complete run, if the tracker takes files, and close it.

        Those that are missing are left out. TensorBoard gets none: they are beside its folder.
        """
        send = _SENDERS.get(self.name)
        try:
            for file in files:
                if send is not None and file.is_file():
                    send(self._tracker, file)
        finally:
            self._tracker.finish()

    def _validation_scalars(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        per_class = {name: value for name, value in metrics.get("per_class", {}).items() if value is not None}
        of_class = "val/ap"
        if self.name == "mlflow":  # which refuses some characters, and may keep val/ap in a file, which is no folder
            per_class = {_NOT_IN_MLFLOW.sub("_", name): value for name, value in per_class.items()}
            of_class = "val/class_ap"
        return {
            **{f"val/{name}": value for name, value in metrics.items() if isinstance(value, float)},
            **{f"{of_class}/{name}": value for name, value in per_class.items()},
        }


def _pseudo_scalars(report: PseudoLabelReport) -> dict[str, float]:
    thresholds = [value for value in report.thresholds.values() if math.isfinite(value)]
    mean = {"pseudo_labels/mean_threshold": sum(thresholds) / len(thresholds)} if thresholds else {}
    return {"pseudo_labels/labeled_share": report.num_labeled / report.num_images, **mean}


_NOT_IN_MLFLOW = re.compile(r"[^\w\- :]")
_SENDERS: Mapping[str, Callable[[Any, Path], object]] = {
    "clearml": lambda tracker, file: tracker.tracker.upload_artifact(file.name, file),
    "comet_ml": lambda tracker, file: tracker.tracker.log_asset(str(file), file_name=file.name),
    "mlflow": lambda tracker, file: tracker.log_artifact(str(file)),
    "wandb": lambda tracker, file: tracker.tracker.save(str(file), base_path=str(file.parent), policy="now"),
}
"""How a file is handed to the trackers of accelerate that take files."""


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
