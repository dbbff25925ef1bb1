"""Arrays of a cache: whole, or refused with one of two errors."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from rtdetrv4.data.arrays import read_array


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_what_numpy_saves_is_read(tmp_path: Path, dtype: type[np.generic]) -> None:
    saved = np.arange(24).reshape(2, 3, 4).astype(dtype)
    np.save(tmp_path / "a.npy", saved)
    found = read_array(tmp_path / "a.npy", dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, saved)
    with pytest.raises(ValueError, match="an array of"):
        read_array(tmp_path / "a.npy", np.int64)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3",  # found by fuzzing: tokenize.TokenError
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -3), }",
        "{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999, 9), }",
        "[" * 5000,
        "\t x\n  y",
        "",
    ],
)
def test_headers_that_lie(tmp_path: Path, header: str) -> None:
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(6)
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"a damaged header|an array of"):
        read_array(tmp_path / "a.npy", np.uint8)
