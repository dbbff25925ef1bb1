"""What a recognizer returns: the parts of a data set, each ready to be read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from rtdetrv4.data.document import Document
from rtdetrv4.data.faults import Faults
from rtdetrv4.data.tree import Tree, folder_of
from rtdetrv4.errors import DatasetError


class Part(Protocol):
    """Reads one part of a data set."""

    def __call__(self, *, faults: Faults | None = None) -> tuple[Document, Path]:
        """Read the part.

        Args:
            faults: collects what is wrong with single annotations, instead of raising at the first one.

        Returns:
            The annotations, and the folder that their file names are relative to.

        Raises:
            DatasetError: the part cannot be read.
        """
        ...


class Reading(NamedTuple):
    """One way to read a folder."""

    format: str
    """COCO, CVAT, YOLO, Pascal VOC or LabelMe."""
    what: str
    """The format and the files that hold the annotations, for messages."""
    parts: Mapping[str, Part]
    """By "train", "val" and "test"."""
    choose: str
    """What a user gives as data to choose this reading."""
    notes: tuple[str, ...] = ()
    """What was decided, one sentence each."""
    is_numbered: bool = False
    """Whether the classes are called by their numbers, because nothing names them."""


def below_common_folder(document: Document, tree: Tree) -> tuple[Document, Path]:
    """Name images by the innermost folder that holds all of them, instead of the folder of the data set."""
    folders = {folder_of(name) for name in document.file_names if name in tree.present}
    common = os.path.commonpath(folders) if folders and "" not in folders else ""
    names = [name[len(common) :].lstrip("/") if name in tree.present else name for name in document.file_names]
    return document._replace(file_names=names), tree.path(common)


class AbsentPartError(DatasetError):
    """A description names a part of the data set that is not there."""
