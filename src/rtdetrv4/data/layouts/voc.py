"""Pascal VOC: XML files in a folder of any name or beside the images, with or without lists of the parts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rtdetrv4.data.document import Document, count_of
from rtdetrv4.data.faults import Faults, stop
from rtdetrv4.data.layouts.reading import Part, Reading, below_common_folder
from rtdetrv4.data.records import too_many
from rtdetrv4.data.text import read_lines
from rtdetrv4.data.tree import SPLIT_WORDS, Tree, folder_of, spelling, split_of, stem_of, suffix_of
from rtdetrv4.data.voc import read_voc
from rtdetrv4.errors import DatasetError
from rtdetrv4.input_files import open_file
from rtdetrv4.runtime.sources import IMAGE_SUFFIXES

OTHER_TASKS = frozenset({"layout", "action", "segmentation"})
"""Folders of ImageSets that list images for tasks other than detection."""
_FLAG = re.compile(r"\s+[-+]?[01]$")
_PEEK_BYTES = 4096
_ROOT = re.compile(rb"<annotation[\s>]")


def recognize_voc(tree: Tree) -> Reading | None:
    """Recognize XML files of boxes, assigned to the parts by lists, by their folders, or all to train on."""
    stems = {spelling(stem_of(image)) for image in tree.images}
    is_annotation = {file: _is_annotation(tree.path(file)) for file in tree.ending(".xml")}
    if not any(is_annotation.values()):
        return None
    # A damaged file is told, and not taken for a file of another kind.
    files = [file for file, known in is_annotation.items() if known or spelling(stem_of(file)) in stems]
    if lists := _lists(tree):
        parts: dict[str, Part] = {split: partial(_read_listed, tree, found) for split, found in lists.items()}
        what = f"Pascal VOC with the lists {', '.join(file for found in lists.values() for file in found)}"
    else:
        by_split: dict[str, list[str]] = {}
        for file in files:
            by_split.setdefault(split_of(folder_of(file)) or "", []).append(file)
        rest = by_split.pop("", [])
        if "train" not in by_split and rest:
            by_split["train"] = rest
        annotated = frozenset(spelling(stem_of(file)) for file in files)
        parts = {split: partial(_read, tree, found, annotated) for split, found in by_split.items()}
        what = f"Pascal VOC ({count_of(len(files), 'XML file', 'XML files')})"
    return Reading("Pascal VOC", what, parts, "a folder that holds only the XML files and their images")


def _is_annotation(path: Path) -> bool:
    try:
        with open_file(path) as file:
            return _ROOT.search(file.read(_PEEK_BYTES).replace(b"\0", b"")) is not None  # UTF-16 too
    except OSError:
        return False


def _lists(tree: Tree) -> dict[str, list[str]]:
    """The lists of each part; those of single classes, such as dog_train.txt, are none."""
    found: dict[str, list[str]] = {}
    for file in tree.ending(".txt"):
        *folders, _ = file.lower().split("/")
        if OTHER_TASKS.intersection(folders) or ("imagesets" not in folders and folders):
            continue
        stem = stem_of(file).lower()
        split = next((split for split, words in SPLIT_WORDS.items() if stem in words), None)
        if split or stem in {"trainval", "default"}:
            found.setdefault(split or stem, []).append(file)
    whole = found.pop("trainval", []) or found.pop("default", [])
    found.pop("default", None)
    if whole and not {"train", "val"} & found.keys():
        found["train"] = whole
    return {split: found[split] for split in SPLIT_WORDS if split in found}


def _read_listed(tree: Tree, lists: Sequence[str], *, faults: Faults | None = None) -> tuple[Document, Path]:
    files: list[str] = []
    background: list[str] = []
    problems: list[str] = []
    for file in lists:
        lines = read_lines(tree.path(file))
        base = file.lower().rpartition("imagesets/")[0]
        # A tree may hold several sets of the challenges, each with lists of its own.
        prefer = [file[: len(base)].rstrip("/")]
        missing = []
        for number, line in enumerate(lines, start=1):
            stems = list(_stems(line))
            if xml := next(filter(None, (tree.nearest(f"{stem}.xml", prefer, (".xml",)) for stem in stems)), None):
                files.append(xml)
            elif image := next(filter(None, (tree.nearest(stem, prefer) for stem in stems)), None):
                background.append(image)
            else:
                missing.append(f"{stems[-1]}.xml")
                if faults is not None:
                    faults.add("missing image", tree.path(file), "line", number, f"{line} has no image and no XML file")
        if too_many(len(missing), len(lines)):
            error = DatasetError(
                f"{tree.path(file)} lists {count_of(len(missing), 'image', 'images')} without annotations; the first "
                f"missing file is {missing[0]}"
            )
            stop(error, faults)
        if missing:
            problems.append(
                f"{count_of(len(missing), 'image', 'images')} of {file} left out: no annotations and no image (first: "
                f"{missing[0]})"
            )
    if not files:
        raise DatasetError(f"{', '.join(map(str, map(tree.path, lists)))}: no listed image has an XML file")
    if background:
        problems.append(
            f"{count_of(len(background), 'image', 'images')} listed without an XML file, taken as background (first: "
            f"{background[0]})"
        )
    document = read_voc(list(dict.fromkeys(files)), tree, list(dict.fromkeys(background)), faults)
    return below_common_folder(document._replace(problems=(*problems, *document.problems)), tree)


def _stems(line: str) -> Iterator[str]:
    """What a line of a list may name: it may have an extension, a flag as in lists of classes, or a second column."""
    if columns := [word for word in line.split() if word.lower().endswith(".xml")]:
        yield columns[-1][: -len(".xml")]
    for text in dict.fromkeys((line, _FLAG.sub("", line))):
        yield text
        if suffix_of(text) in IMAGE_SUFFIXES:
            yield text.rpartition(".")[0]


def _read(
    tree: Tree, files: Sequence[str], annotated: frozenset[str], *, faults: Faults | None = None
) -> tuple[Document, Path]:
    document = read_voc(files, tree, faults=faults)
    problems = (*left_out(document, tree, annotated), *document.problems)
    return below_common_folder(document._replace(problems=problems), tree)


def left_out(document: Document, tree: Tree, annotated: frozenset[str]) -> tuple[str, ...]:
    """Report the images without an annotation file beside those that have one.

    Args:
        document: the annotations of a part, with file names relative to the tree.
        tree: the files of the data set.
        annotated: the stems of all annotation files as `spelling` writes them, and of their images.
    """
    used = set(document.file_names)
    folders = set(map(folder_of, used))
    without = [
        image
        for image in tree.images
        if folder_of(image) in folders and image not in used and spelling(stem_of(image)) not in annotated
    ]
    if not without:
        return ()
    text = f"{count_of(len(without), 'image', 'images')} left out: without an annotation file (first: {without[0]})"
    return (text,)
