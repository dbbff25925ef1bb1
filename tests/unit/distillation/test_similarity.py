from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rtdetrv4.distillation import DistillationStudent, Injector, Teacher
from rtdetrv4.distillation.similarity import save_similarity, similarity

DIM = 4


class Grid(nn.Module):
    """Every pixel of a grid with stride 32, in four channels of which no two positions are alike."""

    def forward(self, images: Tensor) -> Tensor:
        cells = images[..., ::32, ::32]
        return torch.cat((cells, 1 - cells[:, :1]), dim=1)


class Detector(nn.Module):
    """F5 is the grid, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.grid, self.factor = Grid(), factor

    def f5(self, images: Tensor) -> Tensor:
        return self.factor * self.grid(images)


def student(factor: float) -> DistillationStudent:
    injector = Injector(DIM, DIM)
    nn.init.eye_(injector.projector.weight)
    nn.init.zeros_(injector.projector.bias)
    return DistillationStudent(Detector(factor), injector)


@pytest.mark.parametrize("factor", [3.0, -1.0])
def test_cosine_and_colors_tell_the_direction(factor: float) -> None:
    torch.manual_seed(0)
    cells = torch.rand(2, 3, 2, 5)
    images = cells.repeat_interleave(32, dim=2).repeat_interleave(32, dim=3)
    teacher = Teacher(Grid(), name="grid", dim=DIM, stride=32, mean=(0, 0, 0), std=(1, 1, 1))
    found = similarity(student(factor), teacher, images)
    assert found.cosine.shape == (2, 2, 5)
    assert found.cosine.dtype == np.float32
    np.testing.assert_allclose(found.cosine, np.sign(factor), atol=1e-5)
    assert found.teacher.shape == (2, 2, 5, 3)
    assert len(np.unique(found.teacher.reshape(-1, 3), axis=0)) == 20
    assert (found.student == found.teacher).all() == (factor > 0)


def test_what_is_saved_can_be_read_without_pickle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = Teacher(Grid(), name="grid", dim=DIM, stride=32, mean=(0, 0, 0), std=(1, 1, 1))
    found = similarity(student(1.0), teacher, torch.rand(1, 3, 64, 64))
    save_similarity(tmp_path / "val/similarity.npz", found, [np.zeros((8, 8, 3), np.uint8)], ["a.jpg"])
    with np.load(tmp_path / "val/similarity.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["cosine"], found.cosine)
        assert file["images"].shape == (1, 8, 8, 3)
        assert file["names"].tolist() == ["a.jpg"]
