"""Exports are slow, so tests share them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import golden
import rtdetrv4.export.onnx
from rtdetrv4.assembly import create_model
from rtdetrv4.export import FORMATS, GraphOptions, export_model
from rtdetrv4.export.deployment import DeploymentModule
from rtdetrv4.models import DetectionModel
from rtdetrv4.runtime.export_report import ExportReport
from rtdetrv4.types import ClassMap

ANIMALS = ClassMap(("cat", "dog", "éléphant"), (3, 7, 30))


class Exported(NamedTuple):
    """A file and the model it was made from."""

    path: Path
    model: DetectionModel


@pytest.fixture(autouse=True, scope="session")
def _hardly_timed() -> Iterator[None]:
    """No test looks at latency."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rtdetrv4.export.proof.SECONDS", 0.01)
        yield


@pytest.fixture(autouse=True, scope="session")
def _traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What one of pytest's processes has traced, the others need not."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traced"
    folder.mkdir(exist_ok=True)
    trace = rtdetrv4.export.onnx._trace

    def traced(module: DeploymentModule, *options: Any) -> onnx.ModelProto:
        simple = [
            {key: value for key, value in vars(each).items() if isinstance(value, int | float | str | tuple | None)}
            for each in module.modules()
        ]
        digest = hashlib.sha256(repr((module, module.options, simple, options)).encode())
        for name, tensor in module.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        path = folder / f"{digest.hexdigest()}.onnx"
        if not path.is_file():
            graph = trace(module, *options)
            whole = path.with_suffix(f".{os.getpid()}")
            onnx.save(graph, whole)
            whole.rename(path)
        return onnx.load(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rtdetrv4.export.onnx._trace", traced)
        yield


def model_like_a_trained_one() -> DetectionModel:
    """A model whose features and heads do something, so that scores are spread as in a trained one."""
    torch.manual_seed(0)
    model = create_model("test", ANIMALS.num_classes)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for part in (model.query_selection, model.decoder):
            for parameter in part.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        for head in (model.query_selection.score_head, *model.decoder.score_heads):
            nn.init.normal_(head.get_parameter("weight"), std=0.5)
            nn.init.normal_(head.get_parameter("bias"), mean=-2)
        for norm in norms:
            norm.momentum = 1.0  # statistics of the next batch alone
        model.train()(torch.from_numpy(np.stack([golden.image(seed, 128, 128) for seed in range(4)])))
    return model


def export(model: DetectionModel, path: Path, **given: Any) -> ExportReport:
    """Export to the format that the ending names, by default of 64 × 64 pixels."""
    (name,) = [each.name for each in FORMATS.values() if path.name.endswith(each.ending)][-1:]
    options = {"model_name": "test", "classes": ANIMALS, "image_size": (64, 64)} | given
    (report,) = export_model(model, {name: path}, **options)
    return report


@pytest.fixture(scope="session")
def square(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Post-processed, any batch size."""
    model = model_like_a_trained_one()
    path = tmp_path_factory.mktemp("square") / "animals.onnx"
    export(model, path, facts={"teacher": "dinov3"})
    return Exported(path, model)


@pytest.fixture(scope="session")
def rectangle(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Raw outputs of an input that is no square, with fewer queries than cells."""
    model = model_like_a_trained_one()
    path = tmp_path_factory.mktemp("rectangle") / "animals.onnx"
    export(model, path, image_size=(320, 512), options=GraphOptions(num_top=None))
    return Exported(path, model)
