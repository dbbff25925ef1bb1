"""Reading data sets in COCO, YOLO and Pascal VOC format, checked here so that nothing later has to.

Whatever would do silent harm raises a `DatasetError`: an annotation of an unknown class, two classes with the same
name, missing images. Whatever can be corrected without guessing is corrected, counted and listed in `Split.problems`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rtdetrv4.data.coco import read_document
from rtdetrv4.data.document import Document, build_split, make_class_map
from rtdetrv4.data.records import Record, RecordTable, Split, Splits
from rtdetrv4.data.voc import find_voc, read_voc
from rtdetrv4.data.yolo import is_yolo, read_yolo
from rtdetrv4.errors import DatasetError, did_you_mean
from rtdetrv4.types import ClassMap
from rtdetrv4.yaml12 import load_yaml

__all__ = ["Record", "RecordTable", "Split", "Splits", "read_coco", "read_splits"]

ROBOFLOW_FILE = "_annotations.coco.json"
SPLIT_FOLDERS = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}


def read_splits(path: str | Path, classes: ClassMap | None = None) -> Splits:
    """Read a data set: a folder of COCO, YOLO or Pascal VOC annotations in one of their layouts, or a YAML file.

    ```
    folder/train/_annotations.coco.json     folder/annotations/instances_train*.json       train: annotations/a.json
    folder/valid/_annotations.coco.json     folder/annotations/instances_val*.json         val: annotations/b.json
    (images next to the file)               folder/images/train*/, folder/train*/ or ...   images: photos

    folder/data.yaml of YOLO                folder/Annotations/*.xml of Pascal VOC         folder/train/*.xml
    folder/images/, folder/labels/          folder/JPEGImages/, folder/ImageSets/Main/     (images next to them)
    ```

    All splits share the classes of the training split, matched by *name*: their category ids and order may differ.

    Args:
        path: the folder or the YAML file.
        classes: label by these classes, such as those of a trained model, instead of those of the training split.

    Raises:
        DatasetError: there is no data set, or its annotations contradict themselves.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        found = _read_folder(root)
    elif root.suffix.lower() in {".yaml", ".yml"}:
        found = _read_yaml_set(root, _read_yaml(root))
    elif root.exists():
        raise DatasetError(f"{root} is neither a folder nor a .yaml file; give the folder that holds train/ and valid/")
    else:
        raise DatasetError(f"{root} does not exist; give the folder of the data set or a .yaml file that describes it")

    documents = {split: document for split, (document, _) in found.items()}
    if classes is None:
        owner = documents.get("train") or next(iter(documents.values()))
        classes = make_class_map(owner, documents.values())
    parts = {split: build_split(document, folders, classes) for split, (document, folders) in found.items()}
    return Splits(parts.get("train"), parts.get("val"), parts.get("test"))


def read_coco(json_path: str | Path, image_dir: str | Path | None = None, classes: ClassMap | None = None) -> Split:
    """Read one COCO file.

    Args:
        json_path: annotations in COCO's object detection format.
        image_dir: the folder that `file_name` entries are relative to; by default the folder of `json_path`.
        classes: label by these classes, matched by name, instead of the file's own.

    Raises:
        DatasetError: the file is missing or damaged, contradicts itself, or lists images that do not exist.
    """
    document = read_document(Path(json_path).expanduser())
    folder = document.path.parent if image_dir is None else Path(image_dir).expanduser()
    return build_split(document, (folder,), classes or make_class_map(document, [document]))


# Where the files are ------------------------------------------------------------------------------------------------

_Files = tuple[Path, tuple[Path, ...]]
"""A COCO file and the folders its images may be in, most likely first."""
_EXAMPLE = '"train: annotations/train.json", "val: annotations/val.json", "images: photos"'
_Found = dict[str, tuple[Document, tuple[Path, ...]]]
"""The annotations of each split, and the folders its images may be in."""


