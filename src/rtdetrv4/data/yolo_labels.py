"""YOLO label files: a line for each object, a box or more, relative to the image size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtdetrv4.data.document import Form, count_of, some_of
from rtdetrv4.data.faults import Faults, stop
from rtdetrv4.data.text import decode
from rtdetrv4.errors import DatasetError, shown
from rtdetrv4.input_files import read_file

BOX_FORMAT = (
    'a line should be "class x y width height" with the center and the sides as fractions of the image size, 0 to 1'
)
MAX_BYTES = 2**25
"""Of a label file: a hundred thousand boxes."""
MIN_POSES = 5
"""Lines from which on boxes with key points can be told from polygons, if no YAML file says so."""
BOX_TOLERANCE = 0.02
"""How far a box may leave the image, and key points may leave their box, as a fraction of the image."""
CORNER_TOLERANCE = 2e-3
"""How far the middles of a rotated box's diagonals may be apart, twice, because corners are rounded."""
MAX_FRACTION = 2.0
"""Coordinates beyond this are pixels; up to it, the part inside the image is used."""
MAX_PIXEL_SHARE = 0.05
PIXEL_TOLERANCE = 0.01
"""How far a box in pixels may leave its image, as a fraction of it."""
MIN_SHARE_INSIDE = 0.95
"""The share of boxes in pixels that must lie in their images as center and sides to be taken as such."""


class Labels(NamedTuple):
    """The objects of a list of label files."""

    where: list[str]
    """File and line of each object, for messages."""
    numbers: NDArray[np.int64]
    """The line of each object, from 1."""
    file_index: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    """(N, 4) left, top, width and height as fractions of the image size; NaN if the line holds none."""
    forms: NDArray[np.uint8]
    """(N,) values of `Form`."""
    problems: tuple[str, ...]


def read_label_files(
    files: Sequence[Path | None],
    names: Mapping[int, str],
    keypoints: tuple[int, int] | None = None,
    faults: Faults | None = None,
    sizes_hw: NDArray[np.int64] | None = None,
) -> Labels:
    """Read label files; polygons and rotated boxes become the upright boxes around them, key points are left out.

    Args:
        files: a file for each image; None for an image without one.
        names: the classes.
        keypoints: the number of key points and of values for each, if every box is followed by them.
        faults: collects files and lines that cannot be used, instead of raising at the first one.
        sizes_hw: (M, 2) of the images. With `faults`, boxes in pixels are then converted, if they lie in their images;
            otherwise they are left out.

    Raises:
        DatasetError: a file is no text, a class is not one of `names`, or boxes are in pixels.
    """
    where: list[str] = []
    numbers: list[int] = []
    file_index: list[int] = []
    class_ids: list[int] = []
    rows: list[list[float]] = []
    for index, file in enumerate(files):
        if file is None:
            continue
        for number, line in enumerate(_text(file, faults).splitlines(), start=1):
            if (fields := line.split()) and (label := _class(file, number, fields[0], names, faults)) is not None:
                where.append(f"{file.name}:{number}")
                numbers.append(number)
                file_index.append(index)
                class_ids.append(label)
                rows.append(_numbers(fields[1:]))
    problems: list[str] = []
    boxes, forms = _boxes(rows, keypoints, problems)
    in_pixels = np.flatnonzero((np.abs(boxes) > MAX_FRACTION).any(axis=1))
    if len(in_pixels) > MAX_PIXEL_SHARE * len(boxes):
        first = int(in_pixels[0])
        error = DatasetError(
            f"{files[file_index[first]]}: boxes seem to be in pixels ({len(in_pixels)} of {len(boxes)}, first: "
            f"{some_of(f'{value:g}' for value in rows[first][:4])} in {where[first]}); {BOX_FORMAT}. "
            "`rtdetrv4 doctor DATA --fix NEW` writes a copy with fractions"
        )
        stop(error, faults)
    labels = Labels(
        where,
        np.array(numbers, dtype=np.int64),
        np.array(file_index, dtype=np.int64),
        np.array(class_ids, dtype=np.int64),
        boxes,
        forms,
        tuple(problems),
    )
    if faults is None or not len(in_pixels):
        return labels
    converted = _in_fractions(boxes[in_pixels], labels.file_index[in_pixels], sizes_hw)
    what = "not fractions, and left out" if converted is None else "taken as center and sides in pixels"
    for index in in_pixels.tolist():
        if file := files[int(labels.file_index[index])]:
            values = " ".join(f"{value:g}" for value in rows[index][:4])
            faults.add("box in pixels", file, "line", int(labels.numbers[index]), f"{values}, {what}")
    if converted is None:
        keep = np.ones(len(boxes), dtype=np.bool_)
        keep[in_pixels] = False
        return _chosen(labels, keep)
    boxes[in_pixels] = converted
    return labels


