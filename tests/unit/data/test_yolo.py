"""YOLO data sets, in the shapes that tools write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtdetrv4.data.formats import Split, read_splits
from rtdetrv4.data.yolo import read_names
from rtdetrv4.errors import DatasetError

NAMES = "names: [cat, dog]\n"
UNSEEN = "1 of 2 classes without a box: cat"


def write_image(path: Path, size_hw: tuple[int, int] = (40, 80), orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size_hw[::-1]).save(path, exif=exif)


def write_labels(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images to train on, one without labels, and one to validate with."""
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        write_image(tmp_path / "images" / split / f"{name}.jpg")
    write_labels(tmp_path / "labels" / "train" / "a.txt", "1 0.5 0.5 0.25 0.5", "", "0 0.1 0.25 0.2 0.5")
    write_labels(tmp_path / "labels" / "val" / "c.txt", "0 0.5 0.5 1 1")
    (tmp_path / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnc: 2\n{NAMES}")
    return tmp_path


def boxes(split: Split | None) -> dict[str, list[list[float]]]:
    assert split is not None
    return {each.info.file_name: each.boxes_xyxy_px.round(3).tolist() for each in split.records}


def labels(split: Split | None) -> list[int]:
    assert split is not None
    return [int(label) for each in split.records for label in each.labels]


@pytest.mark.parametrize("given", ["data.yaml", "."])
def test_boxes_names_and_background(root: Path, given: str) -> None:
    splits = read_splits(root / given)
    assert boxes(splits.train) == {"a.jpg": [[30, 10, 50, 30], [0, 0, 16, 20]], "b.jpg": []}
    assert boxes(splits.val) == {"c.jpg": [[0, 0, 80, 40]]}
    assert labels(splits.train) == [1, 0]
    assert splits.train is not None
    assert (splits.train.classes.names, splits.train.classes.category_ids) == (("cat", "dog"), (0, 1))
    assert splits.train.problems == ()
    assert splits.test is None


def test_the_same_boxes_as_in_coco(shared: Path) -> None:
    ours, coco = read_splits(shared / "data" / "formats" / "bccd_yolo"), read_splits(shared / "data" / "bccd")
    for part in ("train", "val"):
        split, reference = getattr(ours, part), getattr(coco, part)
        assert split.classes.names == reference.classes.names
        by_name = {each.info.file_name: each for each in reference.records}
        for record in split.records:
            expected = by_name[record.info.file_name]
            assert record.info[1:] == expected.info[1:]
            np.testing.assert_array_equal(record.labels, expected.labels)
            np.testing.assert_allclose(record.boxes_xyxy_px, expected.boxes_xyxy_px, atol=1e-3)  # six decimals


def test_as_roboflow_writes_it(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("valid", "b")):
        write_image(tmp_path / split / "images" / f"{name}.jpg")
        write_labels(tmp_path / split / "labels" / f"{name}.txt", "0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text(
        f"train: ../train/images\nval: ../valid/images\n{NAMES}roboflow: {{version: 1}}"
    )
    splits = read_splits(tmp_path)
    assert boxes(splits.train) == {"a.jpg": [[20, 10, 60, 30]]}
    assert boxes(splits.val) == {"b.jpg": [[20, 10, 60, 30]]}


def test_an_export_in_another_reads_nothing_of_that(tmp_path: Path) -> None:
    """../train/images, as Roboflow writes it, exists there, too."""
    for folder, name in ((tmp_path, "dog"), (tmp_path / "cats", "cat")):
        for split in ("train", "valid"):
            write_image(folder / split / "images" / f"{name}.jpg")
            write_labels(folder / split / "labels" / f"{name}.txt", "0 0.5 0.5 0.5 0.5")
        (folder / "data.yaml").write_text(f"train: ../train/images\nval: ../valid/images\nnames: [{name}]\n")
    for given in (tmp_path / "cats", tmp_path / "cats" / "data.yaml"):
        splits = read_splits(given)
        assert list(boxes(splits.train)) == list(boxes(splits.val)) == ["cat.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nc: 3\nnames: [cat, dog]\n", '"nc" is 3, but "names" has 2 classes'),
        ("names: {cat: 0, dog: 1}\n", '"names" should list the classes as text'),
        ("nc: 2\n\tnames: [cat, dog]\n", "is not valid YAML"),
        ("names: {0: cat, 1: dog, '1': cow}\n", '"names" should list the classes as text'),
        ("names: {'999999999999': cat}\n", '"names" should list the classes as text'),
    ],
)
def test_label_files_are_not_read_without_what_a_wrong_yaml_file_says(root: Path, content: str, message: str) -> None:
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\n{content}")
    for given in (root, root / "data.yaml"):
        with pytest.raises(DatasetError, match=message):
            read_splits(given)


