"""COCO files as scripts write them: numbers as text, fractions for pixels, corners for sides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtdetrv4.data.formats import read_coco, read_splits
from rtdetrv4.data.records import Split, require_objects
from rtdetrv4.errors import DatasetError
from rtdetrv4.types import ClassMap

Write = Callable[..., Path]

BOXES = [[4, 6, 10, 8], [30, 20, 20, 20], [2, 30, 12, 16], [40, 4, 20, 30], [20, 20, 8, 8], [50, 30, 14, 18]]
"""Left, top, width and height, in images of 64×48."""
CORNERS = [[x, y, x + width, y + height] for x, y, width, height in BOXES]


def boxes(split: Split) -> list[list[float]]:
    return [box for record in split.records for box in record.boxes_xyxy_px.round(3).tolist()]


def told(split: Split) -> str:
    return "\n".join(split.problems)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: [each.update(bbox=[str(value) for value in each["bbox"]]) for each in content["annotations"]],
        lambda content: [each.update(id=str(each["id"])) for each in content["images"]],
        lambda content: [each.update(image_id=f" {each['image_id']}") for each in content["annotations"]],
        lambda content: [each.update(category_id=float(each["category_id"])) for each in content["annotations"]],
        lambda content: [each.update(height=str(each["height"])) for each in content["images"]],
        lambda content: [each.update(id=str(each["id"])) for each in content["categories"]],
    ],
)
def test_text_where_numbers_belong(tmp_path: Path, write_coco: Write, change: Callable[[Any], Any]) -> None:
    path = write_coco(tmp_path, [{"bbox": box} for box in BOXES])
    expected = read_coco(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    split = read_coco(path)
    assert split.fingerprint == expected.fingerprint
    assert split.classes == expected.classes
    assert boxes(split) == CORNERS


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", False),
        ("false", False),
        ("", False),
        (None, False),
        (0.0, False),
        (float("nan"), False),
        ("1", True),
        ("True", True),
        (1, True),
    ],
)
def test_crowds_are_flags_however_they_are_written(
    tmp_path: Path, write_coco: Write, value: Any, expected: bool
) -> None:
    split = read_coco(write_coco(tmp_path, [{"bbox": BOXES[0], "iscrowd": value}]))
    assert split.records[0].is_crowd.tolist() == [expected]


def test_ids_that_are_no_numbers_are_counted(tmp_path: Path, write_coco: Write) -> None:
    images = [{"id": f"photo-{i}", "file_name": f"{i}.png", "height": 48, "width": 64} for i in range(2)]
    categories = [{"id": "c", "name": "cat"}, {"id": "d", "name": "dog"}]
    rows = [{"image_id": "photo-1", "category_id": "d", "bbox": BOXES[0]}]
    split = read_coco(write_coco(tmp_path, rows, images=images, categories=categories))
    assert [record.info.image_id for record in split.records] == [1, 2]
    assert split.records[1].labels.tolist() == [1]
    assert split.classes == ClassMap(("cat", "dog"), (1, 2))
    assert "image ids are no whole numbers (such as 'photo-0')" in told(split)
    assert "category ids are no whole numbers (such as 'c')" in told(split)


def test_fractions_of_the_image_become_pixels(tmp_path: Path, write_coco: Write) -> None:
    rows = [
        {"image_id": i % 2, "bbox": [x / 64, y / 48, width / 64, height / 48], "area": 0.1}
        for i, (x, y, width, height) in enumerate(BOXES)
    ]
    split = read_coco(write_coco(tmp_path, rows))
    np.testing.assert_allclose(boxes(split), CORNERS[::2] + CORNERS[1::2], atol=1e-3)
    np.testing.assert_allclose(split.records[0].areas, [80, 192, 64], atol=1e-6)
    assert "all 6 boxes lie in [0, 1] and were taken as fractions of the image" in told(split)


def test_a_few_boxes_in_fractions_are_told(tmp_path: Path, write_coco: Write) -> None:
    split = read_coco(write_coco(tmp_path, [{"bbox": BOXES[0]}, {"bbox": [0.1, 0.1, 0.5, 0.5]}]))
    assert "1 box smaller than a pixel" in told(split)
    assert "were taken as" not in told(split)


def test_corners_become_sides(tmp_path: Path, write_coco: Write) -> None:
    rows = [{"bbox": box, "area": (box[2] - box[0]) * (box[3] - box[1]) / 2} for box in CORNERS]
    split = read_coco(write_coco(tmp_path, rows))
    assert boxes(split) == CORNERS
    np.testing.assert_allclose(split.records[0].areas, [width * height / 2 for _, _, width, height in BOXES])
    assert "taken as [left, top, right, bottom]: as [left, top, width, height], 4 of them would leave" in told(split)


def test_corners_as_fractions(tmp_path: Path, write_coco: Write) -> None:
    rows = [{"bbox": [left / 64, top / 48, right / 64, bottom / 48]} for left, top, right, bottom in CORNERS]
    np.testing.assert_allclose(boxes(read_coco(write_coco(tmp_path, rows))), CORNERS, atol=1e-3)


@pytest.mark.parametrize(
    "given",
    [
        BOXES,
        [[20, 4, 60, 40], *BOXES],  # one leaves its image, but the others fit only as sides
        [[10, 10, 50, 40]],  # too few to tell
        [[0, 0, 64, 48]] * 6,
        [[5, 5, 30, 30]] * 6,  # either way; as the format says
    ],
)
def test_sides_stay_sides(tmp_path: Path, write_coco: Write, given: list[list[float]]) -> None:
    split = read_coco(write_coco(tmp_path, [{"bbox": box} for box in given]))
    expected = [[x, y, min(x + width, 64), min(y + height, 48)] for x, y, width, height in given]
    assert boxes(split) == expected
    assert "taken as" not in told(split)


def test_boxes_around_polygons_where_no_box_is_given(tmp_path: Path, write_coco: Write) -> None:
    rows = [
        {"bbox": BOXES[0]},
        {"segmentation": [[10, 12, 20, 12, 15, 30]]},
        {"bbox": [], "segmentation": [[10, 12, 20, 12, 15, 30], ["1", 2, 3, 4, 5, 6]]},
        {"bbox": None, "segmentation": {"size": [48, 64], "counts": [1, 2, 3069]}},
    ]
    split = read_coco(write_coco(tmp_path, rows))
    assert boxes(split) == [CORNERS[0], [10, 12, 20, 30], [1, 2, 20, 30]]
    assert "2 boxes drawn around polygons" in told(split)
    assert "1 box dropped: not four finite numbers (first: annotation 3 of 0.png)" in told(split)


def test_the_group_of_a_project_named_like_its_class(tmp_path: Path, write_coco: Write) -> None:
    categories = [
        {"id": 0, "name": "helmet", "supercategory": "none"},
        {"id": 1, "name": "helmet", "supercategory": "helmet"},
    ]
    split = read_coco(write_coco(tmp_path, [{"category_id": 1, "bbox": BOXES[0]}], categories=categories))
    assert split.classes == ClassMap(("helmet",), (1,))
    assert split.problems == ("1 category without a box ignored: helmet (id 0)",)


def test_categories_of_one_name_are_one_class(tmp_path: Path, write_coco: Write) -> None:
    categories = [{"id": 3, "name": "car"}, {"id": 5, "name": "bike"}, {"id": 9, "name": "car "}]
    rows = [{"category_id": id_, "bbox": box} for id_, box in zip((9, 5, 3), BOXES, strict=False)]
    split = read_coco(write_coco(tmp_path, rows, categories=categories))
    assert split.classes == ClassMap(("car", "bike"), (3, 5))
    assert split.records[0].labels.tolist() == [0, 1, 0]
    assert split.problems == ('the class name "car" is used by several categories: 3, 9 are one class',)


def test_names_that_are_numbers_or_missing(tmp_path: Path, write_coco: Write) -> None:
    categories = [{"id": 1, "name": 7}, {"id": 2, "name": " "}, {"id": 3, "name": "[/b]"}]
    rows = [{"category_id": id_, "bbox": BOXES[id_]} for id_ in (1, 2, 3)]
    split = read_coco(write_coco(tmp_path, rows, categories=categories))
    assert split.classes.names == ("7", "2", "[/b]")
    assert split.problems == ("1 category has no name: called by the id (2)",)


def test_annotations_of_images_that_are_not_listed(tmp_path: Path, write_coco: Write) -> None:
    rows = [{"image_id": i % 2, "bbox": BOXES[0]} for i in range(19)]
    split = read_coco(write_coco(tmp_path, [*rows, {"image_id": 77, "bbox": BOXES[0]}]))
    assert len(boxes(split)) == 19
    assert "1 annotation left out: of images that are not listed (first: annotation 19 of image 77)" in told(split)
    with pytest.raises(DatasetError, match=r"annotation 19 belongs to image 77, .* and so do 2 of 21"):
        read_coco(write_coco(tmp_path, [*rows, *[{"image_id": 77, "bbox": BOXES[0]}] * 2]))


def test_a_test_file_without_annotations(tmp_path: Path, write_coco: Write) -> None:
    write_coco(tmp_path / "train", [{"bbox": BOXES[0]}])
    path = write_coco(tmp_path / "test")
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content), encoding="utf-16")
    test = read_splits(tmp_path).test
    assert test is not None
    assert [len(record.labels) for record in test.records] == [0, 0]
    assert test.problems == ("no image has a box: all are background",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"none of the 2 training images in .* has a box"),
        ([{"bbox": box, "iscrowd": 1} for box in BOXES], r"all 6 boxes of the training images in .* are crowds"),
        ([{"bbox": BOXES[0], "iscrowd": 1}, {"bbox": BOXES[1]}], None),
    ],
)
def test_training_on_nothing(tmp_path: Path, write_coco: Write, rows: list[Any], message: str | None) -> None:
    split = read_coco(write_coco(tmp_path, rows))
    if message is None:
        require_objects(split)
        return
    with pytest.raises(DatasetError, match=message):
        require_objects(split)
    assert split.problems
