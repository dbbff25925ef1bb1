"""RF100-VL: a hundred data sets in folders, as Roboflow exports them in COCO format.

The benchmark (arXiv 2505.20612) is downloaded with its authors' package, `rf100vl`, and a free Roboflow API key; its
README gives the Apache License 2.0 for the data sets. Nothing here needs that package or a key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from rtdetrv4.data.formats import ROBOFLOW_FILE
from rtdetrv4.errors import ConfigError

HOW_TO_GET = (
    "RF100-VL is downloaded with its authors' package and a free Roboflow API key "
    '(https://github.com/roboflow/rf100-vl): pip install "rf100vl[cli]"; rf100vl download rf100vl DIR'
)


class DataSet(NamedTuple):
    """One of the data sets."""

    name: str
    path: Path
    domain: str | None

    @property
    def has_test(self) -> bool:
        """Whether it has test images, which the result is measured on; else the validation images count."""
        return (self.path / "test" / ROBOFLOW_FILE).is_file()


def find_sets(folder: Path, domains: Mapping[str, str] | None = None) -> list[DataSet]:
    """The data sets in a folder, by name: DIR/SET, or DIR/DOMAIN/SET, where the folder tells the domain.

    Args:
        folder: holds a folder for each set, or for each domain.
        domains: by the name of a set, for folders that do not tell.

    Raises:
        ConfigError: there are none, or two of one name.
    """
    domains = domains or {}
    found = [
        DataSet(path.name, path, domains.get(path.name) or (None if path.parent == folder else path.parent.name))
        for path in _set_folders(folder)
    ]
    names = [each.name for each in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{folder} holds two data sets of one name: {', '.join(sorted(twice))}. Rename one folder.")
    if not found:
        raise ConfigError(
            f"{folder} holds no data set: expected SET/train/{ROBOFLOW_FILE} or DOMAIN/SET/train/{ROBOFLOW_FILE}. "
            f"{HOW_TO_GET}"
        )
    return sorted(found)


def read_domains(file: Path) -> dict[str, str]:
    """The domains of data sets: a JSON object from the name of a set to its domain.

    Raises:
        ConfigError: the file holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ConfigError(f'{file}: expected {{"SET": "DOMAIN", …}}, such as {{"bees": "Flora/Fauna"}}.')
    return content


def _set_folders(folder: Path) -> Iterator[Path]:
    for pattern in ("*", "*/*"):
        for file in folder.glob(f"{pattern}/train/{ROBOFLOW_FILE}"):
            yield file.parents[1]
