"""The queue in front of a network, with networks that do what a test tells them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from rtdetrv4.serving.batching import Batcher, BatchSettings, batch_sizes
from rtdetrv4.serving.refusals import RefusedError

PATIENCE_S = 20.0
Outputs = tuple[np.ndarray, np.ndarray, np.ndarray]


def image(value: int) -> np.ndarray:
    return np.full((1, 1, 3), value, dtype=np.uint8)


class Net:
    """Says of each image which value it has; can be held, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.runs = threading.Semaphore(0)

    def __call__(self, images: Sequence[np.ndarray]) -> Outputs:
        values = [int(each[0, 0, 0]) for each in images]
        self.batches.append(values)
        self.runs.release()
        assert self.may_run.wait(PATIENCE_S)
        if 99 in values:
            raise RuntimeError("cannot compute 99")
        scores = np.array(values, dtype=np.float32)[:, None]
        return scores, np.zeros(scores.shape, dtype=np.int64), np.zeros((len(values), 1, 4), dtype=np.float32)

    def wait_for_a_run(self) -> None:
        assert self.runs.acquire(timeout=PATIENCE_S)


@contextmanager
def batcher_of(net: Callable[[Sequence[np.ndarray]], Outputs], **options: Any) -> Iterator[Batcher]:
    settings = BatchSettings(**{key: options.pop(key) for key in list(options) if key in BatchSettings._fields})
    batcher = Batcher(net, settings, **options)
    try:
        yield batcher
    finally:
        batcher.close(PATIENCE_S)
        assert not any(worker.is_alive() for worker in batcher._workers)


def soon() -> float:
    return time.monotonic() + PATIENCE_S


def until(condition: Callable[[], bool]) -> None:
    deadline = soon()
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_everyone_gets_the_output_of_their_own_images() -> None:
    net = Net()
    with batcher_of(net, max_batch=4) as batcher:
        places = batcher.reserve(10)
        outputs = [place.submit([image(n), image(n + 100)], soon()) for n, place in enumerate(places)]
        for n, output in enumerate(outputs):
            got = output.result(PATIENCE_S)
            assert got.scores.tolist() == [[n], [n + 100]]
            assert got.labels.shape == (2, 1)
            assert got.boxes.shape == (2, 1, 4)
            assert got.waited_s >= 0
            assert got.ran_s > 0
        for place in places:
            place.leave()
            place.leave()
        assert batcher.num_reserved == 0
    assert max(map(len, net.batches)) <= 4


def test_what_gathers_while_the_network_runs_is_the_next_batch() -> None:
    net = Net()
    seen: list[int] = []
    with batcher_of(net, max_batch=3, max_wait_s=0, observe=lambda count, _: seen.append(count)) as batcher:
        net.may_run.clear()
        places = batcher.reserve(6)
        outputs = [places[0].submit([image(0)], soon())]
        net.wait_for_a_run()
        outputs += [place.submit([image(n)], soon()) for n, place in enumerate(places) if n]
        assert batcher.num_waiting == 5
        assert batcher.longest_run_s() > 0
        net.may_run.set()
        assert [output.result(PATIENCE_S).scores[0, 0] for output in outputs] == list(range(6))
        for place in places:
            place.leave()
    assert net.batches == [[0], [1, 2, 3], [4, 5]]
    assert seen == [1, 3, 2]


def test_a_batch_waits_for_those_who_are_announced_and_only_for_them() -> None:
    net = Net()
    with batcher_of(net, max_batch=8, max_wait_s=PATIENCE_S) as batcher:
        (alone,) = batcher.reserve(1)
        assert alone.submit([image(1)], soon()).result(PATIENCE_S / 2).scores[0, 0] == 1  # it waits for nobody
        alone.leave()
        first, second, third = batcher.reserve(3)
        one = first.submit([image(2)], soon())
        time.sleep(0.05)
        assert not one.running()
        assert not one.done()
        two = second.submit([image(3)], soon())
        assert not two.done()
        third.leave()  # a damaged image, which never comes
        assert one.result(PATIENCE_S).scores[0, 0] == 2
        assert two.result(PATIENCE_S).scores[0, 0] == 3
        first.leave()
        second.leave()
    assert net.batches == [[1], [2, 3]]


def test_a_batch_waits_no_longer_than_it_may() -> None:
    net = Net()
    with batcher_of(net, max_batch=8, max_wait_s=0.05) as batcher:
        first, second = batcher.reserve(2)
        output = first.submit([image(1)], soon()).result(PATIENCE_S)
        assert output.waited_s >= 0.05
        first.leave()
        second.leave()


def test_more_than_there_is_room_for_is_refused_as_a_whole() -> None:
    with batcher_of(Net(), max_queue=5) as batcher:
        places = batcher.reserve(4)
        batcher.check_room(1)
        with pytest.raises(RefusedError, match="4 images are on their way through this model, 5 at most") as refused:
            batcher.reserve(2)
        assert refused.value.status == 429
        assert int(refused.value.headers["retry-after"]) >= 1
        assert batcher.num_reserved == 4
        places += batcher.reserve(1)
        with pytest.raises(RefusedError):
            batcher.check_room()
        places.pop().leave()
        batcher.check_room()
        for place in places:
            place.leave()


def test_how_long_to_wait_follows_from_how_fast_it_is() -> None:
    net = Net()
    with batcher_of(net, max_queue=8) as batcher:
        batcher._image_s = 3.0
        places = batcher.reserve(8)
        with pytest.raises(RefusedError) as refused:
            batcher.reserve(1)
        assert refused.value.headers["retry-after"] == "24"
        places[0].submit([image(1)], soon()).result(PATIENCE_S)
        assert batcher._image_s == pytest.approx(2.7, abs=0.1)
        for place in places:
            place.leave()


