"""The page: what the doctor found, with pictures, and what the data set looks like."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rtdetrv4.data.decode import read_image
from rtdetrv4.data.document import count_of
from rtdetrv4.data.records import Split
from rtdetrv4.doctor.codes import SUSPECTS
from rtdetrv4.doctor.finding import SEVERITIES, Example, Finding, Findings
from rtdetrv4.doctor.image_facts import ImageFacts
from rtdetrv4.doctor.inspection import Inspection
from rtdetrv4.doctor.overview import Histogram, Labeled, Overview, labeled, overview, scale_of
from rtdetrv4.errors import DatasetError
from rtdetrv4.input_files import of_home, read_file
from rtdetrv4.outputs import find_unused_folder, unused_folder, write_text
from rtdetrv4.pages import Bar, bars, encode, histogram, render, thumbnail, write_page
from rtdetrv4.pages.pictures import MAX_SIDE
from rtdetrv4.runtime.draw import Color, color_of_class
from rtdetrv4.runtime.pixels import MAX_FILE_BYTES, PixelsError, decode_image

logger: logging.Logger = logging.getLogger(__name__)

PAGE_FILE, JSON_FILE = "doctor.html", "doctor.json"
DOCTOR_FILES = (PAGE_FILE, JSON_FILE)
MAX_PICTURES, MAX_PICTURES_OF_SUSPECTS = 12, 50
"""Pictures of one finding; further examples are listed. Of suspects there are more, for each must be looked at."""
MAX_LISTED = 20
"""Examples of a finding, with those in pictures; suspects are all listed, and doctor.json holds all."""
MAX_CLASSES = 40
MAX_KEYS = 12
"""Classes whose colors are explained."""
FAULTY: Color = (255, 0, 110)
OTHER: Color = (95, 175, 255)
SEEN: Color = (0, 200, 120)
_COLORS_OF_CODE = {"D401": (SEEN,), "D402": (FAULTY,), "D403": (FAULTY, SEEN), "D404": (FAULTY, SEEN)}
_LEAST_MARGIN, _MARGIN_SHARE = 24.0, 0.08
"""What is shown around a faulty box at least, in pixels and as a fraction of the longer side of the image."""
_LEAST_SIDE = 8.0
"""Pixels of a picture that a faulty box takes at least, so that one without area is seen."""
_MAX_BEYOND = 0.3
"""How far a picture extends beyond its image to show boxes that leave it, as a fraction of its sides."""
_OUTSIDE = 128
"""The gray value beyond an image and between two."""
_GAP = 6


class _Shown(NamedTuple):
    """An example with what the page needs to show it."""

    uri: str | None
    """Of its picture: "" if it was left out to keep the page small, None if there is none."""
    alt: str
    place: str
    link: str
    detail: str


class _Section(NamedTuple):
    """A finding with its examples, apart by whether they have a picture."""

    finding: Finding
    pictures: list[_Shown]
    listed: list[_Shown]
    has_boxes: bool
    """Whether boxes in question are drawn."""
    has_pairs: bool
    """Whether two images are shown beside each other."""


def write_pages(folder: str | Path, findings: Findings, inspection: Inspection) -> Path:
    """Write doctor.html and doctor.json, in folder-2, folder-3, … if the folder holds earlier ones.

    Args:
        folder: where to write; created if missing.
        findings: what the doctor found.
        inspection: what it looked at.

    Returns:
        The page.

    Raises:
        MissingDependencyError: jinja2 is not installed.
        ConfigError: the folder holds an earlier page, and is the current folder or one above it.
    """
    html = page(findings, inspection)
    folder = unused_folder(of_home(folder), DOCTOR_FILES)
    write_text(folder / JSON_FILE, findings.to_json(), errors="backslashreplace")
    write_page(folder / PAGE_FILE, html)
    logger.info("Page: %s", folder / PAGE_FILE)
    return folder / PAGE_FILE


def check_folder(folder: str | Path) -> None:
    """Check that `write_pages` can write to a folder.

    Raises:
        ConfigError: it is a file; or it holds an earlier page, and is the current folder or one above it.
    """
    find_unused_folder(of_home(folder), DOCTOR_FILES)


def page(findings: Findings, inspection: Inspection) -> str:
    """The page as HTML, with all pictures inside.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    shown = overview(inspection)
    images = _images(inspection)
    drawn = {
        (finding.code, number): picture
        for finding in findings.findings
        for number, example in enumerate(finding.examples)
        if number < (MAX_PICTURES_OF_SUSPECTS if finding.code in SUSPECTS else MAX_PICTURES)
        and (picture := _draw_with_other(finding.code, example, images, inspection.facts)) is not None
    }
    sheets = {
        (part, number): picture
        for part, samples in shown.samples.items()
        for number, sample in enumerate(samples)
        if (picture := _draw_sample(sample, shown.names)) is not None
    }
    uris = dict(zip((*drawn, *sheets), encode([*drawn.values(), *sheets.values()]), strict=True))
    return render(
        "doctor/doctor.html.jinja",
        findings=findings,
        name=inspection.root.name or str(inspection.root),
        path=inspection.root,
        summary=_summary(findings),
        sections=[_section(finding, uris, inspection.root) for finding in findings.findings],
        samples={
            part: [_show_sample(each, uris[part, n], shown.names) for n, each in enumerate(some) if (part, n) in uris]
            for part, some in shown.samples.items()
        },
        keys=[(name, _hex(color_of_class(label))) for label, name in enumerate(shown.names[:MAX_KEYS])],
        num_classes=len(shown.names),
        colors={"faulty": _hex(FAULTY), "other": _hex(OTHER), "seen": _hex(SEEN)},
        charts=_charts(shown, inspection.input_hw),
        version=importlib.metadata.version("rtdetrv4"),
    )


