"""The hybrid encoder: AIFI on the coarsest level, then CCFF across levels; and DEIMv2's encoder without attention.

References:
    RT-DETR, arXiv 2304.08069, section 4.2; the lighter blocks are D-FINE's, arXiv 2410.13842, section 4.3; sums instead
    of concatenations and the lite encoder are DEIMv2's, arXiv 2509.20787.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetrv4.models.attention import SelfAttention
from rtdetrv4.models.layers import Activation, ConvNorm, CSPRepBlock, ELANRepBlock, activation
from rtdetrv4.types import EncoderOutput

BlockKind = Literal["elan", "csp"]


def sine_cosine_positions(
    height: int, width: int, dim: int, *, device: torch.device, temperature: float = 10000.0
) -> Tensor:
    """2-D positions, (height·width)×dim: the token in row y, column x gets [sin yω, cos yω, sin xω, cos xω].

    On squares this equals the released code, which scrambles rows and columns on rectangles; see docs/divergences.md.
    """
    omega = temperature ** -(torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim // 4))
    y = torch.arange(height, dtype=torch.float32, device=device)[:, None] * omega
    x = torch.arange(width, dtype=torch.float32, device=device)[:, None] * omega
    rows = torch.cat((y.sin(), y.cos()), dim=1)[:, None].expand(height, width, -1)
    columns = torch.cat((x.sin(), x.cos()), dim=1)[None].expand(height, width, -1)
    return torch.cat((rows, columns), dim=2).flatten(0, 1)


class AIFI(nn.Module):
    """Attention-based intra-scale feature interaction: one post-norm transformer layer over the positions of a map.

    Its output is F5, the map that DSI aligns with the teacher; GAM watches its share of the gradient.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.attention: SelfAttention = SelfAttention(dim, num_heads)
        self.norm1: nn.LayerNorm = nn.LayerNorm(dim)
        self.linear1: nn.Linear = nn.Linear(dim, ffn_dim)
        self.act: nn.Module = activation("gelu")
        self.linear2: nn.Linear = nn.Linear(ffn_dim, dim)
        self.norm2: nn.LayerNorm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """B×C×h×w → B×C×h×w."""
        height, width = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)
        position = sine_cosine_positions(height, width, tokens.shape[-1], device=x.device).to(tokens.dtype)
        tokens = self.norm1(tokens + self.attention(tokens, position))
        tokens = self.norm2(tokens + self.linear2(self.act(self.linear1(tokens))))
        return tokens.transpose(1, 2).unflatten(2, (height, width))


class CCFF(nn.Module):
    """CNN-based cross-scale feature fusion: top-down, then bottom-up.

    Args:
        dim: C, the width of every level.
        num_levels: levels of the pyramid.
        blocks: "elan" for D-FINE, DEIM and RT-DETRv4; "csp" for RT-DETRv2.
        depth: RepVGG blocks in each fusion block's branch.
        expansion: inner width of the fusion blocks.
        summed: whether two maps are added before a fusion block (DEIMv2) instead of concatenated.
    """

    def __init__(
        self,
        dim: int,
        num_levels: int,
        *,
        blocks: BlockKind,
        depth: int,
        expansion: float,
        act: Activation,
        summed: bool = False,
    ) -> None:
        super().__init__()
        self.summed = summed
        steps = range(num_levels - 1)

        def fusion() -> nn.Module:
            block = ELANRepBlock if blocks == "elan" else CSPRepBlock
            return block(dim if summed else 2 * dim, dim, depth, expansion, act)

        def downsample() -> nn.Module:
            if blocks == "csp":
                return ConvNorm(dim, dim, 3, 2, act=act)
            return nn.Sequential(ConvNorm(dim, dim, 1, act="none"), ConvNorm(dim, dim, 3, 2, groups=dim, act="none"))

        self.laterals: nn.ModuleList = nn.ModuleList(
            ConvNorm(dim, dim, 1, act=act if blocks == "csp" else "none") for _ in steps
        )
        self.top_down: nn.ModuleList = nn.ModuleList(fusion() for _ in steps)
        self.downsamples: nn.ModuleList = nn.ModuleList(downsample() for _ in steps)
        self.bottom_up: nn.ModuleList = nn.ModuleList(fusion() for _ in steps)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One B×C×H/s×W/s map per level, finest first → the same shapes."""
        *finer, coarse = levels
        descended: list[Tensor] = []
        for lateral, fuse, fine in zip(self.laterals, self.top_down, reversed(finer), strict=True):
            coarse = lateral(coarse)
            descended.append(coarse)
            coarse = fuse(self._joined(F.interpolate(coarse, scale_factor=2.0, mode="nearest"), fine))
        pyramid = [coarse]
        for shrink, fuse, lateral in zip(self.downsamples, self.bottom_up, reversed(descended), strict=True):
            pyramid.append(fuse(self._joined(shrink(pyramid[-1]), lateral)))
        return tuple(pyramid)

    def _joined(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second if self.summed else torch.cat((first, second), dim=1)


class HybridEncoder(nn.Module):
    """Projection of every level to C channels, AIFI on the last, CCFF over all."""

    def __init__(self, in_channels: Sequence[int], dim: int, *, aifi: AIFI, ccff: CCFF) -> None:
        super().__init__()
        self.projections: nn.ModuleList = nn.ModuleList(
            ConvNorm(channels, dim, 1, act="none") for channels in in_channels
        )
        self.aifi = aifi
        self.ccff = ccff

    def f5_path(self) -> dict[str, nn.Module]:
        """What computes F5 from the backbone's last map, in order, by its name in this module."""
        last = len(self.projections) - 1
        return {f"projections.{last}": self.projections[last], "aifi": self.aifi}

    def forward(self, features: Sequence[Tensor]) -> EncoderOutput:
        """The backbone's maps, finest first → pyramid of C channels, and F5."""
        levels = [project(feature) for project, feature in zip(self.projections, features, strict=True)]
        levels[-1] = f5 = self.aifi(levels[-1])
        return EncoderOutput(self.ccff(levels), f5)


