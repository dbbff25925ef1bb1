"""COCO's object detection format."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtdetrv4.data.document import Document, Form, Origin, count_of, some_of
from rtdetrv4.data.faults import Faults, Unit, stop
from rtdetrv4.data.records import MAX_LEFT_OUT_SHARE
from rtdetrv4.data.text import printable
from rtdetrv4.errors import DatasetError, shown
from rtdetrv4.input_files import read_file
from rtdetrv4.json_text import load_json

_Numbered = tuple[int, dict[str, Any]]
"""An entry of a list, with its number from 1."""
MAX_BYTES = 2**33
"""Of a file, which takes several times as much memory: two million images of Open Images have 5 GB."""
MAX_NUMBER = 1e12
MAX_SIDE = 2**31 - 1
MAX_DIGITS = 19
"""Ids of more digits stay text, so that 64 bits suffice for the others."""


def read_document(path: Path, faults: Faults | None = None) -> Document:
    """Read one COCO file.

    Args:
        path: the file.
        faults: collects what is wrong with single entries, instead of raising at the first one.

    Raises:
        DatasetError: the file is missing or damaged, or contradicts itself.
    """
    try:
        content = load_json(read_file(path, MAX_BYTES))
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
    except ValueError as error:  # a number of thousands of digits, lists in lists in lists
        raise DatasetError(f"{path} cannot be read: {error}; export the annotations again") from error
    except MemoryError as error:
        raise DatasetError(f"{path} does not fit into memory; split it into several files") from error
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
    images, image_keys = _with_unique_keys(images, path, "images", faults)
    categories, category_keys = _with_unique_keys(categories, path, "categories", faults)
    images, image_keys = _with_file_names(images, image_keys, path, faults)
    image_ids = _numbered(image_keys, "image", problems)
    category_ids = _numbered(category_keys, "category", problems)
    names = _category_names(categories, path, problems)
    position: dict[Any, int] = {key: index for index, key in enumerate(image_keys)}
    id_of: dict[Any, int] = dict(zip(category_keys, category_ids, strict=True))
    numbered = _of_listed_images(rows_of["annotations"], position, path, problems, faults)
    numbered = _of_known_categories(numbered, id_of, path, faults)
    annotations = [annotation for _, annotation in numbered]
    boxes = [_box(annotation) for annotation in annotations]
    from_polygons = np.array(
        [
            annotation.get("bbox") in (None, []) and box[0] == box[0]
            for annotation, box in zip(annotations, boxes, strict=True)
        ],
        dtype=np.bool_,
    )
    if num := int(from_polygons.sum()):
        problems.append(f"{count_of(num, 'box', 'boxes')} drawn around polygons: no bbox is given")
    return Document(
        path=path,
        image_ids=np.array(image_ids, dtype=np.int64),
        file_names=[image["file_name"] for image in images],
        sizes_hw=np.array([_size_hw(image) for image in images], dtype=np.int64).reshape(-1, 2),
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
        origin=Origin(
            files=(path,) * len(images),
            unit="annotations",
            numbers=np.array([number for number, _ in numbered], dtype=np.int64),
            forms=np.where(from_polygons, Form.POLYGON, Form.BOX).astype(np.uint8),
        ),
    )


def _of_listed_images(
    annotations: list[dict[str, Any]],
    position: Mapping[Any, int],
    path: Path,
    problems: list[str],
    faults: Faults | None,
) -> list[_Numbered]:
    """The annotations whose image is listed; a few strays, of deleted images, are left out."""
    kept: list[_Numbered] = []
    strays: list[_Numbered] = []
    for number, annotation in enumerate(annotations, start=1):
        (kept if _key(annotation.get("image_id")) in position else strays).append((number, annotation))
    if not strays:
        return kept
    num_strays, (_, stray) = len(strays), strays[0]
    if num_strays > MAX_LEFT_OUT_SHARE * len(annotations):
        error = DatasetError(
            f"{path}: annotation {shown(stray.get('id'))} belongs to image {shown(stray.get('image_id'))}, which is "
            f'not under "images", and so do {num_strays} of {len(annotations)}; add the images or delete their '
            "annotations"
        )
        stop(error, faults)
    if faults is not None:
        for number, each in strays:
            what = f"annotation {shown(each.get('id'))} of image {shown(each.get('image_id'))}, which is not listed"
            faults.add("unlisted image", path, "annotations", number, what)
    problems.append(
        f"{count_of(num_strays, 'annotation', 'annotations')} left out: of images that are not listed (first: "
        f"annotation {shown(stray.get('id'))} of image {shown(stray.get('image_id'))})"
    )
    return kept


def _of_known_categories(
    annotations: list[_Numbered], known: Mapping[Any, int], path: Path, faults: Faults | None
) -> list[_Numbered]:
    kept: list[_Numbered] = []
    for number, annotation in annotations:
        if _key(annotation.get("category_id")) in known:
            kept.append((number, annotation))
            continue
        what = (
            f"annotation {shown(annotation.get('id'))} has category {shown(annotation.get('category_id'))}, which is "
        )
        error = DatasetError(
            f'{path}: {what}not under "categories" ({some_of(known) or "none"}); add the category or correct the '
            "annotation"
        )
        stop(error, faults)
        if faults is not None:
            faults.add("unknown class", path, "annotations", number, f"{what}not listed")
    return kept


def _key(value: Any) -> int | str | None:
    """An id, whether it is written as a number or as text; None if it is neither."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isdecimal() and len(text) < MAX_DIGITS else text or None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _with_unique_keys(
    rows: Sequence[Mapping[str, Any]], path: Path, key: Unit, faults: Faults | None
) -> tuple[list[Mapping[str, Any]], list[int | str]]:
    """The rows with their ids; of several rows of one id, where that does not raise, the first."""
    kept: list[Mapping[str, Any]] = []
    ids: list[int | str] = []
    for number, row in enumerate(rows, start=1):
        value = _key(row.get("id"))
        if value is None:
            error = DatasetError(
                f'{path}: every entry of "{key}" needs a number or text as id; got {shown(row.get("id"))}'
            )
            stop(error, faults)
            if faults is not None:
                faults.add("repeated id", path, key, number, f"an entry of {key} without an id")
            continue
        kept.append(row)
        ids.append(value)
    repeated = [value for value, count in Counter(ids).items() if count > 1]
    if repeated:
        error = DatasetError(
            f'{path}: {count_of(len(repeated), "id occurs", "ids occur")} more than once under "{key}" (first: '
            f"{repeated[0]}), so annotations cannot be assigned; give every entry an id of its own (were two exports "
            "merged by hand?)"
        )
        stop(error, faults)
        if faults is not None:
            return _without_repetitions(kept, ids, path, key, faults)
    return kept, ids


