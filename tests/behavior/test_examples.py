"""The examples for transformers' detectors run: two epochs of the smallest models on a few made-up images."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.datasets import CocoDetection
from transformers import DeformableDetrImageProcessor, RfDetrImageProcessor, RTDetrImageProcessor

from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.distillation import Modulation, Tap
from small_training import make_teacher
from tiny_detectors import DIM, FAMILIES, tap_of

EXAMPLES = Path(__file__).parents[2] / "examples"
SIDE, BATCH, STEPS = 64, 2, 3
SQUARE = {"height": SIDE, "width": SIDE}
PROCESSORS = {
    "D-FINE": RTDetrImageProcessor(size=SQUARE),
    "RT-DETRv2": RTDetrImageProcessor(size=SQUARE),
    # Normalized, of several sizes that are no multiples of 32, and padded to the largest in a batch.
    "Deformable DETR": DeformableDetrImageProcessor(size={"shortest_edge": 60, "longest_edge": 100}),
    "LW-DETR": DeformableDetrImageProcessor(size=SQUARE),
    "RF-DETR": RfDetrImageProcessor(size=SQUARE),
}


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

    def loss(self: Tap, *args: Any, **kwargs: Any) -> Tensor:
        value = original(self, *args, **kwargs)
        layer: nn.Module = self._beside.layer
        gradients = torch.autograd.grad(value, list(layer.parameters()), retain_graph=True, allow_unused=True)
        found.append(sum(gradient.abs().sum().item() for gradient in gradients if gradient is not None))
        return value

    monkeypatch.setattr(Tap, "loss", loss)
    return found


def run(example: str, name: str, model: nn.Module, data: CocoDetection, **settings: Any) -> None:
    main = runpy.run_path(str(EXAMPLES / example))["main"]
    tapped = {"layer": FAMILIES[name].layer, "select": FAMILIES[name].select, "dim": DIM}
    main(data, model, make_teacher(), PROCESSORS[name], tapped, **settings)


def check(name: str, model: nn.Module, before: dict[str, Tensor], reached: list[float], printed: str) -> None:
    assert len(reached) == 2 * STEPS
    assert min(reached) > 0
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith(FAMILIES[name].layer))
    shares = [float(share) for share in re.findall(r"weight=5\.0, share=([\d.]+), reason='probe'", printed)]
    assert len(shares) == 2
    assert all(0 < share < 100 for share in shares)
    assert len(re.findall(r"\{'lambda': 5\.0, 'distill': [01]\.\d+\}", printed)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSORS)
def test_loop(name: str, data: CocoDetection, reached: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    model = FAMILIES[name].make()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    run("distill_loop.py", name, model, data, epochs=2, batch=BATCH, workers=0, device="cpu")
    check(name, model, before, reached, capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSORS)
def test_trainer(
    name: str, data: CocoDetection, reached: list[float], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model: Any = FAMILIES[name].make()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    run(
        "distill_trainer.py",
        name,
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
    check(name, model, before, reached, capsys.readouterr().out)

    # A run resumes as the guide says: `from_pretrained` restores the detector, and what Trainer does then, the tap.
    folder = tmp_path / f"checkpoint-{2 * STEPS}"
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    resumed = type(model).from_pretrained(folder)
    tap = tap_of(FAMILIES[name], resumed, make_teacher(), Modulation(1.0))
    resumed.load_state_dict(saved, strict=False)
    assert tap.modulation.weight == 5.0
    assert torch.equal(tap.injector.projector.weight, saved["tap.injector.projector.weight"])
    tap.close()
    restored = resumed.state_dict()
    assert [key for key, tensor in model.state_dict().items() if not torch.equal(tensor, restored[key])] == []


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("distill_*.py")), ids=lambda path: path.stem)
def test_is_short(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 33
