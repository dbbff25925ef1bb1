"""`convert_weights`: what is written, what it says about itself, and what is refused."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtdetrv4 import Detector
from rtdetrv4.assembly import create_model
from rtdetrv4.assembly.conversion import convert_weights
from rtdetrv4.distillation import Injector
from rtdetrv4.errors import ConfigError, WeightsError
from rtdetrv4.weights import COCO, load_weights, read_metadata, save_weights, to_released
from rtdetrv4.weights.catalog import OBJECTS365, RELEASED
from rtdetrv4.weights.convert import CONSTANTS
from rtdetrv4.weights.files import read_checkpoint

ANIMALS = ("cat", "dog", "horse")


def released(name: str, num_classes: int = 80, injector: Injector | None = None) -> dict[str, Tensor]:
    """A released state dict in which no two tensors are alike."""
    state = to_released(create_model(name, num_classes), injector=injector)
    return {
        key: tensor if key.endswith(CONSTANTS) or not tensor.is_floating_point() else tensor + torch.rand_like(tensor)
        for key, tensor in state.items()
    }


def checkpoint(state: dict[str, Tensor], path: Path) -> Path:
    """As the released code writes them: EMA beside the raw weights, under DDP's prefix, with an optimizer."""
    raw = {f"module.{key}": torch.zeros_like(tensor) for key, tensor in state.items()}
    averaged = {"module": state, "updates": 9}
    torch.save({"last_epoch": 71, "model": raw, "ema": averaged, "optimizer": {"state": {}}}, path)
    return path


def test_released_to_ours_and_back(tmp_path: Path) -> None:
    injector = Injector(128, 24)
    state = released("rtdetrv4-n", injector=injector)
    source = checkpoint(state, tmp_path / "RTv4-N.pth")
    ours = tmp_path / "new" / "n.safetensors"
    found = convert_weights(source, ours)
    assert (found.model, found.num_classes, found.layout) == ("rtdetrv4-n", 80, "released")

    facts = read_metadata(ours)
    assert (facts.layout, facts.models, facts.classes) == ("ours", ("rtdetrv4-n",), COCO)
    assert facts.image_size == (640, 640)
    assert facts.trained
    origin = facts.facts["converted"]
    assert datetime.fromisoformat(origin.pop("date")).tzinfo is not None
    assert origin == {
        "file": "RTv4-N.pth",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "format": "released",
        "family": "RT-DETRv4",
    }
    assert torch.equal(
        read_checkpoint(ours).tensors["injector.projector.weight"], state["encoder.feature_projector.0.weight"]
    )
    detector = Detector(ours, device="cpu")
    assert detector.names == COCO.names

    convert_weights(ours, tmp_path / "back.pth", to="released")
    content = torch.load(tmp_path / "back.pth", weights_only=True)
    for back in (content["model"], content["ema"]["module"]):
        assert back.keys() == state.keys()
        assert all(back[key].dtype == tensor.dtype and torch.equal(back[key], tensor) for key, tensor in state.items())


def test_a_model_is_asked_for_only_where_several_fit(tmp_path: Path) -> None:
    source = checkpoint(released("deim-n", 3), tmp_path / "n.pth")
    out = tmp_path / "n.safetensors"
    with pytest.raises(WeightsError, match=r"fits rtdetrv4-n, deim-n or dfine-n.*such as --model rtdetrv4-n"):
        convert_weights(source, out)
    with pytest.raises(WeightsError, match="holds rtdetrv4-n, deim-n or dfine-n, not dfine-s"):
        convert_weights(source, out, model="dfine-s")
    with pytest.raises(ConfigError, match=r'no model "dfine_n".*Did you mean "dfine-n"'):
        convert_weights(source, out, model="dfine_n")
    assert not out.exists()

    convert_weights(source, out, model="dfine-n")
    facts = read_metadata(out)
    assert (facts.models, facts.classes, facts.num_classes) == (("dfine-n",), None, 3)
    assert facts.facts["converted"]["family"] == "D-FINE"
    convert_weights(out, tmp_path / "again.pth", to="released")  # a file of ours knows its model


