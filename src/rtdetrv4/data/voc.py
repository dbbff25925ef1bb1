"""Pascal VOC data sets: an XML file of boxes for each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np

from rtdetrv4.data.document import Document
from rtdetrv4.data.tree import Tree, parts_of
from rtdetrv4.errors import DatasetError

ANNOTATION_FOLDERS = frozenset({"annotations", "annotation", "annots", "xmls", "xml", "labels"})
IMAGE_FOLDERS = frozenset({"jpegimages", "images", "image", "imgs", "img"})
BOX_FORMAT = "<bndbox> should hold <xmin>, <ymin>, <xmax> and <ymax> in pixels"


def read_voc(files: Sequence[str], tree: Tree, background: Sequence[str] = ()) -> Document:
    """Read the annotations of one part; its file names are relative to the folder of the data set.

    Classes are numbered from 0 in the order of their names. Boxes are used as given, including difficult ones.

    Args:
        files: the XML files.
        tree: the files of the data set.
        background: images of the part without an XML file.

    Raises:
        DatasetError: a file is not a Pascal VOC annotation.
    """
    roots = [_parse(tree.path(file)) for file in files]
    objects = [
        (index, number, each)
        for index, root in enumerate(roots)
        for number, each in enumerate(root.findall("object"), start=1)
    ]
    classes = [(each.findtext("name") or "").strip() for _, _, each in objects]
    if "" in classes:
        index, number, _ = objects[classes.index("")]
        raise DatasetError(f"{tree.path(files[index])}: object {number} has no <name>")
    names = sorted(set(classes))
    image_folders = [folder for folder in tree.folders if PurePosixPath(folder).name.lower() in IMAGE_FOLDERS]
    images = [_image(file, root, tree, image_folders) for file, root in zip(files, roots, strict=True)]
    sizes_hw = [*map(_size_hw, roots), *((0, 0) for _ in background)]
    return Document(
        path=tree.path(files[0]).parent,
        image_ids=np.arange(len(sizes_hw)),
        file_names=[*images, *background],
        sizes_hw=np.array(sizes_hw, dtype=np.int64),
        categories=dict(enumerate(names)),
        parents=frozenset(),
        annotation_ids=[f"{Path(files[index]).name}:{number}" for index, number, _ in objects],
        image_index=np.array([index for index, _, _ in objects], dtype=np.int64),
        category_ids=np.array([names.index(name) for name in classes], dtype=np.int64),
        boxes_xywh_px=np.array([_box(each) for _, _, each in objects], dtype=np.float64).reshape(-1, 4),
        is_crowd=np.zeros(len(objects), dtype=np.bool_),
        areas=np.full(len(objects), math.nan),
        box_format=BOX_FORMAT,
    )


def _parse(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise DatasetError(f"{file} is not a Pascal VOC annotation: {error}") from error


def _image(file: str, root: ElementTree.Element, tree: Tree, image_folders: Sequence[str]) -> str:
    """The image of an XML file: the one called like it, or, if it was renamed, the one that its <filename> names."""
    annotated = (root.findtext("filename") or "").strip()
    *folders, stem = PurePosixPath(file).with_suffix("").parts
    depth = next((i for i, folder in enumerate(folders) if folder.lower() in ANNOTATION_FOLDERS), len(folders))
    base = "/".join(folders[:depth])
    beside = [folder for folder in image_folders if not base or folder.startswith(f"{base}/")]
    prefer = ["/".join(folders), *beside, base]
    # Annotations/cam1/a.xml belongs to JPEGImages/cam1/a.jpg, so the folders below Annotations should agree.
    below = folders[depth + 1 :] or folders[:depth]
    for name in ("/".join([*below, stem]), "/".join([*below, annotated]), annotated):
        if parts_of(name) and (image := tree.nearest(name, prefer)):
            return image
    return "/".join(parts_of(annotated)) or stem


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
