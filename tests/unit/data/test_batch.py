from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from rtdetrv4.data.batch import (
    draw_mixup,
    draw_size,
    mix_up,
    multi_scales,
    pack,
    prepare_batch,
    prepare_images,
)
from rtdetrv4.data.dataset import Sample
from rtdetrv4.types import ImageInfo


def sample(index: int, num_boxes: int, size_hw: tuple[int, int] = (32, 64)) -> Sample:
    generator = torch.Generator().manual_seed(index)
    image = torch.randint(0, 256, (*size_hw, 3), generator=generator, dtype=torch.uint8).permute(2, 0, 1)
    boxes = torch.rand(num_boxes, 4, generator=generator).numpy()
    return Sample(image, np.full(num_boxes, index), boxes, ImageInfo(index, f"{index}.jpg", *size_hw))


def test_packing_keeps_everything() -> None:
    samples = [sample(0, 2), sample(1, 0), sample(2, 3)]
    batch = pack(samples)
    assert batch.images.shape == (3, 3, 32, 64)
    assert batch.images.dtype == torch.uint8
    assert batch.targets.counts == (2, 0, 3)
    per_image = zip(batch.images, batch.targets.split(), batch.infos, samples, strict=True)
    for image, (labels, boxes), info, expected in per_image:
        assert torch.equal(image, expected.image)
        assert np.array_equal(labels, expected.labels)
        assert np.array_equal(boxes, expected.boxes)
        assert info == expected.info


def test_three_tensors_leave_a_worker() -> None:
    leaves = tree_leaves(pack([sample(index, index) for index in range(5)]))
    assert sum(isinstance(leaf, torch.Tensor) for leaf in leaves) == 3


def test_batch_of_backgrounds() -> None:
    batch = prepare_batch(pack([sample(0, 0), sample(1, 0)]), (32, 64), "cpu")
    for targets in (batch.targets, mix_up(batch, 0.5).targets):
        assert targets.boxes.shape == (0, 4)
        assert targets.labels.dtype == torch.int64
        assert targets.counts == (0, 0)


def test_multi_scales_equal_the_released_code(pytestconfig: pytest.Config) -> None:
    path = Path(pytestconfig.rootpath) / "tests" / "golden" / "schedules.json"
    golden = json.loads(path.read_text())["multi_scales"]
    for key, expected in golden.items():
        base, repeat = map(int, key.split(","))
        assert multi_scales(base, repeat) == expected
    assert len(golden) >= 5


def test_sizes_are_drawn_from_the_list_evenly_and_repeatably() -> None:
    drawn = [draw_size((640, 640), 3, seed=1, epoch=2, step=step) for step in range(1300)]
    assert drawn == [draw_size((640, 640), 3, seed=1, epoch=2, step=step) for step in range(1300)]
    assert drawn != [draw_size((640, 640), 3, seed=1, epoch=3, step=step) for step in range(1300)]
    assert all(height == width for height, width in drawn)
    counts = Counter(height for height, _ in drawn)
    expected = Counter(multi_scales(640, 3))
    assert set(counts) == set(expected)
    assert all(abs(counts[side] / 100 - expected[side]) < 0.4 * expected[side] for side in expected)


def test_sizes_of_rectangles_keep_their_shape_and_are_multiples_of_32() -> None:
    sizes = {draw_size((384, 640), 2, seed=0, epoch=0, step=step) for step in range(300)}
    assert (384, 640) in sizes
    assert len(sizes) == 11
    for height, width in sizes:
        assert height % 32 == width % 32 == 0
        assert abs(height / width - 0.6) < 0.04
    assert draw_size((384, 640), None, seed=0, epoch=0, step=0) == (384, 640)


def test_mixup_blends_with_the_image_before() -> None:
    batch = prepare_batch(pack([sample(0, 2), sample(1, 0), sample(2, 3)]), (32, 64), "cpu")
    mixed = mix_up(batch, 0.47)
    torch.testing.assert_close(mixed.images[1], 0.47 * batch.images[1] + 0.53 * batch.images[0])
    torch.testing.assert_close(mixed.images[0], 0.47 * batch.images[0] + 0.53 * batch.images[2])
    assert [labels.tolist() for labels, _ in mixed.targets.split()] == [[0, 0, 2, 2, 2], [0, 0], [2, 2, 2]]
    first, second, third = (boxes for _, boxes in batch.targets.split())
    assert torch.equal(mixed.targets.boxes, torch.cat([first, third, second, first, third, second]))
    assert mixed.infos == batch.infos


def test_an_image_alone_is_not_mixed_with_itself() -> None:
    batch = prepare_batch(pack([sample(0, 2)]), (32, 64), "cpu")
    assert mix_up(batch, 0.5) is batch


def test_mixup_ratios() -> None:
    drawn = [draw_mixup(0.5, seed=0, epoch=0, step=step) for step in range(1000)]
    ratios = [ratio for ratio in drawn if ratio is not None]
    assert 430 < len(ratios) < 570
    assert 0.45 <= min(ratios) < 0.455
    assert 0.545 < max(ratios) <= 0.55
    assert drawn == [draw_mixup(0.5, seed=0, epoch=0, step=step) for step in range(1000)]
    assert drawn != [draw_mixup(0.5, seed=0, epoch=0, step=step, rank=1) for step in range(1000)]
    assert all(draw_mixup(0.0, seed=0, epoch=0, step=step) is None for step in range(100))


def test_images_become_floats_of_the_wanted_size() -> None:
    images = pack([sample(0, 0), sample(1, 0)]).images
    same = prepare_images(images, (32, 64), "cpu")
    assert same.dtype == torch.float32
    assert same.is_contiguous()
    torch.testing.assert_close(same, images / 255)
    half = prepare_images(images, (16, 32), "cpu")
    assert half.shape == (2, 3, 16, 32)
    torch.testing.assert_close(half, torch.nn.functional.avg_pool2d(same, 2))
    assert images.dtype == torch.uint8


def test_preparing_keeps_targets() -> None:
    batch = pack([sample(0, 2), sample(1, 0), sample(2, 3)])
    prepared = prepare_batch(batch, (64, 64), torch.device("cpu"))
    assert torch.equal(prepared.targets.boxes, batch.targets.boxes)
    assert torch.equal(prepared.targets.labels, batch.targets.labels)
    assert prepared.targets.counts == batch.targets.counts
    assert prepared.infos == batch.infos
