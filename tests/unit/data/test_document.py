"""What annotations say about images that are missing, damaged, or of another size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from rtdetrv4.data.decode import read_image
from rtdetrv4.data.formats import read_coco, read_splits
from rtdetrv4.data.records import Split, too_many
from rtdetrv4.errors import DatasetError

Write = Callable[..., Path]


def told(split: Split) -> str:
    return "\n".join(split.problems)


@pytest.mark.parametrize(
    ("num_left_out", "num_images", "expected"),
    [(0, 1, False), (1, 1, True), (1, 2, False), (2, 3, True), (2, 39, True), (2, 40, False), (51, 1000, True)],
)
def test_how_many_images_may_be_left_out(num_left_out: int, num_images: int, expected: bool) -> None:
    assert too_many(num_left_out, num_images) is expected


def test_a_few_missing_images_are_left_out(tmp_path: Path, write_coco: Write) -> None:
    rows = [{"image_id": i, "bbox": [i, 2, 10, 10]} for i in range(40)]
    path = write_coco(tmp_path, rows, num_images=40)
    for name in ("0.png", "17.png"):
        (tmp_path / name).unlink()
    split = read_coco(path)
    assert [record.info.image_id for record in split.records] == [i for i in range(40) if i not in (0, 17)]
    assert all(record.boxes_xyxy_px[0, 0] == record.info.image_id for record in split.records)
    assert "2 images left out: missing (0.png, 17.png)" in told(split)
    (tmp_path / "39.png").unlink()
    with pytest.raises(DatasetError, match=r"lists 40 images and 3 are missing, the first is 0\.png; looked in"):
        read_coco(path)


def test_images_without_a_size_that_cannot_be_read(tmp_path: Path, write_coco: Write) -> None:
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(5)]
    path = write_coco(tmp_path, [{"image_id": 3, "bbox": [1, 2, 3, 4]}], num_images=5, images=images)
    (tmp_path / "2.png").write_bytes(b"")
    split = read_coco(path)
    assert [record.info.image_id for record in split.records] == [0, 1, 3, 4]
    assert [len(record.labels) for record in split.records] == [0, 0, 1, 0]
    assert "4 image sizes read from the files" in told(split)
    assert "1 image left out: cannot be read (2.png)" in told(split)
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"gives no size for 0\.png, which cannot be read .* for 2 of 5 images"):
        read_coco(path)


def test_resized_copies_keep_their_boxes(tmp_path: Path, write_coco: Write) -> None:
    path = write_coco(tmp_path, [{"image_id": i, "bbox": [32, 24, 32, 24]} for i in range(3)], num_images=3)
    for i in range(3):
        pixels = np.zeros((24, 32, 3), np.uint8)
        pixels[12:, 16:] = 255
        cv2.imwrite(str(tmp_path / f"{i}.png"), pixels)
    split = read_coco(path)
    assert "3 images are of another size than annotated, but of the same shape: the boxes are scaled" in told(split)
    info = split.records[0].info
    image = read_image(tmp_path / info.file_name, (info.height, info.width))
    scale = image.shape[0] / info.height
    left, top, right, bottom = (split.records[0].boxes_xyxy_px[0] * scale).astype(int)
    assert image[top:bottom, left:right].min() == 255
    assert image[:top].max() == image[:, :left].max() == 0


@pytest.mark.parametrize("annotated_hw", [(64, 64), (64, 48), (24, 32)])
def test_an_annotated_size_that_is_wrong_is_corrected(
    tmp_path: Path, write_coco: Write, annotated_hw: tuple[int, int]
) -> None:
    """Another shape, sides mistaken for each other, and boxes that only the size of the file can hold."""
    images = [
        {
            "id": i,
            "file_name": f"{i}.png",
            "height": (48, annotated_hw[0])[i == 1],
            "width": (64, annotated_hw[1])[i == 1],
        }
        for i in range(3)
    ]
    split = read_coco(write_coco(tmp_path, [{"image_id": 1, "bbox": [20, 20, 40, 25]}], num_images=3, images=images))
    assert [(record.info.height, record.info.width) for record in split.records] == [(48, 64)] * 3
    assert split.records[1].boxes_xyxy_px.tolist() == [[20, 20, 60, 45]]
    height, width = annotated_hw
    assert "1 annotated size corrected, because the boxes fit the size of the file" in told(split)
    assert f"(first: 1.png is 64×48 pixels, not {width}×{height})" in told(split)


def test_images_that_are_not_those_annotated(tmp_path: Path, write_coco: Write) -> None:
    path = write_coco(tmp_path, [{"image_id": i, "bbox": [10, 10, 54, 30]} for i in range(3)], num_images=3)
    Image.new("RGB", (48, 48)).save(tmp_path / "1.png")
    split = read_coco(path)
    assert [record.info.file_name for record in split.records] == ["0.png", "2.png"]
    assert "1 image left out: of another shape than annotated (1.png)" in told(split)
    Image.new("RGB", (48, 48)).save(tmp_path / "2.png")
    with pytest.raises(
        DatasetError, match=r"2 of 3 images have another shape .*: 1\.png is 48×48 pixels, not 64×48; use the images"
    ):
        read_coco(path)


def test_a_photo_annotated_as_it_is_stored_is_not_corrected(tmp_path: Path, write_coco: Write) -> None:
    path = write_coco(tmp_path, [{"image_id": 0, "bbox": [40, 10, 20, 30]}], suffix=".jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "0.jpg", exif=exif)
    split = read_coco(path)
    assert (split.records[0].info.height, split.records[0].info.width) == (48, 64)
    assert "corrected" not in told(split)


def test_flaws_found_in_public_data(shared: Path) -> None:
    """Every folder is read, or refused with a line that says what to do."""
    folders = sorted(folder for folder in (shared / "data" / "broken").iterdir() if folder.is_dir())
    assert len(folders) == 16
    refused: list[str] = []
    for folder in folders:
        try:
            splits = read_splits(folder)
        except DatasetError as error:
            refused.append(str(error))
            continue
        parts = [split for split in (splits.train, splits.val, splits.test) if split is not None]
        assert parts
        for record in (record for split in parts for record in split.records):
            low, high = record.boxes_xyxy_px[:, :2], record.boxes_xyxy_px[:, 2:]
            assert np.all((low >= 0) & (low < high) & (high <= [record.info.width, record.info.height]))
    assert any("lists 400 images and 380 are missing" in message for message in refused)
    assert not any("\n" in message for message in refused)
