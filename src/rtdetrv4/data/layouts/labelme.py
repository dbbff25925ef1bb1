"""LabelMe: JSON files of shapes beside the images, or in a folder of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rtdetrv4.data.document import Document, count_of
from rtdetrv4.data.faults import Faults
from rtdetrv4.data.labelme import read_labelme
from rtdetrv4.data.layouts.coco import peek
from rtdetrv4.data.layouts.reading import Reading, below_common_folder
from rtdetrv4.data.layouts.voc import left_out
from rtdetrv4.data.tree import Tree, folder_of, spelling, split_of, stem_of

_SHAPES = re.compile(r'"shapes"\s*:\s*\[')
_IMAGE = re.compile(r'"image(Path|Height|Width|Data)"\s*:')


def recognize_labelme(tree: Tree) -> Reading | None:
    """Recognize LabelMe's files, assigned to the parts by their folders, or all to train on."""
    files = [file for file in tree.ending(".json") if _is_labelme(tree.path(file))]
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(split_of(folder_of(file)) or "", []).append(file)
    rest = by_split.pop("", [])
    if "train" not in by_split and rest:
        by_split["train"] = rest
    if not by_split:
        return None
    annotated = frozenset(spelling(stem_of(file)) for file in files)
    return Reading(
        format="LabelMe",
        what=f"LabelMe ({count_of(len(files), 'JSON file', 'JSON files')})",
        parts={split: partial(_read, tree, found, annotated) for split, found in by_split.items()},
        choose="a folder that holds only the JSON files and their images",
    )


def _is_labelme(path: Path) -> bool:
    text = peek(path)
    return bool(_SHAPES.search(text) and _IMAGE.search(text))


def _read(
    tree: Tree, files: Sequence[str], annotated: frozenset[str], *, faults: Faults | None = None
) -> tuple[Document, Path]:
    document = read_labelme(files, tree, faults)
    problems = (*left_out(document, tree, annotated), *document.problems)
    return below_common_folder(document._replace(problems=problems), tree)
