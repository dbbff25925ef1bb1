"""Reading ahead and writing behind: what is lost, what is raised, and that no thread remains."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from rtdetrv4.runtime import overlap
from rtdetrv4.runtime.overlap import MAX_WAITING, ReadAhead, WriteBehind


def no_size(_: object) -> int:
    return 0


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rtdetrv4")]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def counting(upto: int, made: list[int] | None = None) -> Callable[[threading.Event], Iterator[int]]:
    def read(_: threading.Event) -> Iterator[int]:
        for number in range(upto):
            if made is not None:
                made.append(number)
            yield number

    return read


def test_everything_comes_in_order_and_the_thread_ends() -> None:
    ahead = ReadAhead([counting(100)], size_of=no_size)
    assert threads() == [], "nothing is read before it is asked for"
    assert list(ahead) == list(range(100))
    ahead.close()
    assert threads() == []


def test_few_items_are_read_ahead() -> None:
    made: list[int] = []
    ahead = ReadAhead([counting(100, made)], size_of=no_size)
    assert next(ahead) == 0
    wait_until(lambda: len(made) == MAX_WAITING + 2)  # one in hand
    time.sleep(0.05)
    assert len(made) == MAX_WAITING + 2
    ahead.close()
    assert threads() == []


def test_large_items_wait_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MAX_WAITING_BYTES", 10)
    made: list[int] = []
    ahead = ReadAhead([counting(100, made)], size_of=lambda _: 6)
    assert next(ahead) == 0
    wait_until(lambda: len(made) == 3)  # 0 is used, 1 waits, 2 is in hand
    time.sleep(0.05)
    assert len(made) == 3
    assert list(ahead) == list(range(1, 100))
    ahead.close()


def test_an_error_comes_after_what_was_read() -> None:
    closed: list[str] = []

    def read(_: threading.Event) -> Iterator[int]:
        try:
            yield 1
            raise ValueError("gone")
        finally:
            closed.append("yes")

    ahead = ReadAhead([read], size_of=no_size)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="gone"):
        next(ahead)
    ahead.close()
    assert closed == ["yes"]
    assert threads() == []


def test_closing_early_stops_a_reader_that_waits() -> None:
    def read(stop: threading.Event) -> Iterator[int]:
        yield 0
        stop.wait(60)

    start = time.monotonic()
    ahead = ReadAhead([read], size_of=no_size)
    assert next(ahead) == 0
    ahead.close()
    assert threads() == []
    assert time.monotonic() - start < 30
    assert list(ahead) == []


def test_only_the_newest_is_kept() -> None:
    asked, end = threading.Event(), threading.Event()

    def read(_: threading.Event) -> Iterator[int]:
        yield 0
        asked.wait(20)
        yield from range(1, 50)
        end.wait(20)

    ahead = ReadAhead([read], size_of=no_size, is_replaced=lambda _: True)
    assert next(ahead) == 0
    asked.set()
    wait_until(lambda: ahead.num_dropped == 48)
    assert next(ahead) == 49
    end.set()
    assert list(ahead) == []
    ahead.close()


def test_items_that_wait_are_taken_in_turn() -> None:
    made: list[int] = []
    ahead = ReadAhead([counting(9, made), counting(9, made)], size_of=no_size)
    first = next(ahead)
    wait_until(lambda: len(made) == 2 * (MAX_WAITING + 1) + 1)  # both have as much as they may
    assert (first, [next(ahead) for _ in range(5)]) in [(0, [0, 1, 1, 2, 2])]
    ahead.close()


def test_pauses_are_told() -> None:
    go_on = threading.Event()

    def read(name: str) -> Callable[[threading.Event], Iterator[str]]:
        def of(_: threading.Event) -> Iterator[str]:
            yield f"{name}0"
            yield f"{name}1"
            go_on.wait(20)
            yield f"{name}2"

        return of

    ahead = ReadAhead([read("a"), read("b")], size_of=no_size, pauses=True)
    found: list[str] = []
    while len(found) < 4:
        found += [item for item in [next(ahead)] if item is not None]
    assert next(ahead) is None, "a batch may be run"
    go_on.set()
    rest = list(ahead)
    assert sorted(found + [item for item in rest if item is not None]) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert [item for item in found if item.startswith("b")] == ["b0", "b1"]
    assert not any(one is other is None for one, other in zip(rest, rest[1:], strict=False))
    ahead.close()


def test_a_slow_reader_does_not_keep_the_others_waiting() -> None:
    go_on = threading.Event()

    def slow(_: threading.Event) -> Iterator[int]:
        go_on.wait(20)
        yield -1

    ahead = ReadAhead([slow, counting(20)], size_of=no_size)
    assert [next(ahead) for _ in range(20)] == list(range(20))
    go_on.set()
    assert list(ahead) == [-1]
    ahead.close()


def test_everything_handed_over_is_written() -> None:
    written: list[int] = []

    def write(item: int) -> None:
        time.sleep(0.001)
        written.append(item)

    with WriteBehind(write, size_of=no_size) as behind:
        for number in range(20):
            behind.put(number)
    assert written == list(range(20))
    assert threads() == []


def test_what_was_handed_over_is_written_when_work_stops() -> None:
    written: list[int] = []
    with pytest.raises(KeyboardInterrupt), WriteBehind(written.append, size_of=no_size) as behind:  # noqa: PT012
        for number in range(3):
            behind.put(number)
        raise KeyboardInterrupt
    assert written == [0, 1, 2]
    assert threads() == []


def test_an_error_in_writing_reaches_who_hands_over() -> None:
    def write(_: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), WriteBehind(write, size_of=no_size) as behind:  # noqa: PT012
        for number in range(100):
            behind.put(number)
    assert threads() == []
    with pytest.raises(OSError, match="No space left"), WriteBehind(write, size_of=no_size) as behind:
        behind.put(1)
