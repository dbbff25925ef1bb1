"""Checks of the set as a whole: classes, sizes of boxes, copies, and how the parts compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtdetrv4.data.document import count_of
from rtdetrv4.data.records import RecordTable
from rtdetrv4.doctor.finding import Example
from rtdetrv4.doctor.inspection import ImageFacts, Inspection, Part
from rtdetrv4.doctor.lookalikes import copies, groups_alike, nearest_alike
from rtdetrv4.doctor.overview import box_sides, boxes_on_file

MIN_BOXES_OF_CLASS = 20
"""Boxes below which a class is rare: too few to learn from, and to measure with."""
MIN_SIDE_PX = 8
"""The side (√area) of a box at the input size, in pixels: one cell of the finest map that detectors here look at."""
MAX_TINY_SHARE = 0.05
MAX_USEFUL_SIZE = 2048
"""Input sizes above which tiles are the better way."""
STRIDE = 32
MAX_STRETCH = 1.5
"""How far the usual shape of images may differ from the input's, as a factor."""
MAX_BACKGROUND_SHARE = 0.5
MIN_IMAGES_FOR_OUTLIERS = 20
MAX_DEVIATIONS = 6.0
"""Robust standard deviations (1.4826 MAD) from the median, beyond which an image is an outlier."""
MIN_BRIGHTNESS_DIFFERENCE = 40.0
"""Gray levels of 255; in an even set, six deviations may be little."""
MIN_BLUR_FACTOR = 10.0
MIN_KS = 0.3
"""The least distance between two distributions that counts as another origin: significance alone would make every
difference count in large sets."""
MAX_P = 1e-4
MIN_VAL_IMAGES = 20
MIN_VAL_SHARE = 0.05
ENOUGH_VAL_IMAGES = 100

Found = Iterator[tuple[str, Example]]


def rare_classes(inspection: Inspection) -> Found:
    """Classes with few boxes in the training part."""
    for part, table in _tables(inspection, "train"):
        names, owners = _names(inspection), _owners(table)
        labels = np.where(table.is_crowd, -1, table.labels)
        counts = np.bincount(labels[labels >= 0], minlength=len(names))
        for label in np.argsort(counts, kind="stable").tolist():
            if 0 < counts[label] < MIN_BOXES_OF_CLASS:
                own = np.flatnonzero(labels == label)
                images = np.unique(owners[own])
                boxes = count_of(int(counts[label]), "box", "boxes")
                detail = f'"{names[label]}": {boxes} in {count_of(len(images), "image", "images")}'
                if counts.max() >= MIN_BOXES_OF_CLASS:
                    detail += f"; the most frequent class has {counts.max()}"
                index = int(images[0])
                yield "D301", _image(inspection, part, table, index, detail, own[owners[own] == index])


def crowded_images(inspection: Inspection) -> Found:
    """Images with more objects than the detector has queries."""
    for part, table in _tables(inspection):
        counts = _num_objects(table)
        for index in np.flatnonzero(counts > inspection.num_queries).tolist():
            detail = f"{counts[index]} objects, {inspection.num_queries} queries"
            yield "D302", _image(inspection, part, table, index, detail)


def tiny_boxes(inspection: Inspection) -> Found:
    """Images with boxes that are smaller than a cell of the finest map at the input size, if they are many."""
    height, width = inspection.input_hw
    for part, table in _tables(inspection):
        owners, sides = _owners(table), box_sides(table, inspection.input_hw)
        counted = ~table.is_crowd
        tiny = counted & (sides < MIN_SIDE_PX)
        share = tiny.sum() / max(counted.sum(), 1)
        if share < MAX_TINY_SHARE:
            continue
        factor = MIN_SIDE_PX / np.quantile(sides[counted], MAX_TINY_SHARE)
        needed = [math.ceil(side * factor / STRIDE) * STRIDE for side in inspection.input_hw]
        cure = f"{needed[1]}×{needed[0]} leaves 5 %" if max(needed) <= MAX_USEFUL_SIZE else "no usual size cures it"
        summary = f"; {share:.0%} of all boxes in {part.name}; {cure}"
        per_image, boxes = np.bincount(owners[tiny], minlength=len(table)), np.bincount(owners, minlength=len(table))
        for index in np.argsort(-per_image, kind="stable")[: int((per_image > 0).sum())].tolist():
            all_boxes = count_of(int(boxes[index]), "box", "boxes")
            detail = f"{per_image[index]} of {all_boxes} under {MIN_SIDE_PX} px at {width}×{height}{summary}"
            first, end = table.first_box[index : index + 2].tolist()
            yield "D303", _image(inspection, part, table, index, detail, first + np.flatnonzero(tiny[first:end]))
            summary = ""