def _in_fractions(
    boxes_xywh_px: NDArray[np.float64], file_index: NDArray[np.int64], sizes_hw: NDArray[np.int64] | None
) -> NDArray[np.float64] | None:
    """Boxes in pixels as fractions of their images; None if too many of them leave the image: they are corners, say."""
    if sizes_hw is None:
        return None
    boxes = boxes_xywh_px / np.tile(sizes_hw[file_index][:, ::-1], (1, 2))
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    is_inside = ((low >= -PIXEL_TOLERANCE) & (high <= 1 + PIXEL_TOLERANCE) & (low < high)).all(axis=1)
    return boxes if is_inside.mean() >= MIN_SHARE_INSIDE else None


def _chosen(labels: Labels, keep: NDArray[np.bool_]) -> Labels:
    return Labels(
        [where for where, kept in zip(labels.where, keep, strict=True) if kept],
        labels.numbers[keep],
        labels.file_index[keep],
        labels.class_ids[keep],
        labels.boxes_xywh[keep],
        labels.forms[keep],
        labels.problems,
    )


def keypoint_shape(path: Path, content: Mapping[str, Any]) -> tuple[int, int] | None:
    """The entry `kpt_shape` of a YAML file, such as (17, 3); None if there is none.

    Raises:
        DatasetError: it is something else than two counts.
    """
    given = content.get("kpt_shape")
    if given is None:
        return None
    if isinstance(given, list) and len(given) == 2 and isinstance(given[0], int) and given[1] in (2, 3):
        return given[0], given[1]
    raise DatasetError(
        f'{path}: "kpt_shape" should be [number of key points, 2 or 3], such as [17, 3]; got {shown(given)}'
    )


def _text(file: Path, faults: Faults | None) -> str:
    try:
        return decode(read_file(file, MAX_BYTES))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        unreadable = DatasetError(f"{file} cannot be read as text: {reason}")
        if faults is None:
            raise unreadable from error
        stop(unreadable, faults)
        faults.add("damaged file", file, "file", 0, "no UTF-8 text")
        return ""


def _class(file: Path, number: int, text: str, names: Mapping[int, str], faults: Faults | None) -> int | None:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value not in names:
        is_next = value == len(names) and list(names) == list(range(len(names)))
        hint = '. If the numbers start at 1, give them with the names: "names: {1: cat, 2: dog}"' if is_next else ""
        error = DatasetError(
            f"{file}, line {number}: class {_short(text)} is not one of the {len(names)} class names "
            f"({some_of(f'{key} {name}' for key, name in names.items())}); {BOX_FORMAT}{hint}"
        )
        stop(error, faults)
        if faults is not None:
            faults.add("unknown class", file, "line", number, f"class {_short(text)}, of {len(names)} from 0")
        return None
    return int(value)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def _numbers(fields: Sequence[str]) -> list[float]:
    """The values, or none if one of them is not a finite number."""
    try:
        values = [float(field) for field in fields]
    except ValueError:
        return []
    return values if all(map(math.isfinite, values)) else []


