"""The part of a detector that computes F5."""

from __future__ import annotations

import pytest
import torch

from rtdetrv4 import create_model
from rtdetrv4.models import SemanticPath


@pytest.mark.parametrize("name", ["test", "deimv2-atto"])
def test_it_computes_the_f5_of_the_whole_detector(name: str) -> None:
    detector = create_model(name, 2).train()
    images = torch.rand(2, 3, 64, 96)
    path = SemanticPath(detector.backbone, detector.hybrid_encoder).train()
    output = detector(images, None)
    assert output.training is not None
    assert output.training.f5.shape[-2:] == (2, 3)
    torch.testing.assert_close(path.f5(images), output.training.f5)
    torch.testing.assert_close(detector.f5(images), output.training.f5)
    assert set(path.state_dict()) < set(detector.state_dict())
