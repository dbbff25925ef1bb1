"""YOLO data sets: a YAML file of class names, images, and text files of boxes relative to the image size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtdetrv4.data.decode import read_size as _size_hw
from rtdetrv4.data.document import Document, Origin, count_of, some_of
from rtdetrv4.data.faults import Faults, stop
from rtdetrv4.data.records import too_many
from rtdetrv4.data.text import printable
from rtdetrv4.data.yolo_labels import BOX_FORMAT, read_label_files
from rtdetrv4.errors import DatasetError, shown


def read_names(path: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """The class names by number, from the "names" of a YAML file or of whatever else lists them.

    Args:
        path: the file, for messages.
        content: its content; with "nc", the number of names is checked.

    Raises:
        DatasetError: the names are not text, or not as many as "nc" says.
    """
    given = content.get("names")
    listed: dict[Any, Any] = (
        dict(enumerate(given)) if isinstance(given, list) else given if isinstance(given, dict) else {}
    )
    numbered = {_number(key): name for key, name in listed.items()}
    names = {
        key: printable(str(name))
        for key, name in numbered.items()
        if isinstance(key, int) and isinstance(name, str | int) and not isinstance(name, bool)
    }
    if not names or len(names) < len(listed) or min(names) < 0 or not all(names.values()):
        raise DatasetError(f'{path}: "names" should list the classes as text, such as [cat, dog]; got {shown(given)}')
    count = content.get("nc", len(names))
    if _number(count) != len(names):
        raise DatasetError(f'{path}: "nc" is {shown(count)}, but "names" has {len(names)} classes; correct one of them')
    return names


def _number(value: Any) -> Any:
    """A number that was written in quotes, or the value itself."""
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value


def read_labels(
    path: Path,
    folder: Path,
    images: Sequence[Path],
    files: Sequence[Path | None],
    names: dict[int, str],
    keypoints: tuple[int, int] | None = None,
    faults: Faults | None = None,
) -> Document:
    """Read the annotations of one part.

    An image without labels is background. Polygons and rotated boxes become the axis-aligned boxes around them.

    Args:
        path: the file or folder that describes the data set, for messages.
        folder: what the file names of the images shall be relative to.
        images: the images.
        files: the label file of each image.
        names: the class names by number.
        keypoints: the number of key points and of values for each, if every box is followed by them.
        faults: collects what is wrong with single files and lines, instead of raising at the first one.

    Raises:
        DatasetError: images cannot be read, or a label is of an unknown class.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    unreadable: list[Path] = []
    for image in images:
        try:
            sizes[image] = _size_hw(image)
        except DatasetError:
            unreadable.append(image)
    if too_many(len(unreadable), len(images)):
        error = DatasetError(
            f"{len(unreadable)} of {len(images)} images in {folder} cannot be read, the first is {unreadable[0]}; "
            "replace or delete them"
        )
        if not sizes:
            raise error
        stop(error, faults)
    label_of = dict(zip(images, files, strict=True))
    images = list(sizes)
    label_files = tuple(label_of[image] for image in images)
    sizes_hw = np.array(list(sizes.values()), dtype=np.int64).reshape(-1, 2)
    labels = read_label_files(label_files, names, keypoints, faults, sizes_hw)
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
        origin=Origin(label_files, "line", labels.numbers, labels.forms),
    )