class GlobalFusion(nn.Module):
    """Adds the mean of a map to each of its positions, then mixes channels: global context without attention.

    In DEIMv2's lite encoder it takes the place of AIFI, so its output is F5 there.
    """

    def __init__(self, dim: int, act: Activation) -> None:
        super().__init__()
        self.mix: ConvNorm = ConvNorm(dim, dim, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """B×C×h×w → B×C×h×w."""
        return self.mix(x + x.mean(dim=(2, 3), keepdim=True))


class LiteEncoder(nn.Module):
    """Two levels from the backbone's stride-16 map alone: pooled to stride 32, fused top-down and bottom-up by sums.

    References:
        DEIMv2, arXiv 2509.20787: the encoder of Atto, Femto and Pico.

    Args:
        in_channels: channels of the backbone's maps, of which there must be one.
        dim: C, the width of both levels.
        depth: RepVGG blocks in each fusion block's branch.
        expansion: inner width of the fusion blocks.
    """

    def __init__(self, in_channels: Sequence[int], dim: int, *, depth: int, expansion: float, act: Activation) -> None:
        super().__init__()
        (channels,) = in_channels
        self.projections: nn.ModuleList = nn.ModuleList([ConvNorm(channels, dim, 1, act="none")])
        self.pool: nn.AvgPool2d = nn.AvgPool2d(3, stride=2, padding=1)
        self.coarse: ConvNorm = ConvNorm(dim, dim, 1, act=act)
        self.aifi: GlobalFusion = GlobalFusion(dim, act)
        self.top_down: ELANRepBlock = ELANRepBlock(dim, dim, depth, expansion, act)
        self.downsample: ConvNorm = ConvNorm(dim, dim, 1, act=act)
        self.bottom_up: ELANRepBlock = ELANRepBlock(dim, dim, depth, expansion, act)

    def f5_path(self) -> dict[str, nn.Module]:
        """What computes F5 from the backbone's map, in order, by its name in this module."""
        return {
            "projections.0": self.projections[0],
            "pool": self.pool,
            "coarse": self.coarse,
            "aifi": self.aifi,
        }

    def forward(self, features: Sequence[Tensor]) -> EncoderOutput:
        """The backbone's stride-16 map → a pyramid of strides 16 and 32, and F5."""
        (feature,) = features
        fine = self.projections[0](feature)
        f5 = self.aifi(self.coarse(self.pool(fine)))
        fine = self.top_down(fine + F.interpolate(f5, scale_factor=2.0, mode="nearest"))
        return EncoderOutput((fine, self.bottom_up(f5 + self.downsample(self.pool(fine)))), f5)
