"""Tensor names of released checkpoints (RT-DETRv4, DEIM, DEIMv2, D-FINE, RT-DETRv2) ↔ ours, from one table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from rtdetrv4.errors import WeightsError
from rtdetrv4.models import DecoderLayer, DetectionModel, DistributionDecoder
from rtdetrv4.models.backbone import FrozenNorm
from rtdetrv4.models.decoder import Gate
from rtdetrv4.models.hybrid_encoder import LiteEncoder
from rtdetrv4.models.layers import GatedSiLU
from rtdetrv4.models.query_selection import anchor_logits
from rtdetrv4.weights.renaming import CSP, Renaming, Row, prefixed

_ATTENTION: list[Row] = [
    ("self_attn.in_proj_weight", "{attention}.in_proj.weight"),
    ("self_attn.in_proj_bias", "{attention}.in_proj.bias"),
    ("self_attn.out_proj.{rest}", "{attention}.out_proj.{rest}"),
]


def _fusion(released: str, ours: str) -> list[Row]:
    return [
        *prefixed(released, ours, CSP),
        (released + "cv1.{rest}", ours + "split.{rest}"),
        *prefixed(released + "cv2.0.", ours + "first.0.", CSP),
        (released + "cv2.1.{rest}", ours + "first.1.{rest}"),
        *prefixed(released + "cv3.0.", ours + "second.0.", CSP),
        (released + "cv3.1.{rest}", ours + "second.1.{rest}"),
        (released + "cv4.{rest}", ours + "merge.{rest}"),
    ]


_RESNET_BLOCK: list[Row] = [
    (f"branch2{letter}.{released}.{{rest}}", f"{ours}{number}.{{rest}}")
    for number, letter in enumerate("abc", start=1)
    for released, ours in (("conv", "conv"), ("norm", "bn"))
]
_RESNET_SHORTCUT: list[Row] = [("conv.{rest}", "downsample.1.{rest}"), ("norm.{rest}", "downsample.2.{rest}")]

_BACKBONE: list[Row] = [
    ("backbone.stem.{rest}", "backbone.body.stem.{rest}"),
    ("backbone.stages.{i}.{rest}", "backbone.body.stages_{i}.{rest}"),
    ("backbone.conv1.conv1_1.conv.{rest}", "backbone.body.conv1.0.{rest}"),
    ("backbone.conv1.conv1_1.norm.{rest}", "backbone.body.conv1.1.{rest}"),
    ("backbone.conv1.conv1_2.conv.{rest}", "backbone.body.conv1.3.{rest}"),
    ("backbone.conv1.conv1_2.norm.{rest}", "backbone.body.conv1.4.{rest}"),
    ("backbone.conv1.conv1_3.conv.{rest}", "backbone.body.conv1.6.{rest}"),
    ("backbone.conv1.conv1_3.norm.{rest}", "backbone.body.bn1.{rest}"),
    *(
        row
        for stage in range(4)
        # From the second stage on, shortcuts pool before the convolution, which adds a level to the name.
        for block, rows in (("", _RESNET_BLOCK), ("short." if stage == 0 else "short.conv.", _RESNET_SHORTCUT))
        for row in prefixed(
            f"backbone.res_layers.{stage}.blocks.{{i}}.{block}", f"backbone.body.layer{stage + 1}.{{i}}.", rows
        )
    ),
]

_ENCODER: list[Row] = [
    # LibreYOLO's copies of RT-DETRv2 number the two.
    *(
        (f"encoder.input_proj.{{i}}.{released}.{{rest}}", f"hybrid_encoder.projections.{{i}}.{ours}.{{rest}}")
        for released, ours in (("conv", "conv"), ("norm", "norm"), ("0", "conv"), ("1", "norm"))
    ),
    ("encoder.bi_fusion.cv.{rest}", "hybrid_encoder.aifi.mix.{rest}"),  # in the place of AIFI in DEIMv2's lite encoder
    *prefixed("encoder.encoder.0.layers.0.", "hybrid_encoder.aifi.", _ATTENTION, attention="attention"),
    ("encoder.encoder.0.layers.0.{rest}", "hybrid_encoder.aifi.{rest}"),
    ("encoder.lateral_convs.{i}.{rest}", "hybrid_encoder.ccff.laterals.{i}.{rest}"),
    *_fusion("encoder.fpn_blocks.{i}.", "hybrid_encoder.ccff.top_down.{i}."),
    ("encoder.downsample_convs.{i}.0.cv1.{rest}", "hybrid_encoder.ccff.downsamples.{i}.0.{rest}"),
    ("encoder.downsample_convs.{i}.0.cv2.{rest}", "hybrid_encoder.ccff.downsamples.{i}.1.{rest}"),
    ("encoder.downsample_convs.{i}.{rest}", "hybrid_encoder.ccff.downsamples.{i}.{rest}"),
    *_fusion("encoder.pan_blocks.{i}.", "hybrid_encoder.ccff.bottom_up.{i}."),
    # DEIMv2's lite encoder.
    *(
        (f"encoder.{released}.{number}.{{rest}}", f"hybrid_encoder.{ours}.{part}.{{rest}}")
        for released, ours in (("down_sample1", "coarse"), ("down_sample2", "downsample"))
        for number, part in ((1, "conv"), (2, "norm"))
    ),
    *_fusion("encoder.fpn_block.", "hybrid_encoder.top_down."),
    *_fusion("encoder.pan_block.", "hybrid_encoder.bottom_up."),
    ("encoder.feature_projector.0.{rest}", "injector.projector.{rest}"),
]

_DECODER_LAYER: list[Row] = [
    *_ATTENTION,
    ("cross_attn.{rest}", "cross_attention.{rest}"),
    ("gateway.{rest}", "mix.{rest}"),
    ("norm2.{rest}", "mix.norm.{rest}"),
    ("{rest}", "{rest}"),
]

# DEIMv2 names the weights of its norms otherwise, and has another feed-forward network.
_SWIGLU_LAYER: list[Row] = [
    ("norm1.scale", "norm1.weight"),
    ("norm3.scale", "norm3.weight"),
    ("gateway.norm.scale", "mix.norm.weight"),
    ("norm2.scale", "mix.norm.weight"),
    ("swish_ffn.w12.{rest}", "linear1.{rest}"),
    ("swish_ffn.w3.{rest}", "linear2.{rest}"),
]

_DECODER: list[Row] = [
    ("decoder.input_proj.{i}.{rest}", "memory_projections.{i}.{rest}"),
    ("decoder.enc_output.proj.{rest}", "query_selection.projection.{rest}"),
    ("decoder.enc_output.norm.{rest}", "query_selection.norm.{rest}"),
    ("decoder.enc_score_head.{rest}", "query_selection.score_head.{rest}"),
    ("decoder.enc_bbox_head.{rest}", "query_selection.box_head.{rest}"),
    ("decoder.denoising_class_embed.{rest}", "denoising.class_embedding.{rest}"),
    ("decoder.query_pos_head.{rest}", "decoder.query_position.{rest}"),
    ("decoder.pre_bbox_head.{rest}", "decoder.pre_box_head.{rest}"),
    ("decoder.dec_score_head.{i}.{rest}", "decoder.score_heads.{i}.{rest}"),
    ("decoder.dec_bbox_head.{i}.{rest}", "decoder.box_heads.{i}.{rest}"),
    ("decoder.decoder.lqe_layers.{i}.reg_conf.{rest}", "decoder.quality.{i}.mlp.{rest}"),
    *prefixed("decoder.decoder.layers.{i}.", "decoder.layers.{i}.", _DECODER_LAYER, attention="self_attention"),
]

TABLE: tuple[Row, ...] = (*_BACKBONE, *_ENCODER, *_DECODER)
DEIMV2_TABLE: tuple[Row, ...] = (*prefixed("decoder.decoder.layers.{i}.", "decoder.layers.{i}.", _SWIGLU_LAYER), *TABLE)

#: Constants that the released code stores, but ours computes from the input size and the recipe.
CONSTANTS = (
    "decoder.up",
    "decoder.reg_scale",
    "decoder.anchors",
    "decoder.valid_mask",
    "decoder.decoder.up",
    "decoder.decoder.reg_scale",
    "num_points_scale",
)

_RENAMING = Renaming(TABLE)
_DEIMV2_RENAMING = Renaming(DEIMV2_TABLE)

#: DEIMv2 has the two 1×1 convolutions of a `CSPRepBlock` in one, the shortcut first.
_STACKED = re.compile(r"(.+\.cv[23]\.0\.)conv1(\..+)")
_BOX_HEAD = re.compile(r"decoder\.dec_bbox_head\.(\d+)(\..+)")


def our_name(released: str) -> str | None:
    """Return our name for a released tensor, or None for a constant that ours computes.

    Raises:
        WeightsError: no row of the table fits.
    """
    if released.endswith(CONSTANTS):
        return None
    if ours := _DEIMV2_RENAMING.to_ours(released):
        return ours
    raise WeightsError(
        f'The checkpoint has a tensor "{released}", which no released RT-DETRv4, DEIM, DEIMv2, D-FINE or RT-DETRv2 '
        "model has. Give a checkpoint of one of these, or one written by this package."
    )


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a released state dict under our names; `injector.…` holds DSI's projector, if the file has it."""
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if any(".swish_ffn." in name for name in state):
        state = _one_box_head(_unstacked(state))
    ours = ((our_name(released), tensor) for released, tensor in state.items())
    return {name: tensor for name, tensor in ours if name is not None}


