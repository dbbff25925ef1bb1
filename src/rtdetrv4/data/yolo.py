"""YOLO data sets: a YAML file of class names, images, and text files of boxes relative to the image size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtdetrv4.data.decode import read_size
from rtdetrv4.data.document import Document, count_of, some_of
from rtdetrv4.errors import DatasetError

BOX_FORMAT = (
    'a line should be "class x y width height" with the center and the sides as fractions of the image size, 0 to 1'
)


def read_names(path: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """The class names by number, from the "names" of a YAML file or of whatever else lists them.

    Args:
        path: the file, for messages.
        content: its content; with "nc", the number of names is checked.

    Raises:
        DatasetError: the names are not text, or occur more than once.
    """
    given = content.get("names")
    listed: dict[Any, Any] = (
        dict(enumerate(given)) if isinstance(given, list) else given if isinstance(given, dict) else {}
    )
    names = {
        key: str(name)
        for key, name in listed.items()
        if isinstance(key, int) and isinstance(name, str | int) and not isinstance(name, bool)
    }
    if not names or len(names) < len(listed) or min(names) < 0 or not all(names.values()):
        raise DatasetError(f'{path}: "names" should list the classes as text, such as [cat, dog]; got {given!r}')
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise DatasetError(f'{path}: the class name "{twice[0]}" occurs more than once; merge or rename these classes')
    count = content.get("nc", len(names))
    if count != len(names):
        raise DatasetError(f'{path}: "nc" is {count}, but "names" has {len(names)} classes; correct one of them')
    return names


def read_labels(
    path: Path, folder: Path, images: Sequence[Path], files: Sequence[Path | None], names: dict[int, str]
) -> Document:
    """Read the annotations of one part.

    An image without labels is background. Polygons and rotated boxes become the axis-aligned boxes around them.

    Args:
        path: the file or folder that describes the data set, for messages.
        folder: what the file names of the images shall be relative to.
        images: the images.
        files: the label file of each image.
        names: the class names by number.

    Raises:
        DatasetError: no image can be read, or a label is of an unknown class.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    unreadable: list[Path] = []
    for image in images:
        try:
            sizes[image] = read_size(image)
        except DatasetError:
            unreadable.append(image)
    labels = [file for image, file in zip(images, files, strict=True) if image in sizes]
    images = [image for image in images if image in sizes]
    if not images:
        raise DatasetError(
            f"none of the {len(unreadable)} images in {folder} can be read, the first is {unreadable[0]}"
        )
    sizes_hw = np.array([sizes[image] for image in images], dtype=np.int64)
    ids: list[str] = []
    image_index: list[int] = []
    category_ids: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    for index, file in enumerate(labels):
        if file is None:
            continue
        for number, line in enumerate(_lines(file), start=1):
            if fields := line.split():
                ids.append(f"{file.name}:{number}")
                image_index.append(index)
                category_ids.append(_class(file, number, fields[0], names))
                boxes.append(_box(fields[1:]))
    scale = sizes_hw[np.array(image_index, dtype=np.int64)].reshape(-1, 2)[:, [1, 0, 1, 0]]
    return Document(
        path=path,
        image_ids=np.arange(len(images)),
        file_names=[image.relative_to(folder).as_posix() for image in images],
        sizes_hw=sizes_hw,
        categories=names,
        parents=frozenset(),
        annotation_ids=ids,
        image_index=np.array(image_index, dtype=np.int64),
        category_ids=np.array(category_ids, dtype=np.int64),
        boxes_xywh_px=np.array(boxes, dtype=np.float64).reshape(-1, 4) * scale,
        is_crowd=np.zeros(len(boxes), dtype=np.bool_),
        areas=np.full(len(boxes), np.nan),
        box_format=BOX_FORMAT,
        problems=(f"{count_of(len(unreadable), 'image', 'images')} left out: cannot be read (first: {unreadable[0]})",)
        if unreadable
        else (),
    )


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} cannot be read as text: {error}") from error


def _class(file: Path, number: int, text: str, names: Mapping[int, str]) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value not in names:
        raise DatasetError(
            f"{file}, line {number}: class {text} is not one of the {len(names)} in the YAML file "
            f"({some_of(f'{key} {name}' for key, name in names.items())}); {BOX_FORMAT}"
        )
    return int(value)


def _box(fields: Sequence[str]) -> tuple[float, float, float, float]:
    """Left, top, width and height; NaNs if the numbers are not a box."""
    try:
        values = [float(field) for field in fields]
    except ValueError:
        values = []
    if not all(map(math.isfinite, values)):
        values = []
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, width, height
    if len(values) >= 6 and len(values) % 2 == 0:  # a polygon; a rotated box is one with four corners
        left, top = min(values[::2]), min(values[1::2])
        return left, top, max(values[::2]) - left, max(values[1::2]) - top
    return math.nan, math.nan, math.nan, math.nan
