"""`profile: true`: a table of operators and a trace of a few training steps."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

from rtdetrv4.training.clock import PHASES
from rtdetrv4.training.reports import Observer, RunInfo, RunResult, StepReport

logger: logging.Logger = logging.getLogger(__name__)

FIRST_STEPS, RECORDED_STEPS = 3, 5
"""Numbers of steps to skip, because the first ones allocate memory and choose algorithms, and then to record."""
NUM_ROWS = 40


class Profiler(Observer):
    """Writes `table.txt` and `trace.json` (for chrome://tracing or Perfetto); recorded steps are slower."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._profile: profile | None = None
        self._is_written = False

    def run_start(self, info: RunInfo) -> None:
        """Start the profiler."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or it announces every start and stop
        self._profile = profile(
            activities=sorted(supported_activities() & {ProfilerActivity.CPU, ProfilerActivity.CUDA}, key=str),
            schedule=schedule(wait=FIRST_STEPS - 1, warmup=1, active=RECORDED_STEPS, repeat=1),
            on_trace_ready=self._write,
            acc_events=True,  # some versions of PyTorch warn without it; there is one cycle
        )
        self._profile.start()

    def step_end(self, report: StepReport) -> None:
        """Advance the profiler."""
        if self._profile is not None:
            self._profile.step()

    def run_end(self, result: RunResult) -> None:
        """Stop the profiler; if the run ends within the recorded steps, it writes what it has."""
        if self._profile is not None:
            self._profile.stop()
        if not self._is_written:
            logger.warning("No profile: the run had fewer than %d steps.", FIRST_STEPS + 1)

    def _write(self, recorded: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = recorded.key_averages()
        key = "self_device_time_total" if any(row.self_device_time_total for row in rows) else "self_cpu_time_total"
        phases = [row for row in rows if row.key in PHASES]
        lines = [
            f"{row.key:<12}{row.cpu_time_total / 1e3 / max(row.count, 1):10.1f} ms × {row.count}" for row in phases
        ]
        table = rows.table(sort_by=key, row_limit=NUM_ROWS, max_name_column_width=60)
        text = "\n".join(["Phases, time on the host:", *sorted(lines), "", "Operators:", str(table)])
        (self.folder / "table.txt").write_text(text + "\n", encoding="utf-8")
        recorded.export_chrome_trace(str(self.folder / "trace.json"))
        self._is_written = True
        logger.info("Profile of %d steps written to %s.", RECORDED_STEPS, self.folder)