@pytest.mark.parametrize(
    "names", ["names: {'0': cat, '1': dog}\n", "nc: '2'\nnames: [cat, dog]\n", "nc: 2.0\nnames: [cat, dog]\n"]
)
def test_numbers_in_quotes_are_numbers(root: Path, names: str) -> None:
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\n{names}")
    split = read_splits(root).train
    assert split is not None
    assert split.classes.names == ("cat", "dog")


@pytest.mark.parametrize("entry", ["../images/train", "../images/train/"])
def test_a_yaml_file_in_a_folder_of_its_own_names_what_lies_beside(root: Path, entry: str) -> None:
    configs = root / "configs"
    write_image(configs / "images" / "train" / "preview.jpg")
    (configs / "cats.yaml").write_text(f"train: {entry}\n{NAMES}")
    assert list(boxes(read_splits(configs / "cats.yaml").train)) == ["a.jpg", "b.jpg"]


def test_lists_of_images_and_of_folders(root: Path) -> None:
    (root / "train.txt").write_text("./images/train/a.jpg\nimages/val/c.jpg\n\n")
    (root / "data.yaml").write_text(f"path: /not/here\ntrain: train.txt\nval: [images/val, images/train]\n{NAMES}")
    splits = read_splits(root)
    assert list(boxes(splits.train)) == ["images/train/a.jpg", "images/val/c.jpg"]
    assert list(boxes(splits.val)) == ["val/c.jpg", "train/a.jpg", "train/b.jpg"]


def test_names_by_number_and_labels_beside_the_images(tmp_path: Path) -> None:
    write_image(tmp_path / "pictures" / "deep" / "a.png")
    write_labels(tmp_path / "pictures" / "deep" / "a.txt", "7 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("train: pictures\nnames: {3: cat, 7: 8}\n")
    split = read_splits(tmp_path).train
    assert boxes(split) == {"deep/a.png": [[20, 10, 60, 30]]}
    assert split is not None
    assert (split.classes.names, split.classes.category_ids) == (("cat", "8"), (3, 7))
    assert labels(split) == [1]


@pytest.mark.parametrize("names", [("no", "yes"), ("off", "on"), ("n", "y"), ("012", "1:30")])
def test_names_are_text_whatever_yaml_1_1_makes_of_them(root: Path, names: tuple[str, str]) -> None:
    (root / "data.yaml").write_text(f"train: images/train\nnames: [{names[0]}, {names[1]}]\n")
    split = read_splits(root).train
    assert split is not None
    assert split.classes.names == names


def test_names_given_twice_are_one_class(root: Path) -> None:
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog, cat, '7']\n")
    write_labels(root / "labels" / "val" / "c.txt", "0 0.5 0.5 1 1", "2 0.5 0.5 0.5 1", "3 0.5 0.5 0.5 0.5")
    splits = read_splits(root)
    assert splits.train is not None
    assert splits.val is not None
    assert (splits.train.classes.names, splits.train.classes.category_ids) == (("cat", "dog", "7"), (0, 1, 3))
    assert "1 category without a box ignored: cat (id 2)" in splits.train.problems
    assert labels(splits.val) == [0, 0, 2]
    assert 'the class name "cat" is used by several categories: 0, 2 are one class' in splits.val.problems


def test_key_points_as_the_yaml_file_says(root: Path) -> None:
    with (root / "data.yaml").open("a") as file:
        file.write("kpt_shape: [2, 2]\n")
    write_labels(root / "labels" / "train" / "a.txt", "1 0.5 0.5 0.25 0.5 0.9 0.9 0.1 0.1")
    split = read_splits(root).train
    assert boxes(split)["a.jpg"] == [[30, 10, 50, 30]]


def test_boxes_beyond_the_image_are_clipped(root: Path) -> None:
    write_labels(root / "labels" / "train" / "a.txt", "1 0.9 0.5 0.25 1.2", "1 0.5 0.5 0.005 0.005")
    split = read_splits(root).train
    assert split is not None
    np.testing.assert_allclose(boxes(split)["a.jpg"], [[62, 0, 80, 40], [39.8, 19.9, 40.2, 20.1]], atol=1e-4)
    assert split.problems == ("1 box clipped to the image (first: annotation a.txt:1 of a.jpg)", UNSEEN)


def test_polygons_become_boxes_and_turned_photos_are_upright(root: Path) -> None:
    write_labels(root / "labels" / "train" / "a.txt", "0 0.1 0.5 0.5 0.1 0.9 0.5 0.5 0.9")
    write_image(root / "images" / "train" / "b.jpg", (40, 80), orientation=6)
    write_labels(root / "labels" / "train" / "b.txt", "1 0.5 0.5 1 0.5")
    split = read_splits(root).train
    assert boxes(split) == {"a.jpg": [[8, 4, 72, 36]], "b.jpg": [[0, 20, 40, 60]]}


