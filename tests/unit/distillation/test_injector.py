from __future__ import annotations

import pytest
import torch

from rtdetrv4.distillation import Injector, alignment_loss


def test_projects_every_position_alike() -> None:
    injector = Injector(4, 6)
    f5 = torch.rand(2, 4, 3, 5)
    projected = injector(f5)
    assert projected.shape == (2, 6, 3, 5)
    torch.testing.assert_close(projected[1, :, 2, 4], injector.projector(f5[1, :, 2, 4]))


def test_alignment_is_one_minus_cosine() -> None:
    teacher = torch.randn(2, 6, 3, 5)
    assert alignment_loss(3 * teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    assert alignment_loss(-teacher, teacher).item() == pytest.approx(2, abs=1e-6)
    half = torch.cat((teacher[:1], -teacher[1:]))
    assert alignment_loss(half, teacher).item() == pytest.approx(1, abs=1e-6)


def test_alignment_is_float32_under_lower_precision() -> None:
    loss = alignment_loss(torch.randn(1, 6, 2, 2, dtype=torch.bfloat16), torch.randn(1, 6, 2, 2, dtype=torch.float16))
    assert loss.dtype == torch.float32
