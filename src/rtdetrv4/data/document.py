"""Annotations as columns, whatever format they came in, and how they become a `Split`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtdetrv4.data.box_units import sides_in_pixels
from rtdetrv4.data.decode import read_size, same_aspect
from rtdetrv4.data.faults import Unit
from rtdetrv4.data.records import MAX_LEFT_OUT_SHARE, RecordTable, Split, too_many
from rtdetrv4.errors import DatasetError, did_you_mean
from rtdetrv4.input_files import is_file, is_folder
from rtdetrv4.types import ClassMap

CLIP_TOLERANCE = 1.0
"""Pixels by which a box may exceed its image before clipping it is reported; exporters round."""
MAX_CLASSES = 100_000
"""Several times as many as any data set has; a head for a billion would not fit into memory."""
NUM_SIZES_CHECKED = 200
"""Images, evenly spread, whose annotated size is compared with the file's; all of them if one is wrong."""


class Form(IntEnum):
    """How the place of an object was written."""

    BOX = 0
    POLYGON = 1
    """Or a rotated box, or another shape: the upright box around it is used."""
    KEYPOINTS = 2
    """A box, followed by key points."""
    PREDICTION = 3
    """A box, followed by a confidence."""


class Origin(NamedTuple):
    """Where annotations stand in their files, and how they are written."""

    files: tuple[Path | None, ...]
    """(M,): the annotation file of each image; None if it has none."""
    unit: Unit
    """What `numbers` counts."""
    numbers: NDArray[np.int64]
    """(N,), from 1."""
    forms: NDArray[np.uint8]
    """(N,) values of `Form`."""


class Document(NamedTuple):
    """Annotations as columns: checked for contradictions, with boxes as given."""

    path: Path
    """The file, for messages."""
    image_ids: NDArray[np.int64]
    file_names: list[str]
    sizes_hw: NDArray[np.int64]
    """(M, 2); a row of zeros if the file gives no size."""
    categories: dict[int, str]
    """Names by id; ids of one name are one class."""
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
    in_fractions: bool = False
    """The format gives boxes as fractions, and sizes are those of the files: neither is in doubt."""
    origin: Origin | None = None
    """None once images or boxes have been left out."""


def make_class_map(owner: Document, documents: Iterable[Document]) -> ClassMap:
    """Make the class map of `owner`: its categories by ascending id, without placeholders.

    Roboflow writes the name of the project as category 0, the parent of all others, and never uses it: it would become
    a class without examples. A category is omitted if it is the parent of another and no split has a box of it.

    Of several categories of one name, the class takes the lowest id that labels a box, or the lowest of all.

    Raises:
        DatasetError: no category is left, or too many are.
    """
    if not owner.categories:
        raise DatasetError(f'{owner.path} has an empty "categories" list; list the classes in it')
    used = {
        document.categories[category_id]
        for document in documents
        for category_id in np.unique(document.category_ids).tolist()
    }
    used_ids = set(np.unique(owner.category_ids).tolist())
    id_of: dict[str, int] = {}
    for id_ in sorted(owner.categories, key=lambda id_: (id_ not in used_ids, id_)):
        name = owner.categories[id_]
        if name in used or name not in owner.parents:
            id_of.setdefault(name, id_)
    if not id_of:
        raise DatasetError(
            f"{owner.path} has no class: its categories ({some_of(owner.categories.values())}) are parents of nothing"
        )
    if len(id_of) > MAX_CLASSES:
        raise DatasetError(f"{owner.path} has {len(id_of)} classes, expected at most {MAX_CLASSES}")
    kept = sorted((id_, name) for name, id_ in id_of.items())
    return ClassMap(names=tuple(name for _, name in kept), category_ids=tuple(id_ for id_, _ in kept))


def build_split(document: Document, folders: Sequence[Path], classes: ClassMap) -> Split:
    """Turn the columns of a document into the records of a split.

    Args:
        document: the annotations of the split.
        folders: where the images may be, most likely first.
        classes: the classes to label by, matched by name.

    Raises:
        DatasetError: too many images are missing or unreadable, an annotation is of an unknown class, or no box is
            usable.
    """
    problems = list(document.problems)
    image_dir = _image_folder(document, folders)
    document = _without_missing(document, image_dir, problems)
    document = _with_sizes(document, image_dir, problems)
    if not document.in_fractions:
        wh = document.sizes_hw[document.image_index, ::-1].astype(np.float64)
        xywh, areas, told = sides_in_pixels(document.boxes_xywh_px, document.areas, wh, CLIP_TOLERANCE)
        document = document._replace(boxes_xywh_px=xywh, areas=areas)
        problems += told
        document = _with_true_sizes(document, image_dir, problems)
    labels = _labels(document, classes, problems)

    xywh, sizes_hw = document.boxes_xywh_px, document.sizes_hw
    height, width = sizes_hw[document.image_index].astype(np.float64).T
    limit = np.stack([width, height, width, height], axis=1)
    given = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes = np.clip(given, 0.0, limit).astype(np.float32)

    unreadable = np.any(np.isnan(xywh), axis=1)
    flat = ~unreadable & np.any(xywh[:, 2:] <= 0, axis=1)
    outside = ~unreadable & ~flat & np.any(boxes[:, 2:] <= boxes[:, :2], axis=1)
    keep = ~(unreadable | flat | outside) & (labels >= 0)
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
    if not document.in_fractions:
        tiny = keep & np.all(boxes[:, 2:] - boxes[:, :2] < 1, axis=1)
        report(tiny, "smaller than a pixel: are these fractions of the image?")
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
    if not len(order):
        problems.append("no image has a box: all are background")
    elif document.is_crowd[order].all():
        problems.append("every box is a crowd (iscrowd 1), a region that is neither trained on nor scored")
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


