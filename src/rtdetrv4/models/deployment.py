"""Forms of a detector's parts that compute the same with less work, for inference only.

Every runtime gains from them, because they change what is computed and not how:

- A convolution of concatenated maps is the sum of one convolution per map. Nothing is copied, and where one map is an
  enlarged one, it is convolved before it is enlarged, at a quarter of the cost.
- Two 1×1 convolutions in a row are one, unless that costs more.
- A cell that query selection must not choose has a constant score and constant features, so no map is masked.
- Sampling points come before queries in memory, so that the sum over points runs along whole rows.
- Linear layers see matrices, which runtimes multiply and add to in one step.

How much that saves is measured by benchmarks/deploy_latency.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models.hgnet import ConvBNAct, HighPerfGpuBlock, StemV2
from torch import Tensor, nn

from rtdetrv4.models.attention import DeformableAttention, SelfAttention
from rtdetrv4.models.detection_model import DetectionModel
from rtdetrv4.models.fusing import Clamp, fold_affine_activations, fuse_conv_norms
from rtdetrv4.models.hybrid_encoder import AIFI, HybridEncoder, sine_cosine_positions
from rtdetrv4.models.layers import MLP, ConvNorm, CSPRepBlock, ELANRepBlock
from rtdetrv4.models.query_selection import QuerySelection, SelectedQueries, anchor_logits
from rtdetrv4.ops.boxes import full_precision
from rtdetrv4.types import EncoderOutput


def without_training_parts(model: DetectionModel) -> DetectionModel:
    """A copy in eval mode: batch norms are folded into convolutions, and what only training uses is dropped."""
    fused = fuse_conv_norms(model, next(model.parameters()).new_zeros(1, 3, 64, 64))
    assert isinstance(fused, DetectionModel)
    fused.denoising = None
    fused.decoder.deploy()
    return fused


def fuse(model: DetectionModel) -> DetectionModel:
    """A copy for deployment, in eval mode, that computes the same with less work."""
    fused = without_training_parts(model)
    fold_affine_activations(fused)
    for name, module in list(fused.backbone.named_modules()):
        if isinstance(module, StemV2):
            fused.backbone.set_submodule(name, DeployedStem(module))
        elif isinstance(module, HighPerfGpuBlock) and isinstance(module.aggregation[1], ConvBNAct):
            fused.backbone.set_submodule(name, DeployedBlock(module))
    encoder = fused.hybrid_encoder
    if isinstance(encoder, HybridEncoder) and encoder.ccff.summed:
        encoder.set_submodule("aifi", DeployedAIFI(encoder.aifi))
    elif isinstance(encoder, HybridEncoder):
        fused.set_submodule("hybrid_encoder", DeployedEncoder(encoder))
    for name, module in list(fused.hybrid_encoder.named_modules()):
        if isinstance(module, ELANRepBlock):
            fused.hybrid_encoder.set_submodule(name, DeployedLoneELAN(module))
    fused.set_submodule("query_selection", DeployedQuerySelection(fused.query_selection))
    for name, module in list(fused.decoder.named_modules()):
        if isinstance(module, SelfAttention):
            fused.decoder.set_submodule(name, DeployedSelfAttention(module))
        elif isinstance(module, DeformableAttention):
            fused.decoder.set_submodule(name, DeployedDeformableAttention(module))
    of_matrices: dict[nn.Module, nn.Module] = {}  # a module may have two names
    for name, module in list(fused.named_modules(remove_duplicate=False)):
        if name.startswith("backbone."):
            continue
        if type(module) is nn.Linear and module not in of_matrices:
            of_matrices[module] = MatrixLinear.from_tensors(module.weight, module.bias)
        elif type(module) is nn.LayerNorm and module not in of_matrices:
            of_matrices[module] = LoneNorm(module)
        if module in of_matrices:
            fused.set_submodule(name, of_matrices[module])
    return fused


class PointLinear(NamedTuple):
    """A 1×1 convolution as a matrix, in float64."""

    weight: Tensor
    """O×I."""
    bias: Tensor
    """(O,)."""

    @classmethod
    def from_tensors(cls, weight: Tensor, bias: Tensor) -> PointLinear:
        """From O×I weights and (O,) biases; on the CPU, as not every device has float64."""
        return cls(weight.detach().cpu().double(), bias.detach().cpu().double())

    @classmethod
    def of(cls, block: ConvNorm) -> PointLinear:
        """The convolution of a block whose norm has been folded into it."""
        conv = block.conv
        assert conv.bias is not None and conv.kernel_size == (1, 1)
        return cls.from_tensors(conv.weight.flatten(1), conv.bias)

    def after(self, first: PointLinear) -> PointLinear:
        """This one applied to the result of `first`."""
        return PointLinear(self.weight @ first.weight, self.weight @ first.bias + self.bias)

    def rows(self, start: int, stop: int) -> PointLinear:
        """The part that makes these output channels."""
        return PointLinear(self.weight[start:stop], self.bias[start:stop])

    def conv(self, like: Tensor, *, bias: bool = True) -> nn.Conv2d:
        """As a module, with the dtype and device of `like`."""
        outputs, inputs = self.weight.shape
        # Made on the meta device, so that no random numbers are drawn for weights that are overwritten.
        conv = nn.Conv2d(inputs, outputs, 1, bias=bias, device="meta", dtype=like.dtype).to_empty(device=like.device)
        conv.weight.data.copy_(self.weight[:, :, None, None])
        if conv.bias is not None:
            conv.bias.data.copy_(self.bias)
        return conv


class SummedConv(nn.Module):
    """A convolution of concatenated maps, as a sum of convolutions."""

    def __init__(self, whole: nn.Conv2d, widths: Sequence[int]) -> None:
        super().__init__()
        assert whole.bias is not None and whole.groups == 1
        self.convs: nn.ModuleList = nn.ModuleList()
        for weight in whole.weight.split(list(widths), dim=1):
            conv = nn.Conv2d(
                weight.shape[1],
                whole.out_channels,
                weight.shape[2],
                whole.stride[0],
                whole.padding[0],  # type: ignore[arg-type]
                bias=len(self.convs) == 0,
                device="meta",
                dtype=weight.dtype,
            ).to_empty(device=weight.device)
            conv.weight.data.copy_(weight)
            if conv.bias is not None:
                conv.bias.data.copy_(whole.bias)
            self.convs.append(conv)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """B×Ci×H×W each → B×O×H'×W'."""
        total, *others = (conv(each) for conv, each in zip(self.convs, maps, strict=True))
        for other in others:
            total = total + other
        return total


class DeployedStem(nn.Module):
    """The stem of HGNetV2, whose two branches are summed instead of concatenated."""

    def __init__(self, stem: StemV2) -> None:
        super().__init__()
        merge: Any = stem.stem3
        _hand_on_clamp(merge, stem.stem4)
        half = merge.conv.in_channels // 2
        self.first: ConvBNAct = stem.stem1
        self.left: ConvBNAct = stem.stem2a
        self.right: ConvBNAct = stem.stem2b
        self.pool: nn.MaxPool2d = stem.pool
        self.merge: SummedConv = SummedConv(merge.conv, [half, half])
        self.act: nn.Module = merge.act
        self.last: ConvBNAct = stem.stem4

    def forward(self, images: Tensor) -> Tensor:
        """B×3×H×W → B×C×H/4×W/4."""
        x = F.pad(self.first(images), (0, 1, 0, 1))
        other = self.right(F.pad(self.left(x), (0, 1, 0, 1)))
        return self.last(self.act(self.merge((self.pool(x), other))))


class DeployedBlock(nn.Module):
    """A block of HGNetV2, whose maps are summed instead of concatenated."""

    def __init__(self, block: HighPerfGpuBlock) -> None:
        super().__init__()
        squeeze: Any = block.aggregation[0]
        self.excite: Any = block.aggregation[1]
        _hand_on_clamp(squeeze, self.excite)
        mid = _width(block.layers[0])
        first = squeeze.conv.in_channels - mid * len(block.layers)
        self.layers: nn.ModuleList = block.layers
        self.is_residual: bool = block.residual
        self.squeeze: SummedConv = SummedConv(squeeze.conv, [first] + [mid] * len(block.layers))
        self.act: nn.Module = squeeze.act

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W → B×C'×H×W."""
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        y = self.excite(self.act(self.squeeze(maps)))
        return y + x if self.is_residual else y


