from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from rtdetrv4.data.formats import read_coco, read_splits
from rtdetrv4.errors import DatasetError
from rtdetrv4.types import ClassMap, ImageInfo

Write = Callable[..., Path]


def test_reads_boxes_labels_crowds_and_areas(tmp_path: Path, write_coco: Write) -> None:
    split = read_coco(
        write_coco(
            tmp_path,
            [
                {"image_id": 1, "category_id": 2, "bbox": [10, 20, 30, 8], "iscrowd": 1, "area": 99},
                {"image_id": 0, "category_id": 1, "bbox": [1.5, 2, 3, 4]},
                {"image_id": 1, "category_id": 1, "bbox": [0, 0, 64, 48], "area": 5},
            ],
            num_images=3,
        )
    )
    first, second, third = split.records
    assert first.info == ImageInfo(0, "0.png", 48, 64)
    np.testing.assert_array_equal(first.boxes_xyxy_px, [[1.5, 2, 4.5, 6]])
    np.testing.assert_array_equal(first.areas, [12])
    np.testing.assert_array_equal(second.boxes_xyxy_px, [[10, 20, 40, 28], [0, 0, 64, 48]])
    np.testing.assert_array_equal(second.labels, [1, 0])
    np.testing.assert_array_equal(second.is_crowd, [True, False])
    np.testing.assert_array_equal(second.areas, [99, 5])
    assert third.boxes_xyxy_px.shape == (0, 4)
    assert third.labels.dtype == np.int64
    assert split.problems == ()
    assert split.classes == ClassMap(("cat", "dog"), (1, 2))


def test_records_are_a_sequence_that_pickles(tmp_path: Path, write_coco: Write) -> None:
    records = read_coco(write_coco(tmp_path, [{"bbox": [1, 2, 3, 4]}], num_images=3)).records
    assert len(records) == 3
    assert records[-1].info.image_id == 2
    assert [record.info.image_id for record in records[:2]] == [0, 1]
    assert [record.info.file_name for record in records] == ["0.png", "1.png", "2.png"]
    with pytest.raises(IndexError):
        records[3]
    copy = pickle.loads(pickle.dumps(records))
    np.testing.assert_array_equal(copy[0].boxes_xyxy_px, records[0].boxes_xyxy_px)


@pytest.mark.parametrize("ids", [(7, 30056), (1, 2), (30056, 7)])
def test_any_category_ids_become_contiguous_in_their_order(
    tmp_path: Path, write_coco: Write, ids: tuple[int, int]
) -> None:
    categories = [{"id": ids[0], "name": "cat"}, {"id": ids[1], "name": "dog"}]
    annotations = [{"category_id": ids[1], "bbox": [1, 2, 3, 4]}, {"category_id": ids[0], "bbox": [1, 2, 3, 5]}]
    split = read_coco(write_coco(tmp_path, annotations, categories=categories))
    assert split.classes.category_ids == tuple(sorted(ids))
    named = [split.classes.names[label] for label in split.records[0].labels]
    assert named == ["dog", "cat"]


def test_one_class_with_a_large_id(tmp_path: Path, write_coco: Write) -> None:
    split = read_coco(
        write_coco(tmp_path, [{"category_id": 30056, "bbox": [1, 2, 3, 4]}], categories=[{"id": 30056, "name": "bolt"}])
    )
    assert split.classes == ClassMap(("bolt",), (30056,))
    np.testing.assert_array_equal(split.records[0].labels, [0])


def test_validation_classes_are_matched_by_name(tmp_path: Path, write_coco: Write) -> None:
    write_coco(tmp_path / "train", [{"category_id": 1, "bbox": [1, 2, 3, 4]}, {"category_id": 2, "bbox": [1, 2, 3, 5]}])
    write_coco(
        tmp_path / "valid",
        [{"category_id": 0, "bbox": [1, 2, 3, 4]}, {"category_id": 9, "bbox": [1, 2, 3, 5]}],
        categories=[{"id": 0, "name": "dog"}, {"id": 9, "name": "cat"}, {"id": 4, "name": "emu"}],
    )
    splits = read_splits(tmp_path)
    assert splits.train is not None
    assert splits.val is not None
    assert splits.test is None
    assert splits.val.classes == splits.train.classes
    np.testing.assert_array_equal(splits.val.records[0].labels, [1, 0])
    assert splits.val.problems == ("1 category without a box ignored: emu",)


def test_given_classes_label_all_splits(tmp_path: Path, write_coco: Write) -> None:
    write_coco(tmp_path / "train", [{"category_id": 2, "bbox": [1, 2, 3, 4]}])
    classes = ClassMap(("bird", "dog", "cat"), (5, 6, 7))
    train = read_splits(tmp_path, classes=classes).train
    assert train is not None
    assert train.classes == classes
    np.testing.assert_array_equal(train.records[0].labels, [1])


