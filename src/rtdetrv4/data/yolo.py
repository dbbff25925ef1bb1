"""YOLO data sets: a YAML file of class names, images, and text files of boxes relative to the image size."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtdetrv4.data.decode import read_size
from rtdetrv4.data.document import Document, count_of, some_of
from rtdetrv4.errors import DatasetError
from rtdetrv4.runtime.sources import IMAGE_SUFFIXES

SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
BOX_FORMAT = (
    'a line should be "class x y width height" with the center and the sides as fractions of the image size, 0 to 1'
)


def is_yolo(content: Mapping[str, Any]) -> bool:
    """Whether a YAML file describes a YOLO data set."""
    return "names" in content or "nc" in content


def read_yolo(path: Path, content: Mapping[str, Any]) -> dict[str, tuple[Document, Path]]:
    """Read the annotations of every split; with each comes the folder that its file names are relative to.

    A split is a folder of images, a list of folders, or a text file that lists images. The labels of
    `…/images/…/a.jpg` are in `…/labels/…/a.txt`, or next to the image. An image without labels is background. Polygons
    and rotated boxes become the axis-aligned boxes around them.

    Args:
        path: the YAML file.
        content: its content; see `is_yolo`.

    Raises:
        DatasetError: images, labels or names are missing or contradict each other.
    """
    names = _names(path, content)
    entries = {
        split: entry for split, keys in SPLIT_KEYS.items() for key in keys if (entry := content.get(key)) is not None
    }
    if not entries:
        raise DatasetError(f'{path} names no images; expected entries such as "train: images/train", "val: images/val"')
    root = _root(path, content)
    return {split: _read_split(path, root, split, entry, names) for split, entry in entries.items()}


def _names(path: Path, content: Mapping[str, Any]) -> dict[int, str]:
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


def _root(path: Path, content: Mapping[str, Any]) -> Path:
    """The folder that the paths of the splits are relative to."""
    given = content.get("path")
    if given is None:
        return path.parent
    if not isinstance(given, str):
        raise DatasetError(f'{path}: "path" should be a folder; got {given!r}')
    # Written on another machine, or for a tool that keeps data sets in a folder of its own, the path may not exist.
    places = (path.parent / given, Path(given).expanduser())
    return next((place for place in places if place.is_dir()), path.parent)


def _read_split(path: Path, root: Path, split: str, entry: Any, names: dict[int, str]) -> tuple[Document, Path]:
    entries = entry if isinstance(entry, list) else [entry]
    if not entries or not all(isinstance(each, str) for each in entries):
        raise DatasetError(f'{path}: "{split}" should be a folder of images or a list of folders; got {entry!r}')
    places = [_place(path, root, split, each) for each in entries]
    images = [image for place in places for image in _images(place, root)]
    if not images:
        raise DatasetError(f'{path}: "{split}" has no images in {some_of(places)}')
    folder = Path(os.path.commonpath([root if place.is_file() else place for place in places]))
    return _document(path, folder, images, names), folder


def _place(path: Path, root: Path, split: str, entry: str) -> Path:
    # Roboflow writes ../train/images where train/images is meant.
    places = [root / entry, root / entry.removeprefix("../"), path.parent / entry]
    for place in places:
        if place.exists():
            return Path(os.path.normpath(place))
    raise DatasetError(f'{path}: "{split}" is {entry}, which does not exist; looked for {places[0]}')


def _images(place: Path, root: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from sorted(file for file in place.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        return
    if place.suffix != ".txt":
        raise DatasetError(f"{place} is neither a folder of images nor a .txt file that lists them")
    for line in place.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        found = [Path(os.path.normpath(base / line.strip())) for base in (place.parent, root)]
        image = next((each for each in found if each.is_file()), found[0])
        if not image.is_relative_to(os.path.normpath(root)):
            raise DatasetError(f"{place} lists {line.strip()}, which is outside the folder of the data set, {root}")
        if not image.is_file():
            raise DatasetError(f"{place} lists {line.strip()}, which does not exist; looked for {image}")
        yield image


def _document(path: Path, folder: Path, images: Sequence[Path], names: dict[int, str]) -> Document:
    sizes: dict[Path, tuple[int, int]] = {}
    unreadable: list[Path] = []
    for image in images:
        try:
            sizes[image] = read_size(image)
        except DatasetError:
            unreadable.append(image)
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
    labels = [_labels_of(image) for image in images]
    if not any(labels):
        raise DatasetError(
            f"{path}: none of the {len(images)} images in {folder} has labels; looked for {_places_of(images[0])[0]}"
        )
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


def _places_of(image: Path) -> list[Path]:
    """The files in which the labels of an image may be, most likely first."""
    parts = list(image.with_suffix(".txt").parts)
    backwards = parts[::-1]
    if "images" in backwards[1:]:
        parts[len(parts) - 1 - backwards.index("images", 1)] = "labels"
    return [Path(*parts), image.with_suffix(".txt")]


def _labels_of(image: Path) -> Path | None:
    return next((place for place in _places_of(image) if place.is_file()), None)


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