def _width(layer: nn.Module) -> int:
    """The channels of a layer's output."""
    return [part.out_channels for part in layer.modules() if isinstance(part, nn.Conv2d)][-1]


def _hand_on_clamp(block: ConvBNAct, following: ConvBNAct) -> None:
    """Make the clamp of a block a ReLU, in place; the 1×1 convolution after it adds what is missing.

    max(x, b) is relu(x − b) + b, and min(x, b) is b − relu(b − x). Runtimes fuse a ReLU into a sum of convolutions, but
    not every clamp.
    """
    act: nn.Module = block.act
    conv: Any = block.conv
    after: Any = following.conv
    if not isinstance(act, Clamp):
        return
    assert conv.bias is not None and after.bias is not None and after.kernel_size == (1, 1)
    bound, sign = (act.low, 1) if act.low is not None else (act.high, -1)
    assert bound is not None
    conv.weight.data.mul_(sign)
    conv.bias.data.sub_(bound).mul_(sign)
    after.bias.data.add_(bound * after.weight.data.sum(dim=(1, 2, 3)))
    after.weight.data.mul_(sign)
    block.set_submodule("act", nn.ReLU())


class PairConv(nn.Module):
    """A 1×1 convolution and an activation of two concatenated maps, the first of which is enlarged if it is smaller."""

    def __init__(self, of_first: PointLinear, of_second: PointLinear, act: nn.Module, like: Tensor) -> None:
        super().__init__()
        self.of_first: nn.Conv2d = of_first.conv(like, bias=False)
        self.of_second: nn.Conv2d = PointLinear(of_second.weight, of_first.bias + of_second.bias).conv(like)
        self.act = act

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """B×C1×h×w with h×w = H×W or half of it, and B×C2×H×W → B×O×H×W."""
        small = self.of_first(first)
        if small.shape[-1] != second.shape[-1]:
            small = F.interpolate(small, scale_factor=2.0, mode="nearest")
        return self.act(small + self.of_second(second))


