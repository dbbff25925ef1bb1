"""Batches of what comes at the same time: the queue in front of a network."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from rtdetrv4.runtime.detect import Run
from rtdetrv4.serving.refusals import busy, closing, late

logger: logging.Logger = logging.getLogger(__name__)

FIRST_GUESS_S = 0.1
"""What an image takes, before one has been measured."""
MEMORY = 0.9
"""How much the measured time per image keeps of what it was, with every batch."""


class BatchSettings(NamedTuple):
    """How requests are joined."""

    max_batch: int = 8
    """Images per run."""
    max_wait_s: float = 0.005
    """How long the first image of a batch waits for others that are known to be on their way."""
    max_queue: int = 64
    """Images that may be on their way through a model at once; further ones are refused."""


class BatchOutput(NamedTuple):
    """What a run found in the images of one call."""

    scores: np.ndarray
    """B×N, descending."""
    labels: np.ndarray
    """B×N."""
    boxes: np.ndarray
    """B×N×4, xyxy in [0, 1] of the input."""
    waited_s: float
    """How long the call waited for its turn."""
    ran_s: float
    """How long the run took."""


class _Call:
    """Images that wait for their turn."""

    def __init__(self, images: Sequence[np.ndarray], deadline: float) -> None:
        self.images = images
        self.deadline = deadline
        self.since = time.monotonic()
        self.output: Future[BatchOutput] = Future()


class Place:
    """A place in the queue: the right of one image to be computed, however many tiles it has.

    Made by `Batcher.reserve`; `leave` must follow.
    """

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._has_come = self._has_left = False

    def submit(self, images: Sequence[np.ndarray], deadline: float) -> Future[BatchOutput]:
        """Hand in the image, or tiles of it; the next ones after these.

        Args:
            images: at most `Batcher.max_batch` images, H×W×3 uint8 RGB; memory is saved if they have the size of the
                input.
            deadline: when nobody waits for the output any more, as of `time.monotonic`. What has not begun by then is
                not computed.

        Returns:
            The output, which may be cancelled; or a `RefusedError` because it is late, or what the network raised.
        """
        self._has_come, is_first = True, not self._has_come
        return self._batcher._submit(_Call(images, deadline), is_first)

    def leave(self) -> None:
        """Give the place to someone else; further calls do nothing."""
        if not self._has_left:
            self._has_left = True
            self._batcher._leave(self._has_come)


class Batcher:
    """Runs a network for many callers, in batches of what is there.

    Whoever is next never waits for a full batch: while the network runs, images gather, and they are the next batch.
    Only if it is free and others have been announced (their places are reserved, they are being decoded) does it wait
    for them, and not for longer than `max_wait_s`.

    Args:
        run: the network; called from one thread, or as many as `num_workers` at once.
        settings: how to join requests.
        sizes: the only batch sizes to run, ascending; images are repeated to fill them. None: any.
        num_workers: threads that run the network.
        observe: called after every run with its number of images and seconds.
    """

    def __init__(
        self,
        run: Run,
        settings: BatchSettings,
        *,
        sizes: Sequence[int] | None = None,
        num_workers: int = 1,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self.settings = settings
        self._run = run
        self._sizes = tuple(sizes or range(1, settings.max_batch + 1))
        self._observe = observe
        self._calls: deque[_Call] = deque()
        self._num_reserved = self._num_coming = 0
        self._is_closing = False
        self._image_s = FIRST_GUESS_S
        self._busy_since: dict[int, float] = {}
        self._changed = threading.Condition()
        self._workers = [
            threading.Thread(target=self._work, name=f"batcher-{number}", daemon=True) for number in range(num_workers)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def max_batch(self) -> int:
        """The most images of a run."""
        return self._sizes[-1]

    @property
    def num_waiting(self) -> int:
        """Images, or tiles, that wait for their turn."""
        with self._changed:
            return sum(len(call.images) for call in self._calls)

    @property
    def num_reserved(self) -> int:
        """Images on their way through the model."""
        return self._num_reserved

    @property
    def is_alive(self) -> bool:
        """Whether all workers are there."""
        return all(worker.is_alive() for worker in self._workers)

    def longest_run_s(self) -> float:
        """Seconds since the run began that has taken longest of those that have not ended; 0 if there is none."""
        with self._changed:
            return time.monotonic() - min(self._busy_since.values()) if self._busy_since else 0.0

    def check_room(self, count: int = 1) -> None:
        """Check that this many images would be taken now.

        Raises:
            RefusedError: they would not, or the server stops.
        """
        with self._changed:
            self._check_room(count)

    def reserve(self, count: int) -> list[Place]:
        """Take places for images, for all of them or for none.

        Raises:
            RefusedError: there are not so many, or the server stops.
        """
        with self._changed:
            self._check_room(count)
            self._num_reserved += count
            self._num_coming += count
        return [Place(self) for _ in range(count)]

    def refuse(self) -> None:
        """Refuse what comes from now on; what has a place is still computed."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

    def close(self, timeout_s: float | None = None) -> None:
        """Refuse what comes from now on, compute what has a place, and end the workers.

        Args:
            timeout_s: how long to wait for that; what is not done by then is refused. None: as long as it takes.
        """
        self.refuse()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for worker in self._workers:
            worker.join(None if deadline is None else max(deadline - time.monotonic(), 0))
        with self._changed:
            left = list(self._calls)
            self._calls.clear()
        for call in left:
            _refuse(call, closing())

    def _check_room(self, count: int) -> None:
        if self._is_closing:
            raise closing()
        free = self.settings.max_queue - self._num_reserved
        if count > free:
            seconds = self._num_reserved * self._image_s / len(self._workers)
            raise busy(
                f"{self._num_reserved} images are on their way through this model, {self.settings.max_queue} at most",
                seconds,
            )

    def _submit(self, call: _Call, is_first: bool) -> Future[BatchOutput]:
        if not 0 < len(call.images) <= self.max_batch:
            raise ValueError(f"got {len(call.images)} images, expected 1 to {self.max_batch}")
        with self._changed:
            self._num_coming -= is_first
            if self._is_closing and not any(worker.is_alive() for worker in self._workers):
                raise closing()
            self._calls.append(call)
            self._changed.notify_all()
        return call.output

    def _leave(self, has_come: bool) -> None:
        with self._changed:
            self._num_reserved -= 1
            self._num_coming -= not has_come
            self._changed.notify_all()  # a worker may have waited for it

    def _work(self) -> None:
        while (calls := self._next_calls()) is not None:
            if calls:
                self._compute(calls)

    def _next_calls(self) -> list[_Call] | None:
        """Wait for work, and take as much of it as fits one run; None if there will be none."""
        with self._changed:
            while not self._calls:
                if self._is_closing and self._num_reserved == 0:
                    return None
                self._changed.wait()
            until = self._calls[0].since + self.settings.max_wait_s
            while (
                self._calls
                and self._num_coming > 0
                and sum(len(call.images) for call in self._calls) < self.max_batch
                and (left := until - time.monotonic()) > 0
            ):
                self._changed.wait(left)
            self._drop_late()
            return self._take()

    def _drop_late(self) -> None:
        """Refuse the calls that nobody waits for any more."""
        now = time.monotonic()
        kept: deque[_Call] = deque()
        for call in self._calls:
            if call.output.cancelled():
                continue
            if call.deadline <= now:
                _refuse(call, late())
            else:
                kept.append(call)
        self._calls = kept

    def _take(self) -> list[_Call]:
        """Take calls in their order, for the largest batch that they fill."""
        waiting = sum(len(call.images) for call in self._calls)
        wanted = max((size for size in self._sizes if size <= waiting), default=waiting)
        taken: list[_Call] = []
        count = 0
        while self._calls and (not taken or count + len(self._calls[0].images) <= wanted):
            call = self._calls.popleft()
            if call.output.set_running_or_notify_cancel():
                taken.append(call)
                count += len(call.images)
        return taken

    def _compute(self, calls: list[_Call]) -> None:
        images = [image for call in calls for image in call.images]
        count = len(images)
        size = next(size for size in self._sizes if size >= count)
        images += [images[-1]] * (size - count)
        start = time.monotonic()
        worker = threading.get_ident()
        with self._changed:
            self._busy_since[worker] = start
        found: tuple[np.ndarray, ...] | Exception
        try:
            found = self._run(images)
        except Exception as error:
            found = error
        with self._changed:
            del self._busy_since[worker]
        if isinstance(found, Exception):
            self._blame(calls, found)
            return
        scores, labels, boxes = found
        seconds = time.monotonic() - start
        with self._changed:
            self._image_s = MEMORY * self._image_s + (1 - MEMORY) * seconds / count
        if self._observe is not None:
            self._observe(count, seconds)
        first = 0
        for call in calls:
            part = slice(first, first := first + len(call.images))
            call.output.set_result(BatchOutput(scores[part], labels[part], boxes[part], start - call.since, seconds))

    def _blame(self, calls: list[_Call], error: Exception) -> None:
        """Find out whose images the network cannot compute, so that the others of the batch get theirs."""
        if len(calls) > 1:
            for call in calls:
                self._compute([call])
            return
        logger.error("the network failed on a batch of %d", len(calls[0].images), exc_info=error)
        calls[0].output.set_exception(error)


def _refuse(call: _Call, refusal: Exception) -> None:
    if call.output.set_running_or_notify_cancel():
        call.output.set_exception(refusal)


def batch_sizes(max_batch: int, count: int) -> tuple[int, ...]:
    """At most `count` batch sizes, ascending, for runtimes that prepare themselves for each of them.

    >>> batch_sizes(8, 4)
    (1, 2, 4, 8)
    >>> batch_sizes(12, 3)
    (1, 6, 12)
    """
    sizes = [max_batch]
    while sizes[-1] > 1 and len(sizes) < count - 1:
        sizes.append(math.ceil(sizes[-1] / 2))
    return tuple(sorted({*sizes, 1}))