def stretched_images(inspection: Inspection) -> Found:
    """Parts whose images are usually of a shape far from the input's."""
    height, width = inspection.input_hw
    for part, table in _tables(inspection):
        stretch = np.log(table.sizes_hw[:, 1] / table.sizes_hw[:, 0] * (height / width))
        middle = int(np.argsort(stretch, kind="stable")[len(stretch) // 2])
        if abs(stretch[middle]) <= math.log(MAX_STRETCH):
            continue
        usual_hw = table.sizes_hw[middle].tolist()
        side = math.sqrt(height * width)
        fitting = [max(1, round(side * math.sqrt(a / b) / STRIDE)) * STRIDE for a, b in (usual_hw, usual_hw[::-1])]
        detail = (
            f"usually {usual_hw[1]}×{usual_hw[0]}, the input is {width}×{height}; imgsz {fitting[0]}x{fitting[1]} fits"
        )
        yield "D304", _image(inspection, part, table, middle, detail)


def background(inspection: Inspection) -> Found:
    """Parts of which most images show no object."""
    for part, table in _tables(inspection):
        empty = np.flatnonzero(np.diff(table.first_box) == 0)
        if len(empty) > MAX_BACKGROUND_SHARE * len(table):
            detail = f"{len(empty)} of {len(table)} images have no box ({len(empty) / len(table):.0%})"
            yield "D305", _image(inspection, part, table, int(empty[0]), detail)


def unusual_light(inspection: Inspection) -> Found:
    """Images much darker or brighter than the others."""
    looked = _Looked.at(inspection)
    values = np.array([facts.brightness for facts in looked.facts])
    middle, deviations = _deviations(values)
    strong = (np.abs(deviations) > MAX_DEVIATIONS) & (np.abs(values - middle) > MIN_BRIGHTNESS_DIFFERENCE)
    for each in np.flatnonzero(strong).tolist():
        detail = f"mean gray value {values[each]:.0f}, half of the images are below {middle:.0f}"
        yield "D306", looked.example(inspection, each, detail)


def unusual_blur(inspection: Inspection) -> Found:
    """Images with far less detail than the others."""
    looked = _Looked.at(inspection)
    values = np.log([max(facts.blur, 1e-3) for facts in looked.facts])
    middle, deviations = _deviations(values)
    strong = (deviations < -MAX_DEVIATIONS) & (middle - values > math.log(MIN_BLUR_FACTOR))
    for each in np.flatnonzero(strong).tolist():
        detail = f"sharpness {math.exp(values[each]):.0f}, the median is {math.exp(middle):.0f}"
        yield "D307", looked.example(inspection, each, detail)


def copies_in_part(inspection: Inspection) -> Found:
    """Byte-identical images of one part, and those of them that are labeled differently."""
    for part, table in _tables(inspection):
        looked = _Looked.at(inspection, part.name)
        for first, *others in copies([facts.digest for facts in looked.facts]):
            for other in others:
                named = f"the same bytes as {looked.file(inspection, first)}"
                if _labels_of(table, looked.indices[first]) != _labels_of(table, looked.indices[other]):
                    named, code = f"{named}, other labels", "D309"
                else:
                    code = "D308"
                yield code, looked.example(inspection, other, named, looked.facts[first])


def lookalikes_in_part(inspection: Inspection) -> Found:
    """Images of one part that look alike without being copies."""
    for part, _ in _tables(inspection):
        looked = _Looked.at(inspection, part.name)
        for group in groups_alike(looked.hashes):
            first, digests = int(group[0]), {looked.facts[int(group[0])].digest}
            for other in group[1:].tolist():
                if looked.facts[other].digest not in digests:
                    digests.add(looked.facts[other].digest)
                    detail = f"looks like {looked.file(inspection, first)}"
                    yield "D310", looked.example(inspection, other, detail, looked.facts[first])


def leaks(inspection: Inspection) -> Found:
    """Images that one part shares with another: copies, and others that look alike."""
    for owner, part in (("train", "val"), ("train", "test"), ("val", "test")):
        ours, theirs = _Looked.at(inspection, owner), _Looked.at(inspection, part)
        if not ours.facts or not theirs.facts:
            continue
        first = {facts.digest: index for index, facts in reversed(list(enumerate(ours.facts)))}
        same = [first.get(facts.digest, -1) for facts in theirs.facts]
        alike = np.where(np.array(same) >= 0, -1, nearest_alike(theirs.hashes, ours.hashes))
        for code, how, found in (("D311", "the same bytes as", same), ("D312", "looks like", alike.tolist())):
            shared = [(each, index) for each, index in enumerate(found) if index >= 0]
            summary = f"; so {len(shared)} of {len(found)} {part} images ({len(shared) / len(found):.0%})"
            for each, index in shared:
                is_same_file = theirs.facts[each].path == ours.facts[index].path
                original = f"is in {owner}, too" if is_same_file else f"{how} {ours.file(inspection, index)}"
                yield code, theirs.example(inspection, each, f"{original}{summary}", ours.facts[index])
                summary = ""


def differing_parts(inspection: Inspection) -> Found:
    """Parts whose images or labels are distributed differently than those of the training part."""
    from scipy.stats import ks_2samp

    tables = {part.name: (part, table) for part, table in _tables(inspection)}
    if "train" not in tables:
        return
    ours = _features(inspection, *tables["train"])
    for name in ("val", "test"):
        if name not in tables:
            continue
        theirs = _features(inspection, *tables[name])
        for feature, values in theirs.items():
            known = ours.get(feature, np.zeros(0))
            if min(len(values), len(known)) < MIN_IMAGES_FOR_OUTLIERS:
                continue
            distance, p = map(float, ks_2samp(known, values, method="asymp"))
            if distance >= MIN_KS and p < MAX_P:
                medians = f"median {np.median(values):.3g} in {name}, {np.median(known):.3g} in train"
                yield "D313", Example(name, "", None, f"{feature}: {medians} (KS distance {distance:.2f})")
        yield from _differing_classes(inspection, tables["train"][1], tables[name][1], name)


def validation_part(inspection: Inspection) -> Found:
    """A validation part that is missing or too small."""
    tables = {part.name: table for part, table in _tables(inspection)}
    if "train" not in tables:
        return
    num_train = len(tables["train"])
    if "val" not in inspection.parts:
        detail = f"{num_train} training images, of which a fifth would be {max(1, round(num_train / 5))}"
        yield "D314", Example("val", "", None, detail)
    elif "val" in tables:
        num_val = len(tables["val"])
        total = num_train + num_val
        if num_val < max(MIN_VAL_IMAGES, min(MIN_VAL_SHARE * total, ENOUGH_VAL_IMAGES)):
            fifth = max(1, round(total / 5))
            share = f"a fifth would be {fifth}" if fifth > num_val else f"{num_val / total:.0%}, but few"
            detail = f"{num_val} of {total} images; {share}"
            yield "D315", Example("val", "", None, detail)


QUICK_CHECKS: tuple[Callable[[Inspection], Found], ...] = (
    rare_classes,
    crowded_images,
    tiny_boxes,
    stretched_images,
    background,
    validation_part,
)
"""Those that look at annotations alone."""
CHECKS: tuple[Callable[[Inspection], Found], ...] = (
    unusual_light,
    unusual_blur,
    copies_in_part,
    lookalikes_in_part,
    leaks,
    differing_parts,
)
"""Those that need a look at the images."""


class _Looked(NamedTuple):
    """The images of one or all parts that could be decoded."""

    parts: list[Part]
    indices: list[int]
    """Of the record in its part."""
    facts: list[ImageFacts]

    @classmethod
    def at(cls, inspection: Inspection, name: str | None = None) -> _Looked:
        looked = cls([], [], [])
        for part, table in _tables(inspection, name):
            for index, path in enumerate(part.paths(_file_names(table))):
                facts = inspection.facts.get(path)
                if facts is not None and facts.problem is None:
                    looked.parts.append(part)
                    looked.indices.append(index)
                    looked.facts.append(facts)
        return looked

    @property
    def hashes(self) -> NDArray[np.uint64]:
        return np.array([facts.dhash for facts in self.facts], dtype=np.uint64)

    def file(self, inspection: Inspection, each: int) -> str:
        return inspection.relative(self.facts[each].path)

    def example(self, inspection: Inspection, each: int, detail: str, beside: ImageFacts | None = None) -> Example:
        path = self.facts[each].path
        other = None if beside is None or beside.path == path else str(beside.path)
        return Example(self.parts[each].name, self.file(inspection, each), None, detail, str(path), beside=other)


def _tables(inspection: Inspection, name: str | None = None) -> Iterator[tuple[Part, RecordTable]]:
    """The parts that can be read, with their records; only one of them if `name` is given."""
    for part in inspection.parts.values():
        if part.split is not None and len(part.split.records) and name in (None, part.name):
            assert isinstance(part.split.records, RecordTable), "splits are read as tables"
            yield part, part.split.records


def _image(
    inspection: Inspection,
    part: Part,
    table: RecordTable,
    index: int,
    detail: str,
    boxes: NDArray[np.int64] | None = None,
) -> Example:
    """An example that shows an image and those of its boxes that are given as indices into all boxes of the part."""
    [path] = part.paths(_file_names(table, index))
    chosen = () if boxes is None else boxes_on_file(inspection, path, table.sizes_hw[index], table.boxes_xyxy_px[boxes])
    return Example(part.name, inspection.relative(path), None, detail, str(path), chosen)


def _file_names(table: RecordTable, index: int | None = None) -> list[str]:
    """The names of all images, or of one."""
    chosen = table.file_names if index is None else table.file_names[index : index + 1]
    return [name.decode(errors="surrogatepass") for name in chosen.tolist()]


def _names(inspection: Inspection) -> tuple[str, ...]:
    return inspection.classes.names if inspection.classes else ()


def _owners(table: RecordTable) -> NDArray[np.int64]:
    """(N,): the image of each box."""
    return np.repeat(np.arange(len(table)), np.diff(table.first_box))


def _num_objects(table: RecordTable) -> NDArray[np.int64]:
    """(M,): the boxes of each image without crowds."""
    return np.bincount(_owners(table)[~table.is_crowd], minlength=len(table))


def _labels_of(table: RecordTable, index: int) -> list[tuple[float, ...]]:
    """What an image teaches, in an order of its own: rows of label and box in tenths of pixels."""
    own = slice(table.first_box[index], table.first_box[index + 1])
    return sorted(map(tuple, np.column_stack([table.labels[own], table.boxes_xyxy_px[own].round(1)]).tolist()))


def _deviations(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The median, and for each value its distance from it in robust standard deviations; 0 for few values."""
    if len(values) < MIN_IMAGES_FOR_OUTLIERS:
        return 0.0, np.zeros(len(values))
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    return middle, (values - middle) / max(spread, 1e-9)


def _features(inspection: Inspection, part: Part, table: RecordTable) -> Mapping[str, NDArray[np.float64]]:
    """What is compared between parts, each as one number per image."""
    height, width = table.sizes_hw.astype(np.float64).T
    facts = _Looked.at(inspection, part.name).facts
    first_boxed = np.flatnonzero(np.diff(table.first_box) > 0)
    sides = box_sides(table, (1, 1)) * 100
    means = np.add.reduceat(sides, table.first_box[first_boxed]) if len(first_boxed) else np.zeros(0)
    return {
        "longer side in pixels": np.maximum(height, width),
        "width by height": width / height,
        "objects per image": _num_objects(table).astype(np.float64),
        "box side in percent of the image's": means / np.diff(table.first_box)[first_boxed],
        "mean gray value": np.array([each.brightness for each in facts]),
        "sharpness": np.array([each.blur for each in facts]),
    }


def _differing_classes(inspection: Inspection, ours: RecordTable, theirs: RecordTable, name: str) -> Found:
    """Classes that a much smaller or larger share of the images of a part shows."""
    from scipy.stats import fisher_exact

    names = _names(inspection)
    shown, known = (_num_showing(table, len(names)) for table in (theirs, ours))
    for label in np.argsort(-np.abs(shown / len(theirs) - known / len(ours)), kind="stable").tolist():
        shares = shown[label] / len(theirs), known[label] / len(ours)
        if abs(shares[0] - shares[1]) < MIN_KS:
            break
        counts = [[shown[label], len(theirs) - shown[label]], [known[label], len(ours) - known[label]]]
        if float(np.asarray(fisher_exact(counts))[1]) < MAX_P:
            what = f'images that show "{names[label]}"'
            yield "D313", Example(name, "", None, f"{what}: {shares[0]:.0%} in {name}, {shares[1]:.0%} in train")


def _num_showing(table: RecordTable, num_classes: int) -> NDArray[np.int64]:
    """(K,): the number of images that show a class."""
    pairs = np.unique(np.stack([_owners(table), table.labels], axis=1), axis=0)
    return np.bincount(pairs[:, 1], minlength=num_classes)