class DeployedCSP(nn.Module):
    """A `CSPRepBlock` of two concatenated maps."""

    def __init__(self, block: CSPRepBlock, deep: PairConv, shortcut: PairConv) -> None:
        super().__init__()
        self.deep: PairConv = deep
        self.shortcut: PairConv = shortcut
        self.blocks: nn.Sequential = block.blocks
        self.widen: nn.Identity | ConvNorm = block.widen

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """See `PairConv` → B×C×H×W."""
        return self.widen(self.blocks(self.deep(first, second)) + self.shortcut(first, second))


class DeployedELAN(nn.Module):
    """An `ELANRepBlock` of two concatenated maps."""

    def __init__(self, block: ELANRepBlock, kept: PairConv, passed: PairConv) -> None:
        super().__init__()
        self.kept: PairConv = kept
        self.passed: PairConv = passed
        self.first: nn.Sequential = block.first
        self.second: nn.Sequential = block.second
        widths = [kept.of_second.out_channels] * 2
        inner = (block.merge.conv.in_channels - sum(widths)) // 2
        self.merge: SummedConv = SummedConv(block.merge.conv, [*widths, inner, inner])
        self.act: nn.Module = block.merge.act

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """See `PairConv` → B×C×H×W."""
        passed = self.passed(first, second)
        deep = self.first(passed)
        return self.act(self.merge((self.kept(first, second), passed, deep, self.second(deep))))


class DeployedLoneELAN(nn.Module):
    """An `ELANRepBlock` of one map, whose pieces are summed instead of concatenated."""

    def __init__(self, block: ELANRepBlock) -> None:
        super().__init__()
        both, half = PointLinear.of(block.split), block.split.conv.out_channels // 2
        like = block.split.conv.weight
        self.kept: nn.Conv2d = both.rows(0, half).conv(like)
        self.passed: nn.Conv2d = both.rows(half, 2 * half).conv(like)
        self.first: nn.Sequential = block.first
        self.second: nn.Sequential = block.second
        self.act: nn.Module = block.split.act
        inner = (block.merge.conv.in_channels - 2 * half) // 2
        self.merge: SummedConv = SummedConv(block.merge.conv, [half, half, inner, inner])

    def forward(self, x: Tensor) -> Tensor:
        """B×C×H×W → B×C'×H×W."""
        passed = self.act(self.passed(x))
        deep = self.first(passed)
        return self.act(self.merge((self.act(self.kept(x)), passed, deep, self.second(deep))))


