"""Text files as any editor writes them."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import yaml

from rtdetrv4.errors import DatasetError
from rtdetrv4.input_files import read_file
from rtdetrv4.yaml12 import MAX_LENGTH, load_yaml

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


MAX_YAML_BYTES = 4 * MAX_LENGTH
MAX_BYTES = 2**28
"""Of a text file: a list of millions of images, or shapes with the image inside."""


def decode(data: bytes) -> str:
    """UTF-8, with or without a byte order mark, or UTF-16 with one, which PowerShell writes.

    Raises:
        UnicodeDecodeError: the content is something else.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    return data.decode()


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """Read UTF-8, with or without a byte order mark, UTF-16 with one, or else Latin-1.

    Raises:
        DatasetError: the file cannot be read, or is longer.
    """
    try:
        data = read_file(path, max_bytes)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    try:
        return data.decode()
    except UnicodeDecodeError:  # `tree.spelling` reads names of files the same way
        return data.decode("latin-1")


def printable(text: str) -> str:
    """The text with "?" for halves of surrogate pairs, which JSON may hold and nothing can write."""
    return text.encode(errors="replace").decode()


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without surrounding white space, and without empty ones.

    Raises:
        DatasetError: the file cannot be read.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_yaml(path: Path, example: str) -> dict[str, Any]:
    """Read the YAML file that describes a data set.

    Args:
        path: the file.
        example: how it might begin, for messages.

    Raises:
        DatasetError: the file cannot be read, or holds no mapping.
    """
    try:
        content = load_yaml(read_text(path, MAX_YAML_BYTES))
    except yaml.YAMLError as error:
        raise DatasetError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} should be a mapping such as {example}; got {type(content).__name__}")
    return content
