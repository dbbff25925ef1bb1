"""The examples for transformers' detectors run: two epochs of the smallest models on a few made-up images."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.datasets import CocoDetection
from transformers import (
    DFineConfig,
    DFineForObjectDetection,
    HGNetV2Config,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.distillation import Modulation, Tap
from small_training import make_teacher

EXAMPLES = Path(__file__).parents[2] / "examples"
LAYER = "model.encoder.aifi.0"
SIDE, BATCH, STEPS = 64, 2, 3
DETECTOR = {
    "freeze_backbone_batch_norms": False,
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "d_model": 32,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "hidden_expansion": 0.5,
    "num_queries": 10,
    "num_denoising": 4,
    "num_labels": 5,
}


def make_dfine() -> DFineForObjectDetection:
    backbone = HGNetV2Config(
        hidden_sizes=[16, 16, 32, 32],
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 16, 16, 32],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[16, 16, 32, 32],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    config = DFineConfig(
        backbone_config=backbone,
        encoder_in_channels=[16, 32, 32],
        depth_mult=0.34,
        decoder_n_points=[2, 2, 2],
        **DETECTOR,
    )
    return DFineForObjectDetection(config)


def make_rtdetrv2() -> RTDetrV2ForObjectDetection:
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    return RTDetrV2ForObjectDetection(
        RTDetrV2Config(backbone_config=backbone, encoder_in_channels=[16, 16, 32], decoder_n_points=2, **DETECTOR)
    )


MODELS = {"dfine": make_dfine, "rtdetrv2": make_rtdetrv2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDetection:
    folder = write_shapes(tmp_path_factory.mktemp("shapes"), BATCH * STEPS, 1, image_size=80) / "train"
    file = folder / "_annotations.coco.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    for annotation in content["annotations"]:
        annotation["category_id"] -= 1
    file.write_text(json.dumps(content), encoding="utf-8")
    return CocoDetection(folder, file)


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For every loss of a tap, how much of its gradient reaches the tapped layer."""
    found: list[float] = []
    original = Tap.loss

    def loss(self: Tap, images: Tensor) -> Tensor:
        value = original(self, images)
        layer: nn.Module = self._beside.layer
        gradients = torch.autograd.grad(value, list(layer.parameters()), retain_graph=True)
        found.append(sum(gradient.abs().sum().item() for gradient in gradients))
        return value

    monkeypatch.setattr(Tap, "loss", loss)
    return found


def run(example: str, model: nn.Module, data: CocoDetection, **settings: Any) -> None:
    main = runpy.run_path(str(EXAMPLES / example))["main"]
    main(data, model, make_teacher(), RTDetrImageProcessor(size={"height": SIDE, "width": SIDE}), **settings)


def check(model: nn.Module, before: dict[str, Tensor], reached: list[float], printed: str) -> None:
    assert len(reached) == 2 * STEPS
    assert min(reached) > 0
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(LAYER))
    shares = [float(share) for share in re.findall(r"weight=5\.0, share=([\d.]+), reason='probe'", printed)]
    assert len(shares) == 2
    assert all(0 < share < 100 for share in shares)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_loop(name: str, data: CocoDetection, reached: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    model = MODELS[name]()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    run(f"distill_{name}_loop.py", model, data, epochs=2, batch=BATCH, workers=0, device="cpu")
    check(model, before, reached, capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_trainer(
    name: str, data: CocoDetection, reached: list[float], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make: Callable[[], nn.Module] = MODELS[name]
    model = make()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    run(
        f"distill_{name}_trainer.py",
        model,
        data,
        output_dir=str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=BATCH,
        save_strategy="epoch",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
    )
    check(model, before, reached, capsys.readouterr().out)
    # A run resumes from such a file, loaded as Trainer does it: projector and λ are in it.
    saved = safetensors.torch.load_file(tmp_path / f"checkpoint-{2 * STEPS}" / "model.safetensors")
    resumed = make()
    tap = Tap(resumed, LAYER, make_teacher(), Modulation(1.0), dim=32)
    resumed.load_state_dict(saved, strict=False)
    assert tap.modulation.weight == 5.0
    assert torch.equal(tap.injector.projector.weight, saved["tap.injector.projector.weight"])


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("distill_*.py")), ids=lambda path: path.stem)
def test_is_short(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 30