def test_what_is_no_box_is_counted(root: Path) -> None:
    write_labels(
        root / "labels" / "train" / "a.txt",
        *("0 0.5 0.5 0.5 0.5", "0 0.5 nan 1 1", "1 0.5 0.5 0.1", "1 2 2 1 1", "0 0.5 0.5 inf 1"),
    )
    split = read_splits(root).train
    assert split is not None
    assert boxes(split)["a.jpg"] == [[20, 10, 60, 30]]
    told = "\n".join(split.problems)
    assert "3 boxes dropped: not four finite numbers (first: annotation a.txt:2 of a.jpg)" in told
    assert "1 box dropped: outside of the image (first: annotation a.txt:4 of a.jpg)" in told


@pytest.mark.parametrize(
    ("yaml", "line", "message"),
    [
        ("train: images/train\nnames: [true, false]", "", '"names" should list the classes as text'),
        (f"train: images/train\nnc: 3\n{NAMES}", "", '"nc" is 3, but "names" has 2 classes'),
        (f"train: images/none\n{NAMES}", "", '"train" is images/none, which does not exist'),
        (f"train: labels\n{NAMES}", "", '"train" has no images in'),
        (f"train: [1]\n{NAMES}", "", "should be a folder of images or a list of folders; got"),
        (f"path: 3\ntrain: images/train\n{NAMES}", "", '"path" should be a folder; got 3'),
        (f"train: data.yaml\n{NAMES}", "", "neither a folder of images nor a .txt file"),
        (f"train: list.txt\n{NAMES}", "/etc/passwd", "not below .*, the first is /etc/passwd"),
        (f"train: list.txt\n{NAMES}", "../../x.jpg", r"not below .*, the first is \.\./\.\./x\.jpg"),
        (f"train: list.txt\n{NAMES}", "images/x.jpg", "not below .*, the first is images/x.jpg"),
        (f"train: images/train\n{NAMES}", "2 0.5 0.5 1 1", "line 1: class 2 is not one of the 2"),
        (f"train: images/train\n{NAMES}", "cat 0.5 0.5 1 1", "line 1: class cat is not one of the 2"),
        (f"train: images/train\n{NAMES}", "1 50 50 10 10", r"in pixels \(1 of 1, first: 50, 50, 10, 10 in a.txt:1"),
        (f"train: images/train\n{NAMES}kpt_shape: 17", "", r'"kpt_shape" should be .*, such as \[17, 3\]; got 17'),
    ],
)
def test_mistakes(root: Path, yaml: str, line: str, message: str) -> None:
    (root / "data.yaml").write_text(yaml)
    (root / "list.txt").write_text(line)
    write_labels(root / "labels" / "train" / "a.txt", line)
    with pytest.raises(DatasetError, match=message) as error:
        read_splits(root / "data.yaml")
    assert "\n" not in str(error.value)


def test_images_that_are_none_are_left_out_and_told(root: Path) -> None:
    (root / "images" / "train" / "b.jpg").write_bytes(b"no image")
    split = read_splits(root).train
    assert list(boxes(split)) == ["a.jpg"]
    assert split is not None
    assert split.problems[0] == f"1 image left out: cannot be read ({root / 'images' / 'train' / 'b.jpg'})"
    (root / "images" / "train" / "a.jpg").write_bytes(b"neither")
    with pytest.raises(DatasetError, match=r"2 of 2 images in .* cannot be read, the first is .*a\.jpg"):
        read_splits(root)


def test_images_without_any_labels(root: Path) -> None:
    (root / "images" / "train" / "b.jpg").unlink()
    (root / "labels" / "train" / "a.txt").unlink()
    with pytest.raises(DatasetError, match=r"none of the 1 images in .* has labels; looked for .*labels/train/a.txt"):
        read_splits(root)


def test_of_two_descriptions_data_yaml_is_taken(root: Path) -> None:
    (root / "another.yml").write_text(f"train: images/val\n{NAMES}")
    splits = read_splits(root)
    assert list(boxes(splits.train)) == ["a.jpg", "b.jpg"]
    assert splits.notes[1] == "data.yaml describes the data set, and so does another.yml; give the file to use as data"
    assert list(boxes(read_splits(root / "another.yml").train)) == ["c.jpg"]


def test_half_a_character_in_a_class_name(tmp_path: Path) -> None:
    """JSON may hold one, as in the notes.json of Label Studio, and nothing can write it."""
    assert read_names(tmp_path / "notes.json", {"names": ["cat", "\ud800x"]}) == {0: "cat", 1: "?x"}