def _without_repetitions(
    rows: Sequence[Mapping[str, Any]], ids: Sequence[int | str], path: Path, key: Unit, faults: Faults
) -> tuple[list[Mapping[str, Any]], list[int | str]]:
    first: dict[int | str, Mapping[str, Any]] = {}
    for number, (id_, row) in enumerate(zip(ids, rows, strict=True), start=1):
        if first.setdefault(id_, row) is not row:
            faults.add("repeated id", path, key, number, f"the id {id_!r} once more under {key}")
    return list(first.values()), list(first)


def _with_file_names(
    images: Sequence[Mapping[str, Any]], ids: Sequence[int | str], path: Path, faults: Faults | None
) -> tuple[list[Mapping[str, Any]], list[int | str]]:
    """The images with a `file_name`; `layouts` finds the files, inside the folder of the data set only."""
    kept: list[Mapping[str, Any]] = []
    kept_ids: list[int | str] = []
    for number, (image, id_) in enumerate(zip(images, ids, strict=True), start=1):
        name = image.get("file_name")
        if isinstance(name, str) and name:
            kept.append(image)
            kept_ids.append(id_)
            continue
        stop(DatasetError(f"{path}: image {shown(image.get('id'))} has no file_name"), faults)
        if faults is not None:
            faults.add("missing image", path, "images", number, f"image {shown(image.get('id'))} has no file_name")
    return kept, kept_ids


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
        raise DatasetError(f'{path}: every entry of "categories" needs a name; got {shown(categories[0].get("name"))}')
    if nameless:
        counted = count_of(len(nameless), "category has", "categories have")
        problems.append(f"{counted} no name: called by the id ({some_of(nameless)})")
    return [name or str(row.get("id")) for row, name in zip(categories, names, strict=True)]


def _name(value: Any) -> str:
    """A class name, which may be written as a number; empty if there is none."""
    return printable(str(value).strip()) if isinstance(value, (str, int, float)) else ""


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
    """Whether a flag is set: a number other than 0, or text that says so.

    NaN, which pandas writes for a missing value, sets none.
    """
    if isinstance(value, str):
        return value.strip().lower() in {"1", "true", "yes", "1.0"}
    return bool(value) and not (isinstance(value, float) and math.isnan(value))
