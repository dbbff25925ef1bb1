from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from rtdetrv4.data.batch import prepare_images
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.records import Record, Split
from rtdetrv4.runtime import preprocess, read_source, resize
from rtdetrv4.runtime.preprocess import content_of, scale_of, view_of
from rtdetrv4.types import ClassMap, ImageInfo


def as_torch(image: np.ndarray, size_hw: tuple[int, int], mode: str) -> np.ndarray:
    channels_first = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    return torch.nn.functional.interpolate(channels_first, size=size_hw, mode=mode)[0].permute(1, 2, 0).numpy()


def test_sides_that_grow_are_bilinear_and_sides_that_shrink_are_averaged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    assert np.abs(resize(image, (64, 96)) - as_torch(image, (64, 96), "bilinear")).max() <= 1
    assert np.abs(resize(image, (15, 25)) - as_torch(image, (15, 25), "area")).max() <= 1
    narrow = as_torch(image, (30, 10), "area").round().astype(np.uint8)
    assert np.abs(resize(image, (60, 10)) - as_torch(narrow, (60, 10), "bilinear")).max() <= 2


def test_thin_lines_of_large_images_stay() -> None:
    image = np.zeros((400, 400, 3), dtype=np.uint8)
    image[::8] = 255
    assert np.ptp(cv2.resize(image, (50, 50))) == 0  # what plain bilinear sampling makes of it: nothing is left
    assert abs(resize(image, (50, 50)).mean() - image.mean()) < 1


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_evaluation_sees_the_pixels_that_prediction_sees(tmp_path: Path, suffix: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(image).save(path)
    record = Record(
        ImageInfo(1, path.name, 700, 900),
        np.zeros((0, 4), np.float32),
        np.zeros(0, int),
        np.zeros(0, bool),
        np.zeros(0),
    )
    split = Split(tmp_path, (record,), ClassMap(("thing",), (1,)), "", ())
    evaluated = prepare_images(DetectionDataset(split, (96, 64))[0].image[None], (96, 64), "cpu")
    (frame,) = read_source(path)
    np.testing.assert_array_equal(evaluated.numpy(), preprocess([frame.image], (96, 64)))


def test_how_much_larger_images_are_in_the_input() -> None:
    sizes = np.array([[480, 640], [320, 320], [160, 640]])
    np.testing.assert_allclose(scale_of(sizes, (320, 320), "stretch"), [np.sqrt(0.5 * 2 / 3), 1, 1])
    np.testing.assert_allclose(scale_of(sizes, (320, 320), "letterbox"), [0.5, 1, 0.5])


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    assert resize(image, (32, 64)) is image


def test_preprocess_gives_a_contiguous_float_batch() -> None:
    red, wide = np.zeros((10, 20, 3), np.uint8), np.zeros((7, 90, 3), np.uint8)
    red[..., 0] = 255
    wide[..., 2] = 51
    batch = preprocess([red, wide, np.asfortranarray(red)], (32, 64))
    assert batch.shape == (3, 3, 32, 64)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    np.testing.assert_allclose(batch.mean(axis=(2, 3)), ([[1, 0, 0], [0, 0, 0.2], [1, 0, 0]]), rtol=1e-6)


@pytest.mark.parametrize(
    ("image_hw", "size_hw", "expected"),
    [
        ((480, 640), (640, 640), (80, 0, 480, 640)),
        ((640, 480), (640, 640), (0, 80, 640, 480)),
        ((100, 100), (640, 640), (0, 0, 640, 640)),
        ((100, 100), (320, 640), (0, 160, 320, 320)),
        ((1000, 333), (96, 96), (0, 32, 96, 32)),  # 31.968
        ((1000, 328), (96, 96), (0, 32, 96, 31)),  # 31.488
        ((2, 1), (31, 31), (0, 7, 31, 16)),  # 15.5 is rounded up, 7.5 down
        ((1, 10_000), (640, 640), (319, 0, 1, 640)),  # never less than a pixel
        ((10_000, 1), (640, 640), (0, 319, 640, 1)),
    ],
)
def test_a_letterbox_centers_the_image(
    image_hw: tuple[int, int], size_hw: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    assert content_of(image_hw, size_hw, "letterbox") == expected
    assert content_of(image_hw, size_hw, "stretch") == (0, 0, *size_hw)
    # Boxes go back exactly: the rectangle that shows the image is the image.
    top, left, height, width = expected
    box = np.array([[left, top, left + width, top + height]]) / np.tile(size_hw[::-1], 2)
    found = view_of(image_hw, size_hw, "letterbox").boxes_px(box.astype(np.float32))
    np.testing.assert_allclose(
        found, [[0, 0, *image_hw[::-1]]], atol=1e-5 * max(image_hw) * size_hw[0] / min(expected[2:])
    )
    assert view_of(image_hw, size_hw, "stretch") == (0, 0, *image_hw)


def test_the_letterbox_is_black_around_the_image() -> None:
    image = np.full((10, 20, 3), 255, np.uint8)
    batch = preprocess([image, image.transpose(1, 0, 2)], (32, 32), "letterbox")
    assert (batch.min(), batch.max()) == (0, 1)
    assert batch[0, :, 8:24].min() == batch[1, :, :, 8:24].min() == 1
    assert batch.sum() == 2 * 3 * 16 * 32


def test_preprocess_divides_as_torch_does() -> None:
    """Bit for bit, so that a model sees the same numbers in training and after export."""
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    expected = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    np.testing.assert_array_equal(preprocess([image], (16, 16))[0], expected.numpy())
