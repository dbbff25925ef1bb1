"""Names of the released checkpoints, there and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import golden
from rtdetrv4.assembly import create_model
from rtdetrv4.distillation import Injector
from rtdetrv4.errors import WeightsError
from rtdetrv4.weights import load_weights
from rtdetrv4.weights.convert import (
    CONSTANTS,
    from_released,
    looks_released,
    our_name,
    released_name,
    to_released,
)
from rtdetrv4.weights.files import read_checkpoint

pytestmark = pytest.mark.usefixtures("undrawn")

MODELS = ("rtdetrv4_s", "rtdetrv4_l", "dfine_n", "deim_s", "rtdetrv2_r18")


@pytest.mark.parametrize("name", MODELS)
def test_released_weights_come_back_tensor_for_tensor(name: str) -> None:
    released = {key: torch.from_numpy(value) for key, value in golden.weights(name).items()}
    shapes = {key: tuple(shape) for key, shape in golden.load(name).facts["keys"]}
    state = from_released(released)
    assert looks_released(released)
    assert not looks_released(state)

    model = create_model(name.replace("_", "-"))
    injector = None
    if (projector := state.get("injector.projector.weight")) is not None:
        injector = Injector(projector.shape[1], projector.shape[0])
        injector.load_state_dict(
            {key.removeprefix("injector."): state.pop(key) for key in list(state) if "injector" in key}
        )
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)

    back = to_released(model, injector=injector)
    assert {key: tuple(tensor.shape) for key, tensor in back.items()} == shapes
    assert all(torch.equal(back[key], tensor) for key, tensor in released.items())


def with_own_values(structure: dict[str, Tensor]) -> dict[str, Tensor]:
    """No two tensors alike, statistics and counters of batch norm included; constants as they are."""
    state = {}
    for key, tensor in structure.items():
        if key.endswith(CONSTANTS):
            state[key] = tensor
        elif tensor.is_floating_point():
            state[key] = torch.empty_like(tensor).uniform_(-1, 1)
        else:
            state[key] = torch.randint_like(tensor, 1, 1_000_000)
    return state


@pytest.mark.parametrize("name", golden.RECIPES)
def test_all_released_models_come_back_from_a_file_bit_for_bit(name: str, tmp_path: Path) -> None:
    facts = golden.RECIPES[name]["model"]
    teacher_dim = facts["encoder"].get("distill_teacher_dim")
    injector = Injector(facts["encoder"]["hidden_dim"], teacher_dim) if teacher_dim else None
    model = create_model(name.replace("_", "-"))
    released = with_own_values(to_released(model, injector=injector))

    # The names are the released code's: its optimizer had every parameter, and of these sizes; what is left are
    # statistics of batch norm, constants, and what is frozen.
    parameters = [key for group in golden.RECIPES[name]["param_groups"] for key in group["names"]]
    assert sum(released[key].numel() for key in parameters) == golden.RECIPES[name]["trainable_params"]
    others = set(released) - set(parameters)
    statistics = {key for key in others if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert {f"{key.rpartition('.')[0]}.weight" for key in statistics} <= released.keys()
    rest = {key for key in others - statistics if not key.endswith(CONSTANTS)}
    is_frozen = facts["backbone"]["freeze_norm"] or facts["backbone"]["freeze_at"] >= 0
    assert {key.partition(".")[0] for key in rest} <= ({"backbone"} if is_frozen else set())

    path = tmp_path / "released.pth"
    torch.save({"ema": {"module": {f"module.{key}": tensor for key, tensor in released.items()}}}, path)
    checkpoint = read_checkpoint(path)
    load_weights(model, checkpoint)
    projector = {
        key.removeprefix("injector."): tensor
        for key, tensor in checkpoint.tensors.items()
        if key.startswith("injector.")
    }
    assert bool(projector) == (injector is not None)
    if injector is not None:
        injector.load_state_dict(projector)
    back = to_released(model, injector=injector)
    assert back.keys() == released.keys()
    assert {key: tensor.dtype for key, tensor in back.items()} == {key: t.dtype for key, t in released.items()}
    assert [key for key, tensor in released.items() if not torch.equal(back[key], tensor)] == []
    path.unlink()  # a gigabyte altogether


def test_constants_are_those_of_the_released_code() -> None:
    constants = to_released(create_model("rtdetrv4-x"))
    assert constants["decoder.up"].tolist() == constants["decoder.decoder.up"].tolist() == [0.5]
    assert constants["decoder.reg_scale"].tolist() == constants["decoder.decoder.reg_scale"].tolist() == [8.0]
    points = constants["decoder.decoder.layers.5.cross_attn.num_points_scale"]
    torch.testing.assert_close(points, torch.tensor([1 / 3] * 3 + [1 / 6] * 6 + [1 / 3] * 3))
    anchors, valid = constants["decoder.anchors"][0], constants["decoder.valid_mask"][0]
    # Of stride 8 the outermost cells are invalid: their centers are nearer to the edge than 0.01.
    assert valid.dtype == torch.bool
    assert (~valid).sum() == 80 * 80 - 78 * 78
    assert anchors[0].isinf().all()
    torch.testing.assert_close(anchors[81].sigmoid(), torch.tensor([1.5 / 80, 1.5 / 80, 0.05, 0.05]))
    torch.testing.assert_close(anchors[-1].sigmoid(), torch.tensor([19.5 / 20, 19.5 / 20, 0.2, 0.2]))


def test_frozen_norms_count_no_batches_in_the_released_code() -> None:
    counters = [key for key in to_released(create_model("dfine-l")) if key.endswith("num_batches_tracked")]
    assert counters
    assert not [key for key in counters if key.startswith("backbone")]


@pytest.mark.parametrize("name", golden.RECIPES)
def test_every_released_parameter_has_a_name_of_ours(name: str) -> None:
    released = [key for group in golden.RECIPES[name]["param_groups"] for key in group["names"]]
    ours = [our_name(key) for key in released]
    assert None not in ours
    assert len(set(ours)) == len(released)
    gated = "rtdetrv2" not in name
    assert [released_name(key, gated) for key in ours if key is not None] == released


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(WeightsError, match=r'"decoder\.segmentation_head\.weight"'):
        from_released({"decoder.segmentation_head.weight": torch.zeros(1)})
