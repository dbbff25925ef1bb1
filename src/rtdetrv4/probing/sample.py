"""What teachers are probed on: boxes of some training images, and as many that show background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rtdetrv4.data.document import count_of, some_of
from rtdetrv4.data.holdout import group_copies
from rtdetrv4.data.records import Record, Split
from rtdetrv4.errors import DatasetError

FOLDS = 5
MOST_OF_A_CLASS = 1000
"""Boxes of a class; more make the probe slow, and its numbers hardly surer."""
MAX_COVERED = 0.1
"""Share of a background box that one object may cover. It implies an IoU of less than this, and unlike that it keeps
small boxes out of large objects."""
TRIES, OTHER_IMAGES = 50, 10
BACKGROUND = "background"

Floats = NDArray[np.float64]


class BoxSample(NamedTuple):
    """N boxes of some images, half of them or more objects, in folds that no image crosses."""

    split: Split
    """The images."""
    images: NDArray[np.int64]
    """(N,): the index of the image of each box."""
    boxes: Floats
    """(N, 4): left, top, right, bottom as shares of the image."""
    labels: NDArray[np.int64]
    """(N,): indices of `names`."""
    folds: NDArray[np.int64]
    """(N,) in [0, `FOLDS`)."""
    names: tuple[str, ...]
    """Classes, and last `BACKGROUND`."""
    notes: tuple[str, ...]
    """What was left out."""


def draw_sample(split: Split, num_images: int, seed: int = 0) -> BoxSample:
    """Draw images that show every class, their boxes, and boxes of the same sizes that show background.

    Args:
        split: the training part.
        num_images: the most images to take. Each class in turn adds one that shows it, so that rare ones are there.
        seed: equal seeds draw the same.

    Raises:
        DatasetError: fewer than five images show a class, or objects leave no room for background.
    """
    rng = np.random.default_rng(seed)
    chosen = _choose_images(split.records, split.classes.num_classes, num_images, rng)
    split = split._replace(records=tuple(split.records[index] for index in chosen))
    images, boxes, labels = _objects(split.records, rng)
    groups = group_copies(split)
    if len(groups) < FOLDS:  # as of a camera that does not move
        groups = [[index] for index in range(len(split.records))]
    group_of = np.empty(len(split.records), dtype=np.int64)
    for number, group in enumerate(groups):
        group_of[group] = number

    seen = [len(np.unique(group_of[images[labels == label]])) for label in range(split.classes.num_classes)]
    kept = [label for label, count in enumerate(seen) if count >= FOLDS]
    if not kept:
        raise DatasetError(
            f"There is nothing to probe on: {split.image_dir} needs at least {FOLDS} different training images that "
            f"show the same class, and has {max(seen, default=0)}."
        )
    rare = [split.classes.names[label] for label, count in enumerate(seen) if 0 < count < FOLDS]
    notes = []
    if rare:
        notes.append(f"Left out: {some_of(rare)}, shown by fewer than {FOLDS} of the images.")
    is_kept = np.isin(labels, kept)
    images, boxes, labels = images[is_kept], boxes[is_kept], np.searchsorted(kept, labels[is_kept])

    of_background, background = _draw_background(split.records, images, boxes, rng)
    if len(np.unique(group_of[of_background])) < FOLDS:
        raise DatasetError(
            f"There is nothing to tell objects from: in {split.image_dir}, boxes of their sizes that show background "
            f"fit into {count_of(len(np.unique(of_background)), 'image', 'images')}, and {FOLDS} are needed."
        )
    if len(background) < len(boxes):
        notes.append(f"{len(boxes) - len(background)} of {len(boxes)} boxes have no background of their size.")
    images = np.concatenate([images, of_background])
    labels = np.concatenate([labels, np.full(len(background), len(kept))])
    return BoxSample(
        split=split,
        images=images,
        boxes=np.concatenate([boxes, background]),
        labels=labels,
        folds=_folds(group_of[images], labels, rng)[group_of[images]],
        names=(*(split.classes.names[label] for label in kept), BACKGROUND),
        notes=tuple(notes),
    )


def _choose_images(records: Sequence[Record], num_classes: int, num_images: int, rng: Generator) -> list[int]:
    """Indices in ascending order; each class in turn, the rarest first, adds an image that shows it."""
    shown = [np.unique(record.labels[~record.is_crowd]) for record in records]
    queues: list[list[int]] = [[] for _ in range(num_classes)]
    for index in rng.permutation(len(records)).tolist():
        for label in shown[index].tolist():
            queues[label].append(index)
    queues = sorted((queue[::-1] for queue in queues), key=len)
    chosen: set[int] = set()
    while any(queues) and len(chosen) < num_images:
        for queue in queues:
            while queue and queue[-1] in chosen:
                queue.pop()
            if queue and len(chosen) < num_images:
                chosen.add(queue.pop())
    return sorted(chosen)


def _objects(records: Sequence[Record], rng: Generator) -> tuple[NDArray[np.int64], Floats, NDArray[np.int64]]:
    """Image, box and label of objects, up to `MOST_OF_A_CLASS` of each class."""
    counts = [int((~record.is_crowd).sum()) for record in records]
    images = np.repeat(np.arange(len(records)), counts)
    boxes = np.concatenate([np.zeros((0, 4)), *(_shares(record)[~record.is_crowd] for record in records)])
    labels = np.concatenate([np.zeros(0, dtype=np.int64), *(each.labels[~each.is_crowd] for each in records)])
    kept = np.sort(
        np.concatenate(
            [rng.permutation(np.flatnonzero(labels == label))[:MOST_OF_A_CLASS] for label in np.unique(labels)]
            or [np.zeros(0, dtype=np.int64)]
        )
    )
    return images[kept], boxes[kept], labels[kept]


def _shares(record: Record) -> Floats:
    """The boxes of a record as shares of the image, crowds too."""
    return record.boxes_xyxy_px / np.tile((record.info.width, record.info.height), 2).astype(np.float64)


def _draw_background(
    records: Sequence[Record], images: NDArray[np.int64], boxes: Floats, rng: Generator
) -> tuple[NDArray[np.int64], Floats]:
    """For each box one of its size that shows background, in its image or, where there is no room, in another."""
    taken = [_shares(record) for record in records]
    found: list[tuple[int, Floats]] = []
    for own, box in zip(images.tolist(), boxes, strict=True):
        others = rng.choice(len(records), min(OTHER_IMAGES, len(records)), replace=False).tolist()
        for image in (own, *others):
            place = _place(box[2:] - box[:2], taken[image], rng)
            if place is not None:
                found.append((image, place))
                break
    places = [place for _, place in found]
    return np.array([image for image, _ in found], dtype=np.int64), np.array(places).reshape(-1, 4)


def _place(size: Floats, taken: Floats, rng: Generator) -> Floats | None:
    """A random box of that size that no object covers by more than `MAX_COVERED`; None if chance finds none."""
    corners = rng.random((TRIES, 2)) * (1 - size)
    candidates = np.concatenate([corners, corners + size], axis=1)
    if not len(taken):
        return candidates[0]
    low = np.maximum(candidates[:, None, :2], taken[None, :, :2])
    high = np.minimum(candidates[:, None, 2:], taken[None, :, 2:])
    covered = (high - low).clip(min=0).prod(axis=2).max(axis=1) / size.prod()
    free = np.flatnonzero(covered < MAX_COVERED)
    return candidates[free[0]] if len(free) else None


def _folds(groups: NDArray[np.int64], labels: NDArray[np.int64], rng: Generator) -> NDArray[np.int64]:
    """The fold of each group of images, so that folds have about as many boxes of every category, the rarest first.

    Args:
        groups: (N,): the group of each box.
        labels: (N,).
        rng: source of randomness.
    """
    counts = np.zeros((groups.max() + 1, labels.max() + 1), dtype=np.int64)
    np.add.at(counts, (groups, labels), 1)
    in_fold = np.zeros((FOLDS, counts.shape[1]), dtype=np.int64)
    fold_of = np.full(len(counts), -1)
    for label in np.argsort((counts > 0).sum(axis=0), kind="stable"):
        open_groups = np.flatnonzero((counts[:, label] > 0) & (fold_of < 0))
        shuffled = rng.permutation(open_groups)
        for group in shuffled[np.argsort(-counts[shuffled, label], kind="stable")].tolist():
            fold = np.lexsort((in_fold.sum(axis=1), in_fold[:, label]))[0]
            fold_of[group] = fold
            in_fold[fold] += counts[group]
    return fold_of
