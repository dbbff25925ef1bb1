from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtdetrv4.distillation.similarity import Similarity, save_similarity
from rtdetrv4.errors import SourceError
from rtdetrv4.report.pictures import MARK, SIDE, draw_galleries, draw_similarity
from rtdetrv4.runtime.draw import color_of_class


def box(kind: str, xyxy: list[float], *, name: str = "b", is_marked: bool = False) -> dict:
    return {
        "kind": kind,
        "name": name,
        "xyxy": xyxy,
        "score": None if kind == "truth" else 0.75,
        "is_marked": is_marked,
    }


def example(file: str, *boxes: dict) -> dict:
    return {
        "image_index": 0,
        "file": file,
        "size_hw": [480, 640],
        "score": 0.5,
        "detail": "b taken for a",
        "boxes": boxes,
    }


def where(picture: np.ndarray, color: tuple[int, int, int]) -> tuple[list[int], list[int]]:
    """The first and the last row and column of a color."""
    rows, columns = np.nonzero((np.abs(picture.astype(int) - color) < 10).all(axis=2))
    return [int(rows.min()), int(rows.max())], [int(columns.min()), int(columns.max())]


def test_truth_and_prediction_are_side_by_side_and_marked(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480)).save(tmp_path / "a b.png")
    boxes = (box("truth", [320, 240, 600, 400]), box("found", [64, 240, 320, 400], name="a", is_marked=True))
    galleries = {"confused": [example("a b.png", *boxes), example("gone.png")], "best": [example("gone.png")]}
    (gallery,) = draw_galleries(galleries, ["a", "b"], tmp_path)
    assert gallery.title == "Confused"
    (shown,) = gallery.examples
    assert shown.truth.shape == shown.found.shape == (SIDE * 3 // 4, SIDE, 3)
    rows, columns = where(shown.truth, color_of_class(1))
    assert (rows[1], columns) == (200, [160, 300])  # its label is above it
    rows, columns = where(shown.found, MARK)
    assert (rows[1], columns) == (200, [32, 160])
    assert shown.link == (tmp_path / "a b.png").as_uri()
    assert "%20" in shown.link
    assert (shown.file, shown.detail) == ("a b.png", "b taken for a")


def test_similarity_is_bright_where_the_cosine_is_one(tmp_path: Path) -> None:
    cosine = np.array([[[0.0, 1.0], [0.5, -1.0]]], dtype=np.float32)
    features = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    image = np.zeros((40, 80, 3), dtype=np.uint8)
    path = tmp_path / "val/similarity.npz"
    save_similarity(path, Similarity(cosine, features, features), [image], ["caf\udce9.jpg"])
    (drawn,) = draw_similarity(path)
    assert drawn.name == "caf\udce9.jpg"
    assert drawn.mean == pytest.approx(0.125)
    assert drawn.image.shape == drawn.cosine.shape == drawn.teacher.shape == (SIDE // 2, SIDE, 3)
    np.testing.assert_array_equal(drawn.student[[0, -1], [0, -1]], [[0, 1, 2], [9, 10, 11]])
    # Viridis begins with (68, 1, 84) and ends with (253, 231, 36); a third of the picture is the image.
    np.testing.assert_allclose(drawn.cosine[0, 0], np.multiply(0.7, (68, 1, 84)), atol=1)
    np.testing.assert_allclose(drawn.cosine[0, -1], np.multiply(0.7, (253, 231, 36)), atol=1)
    np.testing.assert_array_equal(drawn.cosine[-1, -1], drawn.cosine[0, 0])


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 half a zip file"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "similarity.npz").write_bytes(content)
    with pytest.raises(SourceError, match=r"similarity\.npz is damaged"):
        draw_similarity(tmp_path / "similarity.npz")
