"""What a graph takes and returns, before it is any file."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rtdetrv4.export import DeploymentModule, GraphOptions
from rtdetrv4.export.deployment import _distinct
from rtdetrv4.models import fuse
from rtdetrv4.runtime.selection import drop_duplicates

from .conftest import model_like_a_trained_one


@pytest.fixture(scope="module")
def fused() -> nn.Module:
    return fuse(model_like_a_trained_one()).requires_grad_(False)


IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8))
"""B×H×W×3."""


def outputs(model: nn.Module, images: torch.Tensor | None = None, **options: object) -> dict[str, np.ndarray]:
    module = DeploymentModule(model, GraphOptions(**options)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        found = module(IMAGES.permute(0, 3, 1, 2) / 255 if images is None else images)
    return {name: each.numpy() for name, each in zip(module.output_names, found, strict=True)}


def test_frames_are_images(fused: nn.Module) -> None:
    for name, expected in outputs(fused).items():
        np.testing.assert_array_equal(outputs(fused, IMAGES, frames=True)[name], expected)


class Operators(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_gathering_finds_the_same(fused: nn.Module) -> None:
    with Operators() as sampling:
        expected = outputs(fused, num_top=None)
    with Operators() as gathering:
        found = outputs(fused, num_top=None, grid_sample=False)
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-4)
    assert sampling.counts["grid_sampler_2d"] > 0 == gathering.counts["grid_sampler_2d"]


def test_a_choice_of_classes_is_what_predict_would_choose(fused: nn.Module) -> None:
    everything, chosen = outputs(fused, num_top=10_000), outputs(fused, num_top=10_000, classes=(2, 0))
    for image in range(len(IMAGES)):
        labels = everything["labels"][image]
        wanted = np.isin(labels, (0, 2))
        np.testing.assert_allclose(chosen["scores"][image], everything["scores"][image][wanted], rtol=1e-6)
        assert Counter(chosen["labels"][image].tolist()) == {0: (labels == 2).sum(), 1: (labels == 0).sum()}
    assert outputs(fused, num_top=None, classes=(1,))["logits"].shape[-1] == 1


def test_at_most_so_many(fused: nn.Module) -> None:
    few, many = outputs(fused, num_top=5), outputs(fused)
    for name in few:
        np.testing.assert_array_equal(few[name], many[name][:, :5])


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_are_those_of_predict(seed: int) -> None:
    """Clusters of boxes that repeat each other, against the choice that `predict` makes."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(1, 12, 1, 4, generator=generator) * torch.tensor([0.6, 0.6, 0.2, 0.2]) + 0.2
    boxes = (centers + 0.004 * torch.randn(1, 12, 8, 4, generator=generator)).flatten(1, 2)
    logits = 2 * torch.randn(1, 96, 3, generator=generator)
    labels, corners, scores = (each[0].numpy() for each in _distinct(logits, boxes, 96))
    order = logits.flatten().sigmoid().argsort(descending=True)
    all_boxes = torch.cat((boxes[0, :, :2] - boxes[0, :, 2:] / 2, boxes[0, :, :2] + boxes[0, :, 2:] / 2), dim=1)
    all_boxes, all_labels = all_boxes[order // 3].numpy(), (order % 3).numpy()
    kept = drop_duplicates(all_labels, all_boxes)
    num = int((scores > 0).sum())
    assert num == len(kept) < 96
    np.testing.assert_array_equal(labels[:num], all_labels[kept])
    np.testing.assert_array_equal(corners[:num], all_boxes[kept])
    np.testing.assert_array_equal(scores[:num], logits.flatten().sigmoid()[order][kept].numpy())
    assert (np.diff(scores) <= 0).all()
