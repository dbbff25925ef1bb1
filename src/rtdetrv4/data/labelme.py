"""LabelMe data sets: a JSON file of shapes for each image."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtdetrv4.data.document import Document, Form, Origin, count_of
from rtdetrv4.data.faults import Faults, stop
from rtdetrv4.data.text import printable, read_text
from rtdetrv4.data.tree import Tree, parts_of, split_of
from rtdetrv4.data.voc import note_other_image
from rtdetrv4.errors import DatasetError, shown
from rtdetrv4.json_text import load_json

BOX_FORMAT = '"points" should be a list of [x, y] in pixels'
AREALESS = ("point", "points", "line", "linestrip")


def read_labelme(files: Sequence[str], tree: Tree, faults: Faults | None = None) -> Document:
    """Read the annotations of one part; its file names are relative to the folder of the data set.

    Every shape becomes the box around it, shapes of one class and group (`group_id`) in a file the box around all of
    them; points and lines are left out. Classes are numbered from 0 in the order of their names.

    Args:
        files: the JSON files.
        tree: the files of the data set.
        faults: collects what is wrong with single files and shapes, instead of raising at the first one.

    Raises:
        DatasetError: a file is not LabelMe's, or a shape has no label.
    """
    files, contents = _parse_all(files, tree, faults)
    shapes = [
        (index, number, label, box)
        for index, (file, content) in enumerate(zip(files, contents, strict=True))
        for number, label, box in _boxes(tree.path(file), content["shapes"], faults)
    ]
    without_area = [
        (file, number, shape["shape_type"])
        for file, content in zip(files, contents, strict=True)
        for number, shape in enumerate(content["shapes"], start=1)
        if shape.get("shape_type") in AREALESS
    ]
    num_left_out = len(without_area)
    if faults is not None:
        for file, number, kind in without_area:
            faults.add("no area", tree.path(file), "shapes", number, f"a {kind}")
    names = sorted({label for _, _, label, _ in shapes})
    number_of = {name: number for number, name in enumerate(names)}
    images = [_image(file, content, tree) for file, content in zip(files, contents, strict=True)]
    if faults is not None:
        for file, content, image in zip(files, contents, images, strict=True):
            note_other_image(str(content.get("imagePath") or ""), image, tree.path(file), faults)
    return Document(
        path=tree.path(files[0]).parent,
        image_ids=np.arange(len(files)),
        file_names=images,
        sizes_hw=np.array([_size_hw(content) for content in contents], dtype=np.int64),
        categories=dict(enumerate(names)),
        parents=frozenset(),
        annotation_ids=[f"{Path(files[index]).name}:{number}" for index, number, _, _ in shapes],
        image_index=np.array([index for index, _, _, _ in shapes], dtype=np.int64),
        category_ids=np.array([number_of[label] for _, _, label, _ in shapes], dtype=np.int64),
        boxes_xywh_px=np.array([box for _, _, _, box in shapes], dtype=np.float64).reshape(-1, 4),
        is_crowd=np.zeros(len(shapes), dtype=np.bool_),
        areas=np.full(len(shapes), math.nan),
        box_format=BOX_FORMAT,
        problems=(f"{count_of(num_left_out, 'point or line', 'points or lines')} left out: no area",)
        if num_left_out
        else (),
        origin=Origin(
            files=tuple(map(tree.path, files)),
            unit="shapes",
            numbers=np.array([number for _, number, _, _ in shapes], dtype=np.int64),
            forms=np.array(
                [_form(contents[index]["shapes"][number - 1]) for index, number, _, _ in shapes], dtype=np.uint8
            ),
        ),
    )


def _form(shape: Mapping[str, Any]) -> Form:
    return Form.BOX if shape.get("shape_type") == "rectangle" else Form.POLYGON


def _parse_all(files: Sequence[str], tree: Tree, faults: Faults | None) -> tuple[Sequence[str], list[dict[str, Any]]]:
    """The files with their content; those that cannot be parsed are left out where that does not raise."""
    contents: dict[str, dict[str, Any]] = {}
    for file in files:
        try:
            contents[file] = _parse(tree.path(file))
        except DatasetError as error:
            if faults is None:
                raise
            stop(error, faults)
            faults.add("damaged file", tree.path(file), "file", 0, "no LabelMe file")
    if not contents and faults is not None and faults.stop is not None:
        raise faults.stop
    return list(contents), list(contents.values())


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = load_json(read_text(path))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is not valid JSON: {error}; is the download or export complete?") from error
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(f"{path} is not valid JSON: {error}; is the download or export complete?") from error
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DatasetError(f'{path} is not a LabelMe file: it has no list of objects under "shapes"')
    content.pop("imageData", None)  # a copy of the image, megabytes of base64
    return content


def _boxes(
    path: Path, shapes: Sequence[Mapping[str, Any]], faults: Faults | None
) -> Iterator[tuple[int, str, tuple[float, float, float, float]]]:
    """Number, label, and left, top, width and height of each object; NaNs if its points are none."""
    objects: dict[Any, tuple[int, str, list[tuple[float, float]]]] = {}
    for number, shape in enumerate(shapes, start=1):
        if shape.get("shape_type") in AREALESS:
            continue
        label = shape.get("label")
        if not isinstance(label, str | int) or isinstance(label, bool) or not str(label).strip():
            stop(DatasetError(f'{path}: shape {number} has no text as "label"; got {shown(label)}'), faults)
            if faults is not None:
                faults.add("no class", path, "shapes", number, f"shape {number} has the label {shown(label)}")
            continue
        label = printable(str(label).strip())
        group = shape.get("group_id")
        key = (label, group) if isinstance(group, int | str) else number
        objects.setdefault(key, (number, label, []))[2].extend(_corners(shape))
    for number, label, points in objects.values():
        if any(math.isnan(value) for point in points for value in point):
            yield number, label, (math.nan, math.nan, math.nan, math.nan)
            continue
        left, top = min(x for x, _ in points), min(y for _, y in points)
        yield number, label, (left, top, max(x for x, _ in points) - left, max(y for _, y in points) - top)


def _corners(shape: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Points whose bounding box is that of the shape."""
    given = shape.get("points")
    points = [tuple(map(_number, point)) for point in given if _is_pair(point)] if isinstance(given, list) else []
    if not points or not isinstance(given, list) or len(points) < len(given):
        return [(math.nan, math.nan)]
    if shape.get("shape_type") == "circle" and len(points) == 2:  # its center, and a point on it
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return [(x - radius, y - radius), (x + radius, y + radius)]
    return points  # pyright: ignore[reportReturnType]


def _is_pair(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
    return float(value) if is_number else math.nan


def _image(file: str, content: Mapping[str, Any], tree: Tree) -> str:
    """The image that "imagePath" names, or, if it was renamed, the one called like the JSON file."""
    folder = file.rpartition("/")[0]
    named = content.get("imagePath")
    annotated = named.replace("\\", "/") if isinstance(named, str) else ""
    stem = file.rpartition(".")[0]
    if annotated and (image := tree.find_image(f"{folder}/{annotated}")):
        return image
    for name in (annotated, stem):
        if parts_of(name) and (image := tree.nearest(name, (folder,), split=split_of(folder))):
            return image
    return "/".join(parts_of(annotated)) or stem


def _size_hw(content: Mapping[str, Any]) -> tuple[int, int]:
    height, width = _number(content.get("imageHeight")), _number(content.get("imageWidth"))
    return (int(height), int(width)) if height >= 1 and width >= 1 else (0, 0)