class DeployedAIFI(nn.Module):
    """`AIFI` that goes from maps to tokens by a single transposition."""

    def __init__(self, aifi: AIFI) -> None:
        super().__init__()
        self.attention: DeployedSelfAttention = DeployedSelfAttention(aifi.attention)
        self.norm1: nn.LayerNorm = aifi.norm1
        self.norm2: nn.LayerNorm = aifi.norm2
        self.act: nn.Module = aifi.act
        self.linear1: nn.Linear = aifi.linear1
        self.linear2: nn.Linear = aifi.linear2

    def forward(self, x: Tensor) -> Tensor:
        """B×C×h×w → B×C×h×w."""
        height, width = x.shape[-2:]
        tokens = _rows(x)
        position = sine_cosine_positions(height, width, tokens.shape[-1], device=x.device).to(tokens.dtype)
        tokens = self.norm1(tokens + self.attention(tokens, position))
        tokens = self.norm2(tokens + self.linear2(self.act(self.linear1(tokens))))
        return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class DeployedEncoder(nn.Module):
    """`HybridEncoder` without concatenations; its maps meet in `PairConv`."""

    def __init__(self, encoder: HybridEncoder) -> None:
        super().__init__()
        ccff = encoder.ccff
        *finer, coarsest = list(encoder.projections)
        self.aifi: DeployedAIFI = DeployedAIFI(encoder.aifi)
        self.coarsest_projection = coarsest
        self.downsamples: nn.ModuleList = ccff.downsamples
        self.laterals: nn.ModuleList = nn.ModuleList()
        self.projections: nn.ModuleList = nn.ModuleList()
        self.top_down: nn.ModuleList = nn.ModuleList()
        self.bottom_up: nn.ModuleList = nn.ModuleList()
        linears: list[PointLinear | None] = []
        for lateral, projection, block in zip(ccff.laterals, reversed(finer), ccff.top_down, strict=True):
            linears.append(_linear(lateral))
            before = _linear(projection)
            if before is not None and not _is_cheaper(before, block):
                before = None
            self.laterals.append(lateral if linears[-1] is None else nn.Identity())
            self.projections.append(projection if before is None else nn.Identity())
            self.top_down.append(_deployed_fusion(block, linears[-1], before))
        for block, lateral in zip(ccff.bottom_up, reversed(linears), strict=True):
            self.bottom_up.append(_deployed_fusion(block, None, lateral))

    def forward(self, features: Sequence[Tensor]) -> EncoderOutput:
        """The backbone's maps, finest first → pyramid of C channels, and F5."""
        *finer, last = features
        coarse = f5 = self.aifi(self.coarsest_projection(last))
        descended: list[Tensor] = []
        steps = zip(self.laterals, self.projections, self.top_down, reversed(finer), strict=True)
        for lateral, projection, fuse, fine in steps:
            coarse = lateral(coarse)
            descended.append(coarse)
            coarse = fuse(coarse, projection(fine))
        pyramid = [coarse]
        for shrink, fuse, lateral in zip(self.downsamples, self.bottom_up, reversed(descended), strict=True):
            pyramid.append(fuse(shrink(pyramid[-1]), lateral))
        return EncoderOutput(tuple(pyramid), f5)


def _linear(block: nn.Module) -> PointLinear | None:
    """A block as a matrix, if it is no more than that."""
    assert isinstance(block, ConvNorm)
    return PointLinear.of(block) if isinstance(block.act, nn.Identity) else None


def _entries(block: nn.Module) -> tuple[PointLinear, PointLinear, nn.Module]:
    """The two parallel 1×1 convolutions with which a fusion block begins, and the activation after both."""
    if isinstance(block, ELANRepBlock):
        both, half = PointLinear.of(block.split), block.split.conv.out_channels // 2
        return both.rows(0, half), both.rows(half, 2 * half), block.split.act
    assert isinstance(block, CSPRepBlock)
    return PointLinear.of(block.deep), PointLinear.of(block.shortcut), block.deep.act


def _is_cheaper(projection: PointLinear, block: nn.Module) -> bool:
    """Whether to fold a projection into the convolutions after it: fewer multiplications, or as many and no map."""
    width, inputs = projection.weight.shape
    outputs = sum(len(entry.bias) for entry in _entries(block)[:2])
    return inputs * outputs <= inputs * width + width * outputs