def _summary(findings: Findings) -> str:
    if not findings.findings:
        return "Nothing was found."
    counts = [(severity, len(findings.of(severity))) for severity in SEVERITIES]
    return ", ".join(count_of(count, severity, f"{severity}s") for severity, count in counts if count)


def _images(inspection: Inspection) -> dict[str, tuple[Split, int]]:
    """Where to find the labels of an image, by its absolute path."""
    return {
        str(path): (part.split, index)
        for part in inspection.parts.values()
        if part.split is not None
        for index, path in enumerate(part.paths(record.info.file_name for record in part.split.records))
    }


def _section(finding: Finding, uris: dict[tuple[str, int], str], root: Path) -> _Section:
    examples = finding.examples if finding.code in SUSPECTS else finding.examples[:MAX_LISTED]
    shown = [_show_example(each, uris.get((finding.code, n)), root) for n, each in enumerate(examples)]
    return _Section(
        finding,
        pictures=[each for each in shown if each.uri is not None],
        listed=[each for each in shown if each.uri is None],
        has_boxes=any(example.boxes_xyxy_px for example in finding.examples),
        has_pairs=any(example.beside is not None for example in finding.examples),
    )


def _show_example(example: Example, uri: str | None, root: Path) -> _Shown:
    place = example.file or example.part
    return _Shown(
        uri,
        alt=f"{place}: {example.detail}",
        place=place if example.line is None else f"{place}:{example.line}",
        link=_link(root / example.file) if example.file else "",
        detail=example.detail,
    )


def _show_sample(sample: Labeled, uri: str, names: Sequence[str]) -> _Shown:
    counts = np.bincount(sample.labels, minlength=len(names))
    boxes = ", ".join(f"{counts[label]} × {names[label]}" for label in np.flatnonzero(counts).tolist()) or "no boxes"
    return _Shown(uri, f"{sample.path.name}: {boxes}", sample.path.name, _link(sample.path), "")


def _link(path: Path) -> str:
    return path.absolute().as_uri()


def _hex(color: Color) -> str:
    return "#" + bytes(color).hex()


