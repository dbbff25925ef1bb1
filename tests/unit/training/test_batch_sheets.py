from __future__ import annotations

import cv2
import numpy as np
import torch

from rtdetrv4.training.batch_sheets import COLUMNS, NUM_IMAGES, WIDTH, BatchSheets
from rtdetrv4.types import Batch, ImageInfo, Targets


def batch(num_images: int, size=(64, 128)) -> Batch:
    """Gray images, each with a box of class 1 in its left half; the last has none."""
    boxes = [(torch.tensor([1]), torch.tensor([[0.25, 0.5, 0.25, 0.5]]))] * (num_images - 1)
    empty = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    infos = tuple(ImageInfo(index, f"{index}.png", *size) for index in range(num_images))
    return Batch(torch.full((num_images, 3, *size), 0.5), Targets.of([*boxes, empty]), infos)


def read(path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(int)


def has_color(picture: np.ndarray, y: float, x: float) -> bool:
    """Whether a pixel around a place, relative to one image of the sheet, has the orange of class 1."""
    row, column = round(y * WIDTH / 2), round(x * WIDTH)
    patch = picture[max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4]
    return bool((patch[..., 0] - patch[..., 2] > 60).any())


def test_boxes_sit_where_they_are(tmp_path):
    sheets = BatchSheets(tmp_path, ("a", "b [red]"))
    sheets.begin("basic", is_first=True)
    sheets.add(batch(3))
    picture = read(tmp_path / "train_batch.jpg")
    assert picture.shape[1] == 3 * WIDTH + 2 * 6
    for y, x, is_edge in ((0.5, 0.125, True), (0.5, 0.375, True), (0.75, 0.25, True), (0.5, 0.25, False)):
        assert has_color(picture, y, x) == is_edge
    assert has_color(picture, 0.24, 0.14)  # the label
    for side in (0.125, 0.375):  # the last image has no box
        assert not has_color(picture[:, 2 * (WIDTH + 6) :], 0.5, side)
    assert (abs(picture[10:20, 10:20] - 128) < 3).all()


def test_the_first_images_of_each_stage(tmp_path):
    sheets = BatchSheets(tmp_path, ("a", "b"))
    sheets.add(batch(2))  # of a stage that began before a resume
    assert not list(tmp_path.iterdir())
    sheets.begin("basic", is_first=True)
    heights = []
    for _ in range(4):
        sheets.add(batch(5))
        heights.append(read(tmp_path / "train_batch.jpg").shape[0])
    one = WIDTH // 2
    assert heights == [2 * one + 6, 3 * one + 12, 3 * one + 12, 3 * one + 12]
    assert NUM_IMAGES == 3 * COLUMNS
    before = (tmp_path / "train_batch.jpg").read_bytes()
    sheets.begin("dense", is_first=False)
    sheets.add(batch(16, size=(32, 32)))  # of another size, and more than fit
    assert (tmp_path / "train_batch.jpg").read_bytes() == before
    assert read(tmp_path / "train_batch-dense.jpg").shape[0] == 3 * WIDTH + 12
