"""Pascal VOC data sets: an XML file of boxes for each image."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np

from rtdetrv4.data.document import Document, count_of, some_of
from rtdetrv4.data.records import too_many
from rtdetrv4.errors import DatasetError
from rtdetrv4.runtime.sources import IMAGE_SUFFIXES

BOX_FORMAT = "<bndbox> should hold <xmin>, <ymin>, <xmax> and <ymax> in pixels"


def find_voc(root: Path, split_folders: dict[str, tuple[str, ...]]) -> dict[str, list[Path]]:
    """Find the XML files of every split; none if the folder is not a Pascal VOC data set.

    ```
    root/Annotations/*.xml  root/JPEGImages/  root/ImageSets/Main/train.txt      as in the VOC challenges
    root/train/*.xml with images next to them, root/valid/, root/test/           as written by Roboflow
    ```

    Args:
        root: the folder of the data set.
        split_folders: the names that the folder of each split may have.

    Raises:
        DatasetError: a split lists an image that has no annotation.
    """
    found: dict[str, list[Path]] = {}
    for split, folders in split_folders.items():
        # The folders Layout, Action and Segmentation list images for other tasks.
        lists = [file for place in ("Main", ".") if (file := root / "ImageSets" / place / f"{split}.txt").is_file()]
        beside = [sorted((root / folder).glob("*.xml")) for folder in folders]
        if (root / "Annotations").is_dir() and lists:
            found[split] = _listed(root, lists[0])
        elif any(beside):
            found[split] = next(files for files in beside if files)
    return found


def _listed(root: Path, file: Path) -> list[Path]:
    stems = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    # Only the last component of a path counts, so that no list can point outside the folder.
    paths = [root / "Annotations" / f"{PurePosixPath(stem).name}.xml" for stem in stems]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DatasetError(
            f"{file} lists {count_of(len(missing), 'image', 'images')} without annotations; the first missing file is "
            f"{missing[0]}"
        )
    return paths


def read_voc(files: Sequence[Path], root: Path) -> tuple[Document, Path]:
    """Read the annotations of a split; also returns the folder that its file names are relative to.

    Classes are numbered from 0 in the order of their names. Boxes are used as given, including difficult ones.

    Args:
        files: the XML files, from `find_voc`.
        root: the folder of the data set.

    Raises:
        DatasetError: a file is not a Pascal VOC annotation, or its image is missing.
    """
    problems: list[str] = []
    files, trees = _parse_all(files, problems)
    objects = [
        (index, number, each)
        for index, tree in enumerate(trees)
        for number, each in enumerate(tree.findall("object"), start=1)
    ]
    named = [each for each in objects if _name(each[2])]
    if len(named) < len(objects):
        index, number, _ = next(each for each in objects if not _name(each[2]))
        if not named:
            raise DatasetError(f"{files[index]}: object {number} has no <name>, nor has any other object")
        problems.append(
            f"{count_of(len(objects) - len(named), 'box', 'boxes')} dropped: no <name> (first: object {number} of "
            f"{files[index].name})"
        )
    objects = named
    classes = [_name(each) for _, _, each in objects]
    names = sorted(set(classes))
    number_of = {name: number for number, name in enumerate(names)}
    corners = np.array([_corners(each) for _, _, each in objects], dtype=np.float64).reshape(-1, 2, 2)
    low, high = corners.min(axis=1), corners.max(axis=1)
    swapped = int((corners[:, 0] > corners[:, 1]).any(axis=1).sum())
    if swapped:
        problems.append(f"{count_of(swapped, 'box', 'boxes')} turned round: a minimum was above its maximum")
    folder = next((place for name in ("JPEGImages", "images") if (place := root / name).is_dir()), files[0].parent)
    document = Document(
        path=files[0].parent,
        image_ids=np.arange(len(files)),
        file_names=[_image(file, tree, folder) for file, tree in zip(files, trees, strict=True)],
        sizes_hw=np.array([_size_hw(tree) for tree in trees], dtype=np.int64),
        categories=dict(enumerate(names)),
        parents=frozenset(),
        annotation_ids=[f"{files[index].name}:{number}" for index, number, _ in objects],
        image_index=np.array([index for index, _, _ in objects], dtype=np.int64),
        category_ids=np.array([number_of[name] for name in classes], dtype=np.int64),
        boxes_xywh_px=np.concatenate([low, high - low], axis=1),
        is_crowd=np.zeros(len(objects), dtype=np.bool_),
        areas=np.full(len(objects), math.nan),
        box_format=BOX_FORMAT,
        problems=tuple(problems),
    )
    return document, folder


def _parse_all(files: Sequence[Path], problems: list[str]) -> tuple[list[Path], list[ElementTree.Element]]:
    """The files that can be parsed, with their content; a few others are left out."""
    trees: dict[Path, ElementTree.Element] = {}
    damaged: dict[Path, DatasetError] = {}
    for file in files:
        try:
            trees[file] = _parse(file)
        except DatasetError as error:
            damaged[file] = error
    if too_many(len(damaged), len(files)):
        raise next(iter(damaged.values()))
    if damaged:
        problems.append(
            f"{count_of(len(damaged), 'image', 'images')} left out: annotations cannot be read ({some_of(damaged)})"
        )
    return list(trees), list(trees.values())


def _parse(file: Path) -> ElementTree.Element:
    try:
        data = file.read_bytes()
        declared = re.match(rb"\s*<\?xml[^>]*?encoding=[\"']([\w.-]+)[^>]*\?>", data)
        if declared is None or declared[1].lower().startswith((b"utf", b"iso", b"ascii")):
            return ElementTree.fromstring(data)
        # The parser knows no multi-byte encodings, such as the gb2312 of Chinese Windows.
        return ElementTree.fromstring(data[declared.end() :].decode(declared[1].decode()))
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise DatasetError(f"{file} is not a Pascal VOC annotation: {error}") from error


def _image(file: Path, tree: ElementTree.Element, folder: Path) -> str:
    """The file name of the image: the annotated one, or, if the image was renamed, that of the XML file."""
    annotated = PurePosixPath((tree.findtext("filename") or "").strip().replace("\\", "/")).name
    if annotated and (folder / annotated).is_file():
        return annotated
    named = [image.name for suffix in sorted(IMAGE_SUFFIXES) if (image := folder / f"{file.stem}{suffix}").is_file()]
    if not named:
        raise DatasetError(f"{file}: its image is missing; looked for {folder / (annotated or file.stem)}")
    return named[0]


def _size_hw(tree: ElementTree.Element) -> tuple[int, int]:
    height, width = _number(tree.findtext("size/height")), _number(tree.findtext("size/width"))
    return (int(height), int(width)) if height >= 1 and width >= 1 else (0, 0)


def _name(element: ElementTree.Element) -> str:
    return (element.findtext("name") or "").strip()


def _corners(element: ElementTree.Element) -> tuple[float, ...]:
    return tuple(_number(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))


def _number(text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
