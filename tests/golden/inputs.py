"""The inputs of the golden numbers: weights, images and targets that can be made anywhere, so none need storing.

A weight depends only on its name in the released code, an image or a target list only on a seed. NumPy guarantees the
stream of `RandomState` for good; changing the order in which numbers are drawn here would invalidate every golden file.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

# Not drawn: constants that the model computes itself, and batch-norm statistics, which the .npz files hold.
_NOT_DRAWN = re.compile(
    r"decoder\.(up|reg_scale|anchors|valid_mask)|num_points_scale|num_batches_tracked|running_(mean|var)"
)

# Mean and spread by name, the first match counts. They keep a random network in the working range of a trained one:
# sampling points near their reference, boxes near their anchors, few confident classes.
_MEAN_AND_SPREAD = (
    (re.compile(r"sampling_offsets\.bias$"), 0.0, 2.0),
    (re.compile(r"sampling_offsets\.weight$"), 0.0, 0.02),
    (re.compile(r"\.scale$"), 1.0, 0.1),
    (re.compile(r"denoising_class_embed\.weight$"), 0.0, 1.0),
    (re.compile(r"_bbox_head.*\.layers\.2\."), 0.0, 0.02),
    (re.compile(r"score_head.*bias$"), -4.6, 0.1),
)


def fill(name: str, shape: Sequence[int]) -> np.ndarray:
    """The value of the released tensor `name`: float32, of shape `shape`."""
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    values = np.asarray(np.random.RandomState(seed).standard_normal(tuple(shape)), dtype=np.float32)
    mean, spread = _mean_and_spread(name, shape)
    values = mean + spread * values
    if name.endswith("denoising_class_embed.weight"):
        values[-1] = 0  # the padding class
    return values


def _mean_and_spread(name: str, shape: Sequence[int]) -> tuple[float, float]:
    for pattern, mean, spread in _MEAN_AND_SPREAD:
        if pattern.search(name):
            return mean, spread
    if len(shape) == 1:
        return (1.0, 0.1) if name.endswith("weight") else (0.0, 0.1)
    fan_in = math.prod(shape[1:])
    gain = math.sqrt(2) if len(shape) == 4 else 1.0  # He's for convolutions
    return 0.0, gain / math.sqrt(fan_in)


def state_dict(
    keys: Iterable[tuple[str, Sequence[int]]], statistics: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """A released state dict, complete but for the constants that the model computes itself.

    Args:
        keys: Names and shapes: "keys" of a model's .json file.
        statistics: A model's .npz file, in which "bn/NAME" is the batch-norm statistic NAME.
    """
    weights = {}
    for name, shape in keys:
        if (statistic := statistics.get(f"bn/{name}")) is not None:
            weights[name] = statistic
        elif not _NOT_DRAWN.search(name):
            weights[name] = fill(name, shape)
    return weights


def image(seed: int, height: int, width: int) -> np.ndarray:
    """A picture of smooth waves under a little noise: 3×height×width float32, RGB in [0, 1]."""
    rng = np.random.RandomState(seed)
    y = np.arange(height, dtype=np.float64)[:, None]
    x = np.arange(width, dtype=np.float64)[None, :]
    picture = np.zeros((3, height, width))
    for channel in picture:
        for _ in range(6):
            rows, columns = rng.uniform(0.5, 8), rng.uniform(0.5, 8)
            phase, amplitude = rng.uniform(0, 6.28), rng.uniform(0.05, 0.2)
            channel += amplitude * np.sin(2 * np.pi * (rows * y / height + columns * x / width) + phase)
    noise = rng.standard_normal(picture.shape)
    return np.clip(0.5 + 0.5 * picture + 0.05 * noise, 0, 1).astype(np.float32)


def targets(seed: int, per_image: Sequence[int], num_classes: int = 80) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each image its labels, (n,) int64, and its boxes, (n, 4) float32, cxcywh in [0, 1]."""
    rng = np.random.RandomState(seed)
    drawn = []
    for count in per_image:
        sizes = rng.uniform(0.05, 0.5, (count, 2))
        centers = rng.uniform(0.25, 0.75, (count, 2))
        labels = rng.randint(0, num_classes, count).astype(np.int64)
        drawn.append((labels, np.hstack([centers, sizes]).astype(np.float32)))
    return drawn
