"""The order of samples, shared between ranks, and the workers that make them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from rtdetrv4.data.batch import pack
from rtdetrv4.data.cache import RamCache
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.errors import DatasetError
from rtdetrv4.types import Batch

_ORDER_STREAM = 3


class ShardSampler(Sampler[int]):
    """The indices of one rank, in an order that depends only on (seed, epoch).

    With `even`, all ranks get the same number of samples, as training in step needs: the few that remain are left out
    of this epoch. Otherwise every sample comes exactly once on one rank, as evaluation needs.

    Args:
        num_samples: in the data set.
        batch_size: samples per step on this rank.
        shuffle: a new order each epoch; otherwise ascending.
        seed: of the order.
        rank: of this process.
        world_size: number of processes.
        even: see above.
    """

    def __init__(
        self, num_samples: int, batch_size: int, shuffle: bool, seed: int, rank: int, world_size: int, even: bool
    ) -> None:
        self.epoch = 0
        self.start_batch = 0
        self._num_samples = num_samples
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._even = even and num_samples >= world_size

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Order for `epoch`; a resumed epoch goes on at `start_batch` without loading what came before."""
        self.epoch = epoch
        self.start_batch = start_batch

    def state_dict(self) -> dict[str, int]:
        """Where iteration begins."""
        return {"epoch": self.epoch, "start_batch": self.start_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin where `state_dict` said."""
        self.set_epoch(state["epoch"], state["start_batch"])

    def __len__(self) -> int:
        """Samples of a whole epoch on this rank, whatever `start_batch` is."""
        if self._even:
            return self._num_samples // self._world_size
        return len(range(self._rank, self._num_samples, self._world_size))

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self._num_samples)
        if self._shuffle:
            order = np.random.default_rng((self._seed, self.epoch, _ORDER_STREAM)).permutation(order)
        own = order[self._rank :: self._world_size][: len(self)]
        return iter(own[self.start_batch * self._batch_size :].tolist())


class DetectionLoader(DataLoader[Batch]):
    """A `DataLoader` that yields `Batch`."""

    dataset: DetectionDataset  # pyright: ignore[reportIncompatibleVariableOverride]
    sampler: ShardSampler  # pyright: ignore[reportIncompatibleVariableOverride]

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            yield from super().__iter__()
        except DatasetError as error:
            # A worker's error arrives with its traceback as the message; the last line is what the user needs.
            raise DatasetError(str(error).strip().rpartition("DatasetError: ")[2]) from error


def build_loader(
    dataset: DetectionDataset,
    batch_size: int,
    workers: int,
    shuffle: bool,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
) -> DetectionLoader:
    """A loader for one rank.

    Args:
        dataset: what to load.
        batch_size: per rank.
        workers: processes, no more than there are processors; 0 loads in this one. Samples do not depend on it.
        shuffle: for training.
        seed: of the order.
        rank: of this process.
        world_size: number of processes.
        drop_last: leave out what does not fill a batch, and give all ranks the same number of batches, for training. A
            data set smaller than a batch is one batch all the same.
    """
    sampler = ShardSampler(len(dataset), batch_size, shuffle, seed, rank, world_size, even=drop_last)
    num_workers = min(workers, _num_processors())
    return DetectionLoader(
        dataset,  # pyright: ignore[reportArgumentType]
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last and len(sampler) >= batch_size,
        num_workers=num_workers,
        # Only a fork inherits memory, and Python 3.14 no longer forks by default.
        multiprocessing_context="fork" if num_workers and isinstance(dataset.cache, RamCache) else None,
        collate_fn=pack,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_init_worker,
        persistent_workers=num_workers > 0,
        # Each pass draws a seed; taken from torch's own generator it would be missing where an epoch is resumed.
        generator=torch.Generator(),
    )


def _num_processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _init_worker(worker: int) -> None:
    """One thread per worker: they fill the cores as it is, and a forked OpenCV pool would hang."""
    cv2.setNumThreads(0)
