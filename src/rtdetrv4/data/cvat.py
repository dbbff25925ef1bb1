"""CVAT's own format, "CVAT for images 1.1": an XML file of shapes in any number of images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple
from xml.parsers import expat

import numpy as np

from rtdetrv4.data.document import Document, Form, Origin, count_of
from rtdetrv4.data.faults import Faults, stop
from rtdetrv4.errors import DatasetError
from rtdetrv4.input_files import open_file

BOX_FORMAT = "<box> should have xtl, ytl, xbr and ybr in pixels"
AREALESS = {"points": "point", "polyline": "line", "skeleton": "skeleton", "tag": "tag"}
"""Elements that mark no area, and what they are called in a message; CVAT has label types of these names, too."""
PARTS_OF_ONE = frozenset({"polygon", "mask"})
"""Shapes that are one object if they are of one class and group, as in CVAT's other exports."""
MAX_VALUE = 1e9
MAX_TAG_BYTES = 2**24
"""Of a tag with its attributes: the points of a polygon, or a mask."""
MAX_DEPTH = 1000
_CHUNK_BYTES = 2**20
_NO_GROUP = frozenset({"", "0"})
_CUBOID = tuple(f"{corner}{face}" for face in "12" for corner in ("tl", "bl", "tr", "br"))

Box = tuple[float, float, float, float]
Attributes = Mapping[str, str]


class CvatImage(NamedTuple):
    """An image of a CVAT file."""

    name: str
    """As CVAT calls it, which may be a path."""
    subset: str
    """"" if it is of none."""
    size_hw: tuple[int, int]
    """Zeros if the file gives none."""


class CvatShape(NamedTuple):
    """A shape of a CVAT file."""

    image: int
    """Which image, from 0."""
    line: int
    """Where it begins in the file, from 1."""
    kind: str
    """The name of its element."""
    label: str
    """Its class; "" if it has none."""
    group: str
    form: Form
    corners: Box
    """The upright box around it, in pixels: left, top, right and bottom, of a plain box as given; NaN for a value that
    is no number, and zeros for a shape without area."""


class CvatFile(NamedTuple):
    """What a CVAT file holds."""

    path: Path
    labels: tuple[str, ...]
    """The classes that its project or task lists, without those of points, lines and tags."""
    images: tuple[CvatImage, ...]
    shapes: tuple[CvatShape, ...]
    num_tracks: int
    """Objects of a video, which belong to no image."""
    damage: str | None
    """Why the file ends early; None if it does not."""


def parse_cvat(path: Path) -> CvatFile:
    """Read a CVAT file as far as it can be read, a few megabytes at a time."""
    parser = _Parser()
    damage = None
    try:
        with open_file(path) as file:
            parser.read(file)
    except OSError as error:
        damage = f"it cannot be read: {error.strerror}"
    except (expat.ExpatError, ValueError, LookupError) as error:
        damage = f"{error}; is the export complete?"
    labels = dict.fromkeys(name for name, kind in parser.labels if name and kind not in AREALESS)
    return CvatFile(path, tuple(labels), tuple(parser.images), tuple(parser.shapes), parser.num_tracks, damage)


def read_cvat(content: CvatFile, chosen: Sequence[int], faults: Faults | None = None) -> Document:
    """The annotations of some images of a CVAT file, with the names that CVAT gives them.

    Polygons, masks, ellipses, cuboids and rotated boxes become the upright boxes around them; polygons and masks of one
    class and group are one object. Points, lines, skeletons and tags are left out. Classes are numbered from 0 in the
    order of the list of labels.

    Args:
        content: the file.
        chosen: the images, as indices into `content.images`.
        faults: collects what is wrong with single shapes, instead of raising at the first one.

    Raises:
        DatasetError: the file is damaged, or no shape has a class.
    """
    path = content.path
    if content.damage is not None:
        stop(DatasetError(f"{path} is damaged: {content.damage}"), faults)
        if faults is not None:
            faults.add("damaged file", path, "file", 0, content.damage)
    number_of = {index: number for number, index in enumerate(chosen)}
    shapes = [shape for shape in content.shapes if shape.image in number_of]
    problems: list[str] = []
    shapes = _with_area(shapes, path, problems, faults)
    shapes = _with_class(shapes, path, problems, faults)
    shapes = _joined(_upright(shapes, path, problems, faults))
    if num_shapes := sum(shape.form is Form.POLYGON for shape in shapes):
        problems.append(
            f"{count_of(num_shapes, 'polygon or rotated box', 'polygons or rotated boxes')} replaced by the upright "
            "boxes around them"
        )
    names = list(dict.fromkeys((*content.labels, *sorted({shape.label for shape in shapes}))))
    class_of = {name: number for number, name in enumerate(names)}
    images = [content.images[index] for index in chosen]
    corners = np.array([shape.corners for shape in shapes], dtype=np.float64).reshape(-1, 4)
    return Document(
        path=path,
        image_ids=np.arange(len(images)),
        file_names=[image.name for image in images],
        sizes_hw=np.array([image.size_hw for image in images], dtype=np.int64).reshape(-1, 2),
        categories=dict(enumerate(names)),
        parents=frozenset(),
        annotation_ids=[f"{path.name}:{shape.line}" for shape in shapes],
        image_index=np.array([number_of[shape.image] for shape in shapes], dtype=np.int64),
        category_ids=np.array([class_of[shape.label] for shape in shapes], dtype=np.int64),
        boxes_xywh_px=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        is_crowd=np.zeros(len(shapes), dtype=np.bool_),
        areas=np.full(len(shapes), math.nan),
        box_format=BOX_FORMAT,
        problems=tuple(problems),
        origin=Origin(
            files=(path,) * len(images),
            unit="line",
            numbers=np.array([shape.line for shape in shapes], dtype=np.int64),
            forms=np.array([shape.form for shape in shapes], dtype=np.uint8),
        ),
    )