def test_validation_class_that_training_does_not_know(tmp_path: Path, write_coco: Write) -> None:
    write_coco(tmp_path / "train", [{"bbox": [1, 2, 3, 4]}])
    write_coco(tmp_path / "valid", [{"bbox": [1, 2, 3, 4]}], categories=[{"id": 1, "name": "cats"}])
    with pytest.raises(DatasetError, match=r'valid.*annotation 0 is of class "cats".*Did you mean "cat"'):
        read_splits(tmp_path)


def test_a_few_boxes_of_a_class_that_training_does_not_know(tmp_path: Path, write_coco: Write) -> None:
    write_coco(tmp_path / "train", [{"bbox": [1, 2, 3, 4]}])
    rows = [{"bbox": [i, 2, 30, 4]} for i in range(19)] + [{"bbox": [1, 2, 3, 4], "category_id": 5}]
    write_coco(tmp_path / "valid", rows, categories=[{"id": 1, "name": "cat"}, {"id": 5, "name": "dgo"}])
    val = read_splits(tmp_path).val
    assert val is not None
    assert val.records[0].labels.tolist() == [0] * 19
    assert 'box dropped: annotation 19 is of class "dgo", which is not one of the 2' in val.problems[0]
    assert 'Did you mean "dog"' in val.problems[0]


def test_placeholder_parent_is_no_class(tmp_path: Path, write_coco: Write) -> None:
    categories = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": "dog", "supercategory": "animals"},
    ]
    split = read_coco(write_coco(tmp_path / "a", [{"bbox": [1, 2, 3, 4]}], categories=categories))
    assert split.classes == ClassMap(("cat", "dog"), (1, 2))
    assert split.problems == ("1 category without a box ignored: animals", "1 of 2 classes without a box: dog")
    used = read_coco(write_coco(tmp_path / "b", [{"category_id": 0, "bbox": [1, 2, 3, 4]}], categories=categories))
    assert used.classes.names == ("animals", "cat", "dog")


def test_class_named_like_its_own_group_stays(tmp_path: Path, write_coco: Write) -> None:
    categories = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 2, "name": "dog"}]
    split = read_coco(write_coco(tmp_path, [{"category_id": 2, "bbox": [1, 2, 3, 4]}], categories=categories))
    assert split.classes.names == ("person", "dog")


def test_bad_boxes_are_mended_or_dropped_and_counted(tmp_path: Path, write_coco: Write) -> None:
    split = read_coco(
        write_coco(
            tmp_path,
            [
                {"bbox": [10, 10, 0, 5]},
                {"bbox": [10, 10, 5, -1]},
                {"bbox": [70, 10, 5, 5]},
                {"bbox": [60, -5, 10, 20], "area": 200},
                {"bbox": [60, 40, 4.02, 8.02]},
                {"bbox": [1, 2, 3]},
                {"bbox": None},
                {"bbox": [1, 2, float("nan"), 4]},
                {"bbox": [1, 2, 3, "four"]},
                {"bbox": [5, 5, 5, 5]},
                {"bbox": [5, 5, 5, 5]},
            ],
        )
    )
    np.testing.assert_allclose(
        split.records[0].boxes_xyxy_px, [[60, 0, 64, 15], [60, 40, 64, 48], [5, 5, 10, 10], [5, 5, 10, 10]]
    )
    assert split.records[0].areas[0] == 60
    assert split.problems[:5] == (
        "4 boxes dropped: not four finite numbers (first: annotation 5 of 0.png)",
        "2 boxes dropped: no width or no height (first: annotation 0 of 0.png)",
        "1 box dropped: outside of the image (first: annotation 2 of 0.png)",
        "1 box clipped to the image (first: annotation 3 of 0.png)",
        "1 box given twice and kept: equal boxes teach double detections",
    )


def test_sizes_missing_in_the_file_come_from_the_images(tmp_path: Path, write_coco: Write) -> None:
    images = [{"id": 0, "file_name": "0.png", "height": 0, "width": 0}, {"id": 1, "file_name": "1.png"}]
    split = read_coco(write_coco(tmp_path, images=images))
    assert [(record.info.height, record.info.width) for record in split.records] == [(48, 64)] * 2
    assert split.problems[0] == "2 image sizes read from the files: not in the annotations"


def test_no_annotations_at_all_is_a_source_of_background(tmp_path: Path, write_coco: Write) -> None:
    split = read_coco(write_coco(tmp_path))
    assert [len(record.labels) for record in split.records] == [0, 0]


