"""Time spent in each phase of a training step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function

PHASES = ("data", "teacher", "forward", "loss", "backward", "optimizer")


class Clock:
    """Measures seconds by phase, without making anything wait for the device.

    On CUDA, phases are timed by events in the stream; `data` is how long the host waits for data, during which the
    device may still be at work. Phases appear under their names in a profiler's trace.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block as `phase`."""
        with record_function(phase):
            if self._is_cuda and phase != "data":
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                stream = torch.cuda.current_stream(self._device)  # which need not be the process's current device
                begin.record(stream)
                yield
                end.record(stream)
                self._events.append((phase, begin, end))
            else:
                start = time.perf_counter()
                yield
                self._seconds[phase] += time.perf_counter() - start

    def collect(self) -> None:
        """Add up the phases that the device has finished; call it where a step has waited for the device anyway."""
        while self._events and self._events[0][2].query():
            phase, begin, end = self._events.pop(0)
            self._seconds[phase] += begin.elapsed_time(end) / 1000

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call, in the order of `PHASES`."""
        if self._events:
            torch.cuda.synchronize(self._device)
            self.collect()
        taken = {phase: self._seconds[phase] for phase in PHASES if phase in self._seconds}
        self._seconds.clear()
        return taken
