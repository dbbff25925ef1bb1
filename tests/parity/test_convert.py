"""Names of the released checkpoints, there and back."""

from __future__ import annotations

import pytest
import torch

import golden
from rtdetrv4.build import create_model
from rtdetrv4.distillation import Injector
from rtdetrv4.errors import WeightsError
from rtdetrv4.weights.convert import from_released, looks_released, our_name, released_name, to_released

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


def test_constants_are_those_of_the_released_code() -> None:
    constants = to_released(create_model("rtdetrv4-x"))
    assert constants["decoder.up"].tolist() == constants["decoder.decoder.up"].tolist() == [0.5]
    assert constants["decoder.reg_scale"].tolist() == constants["decoder.decoder.reg_scale"].tolist() == [8.0]
    points = constants["decoder.decoder.layers.5.cross_attn.num_points_scale"]
    torch.testing.assert_close(points, torch.tensor([1 / 3] * 3 + [1 / 6] * 6 + [1 / 3] * 3))
    anchors, valid = constants["decoder.anchors"][0], constants["decoder.valid_mask"][0]
    # Of stride 8 the outermost cells are invalid: their centres are nearer to the edge than 0.01.
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