IMAGE = {"id": 0, "file_name": "0.png", "height": 48, "width": 64}
CAT = {"id": 1, "name": "cat"}


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"annotations": [{"id": 7, "image_id": 5, "category_id": 1}]}, "annotation 7 belongs to image 5"),
        ({"annotations": [{"id": 7, "image_id": 0, "category_id": 5}]}, "annotation 7 has category 5"),
        ({"annotations": [{"id": 7, "image_id": 0, "category_id": [1]}]}, r"annotation 7 has category \[1\]"),
        ({"annotations": [{"id": 7, "image_id": 0, "category_id": 1, "bbox": [1, 1, 0, 0]}]}, "no usable box"),
        ({"images": [IMAGE, IMAGE]}, '1 id occurs more than once under "images"'),
        ({"images": [IMAGE | {"id": True}]}, "number or text as id; got True"),
        ({"images": [IMAGE | {"file_name": "no.png"}]}, "1 images and 1 are missing, the first is no.png"),
        ({"images": [IMAGE | {"file_name": "../../../etc/passwd"}]}, "1 are missing, the first is etc/passwd"),
        ({"images": [IMAGE | {"file_name": "/etc/passwd"}]}, "1 are missing, the first is etc/passwd"),
        ({"images": [IMAGE | {"file_name": None}]}, "image 0 has no file_name"),
        ({"images": []}, "lists no images"),
        ({"images": None}, 'list of objects under "images"; got NoneType'),
        ({"categories": [CAT, CAT]}, '1 id occurs more than once under "categories"'),
        ({"categories": []}, 'empty "categories" list'),
        ({"categories": [{"id": 1}]}, "needs a name"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, write_coco: Write, replace: dict[str, Any], message: str) -> None:
    path = write_coco(tmp_path, **replace)
    with pytest.raises(DatasetError, match=message) as error:
        read_coco(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [', "not valid JSON .line 1, column 13"),
        (b"[]", "got a list"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"images": ' + b"1" * 9999 + b"}", "cannot be read: .*; export the annotations again"),
        (b"[" * 200_000, "cannot be read: .*; export the annotations again"),
        (None, "does not exist"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_coco(path)


def test_fingerprint_changes_with_what_matters(tmp_path: Path, write_coco: Write) -> None:
    def fingerprint(name: str, **options: Any) -> str:
        options = {"annotations": [{"bbox": [1, 2, 3, 4]}]} | options
        return read_coco(write_coco(tmp_path / name, **options)).fingerprint

    same = fingerprint("a")
    assert len(same) == 64
    assert fingerprint("b") == same
    changed = [
        fingerprint("c", annotations=[{"bbox": [1, 2, 3, 4.5]}]),
        fingerprint("d", annotations=[{"bbox": [1, 2, 3, 4], "category_id": 2}]),
        fingerprint("e", annotations=[{"bbox": [1, 2, 3, 4], "image_id": 1}]),
        fingerprint("f", categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "cow"}]),
        fingerprint("g", suffix=".jpg"),
        fingerprint("h", size_hw=(50, 64)),
    ]
    assert len({same, *changed}) == 7


def _usual_layout(root: Path, write_coco: Write, image_folders: dict[str, str]) -> None:
    (root / "annotations").mkdir(parents=True)
    for split, folder in image_folders.items():
        path = write_coco(root / folder, [{"bbox": [1, 2, 3, 4]}])
        path.rename(root / "annotations" / f"instances_{split}.json")


@pytest.mark.parametrize(
    "folders",
    [
        {"train2017": "train2017", "val2017": "val2017"},
        {"train2017": "images/train2017", "val2017": "images/val2017"},
        {"train2017": "images/train", "val2017": "images/val"},
        {"train": "images", "val": "images"},
    ],
)
def test_usual_layouts(tmp_path: Path, write_coco: Write, folders: dict[str, str]) -> None:
    _usual_layout(tmp_path, write_coco, folders)
    splits = read_splits(tmp_path)
    for split, folder in zip(splits[:2], folders.values(), strict=True):
        assert split is not None
        assert split.image_dir == tmp_path / folder


def test_two_files_for_one_split_are_joined(tmp_path: Path, write_coco: Write) -> None:
    _usual_layout(tmp_path, write_coco, {"train2014": "train2014", "train2017": "train2017"})
    splits = read_splits(tmp_path)
    assert splits.train is not None
    assert [record.info.file_name for record in splits.train.records] == [
        f"train{year}/{number}.png" for year in (2014, 2017) for number in (0, 1)
    ]
    assert [record.boxes_xyxy_px.tolist() for record in splits.train.records] == [
        [[1, 2, 4, 6]],
        [],
        [[1, 2, 4, 6]],
        [],
    ]
    assert "2 files hold annotations for train" in splits.notes[1]


def test_of_two_versions_of_a_file_the_larger_is_read(tmp_path: Path, write_coco: Write) -> None:
    write_coco(tmp_path, [{"bbox": [1, 2, 3, 4]}]).rename(tmp_path / "old.json")
    write_coco(tmp_path, [{"bbox": [1, 2, 3, 4]}, {"bbox": [5, 5, 5, 5]}]).rename(tmp_path / "new.json")
    train = read_splits(tmp_path).train
    assert train is not None
    assert [len(record.labels) for record in train.records] == [2, 0]
    assert train.problems[0].startswith("old.json left out: 2 images of it (first: 0.png) are also in another file")
    old = read_splits(tmp_path / "old.json").train
    assert old is not None
    assert [len(record.labels) for record in old.records] == [1, 0]


def test_yaml_names_files_and_images(tmp_path: Path, write_coco: Write) -> None:
    write_coco(tmp_path / "photos", [{"bbox": [1, 2, 3, 4]}]).rename(tmp_path / "a.json")
    (tmp_path / "data.yaml").write_text("train: a.json\nval: a.json\nimages: photos\n")
    splits = read_splits(tmp_path / "data.yaml")
    assert splits.train is not None
    assert splits.val is not None
    assert splits.train.fingerprint == splits.val.fingerprint
    (tmp_path / "each.yaml").write_text("train: a.json\nimages: {train: photos}\n")
    assert read_splits(tmp_path / "each.yaml").train is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: a.json\nvall: b.json", 'unknown entry "vall".*Did you mean "val"'),
        ("train: [a.json, images/train]", r"should name a COCO .json file; got \['a.json', 'images/train'\]"),
        ("train: images/train", '"train" is images/train, which does not exist'),
        ("- a", "should be a mapping"),
        ("a: [", "not valid YAML"),
        ("images: x", "names no images"),
    ],
)
def test_yaml_mistakes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message) as error:
        read_splits(path)
    assert "\n" not in str(error.value)


