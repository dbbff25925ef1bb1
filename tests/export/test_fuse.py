"""Fused models compute what they did before, with weights as irregular as trained ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import golden
from rtdetrv4.assembly import create_model
from rtdetrv4.models import fuse
from rtdetrv4.weights import from_released


@pytest.mark.parametrize("name", ["dfine_n", "rtdetrv2_r18"])
def test_fusing_changes_nothing(name: str) -> None:
    model = create_model(name.replace("_", "-"))
    state = {key: torch.from_numpy(array) for key, array in golden.weights(name).items()}
    model.load_state_dict(from_released(state), strict=False)
    fused = fuse(model)
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(p.numel() for p in fused.parameters()) < sum(p.numel() for p in model.parameters())
    # Weights are fused in float32. Comparing in float64 leaves the order of the queries alone.
    images = torch.from_numpy(golden.image(1, 128, 192))[None].double()
    with torch.no_grad():
        before, after = model.double().eval()(images), fused.double()(images)
    torch.testing.assert_close(after.boxes, before.boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-4)
