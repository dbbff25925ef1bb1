"""Work in threads beside the caller's: reading ahead, and writing behind. No thread outlives its owner's `close`."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

MAX_WAITING = 4
"""Items that wait for the next stage, at most."""
MAX_WAITING_BYTES = 256 * 1024 * 1024
"""Their bytes, at most; a larger item waits alone."""
WAKE_S = 0.5
"""How often a waiting thread looks up, for systems on which Ctrl-C does not wake it."""

T = TypeVar("T")


class _Lane(Generic[T]):
    """The items of one reader that wait to be used."""

    def __init__(self) -> None:
        self.items: deque[T] = deque()
        self.num_bytes = 0
        self.is_open = True
        self.error: BaseException | None = None


class ReadAhead(Generic[T]):
    """Iterates over readers, each of which runs in a thread of its own.

    Several readers take turns: whichever has an item ready, none twice while another waits.

    Args:
        readers: each is called in its thread with an event that is set when it should stop, and returns what to iterate
            over.
        size_of: the bytes of an item.
        is_replaced: whether an item that waits is dropped when its reader has a newer one, for those who are slower
            than a camera; otherwise the reader waits when enough of its items do.
        pauses: yield None when no item is ready, once after each item, so that a batch of what has come need not wait
            for more.

    Attributes:
        num_dropped: items that newer ones replaced.
    """

    def __init__(
        self,
        readers: Sequence[Callable[[threading.Event], Iterator[T]]],
        *,
        size_of: Callable[[T], int],
        is_replaced: Callable[[T], bool] = lambda _: False,
        pauses: bool = False,
    ) -> None:
        self.num_dropped: int = 0
        self._size_of = size_of
        self._is_replaced = is_replaced
        self._pauses = pauses
        self._can_pause = False
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._lanes: deque[_Lane[T]] = deque(_Lane() for _ in readers)
        self._threads = [
            threading.Thread(target=self._read, args=(reader, lane), name="rtdetrv4-reader", daemon=True)
            for reader, lane in zip(readers, self._lanes, strict=True)
        ]
        self._is_started = False

    def __iter__(self) -> Iterator[T | None]:
        return self

    def __next__(self) -> T | None:
        if not self._is_started:
            self._is_started = True
            for thread in self._threads:
                thread.start()
        with self._changed:
            while not self._stop.is_set():
                for _ in range(len(self._lanes)):
                    lane = self._lanes[0]
                    self._lanes.rotate(-1)
                    if lane.items:
                        item = lane.items.popleft()
                        lane.num_bytes -= self._size_of(item)
                        self._can_pause = self._pauses
                        self._changed.notify_all()
                        return item
                    if lane.error is not None:
                        raise lane.error
                if not any(lane.is_open for lane in self._lanes):
                    break
                if self._can_pause:
                    self._can_pause = False
                    return None
                self._changed.wait(WAKE_S)
        raise StopIteration

    def close(self) -> None:
        """Stop the readers, and wait for them."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._is_started:
            for thread in self._threads:
                thread.join()

    def _read(self, reader: Callable[[threading.Event], Iterator[T]], lane: _Lane[T]) -> None:
        try:
            items = reader(self._stop)
            try:
                for item in items:
                    if not self._put(item, lane):
                        break
            finally:
                close_iterator(items)
        except BaseException as error:  # for the thread that uses the items
            lane.error = error
        finally:
            with self._changed:
                lane.is_open = False
                self._changed.notify_all()

    def _put(self, item: T, lane: _Lane[T]) -> bool:
        num_bytes = self._size_of(item)
        with self._changed:
            if self._is_replaced(item):
                self.num_dropped += len(lane.items)
                lane.items.clear()
                lane.num_bytes = 0
            while _is_full(lane.items, lane.num_bytes + num_bytes) and not self._stop.is_set():
                self._changed.wait(WAKE_S)
            if self._stop.is_set():
                return False
            lane.items.append(item)
            lane.num_bytes += num_bytes
            self._changed.notify_all()
        return True


class WriteBehind(Generic[T]):
    """Hands items to a function that runs in a thread.

    Args:
        write: called with one item after the other.
        size_of: the bytes of an item.
    """

    def __init__(self, write: Callable[[T], object], *, size_of: Callable[[T], int]) -> None:
        self._write = write
        self._size_of = size_of
        self._items: deque[T] = deque()
        self._num_bytes = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="rtdetrv4-writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> WriteBehind[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(Exception) if kind is not None else contextlib.nullcontext():
            self.close()

    def put(self, item: T) -> None:
        """Hand over an item, and wait if too many are not yet written.

        Raises:
            BaseException: what `write` raised, now or earlier.
        """
        num_bytes = self._size_of(item)
        with self._changed:
            while _is_full(self._items, self._num_bytes + num_bytes) and self._error is None:
                self._changed.wait(WAKE_S)
            if self._error is None:
                self._items.append(item)
                self._num_bytes += num_bytes
                self._changed.notify_all()
                return
        self.close()

    def close(self) -> None:
        """Wait until everything is written.

        Raises:
            BaseException: what `write` raised; the items after it are lost.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._items and not self._is_closed:
                    self._changed.wait()
                if not self._items:
                    return
                item = self._items.popleft()
                self._num_bytes -= self._size_of(item)
                self._changed.notify_all()
            try:
                self._write(item)
            except BaseException as error:  # for the thread that hands over
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return


def close_iterator(items: object) -> None:
    """Close a generator, or what behaves like one; others need not be closed."""
    close = getattr(items, "close", None)
    if close is not None:
        close()


def _is_full(items: Sequence[object] | deque[T], num_bytes: int) -> bool:
    return len(items) >= MAX_WAITING or (len(items) > 0 and num_bytes > MAX_WAITING_BYTES)
