"""YOLO data sets: with a YAML file, with darknet's files, or with nothing but images and label files."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rtdetrv4.data.document import Document, count_of, some_of
from rtdetrv4.data.faults import Fault, Faults, stop
from rtdetrv4.data.layouts.coco import EXAMPLE, describe_coco_yaml, names_coco_files
from rtdetrv4.data.layouts.reading import AbsentPartError, Part, Reading
from rtdetrv4.data.records import too_many
from rtdetrv4.data.text import MAX_YAML_BYTES, read_lines, read_text, read_yaml
from rtdetrv4.data.tree import SPLIT_WORDS, Tree, folder_of, parts_of, split_of, stem_of, suffix_of
from rtdetrv4.data.yolo import read_labels, read_names
from rtdetrv4.data.yolo_labels import keypoint_shape
from rtdetrv4.errors import DatasetError, did_you_mean, one_line, shown
from rtdetrv4.input_files import is_file, is_folder, of_home
from rtdetrv4.json_text import load_json
from rtdetrv4.runtime.sources import IMAGE_SUFFIXES

SPLIT_KEYS: dict[str, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
ENTRY_KEYS = ("path", "train", "val", "test", "names", "nc")
"""Entries of a YAML file that are read, by their usual names."""
ROBOFLOW_ENTRY = re.compile(r"\.\./(train|valid|test)/images/?")
"""What Roboflow writes where train/images is meant, beside the YAML file."""
IMAGE_FOLDERS = frozenset({"images", "image", "imgs", "img", "jpegimages"})
LABEL_FOLDERS = frozenset({"labels", "label", "annotations", "annotation", "txt"})
NAME_FILES = ("classes.txt", "obj.names", "predefined_classes.txt", "_darknet.labels", "classes.names", "labels.txt")
"""Files with one class name per line, as labelImg, darknet and Roboflow call them."""
_DESCRIPTION = re.compile(r"^[\"']?(names|nc|train|val|valid)[\"']?\s*:", re.MULTILINE)
_LABEL_LINE = re.compile(r"\s*\d+(\.0*)?(\s+[-+.\deE]+){4,}\s*")
_MAX_DEPTH = 2
_NUM_PEEKED = 100


class _Labeled(NamedTuple):
    """The files of one part."""

    images: list[Path]
    labels: list[Path | None]
    folder: Path
    """What the names of the images are relative to."""
    problems: tuple[str, ...] = ()
    missing: tuple[Fault, ...] = ()
    """Lines of a list that name no image, where they are collected."""


class _Files(Protocol):
    """Finds the files of one part."""

    def __call__(self, *, faults: Faults | None = None) -> _Labeled: ...


def recognize_yaml(tree: Tree) -> Reading | None:
    """Recognize a YAML file that names the parts of a data set, YOLO's or of COCO files.

    Other YAML files are left alone. Of several, data.yaml is taken, or the first.

    Raises:
        DatasetError: the only file that looks like one is not valid YAML.
    """
    candidates: dict[str, dict[str, Any]] = {}
    damaged: list[DatasetError] = []
    for file in tree.ending(".yaml", ".yml"):
        if file.count("/") > _MAX_DEPTH:
            continue
        try:
            if not _DESCRIPTION.search(read_text(tree.path(file), MAX_YAML_BYTES)):
                continue
            content = read_yaml(tree.path(file), EXAMPLE)
        except DatasetError as error:
            damaged.append(error)
            continue
        if _describes_data(content):
            candidates[file] = content
    if not candidates:
        if damaged:
            raise damaged[0]
        return None

    def rank(file: str) -> tuple[bool, int, bool, str]:
        named = stem_of(file).lower() in {"data", "dataset"}
        return not _entries(candidates[file]), file.count("/"), not named, file

    chosen, *others = sorted(candidates, key=rank)
    reading = describe_yaml(tree.path(chosen), candidates[chosen], tree)
    if not others:
        return reading
    choice = f"{chosen} describes the data set, and so does {some_of(others)}; give the file to use as data"
    return reading._replace(notes=(*reading.notes, choice))


def describe_yaml(path: Path, content: Mapping[str, Any], tree: Tree | None = None) -> Reading:
    """The reading of a YAML file.

    Args:
        path: the file.
        content: its content.
        tree: the folder that was given as data, if the file is in it.

    Raises:
        DatasetError: an entry is of the wrong type, or contradicts another.
    """
    if names_coco_files(content):
        return describe_coco_yaml(path, content)
    names = _yaml_names(path, content)
    keypoints = keypoint_shape(path, content)
    base = _base(path, content)
    if tree is None or not base.is_relative_to(tree.root):
        tree = Tree(base)
    notes = _misspelled(path.name, content)
    if entries := _entries(content):
        files: dict[str, _Files] = {
            split: partial(_described, path, base, tree, split, entry) for split, entry in entries.items()
        }
    else:
        files = {split: partial(_found, found) for split, found in _assigned(tree).items()}
    if not files:
        raise DatasetError(f'{path} names no images; expected entries such as "train: images/train", "val: images/val"')
    if names is None:
        names, source = _found_names(tree)
        if names is None:
            names = _numbered(_available(files.values()), content.get("nc"))
            notes += (_numbers_note(path.name, names),)
        else:
            notes += (f"{path.name} has no class names; those in {source} are used",)
    parts: dict[str, Part] = {split: partial(_read, path, each, names, keypoints) for split, each in files.items()}
    return Reading("YOLO", f"YOLO, described by {path.name}", parts, str(path), notes)


def recognize_yolo(tree: Tree) -> Reading | None:
    """Recognize images with label files, in folders or lists named after the parts, or all to train on.

    Raises:
        DatasetError: two files number the classes differently.
    """
    files = _assigned(tree)
    if not files:
        return None
    names, source = _found_names(tree)
    notes: tuple[str, ...] = ()
    if names is None:
        names = _numbered(files.values(), None)
        notes = (_numbers_note("classes.txt", names),)
    parts: dict[str, Part] = {
        split: partial(_read, tree.root, partial(_found, found), names) for split, found in files.items()
    }
    what = f"YOLO label files with the class names in {source}" if source else "YOLO label files"
    return Reading("YOLO", what, parts, "a data.yaml with train, val and names", notes, is_numbered=not source)


# Which images ------------------------------------------------------------------------------------------------------


def _describes_data(content: Mapping[str, Any]) -> bool:
    names = content.get("names")
    return bool(_entries(content)) or (isinstance(names, list | dict) and bool(names))


def _entries(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the parts, if they are paths or lists, as nothing but a data set has them."""
    return {
        split: entry
        for split, keys in SPLIT_KEYS.items()
        for key in keys
        if isinstance(entry := content.get(key), str | list) and entry
    }