def _boxes(
    rows: list[list[float]], keypoints: tuple[int, int] | None, problems: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """The box of each line and the form it has, from what all lines have in common."""
    boxes = np.full((len(rows), 4), math.nan)
    forms = np.full(len(rows), Form.BOX, dtype=np.uint8)
    with_confidence = bool(rows) and all(len(row) == 5 and 0 <= row[4] <= 1 for row in rows)
    pose = (4 + keypoints[0] * keypoints[1]) if keypoints else _pose_length(rows)
    for index, row in enumerate(rows):
        if len(row) == 4 or with_confidence:
            boxes[index] = _upright(row)
        elif len(row) == pose:
            boxes[index] = _upright(row)
            forms[index] = Form.KEYPOINTS
        elif len(row) >= 6 and len(row) % 2 == 0:
            left, top = min(row[::2]), min(row[1::2])
            boxes[index] = left, top, max(row[::2]) - left, max(row[1::2]) - top
            forms[index] = Form.POLYGON
    num_poses, num_polygons = int((forms == Form.KEYPOINTS).sum()), int((forms == Form.POLYGON).sum())
    if with_confidence:
        forms[:] = Form.PREDICTION
        problems.append("every line ends with a confidence, as predictions do; it is ignored")
    if num_poses:
        reason = "kpt_shape says so" if keypoints else "the key points lie in their boxes"
        problems.append(f"{count_of(num_poses, 'line is', 'lines are')} taken as a box with key points: {reason}")
    if num_polygons:
        problems.append(
            f"{count_of(num_polygons, 'polygon or rotated box', 'polygons or rotated boxes')} replaced by the upright "
            "boxes around them"
        )
    return boxes, forms


def _upright(row: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = row[:4]
    return x - width / 2, y - height / 2, width, height


def _pose_length(rows: list[list[float]]) -> int | None:
    """The length of lines that are a box and key points; None if they are polygons, or too few to tell.

    All lines are then of one length, and hold a box within the image and key points within the box. Of polygons, whose
    numbers are corners, that is true now and then, but not of all.
    """
    lengths = {len(row) for row in rows if len(row) != 4}
    if len(lengths) != 1 or (length := lengths.pop()) < 6:
        return None
    poses = np.array([row for row in rows if len(row) == length])
    if length == 8 and _are_rectangles(poses.reshape(-1, 4, 2)):
        return None
    dimensions = [size for size in (3, 2) if (length - 4) % size == 0]
    if len(poses) >= MIN_POSES and any(_hold_keypoints(poses, size) for size in dimensions):
        return length
    return None


def _are_rectangles(corners: NDArray[np.float64]) -> bool:
    """Whether quadrilaterals (n×4×2) are rotated boxes, corner by corner: both diagonals have the same middle.

    Of most of them, since boxes that were drawn by hand, or cut off at the border, are skewed.
    """
    apart = np.abs(corners[:, 0] + corners[:, 2] - corners[:, 1] - corners[:, 3])
    return bool((apart <= CORNER_TOLERANCE).all(axis=1).mean() > 0.5)


def _hold_keypoints(poses: NDArray[np.float64], size: int) -> bool:
    """Whether rows of a box and points (x, y) or (x, y, visibility) are what they seem."""
    center, sides = poses[:, None, :2], poses[:, None, 2:4]
    points = poses[:, 4:].reshape(len(poses), -1, size)
    visible = (points[..., :2] != 0).max(axis=2)  # points that are not annotated are written as 0 0
    if size == 3:
        if not np.isin(points[..., 2], (0, 1, 2)).all():
            return False
        visible &= points[..., 2] > 0
    inside = (np.abs(points[..., :2] - center) <= sides / 2 + BOX_TOLERANCE).all(axis=2)
    fits_image = (np.abs(center - 0.5) + sides / 2 <= 0.5 + BOX_TOLERANCE).all() and (sides > 0).all()
    return bool(fits_image and visible.any() and np.all(inside | ~visible))