def test_what_is_late_or_cancelled_is_not_computed() -> None:
    net = Net()
    with batcher_of(net, max_batch=8) as batcher:
        net.may_run.clear()
        places = batcher.reserve(4)
        first = places[0].submit([image(0)], soon())
        net.wait_for_a_run()
        late = places[1].submit([image(1)], time.monotonic() + 0.01)
        cancelled = places[2].submit([image(2)], soon())
        wanted = places[3].submit([image(3)], soon())
        assert cancelled.cancel()
        time.sleep(0.02)
        net.may_run.set()
        with pytest.raises(RefusedError) as refused:
            late.result(PATIENCE_S)
        assert refused.value.status == 504
        with pytest.raises(CancelledError):
            cancelled.result(PATIENCE_S)
        assert first.result(PATIENCE_S).scores[0, 0] == 0
        assert wanted.result(PATIENCE_S).scores[0, 0] == 3
        for place in places:
            place.leave()
    assert net.batches == [[0], [3]]


def test_an_image_that_fails_takes_no_others_with_it(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    with batcher_of(net, max_batch=8, max_wait_s=PATIENCE_S) as batcher:
        places = batcher.reserve(3)
        outputs = [place.submit([image(n)], soon()) for n, place in zip((1, 99, 3), places, strict=True)]
        assert outputs[0].result(PATIENCE_S).scores[0, 0] == 1
        assert outputs[2].result(PATIENCE_S).scores[0, 0] == 3
        with pytest.raises(RuntimeError, match="cannot compute 99"):
            outputs[1].result(PATIENCE_S)
        assert batcher.is_alive
        assert batcher.longest_run_s() == 0
        for place in places:
            place.leave()
    assert net.batches == [[1, 99, 3], [1], [99], [3]]
    assert "the network failed on a batch of 1" in caplog.text


def test_only_sizes_that_the_network_is_prepared_for() -> None:
    net = Net()
    with batcher_of(net, max_batch=8, max_wait_s=0, sizes=(1, 2, 4)) as batcher:
        assert batcher.max_batch == 4
        net.may_run.clear()
        places = batcher.reserve(9)
        outputs = [places[0].submit([image(0)], soon())]
        net.wait_for_a_run()
        outputs += [place.submit([image(n)], soon()) for n, place in enumerate(places[:8]) if n]
        outputs.append(places[8].submit([image(8), image(9), image(10)], soon()))
        net.may_run.set()
        got = [output.result(PATIENCE_S).scores[:, 0].tolist() for output in outputs]
        assert got == [*([n] for n in range(8)), [8, 9, 10]]
        for place in places:
            place.leave()
    # A run of four takes only what it has room for, and what is missing is filled up.
    assert net.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 7], [8, 9, 10, 10]]


def test_closing_answers_what_was_taken_and_refuses_the_rest() -> None:
    net = Net()
    batcher = Batcher(net, BatchSettings(max_batch=2, max_wait_s=0))
    net.may_run.clear()
    places = batcher.reserve(5)
    outputs = [place.submit([image(n)], soon()) for n, place in enumerate(places[:4])]
    net.wait_for_a_run()
    closing = threading.Thread(target=batcher.close)
    closing.start()
    until(lambda: batcher._is_closing)
    with pytest.raises(RefusedError) as refused:
        batcher.reserve(1)
    assert refused.value.status == 503
    net.may_run.set()
    outputs.append(places[4].submit([image(4)], soon()))  # it has a place
    assert [output.result(PATIENCE_S).scores[0, 0] for output in outputs] == [0, 1, 2, 3, 4]
    assert closing.is_alive()
    for place in places:
        place.leave()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert not batcher.is_alive


def test_closing_does_not_wait_for_ever_for_a_network_that_hangs() -> None:
    net = Net()
    batcher = Batcher(net, BatchSettings(max_batch=1))
    net.may_run.clear()
    places = batcher.reserve(2)
    hanging = places[0].submit([image(0)], soon())
    net.wait_for_a_run()
    waiting = places[1].submit([image(1)], soon())
    batcher.close(0.05)
    with pytest.raises(RefusedError) as refused:
        waiting.result(PATIENCE_S)
    assert refused.value.status == 503
    assert not hanging.done()
    net.may_run.set()
    for place in places:
        place.leave()
    batcher.close(PATIENCE_S)
    assert hanging.result(PATIENCE_S).scores[0, 0] == 0


def test_several_workers_run_at_once() -> None:
    both = threading.Barrier(2)

    def run(images: Sequence[np.ndarray]) -> Outputs:
        both.wait(PATIENCE_S)
        return np.zeros((len(images), 1)), np.zeros((len(images), 1)), np.zeros((len(images), 1, 4))

    with batcher_of(run, max_batch=1, num_workers=2) as batcher:
        places = batcher.reserve(2)
        outputs = [place.submit([image(0)], soon()) for place in places]
        for place, output in zip(places, outputs, strict=True):
            output.result(PATIENCE_S)
            place.leave()


def test_a_wrong_number_of_images_is_refused() -> None:
    with batcher_of(Net(), max_batch=2) as batcher:
        (place,) = batcher.reserve(1)
        for images in ([], [image(0)] * 3):
            with pytest.raises(ValueError, match="expected 1 to 2"):
                place.submit(images, soon())
        place.leave()


@pytest.mark.parametrize(
    ("max_batch", "count", "sizes"), [(1, 4, (1,)), (3, 4, (1, 2, 3)), (8, 4, (1, 2, 4, 8)), (64, 4, (1, 16, 32, 64))]
)
def test_batch_sizes(max_batch: int, count: int, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(max_batch, count) == sizes
