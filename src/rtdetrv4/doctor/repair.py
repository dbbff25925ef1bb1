"""A repaired copy of a data set, in COCO layout; the original is never touched."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from rtdetrv4.data.decode import JPEG_MAGIC, same_aspect
from rtdetrv4.data.document import build_split, count_of, leave_out
from rtdetrv4.data.formats import ROBOFLOW_FILE
from rtdetrv4.data.holdout import hold_out
from rtdetrv4.data.records import RecordTable, Split
from rtdetrv4.data.tree import split_of
from rtdetrv4.data.voc import IMAGE_FOLDERS
from rtdetrv4.doctor.codes import CODES
from rtdetrv4.doctor.file_checks import WINDOWS_DEVICES
from rtdetrv4.doctor.finding import Example
from rtdetrv4.doctor.image_facts import ImageFacts
from rtdetrv4.doctor.inspection import Inspection, Part
from rtdetrv4.doctor.overview import scale_of, shown_hw
from rtdetrv4.errors import ConfigError, DatasetError
from rtdetrv4.input_files import of_home, read_file
from rtdetrv4.outputs import write_text
from rtdetrv4.runtime.pixels import MAX_FILE_BYTES, open_image
from rtdetrv4.runtime.sources import IMAGE_SUFFIXES
from rtdetrv4.types import ClassMap

logger: logging.Logger = logging.getLogger(__name__)

FOLDERS = {"train": "train", "val": "valid", "test": "test"}
CHANGES_TEXT, CHANGES_JSON = "changes.txt", "changes.json"
DONE = {
    "D002": "left out",
    "D004": "left out",
    "D101": "left out",
    "D102": "left out",
    "D103": "left out",
    "D105": "renamed",
    "D106": "turned upright",
    "D107": "tag deleted",
    "D108": "tag deleted",
    "D118": "boxes scaled to the file",
    "D119": "size of the file taken, or left out if the boxes do not fit into it",
    "D120": "size added",
    "D121": "renamed",
    "D122": "renamed if both are in one part",
    "D123": "renamed if both are in one part",
    "D124": "renamed",
    "D125": "copied",
    "D126": "left out",
    "D127": "left out",
    "D201": "listed as background",
    "D202": "left out",
    "D203": "left out",
    "D204": "left out",
    "D205": "left out",
    "D206": "left out",
    "D207": "left out",
    "D208": "left out",
    "D209": "left out",
    "D210": "given an id, or left out",
    "D211": "made one class",
    "D217": "left out",
    "D218": "clipped",
    "D219": "left out",
    "D220": "left out",
    "D223": "left out",
    "D225": "put right, or left out",
    "D226": "converted, or left out where they do not fit their images",
    "D228": "made an upright box",
    "D229": "key points left out",
    "D230": "confidence left out",
    "D231": "left out",
    "D232": "entries joined",
    "D233": "boxes written for each",
    "D234": "left out",
    "D236": "as training reads it",
    "D237": "left out",
    "D308": "one of them kept",
    "D309": "the one with the most boxes kept",
    "D311": "left out of the other part",
    "D314": "taken from the training images",
}
"""What was done about each kind of fault; the others are left as they are."""
UNDECIDED = "D238"
"""What a person has to decide before anything is repaired."""
MIN_SIDE = 0.99
"""Pixels; boxes with a smaller side are left out. Fractions are rounded when they are written."""
JPEG_QUALITY = 95
_START_OF_SCAN, _APP1 = b"\xff\xda", b"\xff\xe1"
_SUFFIX_OF_FORMAT = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}
_KEPT_CHARACTERS = frozenset(" ._-()+,=@#&!")
_MAX_NAME = 120
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its orientation tag."""


class Repair(NamedTuple):
    """A repaired copy."""

    path: Path
    num_images: Mapping[str, int]
    """By part."""
    num_changes: int
    changes: Path
    """The file that lists them."""


