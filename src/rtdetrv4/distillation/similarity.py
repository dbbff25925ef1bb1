"""How far the student's F5 has become like the teacher's features, position by position: a picture of what DSI did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rtdetrv4.distillation.injector import unit_parts
from rtdetrv4.distillation.student import DistillationStudent
from rtdetrv4.distillation.teacher import Teacher
from rtdetrv4.outputs import write_whole

_SPREAD = (2.0, 98.0)
"""Percentiles of a component that become the darkest and the brightest value of its color."""


class Similarity(NamedTuple):
    """Features of n images, on the h×w grid of F5."""

    cosine: np.ndarray
    """(n, h, w) float32 in [-1, 1], between the projected F5 and the teacher's features: 1 − L_DSI, by position."""
    student: np.ndarray
    """(n, h, w, 3) uint8: the projected F5, in the colors of the teacher."""
    teacher: np.ndarray
    """(n, h, w, 3) uint8: the three main components of the teacher's features, as red, green and blue."""


@torch.no_grad()
def similarity(student: DistillationStudent, teacher: Teacher, images: Tensor) -> Similarity:
    """Compare the F5 of images with the teacher's features.

    Both are drawn in the same colors: a direction of the feature space has one color, whoever looks that way.

    Args:
        student: with an injector, on the device, in eval mode.
        teacher: on the same device.
        images: n×3×H×W in [0, 1].
    """
    projected = student.projected_f5(images).float()
    features = teacher(images, (projected.shape[-2], projected.shape[-1])).float()
    units = [unit_parts(each, teacher.parts) for each in (projected, features)]
    cosine = (units[0] * units[1]).sum(dim=1) / len(teacher.parts)
    of_student, of_teacher = (each.movedim(1, -1).flatten(0, 2) for each in units)
    middle = of_teacher.mean(dim=0)
    components = torch.linalg.svd(of_teacher - middle, full_matrices=False).Vh[:3].T
    shown = (of_teacher - middle) @ components
    low, high = np.percentile(shown.cpu().numpy(), _SPREAD, axis=0)

    def colors(rows: Tensor) -> np.ndarray:
        values = ((rows - middle) @ components).cpu().numpy()
        share = ((values - low) / np.maximum(high - low, 1e-6)).clip(0, 1)
        padded = np.zeros((len(share), 3))  # features of fewer than three channels
        padded[:, : share.shape[1]] = share
        return (255 * padded).round().astype(np.uint8).reshape(*cosine.shape, 3)

    return Similarity(cosine.cpu().numpy().astype(np.float32), colors(of_student), colors(of_teacher))


def save_similarity(path: Path, found: Similarity, pictures: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Write the arrays of `found`, the n images (h×w×3 uint8, all of one size) and their file names to an .npz file."""
    arrays = {**found._asdict(), "images": np.stack(pictures), "names": np.array(names, dtype=np.str_)}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    write_whole(path, write)