def _deployed_fusion(block: nn.Module, first: PointLinear | None, second: PointLinear | None) -> nn.Module:
    """A fusion block, with 1×1 convolutions of its two maps folded in."""
    one, other, act = _entries(block)
    like = next(block.parameters())

    def pair(entry: PointLinear) -> PairConv:
        width = entry.weight.shape[1] // 2
        halves = [PointLinear(part, torch.zeros_like(entry.bias)) for part in entry.weight.split(width, dim=1)]
        of_first = halves[0] if first is None else halves[0].after(first)
        of_second = halves[1] if second is None else halves[1].after(second)
        return PairConv(of_first, PointLinear(of_second.weight, of_second.bias + entry.bias), act, like)

    if isinstance(block, ELANRepBlock):
        return DeployedELAN(block, pair(one), pair(other))
    assert isinstance(block, CSPRepBlock)
    return DeployedCSP(block, pair(one), pair(other))


class MatrixLinear(nn.Linear):
    """A linear layer that sees its input as a matrix; runtimes then add the bias while they multiply."""

    @classmethod
    def from_tensors(cls, weight: Tensor, bias: Tensor) -> MatrixLinear:
        """With copies of O×I weights and (O,) biases."""
        made = cls(weight.shape[1], weight.shape[0], device="meta", dtype=weight.dtype).to_empty(device=weight.device)
        made.weight.data.copy_(weight)
        made.bias.data.copy_(bias)
        return made

    def forward(self, input: Tensor) -> Tensor:
        """B×N×I → B×N×O."""
        return super().forward(input.flatten(0, 1)).unflatten(0, input.shape[:2])


