"""CVAT's own format: XML files that list images and their shapes, of tasks, jobs or whole projects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rtdetrv4.data.cvat import CvatFile, parse_cvat, read_cvat
from rtdetrv4.data.document import Document, count_of, some_of
from rtdetrv4.data.faults import Faults
from rtdetrv4.data.layouts.coco import locate
from rtdetrv4.data.layouts.joining import join_documents, joining_note
from rtdetrv4.data.layouts.reading import Part, Reading
from rtdetrv4.data.tree import SPLIT_WORDS, Tree, folder_of, split_of
from rtdetrv4.errors import DatasetError
from rtdetrv4.input_files import open_file

_PEEK_BYTES = 4096
_ROOT = re.compile(rb"<annotations[\s>]")


class _Piece(NamedTuple):
    """The images of a file that are of one subset."""

    file: str
    content: CvatFile
    subset: str
    images: tuple[int, ...]


def recognize_cvat(tree: Tree) -> Reading | None:
    """Recognize CVAT's files, with the images assigned to the parts by their subset or the path of the file.

    Raises:
        DatasetError: the files list no images.
    """
    files = [file for file in tree.ending(".xml") if is_cvat(tree.path(file))]
    return _reading(tree, files, str(tree.path(files[0]))) if files else None


def describe_cvat_file(path: Path) -> Reading:
    """The reading of a CVAT file that was given itself.

    Raises:
        DatasetError: it lists no images.
    """
    return _reading(Tree(path.parent), [path.name], str(path))


def is_cvat(path: Path) -> bool:
    """Whether a file begins like one of CVAT's; it may be damaged."""
    try:
        with open_file(path) as file:
            return _ROOT.search(file.read(_PEEK_BYTES).replace(b"\0", b"")) is not None  # UTF-16 too
    except OSError:
        return False


def _reading(tree: Tree, files: Sequence[str], choose: str) -> Reading:
    pieces: dict[str, list[_Piece]] = {}
    notes: list[str] = []
    for file in files:
        content = parse_cvat(tree.path(file))
        if not content.images:
            notes.append(_why_empty(content))
        by_subset: dict[str, list[int]] = {}
        for index, image in enumerate(content.images):
            by_subset.setdefault(image.subset, []).append(index)
        for subset, images in by_subset.items():
            split = split_of(subset) or split_of(file) or ""
            pieces.setdefault(split, []).append(_Piece(file, content, subset, tuple(images)))
    if not pieces:
        raise DatasetError(notes[0])
    notes = [f"Not used: {note}" for note in notes]
    if rest := pieces.pop("", []):
        if "train" not in pieces:
            pieces["train"] = rest
        else:
            count = count_of(sum(len(piece.images) for piece in rest), "image", "images")
            named = some_of(dict.fromkeys(piece.subset or piece.file for piece in rest))
            notes.append(f"{count} of {named} not used, because other subsets are named after the parts")
    pieces = {split: pieces[split] for split in SPLIT_WORDS if split in pieces}
    for split, found in pieces.items():
        if len(own := dict.fromkeys(piece.file for piece in found)) > 1:
            notes.append(joining_note(list(own), split))
    parts: dict[str, Part] = {split: partial(_read, tree, found, split) for split, found in pieces.items()}
    used = dict.fromkeys(piece.file for found in pieces.values() for piece in found)
    return Reading("CVAT", f"CVAT for images ({some_of(used, 3)})", parts, choose, tuple(notes))


def _why_empty(content: CvatFile) -> str:
    if content.damage is not None:
        return f"{content.path} is damaged: {content.damage}"
    if content.num_tracks:
        return (
            f'{content.path} is in the format "CVAT for video", which says nothing about the files of frames; export '
            'the task as "CVAT for images 1.1" or "COCO 1.0", with its images'
        )
    return f"{content.path} lists no images; export the task from CVAT again, when something is annotated"


def _read(tree: Tree, pieces: Sequence[_Piece], split: str, *, faults: Faults | None = None) -> tuple[Document, Path]:
    located = [
        locate(read_cvat(piece.content, piece.images, faults), tree, _image_folders(piece, split), split)
        for piece in pieces
    ]
    return located[0] if len(located) == 1 else join_documents(located, faults)


def _image_folders(piece: _Piece, split: str) -> list[str]:
    """Where CVAT puts the images, and where they are put by hand, the likeliest first."""
    folder = folder_of(piece.file)
    named = [name for name in dict.fromkeys((piece.subset, *SPLIT_WORDS[split])) if name]
    places = [*(f"images/{name}" for name in named), "images", *named, ""]
    bases = dict.fromkeys((folder, folder_of(folder), ""))
    return [f"{base}/{place}".strip("/") for base in bases for place in places]
