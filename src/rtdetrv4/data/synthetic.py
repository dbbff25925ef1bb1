"""A small synthetic data set for demonstrations and tests: textured shapes on cluttered backgrounds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rtdetrv4.data.formats import ROBOFLOW_FILE

CLASSES = ("disc", "square", "triangle", "star", "cross")
MAX_OBJECTS = 5
SIDE_RANGE = (0.18, 0.48)
"""The range of an object's diameter, as a fraction of the image side."""
MAX_COVERED = 0.35
"""The largest fraction of an object that later ones may hide."""
MIN_CONTRAST = 45
"""The smallest difference from the background, in gray levels of the channel that differs most."""
EMPTY_SHARE = 0.05
JPEG_QUALITY = 92


def write_shapes(
    folder: str | Path,
    num_train: int = 300,
    num_val: int = 60,
    image_size: int = 320,
    num_classes: int = len(CLASSES),
    seed: int = 0,
) -> Path:
    """Write a detection data set of up to five classes in the Roboflow layout (`train/` and `valid/`).

    Shapes vary in size, rotation, color, texture and contrast; they partly hide each other, and the border cuts some
    off. The background has gradients, soft blobs, lines and rings of no class. A few images show no shape.

    Args:
        folder: where to write; created if missing.
        num_train: the number of training images.
        num_val: the number of validation images.
        image_size: the side of an image, in pixels.
        num_classes: how many of `CLASSES` to use, from the first on.
        seed: equal seeds write equal images.

    Returns:
        The folder as a path.
    """
    folder = Path(folder)
    for stream, (split, count) in enumerate({"train": num_train, "valid": num_val}.items()):
        (folder / split).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for index in range(count):
            rng = np.random.default_rng((seed, stream, index))
            picture, boxes_xyxy_px, labels = _draw_scene(rng, image_size, CLASSES[:num_classes])
            name = f"shapes_{index:05d}.jpg"
            jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            (folder / split / name).write_bytes(jpeg.tobytes())
            images.append({"id": index, "file_name": name, "height": image_size, "width": image_size})
            for (left, top, right, bottom), label in zip(boxes_xyxy_px.tolist(), labels, strict=True):
                width, height = right - left, bottom - top
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": index,
                        "category_id": label + 1,
                        "bbox": [left, top, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
        categories = [
            {"id": i + 1, "name": name, "supercategory": "shapes"} for i, name in enumerate(CLASSES[:num_classes])
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / split / ROBOFLOW_FILE).write_text(json.dumps(content), encoding="utf-8")
    return folder


def _draw_scene(
    rng: Generator, size: int, classes: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[int]]:
    """H×W×3 pixels, boxes (n, 4) as xyxy in pixels, and n labels."""
    canvas = _background(rng, size)
    owner = np.full((size, size), -1)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    areas: list[int] = []
    for _ in range(0 if rng.random() < EMPTY_SHARE else rng.integers(1, MAX_OBJECTS + 1)):
        label = int(rng.integers(len(classes)))
        alpha = _shape_mask(rng, classes[label], size)
        mask = alpha > 0.5
        attempt = np.where(mask, len(areas), owner)
        visible = np.bincount(attempt[attempt >= 0], minlength=len(areas))[: len(areas)]
        if mask.sum() < (SIDE_RANGE[0] * size / 2) ** 2 or np.any(visible < (1 - MAX_COVERED) * np.array(areas)):
            continue
        owner = attempt
        box = _bounds(mask)
        part = np.s_[box[1] : box[3], box[0] : box[2]]
        texture = _texture(rng, (box[3] - box[1], box[2] - box[0]), size, canvas[part].mean(axis=(0, 1)))
        canvas[part] += alpha[part][..., None] * (texture - canvas[part])
        boxes.append(box)
        labels.append(label)
        areas.append(int(mask.sum()))
    canvas += rng.uniform(2, 9) * rng.standard_normal((size, size, 1), np.float32)
    return np.clip(canvas, 0, 255).astype(np.uint8), np.array(boxes, dtype=np.int64).reshape(-1, 4), labels


def _bounds(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _shape_mask(rng: Generator, name: str, size: int) -> NDArray[np.float32]:
    """H×W in [0, 1], antialiased: a shape at a random place, perhaps cut off by the border."""
    radius = size * np.exp(rng.uniform(*np.log(SIDE_RANGE))) / 2
    center = rng.uniform(0.2 * radius, size - 0.2 * radius, 2)
    angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (_outline(name) * [1, squeeze]) @ turn.T * radius + center
    subpixels = np.rint((points - 0.5) * 16).astype(np.int32)
    mask = cv2.fillPoly(np.zeros((size, size), np.uint8), [subpixels], 255, cv2.LINE_AA, shift=4)
    return (mask / 255).astype(np.float32)


def _outline(name: str) -> NDArray[np.float64]:
    """(n, 2): a polygon around the origin whose farthest corners have a distance of 1."""
    if name == "cross":
        arm = np.array([[1, -0.32], [1, 0.32], [0.32, 0.32]]) / np.hypot(1, 0.32)
        return np.concatenate([arm @ np.linalg.matrix_power([[0, 1], [-1, 0]], turns) for turns in range(4)])
    corners = {"disc": 64, "square": 4, "triangle": 3, "star": 10}[name]
    angles = np.arange(corners) * 2 * np.pi / corners
    reach = np.where((np.arange(corners) % 2 == 1) & (name == "star"), 0.45, 1.0)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None]


def _texture(rng: Generator, shape_hw: tuple[int, int], size: int, behind: NDArray[np.float32]) -> NDArray[np.float32]:
    """h×w×3: a plain color, stripes, checks, dots or noise, in two colors that differ from `behind`."""
    while True:
        colors = rng.uniform(20, 235, (2, 3)).astype(np.float32)
        if np.abs(colors - behind).max(axis=1).min() > MIN_CONTRAST:
            break
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.02, 0.06) * size
    y, x = np.mgrid[: shape_hw[0], : shape_hw[1]] * (2 * np.pi / period)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kind = rng.integers(5)
    if kind == 0:
        blend = np.zeros(shape_hw)
    elif kind == 1:
        blend = np.sin(along) > 0
    elif kind == 2:
        blend = np.sin(along) * np.sin(across) > 0
    elif kind == 3:
        blend = np.cos(along) * np.cos(across) > 0.6
    else:
        blend = _smooth_noise(rng, shape_hw, 5)
    shade = rng.uniform(-25, 25) * np.linspace(0, 1, shape_hw[1])
    texture = colors[0] + blend[..., None] * (colors[1] - colors[0]) + shade[:, None]
    return texture.astype(np.float32)


