"""Pascal VOC data sets, as the challenges had them and as Roboflow writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtdetrv4.data.formats import read_splits
from rtdetrv4.errors import DatasetError


def write(images: Path, annotations: Path, stem: str, *objects: tuple[str, str], filename: str | None = None) -> None:
    """An image of 80×40 and its XML; each object is a name and the four sides."""
    for folder in (images, annotations):
        folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 40)).save(images / f"{stem}.jpg")
    sides = ("xmin", "ymin", "xmax", "ymax")
    rows = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, box.split(), strict=True))
        + "</bndbox><part><name>head</name></part></object>"
        for name, box in objects
    )
    size = "<size><width>80</width><height>40</height><depth>3</depth></size>"
    (annotations / f"{stem}.xml").write_text(
        f"<annotation><filename>{filename or stem + '.jpg'}</filename>{size}{rows}</annotation>"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    images, annotations = tmp_path / "JPEGImages", tmp_path / "Annotations"
    write(images, annotations, "a", ("dog", "10 5 30 25"), ("cat", "0 0 8.5 8"), filename="C:\\photos\\other.png")
    write(images, annotations, "b")
    write(images, annotations, "c", ("dog", "1 1 80 40"), filename="../../c.jpg")
    lists = tmp_path / "ImageSets" / "Main"
    for folder in (lists, lists.with_name("Layout")):
        folder.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb  -1\n")
    (lists.with_name("Layout") / "train.txt").write_text("a 1\n")
    (lists / "val.txt").write_text("c\n")
    return tmp_path


def test_as_in_the_challenges(root: Path) -> None:
    splits = read_splits(root)
    assert splits.train is not None
    assert splits.val is not None
    first, second = splits.train.records
    assert (first.info.file_name, first.info.height, first.info.width) == ("a.jpg", 40, 80)
    assert first.boxes_xyxy_px.tolist() == [[10, 5, 30, 25], [0, 0, 8.5, 8]]
    assert first.labels.tolist() == [1, 0]
    assert len(second.labels) == 0
    assert splits.train.classes.names == splits.val.classes.names == ("cat", "dog")
    assert [each.labels.tolist() for each in splits.val.records] == [[1]]


def test_as_roboflow_writes_it(tmp_path: Path) -> None:
    for split, stem in (("train", "a"), ("valid", "b")):
        write(tmp_path / split, tmp_path / split, stem, ("dog", "10 5 30 25"))
    splits = read_splits(tmp_path)
    for split in (splits.train, splits.val):
        assert split is not None
        (record,) = split.records
        assert record.boxes_xyxy_px.tolist() == [[10, 5, 30, 25]]


def test_the_same_boxes_as_in_coco(shared: Path) -> None:
    ours, coco = read_splits(shared / "data" / "formats" / "bccd_voc"), read_splits(shared / "data" / "bccd")
    assert ours.train is not None
    assert ours.train.classes.names == ("Platelets", "RBC", "WBC")
    parts = [coco.train, coco.val]
    by_name = {each.info.file_name: each for part in parts if part is not None for each in part.records}
    compared = 0
    for split in (ours.train, ours.val, ours.test):
        for record in split.records if split is not None else ():
            expected = by_name[record.info.file_name]
            np.testing.assert_array_equal(record.labels, expected.labels)
            np.testing.assert_array_equal(record.boxes_xyxy_px, expected.boxes_xyxy_px)
            compared += 1
    assert compared == 62


def test_mistakes(root: Path) -> None:
    lists = root / "ImageSets" / "Main"
    (lists / "val.txt").write_text("../c\nnone\ngone\n")
    with pytest.raises(DatasetError, match=r"lists 2 images without annotations; the first missing file is none\.xml"):
        read_splits(root)
    (lists / "val.txt").write_text("c\n")
    (root / "JPEGImages" / "c.jpg").unlink()
    with pytest.raises(DatasetError, match=r"lists 1 images and 1 are missing, the first is c\.jpg"):
        read_splits(root)
    write(root / "JPEGImages", root / "Annotations", "c", ("", "1 1 2 2"))
    with pytest.raises(DatasetError, match=r"c\.xml: object 1 has no <name>, nor has any other"):
        read_splits(root)
    (root / "Annotations" / "c.xml").write_text("<annotation>")
    with pytest.raises(DatasetError, match="is not a Pascal VOC annotation"):
        read_splits(root)
    write(root / "JPEGImages", root / "Annotations", "c", ("dog", "a b c d"))
    with pytest.raises(DatasetError, match=r"no usable box.*<bndbox> should hold"):
        read_splits(root)


def test_corners_and_names_that_are_mixed_up(root: Path) -> None:
    write(
        root / "JPEGImages",
        root / "Annotations",
        "a",
        *(("dog", "30 5 10 25"), ("", "1 1 20 20"), (" cat\n", "50 30 70 10"), ("dog", "40 5 40 25")),
    )
    split = read_splits(root).train
    assert split is not None
    assert split.records[0].boxes_xyxy_px.tolist() == [[10, 5, 30, 25], [50, 10, 70, 30]]
    assert split.records[0].labels.tolist() == [1, 0]
    assert split.problems == (
        "1 box dropped: no <name> (first: object 2 of a.xml)",
        "2 boxes turned round: a minimum was above its maximum",
        "1 box dropped: no width or no height (first: annotation a.xml:4 of a.jpg)",
    )


def test_fractions_of_the_image(root: Path) -> None:
    write(root / "JPEGImages", root / "Annotations", "a", ("dog", "0.125 0.25 0.5 0.75"), ("cat", "0 0 1 1"))
    split = read_splits(root).train
    assert split is not None
    assert split.records[0].boxes_xyxy_px.tolist() == [[10, 10, 40, 30], [0, 0, 80, 40]]
    assert split.problems[0].startswith("all 2 boxes lie in [0, 1] and were taken as fractions of the image")


@pytest.mark.parametrize(
    "size", ["<size><width>0</width><height>0</height></size>", "", "<size><width>x</width></size>"]
)
def test_sizes_that_are_missing_come_from_the_images(root: Path, size: str) -> None:
    file = root / "Annotations" / "a.xml"
    text = file.read_text()
    file.write_text(text[: text.index("<size>")] + size + text[text.index("</size>") + len("</size>") :])
    split = read_splits(root).train
    assert split is not None
    assert (split.records[0].info.height, split.records[0].info.width) == (40, 80)
    assert "1 image size read from the files: not in the annotations" in split.problems


@pytest.mark.parametrize("encoding", ["gb2312", "utf-16", "utf-8-sig", "iso-8859-1"])
def test_encodings(root: Path, encoding: str) -> None:
    name = "naïve" if encoding == "iso-8859-1" else "安全帽"
    write(root / "JPEGImages", root / "Annotations", "a", (name, "10 5 30 25"), ("dog", "0 0 8 8"))
    file = root / "Annotations" / "a.xml"
    declared = encoding.removesuffix("-sig")
    file.write_bytes(f'<?xml version="1.0" encoding="{declared}"?>\n{file.read_text()}'.encode(encoding))
    split = read_splits(root).train
    assert split is not None
    assert split.classes.names == ("dog", name)


def test_a_file_that_cannot_be_parsed_is_left_out(root: Path) -> None:
    (root / "Annotations" / "b.xml").write_text("<annotation><object>")
    split = read_splits(root).train
    assert split is not None
    assert [record.info.file_name for record in split.records] == ["a.jpg"]
    assert "1 image left out: annotations cannot be read" in split.problems[0]
    assert "b.xml" in split.problems[0]
