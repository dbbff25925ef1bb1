"""Settings that change how a run computes, and not what: `run.checkpoint_activations`, `channels_last`, `compile`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from rtdetrv4 import ConfigError, Detector
from rtdetrv4.assembly import training
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.models import DetectionModel
from rtdetrv4.training import ModelEma
from rtdetrv4.training.checkpoint import load_checkpoint
from small_training import ROUNDING, assert_same


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), num_train=4, num_val=2, image_size=64)


def train(shapes: Path, out: Path, **settings: Any) -> dict[str, Tensor]:
    overrides = {"model.backbone": "test_efficientnet", **settings}
    result = Detector("test").train(shapes, out=out, epochs=1, teacher="none", overrides=overrides)
    return safetensors.torch.load_file(result.weights)


@pytest.fixture(scope="module")
def plain(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return train(shapes, tmp_path_factory.mktemp("plain"))


def test_checkpointed_activations_give_the_same_weights(
    shapes: Path, plain: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[DetectionModel] = []
    original = training.checkpoint_activations
    monkeypatch.setattr(training, "checkpoint_activations", lambda model: (changed.append(model), original(model)))
    monkeypatch.setattr(training, "recompute_activations", lambda model: pytest.fail("it would hold what is let go"))
    weights = train(shapes, tmp_path, **{"run.checkpoint_activations": True})
    assert len(changed) == 1
    assert weights.keys() == plain.keys()
    statistics = [name for name in plain if "running" in name or "num_batches" in name]
    assert_same(*({name: state[name] for name in statistics} for state in (weights, plain)), rounding=ROUNDING)
    for name, tensor in plain.items():  # Adam's first step is lr, up or down, however small the gradient
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=2e-3, msg=name)


def test_a_run_with_channels_last_saves_weights_for_any_format(
    shapes: Path, plain: dict[str, Tensor], tmp_path: Path
) -> None:
    weights = train(shapes, tmp_path, **{"run.channels_last": True, "epochs": 2})
    assert weights.keys() == plain.keys()
    state = load_checkpoint(tmp_path / "last.pt")
    assert any(_is_channels_last(tensor) for tensor in state["student"].values())
    resumed = Detector("test").train(
        shapes, out=tmp_path, teacher="none", resume=True, overrides={"run.channels_last": False}
    )
    assert_same(safetensors.torch.load_file(resumed.weights), weights)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and not tensor.is_contiguous()


@pytest.mark.parametrize(("setting", "is_on"), [("auto", True), (False, False), (True, True)])
def test_maps_are_channels_last_where_that_is_on(shapes: Path, tmp_path: Path, setting: Any, is_on: bool) -> None:
    trainer = make_trainer(shapes, tmp_path, {"run.channels_last": setting})
    images = torch.rand(2, 3, 64, 96)
    maps = trainer.student.detector.get_submodule("backbone")(images)
    assert {each.is_contiguous(memory_format=torch.channels_last) for each in maps} == {is_on}
    for parameter in trainer.student.parameters():
        averages = {name: torch.zeros(parameter.shape) for name in ("exp_avg", "exp_avg_sq")}
        trainer.optimizer.state[parameter] = {"step": torch.zeros(()), **averages}
    trainer.state.load_state_dict(trainer.state.state_dict())
    for parameter in trainer.student.parameters():  # fused kernels need them in one format
        for name in ("exp_avg", "exp_avg_sq"):
            assert trainer.optimizer.state[parameter][name].stride() == parameter.stride()


def make_trainer(shapes: Path, out: Path, overrides: dict[str, Any]) -> training.Trainer:
    from rtdetrv4.assembly import build_detector
    from rtdetrv4.config import load_recipe, override
    from rtdetrv4.data.formats import read_splits

    recipe = override(load_recipe("test"), {"out": out, "teacher": "none", **overrides})
    splits = read_splits(shapes)
    assert splits.train is not None
    return training.build_trainer(recipe, splits, build_detector(recipe, splits.train.classes.num_classes))


def test_compile_reaches_the_student_and_not_its_average(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(training, "compile_parts", compiled.append)
    trainer = make_trainer(shapes, tmp_path, {"run.compile": True})
    assert compiled == [trainer.student.detector]
    assert isinstance(trainer.ema, ModelEma)
    assert trainer.ema.module.detector not in compiled
    make_trainer(shapes, tmp_path, {})
    assert len(compiled) == 1


@pytest.mark.parametrize(("setting", "is_on"), [({}, True), ({"run.compile": True}, False)])
def test_activations_are_computed_again_unless_parts_are_compiled(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any], is_on: bool
) -> None:
    changed: list[nn.Module] = []
    monkeypatch.setattr(training, "recompute_activations", changed.append)
    trainer = make_trainer(shapes, tmp_path, setting)
    assert changed == [trainer.student.detector] * is_on


def test_compiling_and_checkpointing_exclude_each_other(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compile: expected false with checkpoint_activations, got true"):
        make_trainer(shapes, tmp_path, {"run.compile": True, "run.checkpoint_activations": True})
