"""The loader: which rank loads which samples in what order, and the workers that load them."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import traceback
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from rtdetrv4.data.batch import pack
from rtdetrv4.data.cache import RamCache
from rtdetrv4.data.dataset import DetectionDataset, LabeledIndex
from rtdetrv4.data.sampling import draw_weighted
from rtdetrv4.errors import DatasetError
from rtdetrv4.types import Batch

SECONDS_AFTER_SIGTERM = 60
"""For which a worker goes on; usually the main process ends it before."""
_ORDER_STREAM = 3


class ShardSampler(Sampler[int]):
    """The indices of one rank, in an order that depends only on (seed, epoch).

    With `even`, all ranks get the same number of samples, as synchronous training needs; the few that remain are
    skipped in this epoch. Otherwise every sample is loaded exactly once, by one rank, as evaluation needs.

    Args:
        num_samples: the size of the dataset.
        batch_size: samples per step on this rank.
        shuffle: draw a new order every epoch; otherwise the order is ascending.
        seed: the seed of the order.
        rank: the rank of this process.
        world_size: the number of processes.
        even: see above.
        weights: (num_samples,): how often to draw each sample in relation to the others, in epochs of unchanged length;
            see `data.sampling`. None draws each once.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int,
        world_size: int,
        even: bool,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self.epoch: int = 0
        self.start_batch: int = 0
        self._num_samples = num_samples
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._even = even and num_samples >= world_size
        self._weights = weights

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Switch to the order of `epoch`; a resumed epoch starts at `start_batch` without loading earlier ones."""
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """The number of samples in a whole epoch on this rank, whatever `start_batch` is."""
        if self._even:
            return self._num_samples // self._world_size
        return len(range(self._rank, self._num_samples, self._world_size))

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self._num_samples)
        if self._shuffle:
            rng = np.random.default_rng((self._seed, self.epoch, _ORDER_STREAM))
            order = rng.permutation(order) if self._weights is None else draw_weighted(self._weights, rng)
        own = order[self._rank :: self._world_size][: len(self)]
        return iter(own[self.start_batch * self._batch_size :].tolist())


class ListSampler(Sampler[int | LabeledIndex]):
    """Given samples in their order; with their labels, which so travel to the workers that load them."""

    def __init__(self) -> None:
        self.samples: Sequence[int | LabeledIndex] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[int | LabeledIndex]:
        return iter(self.samples)


class DetectionLoader(DataLoader[Batch]):
    """A `DataLoader` that yields `Batch`."""

    dataset: DetectionDataset  # pyright: ignore[reportIncompatibleVariableOverride]
    sampler: ShardSampler  # pyright: ignore[reportIncompatibleVariableOverride]

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            yield from super().__iter__()
        except DatasetError as error:
            # The message of a worker's error is its traceback; the user needs the last line.
            raise DatasetError(str(error).strip().rpartition("DatasetError: ")[2]) from error

    def _get_iterator(self) -> Any:
        """See `DataLoader`; here, workers also end with the process if something still refers to the iterator.

        After an interrupted run its traceback does. Where there is a GPU, PyTorch 2.11, for one, then waits five
        seconds for each worker and sends it a SIGTERM, which workers outlive for a while.
        """
        iterator = super()._get_iterator()
        if self.num_workers > 0:
            atexit.register(_shut_down, weakref.ref(iterator))
        return iterator


def _shut_down(reference: weakref.ref[Any]) -> None:
    """End the workers of an iterator that is still there."""
    if (iterator := reference()) is not None:
        iterator._shutdown_workers()


class ListLoader(DetectionLoader):
    """A `DetectionLoader` of the samples that its sampler is given before each pass."""

    sampler: ListSampler  # pyright: ignore[reportIncompatibleVariableOverride]


def build_loader(
    dataset: DetectionDataset,
    batch_size: int,
    workers: int,
    shuffle: bool,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
    weights: NDArray[np.float64] | None = None,
) -> DetectionLoader:
    """Build the loader of one rank.

    Args:
        dataset: the samples to load.
        batch_size: samples per batch on this rank.
        workers: the number of worker processes, capped at the number of processors; 0 loads in this process. Samples
            do not depend on it.
        shuffle: draw a new order every epoch, for training.
        seed: the seed of the order.
        rank: the rank of this process.
        world_size: the number of processes.
        drop_last: drop an incomplete last batch, and give all ranks the same number of batches, for training. A
            dataset smaller than a batch still makes one batch.
        weights: how often to draw each sample when shuffling; see `ShardSampler`.
    """
    sampler = ShardSampler(len(dataset), batch_size, shuffle, seed, rank, world_size, even=drop_last, weights=weights)
    return DetectionLoader(
        dataset,  # pyright: ignore[reportArgumentType]
        sampler=sampler,
        drop_last=drop_last and len(sampler) >= batch_size,
        **_loading(dataset, batch_size, workers),
    )


def build_list_loader(dataset: DetectionDataset, batch_size: int, workers: int) -> ListLoader:
    """Build a loader of samples that are given before each pass; the last batch may be smaller.

    Args:
        dataset: what they are samples of.
        batch_size: samples per batch.
        workers: see `build_loader`.
    """
    return ListLoader(
        dataset,  # pyright: ignore[reportArgumentType]
        sampler=ListSampler(),
        **_loading(dataset, batch_size, workers),
    )


def _loading(dataset: DetectionDataset, batch_size: int, workers: int) -> dict[str, Any]:
    """How every loader loads, whatever it loads."""
    num_workers = min(workers, _num_processors())
    return {
        "batch_size": batch_size,
        "num_workers": num_workers,
        # Only forked processes inherit memory, and Python 3.14 no longer forks by default.
        "multiprocessing_context": "fork" if num_workers and isinstance(dataset.cache, RamCache) else None,
        "collate_fn": pack,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _init_worker,
        "persistent_workers": num_workers > 0,
        # Each pass draws a seed: from the global generator, a resumed epoch would draw one too many.
        "generator": torch.Generator(),
    }


def is_lost_worker(error: BaseException) -> bool:
    """Whether an error says that a worker was killed; PyTorch has no class for it.

    If it dies while it hands over a batch, the connection to it breaks before PyTorch notices.
    """
    if isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        frames = (frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__))
        return "torch.multiprocessing.reductions" in frames
    text = str(error)
    return isinstance(error, RuntimeError) and "DataLoader worker" in text and ("killed" in text or "exited" in text)


def _num_processors() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _init_worker(worker: int) -> None:
    """Give OpenCV one thread: the workers occupy all cores already, and a forked thread pool would hang.

    And outlive a SIGTERM for a while. Service managers and `timeout` send it to all processes at once, and without its
    workers the main process could not save its state.
    """
    cv2.setNumThreads(0)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, _end_later)


def _end_later(number: int, frame: object) -> None:
    """End this worker in `SECONDS_AFTER_SIGTERM`; more signals postpone nothing.

    With 0: to any other end of a worker, PyTorch answers with an exception in the main process, even while that saves
    its state. A worker that hangs in C code is killed later.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(2 * SECONDS_AFTER_SIGTERM)
    timer = threading.Timer(SECONDS_AFTER_SIGTERM, os._exit, (0,))
    timer.daemon = True
    timer.start()