class _Entry(NamedTuple):
    """An image of the copy."""

    facts: ImageFacts
    name: str
    """Of the original, relative to the folder of its part."""
    size_hw: tuple[int, int]
    """Of the file in the copy."""
    turn: int
    """The orientation to undo in the pixels, 1 to 8."""
    boxes_xyxy_px: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray


def write_repaired_copy(inspection: Inspection, found: Iterable[tuple[str, Example]], dest: str | Path) -> Repair:
    """Write a copy of a data set as training should read it.

    What training would correct or leave out is corrected or left out for good, and so are copies: of several in one
    part, the one with the most boxes is kept; of one in two parts, the one that is evaluated on. Without a validation
    part, one is made as `train` would. Photos that are stored turned are turned; all other images are copied byte for
    byte. Whatever takes judgment is left as it is. Polygons and key points are not copied, only their boxes.

    Args:
        inspection: the data set, with a look at every image.
        found: what the checks found in it, for the list of changes.
        dest: the folder to write, which must be new or empty, and not inside the data set.

    Raises:
        ConfigError: `dest` holds something, or lies in the data set.
        DatasetError: there is no training part that can be read, or a person has to decide something first.
    """
    dest = of_home(dest)
    check_destination(dest, inspection.root)
    for part in inspection.parts.values():  # a YAML file may lie elsewhere than the images that it names
        if part.document is not None:
            check_destination(dest, _data_folder(part.folder))
    train = inspection.parts.get("train")
    entries = {
        part.name: list(_entries(inspection, part, split))
        for part in inspection.parts.values()
        if (split := _split(inspection, part)) is not None
    }
    if inspection.classes is None or "train" not in entries:
        reason = inspection.stop or (train.stop if train is not None else None) or "there is no training part"
        raise DatasetError(f"{inspection.data} cannot be repaired: {reason}")
    entries = _without_copies(entries)
    if not any(len(entry.labels) for entry in entries["train"]):
        raise DatasetError(f"{inspection.data} cannot be repaired: no training image with a box is left")
    changes: list[dict[str, Any]] = []
    for code, example in found:
        if code == UNDECIDED:
            raise DatasetError(
                f"{inspection.data} is not repaired: its class numbers seem to start at 1 ({code}), and a wrong guess "
                'would rename every class. If they do, give them with the names in the YAML file, as in "names: {1: '
                'cat, 2: dog}"; if not, correct the labels'
            )
        if code in DONE:
            changes.append(_change(code, example))
    if "val" not in entries:
        entries = _with_validation(entries, inspection.classes)
        if all(change["code"] != "D314" for change in changes) and "val" in entries:
            changes.append(_change("D314", Example("val", "", None, "no validation image was left")))
    dest.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=dest.parent))
    try:
        copy = workplace / "copy"
        copy.mkdir()
        sources = _write_parts(copy, entries, inspection)
        _write_changes(copy, inspection, changes, sources)
        if dest.exists():
            dest.rmdir()
        copy.rename(dest)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    done = Repair(dest, {name: len(own) for name, own in entries.items()}, len(changes), dest / CHANGES_TEXT)
    images = ", ".join(f"{count} {name}" for name, count in done.num_images.items())
    num_changes = count_of(len(changes), "change", "changes")
    logger.info("Repaired copy: %s (images: %s; %s, see %s)", dest, images, num_changes, CHANGES_TEXT)
    return done


def _data_folder(folder: Path) -> Path:
    """The folder that holds images/ and labels/, or images/train and labels/train, if images lie so; or their own."""
    if folder.name.lower() in IMAGE_FOLDERS:
        return folder.parent
    is_part_of_images = folder.parent.name.lower() in IMAGE_FOLDERS and split_of(folder.name) is not None
    return folder.parent.parent if is_part_of_images else folder


def check_destination(dest: str | Path, data: str | Path) -> None:
    """Check that a folder can be written to.

    Args:
        dest: the folder.
        data: the data set, a folder or a file in it.

    Raises:
        ConfigError: `dest` holds something, or lies in the data set.
    """
    if not str(dest).strip():
        raise ConfigError("fix: got an empty name, expected a new folder for the repaired copy.")
    dest, root = of_home(dest), of_home(data)
    root = root.parent if root.is_file() else root
    if dest.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"{dest} lies in the data set {root}, which is not changed; give a folder outside of it.")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ConfigError(f"{dest} exists already, and nothing is written over; give a new folder.")


