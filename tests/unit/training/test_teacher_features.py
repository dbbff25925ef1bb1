"""Teacher features on disk: what is cut out of them belongs to what the sample shows."""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetrv4.data.batch import mix_up, pack, prepare_batch
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.records import Record, Split
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.distillation import Teacher, alignment_loss
from rtdetrv4.errors import ConfigError
from rtdetrv4.training import make_accelerator
from rtdetrv4.training.teacher_features import TeacherFeatures, alignment, teacher_digest
from rtdetrv4.types import ClassMap, ImageInfo
from small_training import make_teacher as random_teacher
from small_training import make_trainer, make_unlabeled, write_images

SIZE = (128, 192)


class Colors(nn.Module):
    """Features that are mean colors."""

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 32)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Images whose red says x and whose green says y."""
    records = []
    for index, (height, width) in enumerate(((200, 300), (240, 240), (300, 200), (160, 320))):
        y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        image = np.stack([np.full_like(x, 1.0), y, x], axis=-1)  # BGR
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.rint(255 * image).astype(np.uint8))
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0)
        records.append(Record(ImageInfo(index, f"{index}.png", height, width), *nothing))
    return Split(tmp_path, tuple(records), ClassMap((), ()), "made up", ())


def make_teacher() -> Teacher:
    """The same teacher every time."""
    torch.manual_seed(0)
    return random_teacher()


def features_of(split: Split, folder: Path, teacher: Teacher | None = None, **options) -> TeacherFeatures:
    teacher = teacher or Teacher(Colors(), name="colors", dim=3, stride=32, mean=(0, 0, 0), std=(1, 1, 1))
    features = TeacherFeatures(split, SIZE, teacher, folder, **options)
    features.fill(make_accelerator("cpu", "off"), batch=2, workers=0)
    return features


def places(wanted: Tensor) -> Tensor:
    """x and y of features B×3×h×w, as B×2×h×w."""
    return wanted[:, :2] / wanted[:, 2:]


@pytest.mark.parametrize(
    "stage",
    [
        Augmentation(flip=0.5, random_crop=0.3),
        Augmentation(flip=0.5, zoom_out=1.0),
        Augmentation(flip=0.5, mosaic=1.0),
    ],
    ids=["crop", "zoom-out", "mosaic"],
)
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_targets_belong_to_what_a_sample_shows(split, tmp_path, stage, resize):
    features = features_of(split, tmp_path / "features", resize=resize)
    dataset = DetectionDataset(split, SIZE, stage, resize=resize)
    compared = []
    for epoch in range(3):
        dataset.set_epoch(epoch, stage)
        batch = pack([dataset[index] for index in range(4)])
        wanted, is_known = features.targets(batch.views, (8, 12), torch.device("cpu"))
        colors = F.avg_pool2d(batch.images.float() / 255, 16)
        is_shown = F.avg_pool2d((batch.images[:, 2:] > 250).float(), 16)[:, 0]  # blue: not the black around images
        assert bool((is_known[is_shown == 1]).all())
        assert not bool(is_known[is_shown == 0].any())
        found = places(wanted.where(is_known[:, None], torch.ones(())))
        # Features end at the centers of the outermost cells, and a cell may lie on the border of two images.
        pixels = batch.images[:, :2].float() / 255
        spread = F.max_pool2d(pixels, 16) + F.max_pool2d(-pixels, 16)
        inner = is_known & (is_shown == 1)
        inner &= ((colors[:, :2] > 0.25) & (colors[:, :2] < 0.75) & (spread < 0.4)).all(dim=1)
        gap = (found - colors[:, :2]).abs().amax(dim=1)[inner]
        compared.append(gap)
    gaps = torch.cat(compared)
    assert len(gaps) > 20
    assert gaps.max() < 0.1
    assert gaps.mean() < 0.02


def test_mixed_images_have_mixed_features(split, tmp_path):
    features = features_of(split, tmp_path / "features")
    dataset = DetectionDataset(split, SIZE, Augmentation())
    batch = prepare_batch(pack([dataset[0], dataset[1]]), SIZE, "cpu")
    mixed = mix_up(batch, 0.75)
    assert [(view.image, view.weight) for view in mixed.views[0]] == [(0, 0.75), (1, 0.25)]
    wanted, _ = features.targets(mixed.views, (4, 6), torch.device("cpu"))
    alone, _ = features.targets(batch.views, (4, 6), torch.device("cpu"))
    torch.testing.assert_close(wanted[0], 0.75 * alone[0] + 0.25 * alone[1])


def test_a_whole_image_has_the_teachers_own_features(tmp_path):
    split = write_images(tmp_path / "images", 3)
    teacher = make_teacher()
    features = TeacherFeatures(split, (64, 64), teacher, tmp_path / "features")
    accelerator = make_accelerator("cpu", "off")
    assert features.fill(accelerator, batch=2, workers=0) == 3
    dataset = DetectionDataset(split, (64, 64), Augmentation())
    batch = prepare_batch(pack([dataset[index] for index in range(3)]), (64, 64), "cpu")
    projected = torch.randn(3, teacher.dim, 2, 2, generator=torch.Generator().manual_seed(0))
    on_disk = alignment(projected, batch, teacher, features, accelerator)["distill"]
    torch.testing.assert_close(on_disk, alignment_loss(projected, teacher(batch.images, (2, 2))), rtol=0, atol=2e-3)


def test_features_are_computed_once(tmp_path):
    split = write_images(tmp_path / "images", 3)
    accelerator = make_accelerator("cpu", "off")

    def fill(teacher: Teacher, size: tuple[int, int] = (64, 64)) -> int:
        return TeacherFeatures(split, size, teacher, tmp_path / "features").fill(accelerator, batch=2, workers=0)

    assert fill(make_teacher()) == 3
    assert fill(make_teacher()) == 0
    other = make_teacher()
    with torch.no_grad():
        other.network.weight[0, 0, 0, 0] += 1
    assert teacher_digest(other) != teacher_digest(make_teacher())
    assert fill(other) == 3
    assert fill(make_teacher(), (96, 64)) == 3
    image = cv2.imread(str(tmp_path / "images" / "1.png"))
    cv2.imwrite(str(tmp_path / "images" / "1.png"), 255 - image)
    assert fill(make_teacher()) == 1


@pytest.mark.parametrize("damage", ["short", "pickle", "terabytes", *(["pipe"] if hasattr(os, "mkfifo") else [])])
def test_damaged_and_planted_files_are_named_and_computed_again(tmp_path, damage, caplog):
    split = write_images(tmp_path / "images", 2)
    features = TeacherFeatures(split, (64, 64), make_teacher(), tmp_path / "features")
    accelerator = make_accelerator("cpu", "off")
    features.fill(accelerator, batch=2, workers=0)
    path = features._path(0)
    size = path.stat().st_size
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "pickle":
        path.write_bytes(pickle.dumps(b"x" * size)[:size])
    elif damage == "terabytes":
        with path.open("wb") as file:
            header = {"descr": "<f2", "fortran_order": False, "shape": (1 << 40,)}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(bytes(size - file.tell()))
    else:
        path.unlink()
        os.mkfifo(path)
    assert features._read(0) is None
    assert features._read(0) is None
    assert [each for each in caplog.messages if "is damaged" in each] == [
        f"{path} in the cache of the teacher is damaged; until the next start, its image has none."
    ]
    assert features._read(1) is not None
    path.unlink()
    path.write_bytes(b"of another size")
    assert features.fill(accelerator, batch=2, workers=0) == 1
    assert features._read(0) is not None


def test_a_function_has_no_digest(tmp_path):
    split = write_images(tmp_path / "images", 1)
    teacher = Teacher(lambda images: images[:, :, ::16, ::16], name="every sixteenth", dim=3, stride=16)
    with pytest.raises(ConfigError, match=r"distillation\.cache: the teacher every sixteenth is a function"):
        TeacherFeatures(split, (64, 64), teacher, tmp_path / "features")


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    split = write_images(tmp_path / "images", 1)
    features = TeacherFeatures(split, (64, 64), make_teacher(), tmp_path / "features")
    monkeypatch.setattr("rtdetrv4.training.teacher_features.DISK_TO_LEAVE", 1 << 62)
    with pytest.raises(ConfigError, match=r"take 192 bytes.*distillation\.cache=none"):
        features.fill(make_accelerator("cpu", "off"), batch=1, workers=0)


def test_a_run_with_features_on_disk_never_asks_the_teacher(tmp_path, monkeypatch):
    split = write_images(tmp_path / "images", 8)
    teacher = make_teacher()
    features = TeacherFeatures(split, (64, 64), teacher, tmp_path / "features")
    features.fill(make_accelerator("cpu", "off"), batch=4, workers=0)
    unlabeled = make_unlabeled(split, features=features)
    trainer = make_trainer(split, tmp_path / "run", features=features, unlabeled=unlabeled, unlabeled_weight=1.0)
    monkeypatch.setattr(Teacher, "forward", lambda *_: pytest.fail("the teacher was asked"))
    trainer.run()


@pytest.mark.parametrize("has_own_disk", [False, True])
def test_ranks_share_the_work_and_each_finds_everything(
    has_own_disk: bool, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One begins later, when another may have written; on machines of their own, neither sees what the other writes."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1" if has_own_disk else "2")
    barrier = threading.Barrier(2, timeout=60)

    def fill(rank: int) -> tuple[int, TeacherFeatures]:
        if rank and not has_own_disk:
            time.sleep(0.3)
        accelerator: Any = SimpleNamespace(
            process_index=rank,
            num_processes=2,
            local_process_index=0 if has_own_disk else rank,
            is_main_process=rank == 0,
            is_local_main_process=has_own_disk or rank == 0,
            device=torch.device("cpu"),
            autocast=contextlib.nullcontext,
            wait_for_everyone=barrier.wait,
        )
        teacher = Teacher(Colors(), name="colors", dim=3, stride=32, mean=(0, 0, 0), std=(1, 1, 1))
        features = TeacherFeatures(split, SIZE, teacher, tmp_path / f"cache-{rank if has_own_disk else 0}")
        return features.fill(accelerator, batch=1, workers=0), features

    with ThreadPoolExecutor(2) as pool:
        ranks = list(pool.map(fill, range(2)))
    assert [done for done, _ in ranks] == ([4, 4] if has_own_disk else [2, 2])
    for _, features in ranks:
        assert all(features._read(index) is not None for index in range(4))


def test_less_is_asked_at_once_where_memory_runs_out(split: Split, tmp_path: Path) -> None:
    class Limited(Colors):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 1:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")
            return super().forward(images)

    expected = features_of(split, tmp_path / "one")
    limited = Teacher(Limited(), name="colors", dim=3, stride=32, mean=(0, 0, 0), std=(1, 1, 1))
    found = TeacherFeatures(split, SIZE, limited, tmp_path / "other")
    assert found.fill(make_accelerator("cpu", "off"), batch=4, workers=0) == 4
    for index in range(4):
        own, theirs = expected._read(index), found._read(index)
        assert own is not None
        assert theirs is not None
        assert torch.equal(own, theirs)
