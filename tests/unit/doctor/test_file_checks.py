"""Each fault of files, planted once in a data set without others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clean_data import HEIGHT, WIDTH, coco_file, edit_coco, picture, voc_xml, write_coco, write_voc, write_yolo
from rtdetrv4.doctor import doctor, file_checks
from rtdetrv4.doctor.finding import Example, Findings
from rtdetrv4.doctor.image_facts import look


def counts(findings: Findings) -> dict[str, int]:
    """How often each fault of reading, files and annotations was found."""
    return {finding.code: finding.count for finding in findings.findings if finding.code < "D3"}


def only_example(findings: Findings, code: str) -> Example:
    (finding,) = (finding for finding in findings.findings if finding.code == code)
    (example,) = finding.examples
    return example


def turned(folder: Path, orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture("a", size).save(folder / "train/a.jpg", exif=exif)


def cut(folder: Path) -> None:
    data = (folder / "train/a.jpg").read_bytes()
    (folder / "train/a.jpg").write_bytes(data[:-200])


def cut_three(folder: Path) -> None:
    for name in "abc":
        (folder / f"train/{name}.jpg").write_bytes((folder / f"train/{name}.jpg").read_bytes()[:-200])


def sixteen_bits(folder: Path, high: int) -> None:
    """Gray values of 16 bits, below `high`, in a file that is called .jpg no longer."""
    values = np.random.default_rng(0).integers(0, high, (HEIGHT, WIDTH), dtype=np.uint16)
    (folder / "train/a.jpg").unlink()
    Image.fromarray(values).save(folder / "train/a.png")
    edit_coco(folder, lambda content: content["images"][0].update(file_name="a.png"))


def animate(folder: Path) -> None:
    (folder / "train/a.jpg").unlink()
    frames = [picture(name).quantize() for name in "xy"]
    frames[0].save(folder / "train/a.gif", save_all=True, append_images=frames[1:])
    edit_coco(folder, lambda content: content["images"][0].update(file_name="a.gif"))


def as_png(folder: Path, mode: str) -> None:
    picture("a").convert(mode).save(folder / "train/a.png")
    (folder / "train/a.jpg").unlink()
    edit_coco(folder, lambda content: content["images"][0].update(file_name="a.png"))


def resized(folder: Path, size: tuple[int, int]) -> None:
    picture("a", size).save(folder / "train/a.jpg")


def of_size(folder: Path, size: tuple[int, int]) -> None:
    """An image without boxes, annotated as it is."""
    picture("a", size).save(folder / "train/a.jpg")

    def change(content: dict[str, Any]) -> None:
        content["images"][0].update(width=size[0], height=size[1])
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] != 0]

    edit_coco(folder, change)


def renamed(folder: Path, name: str) -> None:
    (folder / "train/a.jpg").rename(folder / "train" / name)
    edit_coco(folder, lambda content: content["images"][0].update(file_name=name))


def without_size(folder: Path) -> None:
    edit_coco(folder, lambda content: [content["images"][0].pop(key) for key in ("width", "height")])


def twin(folder: Path, name: str, other: str) -> None:
    renamed(folder, name)
    picture("twin").save(folder / "train" / other)
    row = {"id": 9, "file_name": other, "width": WIDTH, "height": HEIGHT}
    edit_coco(folder, lambda content: content["images"].append(row))


def hidden(folder: Path) -> None:
    (folder / "train/.ipynb_checkpoints").mkdir()
    shutil.copy(folder / "train/a.jpg", folder / "train/.ipynb_checkpoints/a-checkpoint.jpg")


def outward_link(folder: Path) -> None:
    (folder / "train/a.jpg").rename(folder.parent / "elsewhere.jpg")
    (folder / "train/a.jpg").symlink_to(folder.parent / "elsewhere.jpg")


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        pytest.param(lambda folder: None, {}, id="clean"),
        pytest.param(cut, {"D101": 1}, id="cut off"),
        pytest.param(lambda folder: (folder / "train/a.jpg").write_text("no"), {"D102": 1}, id="no image"),
        pytest.param(lambda folder: (folder / "train/a.jpg").write_bytes(b""), {"D103": 1}, id="empty"),
        pytest.param(cut_three, {"D101": 3, "D104": 1}, id="three of four cut off"),
        pytest.param(lambda folder: picture("a").save(folder / "train/a.jpg", "PNG"), {"D105": 1}, id="suffix"),
        pytest.param(lambda folder: turned(folder, 3, (WIDTH, HEIGHT)), {"D106": 1}, id="upside down"),
        pytest.param(lambda folder: turned(folder, 6, (HEIGHT, WIDTH)), {"D106": 1}, id="turned"),
        pytest.param(lambda folder: turned(folder, 9, (WIDTH, HEIGHT)), {"D107": 1}, id="invalid tag"),
        pytest.param(lambda folder: turned(folder, 6, (WIDTH, HEIGHT)), {"D108": 1}, id="annotated as stored"),
        pytest.param(lambda folder: picture("a").convert("L").save(folder / "train/a.jpg"), {"D109": 1}, id="gray"),
        pytest.param(lambda folder: as_png(folder, "RGBA"), {"D110": 1}, id="alpha"),
        pytest.param(lambda folder: as_png(folder, "LA"), {"D109": 1, "D110": 1}, id="gray with alpha"),
        pytest.param(lambda folder: picture("a").convert("CMYK").save(folder / "train/a.jpg"), {"D111": 1}, id="CMYK"),
        pytest.param(lambda folder: sixteen_bits(folder, 65535), {"D109": 1, "D112": 1}, id="16 bits"),
        pytest.param(lambda folder: sixteen_bits(folder, 1024), {"D109": 1, "D113": 1}, id="10 bits in 16"),
        pytest.param(animate, {"D114": 1}, id="animation"),
        pytest.param(lambda folder: of_size(folder, (48, 31)), {"D116": 1}, id="tiny"),
        pytest.param(lambda folder: of_size(folder, (64, 330)), {"D117": 1}, id="long"),
        pytest.param(lambda folder: resized(folder, (2 * WIDTH, 2 * HEIGHT)), {"D118": 1}, id="resized copy"),
        pytest.param(lambda folder: resized(folder, (WIDTH, 2 * HEIGHT)), {"D119": 1}, id="other shape"),
        pytest.param(without_size, {"D120": 1}, id="no size"),
        pytest.param(lambda folder: renamed(folder, "a:1.jpg"), {"D124": 1}, id="colon"),
        pytest.param(lambda folder: renamed(folder, "aux.jpg"), {"D124": 1}, id="device"),
        pytest.param(lambda folder: twin(folder, "x.jpg", "X.jpg"), {"D122": 1}, id="case"),
        pytest.param(lambda folder: twin(folder, "é.jpg", "e\u0301.jpg"), {"D123": 1}, id="Unicode form"),
        pytest.param(outward_link, {"D125": 1}, id="link that leads out"),
        pytest.param(lambda folder: (folder / "train/z.jpg").symlink_to("no.jpg"), {"D126": 1}, id="dangling link"),
        pytest.param(hidden, {"D127": 1}, id="hidden copy"),
    ],
)
def test_each_fault_is_found_and_nothing_else(
    tmp_path: Path, plant: Callable[[Path], object], expected: dict[str, int]
) -> None:
    folder = write_coco(tmp_path / "data")
    plant(folder)
    assert counts(doctor(folder)) == expected


def test_huge_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_checks, "HUGE_PIXELS", WIDTH * HEIGHT)
    folder = write_coco(tmp_path / "data")
    of_size(folder, (WIDTH + 1, HEIGHT))
    found = doctor(folder)
    assert counts(found) == {"D115": 1}
    assert only_example(found, "D115").detail == "97×64 pixels"


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    for kind, suffix in (("images", ".jpg"), ("labels", ".txt")):
        os.rename(folder / kind / f"train/a{suffix}", os.fsencode(folder / kind / "train") + b"/\xe9" + suffix.encode())  # noqa: PTH104
    found = doctor(folder)
    assert counts(found) == {"D121": 1}
    assert only_example(found, "D121").file == "images/train/\udce9.jpg"
    assert '"images/train/\\udce9.jpg"' in found.to_json()


def test_an_annotated_size_that_is_wrong_is_shown_with_the_right_one(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "data")
    (folder / "Annotations/a.xml").write_text(voc_xml("a.jpg", (WIDTH, 2 * HEIGHT)))
    example = only_example(doctor(folder), "D119")
    assert (example.part, example.file) == ("train", "JPEGImages/a.jpg")
    assert example.detail == "96×64 pixels, annotated as 96×128"
    assert example.image == str(folder / "JPEGImages/a.jpg")


def test_what_annotations_do_not_describe_is_looked_at_too(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    coco_file(folder).write_text("{")
    coco_file(folder, "val").write_text("{")
    (folder / "train/a.jpg").write_bytes(b"")
    found = doctor(folder)
    assert not found.is_readable
    assert found.exit_code() == 2
    assert counts(found) == {"D001": 1, "D103": 1}


def test_facts_of_an_image(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 256, axis=0)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    Image.fromarray(ramp[:, ::-1]).save(tmp_path / "fall.png")
    Image.fromarray(ramp).resize((512, 512)).save(tmp_path / "large.png")
    rising, falling, large = (look(tmp_path / f"{name}.png") for name in ("ramp", "fall", "large"))
    assert rising.dhash == 2**64 - 1  # every cell is darker than the one to its right
    assert falling.dhash == 0
    assert large.dhash == rising.dhash
    assert large.size_hw == (512, 512)
    assert rising.brightness == 127.5
    assert (rising.mode, rising.format, rising.orientation, rising.problem) == ("L", "PNG", 1, None)
    # The Laplacian of a ramp is 0 but for the border, where a step of 1 is mirrored: ±2 at 2 of 256 columns.
    assert rising.blur == pytest.approx(2 * 2**2 / 256)
    assert look(tmp_path / "no.png").problem == "cannot be read: No such file or directory"


def test_facts_do_not_depend_on_the_orientation_tag(tmp_path: Path) -> None:
    image = picture("a", (128, 128))
    image.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    image.rotate(90).save(tmp_path / "turned.png", exif=exif)
    upright, turned = look(tmp_path / "upright.png"), look(tmp_path / "turned.png")
    assert turned.dhash == upright.dhash
    assert turned.orientation == 6
    assert turned.digest != upright.digest


def test_pages_are_counted_in_a_bounded_time(tmp_path: Path) -> None:
    """Pillow counts those of TIFF files in the square of their number."""
    path = tmp_path / "a.tif"
    Image.new("L", (4, 4)).save(path)
    data = bytearray(path.read_bytes())
    start = int.from_bytes(data[4:8], "little")
    end = start + 2 + 12 * int.from_bytes(data[start : start + 2], "little")
    page, at = bytes(data[start:end]), len(data)
    data[end : end + 4] = at.to_bytes(4, "little")
    for number in range(2000):
        following = at + (number + 1) * (len(page) + 4) if number < 1999 else 0
        data += page + following.to_bytes(4, "little")
    path.write_bytes(data)
    facts = look(path)
    assert (facts.num_frames, facts.size_hw, facts.problem) == (1000, (4, 4), None)
    pages = [Image.new("L", (4, 4), 50 * shade) for shade in range(5)]
    for suffix in ("tif", "gif", "webp"):
        file = tmp_path / f"five.{suffix}"
        pages[0].save(file, save_all=True, append_images=pages[1:])
        assert look(file).num_frames == 5
        pages[0].save(file)
        assert look(file).num_frames == 1