def _unstacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and tensors with both convolutions of `CSPRepBlock`, as the other models have them."""
    parts: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if (match := _STACKED.fullmatch(name)) is None:
            parts[name] = tensor
        else:
            shortcut, deep = tensor.chunk(2) if tensor.ndim else (tensor, tensor)  # not a counter of batches
            parts |= {f"{match[1]}conv1{match[2]}": deep, f"{match[1]}conv2{match[2]}": shortcut}
    return parts


def _stacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_unstacked`."""
    whole = dict(state)
    for name, deep in state.items():
        if match := _STACKED.fullmatch(name):
            shortcut = whole.pop(f"{match[1]}conv2{match[2]}")
            whole[name] = torch.cat((shortcut, deep)) if deep.ndim else deep
    return whole


def _one_box_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the copies of a shared box head, which files in safetensors leave out themselves."""
    if not any(name.startswith("encoder.bi_fusion.") for name in state):
        return dict(state)
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _BOX_HEAD.fullmatch(name)
        kept_name = name if match is None else f"decoder.dec_bbox_head.0{match[2]}"
        require_shared(kept.setdefault(kept_name, tensor), tensor, name)
    return kept


def require_shared(first: Tensor, other: Tensor, name: str) -> None:
    """Raise unless two copies of a shared tensor are equal."""
    if not (first is other or first.is_meta or torch.equal(first, other)):
        raise WeightsError(
            f'The checkpoint has a box head of its own in each decoder layer ("{name}" differs), which '
            "no DEIMv2 model with a lite encoder has."
        )


def looks_released(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the released code."""
    return any(name.removeprefix("module.").startswith("encoder.input_proj.") for name in state)