def _draw_sample(sample: Labeled, names: Sequence[str]) -> np.ndarray | None:
    """A small copy of an image with all its labels; None if it cannot be read."""
    height, width = sample.size_hw
    pixels = _pixels(sample.path, sample.size_hw, 2 * MAX_SIDE / max(height, width))
    if pixels is None:
        return None
    boxes = sample.boxes_xyxy_px * np.tile([pixels.shape[1] / width, pixels.shape[0] / height], 2)
    # A few classes are told apart by their colors; names would hide what is to be looked at.
    texts = ["" if len(names) <= MAX_KEYS else names[label] for label in map(int, sample.labels)]
    return thumbnail(pixels, boxes, sample.labels, texts)


def _draw_with_other(
    code: str, example: Example, images: Mapping[str, tuple[Split, int]], facts: Mapping[Path, ImageFacts]
) -> np.ndarray | None:
    """What an example shows and, at its right, the image that it is compared with."""
    picture = _draw_example(code, example, images, facts)
    if example.beside is None or picture is None:
        return picture
    other = _draw_example(code, example._replace(image=example.beside), images, facts)
    if other is None:
        return picture
    height = min(picture.shape[0], other.shape[0])
    pair = [thumbnail(each, max_side=round(height * max(each.shape[:2]) / each.shape[0])) for each in (picture, other)]
    height = min(each.shape[0] for each in pair)
    gap = np.full((height, _GAP, 3), _OUTSIDE, dtype=np.uint8)
    return np.concatenate([pair[0][:height], gap, pair[1][:height]], axis=1)


def _draw_example(
    code: str, example: Example, images: Mapping[str, tuple[Split, int]], facts: Mapping[Path, ImageFacts]
) -> np.ndarray | None:
    """What an example shows: the boxes in question, large enough to be seen, among the others of the image."""
    if example.image is None:
        return None
    path = Path(example.image)
    faulty = np.array(example.boxes_xyxy_px, dtype=np.float64).reshape(-1, 4)
    faulty = faulty[np.isfinite(faulty).all(axis=1)]
    if example.image in images:
        sample = labeled(*images[example.image])
        wide, high = scale_of(facts.get(path), sample.size_hw)
        size_hw, others = (
            (sample.size_hw[0] * high, sample.size_hw[1] * wide),
            sample.boxes_xyxy_px * np.array([wide, high] * 2),
        )
        left, top, right, bottom = _region(faulty, size_hw)
        pixels = _pixels(path, sample.size_hw, 2 * MAX_SIDE / max(right - left, bottom - top))
    else:
        pixels, others = _pixels(path, None, 1.0), np.zeros((0, 4))
        size_hw = (1, 1) if pixels is None else pixels.shape[:2]
    if pixels is None:
        return None
    scale = np.tile([pixels.shape[1] / size_hw[1], pixels.shape[0] / size_hw[0]], 2)
    corner, cut = _cut(pixels, _region(faulty, size_hw) * scale)
    others = others[(np.abs(others[:, None] - faulty).max(axis=2) > 1).all(axis=1)] * scale - np.tile(corner, 2)
    others = others[(others[:, 2:] > 0).all(axis=1) & (others[:, :2] < [cut.shape[1], cut.shape[0]]).all(axis=1)]
    faulty = faulty * scale - np.tile(corner, 2)
    pixel = max(cut.shape[:2]) / MAX_SIDE  # of the picture
    centers, sides = (faulty[:, :2] + faulty[:, 2:]) / 2, np.maximum(faulty[:, 2:] - faulty[:, :2], _LEAST_SIDE * pixel)
    faulty = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    wider = faulty + np.array([-1, -1, 1, 1]) * pixel  # a second line, so that it is thicker
    boxes = np.concatenate([wider, faulty, others])
    in_question = _COLORS_OF_CODE.get(code, (FAULTY,) * len(faulty))[: len(faulty)]
    colors = [*in_question, *in_question, *[OTHER] * len(others)]
    return thumbnail(cut, boxes, np.zeros(len(boxes), dtype=np.int64), [""] * len(boxes), colors=colors)


def _pixels(path: Path, size_hw: tuple[int, int] | None, scale: float) -> np.ndarray | None:
    """An image as training sees it, or as a viewer does if its annotated size is unknown; None if it is damaged."""
    try:
        if size_hw is not None:
            return read_image(path, size_hw, min(scale, 1.0))
        return decode_image(read_file(path, MAX_FILE_BYTES))
    except (DatasetError, PixelsError, OSError):
        return None