def _image_folder(document: Document, folders: Sequence[Path]) -> Path:
    """The first of `folders` that holds an image; the first images may be missing."""
    for name in document.file_names[:: max(1, len(document.file_names) // 20)]:
        for folder in folders:
            if is_file(folder / name):
                return folder
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _without_missing(document: Document, image_dir: Path, problems: list[str]) -> Document:
    # One listing per folder instead of one stat per file: on network storage, seconds instead of minutes.
    parents = {str(PurePosixPath(name).parent) for name in document.file_names}
    present = {
        str(PurePosixPath(parent, entry.name))
        for parent in parents
        if is_folder(image_dir / parent)
        for entry in (image_dir / parent).iterdir()
    }
    keep = [name in present or is_file(image_dir / name) for name in document.file_names]
    missing = [name for name, kept in zip(document.file_names, keep, strict=True) if not kept]
    if too_many(len(missing), len(keep)):
        example = f", which holds {some_of(sorted(present), 2)}" if present else ", which is empty or does not exist"
        raise DatasetError(
            f"{document.path} lists {len(keep)} images and {len(missing)} are missing, the first is {missing[0]}; "
            f"looked in {image_dir}{example}. Put the images there, or delete their entries from the file"
        )
    return leave_out(document, np.array(keep), "missing", problems)


def _with_sizes(document: Document, image_dir: Path, problems: list[str]) -> Document:
    """Read the sizes that the annotations do not give."""
    sizes_hw = document.sizes_hw.copy()
    without = np.flatnonzero((sizes_hw < 1).any(axis=1)).tolist()
    unreadable: dict[int, DatasetError] = {}
    for index in without:
        try:
            sizes_hw[index] = read_size(image_dir / document.file_names[index])
        except DatasetError as error:
            unreadable[index] = error
    if too_many(len(unreadable), len(sizes_hw)):
        index, error = next(iter(unreadable.items()))
        raise DatasetError(
            f"{document.path} gives no size for {document.file_names[index]}, which cannot be read ({error}); so for "
            f'{len(unreadable)} of {len(sizes_hw)} images: replace the files, or add "height" and "width"'
        ) from error
    read = len(without) - len(unreadable)
    if read:
        problems.append(f"{count_of(read, 'image size', 'image sizes')} read from the files: not in the annotations")
    readable = np.array([index not in unreadable for index in range(len(sizes_hw))])
    return leave_out(document._replace(sizes_hw=sizes_hw), readable, "cannot be read", problems)


def _with_true_sizes(document: Document, image_dir: Path, problems: list[str]) -> Document:
    """Compare the annotated sizes of a sample of images, or of all if one is wrong, with those of the files.

    A file of the same aspect ratio is a resized copy, which `read_image` maps the boxes to. Otherwise the size of the
    file counts, if the boxes fit into it.
    """
    given_hw, sizes_hw = document.sizes_hw, document.sizes_hw.copy()
    corners = document.boxes_xywh_px[:, :2] + document.boxes_xywh_px[:, 2:]
    needed_hw = np.zeros(given_hw.shape)
    np.fmax.at(needed_hw, document.image_index, corners[:, ::-1])
    sticks_out = np.any(needed_hw > given_hw + CLIP_TOLERANCE, axis=1)

    everything = np.arange(len(given_hw))
    spread = np.linspace(0, len(given_hw) - 1, min(NUM_SIZES_CHECKED, len(given_hw))).astype(np.int64)
    sample = np.union1d(spread, np.flatnonzero(sticks_out))
    wrong = _wrong_sizes(document, image_dir, sample)
    if wrong:
        wrong |= _wrong_sizes(document, image_dir, np.setdiff1d(everything, sample))

    num_copies, corrected, contradicting = 0, [], []
    for index, actual in wrong.items():
        height, width = given_hw[index].tolist()
        difference = f"{document.file_names[index]} is {actual[1]}×{actual[0]} pixels, not {width}×{height}"
        fits = bool(np.all(needed_hw[index] <= np.array(actual) + CLIP_TOLERANCE))
        if same_aspect(actual, (height, width)) and not (sticks_out[index] and fits):
            num_copies += 1
        elif fits:
            sizes_hw[index] = actual
            corrected.append(difference)
        else:
            contradicting.append(difference)
            sizes_hw[index] = 0
    if num_copies:
        problems.append(
            f"{count_of(num_copies, 'image is', 'images are')} of another size than annotated, but of the same shape: "
            "the boxes are scaled"
        )
    if corrected:
        problems.append(
            f"{count_of(len(corrected), 'annotated size', 'annotated sizes')} corrected, because the boxes fit the "
            f"size of the file (first: {corrected[0]})"
        )
    if too_many(len(contradicting), len(sizes_hw)):
        raise DatasetError(
            f"{document.path}: {len(contradicting)} of {len(sizes_hw)} images have another shape than annotated, and "
            f"boxes that leave them: {contradicting[0]}; use the images that were annotated"
        )
    keep = sizes_hw[:, 0] > 0
    return leave_out(document._replace(sizes_hw=sizes_hw), keep, "of another shape than annotated", problems)


def _wrong_sizes(document: Document, image_dir: Path, indices: NDArray[np.int64]) -> dict[int, tuple[int, int]]:
    """The (h, w) of the files that are not of the annotated size, by index."""
    wrong: dict[int, tuple[int, int]] = {}
    for index in indices.tolist():
        height, width = document.sizes_hw[index].tolist()
        try:
            actual = read_size(image_dir / document.file_names[index], (height, width))
        except DatasetError:  # left out when it is to be decoded
            continue
        if actual != (height, width):
            wrong[index] = actual
    return wrong


def leave_out(document: Document, keep: NDArray[np.bool_], reason: str, problems: list[str]) -> Document:
    """The document without some of its images and their boxes.

    Args:
        document: as read.
        keep: (M,), which images stay.
        reason: why the others do not, as a phrase.
        problems: gets a sentence about them.
    """
    if keep.all():
        return document
    dropped = [document.file_names[index] for index in np.flatnonzero(~keep)]
    problems.append(f"{count_of(len(dropped), 'image', 'images')} left out: {reason} ({some_of(dropped)})")
    new_index = np.cumsum(keep) - 1
    boxes = keep[document.image_index]
    return document._replace(
        image_ids=document.image_ids[keep],
        file_names=[name for name, kept in zip(document.file_names, keep, strict=True) if kept],
        sizes_hw=document.sizes_hw[keep],
        annotation_ids=[id_ for id_, kept in zip(document.annotation_ids, boxes, strict=True) if kept],
        image_index=new_index[document.image_index[boxes]],
        category_ids=document.category_ids[boxes],
        boxes_xywh_px=document.boxes_xywh_px[boxes],
        is_crowd=document.is_crowd[boxes],
        areas=document.areas[boxes],
        origin=None,
    )


def _labels(document: Document, classes: ClassMap, problems: list[str]) -> NDArray[np.int64]:
    """(N,) class indices, matched by class name: a file may have its own ids and order; -1 if there is none."""
    index_of = {name: index for index, name in enumerate(classes.names)}
    category_ids = np.array(sorted(document.categories), dtype=np.int64)
    lookup = np.array([index_of.get(document.categories[id_], -1) for id_ in category_ids.tolist()], dtype=np.int64)
    labels = lookup[np.searchsorted(category_ids, document.category_ids)]
    unknown = np.flatnonzero(labels < 0)
    if len(unknown):
        first = int(unknown[0])
        name = document.categories[int(document.category_ids[first])]
        what = f'annotation {document.annotation_ids[first]} is of class "{name}", which is not one of the '
        what += f"{classes.num_classes} classes ({some_of(classes.names)})"
        if len(unknown) > MAX_LEFT_OUT_SHARE * len(labels):
            raise DatasetError(
                f"{document.path}: {what}; {len(unknown)} boxes have unknown classes."
                f"{did_you_mean(name, classes.names)} Rename it, or label it in the training split as well"
            )
        problems.append(f"{count_of(len(unknown), 'box', 'boxes')} dropped: {what}.{did_you_mean(name, classes.names)}")
    used = set(np.unique(document.category_ids).tolist())
    ids_of: dict[str, list[int]] = {}
    for id_, name in document.categories.items():
        ids_of.setdefault(name, []).append(id_)
    for name, ids in ids_of.items():
        if len(used.intersection(ids)) > 1:
            problems.append(f'the class name "{name}" is used by several categories: {some_of(ids)} are one class')
    # Of several categories of one name, those that label nothing are ignored; at least one stays.
    twins = [
        f"{name} (id {id_})"
        for name, ids in ids_of.items()
        for id_ in (ids if used.intersection(ids) else ids[1:])
        if name in index_of and id_ not in used
    ]
    ignored = [name for name in ids_of if name not in index_of] + twins
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
