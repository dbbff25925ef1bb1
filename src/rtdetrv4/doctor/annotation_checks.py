"""Checks of annotations: whether they belong to images, whether classes are what they seem, and every box."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtdetrv4.data.box_units import sides_in_pixels
from rtdetrv4.data.decode import same_aspect
from rtdetrv4.data.document import CLIP_TOLERANCE, Document, Form, Origin, count_of
from rtdetrv4.data.faults import FaultKind
from rtdetrv4.data.tree import Tree, folder_of, spelling, stem_of
from rtdetrv4.doctor.file_checks import upright_size
from rtdetrv4.doctor.finding import MAX_EXAMPLES, Example
from rtdetrv4.doctor.inspection import Inspection, Part
from rtdetrv4.doctor.lines import line_of, text_of

COVERS = 0.99
"""The share of the width and of the height from which on a box covers the image."""
FEW_PIXELS = 2.0
SAME_BOX = 0.01
"""Pixels within which two boxes are the same."""
MAX_LOOKED_AT = 1000
"""Faults of a part whose lines are read again."""
MAX_TEXT = 60
"""Characters of a line that are shown."""
_CODE_OF: dict[FaultKind, str] = {
    "damaged file": "D206",
    "unknown class": "D208",
    "no class": "D209",
    "repeated id": "D210",
    "unlisted image": "D205",
    "missing image": "D203",
    "inverted box": "D225",
    "box in pixels": "D226",
    "no area": "D231",
    "file left out": "D234",
    "other image": "D236",
}
_LABEL_SUFFIXES = {"YOLO": ".txt", "Pascal VOC": ".xml", "LabelMe": ".json"}
"""Of the formats with an annotation file for each image."""


def reading(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """What stops training while the data is read."""
    if inspection.stop is not None:
        yield "D001", Example("", ".", None, _short(inspection, inspection.stop))
    for part in inspection.parts.values():
        if part.stop is not None:
            absent = "D004" if part.name == "test" else "D002"
            code = absent if part.is_absent else "D001"
            yield code, Example(part.name, ".", None, _short(inspection, part.stop))
    if inspection.reading is not None and "train" not in inspection.reading.parts:
        yield "D003", Example("", ".", None, f"there is only {' and '.join(inspection.reading.parts)}")


def _short(inspection: Inspection, message: str) -> str:
    """A message with paths relative to the root."""
    return message.replace(f"{inspection.root}/", "")


def single_faults(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """What the readers could not use at all."""
    for part in inspection.parts.values():
        num_kept: Counter[FaultKind] = Counter()
        for fault in part.faults:
            num_kept[fault.kind] += 1
            line = line_of(fault.file, fault.unit, fault.number) if num_kept[fault.kind] <= MAX_EXAMPLES else None
            yield _CODE_OF[fault.kind], Example(part.name, inspection.relative(fault.file), line, fault.detail)
        for kind, count in part.fault_counts.items():
            counted = Example(part.name, ".", None, "not shown")
            yield from ((_CODE_OF[kind], counted) for _ in range(count - num_kept[kind]))


def images_and_files(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """Images without annotations, annotations without an image, and images that are listed twice."""
    for part, document in _documents(inspection):
        origin = document.origin
        missing = set(_missing(inspection, part))
        for index in sorted(missing):
            file = origin.files[index] if origin is not None else None
            is_numbered = _is_coco(document) and not part.faults
            line = line_of(file, "images", index + 1) if file is not None and is_numbered else None
            shown = inspection.relative(file or part.folder)
            yield "D203", Example(part.name, shown, line, f"{document.file_names[index]} does not exist")
        for index, file in enumerate(origin.files if origin is not None else ()):
            if file is None and index not in missing:
                (path,) = part.paths([document.file_names[index]])
                yield "D201", Example(part.name, inspection.relative(path), None, "background", str(path))
        twice = [name for name, count in Counter(document.file_names).items() if count > 1]
        for path in part.paths(twice):
            yield "D232", Example(part.name, inspection.relative(path), None, "several entries", str(path))
        if origin is not None and not _are_listed(inspection):
            yield from _shared_files(inspection, part, document.file_names, origin)
    if inspection.tree is not None and inspection.reading is not None:
        yield from _unused_images(inspection, inspection.tree)
        yield from _orphans(inspection, inspection.tree, inspection.reading.format)


def class_names(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """Names that are given twice, spelled in two ways, or are only numbers."""
    named: dict[str, str] = {}
    for part, document in _documents(inspection):
        where = inspection.relative(document.path)
        ids: defaultdict[str, list[int]] = defaultdict(list)
        for id_, name in document.categories.items():
            ids[name].append(id_)
        used = set(np.unique(document.category_ids).tolist())
        for name, own in ids.items():
            # Roboflow calls a group like the project, which may be called like its only class.
            is_group = _is_coco(document) and len(used.intersection(own)) < 2
            if len(own) > 1:
                detail = f'"{name}" is {" and ".join(map(str, own))}'
                yield "D214" if is_group else "D211", Example(part.name, where, None, detail)
            if name not in named:
                named[name] = part.name
                if name.isdecimal():
                    yield "D213", Example(part.name, where, None, f'"{name}"')
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name in named:
        alike[_bare(name)].append(name)
    for names in alike.values():
        if len(names) > 1:
            shown = " and ".join(f'"{name}"' for name in names)
            yield "D212", Example(named[names[-1]], ".", None, shown)


def class_numbers(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """Class numbers of YOLO that seem to start at 1, while the names are counted from 0; an example of each number."""
    if inspection.reading is None or inspection.reading.format != "YOLO":
        return
    documents = list(_documents(inspection))
    names = documents[0][1].categories if documents else {}
    beyond = [
        (part, fault) for part, _ in documents for fault in part.faults[:MAX_LOOKED_AT] if fault.kind == "unknown class"
    ]
    lines = [text_of(fault.file, fault.number).split() for _, fault in beyond]
    numbers = {words[0].partition(".")[0] for words in lines if words}  # none if the file has changed since it was read
    is_next = numbers == {str(len(names))} and list(names) == list(range(len(names)))
    if not is_next or any((document.category_ids == 0).any() for _, document in documents):
        return
    seen: set[int] = set()
    for part, document in documents:
        used, first = np.unique(document.category_ids, return_index=True)
        placed = _placed(inspection, part, document)
        for number, index in zip(used.tolist(), first.tolist(), strict=True):
            if number not in seen:
                seen.add(number)
                detail = f'{number} is "{names[number]}", but "{names[number - 1]}" if they start at 1; 0 is never used'
                yield "D238", placed.example(index, detail)
    part, fault = beyond[0]
    detail = f'{len(names)} has no name, but would be "{names[len(names) - 1]}" if they start at 1; 0 is never used'
    yield "D238", Example(part.name, inspection.relative(fault.file), fault.number, detail)


def class_use(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """Classes without a box, or with boxes in some parts only."""
    used = {part.name: boxes_per_class(document) for part, document in _documents(inspection)}
    total = sum(used.values(), Counter[str]())
    seen: set[str] = set()
    for part, document in _documents(inspection):
        for name in document.categories.values():
            if name not in total and name not in seen:
                seen.add(name)
                detail = f'"{name}"' + (", a group of other classes" if name in document.parents else "")
                yield "D214", Example(part.name, inspection.relative(document.path), None, detail)
    for part, document in _documents(inspection):
        code, other = ("D216", "val") if part.name == "train" else ("D215", "train")
        for name, count in used[part.name].items() if other in used else ():
            if name not in used[other]:
                detail = f'"{name}" with {count_of(count, "box", "boxes")}'
                yield code, Example(part.name, inspection.relative(document.path), None, detail)


def boxes(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """Every box: its values, and its place in the image."""
    for part, document in _documents(inspection):
        placed = _placed(inspection, part, document)
        for check in _BOX_CHECKS:
            yield from check(placed)


def usable_boxes(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """Whether there is anything to train on."""
    train = inspection.parts.get("train")
    if train is not None and train.document is not None and train.document.is_crowd.all():
        detail = "every box is a crowd" if len(train.document.is_crowd) else "no box"
        yield "D235", Example("train", inspection.relative(train.document.path), None, detail)


CHECKS: tuple[Callable[[Inspection], Iterator[tuple[str, Example]]], ...] = (
    reading,
    single_faults,
    images_and_files,
    class_names,
    class_numbers,
    class_use,
    boxes,
    usable_boxes,
)


def boxes_per_class(document: Document) -> Counter[str]:
    """The number of boxes of each class that has any."""
    ids, counts = np.unique(document.category_ids, return_counts=True)
    total: Counter[str] = Counter()
    for id_, count in zip(ids.tolist(), counts.tolist(), strict=True):
        total[document.categories[id_]] += count
    return total


# Images and files --------------------------------------------------------------------------------------------------


def _documents(inspection: Inspection) -> Iterator[tuple[Part, Document]]:
    return ((part, part.document) for part in inspection.parts.values() if part.document is not None)


def _is_coco(document: Document) -> bool:
    return document.origin is not None and document.origin.unit == "annotations"


def _are_listed(inspection: Inspection) -> bool:
    """Whether one annotation file lists many images."""
    return inspection.reading is None or inspection.reading.format not in _LABEL_SUFFIXES


def _missing(inspection: Inspection, part: Part) -> Iterator[int]:
    """The indices of images that are not there."""
    if not inspection.is_quick:  # reading has told it
        for index, path in enumerate(part.image_paths):
            if path not in inspection.facts and not path.is_file():
                yield index


def _shared_files(
    inspection: Inspection, part: Part, names: Sequence[str], origin: Origin
) -> Iterator[tuple[str, Example]]:
    images_of: defaultdict[Path, dict[str, None]] = defaultdict(dict)
    for file, name in zip(origin.files, names, strict=True):
        if file is not None:
            images_of[file][name] = None
    for file, images in images_of.items():
        if len(images) > 1:
            paths = part.paths(images)
            detail = f"of {' and '.join(path.name for path in paths)}"
            yield "D233", Example(part.name, inspection.relative(file), None, detail, str(paths[0]))


def _unused_images(inspection: Inspection, tree: Tree) -> Iterator[tuple[str, Example]]:
    """Images that no part mentions, in folders of which it mentions others: a README has pictures as well."""
    folders = {path.parent for path in inspection.part_of}
    unused: Counter[str] = Counter()
    damaged = {spelling(file.stem) for file in _damaged_files(inspection)}
    is_complete = all(part.document is not None for part in inspection.parts.values())
    for file in tree.images if is_complete else ():
        path = tree.path(file)
        facts = inspection.facts.get(path)
        if path in inspection.part_of or facts is None:
            continue
        if path.parent not in folders:
            unused[folder_of(file)] += 1
        elif facts.problem is None and spelling(stem_of(file)) not in damaged:
            yield "D202", Example("", file, None, "in no annotation file and no list", str(path))
    for folder, count in unused.items():
        yield "D237", Example("", folder or ".", None, count_of(count, "image", "images"))


def _orphans(inspection: Inspection, tree: Tree, format: str) -> Iterator[tuple[str, Example]]:
    suffix = _LABEL_SUFFIXES.get(format)
    used = {
        file
        for _, document in _documents(inspection)
        for file in (document.origin.files if document.origin is not None else ())
        if file is not None
    }
    if suffix is None or not used:
        return
    damaged = _damaged_files(inspection)
    folders = {file.parent for file in used}
    # The label of an image that cannot be read, or of a part that could not be read, has its image.
    stems = {spelling(stem_of(file)) for file in tree.images if tree.path(file) not in inspection.part_of}
    for file in tree.ending(suffix):
        path = tree.path(file)
        if path in used or path in damaged or path.parent not in folders or spelling(stem_of(file)) in stems:
            continue
        if suffix != ".txt" or _holds_boxes(path):
            yield "D204", Example("", file, None, "no image")


def _damaged_files(inspection: Inspection) -> set[Path]:
    return {fault.file for part in inspection.parts.values() for fault in part.faults if fault.kind == "damaged file"}


def _holds_boxes(path: Path) -> bool:
    """Whether a text file is one of labels, and no list of images or classes."""
    words = text_of(path, 1).split()
    return len(words) >= 5 and all(word.replace(".", "", 1).isdecimal() for word in words[:5])


def _bare(name: str) -> str:
    """A class name without case, accents, and what separates words."""
    plain = "".join(char for char in unicodedata.normalize("NFKD", name) if not unicodedata.combining(char))
    return "".join(char for char in plain.casefold() if char not in " _-")


# Boxes -------------------------------------------------------------------------------------------------------------


class _Placed(NamedTuple):
    """The boxes of a part in pixels of the images as they are shown."""

    inspection: Inspection
    part: Part
    document: Document
    xyxy: NDArray[np.float64]
    """(N, 4); NaN if unreadable."""
    sizes_hw: NDArray[np.int64]
    """(N, 2) of the image of each box; zeros if unknown."""
    is_converted: bool
    """Whether all boxes are given in another unit than the format prescribes."""

    @property
    def is_readable(self) -> NDArray[np.bool_]:
        """(N,): whether the box is four numbers."""
        return np.asarray(~np.isnan(self.xyxy).any(axis=1))

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """(N,): whether the box is four numbers and its image has a size."""
        return self.is_readable & np.asarray((self.sizes_hw > 0).all(axis=1))

    @property
    def sides(self) -> NDArray[np.float64]:
        """(N, 2) width and height."""
        return self.xyxy[:, 2:] - self.xyxy[:, :2]

    def examples(
        self, code: str, affected: NDArray[np.bool_], detail: Callable[[int], str], *, is_usual: bool = False
    ) -> Iterator[tuple[str, Example]]:
        """An example for each affected box.

        Of what is usual, and in a quick check, only the first are described, and those after them are counted by
        repeating the last: a data set may have a million polygons.
        """
        example = None
        for position, index in enumerate(np.flatnonzero(affected).tolist()):
            if example is None or position < MAX_EXAMPLES or not (is_usual or self.inspection.is_quick):
                example = self.example(index, detail(index))
            yield code, example

    def example(self, index: int, detail: str) -> Example:
        """One box, where it stands."""
        (image,) = self.part.paths([self.document.file_names[self.document.image_index[index]]])
        file, line = self.document.path, None
        origin = self.document.origin
        if origin is not None:
            file = origin.files[self.document.image_index[index]] or file
            line = None if self.inspection.is_quick else line_of(file, origin.unit, int(origin.numbers[index]))
        name = self.document.file_names[self.document.image_index[index]]
        if origin is None or origin.unit == "annotations":
            detail = f"annotation {self.document.annotation_ids[index]} of {name}: {detail}"
        elif _are_listed(self.inspection):
            detail = f"{name}: {detail}"
        drawn = () if np.isnan(self.xyxy[index]).any() else (_four(self.xyxy[index]),)
        return Example(self.part.name, self.inspection.relative(file), line, detail, str(image), drawn)

    def values(self, index: int) -> str:
        """The corners of a box and the size of its image, for a person."""
        height, width = self.sizes_hw[index].tolist()
        left, top, right, bottom = (f"{value:.6g}" for value in self.xyxy[index].tolist())
        return f"({left}, {top}) to ({right}, {bottom}) in {width}×{height}"


def _placed(inspection: Inspection, part: Part, document: Document) -> _Placed:
    """Bring boxes to pixels of the images as training does."""
    given_hw, actual_hw = document.sizes_hw, document.sizes_hw.copy()
    scales = np.ones((len(given_hw), 2))
    for index, path in enumerate(() if inspection.is_quick else part.image_paths):
        facts = inspection.facts.get(path)
        if facts is None or facts.problem is not None:
            continue
        height, width = given_hw[index].tolist()
        if facts.size_hw == (height, width):  # also of a photo that is annotated as stored
            continue
        shown_hw = upright_size(facts)
        actual_hw[index] = shown_hw
        if min(height, width) > 0 and same_aspect(shown_hw, (height, width)):
            scales[index] = shown_hw[1] / width, shown_hw[0] / height
    known_hw = np.where((given_hw > 0).all(axis=1, keepdims=True), given_hw, actual_hw)
    xywh, converted = document.boxes_xywh_px, []
    if not document.in_fractions:
        sizes_wh = known_hw[document.image_index, ::-1].astype(np.float64)
        xywh, _, converted = sides_in_pixels(xywh, document.areas, sizes_wh, CLIP_TOLERANCE)
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    xyxy = xyxy * np.tile(scales[document.image_index], 2)
    return _Placed(inspection, part, document, xyxy, actual_hw[document.image_index], bool(converted))


def _malformed(placed: _Placed) -> Iterator[tuple[str, Example]]:
    def detail(index: int) -> str:
        origin = placed.document.origin
        if origin is None or origin.unit != "line":
            return "not four finite numbers"
        file = origin.files[placed.document.image_index[index]]
        text = text_of(file, int(origin.numbers[index])) if file is not None else ""
        return f'"{text.strip()[:MAX_TEXT]}"'

    return placed.examples("D207", ~placed.is_readable, detail)


def _flat(placed: _Placed) -> Iterator[tuple[str, Example]]:
    sides = placed.sides
    inverted = placed.is_known & (sides < 0).any(axis=1)
    yield from placed.examples("D225", inverted, placed.values)
    yield from placed.examples("D219", placed.is_known & ~inverted & (sides == 0).any(axis=1), placed.values)


def _outside(placed: _Placed) -> Iterator[tuple[str, Example]]:
    limit = np.tile(placed.sizes_hw[:, ::-1], 2)
    inside = np.clip(placed.xyxy, 0, limit)
    has_area = placed.is_known & (placed.sides > 0).all(axis=1)
    outside = has_area & (inside[:, 2:] <= inside[:, :2]).any(axis=1)
    beyond = has_area & ~outside & (np.abs(placed.xyxy - inside).max(axis=1, initial=0) > CLIP_TOLERANCE)
    yield from placed.examples("D217", outside, placed.values)
    yield from placed.examples("D218", beyond, placed.values)


def _small_and_large(placed: _Placed) -> Iterator[tuple[str, Example]]:
    sides = placed.sides
    has_area = placed.is_known & (sides > 0).all(axis=1)
    # Fractions are rounded when they are written.
    sub_pixel = has_area & (sides < 1 - SAME_BOX).any(axis=1)
    few = has_area & ~sub_pixel & (sides <= FEW_PIXELS + SAME_BOX).any(axis=1)
    covers = has_area & (sides >= COVERS * placed.sizes_hw[:, ::-1]).all(axis=1)

    def size(index: int) -> str:
        return f"{sides[index, 0]:.3g}×{sides[index, 1]:.3g} pixels"

    yield from placed.examples("D220", sub_pixel, size)
    yield from placed.examples("D221", few, size)
    yield from placed.examples("D222", covers, placed.values)


def _repeated(placed: _Placed) -> Iterator[tuple[str, Example]]:
    document = placed.document
    if not len(placed.xyxy):
        return
    rounded = np.nan_to_num(np.round(placed.xyxy / SAME_BOX), nan=-1)
    names = {name: number for number, name in enumerate(dict.fromkeys(document.categories.values()))}
    number_of = {id_: names[name] for id_, name in document.categories.items()}
    labels = np.array([number_of[id_] for id_ in document.category_ids.tolist()])
    place = np.column_stack([document.image_index, rounded])
    order = np.lexsort((labels, *place.T[::-1]))
    same_place = (place[order[1:]] == place[order[:-1]]).all(axis=1) & placed.is_known[order[1:]]
    same_label = labels[order[1:]] == labels[order[:-1]]
    before = np.full(len(place), -1)
    before[order[1:]] = order[:-1]
    twice = np.zeros(len(place), dtype=np.bool_)
    twice[order[1:]] = same_place & same_label
    other = np.zeros(len(place), dtype=np.bool_)
    other[order[1:]] = same_place & ~same_label

    def name(index: int) -> str:
        return f'"{document.categories[int(document.category_ids[index])]}"'

    yield from placed.examples("D223", twice, lambda index: f"{name(index)} at {placed.values(index)}")
    yield from placed.examples("D224", other, lambda index: f"{name(index)} and {name(int(before[index]))}")


def _units(placed: _Placed) -> Iterator[tuple[str, Example]]:
    def detail(index: int) -> str:
        given = ", ".join(f"{value:.6g}" for value in placed.document.boxes_xywh_px[index].tolist())
        return f"[{given}] taken as {placed.values(index)}"

    if placed.is_converted:
        yield from placed.examples("D226", placed.is_readable, detail)


def _forms(placed: _Placed) -> Iterator[tuple[str, Example]]:
    yield from placed.examples("D227", placed.document.is_crowd, lambda index: "iscrowd", is_usual=True)
    if placed.document.origin is None:
        return
    forms = placed.document.origin.forms
    for form, code, what in (
        (Form.POLYGON, "D228", "its upright box"),
        (Form.KEYPOINTS, "D229", "the box alone"),
        (Form.PREDICTION, "D230", "without the confidence"),
    ):
        affected = (forms == form) & placed.is_readable
        yield from placed.examples(
            code, affected, lambda index, what=what: f"{what}: {placed.values(index)}", is_usual=True
        )


_BOX_CHECKS: tuple[Callable[[_Placed], Iterator[tuple[str, Example]]], ...] = (
    _malformed,
    _flat,
    _outside,
    _small_and_large,
    _repeated,
    _units,
    _forms,
)


def _four(values: NDArray[np.float64]) -> tuple[float, float, float, float]:
    left, top, right, bottom = values.tolist()
    return left, top, right, bottom
