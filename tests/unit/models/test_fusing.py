"""Fused networks compute what they did before, whatever their authors' order of definition."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from rtdetrv4.models.fusing import fuse_conv_norms


def norms_of(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def with_statistics(module: nn.Module) -> nn.Module:
    """In float64, with batch norms as after training, so that every wrong fold shows."""
    for norm in norms_of(module):
        for tensor in (norm.running_mean, norm.bias):
            nn.init.uniform_(tensor, -0.5, 0.5)
        for tensor in (norm.running_var, norm.weight):
            nn.init.uniform_(tensor, 0.5, 1.5)
    return module.double().eval()


def compare(module: nn.Module, images: Tensor) -> nn.Module:
    fused = fuse_conv_norms(module, torch.zeros_like(images))
    with torch.no_grad():
        torch.testing.assert_close(fused(images), module(images), rtol=1e-6, atol=1e-9)
    return fused


@pytest.mark.parametrize(
    ("name", "all_folded"),
    [
        ("tf_efficientnet_lite0", True),  # norms with an activation inside, convolutions with "same" padding
        ("resnet50", True),
        ("resnet18d", True),  # a stem whose last convolution is in another module than its norm
        ("regnety_002", True),
        ("mobilenetv4_conv_small", True),
        ("densenet121", False),  # norms of concatenated maps
        ("mobilenetv4_hybrid_medium_075", False),  # norms before attention
        # Norms before convolutions, of maps that are also added.
        pytest.param(
            "test_coatnet",
            False,
            marks=pytest.mark.skipif(not timm.is_model("test_coatnet"), reason="this timm does not have it"),
        ),
        ("test_nfnet", True),  # convolutions that standardize their weights, and no norm
        ("test_convnext", True),  # layer norms only
    ],
)
def test_networks_of_timm(name: str, all_folded: bool) -> None:
    size = timm.get_pretrained_cfg(name).input_size[-1] if name == "test_coatnet" else 64
    module = with_statistics(timm.create_model(name, num_classes=0))
    fused = compare(module, torch.rand(1, 3, size, size, dtype=torch.float64))
    assert (not norms_of(fused)) == all_folded
    assert len(norms_of(fused)) < len(norms_of(module)) or not norms_of(module)


class Residual(nn.Module):
    """A norm that is defined behind a convolution, but normalizes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.conv(x))


class Twice(Residual):
    """A convolution whose result is normalized, and also used as it is."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


class Shared(Residual):
    """One convolution for two inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv(2 * x)


@pytest.mark.parametrize("kind", [Residual, Twice, Shared])
def test_what_cannot_be_folded_is_left(kind: type[Residual]) -> None:
    assert norms_of(compare(with_statistics(kind()), torch.rand(1, 3, 8, 8, dtype=torch.float64)))


def test_the_original_stays() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    fused = fuse_conv_norms(module, torch.zeros(1, 3, 8, 8))
    assert [type(part) for part in fused] == [nn.Conv2d, nn.Identity]
    assert isinstance(module[1], nn.BatchNorm2d)
    assert module.training
    assert not module[0]._forward_hooks
    assert not fused[0]._forward_hooks
