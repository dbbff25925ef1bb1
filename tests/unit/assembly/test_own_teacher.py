"""A detector of one's own as a teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rtdetrv4.assembly import build_detector
from rtdetrv4.assembly.facts import find_teacher
from rtdetrv4.assembly.own_teacher import is_detector, load_own_teacher
from rtdetrv4.assembly.recipes import without_pretrained
from rtdetrv4.assembly.training import build_teacher, weights_metadata
from rtdetrv4.config import load_recipe, override
from rtdetrv4.errors import ConfigError, WeightsError
from rtdetrv4.types import ClassMap
from rtdetrv4.weights import save_weights

RECIPE = without_pretrained(load_recipe("test"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    detector = build_detector(RECIPE, 2)
    path = tmp_path_factory.mktemp("big") / "weights.safetensors"
    save_weights(detector.state_dict(), path, weights_metadata(RECIPE, ClassMap(("a", "b"), (1, 2)), None))
    return path


def test_it_teaches_its_f5(weights: Path) -> None:
    torch.manual_seed(0)
    detector = build_detector(RECIPE, 2).eval()
    teacher = load_own_teacher(str(weights))
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = detector.f5(images)
    assert teacher.dim == expected.shape[1]
    torch.testing.assert_close(teacher(images, (2, 3)), expected)
    assert str(weights) in teacher.name
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_file_of_weights_is_a_teacher_by_name(weights: Path) -> None:
    recipe = override(RECIPE, {"teacher": str(weights), "distillation.mode": "fixed"})
    assert is_detector(str(weights))
    assert not is_detector("vit_small_patch14_dinov2.lvd142m")
    assert find_teacher(recipe) == str(weights)
    teacher = build_teacher(recipe.distillation, torch.device("cpu"))
    assert teacher is not None
    assert teacher.stride == 32
    with pytest.raises(ConfigError, match="teacher_weights and teacher_block"):
        build_teacher(override(recipe, {"distillation.teacher_block": 1}).distillation, torch.device("cpu"))
    missing = override(recipe, {"teacher": "nowhere.safetensors"})
    with pytest.raises(WeightsError, match=r"There is no file nowhere\.safetensors"):
        build_teacher(missing.distillation, torch.device("cpu"))


def test_a_single_word_is_a_network_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("dinov2-s", "runs/big"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "weights.safetensors").touch()
    assert all(map(is_detector, ("w.safetensors", "runs/big", "./dinov2-s")))
    assert not any(map(is_detector, ("dinov2-s", "efficientnet_lite2", "hf-hub:timm/resnet18", "runs/none")))