def _smooth_noise(rng: Generator, shape_hw: tuple[int, int], cells: int) -> NDArray[np.float32]:
    """h×w in [0, 1], interpolated from `cells` × `cells` random values."""
    coarse = rng.random((cells, cells), np.float32)
    return np.clip(cv2.resize(coarse, shape_hw[::-1], interpolation=cv2.INTER_CUBIC), 0, 1).astype(np.float32)


def _background(rng: Generator, size: int) -> NDArray[np.float32]:
    """H×W×3: two colors blended by coarse noise, a third by finer noise, with lines and rings on top."""
    colors = rng.uniform(30, 225, (3, 3)).astype(np.float32)
    broad = _smooth_noise(rng, (size, size), 4)[..., None]
    fine = _smooth_noise(rng, (size, size), int(rng.integers(8, 40)))[..., None]
    strength = np.float32(rng.uniform(0, 0.4))
    canvas = colors[0] + broad * (colors[1] - colors[0]) + strength * fine * (colors[2] - colors[0])
    for _ in range(rng.integers(0, 7)):
        color, width = rng.uniform(0, 255, 3).tolist(), int(rng.integers(1, max(2, size // 80) + 1))
        first, last = rng.integers(0, size, (2, 2)).tolist()
        if rng.random() < 0.6:
            cv2.line(canvas, first, last, color, width)
        else:
            cv2.circle(canvas, first, int(rng.uniform(0.03, 0.15) * size), color, width)
    return canvas