def test_places_that_do_not_fit_the_format(tmp_path: Path) -> None:
    source = checkpoint(released("test", 3), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"w\.pt must end in \.safetensors, such as .*w\.safetensors"):
        convert_weights(source, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"must end in \.pth"):
        convert_weights(source, tmp_path / "w.safetensors", to="released")
    with pytest.raises(ConfigError, match=r"is a file; transformers weights need a folder, such as .*w\."):
        convert_weights(source, tmp_path / "w.safetensors", to="transformers")
    with pytest.raises(ConfigError, match="the source itself"):
        convert_weights(source, tmp_path / ".." / tmp_path.name / "w.pth", to="released")
    with pytest.raises(ConfigError, match='no format "onnx"; expected ours, released or transformers'):
        convert_weights(source, tmp_path / "w.safetensors", to="onnx")  # type: ignore[arg-type]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    source = checkpoint(released("test", 3), tmp_path / "w.pth")
    for name, out, to in (
        ("mine.safetensors", "mine.safetensors", "ours"),
        ("mine.pth", "mine.pth", "released"),
        ("mine/config.json", "mine", "transformers"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
        with pytest.raises(ConfigError, match=rf"{name} is there already, and nothing is written over; give --out"):
            convert_weights(source, tmp_path / out, to=to)  # type: ignore[arg-type]
        assert (tmp_path / name).read_text() == "mine"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["config.json"]


def test_incomplete_weights_are_not_converted(tmp_path: Path) -> None:
    state = released("test", 3)
    state["decoder.dec_bbox_head.1.layers.2.bias"] = torch.zeros(7)
    with pytest.raises(WeightsError, match="fits no model of this package"):
        convert_weights(checkpoint(state, tmp_path / "w.pth"), tmp_path / "w.safetensors")


def test_weights_without_denoising_stay_without(tmp_path: Path) -> None:
    model = create_model("test", 3, num_denoising=0)
    facts: dict[str, Any] = {"model": "test", "names": list(ANIMALS), "teacher": {"name": "t", "license": "l"}}
    save_weights(model.state_dict(), tmp_path / "w.safetensors", facts)
    convert_weights(tmp_path / "w.safetensors", tmp_path / "v.safetensors")
    assert read_checkpoint(tmp_path / "v.safetensors").tensors.keys() == model.state_dict().keys()
    assert read_metadata(tmp_path / "v.safetensors").facts["teacher"] == facts["teacher"]


def test_transformers_and_back(tmp_path: Path) -> None:
    model = create_model("dfine-n", 3)
    facts = {"model": "dfine-n", "names": list(ANIMALS), "num_queries": 120}
    save_weights(model.state_dict(), tmp_path / "n.safetensors", facts)
    folder = tmp_path / "hf"
    convert_weights(tmp_path / "n.safetensors", folder, to="transformers")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    found = read_metadata(folder)
    assert (found.layout, found.models, found.image_size) == ("transformers", ("dfine-n",), None)
    assert found.classes is not None
    assert found.classes.names == ANIMALS
    assert found.facts["num_queries"] == 120

    convert_weights(folder, tmp_path / "back.safetensors")
    fresh = create_model("dfine-n", 3)
    assert load_weights(fresh, tmp_path / "back.safetensors", names=ANIMALS).trained
    back = fresh.state_dict()
    assert all(torch.equal(tensor, back[key]) for key, tensor in model.state_dict().items())
    assert read_metadata(tmp_path / "back.safetensors").facts["converted"]["format"] == "transformers"
    assert Detector(weights=folder, device="cpu").recipe.model.name == "dfine-n"

    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"model_type": "rt_detr"}, 'type "rt_detr"; expected d_fine, rt_detr_v2 or deimv2'),
        ({"decoder_activation_function": "gelu"}, "decoder_activation_function gelu, .* expected relu"),
        ({"decoder_n_points": 4}, r"decoder_n_points 4, .* expected \[6, 6\]"),
        ({"reg_scale": 8}, r"reg_scale 8, .* expected 4\.0"),
        ({"eval_size": [320, 320]}, r"eval_size \[320, 320\], .* expected None"),
        ({"encoder_attention_heads": 4}, r"encoder_attention_heads 4, .* expected 8"),
        ({"encode_proj_layers": [0]}, r"encode_proj_layers \[0\], .* expected \[1\]"),
        ({"layer_norm_eps": 0.1}, r"layer_norm_eps 0\.1, .* expected 1e-05"),
        ({"batch_norm_eps": 0.1}, r"batch_norm_eps 0\.1, .* expected 1e-05"),
        ({"id2label": ["cat"]}, "not a transformers config"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(WeightsError, match=message):
            read_metadata(folder)
    unnamed = {str(index): f"LABEL_{index}" for index in range(3)}
    (folder / "config.json").write_text(json.dumps(config | {"id2label": unnamed}))
    assert read_metadata(folder).classes is None
    deim = checkpoint(released("deim-n"), tmp_path / "d.pth")
    with pytest.raises(WeightsError, match="SiLU in the heads"):
        convert_weights(deim, tmp_path / "x", model="deim-n", to="transformers")


def test_transformers_names_of_coco_are_cocos(tmp_path: Path) -> None:
    old = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "tv": "tvmonitor"}
    save_weights(
        create_model("dfine-n").state_dict(),
        tmp_path / "n.safetensors",
        {"model": "dfine-n", "names": [old.get(name, name) for name in COCO.names]},
    )
    convert_weights(tmp_path / "n.safetensors", tmp_path / "hf", to="transformers")
    assert json.loads((tmp_path / "hf/config.json").read_text())["id2label"]["57"] == "sofa"
    assert read_metadata(tmp_path / "hf").classes == COCO