def _misspelled(name: str, content: Mapping[str, Any]) -> tuple[str, ...]:
    """What to say of entries that look like one that is missing; others are left to the tools that wrote them."""
    missing = [key for key in ENTRY_KEYS if content.get(key) is None]
    # An entry that has another of its names, such as "valid", is not missing.
    missing = [key for key in missing if not any(content.get(other) for other in SPLIT_KEYS.get(key, ()))]
    unknown = [str(key) for key in content if key not in ENTRY_KEYS and key not in SPLIT_KEYS["val"]]
    hints = ((key, did_you_mean(key, missing)) for key in unknown)
    return tuple(f'{name}: "{one_line(key)}" is unknown and ignored.{hint}' for key, hint in hints if hint)


def _base(path: Path, content: Mapping[str, Any]) -> Path:
    """The folder that the paths of the parts are relative to."""
    given = content.get("path")
    if given is None:
        return path.parent
    if not isinstance(given, str):
        raise DatasetError(f'{path}: "path" should be a folder; got {shown(given)}')
    # Written on another machine, or for a tool that keeps data sets in a folder of its own, the path may not exist.
    places = (path.parent / given.replace("\\", "/"), of_home(given))
    found = next((place for place in places if is_folder(place)), path.parent)
    if found == path.parent:
        return found
    if found.resolve() == Path(found.resolve().anchor):
        raise DatasetError(f'{path}: "path" is {given}, the root of all files; give the folder of the data set')
    return Path(os.path.normpath(found))


