"""Annotations that a stranger made to do harm: read as far as they go, or refused in one line, in a bounded time."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rtdetrv4.data.cvat import parse_cvat
from rtdetrv4.data.formats import read_splits
from rtdetrv4.data.tree import MAX_VISITS, Tree
from rtdetrv4.errors import DatasetError

BOX = "<object><name>cat</name><bndbox><xmin>8</xmin><ymin>4</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>"
VOC = f"<annotation><filename>a.jpg</filename><size><width>80</width><height>40</height></size>{BOX}</annotation>"
ENTITIES = '<!DOCTYPE a [<!ENTITY a0 "lol">' + "".join(
    f'<!ENTITY a{number} "{f"&a{number - 1};" * 10}">' for number in range(1, 12)
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the images a.jpg and b.jpg, 80×40."""
    for stem in "ab":
        Image.new("RGB", (80, 40)).save(tmp_path / f"{stem}.jpg")
    return tmp_path


def coco(**changes: Any) -> str:
    images = [{"id": index, "file_name": f"{stem}.jpg", "width": 80, "height": 40} for index, stem in enumerate("ab")]
    annotations = [{"id": index, "image_id": index, "category_id": 1, "bbox": [8, 4, 20, 10]} for index in range(2)]
    return json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "c"}]} | changes)


def refusal(root: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        read_splits(root)
    assert len(str(caught.value)) < 2100
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"images": [{"file_name": "a.jpg"}], "annotations": [{"x": ' + "[" * 10**6,
            "too many lists and objects inside each other",
        ),
        (coco()[:-1] + ', "annotations": []}', 'the key "annotations" twice'),
        (coco(annotations=[{"image_id": "x" * 10**6, "category_id": 1}] * 2), "which is not under"),
        (coco(annotations=[{"image_id": 0, "category_id": "x" * 10**6}] * 2), "which is not under"),
        (
            coco(categories=[{"id": n, "name": f"{n}"} for n in range(100_001)]),
            "100001 classes, expected at most",
        ),
    ],
)
def test_json(root: Path, text: str, message: str) -> None:
    (root / "train.json").write_text(text, encoding="utf-8")
    assert message in refusal(root)


@pytest.mark.parametrize(
    "name", ["../../../../etc/passwd", "/etc/passwd", "a" * 10_000, "b\0.jpg", "https://a.b/c.jpg"]
)
def test_names_that_lead_elsewhere_are_of_missing_images(root: Path, name: str) -> None:
    images = [{"id": 0, "file_name": "a.jpg"}, {"id": 1, "file_name": name}]
    (root / "train.json").write_text(coco(images=images), encoding="utf-8")
    train = read_splits(root).train
    assert train is not None
    assert [record.info.file_name for record in train.records] == ["a.jpg"]
    assert any(problem.startswith("1 image left out: missing") for problem in train.problems)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (f"{ENTITIES}]>{VOC.replace('cat', '&a11;')}".encode(), "it has a DOCTYPE"),
        (f'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>{VOC}'.encode(), "it has a DOCTYPE"),
        (f"{ENTITIES}]>{VOC}".encode("utf-16"), "it has a DOCTYPE"),
        (b"<?xml version='1.0' encoding='punycode'?><annotation>a-" + b"zzz" * 100_000, "codec"),
        (b"<?xml " + b"encoding='a' " * 100_000 + b"><annotation>", "token"),
        (VOC.encode() + b" " * 8_000_000, "expected at most 8 MB"),
    ],
)
def test_xml(root: Path, data: bytes, message: str) -> None:
    (root / "a.xml").write_bytes(data)
    (root / "b.xml").write_bytes(b"<annotation>" + data)  # is known by its beginning
    text = refusal(root)
    assert message in text or "not well-formed" in text
    (root / "b.xml").unlink()
    if b"<annotation" in data[:4096].replace(b"\0", b""):
        assert message in refusal(root)


@pytest.mark.parametrize("side", ["1e300", "1e400", "nan", "-5", "9" * 400, "1e15"])
def test_sizes_and_sides_that_no_image_has(root: Path, side: str) -> None:
    (root / "a.xml").write_text(VOC.replace("80", side).replace("30", side), encoding="utf-8")
    (root / "b.xml").write_text(VOC.replace("a.jpg", "b.jpg"), encoding="utf-8")
    train = read_splits(root).train
    assert train is not None
    assert [(record.info.height, record.info.width) for record in train.records] == [(40, 80)] * 2
    assert [len(record.labels) for record in train.records][1] == 1


