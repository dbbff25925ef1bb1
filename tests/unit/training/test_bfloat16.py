"""A training step in bfloat16: what it decides with stays float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rtdetrv4 import Detector
from rtdetrv4.assembly import create_model
from rtdetrv4.assembly.models import find_variant
from rtdetrv4.assembly.training import build_criterion, loss_weights
from rtdetrv4.config import load_recipe
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.distillation import alignment_loss
from rtdetrv4.losses import weighted_sum
from rtdetrv4.models import DetectionModel
from rtdetrv4.ops.distribution import expected_offset, weighting
from rtdetrv4.training import make_accelerator
from rtdetrv4.types import DetectorOutput, Targets

NUM_CLASSES = 5
TARGETS = Targets(
    labels=torch.tensor([0, 2, 1]),
    boxes=torch.tensor([[0.4, 0.4, 0.3, 0.2], [0.6, 0.5, 0.2, 0.5], [0.5, 0.5, 0.2, 0.2]]),
    counts=(2, 1),
)


def make_model(name: str) -> DetectionModel:
    """With heads that no longer predict the same of every query, and with all cells selected, in whatever order."""
    torch.manual_seed(0)
    model = create_model(name, NUM_CLASSES, num_queries=10_000)
    for head in (model.decoder.pre_box_head, *model.decoder.box_heads):
        torch.nn.init.normal_(head.layers[-1].weight, std=0.05)
    return model.train()


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize(("name", "size"), [("test", 64), ("rtdetrv4-n", 96), ("rtdetrv2-r18", 96)])
def test_boxes_and_distributions_stay_float32(name: str, size: int) -> None:
    torch.manual_seed(0)
    model = create_model(name, NUM_CLASSES).train()
    with bfloat16():
        output: DetectorOutput = model(torch.rand(2, 3, size, size), TARGETS)
    assert output.logits.dtype == torch.bfloat16  # or it would test nothing
    training = output.training
    assert training is not None
    assert training.denoising is not None
    for head in (training.queries, training.denoising):
        exact = (head.boxes, head.corners, head.reference, head.pre_boxes)
        assert {tensor.dtype for tensor in exact if tensor is not None} == {torch.float32}
    assert (output.boxes.dtype, training.encoder_boxes.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize(("name", "size"), [("test", 64), ("rtdetrv4-n", 96)])
def test_the_loss_is_that_of_float32_but_for_rounding(name: str, size: int) -> None:
    recipe = load_recipe(name)
    criterion, weights = build_criterion(recipe.loss, find_variant(name)), loss_weights(recipe.loss)
    images = torch.rand(2, 3, size, size)
    losses = {}
    for amp in ("off", "bf16"):
        model = make_accelerator("cpu", amp).prepare(make_model(name))
        torch.manual_seed(1)  # of the denoising queries
        output = model(images, TARGETS)
        assert output.logits.dtype == torch.float32  # for the matcher and the losses
        losses[amp] = weighted_sum(criterion(output, TARGETS), weights)
        assert losses[amp].dtype == torch.float32
        losses[amp].backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert losses["bf16"] != losses["off"]
    torch.testing.assert_close(losses["bf16"], losses["off"], rtol=0.05, atol=0)


def test_offsets_are_expected_in_float32_under_autocast() -> None:
    corners, weights = torch.randn(2, 3, 4, 33), weighting(32, 4.0)
    expected = expected_offset(corners, weights)
    with bfloat16():
        torch.testing.assert_close(expected_offset(corners, weights), expected, rtol=0, atol=0)


def test_the_alignment_is_computed_in_float32_under_autocast() -> None:
    projected, teacher_map = torch.randn(2, 8, 3, 3), torch.randn(2, 8, 3, 3)
    expected = alignment_loss(projected, teacher_map)
    with bfloat16():
        torch.testing.assert_close(alignment_loss(projected, teacher_map), expected, rtol=0, atol=0)


def test_maps_are_sampled_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled: list[tuple[torch.dtype, torch.dtype]] = []
    sample = F.grid_sample

    def spy(value: Tensor, grid: Tensor, **options: object) -> Tensor:
        sampled.append((value.dtype, grid.dtype))
        return sample(value, grid, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "grid_sample", spy)
    with bfloat16():
        create_model("test", NUM_CLASSES).train()(torch.rand(2, 3, 64, 64), TARGETS)
    assert set(sampled) == {(torch.float32, torch.float32)}


def test_what_was_trained_in_bfloat16_predicts_in_float32(tmp_path: Path) -> None:
    detector = Detector("test")
    data = write_shapes(tmp_path / "data", num_train=4, num_val=2, image_size=64)
    result = detector.train(data, epochs=1, amp="bf16", teacher="none", out=tmp_path / "run")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (own,), (loaded,) = (each.predict(image, conf=0.0) for each in (detector, Detector(result.weights)))
    assert len(own) > 0
    np.testing.assert_array_equal(own.confidence, loaded.confidence)
    np.testing.assert_array_equal(own.xyxy, loaded.xyxy)
    assert np.any(own.confidence != torch.tensor(own.confidence).bfloat16().float().numpy())  # more digits than it has
