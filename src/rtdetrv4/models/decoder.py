"""Decoders: fine-grained distribution refinement (RT-DETRv4, DEIM, D-FINE), and plain iterative boxes (RT-DETRv2).

References:
    D-FINE, arXiv 2410.13842, section 4; RT-DETR, arXiv 2304.08069; RT-DETRv2, arXiv 2407.17140; DEIMv2, arXiv
    2509.20787 (RMSNorm, SwiGLU, a shared box head, query positions from the first references).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rtdetrv4.models.attention import DeformableAttention, SelfAttention
from rtdetrv4.models.layers import MLP, Activation, GatedSiLU, RMSNorm, activation, match_gradient_layout
from rtdetrv4.models.query_selection import box_head, score_head
from rtdetrv4.ops.boxes import full_precision, inverse_sigmoid
from rtdetrv4.ops.distribution import decode_boxes, expected_offset, weighting
from rtdetrv4.types import HeadOutput

FLOAT16_MAX = 65504.0


def _norm(dim: int, *, rms: bool) -> nn.Module:
    return RMSNorm(dim) if rms else nn.LayerNorm(dim)


class Gate(nn.Module):
    """A learned, per-channel mixture of two streams instead of their sum (D-FINE, section 4.3: "target gating")."""

    def __init__(self, dim: int, *, rms: bool = False) -> None:
        super().__init__()
        self.gate: nn.Linear = nn.Linear(2 * dim, 2 * dim)
        self.norm: nn.Module = _norm(dim, rms=rms)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, residual: Tensor, update: Tensor) -> Tensor:
        """Two B×Q×C → B×Q×C."""
        keep, take = self.gate(torch.cat((residual, update), dim=-1)).sigmoid().chunk(2, dim=-1)
        return self.norm(keep * residual + take * update)


class ResidualNorm(nn.Module):
    """The ordinary post-norm residual sum."""

    def __init__(self, dim: int, *, rms: bool = False) -> None:
        super().__init__()
        self.norm: nn.Module = _norm(dim, rms=rms)

    def forward(self, residual: Tensor, update: Tensor) -> Tensor:
        """Two B×Q×C → B×Q×C."""
        return self.norm(residual + update)


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention into the pyramid, feed-forward.

    Args:
        gated: merge the output of cross-attention through a gate (D-FINE); otherwise through a residual sum.
        project_values: with value and output projections in the cross-attention (RT-DETRv2).
        swiglu: RMSNorm instead of layer norms, and SwiGLU, half as wide, as the feed-forward network (DEIMv2).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        num_points: Sequence[int],
        *,
        gated: bool,
        project_values: bool,
        act: Activation,
        swiglu: bool = False,
    ) -> None:
        super().__init__()
        self.self_attention: SelfAttention = SelfAttention(dim, num_heads)
        self.norm1: nn.Module = _norm(dim, rms=swiglu)
        self.cross_attention: DeformableAttention = DeformableAttention(
            dim, num_heads, num_points, project_values=project_values
        )
        self.mix: Gate | ResidualNorm = (Gate if gated else ResidualNorm)(dim, rms=swiglu)
        self.linear1: nn.Linear = nn.Linear(dim, ffn_dim)
        self.act: GatedSiLU | nn.Module = GatedSiLU() if swiglu else activation(act)
        self.linear2: nn.Linear = nn.Linear(ffn_dim // 2 if swiglu else ffn_dim, dim)
        self.norm3: nn.Module = _norm(dim, rms=swiglu)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)
        if swiglu:
            nn.init.zeros_(self.linear1.bias)
            nn.init.zeros_(self.linear2.bias)

    def forward(
        self, x: Tensor, position: Tensor, reference: Tensor, pyramid: Sequence[Tensor], allowed: Tensor | None
    ) -> Tensor:
        """Queries B×Q×C with positions B×Q×C and reference boxes B×Q×4 → B×Q×C."""
        x = self.norm1(x + self.self_attention(x, position, allowed))
        x = self.mix(x, self.cross_attention(x + position, reference, pyramid))
        x = x + self.linear2(self.act(self.linear1(x)))
        return self.norm3(x.clamp(-FLOAT16_MAX, FLOAT16_MAX))


class LocationQuality(nn.Module):
    """Raises or lowers class logits by how peaked the edge distributions are (LQE; D-FINE, section 4.3)."""

    def __init__(self, act: Activation, num_top: int = 4, hidden_dim: int = 64) -> None:
        super().__init__()
        self.num_top = num_top
        self.mlp: MLP = MLP(4 * (num_top + 1), hidden_dim, 1, 2, act)
        self.mlp.zero_last()

    def forward(self, logits: Tensor, corners: Tensor) -> Tensor:
        """Class logits B×Q×K and edge logits B×Q×4×R → B×Q×K."""
        top = corners.softmax(dim=-1).topk(self.num_top, dim=-1).values
        peaks = torch.cat((top, top.mean(dim=-1, keepdim=True)), dim=-1)
        return logits + self.mlp(peaks.flatten(-2))


class DistributionDecoder(nn.Module):
    """Every layer refines, for each edge, a distribution over offsets from the first layer's box.

    Args:
        layers: the decoder layers; inference runs the first `eval_index + 1`.
        eval_index: the layer whose predictions are used; negative indices count from the end.
        reg_max: R − 1.
        reg_scale: units that a box's width or height is divided into; see `ops.distribution`.
        act: of the box heads and LQE.
        position_layers: depth of the MLP from reference boxes to query positions; 3 layers of width C in DEIMv2, 2 of
            width 2C in D-FINE.
        position_act: of that MLP; None for `act`.
        update_positions: whether query positions follow the references from layer to layer; DEIMv2 keeps the first.
        share_box_head: one box head for all layers.
    """

    weighting: Tensor

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        dim: int,
        num_classes: int,
        *,
        eval_index: int = -1,
        reg_max: int = 32,
        reg_scale: float = 4.0,
        act: Activation,
        position_layers: int = 2,
        position_act: Activation | None = None,
        update_positions: bool = True,
        share_box_head: bool = False,
    ) -> None:
        super().__init__()
        self.reg_scale = reg_scale
        self.update_positions = update_positions
        self.shares_box_head = share_box_head
        self.eval_index: int = range(len(layers))[eval_index]
        self.register_buffer("weighting", weighting(reg_max, reg_scale), persistent=False)
        self.query_position: MLP = _position_head(dim, position_layers, position_act or act)
        self.layers: nn.ModuleList = nn.ModuleList(layers)
        self.pre_box_head: MLP = box_head(dim, 4, act)
        num_box_heads = 1 if share_box_head else len(layers)
        self.box_heads: nn.ModuleList = nn.ModuleList(
            box_head(dim, 4 * (reg_max + 1), act) for _ in range(num_box_heads)
        )
        self.score_heads: nn.ModuleList = nn.ModuleList(score_head(dim, num_classes) for _ in layers)
        self.quality: nn.ModuleList = nn.ModuleList(LocationQuality(act) for _ in layers)

    def forward(
        self, content: Tensor, reference_logits: Tensor, pyramid: Sequence[Tensor], allowed: Tensor | None = None
    ) -> HeadOutput:
        """Decode.

        Args:
            content: B×Q×C.
            reference_logits: B×Q×4, before the sigmoid.
            pyramid: maps B×C×h×w, finest first.
            allowed: Q×Q attention mask, see `denoising.attention_allowed`.

        Returns:
            All layers in train mode; in eval mode only layer `eval_index`, with L = 1 and no `pre_logits`.
        """
        x = content
        # Convert once: grid sampling is in float32, so autocast would convert the maps again in every layer.
        pyramid = [full_precision(match_gradient_layout(level).contiguous()) for level in pyramid]
        reference = reference_logits.sigmoid()
        position = self.query_position(reference).clamp(-10, 10)
        initial, pre_logits, pre_boxes = reference, None, None
        previous: Tensor | None = None
        corners = None
        logits, boxes, distributions = [], [], []
        heads = [self.box_heads[0]] * len(self.layers) if self.shares_box_head else self.box_heads
        for index, (layer, head) in enumerate(zip(self.layers, heads, strict=True)):
            if self.update_positions and index > 0:
                position = self.query_position(reference).clamp(-10, 10)
            x = layer(x, position, reference, pyramid, allowed)
            if index == 0:
                pre_boxes = (full_precision(self.pre_box_head(x)) + inverse_sigmoid(reference)).sigmoid()
                initial = pre_boxes.detach()
                if self.training:
                    pre_logits = self.score_heads[0](x)
            step = full_precision(head(x if previous is None else x + previous)).unflatten(-1, (4, -1))
            corners = step if corners is None else step + corners
            box = decode_boxes(initial, expected_offset(corners, self.weighting), self.reg_scale)
            if self.training or index == self.eval_index:
                logits.append(self.quality[index](self.score_heads[index](x), corners))
                boxes.append(box)
                distributions.append(corners)
                if not self.training:
                    break
            reference, previous = box.detach(), x.detach()
        return HeadOutput(
            torch.stack(logits), torch.stack(boxes), torch.stack(distributions), initial, pre_logits, pre_boxes
        )

    def deploy(self) -> None:
        """Drop what inference does not use: the layers after `eval_index`, and the class heads before it."""
        end = self.eval_index + 1
        self.layers, self.box_heads = self.layers[:end], self.box_heads[:end]
        idle = [nn.Identity() for _ in range(self.eval_index)]
        self.score_heads = nn.ModuleList([*idle, self.score_heads[self.eval_index]])
        self.quality = nn.ModuleList([*idle, self.quality[self.eval_index]])


class BoxDecoder(nn.Module):
    """Every layer refines the boxes of the layer before it (RT-DETRv2).

    Args:
        position_layers: depth of the MLP from reference boxes to query positions; 3 layers of width C in DEIM's
            RT-DETRv2, 2 of width 2C in the original.
    """

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        dim: int,
        num_classes: int,
        *,
        eval_index: int = -1,
        position_layers: int = 2,
        act: Activation,
    ) -> None:
        super().__init__()
        self.eval_index: int = range(len(layers))[eval_index]
        self.query_position: MLP = _position_head(dim, position_layers, act)
        self.layers: nn.ModuleList = nn.ModuleList(layers)
        self.box_heads: nn.ModuleList = nn.ModuleList(box_head(dim, 4, act) for _ in layers)
        self.score_heads: nn.ModuleList = nn.ModuleList(score_head(dim, num_classes) for _ in layers)

    def forward(
        self, content: Tensor, reference_logits: Tensor, pyramid: Sequence[Tensor], allowed: Tensor | None = None
    ) -> HeadOutput:
        """As `DistributionDecoder.forward`, without distributions and `pre_…`."""
        x = content
        reference = reference_logits.sigmoid()
        attached: Tensor = reference
        logits, boxes = [], []
        for index, (layer, head) in enumerate(zip(self.layers, self.box_heads, strict=True)):
            x = layer(x, self.query_position(reference), reference, pyramid, allowed)
            step = full_precision(head(x))
            if self.training or index == self.eval_index:
                # "Look forward twice": a layer's box also trains the layer before it.
                boxes.append((step + inverse_sigmoid(attached)).sigmoid())
                logits.append(self.score_heads[index](x))
                if not self.training:
                    break
            attached = (step + inverse_sigmoid(reference)).sigmoid()
            reference = attached.detach()
        return HeadOutput(torch.stack(logits), torch.stack(boxes))

    def deploy(self) -> None:
        """Drop what inference does not use: the layers after `eval_index`, and the class heads before it."""
        end = self.eval_index + 1
        self.layers, self.box_heads = self.layers[:end], self.box_heads[:end]
        idle = [nn.Identity() for _ in range(self.eval_index)]
        self.score_heads = nn.ModuleList([*idle, self.score_heads[self.eval_index]])


def _position_head(dim: int, num_layers: int, act: Activation) -> MLP:
    """An MLP from reference boxes to query positions."""
    head = MLP(4, dim if num_layers == 3 else 2 * dim, dim, num_layers, act)
    for parameter in head.parameters():
        if parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
    return head
