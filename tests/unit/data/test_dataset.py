from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from rtdetrv4.data.dataset import DetectionDataset, Sample
from rtdetrv4.data.formats import read_coco
from rtdetrv4.data.records import RecordTable, Split
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.errors import DatasetError
from rtdetrv4.types import ClassMap

Write = Callable[..., Path]
FULL = Augmentation(mosaic=0.5, mixup=0.5, photometric=0.5, zoom_out=0.5, iou_crop=0.8, flip=0.5)


def equal(first: Sample, second: Sample) -> bool:
    return first.info == second.info and all(np.array_equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))


def test_evaluation_stretches_and_nothing_else(tmp_path: Path, write_coco: Write) -> None:
    path = write_coco(tmp_path, [{"bbox": [16, 12, 32, 24]}, {"bbox": [0, 0, 9, 9], "iscrowd": 1}], size_hw=(48, 64))
    dataset = DetectionDataset(read_coco(path), (96, 96))
    sample = dataset[0]
    assert sample.image.shape == (3, 96, 96)
    assert sample.image.dtype == torch.uint8
    assert sample.info.height == 48
    np.testing.assert_allclose(sample.boxes, [[0.5, 0.5, 0.5, 0.5]], rtol=1e-6)
    assert sample.labels.tolist() == [0]
    pixels = cv2.cvtColor(cv2.imread(str(tmp_path / "0.png")), cv2.COLOR_BGR2RGB)
    expected = cv2.resize(pixels, (96, 96), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), expected)
    assert equal(sample, dataset[0])


def test_images_without_boxes(tmp_path: Path, write_coco: Write) -> None:
    split = read_coco(write_coco(tmp_path, num_images=4))
    for stage in (None, FULL, FULL._replace(mosaic=1.0), FULL._replace(mosaic=0.0)):
        dataset = DetectionDataset(split, (64, 96), stage)
        for index in range(4):
            sample = dataset[index]
            assert sample.image.shape == (3, 64, 96)
            assert sample.boxes.shape == (0, 4)
            assert sample.boxes.dtype == np.float32
            assert sample.labels.shape == (0,)
            assert sample.labels.dtype == np.int64


def test_samples_depend_on_seed_epoch_and_index_only(tmp_path: Path, write_coco: Write) -> None:
    split = read_coco(write_coco(tmp_path, [{"bbox": [16, 12, 32, 24]}], num_images=6))
    dataset = DetectionDataset(split, (64, 64), FULL, seed=3)
    first = [dataset[index] for index in range(6)]
    again = DetectionDataset(split, (64, 64), FULL, seed=3)
    assert all(equal(again[index], first[index]) for index in (4, 1, 0, 1, 5))
    again.set_epoch(1, FULL)
    assert not any(equal(again[index], first[index]) for index in range(6))
    again.set_epoch(0, FULL)
    assert equal(again[2], first[2])
    assert not equal(DetectionDataset(split, (64, 64), FULL, seed=4)[0], first[0])
    assert equal(pickle.loads(pickle.dumps(again))[3], first[3])


def test_crowds_are_not_trained_on(tmp_path: Path, write_coco: Write) -> None:
    boxes = [{"image_id": i, "bbox": [16, 12, 32, 24], "iscrowd": 1} for i in range(3)]
    dataset = DetectionDataset(read_coco(write_coco(tmp_path, boxes, num_images=3)), (64, 64), FULL)
    for epoch in range(4):
        dataset.set_epoch(epoch, FULL)
        assert all(len(dataset[index].labels) == 0 for index in range(3))


@pytest.fixture
def marked(tmp_path: Path, write_coco: Write) -> Callable[..., Split]:
    """A split whose images are black, with one white rectangle each, and a box around it."""

    def make(size_hw: tuple[int, int], suffix: str) -> Split:
        height, width = size_hw
        rng = np.random.default_rng(0)
        annotations = []
        low = (np.array([width, height]) * rng.uniform(0.05, 0.4, (8, 2))).astype(int)
        high = (np.array([width, height]) * rng.uniform(0.55, 0.95, (8, 2))).astype(int)
        for i in range(8):
            annotations.append({"image_id": i, "bbox": [*low[i].tolist(), *(high[i] - low[i]).tolist()]})
        path = write_coco(tmp_path, annotations, num_images=8, size_hw=size_hw, suffix=suffix)
        for i in range(8):
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[low[i][1] : high[i][1], low[i][0] : high[i][0]] = 255
            cv2.imwrite(str(tmp_path / f"{i}{suffix}"), pixels)
        return read_coco(path)

    return make


def bounds(mask: NDArray[np.bool_]) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize(
    ("size_hw", "suffix"), [((90, 120), ".png"), ((701, 503), ".jpg"), ((260, 1300), ".png"), ((1200, 901), ".jpg")]
)
def test_boxes_follow_their_pixels_through_crops(
    marked: Callable[..., Split], size_hw: tuple[int, int], suffix: str
) -> None:
    stage = Augmentation(zoom_out=0.5, iou_crop=0.8, flip=0.5)
    dataset = DetectionDataset(marked(size_hw, suffix), (128, 160), stage)
    for epoch in range(6):
        dataset.set_epoch(epoch, stage)
        for index in range(8):
            sample = dataset[index]
            cx, cy, width, height = (sample.boxes[0] * [160, 128, 160, 128]).tolist()
            box = [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]
            np.testing.assert_allclose(bounds(sample.image[0].numpy() > 127), box, atol=1.25)


