"""What the tests with released weights share."""

from __future__ import annotations

import pytest
from torch import nn


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of zeros, without the time it takes to draw their first weights, which are overwritten anyway.

    What memory held before may be NaN, which is refused in files of weights.
    """
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor.data.zero_())
