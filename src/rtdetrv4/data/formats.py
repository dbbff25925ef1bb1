"""Annotations on disk to `Source`: COCO files in the layouts people have, checked once so that nothing later has to.

What harms silently is refused with one `DatasetError` (an annotation of an unknown class, two classes of one name,
images that are not there). What can be mended without guessing is mended, counted and told in `Source.problems`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageOps

from rtdetrv4.data.records import Record, RecordTable, Source, Splits
from rtdetrv4.errors import DatasetError, did_you_mean
from rtdetrv4.types import ClassMap

__all__ = ["Record", "RecordTable", "Source", "Splits", "read_coco", "read_splits"]

ROBOFLOW_FILE = "_annotations.coco.json"
SPLIT_FOLDERS = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}
CLIP_TOLERANCE = 1.0
"""Pixels a box may stand out of its image before clipping it is worth a word; exporters round."""


def read_splits(path: str | Path, classes: ClassMap | None = None) -> Splits:
    """Read a data set: a folder in Roboflow's or COCO's layout, or a YAML file that names COCO files.

    ```
    folder/train/_annotations.coco.json     folder/annotations/instances_train*.json       train: annotations/a.json
    folder/valid/_annotations.coco.json     folder/annotations/instances_val*.json         val: annotations/b.json
    (images beside the file)                folder/images/train*/, folder/train*/ or ...   images: photos
    ```

    All splits share the classes of the training split, matched by *name*: category ids and their order may differ.

    Args:
        path: the folder or the YAML file.
        classes: label by these classes (those of a trained model) instead of the training split's own.

    Raises:
        DatasetError: nothing usable there, or annotations that cannot be trusted.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        files = _find_files(root)
    elif root.suffix.lower() in {".yaml", ".yml"}:
        files = _files_from_yaml(root)
    elif root.exists():
        raise DatasetError(f"{root} is neither a folder nor a .yaml file; give the folder that holds train/ and valid/")
    else:
        raise DatasetError(f"{root} does not exist; give the folder of the data set or a .yaml file that describes it")

    documents = {split: _read_document(json_path) for split, (json_path, _) in files.items()}
    if classes is None:
        owner = documents.get("train") or next(iter(documents.values()))
        classes = _class_map(owner, documents.values())
    sources = {split: _build_source(documents[split], files[split][1], classes) for split in files}
    return Splits(sources.get("train"), sources.get("val"), sources.get("test"))


def read_coco(json_path: str | Path, image_dir: str | Path | None = None, classes: ClassMap | None = None) -> Source:
    """Read one COCO file.

    Args:
        json_path: annotations in COCO's object detection format.
        image_dir: the folder that `file_name` entries are relative to; by default the folder of `json_path`.
        classes: label by these classes, matched by name, instead of the file's own.

    Raises:
        DatasetError: the file is missing or broken, contradicts itself, or lists images that are not there.
    """
    document = _read_document(Path(json_path).expanduser())
    folder = document.path.parent if image_dir is None else Path(image_dir).expanduser()
    return _build_source(document, (folder,), classes or _class_map(document, [document]))


# Where the files are ------------------------------------------------------------------------------------------------

_Files = tuple[Path, tuple[Path, ...]]
"""An annotation file and the folders its images may be in, likeliest first."""


def _find_files(root: Path) -> dict[str, _Files]:
    files: dict[str, _Files] = {}
    for split, folders in SPLIT_FOLDERS.items():
        roboflow = [root / folder / ROBOFLOW_FILE for folder in folders if (root / folder / ROBOFLOW_FILE).is_file()]
        usual = sorted((root / "annotations").glob(f"instances_{split}*.json"))
        found = roboflow or usual or sorted((root / "annotations").glob(f"{split}*.json"))
        if len(found) > 1:
            names = ", ".join(str(file.relative_to(root)) for file in found)
            raise DatasetError(
                f"{root} has {len(found)} files for its {split} split ({names}); "
                f'name the right ones in a .yaml file: "{split}: {found[0].relative_to(root)}", "images: ..."'
            )
        if roboflow:
            files[split] = (roboflow[0], (roboflow[0].parent,))
        elif found:
            stem = found[0].stem.removeprefix("instances_")
            folders = (f"images/{stem}", stem, f"images/{split}", split, "images", ".")
            files[split] = (found[0], tuple(root / folder for folder in folders))
    if not files:
        raise DatasetError(_nothing_found(root))
    return files


