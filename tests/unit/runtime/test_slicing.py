"""Tiles, and a detector of colored rectangles that sees only tiles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
import supervision

from rtdetrv4.errors import ConfigError
from rtdetrv4.runtime import Detections
from rtdetrv4.runtime.detect import _warn_once, detect
from rtdetrv4.runtime.selection import Selection
from rtdetrv4.runtime.slicing import Slicing, enlargement_warning, merge_tiles, tiles_of
from rtdetrv4.runtime.sources import read_source
from rtdetrv4.types import ClassMap, Rectangle

CLASSES = ClassMap(("red", "green"), (1, 2))
SIDE = 100


class FindsColors:
    """Finds every connected patch of red and green; the larger, the surer. It counts its runs."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.batches.append(len(images))
        scores = np.zeros((len(images), 40), np.float32)
        labels = np.zeros((len(images), 40), np.int64)
        boxes = np.zeros((len(images), 40, 4), np.float32)
        for i, image in enumerate(images):
            height, width = image.shape[:2]
            found = []
            for label in range(2):
                stats = cv2.connectedComponentsWithStats((image[..., label] > 128).astype(np.uint8))[2][1:]
                for left, top, wide, tall, area in stats.tolist():
                    box = [left / width, top / height, (left + wide) / width, (top + tall) / height]
                    found.append((area / (area + 500), label, box))
            for j, (score, label, box) in enumerate(sorted(found, reverse=True)):
                scores[i, j], labels[i, j], boxes[i, j] = score, label, box
        return scores, labels, boxes


def paint(rectangles: list[tuple[int, int, int, int]], height: int, width: int) -> np.ndarray:
    """Rectangles, left, top, right, bottom; every other one is green."""
    image = np.zeros((height, width, 3), np.uint8)
    for number, (left, top, right, bottom) in enumerate(rectangles):
        image[top:bottom, left:right, number % 2] = 255
    return image


def find(image: np.ndarray, run: FindsColors | None = None, *, batch: int = 1, **options: Any) -> Detections:
    selection = Selection(CLASSES.names, conf=0.01, max_det=options.pop("max_det", None))
    (found,) = detect(
        read_source(image),
        run or FindsColors(),
        classes=CLASSES,
        size_hw=(SIDE, SIDE),
        mode="stretch",
        batch=batch,
        selection=selection,
        slicing=Slicing.of(**options),
    )
    return found


def sorted_boxes(xyxy: np.ndarray, class_id: np.ndarray) -> list[list[float]]:
    return sorted([*box, label] for box, label in zip(xyxy.round(2).tolist(), class_id.tolist(), strict=True))