def test_heads_of_objects365_are_named(tmp_path: Path) -> None:
    for rows, shift in ((366, 1), (365, 0)):
        torch.save(released("test", rows), tmp_path / "w.pth")
        out = tmp_path / f"{rows}.safetensors"
        convert_weights(tmp_path / "w.pth", out)
        facts = read_metadata(out)
        assert facts.classes is not None
        assert facts.classes.names[shift:] == OBJECTS365.names
        assert facts.classes.category_ids[shift:] == OBJECTS365.category_ids


# Where the released code looks for COCO's classes in Objects365, when it starts a COCO model from such weights: counted
# from 0, so that one more is the row of its heads of 366.
IN_OBJECTS365 = (
    *(0, 46, 5, 58, 114, 55, 116, 65, 21, 40, 176, 127, 249, 24, 56, 139, 92, 78, 99, 96, 144, 295, 178, 180, 38),
    *(39, 13, 43, 120, 219, 148, 173, 165, 154, 137, 113, 145, 146, 204, 8, 35, 10, 88, 84, 93, 26, 112, 82, 265),
    *(104, 141, 152, 234, 143, 150, 97, 2, 50, 25, 75, 98, 153, 37, 73, 115, 132, 106, 61, 163, 134, 277, 81, 133),
    *(18, 94, 30, 169, 70, 328, 226),
)


def test_objects365_is_in_the_order_of_the_released_code() -> None:
    assert len({name.casefold() for name in OBJECTS365.names}) == OBJECTS365.num_classes == 365
    assert all(name == name.strip() for name in OBJECTS365.names)
    place = {name.casefold(): index for index, name in enumerate(OBJECTS365.names)}
    shared = [index for index, name in enumerate(COCO.names) if name in place]
    assert len(shared) > 60
    assert [place[COCO.names[index]] for index in shared] == [IN_OBJECTS365[index] for index in shared]
    ends = {1: "Person", 100: "Sheep", 200: "Heavy Truck", 300: "Tape Measur/ Ruler", 365: "Table Tennis"}
    assert {number: OBJECTS365.names[number - 1] for number in ends} == ends


def test_every_released_checkpoint_is_of_a_model_and_in_the_guide() -> None:
    guide = (Path(__file__).parents[3] / "docs/guides/released-weights.md").read_text(encoding="utf-8")
    for name, (model, url) in RELEASED.items():
        assert name.startswith(model)
        assert url in guide