@pytest.mark.parametrize(("size_hw", "suffix"), [((120, 120), ".png"), ((1201, 905), ".jpg")])
def test_boxes_follow_their_pixels_through_mosaics(
    marked: Callable[..., Split], size_hw: tuple[int, int], suffix: str
) -> None:
    stage = Augmentation(mosaic=1.0, flip=0.5)
    dataset = DetectionDataset(marked(size_hw, suffix), (200, 200), stage)
    checked = 0
    for epoch in range(4):
        dataset.set_epoch(epoch, stage)
        for index in range(8):
            sample = dataset[index]
            mask = (sample.image[0].numpy() > 127).astype(np.uint8)
            num_regions, _, regions, _ = cv2.connectedComponentsWithStats(mask)
            found = regions[1:num_regions, :4].astype(float)
            found[:, 2:] += found[:, :2]
            boxes = sample.boxes * 200
            low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
            # Cut by the border, the box of a turned rectangle is larger than what is seen of it.
            inside = np.all((low > 1) & (high < 199), axis=1)
            for box in np.concatenate([low, high], axis=1)[inside]:
                assert np.abs(found - box).max(axis=1).min() < 2.5
            checked += inside.sum()
    assert checked > 40


class BlankDataset(DetectionDataset):
    """Draws the geometry and leaves the pixels black."""

    def _read(self, index: int, scale: float) -> NDArray[np.uint8]:
        info = self.split.records[index].info
        return np.zeros((info.height, info.width, 3), np.uint8)


def scattered(num_images: int, sizes_hw: list[tuple[int, int]]) -> Split:
    """Images of alternating sizes with one to nine boxes each, some of them tiny."""
    rng = np.random.default_rng(11)
    sizes = np.array([sizes_hw[i % len(sizes_hw)] for i in range(num_images)], np.int32)
    counts = rng.integers(1, 10, num_images)
    limit = np.repeat(sizes[:, ::-1], counts, axis=0)
    sides = np.exp(rng.uniform(np.log(0.01), np.log(0.7), (len(limit), 2))) * limit
    low = rng.random((len(limit), 2)) * (limit - sides)
    boxes = np.concatenate([low, low + sides], axis=1).astype(np.float32)
    table = RecordTable(
        image_ids=np.arange(num_images),
        file_names=np.array([b"x"] * num_images),
        sizes_hw=sizes,
        first_box=np.concatenate([[0], np.cumsum(counts)]),
        boxes_xyxy_px=boxes,
        labels=np.zeros(len(boxes), np.int64),
        is_crowd=np.zeros(len(boxes), np.bool_),
        areas=np.ones(len(boxes)),
    )
    return Split(Path(), table, ClassMap(("thing",), (1,)), "", ())


def wrap(boxes: NDArray[np.float32] | torch.Tensor, height: int, width: int) -> BoundingBoxes:
    return BoundingBoxes(  # pyright: ignore[reportCallIssue]
        torch.as_tensor(boxes), format=BoundingBoxFormat.XYXY, canvas_size=(height, width)
    )


def reference_crops(split: Split, image_size: tuple[int, int]) -> Iterator[NDArray[np.float32]]:
    """Boxes as the released models' transforms of torchvision leave them."""
    steps = tv.Compose(
        [
            tv.RandomZoomOut(fill=0),
            tv.RandomApply([tv.RandomIoUCrop()], p=0.8),
            tv.SanitizeBoundingBoxes(min_size=1, labels_getter=None),
            tv.RandomHorizontalFlip(),
            tv.Resize(list(image_size)),
            tv.SanitizeBoundingBoxes(min_size=1, labels_getter=None),
        ]
    )
    for record in split.records:
        height, width = record.info.height, record.info.width
        black = torch.zeros(1, height, width, dtype=torch.uint8)
        yield steps(black, wrap(record.boxes_xyxy_px, height, width))[1].numpy()


def reference_mosaics(split: Split, image_size: tuple[int, int]) -> Iterator[NDArray[np.float32]]:
    rng = np.random.default_rng(5)
    shrink = tv.Resize(image_size[0] // 2)
    steps = tv.Compose(
        [
            tv.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.5, 1.5)),
            tv.SanitizeBoundingBoxes(min_size=1, labels_getter=None),
            tv.RandomHorizontalFlip(),
            tv.Resize(list(image_size)),
            tv.SanitizeBoundingBoxes(min_size=1, labels_getter=None),
        ]
    )
    for index in range(len(split.records)):
        records = [split.records[i] for i in (index, *rng.integers(len(split.records), size=3).tolist())]
        tiles = [shrink(wrap(r.boxes_xyxy_px, r.info.height, r.info.width)) for r in records]
        height, width = (max(tile.canvas_size[axis] for tile in tiles) for axis in (0, 1))
        offsets = torch.tensor([[0, 0], [width, 0], [0, height], [width, height]]).repeat(1, 2)
        boxes = torch.cat(
            [tile.as_subclass(torch.Tensor) + offset for tile, offset in zip(tiles, offsets, strict=True)]
        )
        yield steps(wrap(boxes, 2 * height, 2 * width)).numpy()