def to_released(
    model: DetectionModel, image_size: tuple[int, int] = (640, 640), injector: nn.Module | None = None
) -> dict[str, Tensor]:
    """Return the state dict that the released code has for this model, constants included.

    Args:
        model: must not be fused.
        image_size: (height, width) for which the released code stores anchors.
        injector: the projector of DSI, if the released checkpoint should contain it.

    Raises:
        WeightsError: the released code cannot compute what the model computes.
    """
    layer, decoder = model.decoder.layers[0], model.decoder
    assert isinstance(layer, DecoderLayer)
    is_deimv2 = isinstance(layer.act, GatedSiLU)
    if is_deimv2 and not isinstance(model.query_selection.projection, nn.Identity):
        raise WeightsError(
            "The released code has no such model: this one is DEIMv2 as transformers computes it, with a projection "
            "in query selection. Only deimv2-… without -hf can be converted."
        )
    uncounted = counters_of_frozen_norms(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in uncounted}
    if injector is not None:
        state |= {f"injector.{name}": tensor for name, tensor in injector.state_dict().items()}
    gated = isinstance(layer.mix, Gate)
    released = {released_name(name, gated, is_deimv2): tensor for name, tensor in state.items()}
    if is_deimv2:
        released = _stacked(released)
    if isinstance(decoder, DistributionDecoder) and decoder.shares_box_head:
        heads = {match[2]: tensor for name, tensor in released.items() if (match := _BOX_HEAD.fullmatch(name))}
        copies = range(1, len(decoder.layers))
        released |= {f"decoder.dec_bbox_head.{i}{rest}": tensor for i in copies for rest, tensor in heads.items()}
    return released | dict(_constants(model, image_size))


def released_name(ours: str, gated: bool, is_deimv2: bool = False) -> str:
    """Return the released name of one of our tensors.

    Args:
        ours: a name in a detector's state dict, or `injector.projector.…`.
        gated: whether the detector has gates in its decoder layers, as D-FINE.
        is_deimv2: whether it is a DEIMv2.
    """
    released = (_DEIMV2_RENAMING if is_deimv2 else _RENAMING).to_theirs(ours)
    assert released is not None, f"{ours} has no row in the table"
    # The norm after a gate and the norm after a residual sum have two released names, but one name here.
    return released if gated else released.replace(".gateway.norm.", ".norm2.")


def counters_of_frozen_norms(model: nn.Module) -> set[str]:
    """Return our tensors that neither the released code nor transformers has: batch counters of frozen norms."""
    return {f"{name}.num_batches_tracked" for name, module in model.named_modules() if isinstance(module, FrozenNorm)}


def pyramid_strides(model: DetectionModel) -> list[int]:
    """Return the strides of the maps that the decoder samples."""
    strides = list(model.backbone.strides)
    return [*strides, 2 * strides[-1]] if isinstance(model.hybrid_encoder, LiteEncoder) else strides


def _constants(model: DetectionModel, image_size: tuple[int, int]) -> Iterator[tuple[str, Tensor]]:
    shapes = [(image_size[0] // stride, image_size[1] // stride) for stride in pyramid_strides(model)]
    anchors = anchor_logits(shapes, device=torch.device("cpu"))[None]
    yield "decoder.anchors", anchors
    yield "decoder.valid_mask", anchors.isfinite().all(dim=-1, keepdim=True)
    if isinstance(model.decoder, DistributionDecoder):
        for prefix in ("decoder", "decoder.decoder"):
            yield f"{prefix}.up", torch.tensor([0.5])
            yield f"{prefix}.reg_scale", torch.tensor([float(model.decoder.reg_scale)])
    for index, layer in enumerate(model.decoder.layers):
        assert isinstance(layer, DecoderLayer)
        yield f"decoder.decoder.layers.{index}.cross_attn.num_points_scale", layer.cross_attention.points_share