def _split(inspection: Inspection, part: Part) -> Split | None:
    """The part as training reads it or, if training stops, what it would read of the images that can be read."""
    if part.split is not None or part.document is None or inspection.classes is None:
        return part.split
    looked_at = [inspection.facts.get(path) for path in part.image_paths]
    is_readable = np.array([facts is not None and facts.problem is None for facts in looked_at])
    if not is_readable.any():
        return None
    try:
        document = leave_out(part.document, is_readable, "cannot be read", [])
        return build_split(document, (part.folder,), inspection.classes)
    except DatasetError:
        return None


def _entries(inspection: Inspection, part: Part, split: Split) -> Iterator[_Entry]:
    """The images of a part that can be read, with their boxes in pixels of the copy; each file once."""
    records = split.records
    listed: defaultdict[Path, list[int]] = defaultdict(list)
    for index, path in enumerate(part.paths(record.info.file_name for record in records)):
        listed[path].append(index)
    for path, indices in listed.items():
        facts = inspection.facts.get(path)
        if facts is None or facts.problem is not None:
            continue
        rows: list[np.ndarray] = []
        size_hw = (0, 0)
        for index in indices:
            record = records[index]
            annotated_hw = (record.info.height, record.info.width)
            size_hw = shown_hw(facts, annotated_hw)
            if not same_aspect(size_hw, annotated_hw):
                continue
            wide, high = scale_of(facts, annotated_hw)
            boxes = record.boxes_xyxy_px * np.array([wide, high, wide, high])
            rows.append(np.column_stack([boxes, record.labels, record.is_crowd, record.areas * wide * high]))
        if rows:
            name = records[indices[0]].info.file_name
            yield _entry(facts, name, size_hw, np.concatenate(rows))


def _entry(facts: ImageFacts, name: str, size_hw: tuple[int, int], rows: np.ndarray) -> _Entry:
    """An image with each box once, and without boxes of less than a pixel.

    Args:
        facts: of the original.
        name: of the original.
        size_hw: of the file in the copy.
        rows: (n, 7): corners in pixels of the copy, label, whether it is a crowd, area.
    """
    is_turned = size_hw != facts.size_hw or facts.orientation in (2, 3, 4) or facts.size_hw[0] == facts.size_hw[1]
    is_large = (rows[:, 2:4] - rows[:, :2] >= MIN_SIDE).all(axis=1)
    rows = rows[is_large]
    first = np.unique(rows[:, :5].round(2), axis=0, return_index=True)[1]
    rows = rows[np.sort(first)]
    return _Entry(
        facts=facts,
        name=name,
        size_hw=size_hw,
        turn=facts.orientation if is_turned and facts.orientation in _TURNS else 1,
        boxes_xyxy_px=rows[:, :4],
        labels=rows[:, 4].astype(np.int64),
        is_crowd=rows[:, 5].astype(np.bool_),
        areas=rows[:, 6],
    )


def _without_copies(entries: Mapping[str, Sequence[_Entry]]) -> dict[str, list[_Entry]]:
    """Each image once: in the part that is evaluated on, unless that leaves nothing to train on."""
    own = {name: _most_labeled(part) for name, part in entries.items()}
    for order in (("test", "val", "train"), ("train", "val", "test")):
        seen: set[bytes] = set()
        kept: dict[str, list[_Entry]] = {}
        for name in (name for name in order if name in own):
            kept[name] = [entry for entry in own[name] if entry.facts.digest not in seen]
            seen.update(entry.facts.digest for entry in own[name])
        if any(len(entry.labels) for entry in kept["train"]):
            break
    return {name: kept[name] for name in entries if kept[name]}


