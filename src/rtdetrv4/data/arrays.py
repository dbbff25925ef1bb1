"""Arrays in files of a cache: read without believing what they claim."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from rtdetrv4.input_files import open_file


def read_array(path: Path, dtype: type[np.generic]) -> NDArray[Any]:
    """Read a .npy file that `np.save` wrote.

    `np.load` first takes the memory that the header of a file claims, which may be terabytes, and waits for pipes.

    Args:
        path: the file.
        dtype: of its elements.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is damaged, or holds anything but an array of this type.
    """
    with open_file(path) as file:
        if npy.read_magic(file) != (1, 0):
            raise ValueError("another version of .npy")
        shape, is_fortran, found = npy.read_array_header_1_0(file)
        num_bytes = math.prod(shape) * found.itemsize
        if found != np.dtype(dtype) or is_fortran or any(side < 0 for side in shape):
            raise ValueError(f"an array of {found}")
        if os.fstat(file.fileno()).st_size - file.tell() != num_bytes:
            raise ValueError(f"an array of another size than {shape}")
        return np.frombuffer(file.read(num_bytes), found).reshape(shape)
