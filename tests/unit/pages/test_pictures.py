from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtdetrv4.errors import SourceError
from rtdetrv4.pages.pictures import encode, read_thumbnail, thumbnail

RED = (255, 0, 0)


def decode(uri: str) -> Image.Image:
    kind, _, text = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(text)))


def rows_and_columns(picture: np.ndarray) -> tuple[list[int], list[int]]:
    """The first and the last row and column that are red."""
    y, x = np.nonzero((picture[..., 0] > 200) & (picture[..., 1] < 60))
    return [int(y.min()), int(y.max())], [int(x.min()), int(x.max())]


def test_boxes_are_scaled_with_the_image() -> None:
    picture = thumbnail(np.zeros((600, 800, 3), np.uint8), [[200, 100, 400, 500]], [0], [""], colors=[RED])
    assert picture.shape == (240, 320, 3)
    assert rows_and_columns(picture) == ([40, 200], [80, 160])


def test_small_images_are_enlarged() -> None:
    assert thumbnail(np.zeros((16, 32, 3), np.uint8)).shape == (160, 320, 3)
    assert thumbnail(np.zeros((1, 4000, 3), np.uint8), max_side=100).shape == (1, 100, 3)


@pytest.mark.parametrize(("side", "orientation"), [(100, 1), (4000, 1), (4000, 6)])
def test_a_file_is_read_upright_and_its_boxes_fit(tmp_path: Path, side: int, orientation: int) -> None:
    stored = (side, side // 2) if orientation == 1 else (side // 2, side)  # width and height
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", stored).save(tmp_path / "a.jpg", exif=exif)
    upright = np.array([side / 4, side / 8, side / 2, side / 4])
    picture = read_thumbnail(tmp_path / "a.jpg", [upright], [0], [""], max_side=200, colors=[RED])
    assert picture.shape == (100, 200, 3)
    rows, columns = rows_and_columns(picture)
    assert rows == pytest.approx([25, 50], abs=1)
    assert columns == pytest.approx([50, 100], abs=1)


def test_a_file_that_is_no_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"text")
    with pytest.raises(SourceError, match=r"a\.jpg"):
        read_thumbnail(tmp_path / "a.jpg")
    with pytest.raises(SourceError, match=r"missing\.jpg"):
        read_thumbnail(tmp_path / "missing.jpg")


def test_pictures_keep_to_a_size_by_quality_and_then_by_number() -> None:
    noise = [np.random.default_rng(seed).integers(0, 255, (100, 100, 3), np.uint8) for seed in range(4)]
    best = encode(noise)
    assert decode(best[0]).size == (100, 100)
    total = sum(map(len, best))
    smaller = encode(noise, total - 1)
    assert sum(map(len, smaller)) < total
    assert all(smaller)
    few = encode(noise, max(map(len, encode(noise, 0 * total + total // 3))) + 1)
    assert [bool(uri) for uri in few] == [True, False, False, False]
    assert encode(noise, 10) == [""] * 4
    assert encode([]) == []
