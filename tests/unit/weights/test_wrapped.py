"""Released weights that others wrapped, as LibreYOLO does: random ones of real architectures in the real layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rtdetrv4.assembly import create_model
from rtdetrv4.errors import WeightsError
from rtdetrv4.models import DetectionModel
from rtdetrv4.weights import load_weights, read_metadata, to_released
from rtdetrv4.weights.catalog import COCO, OBJECTS365, RELEASED_CLASSES, classes_of
from rtdetrv4.weights.files import read_checkpoint


def _random(name: str, num_classes: int = 80) -> DetectionModel:
    model = create_model(name, num_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -1, 1)
    return model


def _wrap(path: Path, state: dict[str, Tensor], **beside: Any) -> Path:
    torch.save({"model": state, "nc": 80, "task": "detect", **beside}, path)
    return path


def _numbered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names in LibreYOLO's files of RT-DETRv2."""

    def rename(name: str) -> str:
        parts = name.split(".")
        if name.startswith("encoder.input_proj."):
            parts[3] = {"conv": "0", "norm": "1"}[parts[3]]
        return ".".join(parts)

    return {rename(name): tensor for name, tensor in state.items()}


def _assert_loads(path: Path, model: DetectionModel, name: str) -> None:
    loaded = create_model(name, model.query_selection.score_head.out_features)
    assert load_weights(loaded, path).trained
    state = loaded.state_dict()
    compared = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert all(torch.equal(state[key], tensor) for key, tensor in compared.items())


@pytest.mark.parametrize("names", [dict(enumerate(COCO.names)), list(COCO.names)])
def test_rtdetrv4(tmp_path: Path, names: Any) -> None:
    model = _random("rtdetrv4-s")
    path = _wrap(tmp_path / "w.pt", to_released(model), model_family="rtdetrv4", size="s", names=names)
    metadata = read_metadata(path)
    assert (metadata.model, metadata.classes, metadata.layout) == ("rtdetrv4-s", COCO, "released")
    _assert_loads(path, model, "rtdetrv4-s")


def test_rtdetrv2_with_numbered_projections(tmp_path: Path) -> None:
    model = _random("rtdetrv2-r18")
    released = to_released(model)
    numbered = _numbered(released)
    assert "encoder.input_proj.2.1.running_var" in numbered
    assert len(numbered.keys() - released.keys()) == 3 * (1 + 5)
    path = _wrap(tmp_path / "w.pt", numbered, model_family="rtdetrv2", size="r18", names=dict(enumerate(COCO.names)))
    assert read_metadata(path).model == "rtdetrv2-r18"
    _assert_loads(path, model, "rtdetrv2-r18")


def test_own_classes(tmp_path: Path) -> None:
    model = _random("deim-n", num_classes=2)
    path = _wrap(tmp_path / "w.pt", to_released(model), model_family="deim", size="n", names={1: "owl", 0: "lynx"})
    metadata = read_metadata(path)
    assert metadata.model == "deim-n"
    assert metadata.classes is not None
    assert metadata.classes == (("lynx", "owl"), (0, 1))
    _assert_loads(path, model, "deim-n")


def test_a_family_that_is_none_of_ours_does_not_count(tmp_path: Path) -> None:
    path = _wrap(tmp_path / "w.pt", to_released(_random("deim-n")), model_family="other", size="n")
    metadata = read_metadata(path)
    assert metadata.models == ("rtdetrv4-n", "deim-n", "dfine-n")
    assert metadata.classes == COCO


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({0: "lynx", 2: "owl"}, r"w\.pt is damaged: its class names are not numbered from 0"),
        (7, r"w\.pt is damaged: its class names are not numbered from 0"),
        (["lynx"], r"w\.pt is damaged: it names 1 classes and predicts 2"),
    ],
)
def test_names_that_do_not_fit(tmp_path: Path, names: Any, message: str) -> None:
    path = _wrap(tmp_path / "w.pt", to_released(_random("deim-n", num_classes=2)), names=names)
    with pytest.raises(WeightsError, match=message):
        read_metadata(path)


def test_a_checkpoint_of_the_authors(tmp_path: Path) -> None:
    """The averaged weights of a training state, with an optimizer beside them and a projector among them."""
    trained, averaged = to_released(_random("rtdetrv4-s")), _random("rtdetrv4-s")
    projector = {"encoder.feature_projector.0.weight": torch.ones(768, 256)}
    content = {
        "model": trained,
        "ema": {"module": to_released(averaged) | projector, "updates": 7, "warmups": 1},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "last_epoch": 131,
        "date": "2025-11-01T00:00:00",
    }
    torch.save(content, tmp_path / "RTv4-S-hgnet.pth")
    checkpoint = read_checkpoint(tmp_path / "RTv4-S-hgnet.pth")
    assert checkpoint.metadata.model == "rtdetrv4-s"  # only RT-DETRv4 has the projector
    assert checkpoint.metadata.classes == COCO
    _assert_loads(tmp_path / "RTv4-S-hgnet.pth", averaged, "rtdetrv4-s")


def test_which_classes_names_stand_for() -> None:
    assert classes_of([*COCO.names[:-1], "tooth brush"]) == COCO
    assert classes_of(OBJECTS365.names) == OBJECTS365
    assert classes_of(["None", *OBJECTS365.names]) == RELEASED_CLASSES[366]
    numbered = [f"thing {index}" for index in range(80)]
    assert classes_of(numbered) == (tuple(numbered), tuple(range(80)))
