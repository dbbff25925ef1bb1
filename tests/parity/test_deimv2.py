"""DEIMv2 against transformers' `Deimv2ForObjectDetection`, with the same weights, both ways.

What the authors trained and what transformers computes differ in three ways, see docs/divergences.md: `deimv2-…-hf` is
compared with transformers as it is, and `deimv2-…` with the same model after these three have been undone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForObjectDetection

from parity.test_convert_transformers import match
from rtdetrv4.assembly import create_model
from rtdetrv4.config import VARIANTS
from rtdetrv4.errors import WeightsError
from rtdetrv4.models import DetectionModel
from rtdetrv4.weights import load_weights, read_metadata
from rtdetrv4.weights.transformers import CONSTANTS, save_transformers, to_transformers

SIZES = ("atto", "femto", "pico", "n")
INPUTS = ((320, 320), (256, 416))
NAMES = [f"thing {index}" for index in range(80)]
TOLERANCE = 1e-4


@torch.no_grad()
def in_working_range(network: nn.Module, seed: int) -> None:
    """Random weights with which every part matters: no head is zero, and norms have statistics of their own."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point() or name.endswith(CONSTANTS):
            continue
        noise = torch.randn(tensor.shape, generator=random).clamp(-3, 3)
        if name.endswith("running_var"):
            tensor.copy_((0.3 * noise).exp())
        elif tensor.ndim <= 1:
            tensor.add_(0.1 * noise)
        else:
            tensor.copy_(noise * tensor[0].numel() ** -0.5)


@torch.no_grad()
def assert_same_outputs(ours: DetectionModel, theirs: nn.Module) -> None:
    for height, width in INPUTS:
        pixels = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height))
        mine, other = ours.eval()(pixels), theirs.eval()(pixels)
        for logits, boxes, other_logits, other_boxes in zip(
            mine.logits, mine.boxes, other.logits, other.pred_boxes, strict=True
        ):
            rows = match(logits, boxes, other_logits, other_boxes)  # rounding may change the order of equal scores
            torch.testing.assert_close(logits, other_logits[rows], rtol=0, atol=TOLERANCE)
            torch.testing.assert_close(boxes, other_boxes[rows], rtol=0, atol=TOLERANCE)
        assert mine.logits.std() > 0.1
        assert mine.boxes.std() > 0.01


def pretrained(folder: Path) -> Any:
    model, report = AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == "Deimv2ForObjectDetection"
    return model


@pytest.mark.parametrize("size", SIZES)
def test_outputs_are_the_same_both_ways(size: str, tmp_path: Path) -> None:
    name = f"deimv2-{size}-hf"
    queries = {"atto": 100, "femto": 150, "pico": 200, "n": 300}[size]
    ours = create_model(name, num_queries=queries)
    in_working_range(ours, 1)
    save_transformers(ours, tmp_path / "ours", NAMES, VARIANTS[name].image_size)
    theirs = pretrained(tmp_path / "ours")
    assert list(theirs.config.id2label.values()) == NAMES
    assert_same_outputs(ours, theirs)

    in_working_range(theirs, 2)
    theirs.save_pretrained(tmp_path / "theirs")
    fresh = create_model(name, num_queries=queries)
    report = load_weights(fresh, tmp_path / "theirs")
    assert not report.newly_initialized
    assert not report.ignored
    facts = read_metadata(tmp_path / "theirs")
    assert facts.models == (name,)
    assert facts.facts["num_queries"] == queries
    assert_same_outputs(fresh, theirs)


class _FirstPositions(nn.Module):
    """Query positions of the first references in every layer of a forward pass, as in the authors' code."""

    def __init__(self, head: nn.Module, num_layers: int) -> None:
        super().__init__()
        self.head, self.num_layers, self.calls = head, num_layers, 0

    def forward(self, reference: Tensor) -> Tensor:
        if self.calls % self.num_layers == 0:
            self.first = self.head(reference)
        self.calls += 1
        return self.first


def as_the_authors_trained_it(theirs: Any) -> nn.Module:
    """transformers' model without its three differences from the authors' code."""
    theirs.model.enc_output = nn.Identity()
    decoder = theirs.model.decoder
    for mlp in (theirs.model.enc_bbox_head, decoder.pre_bbox_head, *decoder.bbox_embed):
        mlp.act = nn.SiLU()
    for quality in decoder.lqe_layers:
        quality.reg_conf.act = nn.SiLU()
    decoder.query_pos_head = _FirstPositions(decoder.query_pos_head, len(decoder.layers))
    return theirs


@pytest.mark.parametrize("size", SIZES)
def test_the_authors_model_is_that_of_transformers_but_for_three_things(size: str, tmp_path: Path) -> None:
    name = f"deimv2-{size}"
    twin = create_model(f"{name}-hf", num_queries=100)
    in_working_range(twin, 3)
    save_transformers(twin, tmp_path, NAMES, VARIANTS[name].image_size)
    ours = create_model(name, num_queries=100)
    state = {key: tensor for key, tensor in twin.state_dict().items() if key in ours.state_dict()}
    ours.load_state_dict(state)
    theirs = pretrained(tmp_path)
    with pytest.raises(AssertionError):
        assert_same_outputs(ours, theirs)
    assert_same_outputs(ours, as_the_authors_trained_it(theirs))


def test_the_authors_model_is_refused_for_transformers() -> None:
    with torch.device("meta"):
        model = create_model("deimv2-atto")
    with pytest.raises(WeightsError, match=r"as its authors trained it.*Only deimv2-…-hf"):
        to_transformers(model)
