"""Which images without labels are read, and which are left out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.formats import load_data
from rtdetrv4.data.records import Split
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.data.unlabeled import describe_unlabeled, image_files, read_unlabeled
from rtdetrv4.errors import DatasetError

Draw = Callable[..., Path]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    def write(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((20, 30, 3), len(name), np.uint8))
        return tmp_path

    return write


def names(split: Split, root: Path) -> set[str]:
    return {path.relative_to(root.resolve()).as_posix() for path in image_files(split)}


def test_any_tree_of_images(draw: Draw) -> None:
    root = draw("a.png", "b/c.jpg", "b/d/e.png")
    (root / "notes.txt").write_text("no image")
    split = read_unlabeled([str(root)])
    assert names(split, root) == {"a.png", "b/c.jpg", "b/d/e.png"}
    record = split.records[0]
    assert (record.info.height, record.info.width, len(record.labels)) == (20, 30, 0)
    assert split.classes.names == ()


def test_folders_named_after_validation_and_test_are_left_out(draw: Draw) -> None:
    root = draw("train/a.png", "val/b.png", "x/test/c.png")
    split = read_unlabeled([str(root)])
    assert names(split, root) == {"train/a.png"}
    assert "2 images left out" in " ".join(split.problems)
    assert len(read_unlabeled([str(root)], "all").records) == 3


def test_a_data_set_keeps_its_validation_images_to_itself(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes", num_train=5, num_val=2, image_size=64)
    assert all(name.startswith("train/") for name in names(read_unlabeled([str(shapes)]), shapes))
    assert len(read_unlabeled([str(shapes)]).records) == 5
    assert len(read_unlabeled([str(shapes)], "all").records) == 7


def test_copies_of_validation_images_are_left_out_wherever_they_are(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes", num_train=5, num_val=2, image_size=64)
    seen, unseen = sorted((shapes / "valid").glob("*.jpg")), sorted((shapes / "train").glob("*.jpg"))
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(seen[0], photos / "a.jpg")
    shutil.copy(unseen[0], photos / "b.jpg")
    for folders, without in (([str(photos), str(shapes)], set()), ([str(photos)], {seen[0].resolve()})):
        split = read_unlabeled(folders, without=without)
        assert {file.name for file in image_files(split) if file.parent == photos} == {"b.jpg"}
        assert "1 copy of images that validate or test left out" in split.problems


def test_what_training_would_hold_out_is_left_out_too(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes", num_train=10, num_val=0, image_size=64)
    for file in (shapes / "valid").iterdir():
        file.unlink()
    (shapes / "valid").rmdir()
    trained = load_data(shapes, parts=("train", "val"), make_val=True).splits.train
    assert trained is not None
    assert len(trained.records) < 10
    assert image_files(read_unlabeled([str(shapes)])) == image_files(trained)


def test_several_folders_count_each_image_once(draw: Draw) -> None:
    root = draw("one/a.png", "two/b.png", "two/in/c.png")
    split = read_unlabeled([str(root / "one"), str(root / "two"), str(root / "two" / "in")])
    assert names(split, root) == {"one/a.png", "two/b.png", "two/in/c.png"}
    cv2.imwrite(str(root / "one" / "a.png"), np.zeros((8, 8, 3), np.uint8))  # or the others would be its copies
    without = read_unlabeled([str(root)], without={(root / "one" / "a.png").resolve()})
    assert names(without, root) == {"two/b.png", "two/in/c.png"}


def test_the_fingerprint_tells_images_apart(draw: Draw) -> None:
    root = draw("a.png", "b.png")
    first = read_unlabeled([str(root)]).fingerprint
    assert read_unlabeled([str(root)]).fingerprint == first
    draw("c.png")
    assert read_unlabeled([str(root)]).fingerprint != first


def test_a_damaged_image_is_left_out_and_many_are_an_error(draw: Draw) -> None:
    root = draw(*(f"{index}.png" for index in range(3)))
    (root / "x.png").write_bytes(b"no picture")
    split = read_unlabeled([str(root)])
    assert len(split.records) == 3
    assert "x.png" in split.problems[0]
    for index in range(3):
        (root / f"y{index}.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"4 of 7 images cannot be read, and at most half may be: .*x\.png.*y2\.png"):
        read_unlabeled([str(root)])


def test_what_is_no_image_is_skipped_and_named(draw: Draw) -> None:
    root = draw(*(f"{index:02}.png" for index in range(13)))
    for index in range(12):
        (root / f"x{index:02}.png").write_bytes(b"no picture")
    split = read_unlabeled([str(root)])
    assert len(split.records) == 13
    (note,) = split.problems
    assert note.startswith("12 images left out")
    assert note.endswith("and 2 more")
    assert all(f"x{index:02}.png" in note for index in range(10))


def test_images_that_turn_out_damaged_are_skipped_too(draw: Draw) -> None:
    root = draw(*(f"{index}.png" for index in range(6)))
    split = read_unlabeled([str(root)])
    for index in range(3):  # after their headers were read
        (root / f"{index}.png").write_bytes(b"no picture")
    dataset = DetectionDataset(split, (32, 32), Augmentation())
    assert all(dataset[index].image.shape == (3, 32, 32) for index in range(6))
    (root / "3.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"4 of 6 images.* or remove them from their folders"):
        DetectionDataset(split, (32, 32), Augmentation(), cache=None)[0]


def test_each_folder_is_named_with_its_count(draw: Draw) -> None:
    root = draw("a/1.png", "a/2.png", "b/c/3.png", "unasked/4.png")
    one, other = str(root / "a"), str(root / "b")
    assert describe_unlabeled(read_unlabeled([one, other])) == f"3 images without labels: 2 in {one}, 1 in {other}"
    assert describe_unlabeled(read_unlabeled([other])) == f"1 image without labels in {other}"


def test_nothing_to_learn_from(draw: Draw, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        read_unlabeled([str(tmp_path / "nowhere")])
    with pytest.raises(DatasetError, match="There are no images to learn from"):
        read_unlabeled([str(tmp_path)])
    root = draw("val/a.png")
    with pytest.raises(DatasetError, match=r"1 image left out.*unlabeled_parts=all"):
        read_unlabeled([str(root)])
