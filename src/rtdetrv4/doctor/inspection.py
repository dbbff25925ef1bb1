"""What the checks are given: a data set as it was read, and what a look at every image told."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from rtdetrv4.data.document import Document, build_split, make_class_map
from rtdetrv4.data.faults import Fault, FaultKind, Faults
from rtdetrv4.data.formats import SPLITS, LoadedData
from rtdetrv4.data.layouts import AbsentPartError, Reading, describe, recognize
from rtdetrv4.data.records import Split, require_objects
from rtdetrv4.data.tree import Tree
from rtdetrv4.doctor.image_facts import ImageFacts, look_at_all
from rtdetrv4.errors import DatasetError
from rtdetrv4.input_files import of_home
from rtdetrv4.types import ClassMap

__all__ = ["ImageFacts", "Inspection", "Part", "inspect", "inspect_quickly"]

INPUT_HW = (640, 640)


class Part(NamedTuple):
    """One part of a data set."""

    name: str
    """"train", "val" or "test"."""
    document: Document | None
    """The annotations as given, before boxes are dropped or corrected; None if they cannot be read."""
    folder: Path
    """What the file names of the document are relative to."""
    split: Split | None
    """What training makes of it; None if it stops instead."""
    faults: tuple[Fault, ...]
    """What could not even become part of the document, up to `MAX_KEPT` of a kind."""
    stop: str | None
    """Why training stops; None if it does not."""
    is_absent: bool = False
    """Whether the part is named, but not there."""
    fault_counts: Mapping[FaultKind, int] = MappingProxyType({})
    """How many there were of each kind of `faults`."""

    @property
    def image_paths(self) -> list[Path]:
        """The absolute path of each image of the document, whether it is there or not; a key of `Inspection.facts`."""
        return self.paths(self.document.file_names if self.document is not None else ())

    def paths(self, names: Iterable[str]) -> list[Path]:
        """The absolute paths of images named relative to the folder."""
        folder = _absolute(self.folder)
        return [Path(folder, name) for name in names]


class Inspection(NamedTuple):
    """A data set as the checks see it."""

    data: str
    """As given."""
    root: Path
    """The absolute path of the folder that was given, or of that of the file that was given."""
    tree: Tree | None
    """The files below `root`; None in a quick check."""
    reading: Reading | None
    """None if no annotations were recognized."""
    stop: str | None
    """Why nothing was recognized."""
    classes: ClassMap | None
    """None if no part could be read."""
    parts: Mapping[str, Part]
    """By name, in the order train, val, test; those that are described, whether they can be read or not."""
    facts: Mapping[Path, ImageFacts]
    """By absolute path; missing images have none. Empty in a quick check, which opens no image."""
    part_of: Mapping[Path, str]
    """The part of each image, by absolute path; of an image in several parts, the last."""
    input_hw: tuple[int, int] = INPUT_HW
    """The size to which training scales images."""
    num_queries: int = 300
    """The most objects that the detector can find in an image."""

    @property
    def is_quick(self) -> bool:
        """Whether no image was opened."""
        return self.tree is None

    def relative(self, path: Path) -> str:
        """A path relative to the root if it is below it, with forward slashes."""
        absolute = _absolute(path)
        return (absolute.relative_to(self.root) if absolute.is_relative_to(self.root) else absolute).as_posix()


def inspect(data: str | Path, *, quick: bool = False) -> Inspection:
    """Read a data set without stopping at what would stop training, and look at every image of it.

    Args:
        data: a folder, a YAML file or a COCO file, as for training.
        quick: look at no image.

    Raises:
        DatasetError: there is nothing at the path.
    """
    given = _absolute(of_home(data))
    if not given.exists():
        raise DatasetError(f"{data} does not exist; give the folder of the data set or a .yaml file that describes it")
    root = given if given.is_dir() else given.parent
    console = Console(stderr=True)
    tree = None if quick else Tree(root)
    reading, stop = None, None
    with console.status("Reading annotations") if console.is_interactive else nullcontext():
        try:
            reading = recognize(given) if given.is_dir() else describe(given)
        except DatasetError as error:
            stop = str(error)
        parts, classes = ({}, None) if reading is None else _read_parts(reading)
    part_of = {path: part.name for part in parts.values() for path in part.image_paths}
    facts = ()
    if tree is not None:
        # Of a file that describes a data set, what else lies beside it is no part of that.
        others = map(tree.path, tree.images) if given.is_dir() else ()
        paths = sorted({*others, *(path for path in part_of if path.is_file())})
        facts = track(
            look_at_all(paths),
            "Looking at images",
            total=len(paths),
            console=console,
            transient=True,
            disable=not console.is_interactive,
        )
    return Inspection(
        data=str(data),
        root=root,
        tree=tree,
        reading=reading,
        stop=stop,
        classes=classes,
        parts=parts,
        facts={each.path: each for each in facts},
        part_of=part_of,
    )


def inspect_quickly(data: str | Path, loaded: LoadedData) -> Inspection:
    """What is known of a data set once it has been read for training.

    Args:
        data: as given.
        loaded: what was read.
    """
    given = _absolute(of_home(data))
    splits = loaded.splits.parts
    parts = {
        name: Part(name, document, folder, splits.get(name), (), None)
        for name, (document, folder) in loaded.documents.items()
    }
    return Inspection(
        data=str(data),
        root=given if given.is_dir() else given.parent,
        tree=None,
        reading=loaded.reading,
        stop=None,
        classes=loaded.classes,
        parts=parts,
        facts={},
        part_of={},
    )


def _absolute(path: Path) -> Path:
    """The path without "..", and with its links."""
    return Path(os.path.normpath(path.absolute()))


def _read_parts(reading: Reading) -> tuple[dict[str, Part], ClassMap | None]:
    parts: dict[str, Part] = {}
    for name in SPLITS:
        if name in reading.parts:
            parts[name] = _read_part(name, reading)
    documents = [part.document for part in parts.values() if part.document is not None]
    if not documents:
        return parts, None
    owner = next(part for part in parts.values() if part.document is not None)
    assert owner.document is not None
    try:
        classes = make_class_map(owner.document, documents)
    except DatasetError as error:
        parts[owner.name] = owner._replace(stop=owner.stop or str(error))
        return parts, None
    return {name: _with_split(part, classes) for name, part in parts.items()}, classes


def _read_part(name: str, reading: Reading) -> Part:
    faults = Faults()
    try:
        document, folder = reading.parts[name](faults=faults)
    except DatasetError as error:
        absent = isinstance(error, AbsentPartError) and name != "train"
        return Part(name, None, Path(), None, tuple(faults.found), str(error), absent, faults.counts)
    stop = None if faults.stop is None else str(faults.stop)
    return Part(name, document, folder, None, tuple(faults.found), stop, fault_counts=faults.counts)


def _with_split(part: Part, classes: ClassMap) -> Part:
    if part.document is None:
        return part
    try:
        split = build_split(part.document, (part.folder,), classes)
        if part.name == "train":
            require_objects(split)
    except DatasetError as error:
        return part._replace(stop=part.stop or str(error))
    return part._replace(split=split)
