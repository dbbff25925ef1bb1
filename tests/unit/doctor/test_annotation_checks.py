"""Each fault of annotations, planted once in a data set without others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clean_data import (
    HEIGHT,
    WIDTH,
    coco_file,
    edit_coco,
    picture,
    voc_xml,
    write_coco,
    write_cvat,
    write_labelme,
    write_voc,
    write_yolo,
    yolo_line,
)
from rtdetrv4.data.formats import read_splits
from rtdetrv4.doctor import doctor
from rtdetrv4.doctor.finding import Example, Findings
from rtdetrv4.errors import DatasetError


def counts(findings: Findings) -> dict[str, int]:
    """How often each fault of reading, files and annotations was found."""
    return {finding.code: finding.count for finding in findings.findings if finding.code < "D3"}


def first(findings: Findings, code: str) -> Example:
    return next(finding.examples[0] for finding in findings.findings if finding.code == code)


@pytest.mark.parametrize("write", [write_coco, write_cvat, write_yolo, write_voc, write_labelme])
def test_a_clean_data_set(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    found = doctor(write(tmp_path / "data"))
    assert counts(found) == {}
    assert {name: tuple(part) for name, part in found.parts.items()} == {"train": (4, 8, 2), "val": (2, 4, 2)}
    assert found.exit_code() == 0


# COCO --------------------------------------------------------------------------------------------------------------


def box(number: int, *values: float) -> Callable[[dict[str, Any]], object]:
    """Give annotation `number` of a part another box."""
    return lambda content: content["annotations"][number].update(bbox=list(values))


def annotation(number: int, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["annotations"][number].update(changes)


def again(content: dict[str, Any], **changes: Any) -> None:
    """Give the first annotation again."""
    content["annotations"].append(content["annotations"][0] | {"id": 100} | changes)


def category(content: dict[str, Any], **row: Any) -> None:
    content["categories"].append(row)


def two_ids(content: dict[str, Any], *, is_used: bool) -> None:
    category(content, id=2, name="cat")
    if is_used:
        content["annotations"][0]["category_id"] = 2


def rename_class(content: dict[str, Any], name: str) -> None:
    content["categories"][0]["name"] = name


def image_again(content: dict[str, Any]) -> None:
    content["images"].append(content["images"][0] | {"id": 9})


def fractions(content: dict[str, Any]) -> None:
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        row["bbox"] = [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda content: content["images"].pop(3), {"D001": 1, "D205": 2, "D202": 1}, id="not listed"),
        pytest.param(box(0, 10, 12, 30), {"D207": 1}, id="three numbers"),
        pytest.param(annotation(0, category_id=7), {"D001": 1, "D208": 1}, id="unknown category"),
        pytest.param(
            lambda content: content["images"][1].update(id=0), {"D001": 1, "D210": 1, "D205": 2, "D202": 1}, id="id"
        ),
        pytest.param(lambda content: two_ids(content, is_used=True), {"D211": 1}, id="two ids of a name"),
        pytest.param(lambda content: two_ids(content, is_used=False), {"D214": 1}, id="a group called like a class"),
        pytest.param(
            lambda content: category(content, id=2, name=" Cat"), {"D212": 1, "D214": 1}, id="another spelling"
        ),
        pytest.param(lambda content: category(content, id=2, name="7"), {"D213": 1, "D214": 1}, id="a number"),
        pytest.param(lambda content: category(content, id=2, name="owl"), {"D214": 1}, id="never used"),
        pytest.param(lambda content: rename_class(content, "owl"), {"D001": 1, "D215": 1, "D216": 1}, id="part only"),
        pytest.param(box(0, 100, 70, 20, 20), {"D217": 1}, id="outside"),
        pytest.param(box(0, 80, 20, 30, 20), {"D218": 1}, id="beyond the border"),
        pytest.param(box(0, 80, 20, 17, 20), {}, id="a pixel beyond, as by rounding"),
        pytest.param(box(0, 80, 20, 0, 20), {"D219": 1}, id="no width"),
        pytest.param(box(0, 80, 20, 0.5, 20), {"D220": 1}, id="half a pixel"),
        pytest.param(box(0, 80, 20, 2, 20), {"D221": 1}, id="two pixels"),
        pytest.param(box(0, 0, 0, WIDTH, HEIGHT), {"D222": 1}, id="the whole image"),
        pytest.param(again, {"D223": 1}, id="twice"),
        pytest.param(lambda content: again(content, category_id=1), {"D224": 1}, id="two classes"),
        pytest.param(box(0, 40, 32, -30, -20), {"D225": 1}, id="inverted"),
        pytest.param(fractions, {"D226": 8}, id="fractions"),
        pytest.param(annotation(0, iscrowd=1), {"D227": 1}, id="crowd"),
        pytest.param(annotation(0, bbox=[], segmentation=[[10, 12, 40, 12, 40, 32]]), {"D228": 1}, id="polygon only"),
        pytest.param(image_again, {"D232": 1}, id="listed twice"),
        pytest.param(lambda content: content["annotations"].clear(), {"D001": 1, "D215": 2, "D235": 1}, id="no boxes"),
        pytest.param(
            lambda content: content["images"][0].pop("file_name"),
            {"D001": 1, "D203": 1, "D205": 2, "D202": 1},
            id="name",
        ),
    ],
)
def test_faults_of_coco_files(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], expected: dict[str, int]
) -> None:
    folder = write_coco(tmp_path / "data")
    edit_coco(folder, change)
    assert counts(doctor(folder)) == expected


def test_a_box_is_shown_with_its_line_and_its_corners(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    edit_coco(folder, box(3, 80, 20, 30, 20))
    example = first(doctor(folder), "D218")
    # { on line 1, "images": [ on line 2, 4 images, ], "annotations": [ on line 8
    assert (example.part, example.file, example.line) == ("train", "train/_annotations.coco.json", 12)
    assert example.detail == "annotation 3 of b.jpg: (80, 20) to (110, 40) in 96×64"
    assert example.image == str(folder / "train/b.jpg")
    assert example.boxes_xyxy_px == ((80, 20, 110, 40),)


def test_boxes_of_a_resized_copy_are_shown_where_they_are(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    picture("a", (2 * WIDTH, 2 * HEIGHT)).save(folder / "train/a.jpg")
    edit_coco(folder, box(0, 80, 20, 30, 20))
    assert first(doctor(folder), "D218").boxes_xyxy_px == ((160, 40, 220, 80),)


def test_a_missing_image_is_shown_with_its_line(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    (folder / "train/b.jpg").unlink()
    found = doctor(folder)
    assert counts(found) == {"D203": 1}
    assert first(found, "D203")[:4] == ("train", "train/_annotations.coco.json", 4, "b.jpg does not exist")


def test_of_two_files_for_the_same_images_one_is_left_out(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    content = json.loads(coco_file(folder).read_text())
    content["annotations"] = content["annotations"][:2]
    (folder / "train/old.json").write_text(json.dumps(content))
    found = doctor(folder)
    assert counts(found) == {"D234": 1}
    assert first(found, "D234").file == "train/old.json"


def test_what_stops_training_does_not_stop_the_doctor(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    edit_coco(folder, annotation(0, category_id=7))
    edit_coco(folder, box(0, 80, 20, 30, 20), "val")
    found = doctor(folder)
    assert counts(found) == {"D001": 1, "D208": 1, "D218": 1}
    message = first(found, "D001")
    assert message.part == "train"
    assert message.detail.startswith("train/_annotations.coco.json: annotation 0 has category 7")
    assert found.parts["train"].boxes == 7
    severities = [finding.severity for finding in found.findings if not finding.code.startswith("D3")]
    assert severities == ["error", "error", "warning"]


# YOLO --------------------------------------------------------------------------------------------------------------


def lines(folder: Path, *added: str, name: str = "a") -> None:
    """Write a label file of one box and `added` lines."""
    (folder / f"labels/train/{name}.txt").write_text(yolo_line(0, 10, 12, 30, 20) + "".join(added))


def poses(folder: Path) -> None:
    yaml = (folder / "data.yaml").read_text()
    (folder / "data.yaml").write_text(f"{yaml}kpt_shape: [1, 2]\n")
    lines(folder, yolo_line(1, 50, 8, 40, 48).strip() + " 0.7 0.5\n")


def confidences(folder: Path) -> None:
    for file in (folder / "labels/train").glob("*.txt"):
        file.write_text("".join(f"{line} 0.9\n" for line in file.read_text().splitlines()))


def unused_folder(folder: Path) -> None:
    for kind, suffix in (("images", ".jpg"), ("labels", ".txt")):
        (folder / kind / "test").mkdir()
        (folder / kind / f"train/a{suffix}").rename(folder / kind / f"test/a{suffix}")


POLYGON = "1 0.2 0.2 0.4 0.2 0.4 0.5 0.2 0.5\n"


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        pytest.param(lambda folder: (folder / "images/val/f.jpg").unlink(), {"D204": 1}, id="no image"),
        pytest.param(
            lambda folder: (folder / "images/train/a.jpg").write_text("no"), {"D102": 1}, id="no image at all"
        ),
        pytest.param(lambda folder: (folder / "labels/train/a.txt").unlink(), {"D201": 1}, id="no label file"),
        pytest.param(lambda folder: lines(folder, "1 0.5 0.5 0.1\n"), {"D207": 1}, id="three numbers"),
        pytest.param(lambda folder: lines(folder, "1 0.5 0.5 x 0.1\n"), {"D207": 1}, id="a letter"),
        pytest.param(lambda folder: lines(folder, "2 0.5 0.5 0.1 0.1\n"), {"D001": 1, "D208": 1}, id="class 2 of 2"),
        pytest.param(
            lambda folder: (folder / "labels/train/a.txt").write_bytes(b"\xff\xff"),
            {"D001": 1, "D206": 1},
            id="no text",
        ),
        pytest.param(lambda folder: lines(folder, "1 50 30 20 10\n"), {"D001": 1, "D226": 1}, id="pixels"),
        pytest.param(lambda folder: lines(folder, "1 0.5 0.5 0 0\n"), {"D219": 1}, id="a point"),
        pytest.param(lambda folder: lines(folder, POLYGON), {"D228": 1}, id="polygon"),
        pytest.param(poses, {"D229": 1}, id="key points"),
        pytest.param(confidences, {"D230": 8}, id="confidences"),
        pytest.param(
            lambda folder: picture("z").save(folder / "images/train/a.png"), {"D233": 1}, id="one file for two"
        ),
        pytest.param(unused_folder, {"D237": 1}, id="a folder of no part"),
    ],
)
def test_faults_of_yolo_files(tmp_path: Path, plant: Callable[[Path], object], expected: dict[str, int]) -> None:
    folder = write_yolo(tmp_path / "data")
    plant(folder)
    assert counts(doctor(folder)) == expected


def test_a_malformed_line_is_quoted(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    lines(folder, "\n", "1 0.5 0.5 x 0.1\n")
    assert first(doctor(folder), "D207")[:4] == ("train", "labels/train/a.txt", 3, '"1 0.5 0.5 x 0.1"')


def test_a_line_that_has_changed_since_the_last_look(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    file = folder / "labels/train/a.txt"
    file.write_text("0 0.5 0.5 0.1 0.1\n1 0.5 0.5 x 0.1\n")
    assert first(doctor(folder), "D207")[2:4] == (2, '"1 0.5 0.5 x 0.1"')
    file.write_text("1 0.5 0.5 y 0.1\n0 0.5 0.5 0.1 0.1\n")
    assert first(doctor(folder), "D207")[2:4] == (1, '"1 0.5 0.5 y 0.1"')


def test_parts_that_are_named_but_absent(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    (folder / "data.yaml").write_text((folder / "data.yaml").read_text() + "test: images/test\n")
    found = doctor(folder)
    assert counts(found) == {"D004": 1}
    assert first(found, "D004").part == "test"
    assert found.exit_code() == 0
    shutil.rmtree(folder / "images/val")
    assert counts(doctor(folder))["D002"] == 1


def counted_from_one(folder: Path) -> None:
    for file in (folder / "labels").rglob("*.txt"):
        file.write_text("".join(f"{int(line[0]) + 1}{line[1:]}\n" for line in file.read_text().splitlines()))


def test_class_numbers_that_start_at_one(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    counted_from_one(folder)
    found = doctor(folder)
    assert counts(found) == {"D001": 2, "D208": 6, "D214": 1, "D238": 2}
    (finding,) = (each for each in found.findings if each.code == "D238")
    assert [example[:4] for example in finding.examples] == [
        ("train", "labels/train/a.txt", 1, '1 is "dog", but "cat" if they start at 1; 0 is never used'),
        ("train", "labels/train/a.txt", 2, '2 has no name, but would be "dog" if they start at 1; 0 is never used'),
    ]
    assert finding.examples[0].boxes_xyxy_px[0] == pytest.approx((10, 12, 40, 32), abs=0.01)
    with pytest.raises(DatasetError, match=r"class numbers seem to start at 1 \(D238\)"):
        doctor(folder, fix=tmp_path / "fixed")
    assert not (tmp_path / "fixed").exists()
    with pytest.raises(DatasetError, match=r'class 2 is not one of the 2 .* "names: \{1: cat, 2: dog\}"'):
        read_splits(folder)
    yaml = (folder / "data.yaml").read_text()
    (folder / "data.yaml").write_text(yaml[: yaml.index("names")] + "names: {1: cat, 2: dog}\n")
    assert counts(doctor(folder)) == {}
    train = read_splits(folder).train
    assert train is not None
    assert [train.classes.names[label] for label in train.records[0].labels] == ["cat", "dog"]


def test_one_class_number_too_many_is_no_other_count(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    lines(folder, "2 0.5 0.5 0.1 0.1\n")
    assert "D238" not in counts(doctor(folder))


def test_lists_with_lines_that_name_nothing(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    names = [f"images/train/{name}.jpg" for name in "axbcd"]
    (folder / "train.txt").write_text("\n".join(names))
    (folder / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [cat, dog]\n")
    found = doctor(folder)
    assert counts(found) == {"D203": 1}
    assert first(found, "D203")[:4] == ("train", "train.txt", 2, "images/train/x.jpg does not exist")


def test_without_a_training_part(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    (folder / "data.yaml").write_text("val: images/val\nnames: [cat, dog]\n")
    found = doctor(folder / "data.yaml")
    assert counts(found) == {"D003": 1}
    assert found.exit_code() == 1


# Pascal VOC and LabelMe --------------------------------------------------------------------------------------------


def edit_xml(folder: Path, old: str, new: str) -> None:
    """Change the first annotation of image a."""
    file = folder / "Annotations/a.xml"
    file.write_text(file.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        pytest.param(
            lambda folder: (folder / "Annotations/a.xml").write_text("<annotation>"), {"D206": 1}, id="damaged"
        ),
        pytest.param(lambda folder: edit_xml(folder, "<name>cat</name>", ""), {"D209": 1}, id="no name"),
        pytest.param(lambda folder: edit_xml(folder, "<xmin>10</xmin>", "<xmin>60</xmin>"), {"D225": 1}, id="inverted"),
        pytest.param(lambda folder: edit_xml(folder, "a.jpg", "old.jpg"), {"D236": 1}, id="another name"),
        pytest.param(lambda folder: (folder / "Annotations/a.xml").unlink(), {"D201": 1}, id="listed without a file"),
        pytest.param(lambda folder: picture("z").save(folder / "JPEGImages/z.jpg"), {"D202": 1}, id="not listed"),
        pytest.param(lambda folder: (folder / "JPEGImages/a.jpg").unlink(), {"D203": 1}, id="no image"),
        pytest.param(
            lambda folder: (folder / "Annotations/z.xml").write_text(voc_xml("z.jpg")), {"D204": 1}, id="of no list"
        ),
    ],
)
def test_faults_of_voc_files(tmp_path: Path, plant: Callable[[Path], object], expected: dict[str, int]) -> None:
    folder = write_voc(tmp_path / "data")
    plant(folder)
    assert counts(doctor(folder)) == expected


def test_objects_of_xml_files_are_shown_with_their_line(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "data")
    edit_xml(folder, "<xmin>50</xmin>", "<xmin>95</xmin>")
    example = first(doctor(folder), "D225")
    assert example[:4] == ("train", "Annotations/a.xml", 5, "xmin ymin xmax ymax 95 8 90 56")


def cut_json(folder: Path) -> None:
    file = folder / "train/a.json"
    file.write_text(file.read_text()[:-2])


def edit_shape(folder: Path, **changes: Any) -> None:
    file = folder / "train/a.json"
    content = json.loads(file.read_text())
    content["shapes"][1].update(changes)
    file.write_text(json.dumps(content, indent=0))


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        pytest.param(lambda folder: (folder / "train/a.json").write_text("{"), {"D202": 1}, id="no annotation left"),
        pytest.param(cut_json, {"D001": 1, "D206": 1}, id="cut off"),
        pytest.param(lambda folder: edit_shape(folder, label=None), {"D001": 1, "D209": 1}, id="no label"),
        pytest.param(lambda folder: edit_shape(folder, shape_type="line"), {"D231": 1}, id="a line"),
        pytest.param(lambda folder: edit_shape(folder, shape_type="polygon"), {"D228": 1}, id="a polygon"),
        pytest.param(lambda folder: edit_shape(folder, points=[[1, 2], [3, "x"]]), {"D207": 1}, id="no number"),
    ],
)
def test_faults_of_labelme_files(tmp_path: Path, plant: Callable[[Path], object], expected: dict[str, int]) -> None:
    folder = write_labelme(tmp_path / "data")
    plant(folder)
    assert counts(doctor(folder)) == expected
