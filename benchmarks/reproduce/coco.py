"""COCO 2017: where it is downloaded, how it is laid out, and whether a folder holds all of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from rtdetrv4.data.decode import read_image
from rtdetrv4.data.formats import load_data
from rtdetrv4.data.records import Split
from rtdetrv4.errors import ConfigError, DatasetError
from rtdetrv4.types import ClassMap
from rtdetrv4.weights.catalog import COCO


class Archive(NamedTuple):
    """A file of the official download."""

    url: str
    size: int
    """Bytes."""
    md5: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]


class Part(NamedTuple):
    """What a part of the data set holds."""

    images: int
    annotations: int | None = None
    """Boxes of objects and crowds; None: any number."""


_HOST = "http://images.cocodataset.org/"
ARCHIVES = (
    Archive(_HOST + "annotations/annotations_trainval2017.zip", 252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c"),
    Archive(_HOST + "zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80"),
    Archive(_HOST + "zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
)
"""https://cocodataset.org/#download. Its authors publish no checksums: sizes and MD5 are those that many projects check
these files with, among them PaddlePaddle's COCO downloader."""
PARTS: Mapping[str, Part] = MappingProxyType({"train": Part(118_287, 860_001), "val": Part(5_000, 36_781)})
LICENSE = "annotations CC BY 4.0; every photo under the license that its owner chose on Flickr"


class Finding(NamedTuple):
    """One line of a check."""

    is_good: bool
    text: str


def how_to_get(folder: Path) -> str:
    """What to type to download COCO into a folder, as text of several lines."""
    total = sum(archive.size for archive in ARCHIVES) / 1e9
    lines = [
        f"COCO 2017 is {total:.1f} GB ({LICENSE}). Nothing here downloads it; by hand:",
        "",
        f"  mkdir -p {folder}",
    ]
    for archive in ARCHIVES:
        lines.append(f"  curl -L -C - -o {folder / archive.name} {archive.url}   # {archive.size / 1e9:.2f} GB")
    lines += [f"  unzip -q {folder / archive.name} -d {folder}" for archive in ARCHIVES]
    return "\n".join(lines)


def require_layout(folder: Path) -> None:
    """Raise unless a folder is laid out as the official archives unpack.

    Raises:
        ConfigError: something is missing; the message names it.
    """
    for part in PARTS:
        for needed, kind in (
            (folder / f"{part}2017", "a folder of images"),
            (folder / "annotations" / f"instances_{part}2017.json", "an annotation file"),
        ):
            if not needed.exists():
                raise ConfigError(
                    f"{folder} is not laid out as COCO: {needed.relative_to(folder)}, {kind}, is missing. Expected "
                    "train2017/, val2017/ and annotations/instances_{train,val}2017.json, as the archives that `check` "
                    "names unpack."
                )


def check(
    folder: Path,
    parts: Mapping[str, Part] = PARTS,
    classes: ClassMap | None = COCO,
    *,
    num_samples: int = 200,
    md5: bool = False,
) -> Iterator[Finding]:
    """Check a folder: archives that are still there, layout, counts, classes, and a sample of the images.

    Args:
        folder: the data set.
        parts: what it should hold.
        classes: its classes; None: any.
        num_samples: images to decode in each part, evenly spread.
        md5: compute the checksums of archives, which reads them whole.

    Raises:
        ConfigError: the layout is another.
        DatasetError: the annotations cannot be used.
    """
    yield from _check_archives(folder, md5)
    require_layout(folder)
    loaded = load_data(folder, parts=tuple(parts))
    for name, expected in parts.items():
        files = sum(entry.name.endswith(".jpg") for entry in os.scandir(folder / f"{name}2017"))
        yield _count(f"{name}2017: image files", files, expected.images)
        document, _ = loaded.documents[name]
        yield _count(f"{name}2017: annotated images", len(document.file_names), expected.images)
        if expected.annotations is not None:
            yield _count(f"{name}2017: annotations", len(document.annotation_ids), expected.annotations)
        split: Split = getattr(loaded.splits, name)
        yield from (Finding(True, f"{name}2017: note: {problem}") for problem in split.problems)
        yield _decode_some(name, split, num_samples)
    if classes is not None:
        yield Finding(loaded.classes == classes, f"the {classes.num_classes} classes and their ids")


def _check_archives(folder: Path, md5: bool) -> Iterator[Finding]:
    for archive in ARCHIVES:
        path = folder / archive.name
        if not path.is_file():
            continue
        yield _count(f"{archive.name}: bytes", path.stat().st_size, archive.size)
        if md5:
            found = _md5(path)
            yield Finding(found == archive.md5, f"{archive.name}: MD5 {found}, expected {archive.md5}")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _count(what: str, found: int, expected: int) -> Finding:
    return Finding(found == expected, f"{what}: {found}" + ("" if found == expected else f", expected {expected}"))


def _decode_some(name: str, split: Split, num_samples: int) -> Finding:
    number = len(split.records)
    num_samples = min(num_samples, number)
    chosen = [split.records[index * number // num_samples] for index in range(num_samples)]
    bad: list[str] = []
    for record in chosen:
        try:
            read_image(split.image_dir / record.info.file_name, (record.info.height, record.info.width))
        except DatasetError as error:
            bad.append(str(error))
    text = f"{name}2017: {num_samples - len(bad)} of {num_samples} sampled images can be read"
    return Finding(not bad, "; ".join([text, *bad[:3]]))
