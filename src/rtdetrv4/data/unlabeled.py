"""Images without labels: every image of some folders, but for those that validate or test."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from rtdetrv4.data.decode import read_size
from rtdetrv4.data.document import count_of, some_of
from rtdetrv4.data.formats import load_data
from rtdetrv4.data.holdout import copies_among
from rtdetrv4.data.records import RecordTable, Split, too_many
from rtdetrv4.data.tree import Tree, folder_of, split_of
from rtdetrv4.errors import DatasetError
from rtdetrv4.input_files import of_home
from rtdetrv4.types import ClassMap

Parts = Literal["train", "all"]
NO_CLASSES = ClassMap((), ())
NAMED_FILES = 10
"""Of files that cannot be read, so many are named."""


def read_unlabeled(paths: Sequence[str], parts: Parts = "train", without: Collection[Path] = ()) -> Split:
    """Images of folders, whatever they hold besides; labels are ignored.

    A folder that is a data set keeps its validation images to itself, and those that training on it would hold out,
    so that they stay unseen; in any other folder, what is below a folder named after a validation or test part. Copies
    of all these images are left out, too, wherever they are.

    Args:
        paths: folders, or files that describe a data set.
        parts: "all" takes validation and test images, too.
        without: images to leave out, resolved.

    Returns:
        A split without boxes and classes; its problems say what was left out.

    Raises:
        DatasetError: there are no images, or more than half of them cannot be read.
    """
    notes: list[str] = []
    found: dict[Path, str] = {}  # in order, each file once, with the first path that holds it
    excluded = set(without)
    for path in paths:
        images, kept_apart = _images_of(of_home(path), parts, notes)
        for image in images:
            found.setdefault(image, path)
        excluded |= kept_apart
    if num_apart := len(excluded & found.keys()):
        notes.append(f"{count_of(num_apart, 'image', 'images')} left out, because they validate or test")
    files = {file: path for file, path in found.items() if file not in excluded}
    for copy in (copies := copies_among(list(files), excluded)):
        del files[copy]
    if copies:
        notes.append(f"{count_of(len(copies), 'copy', 'copies')} of images that validate or test left out")
    if not files:
        raise DatasetError(
            f"There are no images to learn from in {some_of(paths)}{'; ' if notes else ''}{'; '.join(notes)}. Give "
            "folders of images" + (", or data.unlabeled_parts=all to use validation and test images." if notes else ".")
        )
    return _split_of_files(files, notes)


def describe_unlabeled(split: Split) -> str:
    """How many images there are, and from where: "54 images without labels: 40 in photos, 14 in more"."""
    count = f"{count_of(len(split.records), 'image', 'images')} without labels"
    if len(split.folders) == 1:
        return f"{count} in {split.folders[0][0]}"
    return f"{count}: {some_of((f'{number} in {path}' for path, number in split.folders), 20)}"


def _images_of(path: Path, parts: Parts, notes: list[str]) -> tuple[list[Path], set[Path]]:
    """The images at a path, and those of them that validate or test."""
    if not path.exists():
        raise DatasetError(f"{path} does not exist; give folders of images, or data sets whose labels to ignore")
    is_folder = path.is_dir()
    apart: set[Path] = set()
    images: list[Path] = []
    if is_folder:
        tree = Tree(path)
        images = [tree.path(file).resolve() for file in tree.images]
        if parts == "train":
            named = [file for file in tree.images if split_of(folder_of(file)) in ("val", "test")]
            apart = {tree.path(file).resolve() for file in named}
    if parts == "train" or not is_folder:
        try:
            splits = load_data(path, make_val=True).splits
        except DatasetError as error:
            if not is_folder:
                raise
            if apart:
                notes.append(f"{path} is not read as a data set ({error}), so its parts are told by their names")
        else:
            files = {name: _files_of(part) for name, part in splits.parts.items()}
            trained = files.pop("train", [])
            others = [file for part in files.values() for file in part]
            if not is_folder:
                images = [*trained, *others]
            if parts == "train":
                apart = (apart | set(others)) - set(trained)
    return images, apart


def _files_of(split: Split) -> list[Path]:
    return [(split.image_dir / record.info.file_name).resolve() for record in split.records]


def image_files(split: Split) -> set[Path]:
    """The resolved paths of a split's images."""
    return set(_files_of(split))


def _split_of_files(files: Mapping[Path, str], notes: list[str]) -> Split:
    sizes: list[tuple[int, int]] = []
    readable: list[Path] = []
    errors: list[DatasetError] = []
    for file in files:
        try:
            sizes.append(read_size(file))
            readable.append(file)
        except DatasetError as error:
            errors.append(error)
    reasons = some_of(errors, NAMED_FILES)
    if too_many(len(errors), len(files), is_labeled=False):
        raise DatasetError(
            f"{len(errors)} of {len(files)} images cannot be read, and at most half may be: {reasons}. Remove what is "
            "no image, or give other folders"
        )
    if errors:
        notes.append(f"{count_of(len(errors), 'image', 'images')} left out, because they cannot be read: {reasons}")
    counts = Counter(files[file] for file in readable)
    root = _common_folder(readable)
    names = [file.relative_to(root).as_posix() for file in readable]
    count = len(names)
    table = RecordTable(
        image_ids=np.arange(count, dtype=np.int64),
        file_names=np.array([name.encode(errors="surrogatepass") for name in names]),
        sizes_hw=np.array(sizes, dtype=np.int32).reshape(-1, 2),
        first_box=np.zeros(count + 1, dtype=np.int64),
        boxes_xyxy_px=np.zeros((0, 4), dtype=np.float32),
        labels=np.zeros(0, dtype=np.int64),
        is_crowd=np.zeros(0, dtype=np.bool_),
        areas=np.zeros(0, dtype=np.float64),
    )
    return Split(root, table, NO_CLASSES, table.fingerprint(NO_CLASSES), tuple(notes), tuple(counts.items()))


def _common_folder(files: Iterable[Path]) -> Path:
    """The innermost folder that holds all files.

    Raises:
        DatasetError: they are on different drives.
    """
    try:
        return Path(os.path.commonpath([file.parent for file in files]))
    except ValueError as error:  # on Windows
        raise DatasetError("The images are on different drives; put their folders on one") from error
