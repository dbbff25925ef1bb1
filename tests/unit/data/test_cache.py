from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rtdetrv4.assembly import build_detector
from rtdetrv4.assembly.training import build_trainer
from rtdetrv4.config import load_recipe, override
from rtdetrv4.data import cache as cache_module
from rtdetrv4.data.cache import DiskCache, ImageCache, RamCache, cache_folder, describe, open_cache
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.decode import read_image, reduction_for
from rtdetrv4.data.formats import read_coco
from rtdetrv4.data.loader import build_loader
from rtdetrv4.data.records import Split, Splits
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.errors import ConfigError
from rtdetrv4.input_files import size_text
from rtdetrv4.types import Batch

FULL = Augmentation(mosaic=0.5, photometric=0.5, zoom_out=0.5, iou_crop=0.8, flip=0.5)
NUM_IMAGES, SIZE_HW = 10, (120, 160)
FULL_SIZE = 3 * 120 * 160
PLENTY = 10**7


@pytest.fixture(autouse=True)
def _cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def split(tmp_path: Path, write_coco: Callable[..., Path]) -> Split:
    boxes = [{"image_id": i, "bbox": [5, 5, 60 + i, 80]} for i in range(NUM_IMAGES)]
    path = write_coco(tmp_path / "data", boxes, num_images=NUM_IMAGES, size_hw=SIZE_HW, suffix=".jpg")
    for i in range(NUM_IMAGES):
        repaint(path.parent / f"{i}.jpg", seed=i)
    return read_coco(path)


@pytest.fixture(params=["ram", "disk"])
def make(request: pytest.FixtureRequest, split: Split) -> Callable[[int], ImageCache]:
    """A new cache of at most so many bytes."""

    def make(max_bytes: int) -> ImageCache:
        cache = open_cache(request.param, split, max_bytes)
        assert cache is not None
        return cache

    return make


def repaint(path: Path, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (*SIZE_HW, 3), np.uint8)
    cv2.imwrite(str(path), cv2.blur(noise, (5, 5)))