def _most_labeled(entries: Sequence[_Entry]) -> list[_Entry]:
    """Of entries of the same bytes, the one with the most boxes, and the first of those."""
    best: dict[bytes, _Entry] = {}
    for entry in entries:
        known = best.get(entry.facts.digest)
        if known is None or len(entry.labels) > len(known.labels):
            best[entry.facts.digest] = entry
    chosen = {id(entry) for entry in best.values()}
    return [entry for entry in entries if id(entry) in chosen]


def _with_validation(entries: Mapping[str, Sequence[_Entry]], classes: ClassMap) -> dict[str, list[_Entry]]:
    """Take a fifth of the training images for validation, as training would."""
    train = entries["train"]
    if len(train) == 1:
        return {name: list(part) for name, part in entries.items()}
    table = RecordTable(
        image_ids=np.arange(len(train)),
        file_names=np.array([os.fspath(entry.facts.path).encode(errors="surrogatepass") for entry in train]),
        sizes_hw=np.array([entry.size_hw for entry in train], dtype=np.int32),
        first_box=np.cumsum([0, *(len(entry.labels) for entry in train)]),
        boxes_xyxy_px=np.concatenate([entry.boxes_xyxy_px for entry in train]).astype(np.float32),
        labels=np.concatenate([entry.labels for entry in train]),
        is_crowd=np.concatenate([entry.is_crowd for entry in train]),
        areas=np.concatenate([entry.areas for entry in train]),
    )
    kept, taken, _ = hold_out(Split(Path(), table, classes, "", ()))
    chosen = {
        name: [train[record.info.image_id] for record in part.records]
        for name, part in (("train", kept), ("val", taken))
    }
    return {**chosen, **{name: list(part) for name, part in entries.items() if name != "train"}}


def _write_parts(copy: Path, entries: Mapping[str, Sequence[_Entry]], inspection: Inspection) -> dict[str, str]:
    """Write images and annotations; returns the original of each file, by its path in the copy."""
    assert inspection.classes is not None
    sources: dict[str, str] = {}
    console = Console(stderr=True)
    for name, own in entries.items():
        folder = copy / FOLDERS[name]
        folder.mkdir()
        names = _new_names(own)
        progress = track(
            list(zip(own, names, strict=True)),
            f"Copying {name} images",
            console=console,
            transient=True,
            disable=not console.is_interactive,
        )
        for entry, new_name in progress:
            _write_image(entry, folder / new_name)
            sources[f"{FOLDERS[name]}/{new_name}"] = inspection.relative(entry.facts.path)
        write_text(folder / ROBOFLOW_FILE, json.dumps(_coco(own, names, inspection.classes), ensure_ascii=False))
    return sources


def _write_image(entry: _Entry, path: Path) -> None:
    """Copy an image, upright and without an orientation tag; byte for byte if it is so already."""
    facts = entry.facts
    if facts.orientation == 1:
        shutil.copyfile(facts.path, path)
        return
    data = read_file(facts.path, MAX_FILE_BYTES)
    if entry.turn == 1 and data.startswith(JPEG_MAGIC):
        path.write_bytes(_without_tags(data))
        return
    with open_image(io.BytesIO(data)) as image:
        image.load()
        profile = image.info.get("icc_profile")
        kept: dict[str, Any] = {} if profile is None else {"icc_profile": profile}
        # Pillow turns TIFF files while it loads them.
        turned = image.copy() if entry.turn == 1 or image.format == "TIFF" else image.transpose(_TURNS[entry.turn])
        turned.info = {}
        kind = image.format
    if kind in {"JPEG", "MPO"}:
        turned.save(path, "JPEG", quality=JPEG_QUALITY, subsampling=0, **kept)
    else:
        turned.save(path, kind, **kept)


def _without_tags(data: bytes) -> bytes:
    """A JPEG file without the segments that hold EXIF and XMP data; what is decoded stays bit for bit."""
    kept, start = [data[:2]], 2
    while (marker := data[start : start + 2]) != _START_OF_SCAN and marker[:1] == b"\xff":
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if marker != _APP1:
            kept.append(data[start:end])
        start = end
    return b"".join([*kept, data[start:]])