def _described(path: Path, base: Path, tree: Tree, split: str, entry: Any, *, faults: Faults | None = None) -> _Labeled:
    entries = entry if isinstance(entry, list) else [entry]
    if not entries or not all(isinstance(each, str) for each in entries):
        raise DatasetError(f'{path}: "{split}" should be a folder of images or a list of folders; got {shown(entry)}')
    places = [_place(path, base, tree, split, each) for each in entries]
    images: list[Path] = []
    labels: list[Path | None] = []
    problems: list[str] = []
    for place in places:
        own_tree = tree if place.is_relative_to(tree.root) else Tree(_data_folder(place))
        relative = place.relative_to(own_tree.root).as_posix()
        if place.is_dir():
            prefix = "" if relative == "." else f"{relative}/"
            found = [image for image in own_tree.images if image.startswith(prefix)]
        else:
            found = _listed(own_tree, relative, problems, faults)
        images += map(own_tree.path, found)
        labels += (None if label is None else own_tree.path(label) for label in _labels_of(own_tree, found))
    if not images:
        raise AbsentPartError(f'{path}: "{split}" has no images in {some_of(places)}')
    if not any(labels):
        raise DatasetError(
            f"{path}: none of the {len(images)} images in {some_of(places)} has labels; looked for "
            f"{_label_places(images[0].as_posix())[0]}"
        )
    folder = Path(os.path.commonpath([base if place.is_file() else place for place in places]))
    if not all(image.is_relative_to(folder) for image in images):
        folder = Path(os.path.commonpath([image.parent for image in images]))
    return _Labeled(images, labels, folder, tuple(problems))


def _place(path: Path, base: Path, tree: Tree, split: str, entry: str) -> Path:
    """The folder or list that an entry names, wherever it was written."""
    name = entry.replace("\\", "/")
    inside = re.sub(r"^(\.\./)+", "", name)
    places = [base / name, base / inside, path.parent / name, path.parent / inside]
    if ROBOFLOW_ENTRY.fullmatch(name) and base == path.parent:  # what lies above may be another export
        places.sort(key=lambda place: ".." in place.parts)
    for place in places:
        if is_file(place) or is_folder(place):
            return Path(os.path.normpath(place))
    parts = parts_of(name)
    for start, part in enumerate(parts):
        if found := tree.find("/".join(parts[start:])):
            return tree.path(found)
        if split_of(part):  # without it, the path would no longer say which part is meant
            break
    given, place = one_line(entry, 300), one_line(str(base / name), 300)
    raise AbsentPartError(f'{path}: "{split}" is {given}, which does not exist; looked for {place}')


def _data_folder(place: Path) -> Path:
    """The folder that holds both the images at a place and their labels."""
    folder = place if place.is_dir() else place.parent
    names = [part.lower() for part in folder.parts]
    above = next((i for i in reversed(range(1, len(names))) if names[i] in IMAGE_FOLDERS), None)
    return folder if above is None else Path(*folder.parts[:above])


def _listed(tree: Tree, file: str, problems: list[str], faults: Faults | None) -> list[str]:
    """The images that a text file lists."""
    place = tree.path(file)
    if suffix_of(file) != ".txt":
        raise DatasetError(f"{place} is neither a folder of images nor a .txt file that lists them")
    folder = folder_of(file)
    lines = read_lines(place)
    found = {line: _image_at(tree, folder, line) for line in lines}
    missing = [line for line in lines if found[line] is None]
    if too_many(len(missing), len(lines)):
        error = DatasetError(
            f"{place} lists {count_of(len(lines), 'image', 'images')}, and {len(missing)} of them are not below "
            f"{tree.root}, the first is {missing[0]}; write paths relative to that folder"
        )
        if len(missing) == len(lines):
            raise error
        stop(error, faults)
    if faults is not None:
        for number, line in enumerate(lines, start=1):
            if found[line] is None:
                faults.add("missing image", place, "line", number, f"{line} does not exist")
    if missing:
        count = count_of(len(missing), "image", "images")
        problems.append(f"{count} of {file} left out: missing (first: {missing[0]})")
    return list(dict.fromkeys(image for image in found.values() if image is not None))


def _image_at(tree: Tree, folder: str, line: str) -> str | None:
    path = Path(line)
    if path.is_absolute() and path.is_relative_to(tree.root):
        line = path.relative_to(tree.root).as_posix()
    for name in dict.fromkeys((f"{folder}/{line}" if folder else line, line)):
        if image := tree.find_image(name):
            return image
    return tree.nearest(line, (folder,))