def epochs(split: Split, cache: ImageCache | None, workers: int, stages: tuple[Augmentation | None, ...]) -> Iterator:
    """The batches of some epochs, one loader for each kind of data set as in a run."""
    training = DetectionDataset(split, (32, 64), FULL, seed=5, cache=cache)
    # The images' own size: nothing is done to the pixels on their way.
    plain = DetectionDataset(split, SIZE_HW, cache=cache)
    loaders = {
        True: build_loader(training, 4, workers, shuffle=True, seed=5),
        False: build_loader(plain, 4, workers, shuffle=False),
    }
    for epoch, stage in enumerate(stages):
        loader = loaders[stage is not None]
        if stage is not None:
            training.set_epoch(epoch, stage)
            loader.sampler.set_epoch(epoch)
        yield list(loader)


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and a.infos == b.infos
        and a.targets.counts == b.targets.counts
        and all(torch.equal(x, y) for x, y in zip(a.targets[:2], b.targets[:2], strict=True))
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("max_bytes", [PLENTY, 4 * FULL_SIZE])
def test_samples_are_the_same_with_and_without(
    split: Split, make: Callable[[int], ImageCache], workers: int, max_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtdetrv4.data.loader._num_processors", lambda: 2)
    stages = (FULL, None, FULL, Augmentation(), Augmentation(mosaic=1.0), None)
    without, cache = list(epochs(split, None, 0, stages)), make(max_bytes)
    for expected, batches in zip(without, epochs(split, cache, workers, stages), strict=True):
        assert equal(batches, expected)
    # Filled by the workers, and seen from here.
    assert max_bytes / 2 < cache.budget.used <= max_bytes or max_bytes == PLENTY
    assert cache.budget.used >= 3 * FULL_SIZE


def refuse() -> NDArray[np.uint8]:
    raise AssertionError("this is held, and must not be decoded again")


def decoder(split: Split, index: int, scale: float) -> Callable[[], NDArray[np.uint8]]:
    return lambda: read_image(split.image_dir / f"{index}.jpg", SIZE_HW, scale)


def test_every_resolution_is_kept_by_itself(split: Split, make: Callable[[int], ImageCache]) -> None:
    cache = make(PLENTY)
    for scale in (1.0, 0.5, 0.25, 0.1):
        assert np.array_equal(cache.read(3, reduction_for(scale), decoder(split, 3, scale)), decoder(split, 3, scale)())
    for scale, height in ((1.0, 120), (0.5, 60), (0.25, 30), (0.1, 15)):
        held = cache.read(3, reduction_for(scale), refuse)
        assert held.shape == (height, height * 4 // 3, 3)
        assert np.array_equal(held, decoder(split, 3, scale)())
        assert not held.flags.writeable
    with pytest.raises(AssertionError, match="must not be decoded"):
        cache.read(4, 1, refuse)


def test_what_does_not_fit_is_decoded_again_and_told_once(
    split: Split, make: Callable[[int], ImageCache], caplog: pytest.LogCaptureFixture
) -> None:
    cache = make(3 * FULL_SIZE + 1000)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            for index in range(NUM_IMAGES):
                image = cache.read(index, 1, decoder(split, index, 1.0))
                assert np.array_equal(image, decoder(split, index, 1.0)())
    assert cache.budget.used <= cache.budget.limit == 3 * FULL_SIZE + 1000
    assert [record.getMessage() for record in caplog.records] == [
        f"The image cache is full ({size_text(cache.budget.used)}, 3 images); others are decoded every time."
    ]
    for index in range(3):
        cache.read(index, 1, refuse)
    with pytest.raises(AssertionError, match="must not be decoded"):
        cache.read(3, 1, refuse)


def test_an_image_that_cannot_be_decoded_is_not_kept(split: Split, make: Callable[[int], ImageCache]) -> None:
    cache = make(PLENTY)
    with pytest.raises(AssertionError):
        cache.read(0, 1, refuse)
    assert cache.budget.used == 0
    assert cache.read(0, 1, decoder(split, 0, 1.0)).shape == (*SIZE_HW, 3)


def test_the_log_says_how_many_fit(split: Split, make: Callable[[int], ImageCache]) -> None:
    cache = make(4 * FULL_SIZE + 1)
    assert (
        describe(cache, split)
        == f"0 bytes held of {size_text(4 * FULL_SIZE + 1)}, room for about 4 of 10 images at full size"
    )
    assert "about 10 of 10 images" in describe(make(PLENTY), split)


@pytest.mark.skipif(not cache_module.CAN_FORK, reason="memory is shared by forking")
def test_memory_is_shared_with_workers_and_never_sent_to_them(split: Split) -> None:
    cache = RamCache(NUM_IMAGES, PLENTY)
    list(build_loader(DetectionDataset(split, SIZE_HW, cache=cache), 2, workers=1, shuffle=False))
    for index in range(NUM_IMAGES):
        assert np.array_equal(cache.read(index, 1, refuse), decoder(split, index, 1.0)())
    with pytest.raises((TypeError, RuntimeError), match=r"mmap|shared"):
        pickle.dumps(cache)


def test_without_fork_memory_serves_the_process_itself_only(
    split: Split, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "CAN_FORK", False)
    assert isinstance(open_cache("ram", split, PLENTY, workers=0), RamCache)
    assert not caplog.records
    assert open_cache("ram", split, PLENTY, workers=2) is None
    assert [record.getMessage() for record in caplog.records] == [
        "data.cache=ram is ignored: workers cannot share memory on this system. Use data.cache=disk."
    ]
    assert isinstance(open_cache("disk", split, PLENTY, workers=2), DiskCache)


def test_more_memory_than_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"of memory for images cannot be allocated .* set a smaller data\.cache_size"
    ):
        RamCache(NUM_IMAGES, 10**17)


def filled(split: Split, **options: int) -> DiskCache:
    cache = DiskCache(split, cache_folder(split.image_dir), **{"max_bytes": PLENTY} | options)
    for index in range(NUM_IMAGES):
        cache.read(index, 1, decoder(split, index, 1.0))
    return cache


def files(split: Split) -> list[Path]:
    return sorted(path for path in cache_folder(split.image_dir).rglob("*") if path.is_file())


def test_files_serve_the_next_run(split: Split, tmp_path: Path) -> None:
    first = filled(split)
    folder = cache_folder(split.image_dir)
    assert folder.is_relative_to(tmp_path / "cache" / "rtdetrv4" / "images")
    assert len(files(split)) == NUM_IMAGES
    # No part of a name comes from the annotations.
    names = [str(path.relative_to(folder).with_suffix("")) for path in files(split)]
    assert all(set(name) <= set("0123456789abcdef-/") for name in names)
    second = DiskCache(split, folder, PLENTY)
    assert second.budget.used == first.budget.used == sum(path.stat().st_size for path in files(split))
    for index in range(NUM_IMAGES):
        assert np.array_equal(second.read(index, 1, refuse), decoder(split, index, 1.0)())


def test_other_folders_have_other_caches(tmp_path: Path) -> None:
    assert cache_folder(tmp_path / "a") != cache_folder(tmp_path / "b")
    assert cache_folder(tmp_path / "a") == cache_folder(tmp_path / "b" / ".." / "a")


@pytest.mark.parametrize("change", ["pixels", "time", "size", "decoder"])
def test_an_image_that_changed_is_decoded_anew(split: Split, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used = filled(split).budget.used
    path = split.image_dir / "2.jpg"
    before = path.stat()
    if change == "pixels":
        repaint(path, seed=50)
    elif change == "time":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    elif change == "decoder":
        monkeypatch.setattr(cache_module, "DECODERS", ("another version",))
    else:
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    cache = DiskCache(split, cache_folder(split.image_dir), used)  # full, but for what is made anew
    expected = decoder(split, 2, 1.0)()
    assert np.array_equal(cache.read(2, 1, lambda: expected), expected)
    assert np.array_equal(cache.read(2, 1, refuse), expected)
    assert cache.budget.used == used
    assert len(files(split)) == NUM_IMAGES  # the outdated file is gone


class Trap:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path("sprung"),)


KINDS_OF_DAMAGE = ["empty", "short", "zeros", "pickle", "objects", "terabytes", "other shape", "other type"]
if hasattr(os, "mkfifo"):
    KINDS_OF_DAMAGE.append("pipe")


@pytest.mark.parametrize("damage", KINDS_OF_DAMAGE)
def test_damaged_and_planted_files_are_made_anew(
    split: Split, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    used = filled(split).budget.used
    for path in files(split):
        data, pixels = path.read_bytes(), np.load(path)
        if damage == "pickle":
            path.write_bytes(pickle.dumps(Trap()))
        elif damage == "objects":
            np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
        elif damage == "terabytes":
            with path.open("wb") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 20, 3)}
                )
        elif damage == "pipe":
            path.unlink()
            os.mkfifo(path)
        elif damage == "other shape":
            np.save(path, pixels[..., 0])
        elif damage == "other type":
            np.save(path, pixels.astype(np.int16))
        else:
            path.write_bytes({"empty": b"", "short": data[:-1], "zeros": bytes(len(data))}[damage])
    cache = filled(split)
    damaged = [each for each in caplog.messages if "is damaged; the image is decoded again" in each]
    assert len(damaged) == NUM_IMAGES
    assert not Path("sprung").exists()
    if damage not in ("pipe", "objects", "terabytes", "pickle"):  # which have another size
        assert cache.budget.used == used
    assert len(files(split)) == NUM_IMAGES
    for index in range(NUM_IMAGES):
        assert np.array_equal(cache.read(index, 1, refuse), decoder(split, index, 1.0)())


