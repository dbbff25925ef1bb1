"""DEIMv2 against transformers' `Deimv2ForObjectDetection`, with the same weights, both ways.

What the authors trained and what transformers computes differ in three ways, see docs/divergences.md: `deimv2-…-hf` is
compared with transformers as it is, and `deimv2-…` with the same model after these three have been undone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForObjectDetection

from parity.test_convert_transformers import match
from rtdetrv4.assembly import create_model
from rtdetrv4.config import VARIANTS
from rtdetrv4.errors import WeightsError
from rtdetrv4.models import DetectionModel
from rtdetrv4.weights import from_released, load_weights, read_metadata, to_released
from rtdetrv4.weights.transformers import CONSTANTS, save_transformers, to_transformers

pytestmark = pytest.mark.usefixtures("undrawn")

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
            tensor.copy_(0.1 * noise + name.endswith(("weight", "scale")))
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


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=[pytest.mark.slow] * (size in ("femto", "pico"))) for size in SIZES]
)
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


#: Names in the authors' files: of what all sizes have, of the lite encoder's models, and of N.
COMMON = (
    "backbone.stem.stem2a.lab.scale",
    "backbone.stages.2.blocks.0.layers.1.conv2.bn.running_var",
    "encoder.input_proj.0.conv.weight",
    "decoder.denoising_class_embed.weight",
    "decoder.enc_score_head.bias",
    "decoder.enc_bbox_head.layers.2.weight",
    "decoder.query_pos_head.layers.2.weight",
    "decoder.pre_bbox_head.layers.0.bias",
    "decoder.dec_score_head.2.weight",
    "decoder.dec_bbox_head.2.layers.1.weight",
    "decoder.decoder.lqe_layers.1.reg_conf.layers.0.weight",
    "decoder.decoder.layers.0.self_attn.in_proj_weight",
    "decoder.decoder.layers.0.cross_attn.sampling_offsets.bias",
    "decoder.decoder.layers.2.swish_ffn.w12.weight",
    "decoder.decoder.layers.2.swish_ffn.w3.bias",
    "decoder.decoder.layers.1.norm1.scale",
    "decoder.decoder.layers.1.norm3.scale",
    "decoder.up",
    "decoder.anchors",
)
OF_LITE = (
    "encoder.down_sample1.1.weight",
    "encoder.down_sample2.2.running_mean",
    "encoder.bi_fusion.cv.norm.bias",
    "encoder.fpn_block.cv1.conv.weight",
    "encoder.fpn_block.cv2.0.conv1.conv.weight",
    "encoder.pan_block.cv3.0.bottlenecks.1.conv2.norm.weight",
    "encoder.pan_block.cv3.1.conv.weight",
    "encoder.pan_block.cv4.norm.num_batches_tracked",
    "decoder.decoder.layers.1.norm2.scale",
)
OF_N = (
    "encoder.encoder.0.layers.0.linear1.weight",
    "encoder.lateral_convs.0.conv.weight",
    "encoder.fpn_blocks.0.cv2.0.conv1.norm.running_var",
    "encoder.downsample_convs.0.0.cv2.conv.weight",
    "encoder.pan_blocks.0.cv3.0.bottlenecks.0.conv1.conv.weight",
    "decoder.decoder.layers.0.gateway.gate.weight",
    "decoder.decoder.layers.0.gateway.norm.scale",
)


@pytest.mark.parametrize("size", SIZES)
def test_the_authors_files_come_back_bit_for_bit(size: str, tmp_path: Path) -> None:
    name = f"deimv2-{size}"
    model = create_model(name)
    in_working_range(model, 4)
    released = to_released(model, VARIANTS[name].image_size)
    assert {*COMMON, *(OF_N if size == "n" else OF_LITE)} <= released.keys()
    assert not [key for key in released if "enc_output" in key or ".cv2.0.conv2." in key]
    dim = VARIANTS[name].hidden_dim
    inner = released[f"encoder.{'fpn_blocks.0' if size == 'n' else 'fpn_block'}.cv2.0.conv1.conv.weight"]
    assert inner.shape == (2 * round(0.34 * dim // 2), dim, 1, 1)
    shared = [key for key in released if key.startswith("decoder.dec_bbox_head.") and size != "n"]

    torch.save({"model": released}, tmp_path / "released.pth")
    # PyTorchModelHubMixin writes shared tensors once.
    once = {key: tensor.clone() for key, tensor in released.items() if key not in shared or ".dec_bbox_head.0." in key}
    save_file(once, tmp_path / "model.safetensors")
    for file in ("released.pth", "model.safetensors"):
        again = create_model(name)
        report = load_weights(again, tmp_path / file)
        assert read_metadata(tmp_path / file).models == (name,)
        assert not report.ignored
        assert not report.newly_initialized
        back = to_released(again, VARIANTS[name].image_size)
        assert back.keys() == released.keys()
        assert [key for key, tensor in released.items() if not torch.equal(back[key], tensor)] == []


def test_box_heads_that_are_not_shared_are_refused() -> None:
    released = to_released(create_model("deimv2-atto"))
    key = "decoder.dec_bbox_head.1.layers.0.weight"
    with pytest.raises(WeightsError, match=r"box head of its own.*dec_bbox_head\.1\.layers\.0\.weight"):
        from_released(released | {key: released[key] + 1})


def test_the_form_of_transformers_is_refused_for_the_authors_code() -> None:
    with torch.device("meta"):
        model = create_model("deimv2-n-hf")
    with pytest.raises(WeightsError, match=r"DEIMv2 as transformers computes it"):
        to_released(model)


def test_a_configuration_that_no_model_here_has_is_refused(tmp_path: Path) -> None:
    """With a size for evaluation, transformers leaves out the positions of AIFI."""
    save_transformers(create_model("deimv2-n-hf", 2), tmp_path, ["a", "b"], (64, 96))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eval_size": [640, 640]}))
    with pytest.raises(WeightsError, match=r"eval_size \[640, 640\].*expected None"):
        read_metadata(tmp_path)
