"""Checks of image files: whether and how they can be read, their sizes, their names, and what lies beside them."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from rtdetrv4.data.decode import same_aspect
from rtdetrv4.data.records import too_many
from rtdetrv4.data.tree import TOOL_FOLDERS, folder_of, name_of, split_of, suffix_of
from rtdetrv4.doctor.finding import Example
from rtdetrv4.doctor.image_facts import ImageFacts
from rtdetrv4.doctor.inspection import Inspection
from rtdetrv4.runtime.sources import IMAGE_SUFFIXES

HUGE_PIXELS = 50_000_000
TINY_SIDE = 32
"""Pixels: the largest stride of the models, so that such an image would be a single cell."""
EXTREME_ASPECT = 5.0
DARK = 8.0
"""Mean gray value: 12 bits in 16 reach 15 at most, and 10 bits 3."""
_WINDOWS_FORBIDS = frozenset('<>:"|?*\\') | {chr(code) for code in range(32)}
WINDOWS_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})


def unreadable_images(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """Images that cannot be decoded, and parts with too many of them."""
    for facts in inspection.facts.values():
        if facts.problem is not None:
            code = "D103" if not facts.num_bytes and facts.problem == "is empty" else "D101" if facts.format else "D102"
            yield code, _example(inspection, facts, facts.problem)
    for part in inspection.parts.values():
        looked_at = [inspection.facts[path] for path in part.image_paths if path in inspection.facts]
        num_bad = sum(facts.problem is not None for facts in looked_at)
        if too_many(num_bad, len(looked_at)):
            folder = inspection.relative(part.folder)
            yield "D104", Example(part.name, folder, None, f"{num_bad} of {len(looked_at)} images")


def kinds_of_images(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """Images of a kind that needs a second look: by suffix, pixel type, or number of pictures."""
    Image.init()  # or not every suffix is known
    formats = Image.registered_extensions()
    for facts in _readable(inspection):
        suffix = facts.path.suffix.lower()
        expected = formats.get(suffix)
        if expected is not None and expected != facts.format and {expected, facts.format} != {"JPEG", "MPO"}:
            yield "D105", _example(inspection, facts, f"{facts.format} content")
        if facts.mode.startswith(("I", "F")) or facts.mode.endswith(";16"):
            is_dark = not facts.mode.startswith("F") and facts.brightness < DARK
            detail = f"mode {facts.mode}, mean gray value {facts.brightness:.1f} of 255"
            yield "D113" if is_dark else "D112", _example(inspection, facts, detail)
        if facts.mode in {"1", "L", "LA"} or facts.mode.startswith(("I", "F", "L;")):
            yield "D109", _example(inspection, facts, f"mode {facts.mode}")
        if facts.mode.partition(";")[0] in {"RGBA", "LA", "PA", "RGBa", "La"}:
            yield "D110", _example(inspection, facts, f"mode {facts.mode}")
        if facts.mode == "CMYK":
            yield "D111", _example(inspection, facts, f"mode {facts.mode}")
        if facts.num_frames > 1:
            yield "D114", _example(inspection, facts, f"{facts.num_frames} pictures")


def sizes_of_images(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """Images that are huge, tiny, or very long."""
    for facts in _readable(inspection):
        height, width = facts.size_hw
        detail = f"{width}×{height} pixels"
        if height * width > HUGE_PIXELS:
            yield "D115", _example(inspection, facts, detail)
        if min(height, width) < TINY_SIDE:
            yield "D116", _example(inspection, facts, detail)
        if max(height, width) > EXTREME_ASPECT * min(height, width):
            yield "D117", _example(inspection, facts, detail)


def orientation_tags(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """Photos that are stored turned; those that are annotated so are found by `annotated_sizes`."""
    as_stored = {
        path for path, given_hw in _annotated(inspection) if _is_annotated_as_stored(inspection, path, given_hw)
    }
    for facts in _readable(inspection):
        if facts.orientation not in range(1, 9):
            yield "D107", _example(inspection, facts, f"orientation {facts.orientation}, not 1 to 8")
        elif facts.orientation > 1:
            code = "D108" if facts.path in as_stored else "D106"
            yield code, _example(inspection, facts, f"orientation {facts.orientation}")


def annotated_sizes(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """Images whose annotations state another size, or none."""
    for path, given_hw in _annotated(inspection):
        facts = inspection.facts.get(path)
        if facts is None or facts.problem is not None:
            continue
        if min(given_hw) < 1:
            yield "D120", _example(inspection, facts, "no size")
            continue
        actual_hw = given_hw if _is_annotated_as_stored(inspection, path, given_hw) else upright_size(facts)
        if actual_hw != given_hw:
            detail = f"{actual_hw[1]}×{actual_hw[0]} pixels, annotated as {given_hw[1]}×{given_hw[0]}"
            yield "D118" if same_aspect(actual_hw, given_hw) else "D119", _example(inspection, facts, detail)


def names_of_images(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """Names that other systems change, refuse, or take for one another."""
    if inspection.tree is None:
        return
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for file in inspection.tree.images:
        is_text = file.isascii() or _is_text(file)
        if not is_text:
            shown = ascii(name_of(file))
            yield "D121", _named(inspection, file, f"the bytes are those of {shown}")
        elif reason := _windows_refuses(file):
            yield "D124", _named(inspection, file, reason)
        spellings[(unicodedata.normalize("NFC", file) if is_text else file).casefold()].append(file)
    for first, *others in spellings.values():
        for other in others:
            normalized = unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", other)
            yield "D123" if normalized else "D122", _named(inspection, other, f"beside {first}")


def links_and_copies(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """Links that leave the data set or lead nowhere, and images that are hidden."""
    if inspection.tree is None:
        return
    real_root = inspection.root.resolve()
    with_images = set(map(folder_of, inspection.tree.images))
    pending: list[tuple[str, bool]] = [("", False)]
    while pending:
        folder, is_hidden = pending.pop()
        try:
            entries = sorted(os.scandir(inspection.root / folder), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            file = f"{folder}/{entry.name}".lstrip("/")
            hides = is_hidden or entry.name.startswith(".") or entry.name.lower() in TOOL_FOLDERS
            if entry.is_symlink() and not hides:
                target = Path(entry.path).readlink()
                if not Path(entry.path).exists():
                    yield "D126", _named(inspection, file, f"link to {target}")
                elif not Path(entry.path).resolve().is_relative_to(real_root):
                    yield "D125", _named(inspection, file, f"link to {target}")
            if entry.is_dir(follow_symlinks=False):
                # Other hidden folders, such as .git, may hold anything.
                if not hides or is_hidden or folder in with_images:
                    pending.append((file, hides))
            elif hides and suffix_of(entry.name) in IMAGE_SUFFIXES:
                yield "D127", Example("", file, None, f"in {folder_of(file) or 'the folder itself'}")


CHECKS: tuple[Callable[[Inspection], Iterator[tuple[str, Example]]], ...] = (
    unreadable_images,
    kinds_of_images,
    sizes_of_images,
    orientation_tags,
    annotated_sizes,
    names_of_images,
    links_and_copies,
)


def upright_size(facts: ImageFacts) -> tuple[int, int]:
    """The height and width of an image as it is shown."""
    height, width = facts.size_hw
    return (width, height) if facts.orientation in range(5, 9) else (height, width)


def _readable(inspection: Inspection) -> Iterator[ImageFacts]:
    return (facts for facts in inspection.facts.values() if facts.problem is None)


def _annotated(inspection: Inspection) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Path and annotated size of each image whose size is annotated."""
    for part in inspection.parts.values():
        if part.document is not None and not part.document.in_fractions:
            files = part.document.origin.files if part.document.origin is not None else part.image_paths
            for path, file, (height, width) in zip(
                part.image_paths, files, part.document.sizes_hw.tolist(), strict=True
            ):
                if file is not None:
                    yield path, (height, width)


