"""transformers' D-FINE and RT-DETRv2: the same names, and the same outputs with the same weights, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection

import golden
from rtdetrv4.assembly import create_model
from rtdetrv4.errors import WeightsError
from rtdetrv4.models import DetectionModel
from rtdetrv4.weights import from_released, load_weights, read_metadata
from rtdetrv4.weights.catalog import TRANSFORMERS_MODELS
from rtdetrv4.weights.convert import counters_of_frozen_norms
from rtdetrv4.weights.transformers import (
    CONSTANTS,
    file_name,
    from_transformers,
    save_transformers,
    to_transformers,
    transformers_config,
)

pytestmark = pytest.mark.usefixtures("undrawn")

# Weights that keep a random network in the working range of a trained one, batch-norm statistics included, and where no
# head is zero. RT-DETRv4-S has the tensors of D-FINE-S.
WEIGHTS = {"dfine-n": "dfine_n", "dfine-s": "rtdetrv4_s", "rtdetrv2-r18": "rtdetrv2_r18"}
NAMES = [f"thing {index}" for index in range(80)]
TOLERANCE = 1e-4


def network(name: str) -> DetectionModel:
    state = from_released({key: torch.from_numpy(value) for key, value in golden.weights(WEIGHTS[name]).items()})
    model = create_model(name)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert all(key.endswith("num_batches_tracked") for key in missing)
    assert all(key.startswith("injector.") for key in unexpected)
    return model.eval()


def pretrained(folder: Path) -> Any:
    """The model of transformers in a folder, complete."""
    model, report = AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@torch.no_grad()
def assert_same_outputs(ours: DetectionModel, theirs: nn.Module, size: tuple[int, int]) -> None:
    """Where scores nearly tie, rounding may change the order of queries, so they are matched one to one first."""
    pixels = torch.from_numpy(golden.image(1, *size))[None]
    mine, other = ours(pixels), theirs(pixels)
    rows = match(mine.logits[0], mine.boxes[0], other.logits[0], other.pred_boxes[0])
    torch.testing.assert_close(mine.logits[0], other.logits[0][rows], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(mine.boxes[0], other.pred_boxes[0][rows], rtol=0, atol=TOLERANCE)
    assert mine.logits.std() > 0.1
    assert mine.boxes.std() > 0.01


def match(logits: Tensor, boxes: Tensor, other_logits: Tensor, other_boxes: Tensor) -> Tensor:
    """For each query, the nearest of the others, one to one."""
    distance = torch.cdist(boxes, other_boxes, p=1) + torch.cdist(logits, other_logits, p=1) / logits.shape[-1]
    return torch.from_numpy(linear_sum_assignment(distance.numpy())[1])


@pytest.mark.parametrize("name", WEIGHTS)
def test_outputs_are_the_same_both_ways(name: str, tmp_path: Path) -> None:
    size = (320, 256)
    ours = network(name)
    save_transformers(ours, tmp_path / "ours", NAMES, size)
    theirs = pretrained(tmp_path / "ours")
    assert list(theirs.config.id2label.values()) == NAMES
    assert_same_outputs(ours, theirs, size)

    with torch.no_grad():
        for key, tensor in theirs.state_dict().items():
            if tensor.is_floating_point() and not key.endswith(CONSTANTS):
                tensor.mul_(1 + 0.05 * torch.randn_like(tensor).clamp(-3, 3))
    theirs.save_pretrained(tmp_path / "theirs")
    fresh = create_model(name)
    report = load_weights(fresh, tmp_path / "theirs")
    assert not report.newly_initialized
    assert not report.ignored
    assert read_metadata(tmp_path / "theirs").models == (name,)
    assert_same_outputs(fresh.eval(), theirs, size)
    before, after = ours.state_dict(), fresh.state_dict()
    changed = [key for key, tensor in after.items() if not torch.equal(tensor, before[key])]
    assert len(changed) > 0.8 * len(report.loaded)

    in_memory = from_transformers(theirs.state_dict())
    assert all(key in in_memory or key.endswith("num_batches_tracked") for key in after)
    assert all(torch.equal(tensor, after[key]) for key, tensor in in_memory.items())


@pytest.mark.parametrize("name", ["dfine-n", pytest.param("rtdetrv2-r18", marks=pytest.mark.slow)])
@torch.no_grad()
def test_transformers_computes_what_the_released_code_did(name: str, tmp_path: Path) -> None:
    """The released code's recorded outputs, from its weights converted to ours and on to transformers."""
    facts, arrays = golden.load(WEIGHTS[name])
    height, width = facts["eval"]["size"]
    save_transformers(network(name), tmp_path, NAMES, (height, width))
    pixels = torch.from_numpy(golden.image(facts["eval"]["image_seeds"][0], height, width)).double()[None]
    output = pretrained(tmp_path).double()(pixels)
    logits, boxes = (torch.from_numpy(arrays[f"eval/pred_{what}"][0]).double() for what in ("logits", "boxes"))
    rows = match(output.logits[0], output.pred_boxes[0], logits, boxes)
    torch.testing.assert_close(output.logits[0], logits[rows], rtol=0, atol=1e-2)
    torch.testing.assert_close(output.pred_boxes[0], boxes[rows], rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", sorted(TRANSFORMERS_MODELS))
def test_names_and_shapes_of_all_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, 7)
        converted = to_transformers(model)
        config = AutoConfig.for_model(**transformers_config(model, NAMES[:7]))
        theirs = AutoModelForObjectDetection.from_config(config)
    named = str if name.startswith("deimv2") else file_name  # files of DEIMv2 have the names in memory
    expected = {named(key): tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    assert {key: tuple(tensor.shape) for key, tensor in converted.items()} == expected
    own, back = model.state_dict(), from_transformers(converted)
    assert own.keys() - back.keys() == counters_of_frozen_norms(model)
    assert all(tensor.shape == own[key].shape for key, tensor in back.items())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("rtdetrv4-s", "has SiLU in the heads"),
        ("deim-rtdetrv2-r18", "has SiLU in the heads"),
        ("rtdetrv2-r50m", "predicts with decoder layer 3; transformers' always use the last"),
    ],
)
def test_what_transformers_cannot_compute_is_refused(name: str, reason: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    with pytest.raises(WeightsError, match=reason):
        to_transformers(model)


def test_the_image_processor_does_what_ours_does(tmp_path: Path) -> None:
    """Resized to the size of training, and to [0, 1], without mean and deviation."""
    save_transformers(create_model("dfine-n", 2), tmp_path, ["a", "b"], (64, 96))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    picture = torch.full((3, 50, 70), 51, dtype=torch.uint8)
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, torch.full((1, 3, 64, 96), 0.2))