def _region(faulty: np.ndarray, size_hw: tuple[float, float]) -> np.ndarray:
    """The rectangle (x1, y1, x2, y2) to show: around the boxes if they are small, else the image and what leaves it."""
    limit = np.array(size_hw[::-1], dtype=np.float64)
    whole = np.concatenate([np.zeros(2), limit])
    if not len(faulty):
        return whole
    low, high = faulty[:, :2].min(axis=0), faulty[:, 2:].max(axis=0)
    margin = max((high - low).max(), _LEAST_MARGIN, _MARGIN_SHARE * limit.max())
    is_small = (high - low + 2 * margin <= limit / 2).all()
    region = np.concatenate([low - margin, high + margin]) if is_small else whole
    # A box at the border is seen only with a little of what is beyond it.
    rim = (region[2:] - region[:2]).max() / 20
    with_boxes = np.concatenate([np.where(low < 1, low - rim, 0), np.where(high > limit - 1, high + rim, limit)])
    region = _within(region, with_boxes) if is_small else with_boxes
    return _within(region, whole + np.tile(limit * _MAX_BEYOND, 2) * [-1, -1, 1, 1])


def _within(rectangle: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """A rectangle (x1, y1, x2, y2) clipped to another."""
    return np.clip(rectangle, np.tile(limits[:2], 2), np.tile(limits[2:], 2))


def _cut(pixels: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut a rectangle out of an image, gray where it leaves the image; returns its corner (x, y), and h×w×3."""
    x1, y1, x2, y2 = (*np.floor(region[:2]).astype(int).tolist(), *np.ceil(region[2:]).astype(int).tolist())
    cut = np.full((max(y2 - y1, 1), max(x2 - x1, 1), 3), _OUTSIDE, dtype=np.uint8)
    top, left = max(y1, 0), max(x1, 0)
    inside = pixels[top : max(y2, top), left : max(x2, left)]
    cut[top - y1 : top - y1 + inside.shape[0], left - x1 : left - x1 + inside.shape[1]] = inside
    return np.array([x1, y1]), cut


def _charts(shown: Overview, input_hw: tuple[int, int]) -> list[tuple[str, str]]:
    """Titles and charts."""
    charts = [
        (f"Boxes of each class, {part}", bars(_class_bars(shown.names, counts), f"Boxes of each class in {part}"))
        for part, counts in shown.boxes_of_class.items()
        if any(counts)
    ]
    if shown.image_sizes:
        rows = [Bar(name, count, str(count)) for name, count in shown.image_sizes]
        charts.append(("Image sizes", bars(rows, "Number of images of each size")))
    if any(shown.objects_per_image.counts):
        title = "Boxes per image"
        charts.append((title, _histogram(shown.objects_per_image, title, "boxes in an image", "images")))
    if any(shown.box_sides.counts):
        title = f"Box sizes at {input_hw[1]}×{input_hw[0]}"
        charts.append((title, _histogram(shown.box_sides, title, "√area in pixels", "boxes")))
    return charts


def _histogram(values: Histogram, title: str, x_label: str, y_label: str) -> str:
    return histogram(
        values.counts, values.edges, title, x_label=x_label, y_label=y_label, format_x=lambda edge: f"{edge:.0f}"
    )


def _class_bars(names: Sequence[str], counts: Sequence[int]) -> list[Bar]:
    """The classes by descending count; of very many, the most frequent and the rarest."""
    order: list[int] = np.argsort(-np.array(counts), kind="stable").tolist()
    if len(order) > MAX_CLASSES:
        left_out = order[MAX_CLASSES // 2 : -MAX_CLASSES // 2]
        between = Bar(f"… {len(left_out)} classes …", sum(counts[label] for label in left_out) / len(left_out), "")
        kept = [Bar(names[label], counts[label], str(counts[label])) for label in order if label not in left_out]
        return [*kept[: MAX_CLASSES // 2], between, *kept[MAX_CLASSES // 2 :]]
    return [Bar(names[label], counts[label], str(counts[label])) for label in order]
