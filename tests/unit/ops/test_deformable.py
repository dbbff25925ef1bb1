from __future__ import annotations

import pytest
import torch

from rtdetrv4.ops.deformable import bilinear_by_gather, deformable_sample


def test_samples_at_cell_centers_are_the_cells() -> None:
    heads, channels = 2, 6
    levels = [torch.rand(3, channels, 4, 8), torch.rand(3, channels, 2, 4)]
    row, column = 2, 5
    center = torch.tensor([(column + 0.5) / 8, (row + 0.5) / 4])
    locations = center.expand(3, 1, heads, 2, 2).clone()
    weights = torch.tensor([0.3, 0.7]).expand(3, 1, heads, 2)
    sampled = deformable_sample(levels, locations, weights, [1, 1])
    fine = levels[0][:, :, row, column]
    # The same place on the coarse map lies between cells 0 and 1 of its rows, 2 and 3 of its columns.
    y, x = (row + 0.5) / 4 * 2 - 0.5, (column + 0.5) / 8 * 4 - 0.5
    top, left = int(y), int(x)
    dy, dx = y - top, x - left
    cells = levels[1][:, :, top : top + 2, left : left + 2]
    coarse = (cells * torch.tensor([[(1 - dy) * (1 - dx), (1 - dy) * dx], [dy * (1 - dx), dy * dx]])).sum((2, 3))
    torch.testing.assert_close(sampled[:, 0], 0.3 * fine + 0.7 * coarse)


def test_outside_the_map_is_zero() -> None:
    locations = torch.full((1, 1, 1, 1, 2), 3.0)
    sampled = deformable_sample([torch.ones(1, 4, 5, 5)], locations, torch.ones(1, 1, 1, 1), [1])
    assert sampled.abs().max() == 0


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (80, 80)])
def test_gathering_samples_as_grid_sample_does(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 4, *size)
    points = 6 * torch.rand(3, 6, 5, 2) - 3  # most of them outside
    points[0, 0, :4, 0] = torch.tensor([-1.0, 1.0, 0.0, 1 - 1 / size[1]])
    expected = torch.nn.functional.grid_sample(values, points, align_corners=False)
    torch.testing.assert_close(bilinear_by_gather(values, points), expected, rtol=0, atol=2e-5)
    assert (expected == 0).any()