def statistics(samples: list[NDArray[np.float32]]) -> dict[str, list[float]]:
    """One number per sample, so that they are independent."""
    filled = [boxes for boxes in samples if len(boxes)]
    sides = [boxes[:, 2:] - boxes[:, :2] for boxes in filled]
    centers = [(boxes[:, 2:] + boxes[:, :2]).mean(axis=0) / 2 for boxes in filled]
    return {
        "count": [len(boxes) for boxes in samples],
        "mean area": [float(np.log(side.prod(axis=1)).mean()) for side in sides],
        "largest area": [float(side.prod(axis=1).max()) for side in sides],
        "aspect": [float(np.log(side[0, 0] / side[0, 1])) for side in sides],
        "center x": [float(center[0]) for center in centers],
        "center y": [float(center[1]) for center in centers],
    }


def ours(split: Split, image_size: tuple[int, int], stage: Augmentation) -> list[NDArray[np.float32]]:
    dataset = BlankDataset(split, image_size, stage)
    limit = np.array(image_size[::-1] * 2, dtype=np.float32)
    boxes = [dataset[index].boxes * limit for index in range(len(dataset))]
    return [np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], axis=1) for b in boxes]


@pytest.mark.parametrize("kind", ["crops", "mosaics"])
def test_boxes_are_distributed_as_with_torchvision(kind: str) -> None:
    split, image_size = scattered(200, [(96, 128), (150, 100)]), (96, 96)
    if kind == "crops":
        stage, reference = Augmentation(zoom_out=0.5, iou_crop=0.8, flip=0.5), reference_crops
        other = stage._replace(zoom_out=0.0)
    else:
        stage, reference = Augmentation(mosaic=1.0, flip=0.5), reference_mosaics
        other = stage._replace(max_scale=1.0)
    expected = statistics(list(reference(split, image_size)))

    def p_values(stage: Augmentation) -> dict[str, float]:
        drawn = statistics(ours(split, image_size, stage))
        return {name: float(ks_2samp(values, expected[name]).pvalue) for name, values in drawn.items()}

    equal_settings = p_values(stage)
    assert min(equal_settings.values()) > 0.01, equal_settings
    # The comparison is fine enough to tell a different setting.
    assert min(p_values(other).values()) < 1e-3


@pytest.fixture
def partly_damaged(tmp_path: Path, write_coco: Write) -> Split:
    """Twelve images, of which number 4 is cut off."""
    path = write_coco(tmp_path, [{"image_id": 4, "bbox": [1, 2, 30, 40]}], num_images=12, suffix=".jpg")
    broken = tmp_path / "4.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    return read_coco(path)


def test_a_damaged_image_is_replaced_in_training_and_told_once(
    partly_damaged: Split, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Augmentation()
    dataset = DetectionDataset(partly_damaged, (64, 64), plain)
    with caplog.at_level(logging.WARNING):
        assert equal(dataset[4], dataset[5])
        assert dataset[4].info.file_name == "5.jpg"
    assert dataset.num_unreadable == 1
    assert [str(partly_damaged.image_dir / "4.jpg") in record.getMessage() for record in caplog.records] == [True]
    for epoch in range(5):
        dataset.set_epoch(epoch, FULL._replace(mosaic=1.0))
        assert all(dataset[index].image.any() for index in range(12))


def test_a_damaged_image_is_marked_in_evaluation(partly_damaged: Split) -> None:
    dataset = DetectionDataset(partly_damaged, (64, 64))
    sample = dataset[4]
    assert not sample.image.any()
    assert sample.info.file_name == "4.jpg"
    assert [dataset[index].info.is_readable for index in (3, 4, 5)] == [True, False, True]
    assert len(sample.labels) == 1
    assert dataset.num_unreadable == 1


@pytest.mark.parametrize("stage", [None, FULL])
def test_many_damaged_images_are_an_error(partly_damaged: Split, stage: Augmentation | None) -> None:
    (partly_damaged.image_dir / "7.jpg").unlink()
    dataset = DetectionDataset(partly_damaged, (64, 64), stage)
    with pytest.raises(DatasetError, match=r"2 of 12 images cannot be read, the last one because .*[47]\.jpg"):
        list(map(dataset.__getitem__, range(12)))


def test_real_images_load(shared: Path) -> None:
    for name in ("bccd", "aquarium", "facemask"):
        path = next((shared / "data" / name / "train").glob("*.json"))
        dataset = DetectionDataset(read_coco(path), (320, 320), FULL)
        samples = [dataset[index] for index in range(0, 40, 2)]
        assert sum(len(sample.labels) for sample in samples) > 20
        boxes = np.concatenate([sample.boxes for sample in samples])
        assert boxes.min() >= 0
        assert boxes.max() <= 1
        assert dataset.num_unreadable == 0