class LoneNorm(nn.Module):
    """A layer norm that sees its input with one more dimension.

    ONNX Runtime would fuse it with a sum before it into an operator that takes five times as long as both. A reshape to
    a matrix would do that too, but OpenVINO 2026.4 then fails to compile int8 models: it takes the scale of the norm
    for one of quantization, and moves it beyond the next reshape.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """B×N×C → B×N×C."""
        return self.norm(x.unsqueeze(0)).squeeze(0)


class DeployedSelfAttention(nn.Module):
    """`SelfAttention` without a mask, with the scale of the scores in the weights of the queries."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        weights, biases = attention.in_proj.weight.chunk(3), attention.in_proj.bias.chunk(3)
        self.num_heads: int = attention.num_heads
        scale = (len(biases[0]) / self.num_heads) ** -0.5
        self.query: MatrixLinear = MatrixLinear.from_tensors(weights[0] * scale, biases[0] * scale)
        self.key: MatrixLinear = MatrixLinear.from_tensors(weights[1], biases[1])
        self.value: MatrixLinear = MatrixLinear.from_tensors(weights[2], biases[2])
        self.out_proj: nn.Linear = attention.out_proj

    def forward(self, x: Tensor, position: Tensor, allowed: Tensor | None = None) -> Tensor:
        """B×N×C, with positions broadcastable to it → B×N×C."""
        assert allowed is None, "deployed models have no denoising queries"
        placed = x + position
        query, key, value = (
            each.unflatten(-1, (self.num_heads, -1)) for each in (self.query(placed), self.key(placed), self.value(x))
        )
        scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1)
        attended = scores.softmax(dim=-1) @ value.transpose(1, 2)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class DeployedDeformableAttention(nn.Module):
    """`DeformableAttention` that keeps points before queries, and the units of offsets in the weights."""

    def __init__(self, attention: DeformableAttention) -> None:
        super().__init__()
        self.num_heads: int = attention.num_heads
        self.num_points: tuple[int, ...] = attention.num_points
        # Offsets are in units of `unit` times the reference's size, and grids range over 2 from edge to edge.
        unit = 2 * attention.offset_scale * attention.points_share.repeat(self.num_heads).repeat_interleave(2)
        # All x before all y: M×P×2 → 2×M×P.
        order = torch.arange(len(unit)).unflatten(0, (self.num_heads, -1, 2)).permute(2, 0, 1).flatten()
        offsets = attention.sampling_offsets
        self.sampling_offsets: MatrixLinear = MatrixLinear.from_tensors(
            (offsets.weight * unit[:, None])[order], (offsets.bias * unit)[order]
        )
        self.attention_weights: nn.Linear = attention.attention_weights
        self.output_proj: nn.Linear | nn.Identity = attention.output_proj
        self.value_proj: nn.Conv2d | None = None
        if attention.value_proj is not None:
            weight, bias = attention.value_proj.weight, attention.value_proj.bias
            self.value_proj = PointLinear.from_tensors(weight, bias).conv(weight)

    def forward(self, query: Tensor, reference: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """As `DeformableAttention.forward`."""
        num_heads = self.num_heads
        offsets = self.sampling_offsets(query).unflatten(-1, (2, -1))
        weights = self.attention_weights(query).unflatten(-1, (num_heads, -1)).softmax(dim=-1)
        center, size = reference[..., :2, None], reference[..., 2:, None]
        grid = (offsets * size + (2 * center - 1)).unflatten(-1, (num_heads, -1))  # B×Q×2×M×P
        grid = grid.permute(0, 3, 4, 1, 2).flatten(0, 1)  # BM×P×Q×2
        weights = weights.permute(0, 2, 3, 1).flatten(0, 1)[:, None]  # BM×1×P×Q
        levels = pyramid if self.value_proj is None else [self.value_proj(level) for level in pyramid]
        sampled = [
            F.grid_sample(
                level.unflatten(1, (num_heads, -1)).flatten(0, 1),
                points,
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )
            for level, points in zip(levels, grid.split(list(self.num_points), dim=1), strict=True)
        ]
        heads = (torch.cat(sampled, dim=2) * weights).sum(dim=2)  # BM×C/M×Q
        return self.output_proj(heads.unflatten(0, (-1, num_heads)).flatten(1, 2).transpose(1, 2))


class BestScores(nn.Module):
    """The score by which cells are chosen: the best of all classes, or a constant for cells without an anchor."""

    blank: Tensor

    def __init__(self, score_head: nn.Linear, blank: Tensor) -> None:
        super().__init__()
        self.score_head = score_head
        self.register_buffer("blank", score_head(blank).amax().detach(), persistent=False)

    def forward(self, cells: Tensor, valid: Tensor) -> Tensor:
        """Cells B×S×C and whether they have an anchor (S,) → B×S."""
        return torch.where(valid, self.score_head(cells).amax(dim=-1), self.blank)


class DeployedQuerySelection(nn.Module):
    """`QuerySelection` with constants for cells that have no anchor, instead of a mask over all."""

    blank: Tensor

    def __init__(self, selection: QuerySelection) -> None:
        super().__init__()
        self.num_queries: int = selection.num_queries
        self.projection: nn.Linear | nn.Identity = selection.projection
        self.norm: nn.LayerNorm | nn.Identity = selection.norm
        self.score_head: nn.Linear = selection.score_head
        self.box_head: MLP = selection.box_head
        bias = getattr(selection.projection, "bias", None)
        zero = torch.zeros_like(selection.score_head.weight[0])
        blank = selection.norm(bias if isinstance(bias, Tensor) else zero)[None].detach()
        self.register_buffer("blank", blank, persistent=False)
        self.best_scores: BestScores = BestScores(selection.score_head, blank)

    def forward(self, pyramid: Sequence[Tensor]) -> SelectedQueries:
        """Maps B×C×h×w, finest first → the selected queries."""
        shapes = [(level.shape[-2], level.shape[-1]) for level in pyramid]
        anchors = anchor_logits(shapes, device=pyramid[0].device)
        valid = anchors.isfinite().all(dim=-1)
        cells = self.norm(self.projection(torch.cat([_rows(level) for level in pyramid], dim=1)))  # B×S×C
        best = self.best_scores(cells, valid)
        index = best.topk(min(self.num_queries, best.shape[1]), dim=1).indices
        content = cells.gather(1, index[..., None].expand(-1, -1, cells.shape[-1]))
        content = torch.where(valid[index][..., None], content, self.blank)
        reference = full_precision(self.box_head(content)) + anchors[index]
        return SelectedQueries(content, reference, self.score_head(content), reference.sigmoid())


def _rows(level: Tensor) -> Tensor:
    """B×C×h×w → B×h·w×C."""
    return level.permute(0, 2, 3, 1).flatten(1, 2)