def _coco(entries: Sequence[_Entry], names: Sequence[str], classes: ClassMap) -> dict[str, Any]:
    images = [
        {"id": index + 1, "file_name": name, "width": entry.size_hw[1], "height": entry.size_hw[0]}
        for index, (entry, name) in enumerate(zip(entries, names, strict=True))
    ]
    rows = (
        (index + 1, *row)
        for index, entry in enumerate(entries)
        for row in zip(
            entry.labels.tolist(),
            entry.boxes_xyxy_px.tolist(),
            entry.areas.tolist(),
            entry.is_crowd.tolist(),
            strict=True,
        )
    )
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": classes.category_ids[label],
            "bbox": [round(value, 3) for value in (left, top, right - left, bottom - top)],
            "area": round(area, 3),
            "iscrowd": int(is_crowd),
        }
        for number, (image_id, label, (left, top, right, bottom), area, is_crowd) in enumerate(rows, 1)
    ]
    categories = [{"id": id_, "name": name} for id_, name in zip(classes.category_ids, classes.names, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _new_names(entries: Sequence[_Entry]) -> list[str]:
    """Names that every system accepts, different in more than case, with the suffix of their content."""
    Image.init()  # or not every suffix is known
    formats = Image.registered_extensions()
    used: set[str] = set()
    next_number: dict[str, int] = {}
    names: list[str] = []
    for entry in entries:
        original = PurePosixPath(entry.name)
        stem, suffix = _plain(original.stem), _plain(original.suffix)
        kind = "JPEG" if entry.facts.format == "MPO" else entry.facts.format
        if formats.get(suffix.lower()) != kind or suffix.lower() not in IMAGE_SUFFIXES:
            stem, suffix = (stem if formats.get(suffix.lower()) else stem + suffix), _SUFFIX_OF_FORMAT.get(kind, suffix)
        if (device := stem.partition(".")[0]).lower() in WINDOWS_DEVICES:
            stem = f"{device}_{stem[len(device) :]}"
        name = f"{stem}{suffix}"
        key = name.casefold()
        number = next_number.get(key, 2)
        while name.casefold() in used:
            name, number = f"{stem}-{number}{suffix}", number + 1
        next_number[key] = number
        used.add(name.casefold())
        names.append(name)
    return names


def _plain(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:  # surrogates, which stand for bytes that are not UTF-8
        name = os.fsencode(name).decode("latin-1")
    name = unicodedata.normalize("NFC", name)
    name = "".join(char if char.isalnum() or char in _KEPT_CHARACTERS else "_" for char in name)
    return name[:_MAX_NAME]


def _change(code: str, example: Example) -> dict[str, Any]:
    return {
        "code": code,
        "what": CODES[code].title,
        "part": example.part,
        "file": example.file,
        "line": example.line,
        "detail": example.detail,
        "done": DONE[code],
    }


def _write_changes(
    copy: Path, inspection: Inspection, changes: Sequence[Mapping[str, Any]], sources: Mapping[str, str]
) -> None:
    content = {"data": str(inspection.root), "changes": changes, "files": sources}
    write_text(copy / CHANGES_JSON, json.dumps(content, indent=1), errors="backslashreplace")
    lines = [f"{inspection.root}: {count_of(len(changes), 'change', 'changes')}"]
    by_code: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for change in changes:
        by_code[change["code"]].append(change)
    for code, own in sorted(by_code.items()):
        lines += ["", f"{code} {CODES[code].title} ({len(own)}): {DONE[code]}"]
        for change in own:
            line = "" if change["line"] is None else f":{change['line']}"
            place = f"{change['file']}{line}"
            lines.append(f"  {place}  {change['detail']}" if place else f"  {change['detail']}")
    renamed = [(new, old) for new, old in sources.items() if PurePosixPath(new).name != PurePosixPath(old).name]
    if renamed:
        lines += ["", f"Renamed ({len(renamed)}):", *(f"  {old} is {new}" for new, old in renamed)]
    write_text(copy / CHANGES_TEXT, "\n".join(lines) + "\n", errors="backslashreplace")