def _is_annotated_as_stored(inspection: Inspection, path: Path, given_hw: tuple[int, int]) -> bool:
    """Whether `rtdetrv4.data.decode.read_image` leaves a turned photo as it is, because the annotated size says so."""
    facts = inspection.facts.get(path)
    if facts is None or facts.orientation not in range(5, 9):
        return False
    return facts.size_hw == given_hw and given_hw[0] != given_hw[1]


def _example(inspection: Inspection, facts: ImageFacts, detail: str) -> Example:
    file = inspection.relative(facts.path)
    image = str(facts.path) if facts.problem is None else None
    return Example(_part_of(inspection, facts.path, file), file, None, detail, image)


def _named(inspection: Inspection, file: str, detail: str) -> Example:
    path = inspection.root / file
    facts = inspection.facts.get(path)
    image = str(path) if facts is not None and facts.problem is None else None
    return Example(_part_of(inspection, path, file), file, None, detail, image)


def _part_of(inspection: Inspection, path: Path, file: str) -> str:
    named = split_of(file) or ""
    return inspection.part_of.get(path) or (named if named in inspection.parts else "")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # surrogates, which stand for bytes that are not UTF-8
        return False
    return True


def _windows_refuses(file: str) -> str:
    """Why Windows does not allow a path; empty if it does."""
    for name in file.split("/"):
        if found := sorted(_WINDOWS_FORBIDS.intersection(name)):
            return f"contains {found[0]!r}"
        if name.endswith((" ", ".")):
            return "ends with a space or a dot"
        if name.partition(".")[0].lower() in WINDOWS_DEVICES:
            return "is the name of a device"
    return ""