def random_rectangles(seed: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """One in each cell of a grid, with black between them, and smaller than the overlap of tiles."""
    rng = np.random.default_rng(seed)
    rectangles = []
    for top in range(0, height - 30, 32):
        for left in range(0, width - 30, 32):
            x, y = rng.integers(1, 10, 2)
            wide, tall = rng.integers(6, 20, 2)
            rectangles.append((left + x, top + y, left + x + wide, top + y + tall))
    return [tuple(map(int, rectangle)) for rectangle in rectangles]  # type: ignore[misc]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_tiles_find_what_supervision_finds(seed: int, batch: int) -> None:
    rectangles = random_rectangles(seed, 317, 421)
    image = paint(rectangles, 317, 421)
    run = FindsColors()
    found = find(image, run, batch=batch, size=SIDE, overlap=0.3, whole=False)
    expected = sorted([*map(float, box), number % 2] for number, box in enumerate(rectangles))
    assert sorted_boxes(found.xyxy, found.class_id) == expected
    assert sum(run.batches) == 5 * 6
    assert max(run.batches) == batch
    assert np.all(np.diff(found.confidence) <= 0)

    def callback(tile: np.ndarray) -> Any:
        scores, labels, boxes = (each[0] for each in FindsColors()([tile]))
        sure = scores > 0.01
        scale = np.tile(tile.shape[1::-1], 2)
        return supervision.Detections(xyxy=boxes[sure] * scale, confidence=scores[sure], class_id=labels[sure])

    slicer = supervision.InferenceSlicer(
        callback, slice_wh=SIDE, overlap_wh=30, iou_threshold=0.5, overlap_metric=supervision.OverlapMetric.IOS
    )
    theirs = slicer(image)
    assert sorted_boxes(theirs.xyxy, theirs.class_id) == expected


def test_an_object_larger_than_a_tile_needs_the_whole_image() -> None:
    """At 100 × 100 the whole image, shown at half its size, still shows the object; a small one as well."""
    image = paint([(20, 30, 180, 90), (10, 150, 30, 170)], 200, 200)
    found = find(image, size=SIDE, whole=True)
    assert sorted_boxes(found.xyxy, found.class_id) == [[10, 150, 30, 170, 1], [20, 30, 180, 90, 0]]
    parts = find(image, size=SIDE, whole=False)
    assert len(parts) > 2
    assert len(find(image, size=SIDE, whole=False, max_det=1)) == 1


@pytest.mark.parametrize("whole", [True, False])
def test_an_image_that_fits_a_tile_is_not_cut(whole: bool) -> None:
    image = paint([(5, 5, 40, 40), (50, 50, 64, 100)], 100, 64)
    run = FindsColors()
    cut, plain = find(image, run, size=SIDE, whole=whole), find(image, size=None)
    assert run.batches == [1]
    np.testing.assert_array_equal(cut.xyxy, plain.xyxy)
    np.testing.assert_array_equal(cut.confidence, plain.confidence)


def test_frames_of_several_sizes_share_batches() -> None:
    """Four tiles and the whole of the first, and the second as it is: six pieces in two batches."""
    images = [paint([(10, 10, 30, 30)], 150, 150), paint([(1, 2, 50, 60)], 80, 80)]
    run = FindsColors()
    stream = detect(
        read_source(images), run, classes=CLASSES, size_hw=(SIDE, SIDE), mode="letterbox", batch=4,
        selection=Selection(CLASSES.names, conf=0.01), slicing=Slicing.of((100, 100)),
    )  # fmt: skip
    first, second = list(stream)
    assert run.batches == [4, 2]
    assert first.image is images[0]
    np.testing.assert_allclose(first.xyxy, [[10, 10, 30, 30]], atol=2)
    np.testing.assert_allclose(second.xyxy, [[1, 2, 50, 60]], atol=1)


def test_tiles_cover_the_image_and_end_with_it() -> None:
    slicing = Slicing((100, 200), 0.25, whole=False)
    tiles = tiles_of((230, 400), slicing)
    assert [tile.top for tile in tiles[::3]] == [0, 75, 130]
    assert [tile.left for tile in tiles[:3]] == [0, 150, 200]
    assert {(tile.height, tile.width) for tile in tiles} == {(100, 200)}
    assert tiles_of((230, 400), slicing._replace(whole=True)) == (*tiles, Rectangle(0, 0, 230, 400))
    assert tiles_of((60, 300), slicing) == (Rectangle(0, 0, 60, 200), Rectangle(0, 100, 60, 200))
    assert tiles_of((100, 200), slicing) == tiles_of((100, 200), None) == (Rectangle(0, 0, 100, 200),)
    assert len(tiles_of((100, 350), slicing)) == 2, "150 + 200 ends with the image"
    for overlap in (0.0, 0.33, 0.9):
        covered = np.zeros((233, 517), int)
        for tile in tiles_of((233, 517), Slicing((64, 96), overlap, whole=False)):
            covered[tile.slices] += 1
        assert covered.min() >= 1


TILES = (Rectangle(0, 0, 100, 100), Rectangle(0, 50, 100, 100), Rectangle(0, 0, 100, 150))


def merged(*found: tuple[list[float], float, int, int]) -> list[int]:
    """Indices that stay of (box, score, label, tile)."""
    boxes, scores, labels, tile_of = (np.array(column) for column in zip(*found, strict=True))
    return merge_tiles(scores.astype(np.float32), labels, boxes.astype(np.float32), tile_of, TILES).tolist()


def test_what_is_merged() -> None:
    box, near = [60, 10, 90, 40], [62, 10, 92, 40]
    assert merged((box, 0.8, 0, 0), (near, 0.9, 0, 1)) == [1], "IoU 0.875 in two tiles"
    assert merged((box, 0.8, 0, 0), (near, 0.9, 0, 0)) == [1, 0], "in one tile they are two"
    assert merged((box, 0.8, 0, 0), (near, 0.9, 1, 1)) == [1, 0], "of two classes"
    assert merged((box, 0.8, 0, 0), ([80, 10, 110, 40], 0.9, 0, 1)) == [1, 0], "IoU 0.2"


def test_what_a_seam_cuts_off_gives_way() -> None:
    """The first tile ends at 100, the second begins at 50."""
    part, whole = [80, 10, 100, 40], [80, 10, 140, 40]
    assert merged((part, 0.6, 0, 0), (whole, 0.5, 0, 1)) == [1], "also to one that is less sure"
    assert merged((part, 0.9, 0, 0), (whole, 0.4, 0, 1)) == [0, 1], "but not to one of less than half"
    assert merged((part, 0.9, 0, 0), (whole, 0.5, 1, 1)) == [0, 1], "nor of another class"
    inside = [80, 10, 95, 40]
    assert merged((inside, 0.6, 0, 0), (whole, 0.7, 0, 1)) == [1, 0], "what no seam cuts off is an object"
    assert merged(([130, 10, 150, 40], 0.5, 0, 1), ([90, 10, 150, 40], 0.6, 0, 2)) == [1, 0], "at the image border"
    assert merged(([50, 10, 70, 40], 0.5, 0, 1), ([20, 10, 72, 40], 0.6, 0, 0)) == [1]
    assert merged(([50, 10, 70, 40], 0.5, 0, 1), ([20, 10, 60, 40], 0.6, 0, 0)) == [1, 0], "half of it is outside"


def test_merging_against_the_definition() -> None:
    """One box after the other, in the order of what it is worth: it stays unless a better one shows its object."""
    rng = np.random.default_rng(0)
    tiles = tiles_of((160, 220), Slicing((100, 100), 0.3, whole=True))
    assert len(tiles) == 7
    num_dropped = 0
    for _ in range(20):
        tile_of = rng.integers(0, 7, 80)
        low = rng.integers(0, 8, (80, 2)) * 10 + rng.integers(0, 3, (80, 2))
        edges = np.array([(t.left, t.top, t.left + t.width, t.top + t.height) for t in tiles])[tile_of]
        boxes = np.concatenate([low, low + rng.integers(20, 50, (80, 2))], axis=1) + np.tile(edges[:, :2], 2)
        boxes = np.minimum(boxes, np.tile(edges[:, 2:], 2)).astype(np.float32)
        scores, labels = rng.permutation(80).astype(np.float32) / 80, rng.integers(0, 2, 80)
        inner_seams = (edges != [0, 0, 220, 160]) & (np.abs(boxes - edges) <= np.where(tile_of == 6, 0, 1)[:, None])
        is_cut = inner_seams.any(axis=1)
        kept: list[int] = []
        for i in sorted(range(80), key=lambda i: -scores[i] * (0.5 if is_cut[i] else 1)):
            for j in kept:
                sides = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
                inner = float(sides.clip(min=0).prod())
                area, other = (float((boxes[k, 2:] - boxes[k, :2]).prod()) for k in (i, j))
                is_same = inner >= 0.5 * (area + other - inner) or (is_cut[i] and inner >= 0.7 * area)
                if is_same and labels[i] == labels[j] and tile_of[i] != tile_of[j]:
                    break
            else:
                kept.append(i)
        expected = sorted(kept, key=lambda i: -scores[i])
        assert merge_tiles(scores, labels, boxes, tile_of, tiles).tolist() == expected
        num_dropped += 80 - len(kept)
    assert num_dropped > 100


def test_nothing_is_merged_where_nothing_is_found() -> None:
    empty = np.zeros(0, np.int64)
    assert merge_tiles(empty.astype(np.float32), empty, np.zeros((0, 4), np.float32), empty, TILES).tolist() == []


def test_tiles_that_enlarge_objects_beyond_training_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    _warn_once.cache_clear()
    for _ in range(2):  # two evaluated images
        found = detect(
            read_source([np.zeros((40, 40, 3), np.uint8), np.zeros((100, 160, 3), np.uint8)]),
            FindsColors(),
            classes=CLASSES,
            size_hw=(SIDE, SIDE),
            mode="stretch",
            batch=2,
            selection=Selection(CLASSES.names, conf=0.01),
            slicing=Slicing.of(50),
            training_hw=(100, 156.25),
        )
        assert [each.image.shape for each in found if each.image is not None] == [(40, 40, 3), (100, 160, 3)]
    (record,) = caplog.records
    assert "tiles of 50 pixels show objects 2.5 times as large as training did" in record.message
    assert "tiles of 100x156 show them as training images do" in record.message


@pytest.mark.parametrize(
    ("size", "training_hw", "told"),
    [
        (320, (480, 640), "tiles of 320 pixels show objects 1.7 times .*; tiles of 480x640 show them"),
        (416, (480, 640), "tiles of 416 pixels show objects 1.3 times"),
        (500, (480, 640), None),
        (320, (320, 320), None),
        (320, None, None),
        ("160x320", (320, 320), "tiles of 160x320 pixels show objects 1.4 times .*; tiles of 320 show them"),
    ],
)
def test_when_tiles_are_told_to_be_small(
    size: int | str, training_hw: tuple[float, float] | None, told: str | None
) -> None:
    slicing = Slicing.of(size)
    assert slicing is not None
    message = enlargement_warning(slicing, (320, 320), "stretch", training_hw)
    assert (message is None) == (told is None)
    if told is not None:
        assert re.match(told, message or "")


def test_sizes_of_tiles() -> None:
    assert Slicing.of(None) is None
    assert Slicing.of(640) == Slicing.of("640") == Slicing.of(np.int64(640)) == Slicing((640, 640), 0.2, whole=True)  # type: ignore[arg-type]
    assert Slicing.of("480x640", 0, False) == Slicing.of((480, 640), 0.0, False) == Slicing((480, 640), 0, whole=False)
    for wrong in (0, 31, -640, 64.0, "a", "640x", "1x2x3", (640,), (640, 0), True):
        with pytest.raises(ConfigError, match=r"slice: got .*, expected the side of a square"):
            Slicing.of(wrong)  # type: ignore[arg-type]
    for wrong in (-0.1, 0.95, 1, 20, np.nan, "0.2", None):
        with pytest.raises(ConfigError, match=r"overlap: got .*, expected a share of a tile from 0 to 0\.9"):
            Slicing.of(640, wrong)  # type: ignore[arg-type]