def _assigned(tree: Tree) -> dict[str, _Labeled]:
    """Images with label files by part: by lists, by the names of their folders, or all to train on."""
    labels = dict(zip(tree.images, _labels_of(tree, tree.images), strict=True))
    if not _are_boxes(tree, labels):
        return {}
    images: dict[str, list[str]] = {}
    problems: dict[str, list[str]] = {}
    faults = {split: Faults() for split in SPLIT_WORDS}
    for split, file in _lists(tree).items():
        images[split] = _listed(tree, file, problems.setdefault(split, []), faults[split])
        if error := faults[split].stop:
            raise error
    if not images:
        # Pictures of a README and the like have no labels beside them.
        used = {folder_of(image) for image, label in labels.items() if label is not None}
        for image in tree.images:
            folder = folder_of(image)
            if folder in used:
                images.setdefault(split_of(folder) or "", []).append(image)
        if rest := images.pop("", []):
            if "train" not in images:
                images["train"] = rest
            else:
                text = f"{count_of(len(rest), 'image', 'images')} left out: in no folder named after a part"
                problems.setdefault("train", []).append(f"{text} (first: {rest[0]})")
    return {
        split: _Labeled(
            [tree.path(image) for image in found],
            [None if (label := labels[image]) is None else tree.path(label) for image in found],
            tree.root,
            tuple(problems.get(split, ())),
            tuple(faults[split].found),
        )
        for split, found in images.items()
        if any(labels[image] for image in found)
    }


def _lists(tree: Tree) -> dict[str, str]:
    """Text files that list the images of the parts, as named by darknet's obj.data or by themselves."""
    found: dict[str, str] = {}
    for split, entry in _darknet(tree).items():
        if split in SPLIT_WORDS and (file := tree.find(entry) or tree.nearest(entry, suffixes=(".txt",))):
            found[split] = file
    for file in tree.ending(".txt"):
        stem = stem_of(file).lower()
        split = next((split for split, words in SPLIT_WORDS.items() if stem in words), None)
        if split and file.count("/") <= 1 and split not in found:
            lines = read_lines(tree.path(file))
            if lines and suffix_of(lines[0].replace("\\", "/")) in IMAGE_SUFFIXES:
                found[split] = file
    return found


def _darknet(tree: Tree) -> dict[str, str]:
    """The entries of darknet's obj.data: train, val and names."""
    file = next((file for file in tree.ending(".data") if file.count("/") <= 1), None)
    if file is None:
        return {}
    pairs = (line.partition("=") for line in read_lines(tree.path(file)))
    given = {key.strip().lower(): value.strip() for key, _, value in pairs}
    return {("val" if key == "valid" else key): value for key, value in given.items() if value}


# Which labels ------------------------------------------------------------------------------------------------------


def _labels_of(tree: Tree, images: Sequence[str]) -> list[str | None]:
    """The label file of each image: in `labels` where the image is in `images`, beside it, or called like it."""
    found = [next(filter(None, map(tree.find, _label_places(image))), None) for image in images]
    if any(found):
        return found
    # No image has labels where they usually are, so a folder of labels may be arranged differently.
    for index, image in enumerate(images):
        label = tree.nearest(f"{folder_of(image)}/{stem_of(image)}.txt", suffixes=(".txt",))
        if label and LABEL_FOLDERS.intersection(folder_of(label).lower().split("/")):
            found[index] = label
    claimed = [label for label in found if label]
    if len(set(claimed)) < len(claimed):
        twice = next(label for label in claimed if claimed.count(label) > 1)
        owners = [tree.path(image) for image, label in zip(images, found, strict=True) if label == twice]
        raise DatasetError(f"{tree.path(twice)} may be of {some_of(owners)}; arrange labels/ in folders like images/")
    return found


def _label_places(image: str) -> list[str]:
    """Where the labels of an image may be, the likeliest first."""
    parts = [*image.split("/")[:-1], f"{stem_of(image)}.txt"]
    folders = [i for i in reversed(range(len(parts) - 1)) if parts[i].lower() in IMAGE_FOLDERS]
    replaced = ["/".join([*parts[:i], "labels", *parts[i + 1 :]]) for i in folders]
    return [*replaced[:1], "/".join(parts), *replaced[1:]]


