"""COCO files of any name: beside the images, in `annotations/`, in the folder of each part; one or several."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rtdetrv4.data.coco import read_document
from rtdetrv4.data.document import Document, some_of
from rtdetrv4.data.faults import Faults
from rtdetrv4.data.layouts.joining import join_documents, joining_note
from rtdetrv4.data.layouts.reading import AbsentPartError, Reading
from rtdetrv4.data.tree import SPLIT_WORDS, Tree, name_of, parts_of, split_of, stem_of
from rtdetrv4.errors import DatasetError, did_you_mean, shown
from rtdetrv4.input_files import is_file, open_file

ANNOTATION_FOLDERS = frozenset({"annotations", "annotation", "labels", "json", "annots"})
EXAMPLE = '"train: annotations/train.json", "val: annotations/val.json", "images: photos"'
_PEEK_BYTES = 65536
_IMAGES = re.compile(r'"images"\s*:\s*\[|"file_name"\s*:')
_BOXES = re.compile(r'"(annotations|categories)"\s*:\s*\[|"(bbox|category_id)"\s*:')


def recognize_coco(tree: Tree) -> Reading | None:
    """Recognize COCO files, assigned to the parts that their names or folders tell; one without a part is to train on.

    Of several files for a part, those of official downloads that hold other tasks are left out, and the others are
    joined.
    """
    stems = set(map(stem_of, tree.images))
    # A JSON file for each image is LabelMe's.
    files = [f for f in tree.ending(".json") if stem_of(f) not in stems and is_coco(tree.path(f))]
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(split_of(file) or "", []).append(file)
    rest = by_split.pop("", [])
    notes = []
    if rest and "train" not in by_split:
        by_split["train"] = rest
    elif rest:
        notes.append(f"Not used, because other files are named after the parts: {some_of(rest)}")
    for split, found in by_split.items():
        instances = [file for file in found if name_of(file).startswith("instances")]
        if instances and len(instances) < len(found):
            notes.append(f"Not used, because instances files hold the boxes: {some_of(set(found) - set(instances))}")
            by_split[split] = instances
        elif len(found) > 1:
            notes.append(joining_note(found, split))
    if not by_split:
        return None
    by_split = {split: by_split[split] for split in SPLIT_WORDS if split in by_split}
    used = [file for found in by_split.values() for file in found]
    return Reading(
        format="COCO",
        what=f"COCO ({some_of(used, 3)})",
        parts={split: partial(_read_files, tree, found, split) for split, found in by_split.items()},
        choose=str(tree.path(used[0])),
        notes=tuple(notes),
    )


def describe_coco_file(path: Path) -> Reading:
    """The reading of a COCO file that was given itself: everything in it is to train on."""
    tree = Tree(path.parent)
    file = path.name
    if not tree.images and path.parent.name.lower() in ANNOTATION_FOLDERS:
        tree, file = Tree(path.parent.parent), f"{path.parent.name}/{path.name}"
    parts = {"train": partial(_read_files, tree, [file], split_of(file))}
    return Reading("COCO", f"COCO ({path.name})", parts, str(path))


def describe_coco_yaml(path: Path, given: Mapping[str, Any]) -> Reading:
    """The reading of a YAML file that names COCO files, each part one or a list of them.

    Raises:
        DatasetError: an entry is unknown or of the wrong type.
    """
    known = [*SPLIT_WORDS, "valid", "images", "path", "names", "nc"]
    if unknown := [key for key in given if key not in known]:
        raise DatasetError(
            f'{path}: unknown entry "{unknown[0]}"; known: {", ".join(known[:5])}.'
            f"{did_you_mean(str(unknown[0]), known[:5])}"
        )
    images = given.get("images")
    parts = {}
    for split, keys in {"train": ["train"], "val": ["val", "valid"], "test": ["test"]}.items():
        entry = next((given[key] for key in keys if given.get(key) is not None), None)
        if entry is None:
            continue
        entries = entry if isinstance(entry, list) else [entry]
        if not entries or not all(isinstance(each, str) and each.lower().endswith(".json") for each in entries):
            raise DatasetError(
                f'{path}: "{split}" should name a COCO .json file; got {shown(entry)}; for example {EXAMPLE}'
            )
        folder = images.get(split) if isinstance(images, Mapping) else images
        if folder is not None and not isinstance(folder, str):
            raise DatasetError(f'{path}: "images" should be a folder, or one folder per split; got {shown(images)}')
        parts[split] = partial(_read_named, path, entries, folder, split)
    if not parts:
        raise DatasetError(f"{path} names no annotation file; expected {EXAMPLE}")
    return Reading("COCO", f"COCO, described by {path.name}", parts, str(path))


def names_coco_files(content: Mapping[str, Any]) -> bool:
    """Whether a YAML file describes a data set of COCO files."""
    entries = [content.get(key) for key in ("train", "val", "valid", "test")]
    named = [each for entry in entries for each in (entry if isinstance(entry, list) else [entry])]
    return any(isinstance(each, str) and each.lower().endswith(".json") for each in named)


def is_coco(path: Path) -> bool:
    """Whether the beginning and the end of a JSON file look like COCO; it may be damaged."""
    text = peek(path)
    return bool(_IMAGES.search(text) and _BOXES.search(text))


def peek(path: Path) -> str:
    """The beginning and the end of a text file."""
    try:
        with open_file(path) as file:
            data = file.read(_PEEK_BYTES)
            file.seek(max(path.stat().st_size - _PEEK_BYTES, _PEEK_BYTES))
            data += file.read()
    except OSError:
        return ""
    return data.decode(json.detect_encoding(data), errors="replace")


def locate(document: Document, tree: Tree, folders: Sequence[str], split: str | None = None) -> tuple[Document, Path]:
    """Find the images of a document; also returns the folder that its file names are relative to from now on.

    Names that no file answers to stay, but without what could lead out of the folder.

    Args:
        document: the annotations.
        tree: the files of the data set.
        folders: where the images may be, the likeliest first.
        split: the part of the data set; images in the folders of another part are not taken.

    Raises:
        DatasetError: an image may be one of several files.
    """
    names = [name.replace("\\", "/") for name in document.file_names]
    bases = [base for folder in folders if (base := tree.find(folder)) is not None]
    best, missing = "", names
    for base in bases:
        prefix = f"{base}/" if base else ""
        absent = [name for name in names if f"{prefix}{name}" not in tree.present]
        if len(absent) < len(missing):
            best, missing = base, absent
        if not absent:
            break
    nearest = {name: found for name in missing if (found := tree.nearest(name, bases, split=split)) is not None}
    harmless = {name: "/".join(parts_of(name)) or "?" for name in missing}
    if not nearest:
        return document._replace(file_names=[harmless.get(name, name) for name in names]), tree.path(best)
    prefix = f"{best}/" if best else ""
    found = [nearest.get(name) or harmless.get(name) or f"{prefix}{name}" for name in names]
    return document._replace(file_names=found), tree.root


def _read_files(
    tree: Tree, files: Sequence[str], split: str | None, *, faults: Faults | None = None
) -> tuple[Document, Path]:
    located = [
        locate(read_document(tree.path(file), faults), tree, _image_folders(file, split), split) for file in files
    ]
    return located[0] if len(located) == 1 else join_documents(located, faults)


def _image_folders(file: str, split: str | None) -> list[str]:
    """Where the images of a COCO file usually are, the likeliest first."""
    folder, _, name = file.rpartition("/")
    stem = stem_of(name).removeprefix("instances_")
    words = (stem, *SPLIT_WORDS.get(split or "", ()))
    bases = dict.fromkeys((folder, folder.rpartition("/")[0], ""))
    usual = ["", *(f"images/{word}" for word in words), *words, "images"]
    return [f"{base}/{place}".strip("/") for base in bases for place in usual]


def _read_named(
    path: Path, entries: Sequence[str], folder: str | None, split: str, *, faults: Faults | None = None
) -> tuple[Document, Path]:
    files = [path.parent / entry.replace("\\", "/") for entry in entries]
    if not any(map(is_file, files)):
        raise AbsentPartError(f'{path}: "{split}" is {some_of(entries)}, which does not exist; looked for {files[0]}')
    located = []
    for file in files:
        document = read_document(file, faults)
        if folder is not None:
            located.append(locate(document, Tree(path.parent / folder), [""]))
        elif file.is_relative_to(path.parent):
            relative = file.relative_to(path.parent).as_posix()
            located.append(locate(document, Tree(path.parent), _image_folders(relative, split), split))
        else:
            located.append(locate(document, Tree(file.parent), [""]))
    return located[0] if len(located) == 1 else join_documents(located, faults)
