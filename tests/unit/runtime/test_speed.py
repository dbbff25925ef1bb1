from __future__ import annotations

import pytest

from rtdetrv4.runtime import speed
from rtdetrv4.runtime.speed import measure_speed


class Clock:
    """A clock that only moves when a run takes its time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(speed, "time", made)
    return made


def test_the_first_runs_do_not_count(clock: Clock) -> None:
    took = iter([9.0, 9.0, 9.0, *(number / 1000 for number in range(1, 12))])
    numbers = []

    def run(number: int) -> None:
        numbers.append(number)
        clock.now += next(took)

    assert measure_speed(run, seconds=100, most=11) == (6.0, 10.0, 11)
    assert numbers == list(range(14))


def test_slow_runs_end_after_the_time(clock: Clock) -> None:
    def run(number: int) -> None:
        del number
        clock.now += 0.5

    assert measure_speed(run, seconds=3.0) == (500.0, 500.0, 3)
    assert measure_speed(run, seconds=0.1) == (500.0, 500.0, 3)
