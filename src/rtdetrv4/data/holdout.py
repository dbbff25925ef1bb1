"""The validation images of a data set that has none, and copies that training and validation share."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from rtdetrv4.data.document import count_of
from rtdetrv4.data.records import RecordTable, Split
from rtdetrv4.input_files import open_file, read_file
from rtdetrv4.runtime.pixels import MAX_FILE_BYTES, PNG_MAGIC, has_whole_chunks

VAL_SHARE = 0.2
MAX_EXCESS = 1.5
"""How much larger the validation part may become for the sake of rare classes, as a factor."""
MAX_COMPARED = 5000
"""Images up to which they are compared by what they show; more would take minutes."""
MIN_CORRELATION = 0.97
"""Of 16×16 thumbnails. Measured on three data sets, copies at half size and another quality are above, and different
photos below 0.94, except for successive frames."""
_SIDE = 16
_MIN_CONTRAST = 2.0
"""Standard deviation of gray values, of 255."""
_BLOCK = 1000
_LARGE_BYTES = 100_000
_DECODE_REDUCED = cv2.IMREAD_REDUCED_GRAYSCALE_4


def hold_out(split: Split) -> tuple[Split, Split, str]:
    """Take a fifth of the training images for validation.

    Images that show the same stay together, and every class has its share on either side as far as possible. What is
    chosen depends on the images and their names, not on the order in which they are listed.

    Args:
        split: all training images.

    Returns:
        Training split, validation split, and what was done, as a sentence.
    """
    table = split.records
    assert isinstance(table, RecordTable), "splits are read as tables"
    if len(table) == 1:
        note = "There are no validation images, and 1 image cannot be divided: validation is on the training image"
        return split, split._replace(problems=()), note
    groups = group_copies(split)
    alone = len(groups) == 1
    if alone:  # nothing can be divided without copies on both sides
        groups = [[index] for group in groups for index in group]
    chosen = _choose(groups, _presence(table, split.classes.num_classes))
    val = sorted(index for group in chosen for index in groups[group])
    train = sorted(set(range(len(table))).difference(val))
    note = (
        f"There are no validation images, so {count_of(len(val), 'image is', 'images are')} taken for it, and "
        f"{len(train)} of {len(table)} are left for training"
    )
    if alone:
        note += "; all images look alike, so the metrics will be too good"
    return _part(split, train, split.problems), _part(split, val, ()), note


def find_copies(train: Split, val: Split) -> list[str]:
    """Say how many validation images are, byte for byte, training images; nothing if there is none."""
    twins = _same_bytes([*_paths(train), *_paths(val)])
    first_val = len(train.records)
    copies = [(group[0], index) for group in twins for index in group if index >= first_val and group[0] < first_val]
    if not copies:
        return []
    names = [record.info.file_name for part in (train, val) for record in part.records]
    original, copy = min((names[one], names[other]) for one, other in copies)
    count = count_of(len(copies), "validation image is a copy", "validation images are copies")
    return [f"{count} of training images (first: {copy} of {original}), so the metrics will be too good"]


def copies_among(files: Sequence[Path], originals: Iterable[Path]) -> set[Path]:
    """Those of some files that are, byte for byte, one of some others; only those of a size of theirs are read."""
    paths = list(originals)
    first, sizes = len(paths), {_size(path) for path in paths}
    paths += [path for path in files if _size(path) in sizes]
    return {paths[index] for group in _same_bytes(paths) if group[0] < first for index in group if index >= first}


def _part(split: Split, indices: Sequence[int], problems: tuple[str, ...]) -> Split:
    table = split.records
    assert isinstance(table, RecordTable)
    chosen = table.subset(indices)
    return split._replace(records=chosen, fingerprint=chosen.fingerprint(split.classes), problems=problems)


def _presence(table: RecordTable, num_classes: int) -> NDArray[np.bool_]:
    """(M, K): which classes an image shows."""
    presence = np.zeros((len(table), num_classes), dtype=np.bool_)
    owners = np.repeat(np.arange(len(table)), np.diff(table.first_box))
    presence[owners, table.labels] = True
    return presence


def _choose(groups: Sequence[Sequence[int]], presence: NDArray[np.bool_]) -> list[int]:
    """Divide groups so that every class has its share, the rarest class first: greedy iterative stratification.

    References:
        Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-Label Data, 2011.
    """
    counts = np.stack([presence[group].sum(axis=0) for group in groups]).astype(np.float64)
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    wanted_val = VAL_SHARE * counts.sum(axis=0)
    wanted_train = counts.sum(axis=0) - wanted_val
    target = max(1, round(VAL_SHARE * sizes.sum()))
    side = np.zeros(len(groups), dtype=np.int8)  # 0 undecided, 1 validation, -1 training
    num_val = 0.0
    shown = np.flatnonzero(counts.any(axis=0))
    for label in shown[np.argsort(counts.sum(axis=0)[shown], kind="stable")].tolist():
        for group in np.flatnonzero((counts[:, label] > 0) & (side == 0)).tolist():
            fits = num_val + sizes[group] <= MAX_EXCESS * target
            side[group] = 1 if fits and wanted_val[label] > wanted_train[label] else -1
            num_val += sizes[group] if side[group] == 1 else 0
            (wanted_val if side[group] == 1 else wanted_train)[:] -= counts[group]
    left = counts[side == -1].sum(axis=0)
    # Background, then whatever leaves every class to training, until the share is reached.
    for group in [*np.flatnonzero(side == 0).tolist(), *np.flatnonzero(side == -1).tolist()]:
        keeps = bool(np.all((left - counts[group] > 0) | (counts[group] == 0)))
        if num_val + sizes[group] <= target and (side[group] == 0 or keeps):
            left -= counts[group] if side[group] == -1 else 0
            side[group] = 1
            num_val += sizes[group]
    if not (side == 1).any():
        side[int(np.argmin(np.where(sizes == sizes.min(), -counts.sum(axis=1), np.inf)))] = 1
    return np.flatnonzero(side == 1).tolist()


def group_copies(split: Split) -> list[list[int]]:
    """Images that show the same, as lists of indices, in an order that depends on names alone."""
    names = [record.info.file_name for record in split.records]
    paths = _paths(split)
    parent = list(range(len(names)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    alike = _same_bytes(paths)
    if len(paths) <= MAX_COMPARED:
        alike += _same_look(paths)
    for first, *others in alike:
        for other in others:
            parent[root(other)] = root(first)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index in range(len(names)):
        members[root(index)].append(index)

    def order(group: list[int]) -> bytes:
        return min(
            hashlib.sha256(PurePosixPath(names[index]).name.encode(errors="surrogatepass")).digest()
            + names[index].encode(errors="surrogatepass")
            for index in group
        )

    return sorted(members.values(), key=order)


def _paths(split: Split) -> list[Path]:
    return [split.image_dir / record.info.file_name for record in split.records]


def _same_bytes(paths: Sequence[Path]) -> list[list[int]]:
    """Groups of byte-identical files; only files of one size are read."""
    by_size: defaultdict[int, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        if (size := _size(path)) is not None:
            by_size[size].append(index)
    by_content: defaultdict[bytes, list[int]] = defaultdict(list)
    for indices in by_size.values():
        for index in indices if len(indices) > 1 else ():
            try:
                by_content[_digest(paths[index])].append(index)
            except OSError:
                continue
    return [group for group in by_content.values() if len(group) > 1]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open_file(path) as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.digest()


def _same_look(paths: Sequence[Path]) -> list[list[int]]:
    """Groups of images that look the same: copies in another size, file type or quality, and frames without motion."""
    seen = [(index, thumbnail) for index, path in enumerate(paths) if (thumbnail := _thumbnail(path)) is not None]
    if not seen:
        return []
    thumbnails = np.stack([thumbnail for _, thumbnail in seen])
    groups = np.arange(len(seen))  # of each image, the first in its group; all pairs would take gigabytes
    for start in range(0, len(seen), _BLOCK):
        for is_alike in thumbnails[start : start + _BLOCK] @ thumbnails.T >= MIN_CORRELATION:
            joined = np.unique(groups[is_alike])
            if len(joined) > 1:
                groups[np.isin(groups, joined)] = joined[0]
    members: defaultdict[int, list[int]] = defaultdict(list)
    for (index, _), group in zip(seen, groups.tolist(), strict=True):
        members[group].append(index)
    return [group for group in members.values() if len(group) > 1]


def _thumbnail(path: Path) -> NDArray[np.float32] | None:
    """16×16 gray values of mean 0 and length 1, so that products are correlations; None if it shows next to nothing."""
    try:
        content = read_file(path, MAX_FILE_BYTES)
        if content.startswith(PNG_MAGIC) and not has_whole_chunks(content):
            return None
        data = np.frombuffer(content, np.uint8)
        # Large photos are decoded at a quarter of their size, which takes a fraction of the time.
        image = cv2.imdecode(data, _DECODE_REDUCED if len(data) > _LARGE_BYTES else cv2.IMREAD_GRAYSCALE)
    except (OSError, cv2.error):
        return None
    if image is None:
        return None
    cells = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    cells -= cells.mean()
    length = np.linalg.norm(cells)
    return cells / length if length > _MIN_CONTRAST * _SIDE else None
