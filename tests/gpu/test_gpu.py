"""What differs on a GPU. `make gpu` runs these on a machine that has one of NVIDIA; elsewhere they are skipped."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rtdetrv4 import Detector, Observer
from rtdetrv4.assembly import create_model
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.distillation import Teacher
from rtdetrv4.losses import Criterion, HungarianMatcher, weighted_sum
from rtdetrv4.models import fuse
from rtdetrv4.ops.cuda_graphs import CudaGraphs
from rtdetrv4.training.observers import StepReport, read_log
from rtdetrv4.types import Targets
from small_training import WEIGHTS, make_detector

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or hidden: make gpu")
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """Convolutions in float32, not TF32, to compare them with those of a CPU."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=4, image_size=64)


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that were trained on the GPU, with a teacher."""
    out = tmp_path_factory.mktemp("run")
    torch.manual_seed(7)
    teacher = Teacher(torch.nn.Conv2d(3, 6, 32, 32), name="tiny", dim=6, stride=32, license="none")
    settings = {"distillation.mode": "gam", "distillation.rho": 50.0}
    Detector("test", device="cuda").train(shapes, out=out, teacher=teacher, epochs=3, workers=2, overrides=settings)
    return out / "weights.safetensors"


def pictures(shapes: Path) -> list[Path]:
    return sorted((shapes / "train").glob("*.jpg")) or sorted((shapes / "train").glob("*.png"))


def test_detections_are_those_of_the_cpu(trained: Path, shapes: Path) -> None:
    own, reference = (Detector(trained, device=device) for device in ("cuda", "cpu"))
    for picture in [*pictures(shapes), *pictures(shapes)]:  # launched once, then replayed
        (found,), (expected,) = (detector.predict([picture], conf=0.0) for detector in (own, reference))
        order, expected_order = (np.argsort(-each.confidence, kind="stable") for each in (found, expected))
        np.testing.assert_allclose(found.confidence[order], expected.confidence[expected_order], atol=1e-4)
        best = expected.confidence[expected_order] > expected.confidence.max() / 2
        np.testing.assert_allclose(found.xyxy[order][best], expected.xyxy[expected_order][best], atol=0.05)
    metrics = [detector.val(shapes).ap for detector in (own, reference)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)


@torch.inference_mode()
def test_replayed_kernels_compute_what_launched_ones_do() -> None:
    torch.manual_seed(0)
    network = fuse(create_model("test")).to(GPU)

    def find(images: Tensor) -> tuple[Tensor, ...]:
        output = network(images)
        return output.logits, output.boxes

    graphs = CudaGraphs(find, most=2)
    shapes = [(1, 3, 64, 64), (2, 3, 64, 64), (1, 3, 64, 96)]
    kept: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []
    for shape in [*shapes, *shapes, shapes[2], shapes[2], shapes[1], shapes[1], shapes[1]]:
        images = torch.rand(shape, device=GPU)
        kept.append((graphs(images), find(images)))
    assert [key[0] for key in graphs._recordings] == [shapes[2], shapes[1]]
    assert all(graphs._recordings.values())
    for found, expected in kept:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_what_cannot_be_recorded_is_launched() -> None:
    graphs = CudaGraphs(lambda x: (x * x.sum().item(),))
    for number in range(1, 5):
        assert graphs(torch.full((2,), float(number), device=GPU))[0].tolist() == [2 * number**2] * 2


def test_losses_are_those_of_the_cpu_and_wait_once() -> None:
    torch.manual_seed(0)
    detector = make_detector(num_denoising=0).train()
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.4, 0.4]])
    targets = [(torch.tensor([0, 2]), boxes), (torch.tensor([1]), boxes[:1])]
    images = torch.rand(2, 3, 64, 64)
    losses = []
    for device in (torch.device("cpu"), GPU):
        own = Targets.of([(labels.to(device), each.to(device)) for labels, each in targets])
        output = detector.to(device)(images.to(device), own)
        criterion = Criterion(HungarianMatcher())
        criterion(output, own)  # moves its constants
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if device == GPU:
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("warn")
            terms = criterion(output, own)
            weighted_sum(terms, WEIGHTS)
            if device == GPU:
                torch.cuda.set_sync_debug_mode("default")
        waits = [each for each in told if "called a synchronizing" in str(each.message)]
        assert len(waits) == (device == GPU)  # the matcher's
        losses.append({name: value.item() for name, value in terms.items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=1e-5)


class StopEarly(Observer):
    """Presses Ctrl-C in a step."""

    def step_end(self, report: StepReport) -> None:
        if report.step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_run_goes_on_where_it_was(amp: str, shapes: Path, tmp_path: Path) -> None:
    def train(**options: object) -> list[float]:
        settings = {"run.amp": amp, "augment.multi_scale_repeat": None}
        Detector("test", device="cuda").train(
            shapes, out=tmp_path / "run", epochs=3, batch=4, overrides=settings, teacher="none", **options
        )
        return [each["losses"]["loss"] for each in read_log(tmp_path / "run/log.jsonl") if each["type"] == "epoch"]

    with pytest.raises(KeyboardInterrupt):
        train(callbacks=[StopEarly()])
    assert len(train(resume=True)) == 3


def test_an_interrupted_command_ends_at_once(shapes: Path, tmp_path: Path) -> None:
    script = f"""
import os, signal
from rtdetrv4 import Detector, Observer

class Stop(Observer):
    def step_end(self, report):
        os.kill(os.getpid(), signal.SIGTERM)

try:
    Detector("test", device="cuda").train({str(shapes)!r}, out={str(tmp_path / "run")!r}, workers=2, callbacks=[Stop()])
except KeyboardInterrupt as error:
    kept = error  # with its traceback, which refers to the loaders
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=50)
    assert "Exception ignored" not in done.stderr, done.stderr
    assert (tmp_path / "run/last.pt").is_file()


@pytest.mark.parametrize("format", ["torchscript", "pt2"])
def test_exported_programs_run_on_it(format: str, trained: Path, shapes: Path, tmp_path: Path) -> None:
    file = Detector(trained, device="cuda").export(format, out=tmp_path / f"exported.{format}")
    assert isinstance(file, Path)
    scores = [
        np.sort(Detector(file, device=device).predict(pictures(shapes)[:1], conf=0.0)[0].confidence)
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
