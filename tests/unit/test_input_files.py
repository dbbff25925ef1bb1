from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from rtdetrv4.input_files import is_file, open_file, read_file


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert read_file(path, 7) == b"content"
    with open_file(path) as file:
        assert file.read() == b"content"
    assert is_file(path)


def test_a_longer_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(10**12)  # takes no room on the disk
    with pytest.raises(OSError, match=re.escape("it has 1 TB, expected at most 1 MB")) as caught:
        read_file(path, 10**6)
    assert caught.value.filename == str(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipes_devices_and_folders_are_no_files(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to("/dev/zero")
    for path, what in ((pipe, "a pipe"), (tmp_path / "link", "a device"), (tmp_path, "a folder")):
        with pytest.raises(OSError, match=what):
            read_file(path, 10)
        assert not is_file(path)


@pytest.mark.parametrize("name", ["a\0b", "a" * 10_000])
def test_names_that_no_file_can_have(name: str) -> None:
    assert not is_file(name)
    with pytest.raises(OSError, match="name"):
        read_file(name, 10)