def _with_area(shapes: Sequence[CvatShape], path: Path, problems: list[str], faults: Faults | None) -> list[CvatShape]:
    without = [shape for shape in shapes if shape.kind in AREALESS]
    if faults is not None:
        for shape in without:
            faults.add("no area", path, "line", shape.line, f"a {AREALESS[shape.kind]}")
    if without:
        counts = Counter(AREALESS[shape.kind] for shape in without)
        listed = ", ".join(count_of(count, kind, f"{kind}s") for kind, count in counts.items())
        problems.append(f"{listed} left out: no area")
    return [shape for shape in shapes if shape.kind not in AREALESS]


def _with_class(shapes: Sequence[CvatShape], path: Path, problems: list[str], faults: Faults | None) -> list[CvatShape]:
    without = [shape for shape in shapes if not shape.label]
    if not without:
        return list(shapes)
    first = without[0]
    if len(without) == len(shapes):
        error = DatasetError(f'{path}, line {first.line}: the {first.kind} has no "label", nor has any other shape')
        stop(error, faults)
    if faults is not None:
        for shape in without:
            faults.add("no class", path, "line", shape.line, f"a {shape.kind} without a label")
    problems.append(f"{count_of(len(without), 'box', 'boxes')} dropped: no label (first: line {first.line})")
    return [shape for shape in shapes if shape.label]


def _upright(shapes: Sequence[CvatShape], path: Path, problems: list[str], faults: Faults | None) -> list[CvatShape]:
    """The shapes with their corners in order."""
    turned: list[CvatShape] = []
    swapped = 0
    for shape in shapes:
        left, top, right, bottom = shape.corners
        if left > right or top > bottom:
            swapped += 1
            if faults is not None:
                values = " ".join(f"{value:g}" for value in shape.corners)
                faults.add("inverted box", path, "line", shape.line, f"xtl ytl xbr ybr {values}")
            corners = min(left, right), min(top, bottom), max(left, right), max(top, bottom)
            turned.append(shape._replace(corners=corners))
        else:
            turned.append(shape)
    if swapped:
        problems.append(f"{count_of(swapped, 'box', 'boxes')} turned round: a minimum was above its maximum")
    return turned


def _joined(shapes: Sequence[CvatShape]) -> list[CvatShape]:
    """The shapes, those that are parts of one object as one."""
    objects: dict[object, CvatShape] = {}
    for number, shape in enumerate(shapes):
        is_part = shape.kind in PARTS_OF_ONE and shape.group not in _NO_GROUP
        key = (shape.image, shape.label, shape.group) if is_part else number
        known = objects.get(key)
        objects[key] = shape if known is None else known._replace(corners=_around(known.corners, shape.corners))
    return list(objects.values())


