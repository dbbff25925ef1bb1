"""Pascal VOC data sets: an XML file of boxes for each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np

from rtdetrv4.data.document import Document, count_of
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
    trees = [_parse(file) for file in files]
    objects = [
        (index, number, each)
        for index, tree in enumerate(trees)
        for number, each in enumerate(tree.findall("object"), start=1)
    ]
    classes = [(each.findtext("name") or "").strip() for _, _, each in objects]
    if "" in classes:
        index, number, _ = objects[classes.index("")]
        raise DatasetError(f"{files[index]}: object {number} has no <name>")
    names = sorted(set(classes))
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
        category_ids=np.array([names.index(name) for name in classes], dtype=np.int64),
        boxes_xywh_px=np.array([_box(each) for _, _, each in objects], dtype=np.float64).reshape(-1, 4),
        is_crowd=np.zeros(len(objects), dtype=np.bool_),
        areas=np.full(len(objects), math.nan),
        box_format=BOX_FORMAT,
    )
    return document, folder


def _parse(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
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


def _box(element: ElementTree.Element) -> tuple[float, float, float, float]:
    left, top, right, bottom = (
        _number(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    return left, top, right - left, bottom - top


def _number(text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