def _read_folder(root: Path) -> _Found:
    if files := _find_files(root):
        return _read_all(files)
    described = {file: _read_yaml(file) for file in sorted([*root.glob("*.yaml"), *root.glob("*.yml")])}
    yolo = [file for file, content in described.items() if is_yolo(content)]
    if len(yolo) > 1:
        raise DatasetError(f"{root} has {len(yolo)} YOLO YAML files; give the one to use, such as {yolo[0]}")
    if not yolo and (voc := find_voc(root, SPLIT_FOLDERS)):
        read = {split: read_voc(files, root) for split, files in voc.items()}
        return {split: (document, (folder,)) for split, (document, folder) in read.items()}
    if not yolo:
        raise DatasetError(_nothing_found(root))
    return _read_yaml_set(yolo[0], described[yolo[0]])


def _read_yaml_set(path: Path, content: Mapping[str, Any]) -> _Found:
    if is_yolo(content):
        return {split: (document, (folder,)) for split, (document, folder) in read_yolo(path, content).items()}
    return _read_all(_coco_files(path, content))


def _read_all(files: Mapping[str, _Files]) -> _Found:
    return {split: (read_document(json_path), folders) for split, (json_path, folders) in files.items()}


def _find_files(root: Path) -> dict[str, _Files]:
    files: dict[str, _Files] = {}
    for split, folders in SPLIT_FOLDERS.items():
        roboflow = [root / folder / ROBOFLOW_FILE for folder in folders if (root / folder / ROBOFLOW_FILE).is_file()]
        usual = sorted((root / "annotations").glob(f"instances_{split}*.json"))
        found = roboflow or usual or sorted((root / "annotations").glob(f"{split}*.json"))
        if len(found) > 1:
            names = ", ".join(str(file.relative_to(root)) for file in found)
            raise DatasetError(
                f"{root} has {len(found)} files for its {split} split ({names}); "
                f'name the right ones in a .yaml file: "{split}: {found[0].relative_to(root)}", "images: ..."'
            )
        if roboflow:
            files[split] = (roboflow[0], (roboflow[0].parent,))
        elif found:
            stem = found[0].stem.removeprefix("instances_")
            folders = (f"images/{stem}", stem, f"images/{split}", split, "images", ".")
            files[split] = (found[0], tuple(root / folder for folder in folders))
    return files


def _nothing_found(root: Path) -> str:
    expected = f"expected train/{ROBOFLOW_FILE} and valid/{ROBOFLOW_FILE}, or annotations/instances_train*.json"
    if (root / ROBOFLOW_FILE).is_file():
        return f"{root} is a single split of a data set; give its parent folder {root.parent}"
    if (root / "labels").is_dir():
        return (
            f"{root} looks like a YOLO data set without the YAML file that names its classes; write data.yaml with "
            '"train: images/train", "val: images/val", "names: [cat, dog]"'
        )
    if any((root / "Annotations").glob("*.xml")):
        return (
            f"{root} looks like a Pascal VOC data set without lists of its splits; write the image names, one per "
            f"line, into {root / 'ImageSets' / 'Main' / 'train.txt'} and val.txt"
        )
    entries = sorted(entry.name for entry in root.iterdir())
    got = ", ".join(entries[:8]) or "an empty folder"
    return f"{root} holds no annotations: {expected}, or YOLO's data.yaml; got {got}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} should be a mapping such as {_EXAMPLE}; got {type(content).__name__}")
    return content


def _coco_files(path: Path, given: Mapping[str, Any]) -> dict[str, _Files]:
    content = dict(given)
    known = [*SPLIT_FOLDERS, "images"]
    for key in content:
        if key not in known:
            raise DatasetError(
                f'{path}: unknown entry "{key}"; known: {", ".join(known)}.{did_you_mean(str(key), known)}'
            )

    images = content.pop("images", None)
    files: dict[str, _Files] = {}
    for split, entry in content.items():
        if not isinstance(entry, str) or not entry.endswith(".json"):
            raise DatasetError(
                f'{path}: "{split}" should name a COCO .json file; got {entry!r}; for example {_EXAMPLE}'
            )
        folder = images.get(split) if isinstance(images, Mapping) else images
        if folder is not None and not isinstance(folder, str):
            raise DatasetError(f'{path}: "images" should be a folder, or one folder per split; got {images!r}')
        json_path = path.parent / entry
        files[split] = (json_path, (json_path.parent if folder is None else path.parent / folder,))
    if not files:
        raise DatasetError(f"{path} names no annotation file; expected {_EXAMPLE}")
    return files