def test_cvat_tags_without_end(tmp_path: Path) -> None:
    path = tmp_path / "annotations.xml"
    path.write_bytes(b'<annotations>\n<image name="' + b"x" * 30_000_000)
    assert parse_cvat(path).damage == "line 2 has a tag without end; is the export complete?"
    path.write_bytes(b"<annotations>" + b"<a>" * 2_000_000)
    assert parse_cvat(path).damage == "it has more than 1000 elements inside each other; is the export complete?"
    path.write_bytes(f"{ENTITIES}]><annotations/>".encode())
    assert "it declares the entity a0" in str(parse_cvat(path).damage)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path: /\ntrain: etc\nnames: [cat]", '"path" is /, the root of all files'),
        ("train: .\nnames: /etc/passwd", '"names" is /etc/passwd, which is not in the folder of data.yaml'),
        ("train: .\nnames: ../../../../../../../etc/passwd", "which is not in the folder of data.yaml"),
        ("train: " + "a" * 10_000 + "\nnames: [cat]", "which does not exist"),
        ('train: "b\\0"\nnames: [cat]', "which does not exist"),
        ("train: &a [*a]\nnames: [cat]", "an alias to what it is a part of"),
        ("train: .\nnames: [a]\nnames: [b]", "the key 'names' twice"),
        ("train: .\nnames: " + "[" * 3000, "more than 50 lists"),
        ("train: .\nnames: [a]\nkpt_shape: " + "x" * 10**5, "kpt_shape"),
        ("train: .\nnames: !!python/name:os.system ''", "could not determine a constructor"),
    ],
)
def test_descriptions(root: Path, text: str, message: str) -> None:
    (root / "a.txt").write_text("0 .5 .5 .1 .1")
    (root / "data.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError) as caught:
        read_splits(root / "data.yaml")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 2100


def test_names_of_homes_that_there_are_not(root: Path) -> None:
    (root / "a.txt").write_text("0 .5 .5 .1 .1")
    (root / "data.yaml").write_text("path: ~no-such-user/data\ntrain: .\nnames: [cat]")
    assert read_splits(root).train is not None
    with pytest.raises(DatasetError, match="does not exist"):
        read_splits("~no-such-user/data")


@pytest.mark.parametrize("name", ["data.yaml", "a.txt", "classes.txt", "notes.json", "obj.data", "a.json", "a.xml"])
def test_files_of_a_terabyte_are_not_read(root: Path, name: str) -> None:
    (root / "b.txt").write_text("0 .5 .5 .1 .1")
    with (root / name).open("wb") as file:  # takes no room on the disk
        file.truncate(10**12)
    try:
        train = read_splits(root).train
    except DatasetError as error:
        assert "it has 1 TB" in str(error)  # noqa: PT017
    else:
        assert train is not None
        assert len(train.records) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize("suffix", [".yaml", ".json", ".xml"])
def test_pipes_and_devices_as_data(root: Path, suffix: str) -> None:
    os.mkfifo(root / f"pipe{suffix}")
    (root / f"zero{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(DatasetError):
            read_splits(root / f"{name}{suffix}")


def test_a_line_of_a_label_file_without_end(root: Path) -> None:
    (root / "classes.txt").write_text("cat")
    (root / "b.txt").write_text("0 .5 .5 .1 .1")
    (root / "a.txt").write_text("x" * 10**6)
    assert "class xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx… is not one of" in refusal(root)
    (root / "a.txt").write_text("0 " + ".5 " * 12_000_000)
    assert re.search("it has 36 MB, expected at most 33.6 MB", refusal(root))


def test_links_that_multiply(tmp_path: Path) -> None:
    """Two links in each of 40 folders to the next are 2^39 paths."""
    for number in range(40):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "file").touch()
    for number in range(39):
        for name in "xy":
            (tmp_path / f"{number}" / name).symlink_to(tmp_path / f"{number + 1}")
    files = Tree(tmp_path).files
    assert {f"{number}/file" for number in range(40)} <= set(files)
    assert len(files) <= 40 * (MAX_VISITS + 1)


def test_links_to_what_the_folder_is_in(tmp_path: Path) -> None:
    inner = tmp_path / "other" / "data"
    inner.mkdir(parents=True)
    (tmp_path / "secret.jpg").touch()
    (inner / "image.jpg").touch()
    (inner / "up").symlink_to(tmp_path)
    assert Tree(inner).files == ("image.jpg",)


def remove_chain(folder: Path) -> None:
    """Remove folders in each other, which are too deep for the recursion of shutil.rmtree, and so of pytest itself."""
    while folder.exists():
        below = folder / "d"
        if below.exists():
            below = below.rename(folder.with_name("below"))
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        if below.exists():
            below.rename(folder)


def test_folders_without_end(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").touch()
    here = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1500):
            Path("d").mkdir()
            os.chdir("d")
        Path("deep.jpg").touch()
        os.chdir(here)
        assert Tree(tmp_path).files == ("image.jpg",)
    finally:
        os.chdir(here)
        remove_chain(tmp_path / "d")