def test_annotations_of_another_size_do_not_share_files(split: Split) -> None:
    """Whether a photo is turned depends on the size in the annotations."""
    filled(split)
    sizes = split.records.sizes_hw  # pyright: ignore[reportAttributeAccessIssue]
    sizes[0] = sizes[0][::-1]
    with pytest.raises(AssertionError, match="must not be decoded"):
        DiskCache(split, cache_folder(split.image_dir), PLENTY).read(0, 1, refuse)


def test_ranks_share_the_room_that_is_left(split: Split) -> None:
    room = filled(split, max_bytes=2 * FULL_SIZE + 500).budget
    assert room.used < room.limit
    folder = cache_folder(split.image_dir)
    assert DiskCache(split, folder, room.used + 1000, ranks=4).budget.limit == room.used + 250
    assert DiskCache(split, folder, 10, ranks=4).budget.limit == room.used


def test_a_full_disk_stops_the_writing_only(
    split: Split, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(split, cache_folder(split.image_dir), PLENTY)

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    for index in range(NUM_IMAGES):
        image = cache.read(index, 1, decoder(split, index, 1.0))
        assert np.array_equal(image, decoder(split, index, 1.0)())
    assert [record.getMessage().partition("takes no more")[2] for record in caplog.records] == [
        " images (No space left on device); they are decoded every time."
    ]
    assert cache.budget.used == 0
    assert files(split) == []


def test_a_folder_that_cannot_be_made(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot hold the image cache \(.*set XDG_CACHE_HOME"):
        open_cache("disk", split, PLENTY)


def test_a_missing_image_is_told_as_without_a_cache(split: Split, make: Callable[[int], ImageCache]) -> None:
    (split.image_dir / "3.jpg").unlink()
    dataset = DetectionDataset(split, SIZE_HW, Augmentation(), cache=make(PLENTY))
    assert dataset[3].info.file_name == "4.jpg"
    assert dataset.num_unreadable == 1


@pytest.mark.parametrize(("kind", "expected"), [("none", type(None)), ("ram", RamCache), ("disk", DiskCache)])
def test_settings_reach_both_parts_of_the_data(
    split: Split, tmp_path: Path, kind: str, expected: type, caplog: pytest.LogCaptureFixture
) -> None:
    val = split._replace(records=split.records[:6])
    changes = {"cache": kind, "data.cache_size": "80MB", "out": str(tmp_path / "run"), "device": "cpu"}
    recipe = override(load_recipe("test"), changes | {"teacher": "none", "model.pretrained_backbone": False})
    with caplog.at_level(logging.INFO):
        trainer = build_trainer(recipe, Splits(split, val, None), build_detector(recipe, split.classes.num_classes))
    caches = [
        trainer.data.loader.dataset.cache,
        trainer.evaluate.keywords["loader"].dataset.cache,  # pyright: ignore
    ]
    assert [type(cache) for cache in caches] == [expected, expected]
    if kind != "none":
        assert [cache.budget.limit for cache in caches if cache] == [50_000_000, 30_000_000]
        assert f"Image cache ({kind}) for {split.image_dir}: 0 bytes held of 50 MB" in caplog.text