def _are_boxes(tree: Tree, labels: Mapping[str, str | None]) -> bool:
    """Whether text files that are called like images hold boxes, and not captions."""
    files = [label for label in labels.values() if label is not None]
    if any("labels" in folder_of(file).lower().split("/") for file in files):
        return True
    lines = (read_lines(tree.path(file))[:1] for file in files[:_NUM_PEEKED])
    return any(_LABEL_LINE.fullmatch(line) for first in lines for line in first)


# Which names -------------------------------------------------------------------------------------------------------


def _yaml_names(path: Path, content: Mapping[str, Any]) -> dict[int, str] | None:
    given = content.get("names")
    if given is None or given in ([], {}, ""):
        return None
    if isinstance(given, str) and is_file(file := path.parent / given.replace("\\", "/")):
        # The names become a part of the model, which may be published: no file of the user's may get there.
        if not Path(os.path.normpath(file)).is_relative_to(os.path.normpath(path.parent)):
            raise DatasetError(f'{path}: "names" is {given}, which is not in the folder of {path.name}; copy it there')
        return read_names(file, {"names": read_lines(file)})
    return read_names(path, content)


def _found_names(tree: Tree) -> tuple[dict[int, str] | None, str]:
    """Class names by number, and the file that lists them."""
    given = _darknet(tree).get("names")
    named = [file for file in (given and tree.nearest(given, suffixes=(".names", ".txt")),) if file]
    by_name = [file for name in NAME_FILES for file in tree.named(name)]
    files = [*named, *by_name, *tree.ending(".names")]
    lists = {file: read_lines(tree.path(file)) for file in dict.fromkeys(files)}
    lists = {file: lines for file, lines in lists.items() if lines}
    if lists:
        # labelImg writes a list into every folder and makes it longer as it goes.
        longest = max(lists, key=lambda file: len(lists[file]))
        for file, lines in lists.items():
            if lines != lists[longest][: len(lines)]:
                raise DatasetError(
                    f"{tree.path(file)} and {tree.path(longest)} number the classes differently; write the names into "
                    "a data.yaml and delete both, or correct one of them"
                )
        return read_names(tree.path(longest), {"names": lists[longest]}), longest
    for file in tree.named("notes.json"):
        if names := _label_studio_names(tree.path(file)):
            return read_names(tree.path(file), {"names": names}), file
    return None, ""


def _label_studio_names(path: Path) -> dict[Hashable, Any]:
    try:
        content = load_json(read_text(path))
    except ValueError:
        return {}
    rows = content.get("categories") if isinstance(content, dict) else None
    rows = rows if isinstance(rows, list) else []
    rows = [row for row in rows if isinstance(row, dict) and {"id", "name"} <= row.keys()]
    return {row["id"]: row["name"] for row in rows if isinstance(row["id"], Hashable)}


def _numbered(parts: Iterable[_Labeled], count: Any) -> dict[int, str]:
    """Names for classes that have none: their numbers."""
    numbers = {int(count) - 1} if isinstance(count, int) and 0 < count < 100_000 else {0}
    for part in parts:
        for label in filter(None, part.labels):
            words = (line.split()[0].partition(".")[0] for line in read_lines(label))
            numbers |= {int(word) for word in words if word.isdecimal() and len(word) < 6}
    return {number: str(number) for number in range(max(numbers) + 1)}


def _numbers_note(file: str, names: Mapping[int, str]) -> str:
    return f"The classes have no names, so their numbers are used, 0 to {len(names) - 1}; write the names into {file}"


def _available(files: Iterable[_Files]) -> Iterable[_Labeled]:
    for read in files:
        try:
            yield read()
        except DatasetError:  # told when the part is read
            continue


def _found(part: _Labeled, *, faults: Faults | None = None) -> _Labeled:
    if faults is not None:
        for fault in part.missing:
            faults.add(*fault)
    return part


def _read(
    path: Path,
    files: _Files,
    names: dict[int, str],
    keypoints: tuple[int, int] | None = None,
    *,
    faults: Faults | None = None,
) -> tuple[Document, Path]:
    part = files(faults=faults)
    document = read_labels(path, part.folder, part.images, part.labels, names, keypoints, faults)
    return document._replace(problems=(*part.problems, *document.problems)), part.folder
