"""COCO's object detection format."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtdetrv4.data.document import Document, count_of, some_of
from rtdetrv4.data.records import MAX_LEFT_OUT_SHARE
from rtdetrv4.data.text import printable
from rtdetrv4.errors import DatasetError

MAX_NUMBER = 1e12
MAX_SIDE = 2**31 - 1
MAX_DIGITS = 19
"""Ids of more digits stay text, so that 64 bits suffice for the others."""


def read_document(path: Path) -> Document:
    """Read one COCO file.

    Raises:
        DatasetError: the file is missing or damaged, or contradicts itself.
    """
    try:
        content = json.loads(path.read_bytes())  # recognizes UTF-8 and UTF-16, with and without a byte order mark
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
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise DatasetError(f"{path} cannot be read: {error}; export the annotations again") from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path}: expected an object with images, annotations and categories; got a {type(content).__name__}"
        )
    # Test sets are published without annotations.
    rows_of = {"annotations": [], "categories": []} | {
        key: value for key, value in content.items() if value is not None
    }
    for key in ("images", "annotations", "categories"):
        rows = rows_of.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DatasetError(
                f'{path}: expected a list of objects under "{key}"; got {type(rows).__name__} '
                f"(its keys: {', '.join(content) or 'none'}); is it in COCO's object detection format?"
            )
    images, categories = rows_of["images"], rows_of["categories"]
    if not images:
        raise DatasetError(f"{path} lists no images")

    problems: list[str] = []
    image_keys = _unique_keys(images, path, "images")
    category_keys = _unique_keys(categories, path, "categories")
    image_ids = _numbered(image_keys, "image", problems)
    category_ids = _numbered(category_keys, "category", problems)
    names = _category_names(categories, path, problems)
    position: dict[Any, int] = {key: index for index, key in enumerate(image_keys)}
    id_of: dict[Any, int] = dict(zip(category_keys, category_ids, strict=True))
    annotations = _of_listed_images(rows_of["annotations"], position, path, problems)
    for annotation in annotations:
        if _key(annotation.get("category_id")) not in id_of:
            raise DatasetError(
                f"{path}: annotation {annotation.get('id')} has category {annotation.get('category_id')!r}, which is "
                f'not under "categories" ({some_of(id_of) or "none"}); add the category or correct the annotation'
            )
    boxes = [_box(annotation) for annotation in annotations]
    from_polygons = sum(
        annotation.get("bbox") in (None, []) and box[0] == box[0]
        for annotation, box in zip(annotations, boxes, strict=True)
    )
    if from_polygons:
        problems.append(f"{count_of(from_polygons, 'box', 'boxes')} drawn around polygons: no bbox is given")
    return Document(
        path=path,
        image_ids=np.array(image_ids, dtype=np.int64),
        file_names=[_file_name(image, path) for image in images],
        sizes_hw=np.array([_size_hw(image) for image in images], dtype=np.int64),
        categories=dict(zip(category_ids, names, strict=True)),
        parents=frozenset(
            parent.strip()
            for row, name in zip(categories, names, strict=True)
            if isinstance(parent := row.get("supercategory"), str) and parent.strip() != name
        ),
        annotation_ids=[annotation.get("id") for annotation in annotations],
        image_index=np.array([position[_key(annotation["image_id"])] for annotation in annotations], dtype=np.int64),
        category_ids=np.array([id_of[_key(annotation["category_id"])] for annotation in annotations], dtype=np.int64),
        boxes_xywh_px=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        is_crowd=np.array([_is_true(annotation.get("iscrowd")) for annotation in annotations], dtype=np.bool_),
        areas=np.array([_number(annotation.get("area")) for annotation in annotations], dtype=np.float64),
        box_format='"bbox" should be [left, top, width, height] in pixels',
        problems=tuple(problems),
    )


def _of_listed_images(
    annotations: list[dict[str, Any]], position: Mapping[Any, int], path: Path, problems: list[str]
) -> list[dict[str, Any]]:
    """The annotations whose image is listed; a few strays, of deleted images, are left out."""
    kept = [annotation for annotation in annotations if _key(annotation.get("image_id")) in position]
    num_strays = len(annotations) - len(kept)
    if not num_strays:
        return annotations
    stray = next(each for each in annotations if _key(each.get("image_id")) not in position)
    if num_strays > MAX_LEFT_OUT_SHARE * len(annotations):
        raise DatasetError(
            f"{path}: annotation {stray.get('id')} belongs to image {stray.get('image_id')!r}, which is not under "
            f'"images", and so do {num_strays} of {len(annotations)}; add the images or delete their annotations'
        )
    problems.append(
        f"{count_of(num_strays, 'annotation', 'annotations')} left out: of images that are not listed (first: "
        f"annotation {stray.get('id')} of image {stray.get('image_id')!r})"
    )
    return kept


def _key(value: Any) -> int | str | None:
    """An id, whether it is written as a number or as text; None if it is neither."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isdecimal() and len(text) < MAX_DIGITS else text or None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _unique_keys(rows: Sequence[Mapping[str, Any]], path: Path, key: str) -> list[int | str]:
    ids: list[int | str] = []
    for row in rows:
        value = _key(row.get("id"))
        if value is None:
            raise DatasetError(f'{path}: every entry of "{key}" needs a number or text as id; got {row.get("id")!r}')
        ids.append(value)
    repeated = [value for value, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DatasetError(
            f'{path}: {count_of(len(repeated), "id occurs", "ids occur")} more than once under "{key}" (first: '
            f"{repeated[0]}), so annotations cannot be assigned; give every entry an id of its own (were two exports "
            "merged by hand?)"
        )
    return ids


def _numbered(keys: Sequence[int | str], what: str, problems: list[str]) -> list[int]:
    """The ids, if they are numbers of at most 64 bits; otherwise the position of each, from 1."""
    ids = [key for key in keys if isinstance(key, int) and abs(key) < 2**63]
    if len(ids) == len(keys):
        return ids
    other = next(key for key in keys if not isinstance(key, int) or abs(key) >= 2**63)
    problems.append(
        f"the {what} ids are no whole numbers (such as {other!r}): results count from 1, in the file's order"
    )
    return list(range(1, len(keys) + 1))


def _category_names(categories: Sequence[Mapping[str, Any]], path: Path, problems: list[str]) -> list[str]:
    if not categories:
        return []
    names = [_name(row.get("name")) for row in categories]
    nameless = [row.get("id") for row, name in zip(categories, names, strict=True) if not name]
    if len(nameless) == len(names):
        raise DatasetError(f'{path}: every entry of "categories" needs a name; got {categories[0].get("name")!r}')
    if nameless:
        counted = count_of(len(nameless), "category has", "categories have")
        problems.append(f"{counted} no name: called by the id ({some_of(nameless)})")
    return [name or str(row.get("id")) for row, name in zip(categories, names, strict=True)]


def _name(value: Any) -> str:
    """A class name, which may be written as a number; empty if there is none."""
    return printable(str(value).strip()) if isinstance(value, (str, int, float)) else ""


def _file_name(image: Mapping[str, Any], path: Path) -> str:
    """The `file_name` of an image as it stands there; `layouts` finds the file, inside the data set's folder only."""
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise DatasetError(f"{path}: image {image.get('id')} has no file_name")
    return name


def _size_hw(image: Mapping[str, Any]) -> tuple[int, int]:
    height, width = _number(image.get("height")), _number(image.get("width"))
    return (int(height), int(width)) if 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE else (0, 0)


def _box(annotation: Mapping[str, Any]) -> Sequence[float]:
    """The bbox, or that of the polygons if there is none; NaNs if there are not four numbers."""
    given = annotation.get("bbox")
    if isinstance(given, list) and len(given) == 4:
        values = [_number(value) for value in given]
    elif given in (None, []):
        values = _around(annotation.get("segmentation"))
    else:
        values = []
    return values if len(values) == 4 and not any(map(math.isnan, values)) else [math.nan] * 4


def _around(polygons: Any) -> list[float]:
    """Left, top, width and height of polygons [[x, y, x, y, …], …]; nothing for other shapes."""
    if not isinstance(polygons, list) or not all(isinstance(each, list) and len(each) >= 6 for each in polygons):
        return []
    x = [_number(value) for each in polygons for value in each[::2]]
    y = [_number(value) for each in polygons for value in each[1::2]]
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)] if x and not any(map(math.isnan, x + y)) else []


def _number(value: Any) -> float:
    """A number, which may be written as text; NaN if it is none, or not finite."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return math.nan
    return float(value) if isinstance(value, (int, float)) and abs(value) < MAX_NUMBER else math.nan


def _is_true(value: Any) -> bool:
    """Whether a flag is set: a number other than 0, or text that says so."""
    return value.strip().lower() in {"1", "true", "yes", "1.0"} if isinstance(value, str) else bool(value)