def test_folders_that_are_something_else(tmp_path: Path, write_coco: Write) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        read_splits(tmp_path / "none")
    with pytest.raises(DatasetError, match="an empty folder"):
        read_splits(tmp_path)
    for name in ("a.csv", "b.csv", "README"):
        (tmp_path / name).write_text("a.jpg,1,2,3,4,cat\n")
    with pytest.raises(DatasetError, match=r"expected COCO's .json.*; got files with 2 × .csv, 1 × no suffix$"):
        read_splits(tmp_path)
    with pytest.raises(DatasetError, match=r"a\.csv is neither a folder nor a \.yaml or \.json file"):
        read_splits(tmp_path / "a.csv")


def test_images_in_subfolders_and_utf8_names(tmp_path: Path, write_coco: Write) -> None:
    images = [{"id": 0, "file_name": "día/猫.png", "height": 8, "width": 8}]
    path = write_coco(tmp_path, images=images)
    (tmp_path / "día").mkdir()
    (tmp_path / "día" / "猫.png").write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    assert read_coco(path).records[0].info.file_name == "día/猫.png"
    path.write_text(json.dumps(json.loads(path.read_text())), encoding="utf-8-sig")
    assert len(read_coco(path).records) == 1


def test_an_image_listed_under_two_ids_is_told(tmp_path: Path, write_coco: Write) -> None:
    split = read_coco(write_coco(tmp_path, images=[IMAGE, IMAGE | {"id": 1}]))
    assert split.problems[0] == "1 image listed again under another id: each shows only its own boxes"


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("bccd", [(292, 3941), (72, 945)]),
        ("aquarium", [(448, 3323), (127, 909), (63, 582)]),
        ("facemask", [(677, 3106), (171, 915)]),
    ],
)
def test_real_data(shared: Path, name: str, counts: list[tuple[int, int]]) -> None:
    sources = read_splits(shared / "data" / name).parts.values()
    assert [(len(s.records), sum(len(record.labels) for record in s.records)) for s in sources] == counts
    assert all(split.problems == () for split in sources)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("coco_missing_files", "lists 400 images and 380 are missing"),
        ("coco_box_outside_image", "1 box clipped to the image"),
        ("coco_one_pixel_boxes_crowded", None),
        ("coco_stray_classes_train", "1 category without a box ignored: pieces"),
        ("coco_stray_classes_test", "1 category without a box ignored: pieces"),
    ],
)
def test_flaws_found_in_public_data(shared: Path, name: str, expected: str | None) -> None:
    folder = shared / "data" / "broken" / name
    if name == "coco_missing_files":
        with pytest.raises(DatasetError, match=expected):
            read_splits(folder)
        return
    train = read_splits(folder).train
    assert train is not None
    told = [problem for problem in train.problems if expected and problem.startswith(expected)]
    assert told if expected else not train.problems
    for record in train.records:
        low, high = record.boxes_xyxy_px[:, :2], record.boxes_xyxy_px[:, 2:]
        assert np.all((low >= 0) & (low < high) & (high <= [record.info.width, record.info.height]))
