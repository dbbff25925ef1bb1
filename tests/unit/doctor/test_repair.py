from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clean_data import BOXES, HEIGHT, WIDTH, coco_file, edit_coco, picture, write_coco, write_voc, write_yolo
from rtdetrv4.cli import main
from rtdetrv4.data.formats import read_splits
from rtdetrv4.doctor import doctor
from rtdetrv4.doctor.finding import Findings
from rtdetrv4.doctor.repair import _new_names
from rtdetrv4.errors import ConfigError, DatasetError


def counts(findings: Findings) -> dict[str, int]:
    return {finding.code: finding.count for finding in findings.findings}


def contents(folder: Path) -> dict[str, str]:
    """The digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def boxes_of(folder: Path, name: str, part: str = "train") -> list[list[float]]:
    content = json.loads((folder / part / "_annotations.coco.json").read_text(encoding="utf-8"))
    (image_id,) = (image["id"] for image in content["images"] if image["file_name"] == name)
    return [row["bbox"] for row in content["annotations"] if row["image_id"] == image_id]


def changes_of(folder: Path) -> dict[str, list[str]]:
    changes = json.loads((folder / "changes.json").read_text(encoding="utf-8"))["changes"]
    return {each["code"]: [other["file"] for other in changes if other["code"] == each["code"]] for each in changes}


def with_box(*box: float, image: int = 0) -> Any:
    row = {"id": 99, "image_id": image, "category_id": 0, "bbox": list(box), "iscrowd": 0}
    return lambda content: content["annotations"].append(row)


def as_jpeg(path: Path, image: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, quality=95, subsampling=0, exif=exif)


CAT, DOG = (list(map(float, box)) for box in BOXES.values())


def test_a_clean_set_is_copied_byte_for_byte(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "data")
    before = contents(folder)
    doctor(folder, fix=tmp_path / "fixed")
    assert contents(folder) == before
    copied = contents(tmp_path / "fixed")
    for part, names in (("train", "abcd"), ("valid", "ef")):
        for name in names:
            assert copied[f"{part}/{name}.jpg"] == before[f"JPEGImages/{name}.jpg"]
            assert boxes_of(tmp_path / "fixed", f"{name}.jpg", part) == [CAT, DOG]
    images = {f"{part}/{name}.jpg" for part, names in (("train", "abcd"), ("valid", "ef")) for name in names}
    annotations = {"train/_annotations.coco.json", "valid/_annotations.coco.json"}
    assert set(copied) == images | annotations | {"changes.txt", "changes.json"}
    known = {part: (split.classes.names, len(split.records)) for part, split in read_splits(folder).parts.items()}
    fixed = read_splits(tmp_path / "fixed").parts
    assert {part: (split.classes.names, len(split.records)) for part, split in fixed.items()} == known
    assert json.loads((tmp_path / "fixed/changes.json").read_text())["changes"] == []


def test_faulty_boxes_are_left_out_or_clipped(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    for box in (
        (80, 20, 30, 20),  # beyond the right edge
        (200, 10, 5, 5),  # outside
        (10, 10, 0, 5),  # without width
        (10, 10, -4, 5),  # inverted
        (20, 20, 0.4, 8),  # of less than a pixel
        CAT,  # given twice
    ):
        edit_coco(folder, with_box(*box))
    doctor(folder, fix=tmp_path / "fixed")
    assert boxes_of(tmp_path / "fixed", "a.jpg") == [CAT, DOG, [80, 20, 16, 20]]
    assert list(changes_of(tmp_path / "fixed")) == ["D225", "D219", "D217", "D218", "D220", "D223"]
    assert [code for code in counts(doctor(tmp_path / "fixed")) if code < "D3"] == []


def in_pixels(folder: Path, values: Callable[[tuple[int, int, int, int]], tuple[float, ...]]) -> None:
    for file in (folder / "labels").rglob("*.txt"):
        rows = (" ".join(map(str, (label, *values(box)))) for label, box in enumerate(BOXES.values()))
        file.write_text("\n".join(rows))


def test_yolo_boxes_in_pixels_are_converted(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    in_pixels(folder, lambda box: (box[0] + box[2] / 2, box[1] + box[3] / 2, box[2], box[3]))
    with pytest.raises(DatasetError, match=r"seem to be in pixels .* --fix"):
        read_splits(folder)
    doctor(folder, fix=tmp_path / "fixed")
    assert boxes_of(tmp_path / "fixed", "a.jpg") == [CAT, DOG]
    changes = json.loads((tmp_path / "fixed/changes.json").read_text(encoding="utf-8"))["changes"]
    assert len(changes) == 12
    assert changes[0]["detail"] == "25.0 22.0 30 20, taken as center and sides in pixels".replace(".0", "")


def test_yolo_boxes_in_pixels_that_may_be_corners_are_left_out(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    in_pixels(folder, lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    found = doctor(folder)
    assert counts(found)["D226"] == 12
    detail = next(finding for finding in found.findings if finding.code == "D226").examples[0].detail
    assert detail == "10 12 40 32, not fractions, and left out"
    with pytest.raises(DatasetError, match="no training image with a box is left"):
        doctor(folder, fix=tmp_path / "fixed")


def test_photos_are_turned_as_they_are_annotated(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    upright = picture("a")
    tall = upright.transpose(Image.Transpose.ROTATE_90)
    as_jpeg(folder / "train/a.jpg", tall, 6)  # shown as 96×64, and annotated so
    as_jpeg(folder / "train/b.jpg", picture("b"), 8)  # shown as 64×96, annotated as stored
    as_jpeg(folder / "train/c.jpg", picture("c"), 99)
    as_jpeg(folder / "train/d.jpg", picture("d"), 3)
    stored = {name: np.array(Image.open(folder / f"train/{name}.jpg"), dtype=int) for name in "bc"}
    doctor(folder, fix=tmp_path / "fixed")
    for name in "abcd":
        with Image.open(tmp_path / f"fixed/train/{name}.jpg") as image:
            assert image.size == (WIDTH, HEIGHT)
            assert image.getexif().get(0x0112, 1) == 1
            pixels = np.array(image, dtype=int)
        if name in stored:
            assert np.array_equal(pixels, stored[name])
        else:
            expected = upright if name == "a" else picture("d").transpose(Image.Transpose.ROTATE_180)
            assert np.abs(pixels - np.array(expected, dtype=int)).mean() < 2
        assert boxes_of(tmp_path / "fixed", f"{name}.jpg") == [CAT, DOG]
    assert changes_of(tmp_path / "fixed") == {
        "D106": ["train/a.jpg", "train/d.jpg"],
        "D108": ["train/b.jpg"],
        "D107": ["train/c.jpg"],
    }
    assert [code for code in counts(doctor(tmp_path / "fixed")) if code < "D3"] == []


def test_boxes_are_written_in_pixels_of_the_file(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    picture("a", (2 * WIDTH, 2 * HEIGHT)).save(folder / "train/a.jpg")
    doctor(folder, fix=tmp_path / "fixed")
    assert boxes_of(tmp_path / "fixed", "a.jpg") == [[2 * value for value in box] for box in (CAT, DOG)]
    assert "D118" not in counts(doctor(tmp_path / "fixed"))


def test_images_that_cannot_be_read_are_left_out_however_many_they_are(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    (folder / "train/a.jpg").write_bytes((folder / "train/a.jpg").read_bytes()[:-200])
    for name in "bc":
        (folder / f"train/{name}.jpg").unlink()
    with pytest.raises(DatasetError, match="2 are missing"):
        read_splits(folder)
    doctor(folder, fix=tmp_path / "fixed")
    assert [path.name for path in (tmp_path / "fixed/train").glob("*.jpg")] == ["d.jpg"]
    assert [code for code in counts(doctor(tmp_path / "fixed")) if code < "D3"] == []


def test_of_copies_one_is_kept_and_the_training_part_yields(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    for name in ("train/b.jpg", "val/e.jpg"):
        shutil.copyfile(folder / ("train/a.jpg" if "b" in name else "train/d.jpg"), folder / name)
    edit_coco(folder, with_box(5, 5, 20, 20, image=1))
    doctor(folder, fix=tmp_path / "fixed")
    # Of a and b, b has more boxes; d is in the validation part as e.
    assert sorted(path.name for path in (tmp_path / "fixed/train").glob("*.jpg")) == ["b.jpg", "c.jpg"]
    assert sorted(path.name for path in (tmp_path / "fixed/valid").glob("*.jpg")) == ["e.jpg", "f.jpg"]
    assert counts(doctor(tmp_path / "fixed")).keys() == {"D301", "D315"}


def test_a_validation_part_that_is_the_training_part_is_made_anew(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    (folder / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    doctor(folder, fix=tmp_path / "fixed")
    parts = {part: {path.stem for path in (tmp_path / "fixed" / part).glob("*.jpg")} for part in ("train", "valid")}
    assert len(parts["train"]) == 3
    assert len(parts["valid"]) == 1
    assert parts["train"] | parts["valid"] == set("abcd")
    assert changes_of(tmp_path / "fixed")["D314"] == [""]


def test_without_a_validation_part_that_of_training_is_written_down(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    shutil.rmtree(folder / "val")
    doctor(folder, fix=tmp_path / "fixed")
    made = read_splits(folder, make_val=True).parts
    fixed = read_splits(tmp_path / "fixed").parts
    for part in ("train", "val"):
        names = [{record.info.file_name for record in splits[part].records} for splits in (made, fixed)]
        assert names[0] == names[1]


def test_names_are_made_such_that_every_system_takes_them(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    new_names = ["wh?t.jpg", "caf\u0065\u0301.JPG", "sub/caf\u00e9.jpg", "png.jpg"]
    (folder / "train/sub").mkdir()
    for old, new in zip("abcd", new_names, strict=True):
        (folder / f"train/{old}.jpg").rename(folder / "train" / new)
    picture("d").save(folder / "train/png.jpg", "PNG")
    edit_coco(
        folder,
        lambda content: [row.update(file_name=name) for row, name in zip(content["images"], new_names, strict=True)],
    )
    doctor(folder, fix=tmp_path / "fixed")
    names = {path.name for path in (tmp_path / "fixed/train").iterdir()} - {"_annotations.coco.json"}
    assert names == {"wh_t.jpg", "caf\u00e9.JPG", "caf\u00e9-2.jpg", "png.png"}
    content = json.loads((tmp_path / "fixed/changes.json").read_text(encoding="utf-8"))
    assert content["files"]["train/caf\u00e9-2.jpg"] == "train/sub/caf\u00e9.jpg"
    assert "train/wh?t.jpg is train/wh_t.jpg" in (tmp_path / "fixed/changes.txt").read_text(encoding="utf-8")
    assert all(boxes_of(tmp_path / "fixed", name) == [CAT, DOG] for name in names)


def test_names_of_devices_and_of_many_files_alike() -> None:
    def entry(name: str) -> Any:
        return SimpleNamespace(name=name, facts=SimpleNamespace(format="JPEG"))

    names = [
        "aux.jpg",
        "sub/AUX.jpg",
        "con.left.jpg",
        "console.jpg",
        "a/rgb.jpg",
        "rgb-3.jpg",
        "b/rgb.jpg",
        "c/rgb.jpg",
    ]
    found = _new_names([entry(name) for name in names])
    assert found == [
        *("aux_.jpg", "AUX_-2.jpg", "con_.left.jpg", "console.jpg"),
        *("rgb.jpg", "rgb-3.jpg", "rgb-2.jpg", "rgb-4.jpg"),
    ]


def test_a_copy_is_not_written_into_what_a_yaml_file_elsewhere_names(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "set")
    yaml = tmp_path / "recipes" / "cats.yaml"
    yaml.parent.mkdir()
    yaml.write_text(f"path: {folder}\n{(folder / 'data.yaml').read_text()}")
    before = contents(folder)
    with pytest.raises(ConfigError, match="lies in the data set"):
        doctor(yaml, fix=folder / "fixed")
    assert contents(folder) == before
    doctor(yaml, fix=tmp_path / "fixed")
    assert (tmp_path / "fixed" / "changes.txt").is_file()


def test_a_folder_called_images_above_the_data_does_not_forbid_everything(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "images" / "cats")
    doctor(folder, fix=tmp_path / "fixed")
    assert (tmp_path / "fixed" / "changes.txt").is_file()


def test_bytes_that_are_no_text_become_letters(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    name = os.fsdecode(b"caf\xe9")
    for kind, suffix in (("images", "jpg"), ("labels", "txt")):
        (folder / kind / f"train/a.{suffix}").rename(folder / kind / f"train/{name}.{suffix}")
    doctor(folder, fix=tmp_path / "fixed")
    assert (tmp_path / "fixed/train/caf\u00e9.jpg").is_file()
    assert np.allclose(boxes_of(tmp_path / "fixed", "caf\u00e9.jpg"), [CAT, DOG], atol=0.01)
    assert "caf\\udce9.jpg" in (tmp_path / "fixed/changes.txt").read_text(encoding="utf-8")


def test_an_empty_name_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_coco(tmp_path / "data")
    with pytest.raises(ConfigError, match="got an empty name, expected a new folder"):
        doctor(folder, fix="")
    assert main(["doctor", str(folder), "--fix", ""]) == 2
    assert capsys.readouterr().err == "error: fix: got an empty name, expected a new folder for the repaired copy.\n"


def test_a_page_needs_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_coco(tmp_path / "data")
    (tmp_path / "page").write_text("mine")
    assert main(["doctor", str(folder), "--out", str(tmp_path / "page")]) == 2
    assert "is a file, and results go to a folder. Give the name of one" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is a file, and results go to a folder"):
        doctor(folder, out=tmp_path / "page")
    assert (tmp_path / "page").read_text() == "mine"


@pytest.mark.parametrize("where", ["data/fixed", "data", "full", "file"])
def test_nothing_is_written_into_the_data_or_over_anything(tmp_path: Path, where: str) -> None:
    folder = write_coco(tmp_path / "data")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"give a (new folder|folder outside)"):
        doctor(folder, fix=tmp_path / where)
    assert contents(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    (tmp_path / "fixed").mkdir()
    doctor(folder, fix=tmp_path / "fixed")
    assert (tmp_path / "fixed/train/a.jpg").is_file()


def test_a_repair_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_coco(tmp_path / "data")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rtdetrv4.doctor.repair.write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        doctor(folder, fix=tmp_path / "fixed")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_cannot_be_repaired_is_said(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    coco_file(folder).unlink()
    with pytest.raises(DatasetError, match="cannot be repaired"):
        doctor(folder, fix=tmp_path / "fixed")
    assert not (tmp_path / "fixed").exists()
    with pytest.raises(ConfigError, match="quick"):
        doctor(folder, fix=tmp_path / "fixed", quick=True)
