from __future__ import annotations

import gc
import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch

from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.formats import read_coco
from rtdetrv4.data.loader import DetectionLoader, ShardSampler, build_loader, is_lost_worker
from rtdetrv4.data.records import Split
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.errors import DatasetError
from rtdetrv4.types import Batch

FULL = Augmentation(mosaic=0.5, photometric=0.5, zoom_out=0.5, iou_crop=0.8, flip=0.5)


@pytest.fixture
def split(tmp_path: Path, write_coco: Callable[..., Path]) -> Split:
    boxes = [{"image_id": i, "bbox": [5, 5, 10 + i, 20]} for i in range(11)]
    return read_coco(write_coco(tmp_path, boxes, num_images=11, suffix=".jpg"))


def ids(loader: DetectionLoader) -> list[list[int]]:
    return [[info.image_id for info in batch.infos] for batch in loader]


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and a.infos == b.infos
        and a.targets.counts == b.targets.counts
        and all(torch.equal(x, y) for x, y in zip(a.targets[:2], b.targets[:2], strict=True))
        for a, b in zip(first, second, strict=True)
    )


def test_workers_change_nothing_and_follow_the_epoch(split: Split) -> None:
    runs = []
    for workers in (0, 2):
        dataset = DetectionDataset(split, (32, 64), FULL, seed=5)
        loader = build_loader(dataset, 4, workers, shuffle=True, seed=5, drop_last=True)
        epochs = []
        for epoch, stage in enumerate((FULL, FULL, Augmentation())):
            dataset.set_epoch(epoch, stage)
            loader.sampler.set_epoch(epoch)
            epochs.append(list(loader))
        runs.append(epochs)
    for alone, spread in zip(*runs, strict=True):
        assert equal(alone, spread)
    assert not equal(runs[0][0], runs[0][1])
    assert len(runs[0][0]) == 2
    assert len(loader) == 2


def test_resuming_in_the_middle_of_an_epoch(split: Split) -> None:
    loader = build_loader(DetectionDataset(split, (32, 32), FULL), 3, 0, shuffle=True, drop_last=True)
    loader.sampler.set_epoch(4)
    whole = list(loader)
    loader.sampler.set_epoch(4, start_batch=2)
    assert equal(list(loader), whole[2:])
    assert len(loader) == 3
    loader.sampler.set_epoch(4)
    assert equal(list(loader), whole)


def test_orders_differ_between_epochs_and_seeds(split: Split) -> None:
    dataset = DetectionDataset(split, (32, 32))
    loader = build_loader(dataset, 4, 0, shuffle=True, seed=1)
    first = ids(loader)
    assert sorted(chain(*first)) == list(range(11))
    loader.sampler.set_epoch(1)
    assert ids(loader) != first
    assert ids(build_loader(dataset, 4, 0, shuffle=True, seed=2)) != first
    assert ids(build_loader(dataset, 4, 0, shuffle=False)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_evaluation_sees_every_image_once(split: Split, world_size: int) -> None:
    dataset = DetectionDataset(split, (32, 32))
    seen = []
    for rank in range(world_size):
        loader = build_loader(dataset, 2, 0, shuffle=False, rank=rank, world_size=world_size)
        batches = ids(loader)
        assert len(batches) == len(loader)
        seen += chain(*batches)
    assert sorted(seen) == list(range(11))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_training_ranks_get_equal_and_different_shares(split: Split, world_size: int) -> None:
    dataset = DetectionDataset(split, (32, 32))
    shares = [
        ids(build_loader(dataset, 2, 0, True, seed=7, rank=rank, world_size=world_size, drop_last=True))
        for rank in range(world_size)
    ]
    assert {len(share) for share in shares} == {11 // world_size // 2}
    seen = list(chain(*chain(*shares)))
    assert len(set(seen)) == len(seen)


def test_fewer_images_than_a_batch_are_one_batch(split: Split) -> None:
    dataset = DetectionDataset(split, (32, 32))
    for world_size, expected in ((1, 11), (2, 5)):
        loader = build_loader(dataset, 16, 0, shuffle=True, world_size=world_size, drop_last=True)
        assert [len(batch) for batch in ids(loader)] == [expected]
        assert len(loader) == 1


def test_more_ranks_than_images_in_evaluation() -> None:
    shares = [list(ShardSampler(2, 1, False, 0, rank, 4, even=False)) for rank in range(4)]
    assert shares == [[0], [1], [], []]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_is_one_line(split: Split, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch waits this long for a worker that failed.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    for index in range(3):
        (split.image_dir / f"{index}.jpg").unlink()
    loader = build_loader(DetectionDataset(split, (32, 32)), 4, workers, shuffle=False)
    with pytest.raises(DatasetError, match=r"^2 of 11 images cannot be read.*1\.jpg cannot be read") as error:
        list(loader)
    assert "\n" not in str(error.value)
    del error  # with its traceback the worker, so that the short wait counts
    gc.collect()


def test_unreadable_images_are_counted_across_workers(split: Split) -> None:
    (split.image_dir / "3.jpg").unlink()
    dataset = DetectionDataset(split, (32, 32))
    list(build_loader(dataset, 4, 2, shuffle=False))
    assert dataset.num_unreadable == 1


def test_no_more_workers_than_processors(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtdetrv4.data.loader._num_processors", lambda: 1)
    dataset = DetectionDataset(split, (32, 64))
    assert [build_loader(dataset, 4, workers, shuffle=False).num_workers for workers in (0, 1, 50)] == [0, 1, 1]


@pytest.mark.skipif(os.name == "nt", reason="tensors are sent in another way")
def test_a_worker_that_dies_before_its_batch_is_received_is_lost():
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=queue.put, args=(torch.zeros(3),))
    process.start()
    process.join()
    with pytest.raises((OSError, EOFError)) as caught:
        queue.get(timeout=10)
    assert is_lost_worker(caught.value)
    assert not is_lost_worker(ConnectionResetError("of a tracker"))
    assert not is_lost_worker(FileNotFoundError("of the user"))
    assert is_lost_worker(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))
