"""Annotations as columns, whatever format they came in, and how they become a `Split`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtdetrv4.data.decode import read_size
from rtdetrv4.data.records import RecordTable, Split
from rtdetrv4.errors import DatasetError, did_you_mean
from rtdetrv4.types import ClassMap

CLIP_TOLERANCE = 1.0
"""Pixels by which a box may exceed its image before clipping it is reported; exporters round."""


class Document(NamedTuple):
    """Annotations as columns: checked for contradictions, with boxes as given."""

    path: Path
    """The file, for messages."""
    image_ids: NDArray[np.int64]
    file_names: list[str]
    sizes_hw: NDArray[np.int64]
    """(M, 2); a row of zeros if the file gives no size."""
    categories: dict[int, str]
    parents: frozenset[str]
    """Names that are the supercategory of another class."""
    annotation_ids: list[Any]
    image_index: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes_xywh_px: NDArray[np.float64]
    """(N, 4); NaN if the box is not four numbers."""
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    """(N,); NaN if the file gives none."""
    box_format: str
    """How boxes should be written, for messages."""
    problems: tuple[str, ...] = ()
    """What was corrected while reading, one sentence each."""


def make_class_map(owner: Document, documents: Iterable[Document]) -> ClassMap:
    """Make the class map of `owner`: its categories by ascending id, without placeholders.

    Roboflow writes the name of the project as category 0, the parent of all others, and never uses it: it would become
    a class without examples. A category is omitted if it is the parent of another and no split has a box of it.

    Raises:
        DatasetError: no category is left.
    """
    used = {
        document.categories[category_id]
        for document in documents
        for category_id in np.unique(document.category_ids).tolist()
    }
    kept = sorted((id_, name) for id_, name in owner.categories.items() if name in used or name not in owner.parents)
    if not kept:
        raise DatasetError(
            f"{owner.path} has no class: its categories ({some_of(owner.categories)}) are parents of nothing"
        )
    return ClassMap(names=tuple(name for _, name in kept), category_ids=tuple(id_ for id_, _ in kept))


def build_split(document: Document, folders: Sequence[Path], classes: ClassMap) -> Split:
    """Turn the columns of a document into the records of a split.

    Args:
        document: the annotations of the split.
        folders: where the images may be, most likely first.
        classes: the classes to label by, matched by name.

    Raises:
        DatasetError: images are missing, an annotation is of an unknown class, or no box is usable.
    """
    problems = list(document.problems)
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

    def report(affected: NDArray[np.bool_], what: str) -> None:
        if affected.any():
            first = int(np.flatnonzero(affected)[0])
            where = f"annotation {document.annotation_ids[first]} of {document.file_names[document.image_index[first]]}"
            problems.append(f"{count_of(int(affected.sum()), 'box', 'boxes')} {what} (first: {where})")

    report(unreadable, "dropped: not four finite numbers")
    report(flat, "dropped: no width or no height")
    report(outside, "dropped: outside of the image")
    report(clipped, "clipped to the image")
    order = np.flatnonzero(keep)
    order = order[np.argsort(document.image_index[order], kind="stable")]
    owners = document.image_index[order]
    identity = np.column_stack([owners, labels[order], boxes[order]])
    repeated = len(identity) - len(np.unique(identity, axis=0))
    if repeated:
        problems.append(
            f"{count_of(repeated, 'box', 'boxes')} given twice and kept: equal boxes teach double detections"
        )
    twins = len(document.file_names) - len(set(document.file_names))
    if twins:
        problems.append(
            f"{count_of(twins, 'image', 'images')} listed again under another id: each shows only its own boxes"
        )
    if document.annotation_ids and not len(order):
        raise DatasetError(
            f"{document.path} has {count_of(len(document.annotation_ids), 'annotation', 'annotations')} but no usable "
            f"box: {problems[-1]}; {document.box_format}"
        )
    counts = np.bincount(labels[order], minlength=classes.num_classes)
    if len(order) and not counts.all():
        unseen = [name for name, count in zip(classes.names, counts, strict=True) if not count]
        problems.append(
            f"{len(unseen)} of {count_of(classes.num_classes, 'class', 'classes')} without a box: {some_of(unseen)}"
        )

    names = np.array([name.encode(errors="surrogatepass") for name in document.file_names])
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
    return Split(image_dir, table, classes, table.fingerprint(classes), tuple(problems))


def _check_images(document: Document, folders: Sequence[Path]) -> Path:
    """Find the folder that holds the images, and check that it holds all of them."""
    first = document.file_names[0]
    image_dir = next((folder for folder in folders if (folder / first).is_file()), None)
    if image_dir is None:
        image_dir = next((folder for folder in folders if folder.is_dir()), folders[0])

    # One listing per folder instead of one stat per file: on network storage, seconds instead of minutes.
    parents = {str(PurePosixPath(name).parent) for name in document.file_names}
    present = {
        str(PurePosixPath(parent, entry.name))
        for parent in parents
        if (image_dir / parent).is_dir()
        for entry in (image_dir / parent).iterdir()
    }
    missing = [name for name in document.file_names if name not in present and not (image_dir / name).is_file()]
    if missing:
        example = f", which holds {some_of(sorted(present), 2)}" if present else ", which is empty or does not exist"
        raise DatasetError(
            f"{document.path} lists {len(document.file_names)} images and {len(missing)} are missing, the first is "
            f"{missing[0]}; looked in {image_dir}{example}. Put the images there, or delete their entries from the file"
        )
    return image_dir


def _fill_sizes(document: Document, image_dir: Path, problems: list[str]) -> NDArray[np.int64]:
    sizes_hw = document.sizes_hw.copy()
    without = np.flatnonzero((sizes_hw < 1).any(axis=1))
    for index in without.tolist():
        try:
            sizes_hw[index] = read_size(image_dir / document.file_names[index])
        except DatasetError as error:
            raise DatasetError(
                f"{document.path} gives no size for {document.file_names[index]}, which cannot be read ({error}); "
                'replace the file, or add its "height" and "width"'
            ) from error
    if len(without):
        problems.append(
            f"{count_of(len(without), 'image size', 'image sizes')} read from the files: not in the annotations"
        )
    return sizes_hw


def _labels(document: Document, classes: ClassMap, problems: list[str]) -> NDArray[np.int64]:
    """(N,) class indices, matched by class name: a file may have its own ids and order."""
    index_of = {name: index for index, name in enumerate(classes.names)}
    category_ids = np.array(sorted(document.categories), dtype=np.int64)
    lookup = np.array([index_of.get(document.categories[id_], -1) for id_ in category_ids.tolist()], dtype=np.int64)
    labels = lookup[np.searchsorted(category_ids, document.category_ids)]
    unknown = np.flatnonzero(labels < 0)
    if len(unknown):
        first = int(unknown[0])
        name = document.categories[int(document.category_ids[first])]
        raise DatasetError(
            f'{document.path}: annotation {document.annotation_ids[first]} is of class "{name}", which is not one of '
            f"the {classes.num_classes} classes ({some_of(classes.names)}); {len(unknown)} boxes have unknown classes."
            f"{did_you_mean(name, classes.names)} Rename it, or label it in the training split as well"
        )
    ignored = [name for name in document.categories.values() if name not in index_of]
    if ignored:
        problems.append(f"{count_of(len(ignored), 'category', 'categories')} without a box ignored: {some_of(ignored)}")
    return labels


def count_of(number: int, one: str, many: str) -> str:
    """A number with its noun: `1 box`, `2 boxes`."""
    return f"{number} {one if number == 1 else many}"


def some_of(values: Iterable[Any], limit: int = 6) -> str:
    """The first few of `values` as text, for a message."""
    listed = [str(value) for value in values]
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")