class _Parser:
    """Collects images, shapes and labels while expat reads."""

    def __init__(self) -> None:
        self.labels: list[tuple[str, str]] = []
        """Names and types."""
        self.images: list[CvatImage] = []
        self.shapes: list[CvatShape] = []
        self.num_tracks = 0
        self.expat = expat.ParserCreate()
        self.expat.StartElementHandler = self._start
        self.expat.EndElementHandler = self._end
        self.expat.CharacterDataHandler = self._add_text
        self.expat.EntityDeclHandler = self._refuse_entity
        self._path: list[str] = []
        self._text: list[str] = []
        self._subset = ""
        """That of the task."""

    def read(self, file: BinaryIO) -> None:
        """Read a file to its end.

        Raises:
            ExpatError: it is not valid XML.
            ValueError: it has what CVAT never writes.
        """
        num_read = 0
        while chunk := file.read(_CHUNK_BYTES):
            self.expat.Parse(chunk, False)
            num_read += len(chunk)
            # Until a tag is complete, the parser begins it anew with each chunk.
            if num_read - self.expat.CurrentByteIndex > MAX_TAG_BYTES:
                raise ValueError(f"line {self.expat.CurrentLineNumber} has a tag without end")
            if len(self._path) > MAX_DEPTH:
                raise ValueError(f"it has more than {MAX_DEPTH} elements inside each other")
        self.expat.Parse(b"", True)

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._path.append(tag)
        self._text.clear()
        depth = len(self._path)
        if depth == 2 and tag == "image":
            size_hw = _size_hw(attributes)
            self.images.append(CvatImage(attributes.get("name", ""), attributes.get("subset", self._subset), size_hw))
        elif depth == 2 and tag == "track":
            self.num_tracks += 1
        elif depth == 3 and self._path[1] == "image":
            self._add_shape(tag, attributes)
        elif tag == "label" and self._path[1:2] == ["meta"] and self._path[-2] == "labels":
            self.labels.append(("", ""))

    def _add_shape(self, kind: str, attributes: dict[str, str]) -> None:
        if kind not in AREALESS and kind not in _CORNERS:
            return
        corners = (0.0, 0.0, 0.0, 0.0) if kind in AREALESS else _CORNERS[kind](attributes)
        is_plain = kind == "box" and not _number(attributes, "rotation", 0)
        self.shapes.append(
            CvatShape(
                image=len(self.images) - 1,
                line=self.expat.CurrentLineNumber,
                kind=kind,
                label=" ".join(attributes.get("label", "").split()),
                group=attributes.get("group_id", ""),
                form=Form.BOX if is_plain else Form.POLYGON,
                corners=corners,
            )
        )

    def _end(self, tag: str) -> None:
        self._path.pop()
        inside = self._path[-1] if self._path else ""
        text = " ".join("".join(self._text).split())
        if self._path[1:2] == ["meta"]:
            if inside == "label" and self.labels and tag in ("name", "type"):
                name, kind = self.labels[-1]
                self.labels[-1] = (text, kind) if tag == "name" else (name, text)
            elif inside == "label" and self.labels and tag == "parent":  # a point of a skeleton
                self.labels[-1] = ("", "")
            elif tag == "subset" and inside in ("task", "job") and len(self._path) == 3:
                self._subset = text
        self._text.clear()

    def _add_text(self, text: str) -> None:
        if self._path[1:2] == ["meta"]:
            self._text.append(text)

    def _refuse_entity(self, *declaration: object) -> None:
        raise ValueError(f"it declares the entity {declaration[0]}, which CVAT never does")


def _box(attributes: Attributes) -> Box:
    left, top, right, bottom = (_number(attributes, side) for side in ("xtl", "ytl", "xbr", "ybr"))
    rotation = _number(attributes, "rotation", 0)
    if not rotation:
        return left, top, right, bottom
    angle = math.radians(rotation)
    half_width, half_height = abs(right - left) / 2, abs(bottom - top) / 2
    return _centered(
        (left + right) / 2,
        (top + bottom) / 2,
        abs(half_width * math.cos(angle)) + abs(half_height * math.sin(angle)),
        abs(half_width * math.sin(angle)) + abs(half_height * math.cos(angle)),
    )


def _ellipse(attributes: Attributes) -> Box:
    center_x, center_y, radius_x, radius_y = (_number(attributes, name) for name in ("cx", "cy", "rx", "ry"))
    angle = math.radians(_number(attributes, "rotation", 0))
    return _centered(
        center_x,
        center_y,
        math.hypot(radius_x * math.cos(angle), radius_y * math.sin(angle)),
        math.hypot(radius_x * math.sin(angle), radius_y * math.cos(angle)),
    )


def _mask(attributes: Attributes) -> Box:
    left, top, width, height = (_number(attributes, name) for name in ("left", "top", "width", "height"))
    return left, top, left + width, top + height


def _cuboid(attributes: Attributes) -> Box:
    return _hull([(_number(attributes, f"x{corner}"), _number(attributes, f"y{corner}")) for corner in _CUBOID])


def _polygon(attributes: Attributes) -> Box:
    pairs = [point.split(",") for point in attributes.get("points", "").split(";")]
    return _hull([(_value(pair[0]), _value(pair[1]) if len(pair) == 2 else math.nan) for pair in pairs])


_CORNERS: dict[str, Callable[[Attributes], Box]] = {
    "box": _box,
    "polygon": _polygon,
    "mask": _mask,
    "ellipse": _ellipse,
    "cuboid": _cuboid,
}


def _hull(points: Sequence[tuple[float, float]]) -> Box:
    """The upright box around points; NaN if one of them is."""
    if any(math.isnan(value) for point in points for value in point):
        return math.nan, math.nan, math.nan, math.nan
    across, down = zip(*points, strict=True)
    return min(across), min(down), max(across), max(down)


def _around(one: Box, other: Box) -> Box:
    return _hull([one[:2], one[2:], other[:2], other[2:]])


def _centered(x: float, y: float, half_width: float, half_height: float) -> Box:
    return x - half_width, y - half_height, x + half_width, y + half_height


def _size_hw(attributes: Attributes) -> tuple[int, int]:
    height, width = _number(attributes, "height"), _number(attributes, "width")
    return (int(height), int(width)) if height >= 1 and width >= 1 else (0, 0)


def _number(attributes: Attributes, name: str, default: float = math.nan) -> float:
    """A number that an attribute holds; NaN if it is none."""
    text = attributes.get(name)
    return default if text is None else _value(text)


def _value(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if abs(value) < MAX_VALUE else math.nan
