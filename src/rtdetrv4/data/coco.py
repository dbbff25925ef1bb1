"""COCO's object detection format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtdetrv4.data.document import Document, count_of, some_of
from rtdetrv4.errors import DatasetError


def read_document(path: Path) -> Document:
    """Read one COCO file.

    Raises:
        DatasetError: the file is missing or damaged, or contradicts itself.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; check the path of the annotations") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "is the download or export complete?"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text; export the annotations again") from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path}: expected an object with images, annotations and categories; got a {type(content).__name__}"
        )
    for key in ("images", "annotations", "categories"):
        rows = content.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DatasetError(
                f'{path}: expected a list of objects under "{key}"; got {type(rows).__name__} '
                f"(its keys: {', '.join(content) or 'none'}); is it in COCO's object detection format?"
            )
    images, annotations = content["images"], content["annotations"]
    if not images:
        raise DatasetError(f"{path} lists no images")

    image_ids = _unique_ids(images, path, "images")
    categories = dict(
        zip(_unique_ids(content["categories"], path, "categories"), _category_names(content, path), strict=True)
    )
    position = {image_id: index for index, image_id in enumerate(image_ids)}
    for annotation in annotations:
        if not _is_key(annotation.get("image_id"), position):
            raise DatasetError(
                f"{path}: annotation {annotation.get('id')} belongs to image {annotation.get('image_id')!r}, which is "
                'not under "images"; add the image or delete its annotations'
            )
        if not _is_key(annotation.get("category_id"), categories):
            raise DatasetError(
                f"{path}: annotation {annotation.get('id')} has category {annotation.get('category_id')!r}, which is "
                f'not under "categories" ({some_of(categories)}); add the category or correct the annotation'
            )
    boxes = [_numbers(annotation.get("bbox"), 4) for annotation in annotations]
    return Document(
        path=path,
        image_ids=np.array(image_ids, dtype=np.int64),
        file_names=[_file_name(image, path) for image in images],
        sizes_hw=np.array([_size_hw(image) for image in images], dtype=np.int64),
        categories=categories,
        parents=frozenset(
            row["supercategory"]
            for row in content["categories"]
            if isinstance(row.get("supercategory"), str) and row["supercategory"] != row.get("name")
        ),
        annotation_ids=[annotation.get("id") for annotation in annotations],
        image_index=np.array([position[annotation["image_id"]] for annotation in annotations], dtype=np.int64),
        category_ids=np.array([annotation["category_id"] for annotation in annotations], dtype=np.int64),
        boxes_xywh_px=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        is_crowd=np.array([bool(annotation.get("iscrowd")) for annotation in annotations], dtype=np.bool_),
        areas=np.array([_numbers([annotation.get("area")], 1)[0] for annotation in annotations], dtype=np.float64),
        box_format='"bbox" should be [left, top, width, height] in pixels',
    )


def _is_key(value: Any, table: Mapping[int, Any]) -> bool:
    """Whether `value` is a number, and one of the keys of `table`; lists cannot be looked up."""
    return isinstance(value, (int, float)) and value in table


def _unique_ids(rows: Sequence[Mapping[str, Any]], path: Path, key: str) -> list[int]:
    ids = [row.get("id") for row in rows]
    for value in ids:
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
            raise DatasetError(f'{path}: every entry of "{key}" needs a whole number as id; got {value!r}')
    repeated = [value for value, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DatasetError(
            f'{path}: {count_of(len(repeated), "id occurs", "ids occur")} more than once under "{key}" (first: '
            f"{repeated[0]}), so annotations cannot be assigned; give every entry an id of its own (were two exports "
            "merged by hand?)"
        )
    return ids  # pyright: ignore[reportReturnType]


def _category_names(content: Mapping[str, Any], path: Path) -> list[str]:
    rows = content["categories"]
    if not rows:
        raise DatasetError(f'{path} has an empty "categories" list; list the classes in it')
    names = [row.get("name") for row in rows]
    if not all(isinstance(name, str) and name for name in names):
        raise DatasetError(f'{path}: every entry of "categories" needs a name; got {names!r}')
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        ids = ", ".join(str(row["id"]) for row in rows if row["name"] == repeated[0])
        raise DatasetError(
            f'{path}: the class name "{repeated[0]}" is used by several categories (ids {ids}); '
            "merge them into one or rename them"
        )
    return names


def _file_name(image: Mapping[str, Any], path: Path) -> str:
    """The `file_name` of an image as it stands there; `layouts` finds the file, inside the data set's folder only."""
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise DatasetError(f"{path}: image {image.get('id')} has no file_name")
    return name


def _size_hw(image: Mapping[str, Any]) -> tuple[int, int]:
    height, width = _numbers([image.get("height"), image.get("width")], 2)
    return (int(height), int(width)) if height >= 1 and width >= 1 else (0, 0)


def _numbers(values: Any, count: int) -> Sequence[float]:
    """`values` if these are `count` finite numbers, otherwise NaNs."""
    valid = isinstance(values, list) and len(values) == count
    if valid and all(isinstance(value, (int, float)) and abs(value) < 1e12 for value in values):
        return values
    return [np.nan] * count