def _nothing_found(root: Path) -> str:
    expected = f"expected train/{ROBOFLOW_FILE} and valid/{ROBOFLOW_FILE}, or annotations/instances_train*.json"
    if (root / ROBOFLOW_FILE).is_file():
        return f"{root} is one split of a data set; give its parent folder {root.parent}"
    if any(root.glob("*.yaml")) or (root / "labels").is_dir():
        return (
            f"{root} looks like a YOLO data set, and only COCO annotations are read: {expected}. Convert it, for "
            "example with supervision: sv.DetectionDataset.from_yolo(...).as_coco(...)"
        )
    if (root / "Annotations").is_dir() and any((root / "Annotations").glob("*.xml")):
        return (
            f"{root} looks like a Pascal VOC data set, and only COCO annotations are read: {expected}. Convert it, for "
            "example with supervision: sv.DetectionDataset.from_pascal_voc(...).as_coco(...)"
        )
    entries = sorted(entry.name for entry in root.iterdir())
    return f"{root} holds no COCO annotations: {expected}; got {', '.join(entries[:8]) or 'an empty folder'}"


def _files_from_yaml(path: Path) -> dict[str, _Files]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    example = '"train: annotations/train.json", "val: annotations/val.json", "images: photos"'
    if not isinstance(content, dict):
        raise DatasetError(f"{path} should be a mapping such as {example}; got {type(content).__name__}")
    if "names" in content or "nc" in content:
        raise DatasetError(
            f"{path} describes a YOLO data set, and only COCO annotations are read; convert it, for example with "
            "supervision: sv.DetectionDataset.from_yolo(...).as_coco(...)"
        )
    known = [*SPLIT_FOLDERS, "images"]
    for key in content:
        if key not in known:
            raise DatasetError(
                f'{path}: unknown entry "{key}"; known: {", ".join(known)}.{did_you_mean(str(key), known)}'
            )

    images = content.pop("images", None)
    files: dict[str, _Files] = {}
    for split, entry in content.items():
        if not isinstance(entry, str) or not entry.endswith(".json"):
            raise DatasetError(f'{path}: "{split}" should name a COCO .json file; got {entry!r}; for example {example}')
        folder = images.get(split) if isinstance(images, Mapping) else images
        if folder is not None and not isinstance(folder, str):
            raise DatasetError(f'{path}: "images" should be a folder, or one folder per split; got {images!r}')
        json_path = path.parent / entry
        files[split] = (json_path, (json_path.parent if folder is None else path.parent / folder,))
    if not files:
        raise DatasetError(f"{path} names no annotation file; expected {example}")
    return files


# What the files say --------------------------------------------------------------------------------------------------


class _Document(NamedTuple):
    """A COCO file as columns, checked for contradictions; boxes are as given."""

    path: Path
    image_ids: NDArray[np.int64]
    file_names: list[str]
    sizes_hw: NDArray[np.int64]
    """(M, 2); rows of zeros where the file gives no size."""
    categories: dict[int, str]
    parents: frozenset[str]
    """Names that stand as supercategory of another class."""
    annotation_ids: list[Any]
    image_index: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes_xywh_px: NDArray[np.float64]
    """(N, 4); NaN where the box is not four numbers."""
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    """(N,); NaN where the file gives none."""


def _read_document(path: Path) -> _Document:
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
                f"(its keys: {', '.join(content) or 'none'}); is this COCO's object detection format?"
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
                f'not under "categories" ({_some(categories)}); add the category or correct the annotation'
            )
    boxes = [_numbers(annotation.get("bbox"), 4) for annotation in annotations]
    return _Document(
        path=path,
        image_ids=np.array(image_ids, dtype=np.int64),
        file_names=[_safe_name(image, path) for image in images],
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
    )


def _is_key(value: Any, table: Mapping[int, Any]) -> bool:
    """Whether `value` is a number (lists cannot be looked up) that stands in `table`."""
    return isinstance(value, (int, float)) and value in table


