"""Reading data sets in COCO, YOLO, Pascal VOC, LabelMe and CVAT format, checked here so that nothing later has to.

Whatever would do silent harm raises a `DatasetError`: an annotation of an unknown class, two classes with the same
name, missing images. Whatever can be corrected without guessing is corrected, counted and listed in `Split.problems`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from rtdetrv4.data.coco import read_document
from rtdetrv4.data.document import Document, build_split, make_class_map
from rtdetrv4.data.holdout import find_copies, hold_out
from rtdetrv4.data.layouts import AbsentPartError, Reading, describe, recognize
from rtdetrv4.data.layouts.coco import locate
from rtdetrv4.data.records import Record, RecordTable, Split, Splits
from rtdetrv4.data.tree import Tree
from rtdetrv4.errors import DatasetError
from rtdetrv4.input_files import of_home
from rtdetrv4.types import ClassMap

__all__ = ["LoadedData", "Record", "RecordTable", "Split", "Splits", "load_data", "read_coco", "read_splits"]

ROBOFLOW_FILE = "_annotations.coco.json"
SPLITS = ("train", "val", "test")


class LoadedData(NamedTuple):
    """A data set, and how it came about."""

    reading: Reading
    documents: Mapping[str, tuple[Document, Path]]
    """By part: the annotations before anything was dropped or corrected, and the folder of their images."""
    classes: ClassMap | None
    """None if no part was read."""
    splits: Splits


def read_splits(
    path: str | Path,
    classes: ClassMap | None = None,
    parts: Collection[str] = SPLITS,
    *,
    make_val: bool = False,
) -> Splits:
    """Read a data set: a folder, whatever annotations it holds and however they are arranged, or one file of it.

    What is recognized is listed in docs/guides/own-data.md; `Splits.notes` says what was. All splits share the classes
    of the training split, matched by *name*: their category ids and order may differ.

    Args:
        path: the folder, a YAML file that describes it, or a COCO file.
        classes: label by these classes, such as those of a trained model, instead of those of the training split.
        parts: what is needed of "train", "val" and "test"; the others are not read and may be damaged. A validation
            or test part that is described but absent is None, with a note; so is a damaged test part, unless only
            that one is needed.
        make_val: if there is no validation part, take a fifth of the training images for it.

    Raises:
        DatasetError: there is no data set, or its annotations contradict themselves.
    """
    return load_data(path, classes, parts, make_val=make_val).splits


def load_data(
    path: str | Path,
    classes: ClassMap | None = None,
    parts: Collection[str] = SPLITS,
    *,
    make_val: bool = False,
) -> LoadedData:
    """Read a data set as `read_splits` does, and keep what the splits were made of."""
    root = of_home(path)
    if not root.exists():
        raise DatasetError(f"{root} does not exist; give the folder of the data set or a .yaml file that describes it")
    reading = recognize(root) if root.is_dir() else describe(root)
    notes = [f"Data read as {reading.what}", *reading.notes]
    found: dict[str, tuple[Document, Path]] = {}
    for split in SPLITS:
        if split in parts and split in reading.parts:
            try:
                found[split] = reading.parts[split]()
            except DatasetError as error:
                if not _may_lack(split, error, parts):
                    raise
                notes.append(f"No {split} part: {error}")
    makes_val = make_val and "val" in parts and "val" not in found
    if "train" in reading.parts and "train" not in found and (makes_val or classes is None):
        found |= _read_for_names(reading, notes) if found and not makes_val else {"train": reading.parts["train"]()}
    if not found:
        return LoadedData(reading, {}, None, Splits(None, None, None, tuple(notes)))

    documents = [document for document, _ in found.values()]
    if classes is None:
        classes = make_class_map(found["train"][0] if "train" in found else documents[0], documents)
    splits: dict[str, Split] = {}
    for split, (document, folder) in found.items():
        if split in parts or (split == "train" and makes_val):
            try:
                splits[split] = build_split(document, (folder,), classes)
            except DatasetError as error:
                if not _may_lack(split, error, parts):
                    raise
                notes.append(f"No {split} part: {error}")
    if makes_val and "train" in splits:
        splits["train"], splits["val"], note = hold_out(splits["train"])
        notes.append(note)
    elif "train" in splits and "val" in splits:
        notes += find_copies(splits["train"], splits["val"])
    read = Splits(
        splits.get("train") if "train" in parts else None,
        splits.get("val"),
        splits.get("test"),
        tuple(notes),
        is_val_made=makes_val and "val" in splits,
    )
    return LoadedData(reading, found, classes, read)


def read_coco(json_path: str | Path, image_dir: str | Path | None = None, classes: ClassMap | None = None) -> Split:
    """Read one COCO file.

    Args:
        json_path: annotations in COCO's object detection format.
        image_dir: the folder that holds the images; by default the folder of `json_path`.
        classes: label by these classes, matched by name, instead of the file's own.

    Raises:
        DatasetError: the file is missing or damaged, contradicts itself, or lists images that do not exist.
    """
    document = read_document(of_home(json_path))
    folder = document.path.parent if image_dir is None else of_home(image_dir)
    document, folder = locate(document, Tree(folder), [""])
    return build_split(document, (folder,), classes or make_class_map(document, [document]))


def _may_lack(split: str, error: DatasetError, parts: Collection[str]) -> bool:
    """Whether the other parts can be used without this one."""
    return (isinstance(error, AbsentPartError) and split != "train") or (split == "test" and len(parts) > 1)


def _read_for_names(reading: Reading, notes: list[str]) -> dict[str, tuple[Document, Path]]:
    """The training part, which defines the classes; nothing if it cannot be read, which is noted."""
    try:
        return {"train": reading.parts["train"]()}
    except DatasetError as error:
        notes.append(f"The classes are those of the part that was read, because the training part is not: {error}")
        return {}
