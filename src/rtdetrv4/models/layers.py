"""Convolutional blocks of the encoder, the MLP, and the norm and activation of DEIMv2's decoder."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetrv4.ops.boxes import full_precision

Activation = Literal["relu", "silu", "gelu", "none"]


def activation(name: Activation) -> nn.Module:
    """The activation module with that name."""
    return {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "none": nn.Identity}[name]()


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, activation."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, groups: int = 1, act: Activation
    ) -> None:
        super().__init__()
        self.conv: nn.Conv2d = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=(kernel - 1) // 2, groups=groups, bias=False
        )
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)
        self.act: nn.Module = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W → B×C'×H/stride×W/stride."""
        return self.act(self.norm(self.conv(x)))


def match_gradient_layout(x: Tensor) -> Tensor:
    """Return x (B×C×H×W) and, if it is channels-last, make its gradient channels-last too.

    Slicing and copying produce gradients in the other layout, which would spread backward through the whole network;
    and kernels, batch norm above all, are several times slower when the layouts of their inputs differ.
    """
    if x.requires_grad and x.is_contiguous(memory_format=torch.channels_last):
        x.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))
    return x


class RepVGGBlock(nn.Module):
    """A 3×3 and a 1×1 convolution in parallel; a single 3×3 convolution when fused.

    References:
        RepVGG, arXiv 2101.03697 (without the identity branch, as in RT-DETR).
    """

    def __init__(self, channels: int, act: Activation) -> None:
        super().__init__()
        self.conv3x3: ConvNorm = ConvNorm(channels, channels, 3, act="none")
        self.conv1x1: ConvNorm | None = ConvNorm(channels, channels, 1, act="none")
        self.act: nn.Module = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W → B×C×H×W."""
        y = self.conv3x3(x)
        if self.conv1x1 is not None:
            y = y + self.conv1x1(x)
        return self.act(y)

    def fuse(self) -> None:
        """Fold the 1×1 branch into the 3×3 one, after the norms of both have been folded into their convolutions."""
        if self.conv1x1 is None:
            return
        point, square = self.conv1x1.conv, self.conv3x3.conv
        assert point.bias is not None and square.bias is not None
        square.weight.data += F.pad(point.weight, (1, 1, 1, 1))
        square.bias.data += point.bias
        self.conv1x1 = None


class CSPRepBlock(nn.Module):
    """The sum of two 1×1 branches, one with RepVGG blocks; a last 1×1 convolution adapts the width if needed.

    References:
        RT-DETR, arXiv 2304.08069, figure 4 (the fusion block of CCFF).
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, expansion: float, act: Activation) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.deep: ConvNorm = ConvNorm(in_channels, hidden, 1, act=act)
        self.shortcut: ConvNorm = ConvNorm(in_channels, hidden, 1, act=act)
        self.blocks: nn.Sequential = nn.Sequential(*(RepVGGBlock(hidden, act) for _ in range(depth)))
        self.widen: nn.Identity | ConvNorm = (
            nn.Identity() if hidden == out_channels else ConvNorm(hidden, out_channels, 1, act=act)
        )

    def forward(self, x: Tensor) -> Tensor:
        """B×Cin×H×W → B×Cout×H×W."""
        return self.widen(self.blocks(self.deep(x)) + self.shortcut(x))


class ELANRepBlock(nn.Module):
    """Halves the channels, passes the second half through two [CSP block, 3×3], and concatenates all four pieces.

    References:
        GELAN of YOLOv9, arXiv 2402.13616; used as D-FINE's fusion block, arXiv 2410.13842, section 4.3.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, expansion: float, act: Activation) -> None:
        super().__init__()
        inner = int(expansion * out_channels / 2)
        self.split: ConvNorm = ConvNorm(in_channels, 2 * out_channels, 1, act=act)
        self.first: nn.Sequential = nn.Sequential(
            CSPRepBlock(out_channels, inner, depth, 1.0, act), ConvNorm(inner, inner, 3, act=act)
        )
        self.second: nn.Sequential = nn.Sequential(
            CSPRepBlock(inner, inner, depth, 1.0, act), ConvNorm(inner, inner, 3, act=act)
        )
        self.merge: ConvNorm = ConvNorm(2 * out_channels + 2 * inner, out_channels, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """B×Cin×H×W → B×Cout×H×W."""
        kept, passed = match_gradient_layout(self.split(x)).chunk(2, dim=1)
        first = self.first(passed)
        return self.merge(torch.cat((kept, passed, first, self.second(first)), dim=1))


class MLP(nn.Module):
    """Linear layers with an activation between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int, act: Activation) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers: nn.ModuleList = nn.ModuleList(nn.Linear(a, b) for a, b in zip(dims[:-1], dims[1:], strict=True))
        self.act: nn.Module = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_dim) → (…, out_dim)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = self.act(layer(x))
        return last(x)

    def zero_last(self) -> None:
        """Make the output zero for every input."""
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)


class RMSNorm(nn.Module):
    """Divides by the root mean square over channels, without centering and without a bias; in float32 or better.

    References:
        Root mean square layer normalization, arXiv 1910.07467; in DEIMv2's decoder, arXiv 2509.20787.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight: nn.Parameter = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        exact = full_precision(x)
        normalized = exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + self.eps)
        return normalized.to(x.dtype) * self.weight


class GatedSiLU(nn.Module):
    """SiLU of the first half of the channels times the second half: between two linear layers, SwiGLU.

    References:
        GLU variants improve transformer, arXiv 2002.05202; in DEIMv2's decoder, arXiv 2509.20787.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, 2C) → (…, C)."""
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value