def _unique_ids(rows: Sequence[Mapping[str, Any]], path: Path, key: str) -> list[int]:
    ids = [row.get("id") for row in rows]
    for value in ids:
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
            raise DatasetError(f'{path}: every entry of "{key}" needs a whole number as id; got {value!r}')
    repeated = [value for value, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DatasetError(
            f'{path}: {len(repeated)} ids stand more than once under "{key}" (first: {repeated[0]}), so annotations '
            "cannot be told apart; give every entry its own id (two exports merged by hand?)"
        )
    return ids  # pyright: ignore[reportReturnType]


def _category_names(content: Mapping[str, Any], path: Path) -> list[str]:
    rows = content["categories"]
    if not rows:
        raise DatasetError(f'{path} has an empty "categories" list; name the classes there')
    names = [row.get("name") for row in rows]
    if not all(isinstance(name, str) and name for name in names):
        raise DatasetError(f'{path}: every entry of "categories" needs a name; got {names!r}')
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        ids = ", ".join(str(row["id"]) for row in rows if row["name"] == repeated[0])
        raise DatasetError(
            f'{path}: the class name "{repeated[0]}" stands for several categories (ids {ids}); '
            "merge them into one or rename them"
        )
    return names


def _safe_name(image: Mapping[str, Any], path: Path) -> str:
    """The `file_name` of an image with forward slashes; one that leaves the image folder is refused."""
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise DatasetError(f"{path}: image {image.get('id')} has no file_name")
    posix = PurePosixPath(name.replace("\\", "/"))
    if posix.is_absolute() or ".." in posix.parts or ":" in posix.parts[0]:
        raise DatasetError(
            f"{path}: the file_name of image {image.get('id')} leaves the image folder: {name!r}; "
            "make it relative to the folder of the images"
        )
    return str(posix)


def _size_hw(image: Mapping[str, Any]) -> tuple[int, int]:
    height, width = _numbers([image.get("height"), image.get("width")], 2)
    return (int(height), int(width)) if height >= 1 and width >= 1 else (0, 0)


def _numbers(values: Any, count: int) -> Sequence[float]:
    """`values` if it is `count` finite numbers, else NaNs."""
    valid = isinstance(values, list) and len(values) == count
    if valid and all(isinstance(value, (int, float)) and abs(value) < 1e12 for value in values):
        return values
    return [np.nan] * count


def _class_map(owner: _Document, documents: Iterable[_Document]) -> ClassMap:
    """The categories of `owner` by ascending id, without placeholders.

    Roboflow writes the project's name as category 0, the parent of all others, and never uses it: it would be a class
    that is trained and never seen. A category is left out if it is a parent of others and no split has a box of it.
    """
    used = {
        document.categories[category_id]
        for document in documents
        for category_id in np.unique(document.category_ids).tolist()
    }
    kept = sorted((id_, name) for id_, name in owner.categories.items() if name in used or name not in owner.parents)
    if not kept:
        raise DatasetError(
            f"{owner.path} has no class: its categories ({_some(owner.categories)}) are parents of nothing"
        )
    return ClassMap(names=tuple(name for _, name in kept), category_ids=tuple(id_ for id_, _ in kept))


# From columns to records ---------------------------------------------------------------------------------------------


def _build_source(document: _Document, folders: Sequence[Path], classes: ClassMap) -> Source:
    problems: list[str] = []
    image_dir = _check_images(document, folders)
    sizes_hw = _fill_sizes(document, image_dir, problems)
    labels = _labels(document, classes, problems)

    xywh = document.boxes_xywh_px
    height, width = sizes_hw[document.image_index].astype(np.float64).T
    limit = np.stack([width, height, width, height], axis=1)
    given = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes = np.clip(given, 0.0, limit).astype(np.float32)

    unreadable = np.any(np.isnan(xywh), axis=1)
    flat = ~unreadable & np.any(xywh[:, 2:] <= 0, axis=1)
    outside = ~unreadable & ~flat & np.any(boxes[:, 2:] <= boxes[:, :2], axis=1)
    keep = ~(unreadable | flat | outside)
    clipped = keep & (np.abs(boxes - given).max(axis=1, initial=0.0) > CLIP_TOLERANCE)
    box_areas = np.prod(boxes[:, 2:].astype(np.float64) - boxes[:, :2], axis=1)
    own_area = ~np.isnan(document.areas) & (document.areas > 0)
    areas = np.where(own_area, document.areas, box_areas)
    areas = np.where(clipped, np.minimum(areas, box_areas), areas)

    def tell(affected: NDArray[np.bool_], what: str) -> None:
        if affected.any():
            first = int(np.flatnonzero(affected)[0])
            where = f"annotation {document.annotation_ids[first]} of {document.file_names[document.image_index[first]]}"
            problems.append(f"{_count(int(affected.sum()), 'box', 'boxes')} {what} (first: {where})")

    tell(unreadable, "dropped: not four finite numbers")
    tell(flat, "dropped: no width or no height")
    tell(outside, "dropped: outside of the image")
    tell(clipped, "clipped to the image")
    order = np.flatnonzero(keep)
    order = order[np.argsort(document.image_index[order], kind="stable")]
    owners = document.image_index[order]
    identity = np.column_stack([owners, labels[order], boxes[order]])
    repeated = len(identity) - len(np.unique(identity, axis=0))
    if repeated:
        problems.append(f"{_count(repeated, 'box', 'boxes')} given twice and kept: equal boxes teach double detections")
    twins = len(document.file_names) - len(set(document.file_names))
    if twins:
        problems.append(
            f"{_count(twins, 'image', 'images')} listed again under another id: each shows only its own boxes"
        )
    if document.annotation_ids and not len(order):
        raise DatasetError(
            f"{document.path} has {len(document.annotation_ids)} annotations and not one usable box: {problems[-1]}; "
            '"bbox" should be [left, top, width, height] in pixels'
        )
    counts = np.bincount(labels[order], minlength=classes.num_classes)
    if len(order) and not counts.all():
        unseen = [name for name, count in zip(classes.names, counts, strict=True) if not count]
        problems.append(
            f"{len(unseen)} of {_count(classes.num_classes, 'class', 'classes')} without a box: {_some(unseen)}"
        )

    names = np.array([name.encode() for name in document.file_names])
    table = RecordTable(
        image_ids=document.image_ids,
        file_names=names,
        sizes_hw=sizes_hw.astype(np.int32),
        first_box=np.searchsorted(owners, np.arange(len(names) + 1)),
        boxes_xyxy_px=boxes[order],
        labels=labels[order],
        is_crowd=document.is_crowd[order],
        areas=areas[order],
    )
    return Source(image_dir, table, classes, table.fingerprint(classes), tuple(problems))


def _check_images(document: _Document, folders: Sequence[Path]) -> Path:
    """The folder that holds the images, after making sure that it holds them all."""
    first = document.file_names[0]
    image_dir = next((folder for folder in folders if (folder / first).is_file()), None)
    if image_dir is None:
        image_dir = next((folder for folder in folders if folder.is_dir()), folders[0])

    # One listing per folder instead of one stat per file: on network storage that is seconds against minutes.
    parents = {str(PurePosixPath(name).parent) for name in document.file_names}
    present = {
        str(PurePosixPath(parent, entry.name))
        for parent in parents
        if (image_dir / parent).is_dir()
        for entry in (image_dir / parent).iterdir()
    }
    missing = [name for name in document.file_names if name not in present and not (image_dir / name).is_file()]
    if missing:
        example = f", which holds {_some(sorted(present), 2)}" if present else ", which is empty or does not exist"
        raise DatasetError(
            f"{document.path} lists {len(document.file_names)} images and {len(missing)} are missing, the first is "
            f"{missing[0]}; looked in {image_dir}{example}. Put the images there, or delete their entries from the file"
        )
    return image_dir


def _fill_sizes(document: _Document, image_dir: Path, problems: list[str]) -> NDArray[np.int64]:
    sizes_hw = document.sizes_hw.copy()
    without = np.flatnonzero((sizes_hw < 1).any(axis=1))
    for index in without.tolist():
        try:
            with Image.open(image_dir / document.file_names[index]) as image:
                width, height = ImageOps.exif_transpose(image).size
        except (OSError, ValueError, SyntaxError) as error:
            raise DatasetError(
                f"{document.path} gives no size for {document.file_names[index]}, which cannot be read ({error}); "
                'replace the file, or add its "height" and "width"'
            ) from error
        sizes_hw[index] = height, width
    if len(without):
        problems.append(
            f"{_count(len(without), 'image size', 'image sizes')} read from the files: not in the annotations"
        )
    return sizes_hw


def _labels(document: _Document, classes: ClassMap, problems: list[str]) -> NDArray[np.int64]:
    """(N,) class indices, by class name: ids and order in this file may be its own."""
    index_of = {name: index for index, name in enumerate(classes.names)}
    category_ids = np.array(sorted(document.categories), dtype=np.int64)
    lookup = np.array([index_of.get(document.categories[id_], -1) for id_ in category_ids.tolist()], dtype=np.int64)
    labels = lookup[np.searchsorted(category_ids, document.category_ids)]
    unknown = np.flatnonzero(labels < 0)
    if len(unknown):
        first = int(unknown[0])
        name = document.categories[int(document.category_ids[first])]
        raise DatasetError(
            f'{document.path}: annotation {document.annotation_ids[first]} is of class "{name}", which is none of the '
            f"{classes.num_classes} classes ({_some(classes.names)}); {len(unknown)} boxes are of such classes."
            f"{did_you_mean(name, classes.names)} Rename it, or label it in the training split too"
        )
    ignored = [name for name in document.categories.values() if name not in index_of]
    if ignored:
        problems.append(f"{_count(len(ignored), 'category', 'categories')} without a box ignored: {_some(ignored)}")
    return labels


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _some(values: Iterable[Any], limit: int = 6) -> str:
    """The first few of `values`, for a message."""
    listed = [str(value) for value in values]
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")
