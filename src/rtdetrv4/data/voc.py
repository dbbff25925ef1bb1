"""Pascal VOC data sets: an XML file of boxes for each image."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np

from rtdetrv4.data.document import Document, Form, Origin, count_of, some_of
from rtdetrv4.data.faults import Faults, stop
from rtdetrv4.data.records import too_many
from rtdetrv4.data.tree import Tree, folder_of, name_of, parts_of, split_of
from rtdetrv4.errors import DatasetError
from rtdetrv4.input_files import read_file

ANNOTATION_FOLDERS = frozenset({"annotations", "annotation", "annots", "xmls", "xml", "labels"})
IMAGE_FOLDERS = frozenset({"jpegimages", "images", "image", "imgs", "img"})
MULTI_BYTE = (b"gb", b"big5", b"cp9", b"euc", b"hz", b"johab", b"ms9", b"shift", b"sjis", b"windows-9", b"windows-31j")
"""How the names of encodings begin that take several bytes for a letter; the parser knows the others."""
MAX_BYTES = 8_000_000
"""Of the file of an image: tens of thousands of objects."""
MAX_DECLARATION = 200
"""Bytes of <?xml version="1.0" encoding="utf-8"?>."""
MAX_NUMBER = 1e12
MAX_SIDE = 2**31 - 1
BOX_FORMAT = "<bndbox> should hold <xmin>, <ymin>, <xmax> and <ymax> in pixels"


def read_voc(
    files: Sequence[str], tree: Tree, background: Sequence[str] = (), faults: Faults | None = None
) -> Document:
    """Read the annotations of one part; its file names are relative to the folder of the data set.

    Classes are numbered from 0 in the order of their names. Boxes are used as given, including difficult ones.

    Args:
        files: the XML files.
        tree: the files of the data set.
        background: images of the part without an XML file.
        faults: collects what is wrong with single files and objects, instead of raising at the first one.

    Raises:
        DatasetError: a file is not a Pascal VOC annotation.
    """
    problems: list[str] = []
    files, roots = _parse_all(files, tree, problems, faults)
    objects = [
        (index, number, each)
        for index, root in enumerate(roots)
        for number, each in enumerate(root.findall("object"), start=1)
    ]
    named = [each for each in objects if _name(each[2])]
    if len(named) < len(objects):
        index, number, _ = next(each for each in objects if not _name(each[2]))
        if not named:
            error = DatasetError(f"{tree.path(files[index])}: object {number} has no <name>, nor has any other object")
            stop(error, faults)
        if faults is not None:
            for index, number, each in objects:
                if not _name(each):
                    faults.add("no class", tree.path(files[index]), "object", number, f"object {number} has no <name>")
        problems.append(
            f"{count_of(len(objects) - len(named), 'box', 'boxes')} dropped: no <name> (first: object {number} of "
            f"{PurePosixPath(files[index]).name})"
        )
    objects = named
    classes = [_name(each) for _, _, each in objects]
    names = sorted(set(classes))
    number_of = {name: number for number, name in enumerate(names)}
    corners = np.array([_corners(each) for _, _, each in objects], dtype=np.float64).reshape(-1, 2, 2)
    low, high = corners.min(axis=1), corners.max(axis=1)
    swapped = np.flatnonzero((corners[:, 0] > corners[:, 1]).any(axis=1)).tolist()
    if swapped:
        if faults is not None:
            for index, number, each in map(objects.__getitem__, swapped):
                values = " ".join(f"{value:g}" for value in _corners(each))
                faults.add("inverted box", tree.path(files[index]), "object", number, f"xmin ymin xmax ymax {values}")
        problems.append(f"{count_of(len(swapped), 'box', 'boxes')} turned round: a minimum was above its maximum")
    image_folders = [folder for folder in tree.folders if PurePosixPath(folder).name.lower() in IMAGE_FOLDERS]
    images = [_image(file, root, tree, image_folders) for file, root in zip(files, roots, strict=True)]
    if faults is not None:
        for file, root, image in zip(files, roots, images, strict=True):
            note_other_image((root.findtext("filename") or "").strip(), image, tree.path(file), faults)
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
        category_ids=np.array([number_of[name] for name in classes], dtype=np.int64),
        boxes_xywh_px=np.concatenate([low, high - low], axis=1),
        is_crowd=np.zeros(len(objects), dtype=np.bool_),
        areas=np.full(len(objects), math.nan),
        box_format=BOX_FORMAT,
        problems=tuple(problems),
        origin=Origin(
            files=(*map(tree.path, files), *(None for _ in background)),
            unit="object",
            numbers=np.array([number for _, number, _ in objects], dtype=np.int64),
            forms=np.full(len(objects), Form.BOX, dtype=np.uint8),
        ),
    )


def _parse_all(
    files: Sequence[str], tree: Tree, problems: list[str], faults: Faults | None
) -> tuple[list[str], list[ElementTree.Element]]:
    """The files that can be parsed, with their content; a few others are left out."""
    roots: dict[str, ElementTree.Element] = {}
    damaged: dict[str, DatasetError] = {}
    for file in files:
        try:
            roots[file] = _parse(tree.path(file))
        except DatasetError as error:
            damaged[file] = error
    if too_many(len(damaged), len(files)):
        if not roots:
            raise next(iter(damaged.values()))
        stop(next(iter(damaged.values())), faults)
    if faults is not None:
        for file, error in damaged.items():
            faults.add("damaged file", tree.path(file), "file", 0, str(error.__cause__))
    if damaged:
        problems.append(
            f"{count_of(len(damaged), 'image', 'images')} left out: annotations cannot be read ({some_of(damaged)})"
        )
    return list(roots), list(roots.values())


class _Builder(ElementTree.TreeBuilder):
    """Builds no tree of a document that defines entities, of which a few lines can stand for gigabytes."""

    def doctype(self, *_: object) -> None:
        raise ValueError("it has a DOCTYPE, which no annotation needs")


def _parse(file: Path) -> ElementTree.Element:
    try:
        data: bytes | str = read_file(file, MAX_BYTES)
        declared = re.match(rb"\s*<\?xml[^>]*?encoding=[\"']([\w.-]+)[^>]*\?>", data[:MAX_DECLARATION])
        # The parser knows no multi-byte encodings, such as the gb2312 of Chinese Windows.
        if declared is not None and declared[1].lower().startswith(MULTI_BYTE):
            data = data[declared.end() :].decode(declared[1].decode())
        return ElementTree.fromstring(data, ElementTree.XMLParser(target=_Builder()))  # noqa: S314 - no entities
    except OSError as error:
        raise DatasetError(f"{file} is not a Pascal VOC annotation: {error.strerror}") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
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
        if parts_of(name) and (image := tree.nearest(name, prefer, split=split_of(folder_of(file)))):
            return image
    return "/".join(parts_of(annotated)) or stem


def note_other_image(annotated: str, image: str, file: Path, faults: Faults) -> None:
    """Note that an annotation file names another image than the one that it is taken to belong to."""
    named = (parts_of(annotated) or [""])[-1]
    if named != name_of(image):
        what = f'names "{named}"' if named else "names no image"
        faults.add("other image", file, "file", 0, f"{what}, taken for {name_of(image)}")


def _size_hw(tree: ElementTree.Element) -> tuple[int, int]:
    height, width = _number(tree.findtext("size/height")), _number(tree.findtext("size/width"))
    return (int(height), int(width)) if 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE else (0, 0)


def _name(element: ElementTree.Element) -> str:
    return (element.findtext("name") or "").strip()


def _corners(element: ElementTree.Element) -> tuple[float, ...]:
    return tuple(_number(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))


def _number(text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        return math.nan
    return value if abs(value) < MAX_NUMBER else math.nan
