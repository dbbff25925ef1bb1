"""Where the weights of timm's networks are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rtdetrv4.ops import hub
from rtdetrv4.ops.networks import has_timm_weights


def test_weights_are_found_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cached = {("timm/hgnetv2_b0.ssld_stage2_ft_in1k", "model.safetensors"), ("timm/resnet18.a1_in1k", "config.json")}

    def look(repository: str, file: str, revision: str | None) -> str | None:
        return "a path" if (repository, file) in cached else None

    monkeypatch.setattr(hub.huggingface_hub, "try_to_load_from_cache", look)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert has_timm_weights("hgnetv2_b0")
    assert not has_timm_weights("resnet18.a1_in1k")
    assert not has_timm_weights("no_such_network")
    assert not has_timm_weights("hgnetv2_b0.no_such_weights")
    # These are not on the hub.
    assert not has_timm_weights("gcvit_xxtiny")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "gcvit_xxtiny_224_nvidia-d1d86009.pth").touch()
    assert has_timm_weights("gcvit_xxtiny")
