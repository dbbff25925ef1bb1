"""YOLO data sets: a YAML file of class names, images, and text files of boxes relative to the image size."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtdetrv4.data.decode import read_size as _size_hw
from rtdetrv4.data.document import Document, count_of, some_of
from rtdetrv4.data.records import too_many
from rtdetrv4.data.yolo_labels import BOX_FORMAT, keypoint_shape, read_label_files
from rtdetrv4.errors import DatasetError
from rtdetrv4.runtime.sources import IMAGE_SUFFIXES

SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


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
    keypoints = keypoint_shape(path, content)
    return {split: _read_split(path, root, split, entry, names, keypoints) for split, entry in entries.items()}


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


def _read_split(
    path: Path, root: Path, split: str, entry: Any, names: dict[int, str], keypoints: tuple[int, int] | None
) -> tuple[Document, Path]:
    entries = entry if isinstance(entry, list) else [entry]
    if not entries or not all(isinstance(each, str) for each in entries):
        raise DatasetError(f'{path}: "{split}" should be a folder of images or a list of folders; got {entry!r}')
    places = [_place(path, root, split, each) for each in entries]
    images = [image for place in places for image in _images(place, root)]
    if not images:
        raise DatasetError(f'{path}: "{split}" has no images in {some_of(places)}')
    folder = Path(os.path.commonpath([root if place.is_file() else place for place in places]))
    return _document(path, folder, images, names, keypoints), folder


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


def _document(
    path: Path, folder: Path, images: Sequence[Path], names: dict[int, str], keypoints: tuple[int, int] | None
) -> Document:
    sizes: dict[Path, tuple[int, int]] = {}
    unreadable: list[Path] = []
    for image in images:
        try:
            sizes[image] = _size_hw(image)
        except DatasetError:
            unreadable.append(image)
    if too_many(len(unreadable), len(images)):
        raise DatasetError(
            f"{len(unreadable)} of {len(images)} images in {folder} cannot be read, the first is {unreadable[0]}; "
            "replace or delete them"
        )
    images = list(sizes)
    files = [_labels_of(image) for image in images]
    if not any(files):
        raise DatasetError(
            f"{path}: none of the {len(images)} images in {folder} has labels; looked for {_places_of(images[0])[0]}"
        )
    labels = read_label_files(files, names, keypoints)
    sizes_hw = np.array(list(sizes.values()), dtype=np.int64)
    left_out = f"{count_of(len(unreadable), 'image', 'images')} left out: cannot be read ({some_of(unreadable)})"
    return Document(
        path=path,
        image_ids=np.arange(len(images)),
        file_names=[image.relative_to(folder).as_posix() for image in images],
        sizes_hw=sizes_hw,
        categories=names,
        parents=frozenset(),
        annotation_ids=labels.where,
        image_index=labels.file_index,
        category_ids=labels.class_ids,
        boxes_xywh_px=labels.boxes_xywh * sizes_hw[labels.file_index][:, [1, 0, 1, 0]],
        is_crowd=np.zeros(len(labels.where), dtype=np.bool_),
        areas=np.full(len(labels.where), np.nan),
        box_format=BOX_FORMAT,
        problems=(left_out, *labels.problems) if unreadable else labels.problems,
        in_fractions=True,
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
