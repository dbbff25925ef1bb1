"""What the checks are given: a data set as it was read, and what a look at every image told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rtdetrv4.data.document import Document
from rtdetrv4.data.layouts import Reading
from rtdetrv4.data.records import Split
from rtdetrv4.data.tree import Tree
from rtdetrv4.types import ClassMap


class ImageFacts(NamedTuple):
    """What one look at an image file told; of the pixels, only these numbers are kept."""

    path: Path
    num_bytes: int
    size_hw: tuple[int, int]
    """As stored, before the orientation tag is followed; (0, 0) if the file is no image."""
    mode: str
    """Pillow's name of the pixel type, such as RGB, L, CMYK or I;16; "" if the file is no image."""
    format: str
    """Pillow's name of the file format, such as JPEG; "" if the file is no image."""
    num_frames: int
    """Pictures in the file: animations and documents have several."""
    orientation: int
    """The value of the orientation tag, which may be invalid; 1 without one."""
    digest: bytes
    """BLAKE2b of the bytes: files with equal digests are copies."""
    dhash: int
    """64 bits: whether each of 8×8 cells of the upright image is darker than the one to its right. Images that look
    alike differ in few bits. 0 if the image cannot be decoded."""
    brightness: float
    """The mean gray value, 0 to 255; NaN if the image cannot be decoded."""
    blur: float
    """The variance of the Laplacian of the image scaled to 256×256 gray pixels: low if it is blurred; NaN if the image
    cannot be decoded."""
    problem: str | None
    """Why the image cannot be decoded; None if it can."""


class Part(NamedTuple):
    """One part of a data set."""

    name: str
    """"train", "val" or "test"."""
    document: Document | None
    """The annotations as given, before anything is dropped or corrected; None if they cannot be read."""
    folder: Path
    """What the file names of the document are relative to."""
    split: Split | None
    """What training makes of it; None if it stops instead."""


class Inspection(NamedTuple):
    """A data set as the checks see it."""

    root: Path
    """The folder that was given, or that of the file that was given."""
    tree: Tree
    """The files below `root`."""
    reading: Reading | None
    """None if no annotations were recognized."""
    classes: ClassMap | None
    """None if no part could be read."""
    parts: Mapping[str, Part]
    """By name, in the order train, val, test; those that are described, whether they can be read or not."""
    facts: Mapping[Path, ImageFacts]
    """By path as `Part.folder / file_name` and `tree.path(file)` give it; missing images have none. Empty in a quick
    check, which looks into no file."""
    input_hw: tuple[int, int] = (640, 640)
    """The size to which training will resize images."""
    num_queries: int = 300
    """The most objects that the detector can find in an image."""
