from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rtdetrv4.assembly import facts
from rtdetrv4.assembly.facts import data_facts, find_teacher, machine_facts
from rtdetrv4.assembly.training import usual_size
from rtdetrv4.config import load_recipe
from rtdetrv4.data.records import Record, Split
from rtdetrv4.training import make_accelerator
from rtdetrv4.types import ClassMap, ImageInfo


def split(*images: tuple[int, int, list[tuple[float, float]]], crowds: int = 0) -> Split:
    """Images of (height, width) with boxes of (width, height); the first boxes of every image are crowds."""
    records = []
    for index, (height, width, sides) in enumerate(images):
        boxes = np.array([(0, 0, *side) for side in sides], dtype=np.float32).reshape(-1, 4)
        crowd = np.arange(len(sides)) < crowds
        labels = np.zeros(len(sides), dtype=np.int64)
        records.append(Record(ImageInfo(index, f"{index}.jpg", height, width), boxes, labels, crowd, boxes[:, 2]))
    return Split(Path(), tuple(records), ClassMap(("one", "two"), (1, 2)), "", ())


def test_facts_of_a_few_images() -> None:
    train = split((100, 200, [(20, 10), (40, 20)]), (100, 200, [(200, 100)]), (300, 600, []))
    found = data_facts(train, split((100, 100, [])))
    assert (found.num_images, found.num_val, found.num_classes) == (3, 1, 2)
    assert (found.most_boxes, found.many_boxes) == (2, 2)
    assert found.median_side == pytest.approx(0.2)  # of 0.1, 0.2 and 1
    assert found.small_side == pytest.approx(0.12)
    assert found.image_hw == (100, 200)
    assert found.largest_image == 300 * 600
    assert found.aspect == pytest.approx(2)


def test_the_usual_size_of_images() -> None:
    assert usual_size(split((160, 320, []), (100, 128, []), (480, 80, []))) == (160, 128)


def test_a_single_crowded_image_hardly_counts() -> None:
    train = split(*[(100, 100, [(10, 10)])] * 2000, (100, 100, [(10, 10)] * 500))
    found = data_facts(train, None)
    assert (found.most_boxes, found.many_boxes, found.num_val) == (500, 1, 0)


def test_images_of_all_shapes_have_no_common_aspect() -> None:
    assert data_facts(split((100, 200, []), (200, 100, []), (100, 100, [])), None).aspect is None


def test_crowds_and_missing_boxes_do_not_count() -> None:
    found = data_facts(split((100, 100, [(90, 90), (10, 10)]), crowds=1), None)
    assert found.most_boxes == 1
    assert found.median_side == pytest.approx(0.1)
    assert data_facts(split((100, 100, [])), None).median_side == 1


def test_there_is_a_machine() -> None:
    found = machine_facts(make_accelerator("cpu", "off"))
    assert (found.kind, found.ranks) == ("cpu", 1)
    assert found.cores >= 1
    assert 2**24 < found.memory < 2**45
    assert 2**24 < found.host_memory < 2**45


@pytest.mark.parametrize(
    ("here", "model", "expected"),
    [
        ({"efficientnet_lite2"}, "deim-s", None),
        ({"efficientnet_lite2"}, "rtdetrv4-s", "efficientnet_lite2"),
        (
            {"vit_base_patch16_dinov3.lvd1689m", "efficientnet_lite2"},
            "rtdetrv4-s",
            "vit_base_patch16_dinov3.lvd1689m",
        ),
        (set(), "rtdetrv4-s", None),
    ],
)
def test_a_teacher_is_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, here: set[str], model: str, expected: str | None
) -> None:
    monkeypatch.setattr(facts, "has_timm_weights", here.__contains__)
    monkeypatch.setattr(facts, "has_pip_weights", here.__contains__)
    assert find_teacher(load_recipe(model)) == expected
