"""Tensor names of transformers' D-FINE, RT-DETRv2 and DEIMv2 (`…ForObjectDetection`) ↔ ours, and their folders.

The names are those in transformers' files. Version 5 uses a few others in memory, which are read as well. Nothing here
imports transformers.

transformers has D-FINE with ReLU, and RT-DETRv2, both predicting with the last decoder layer: `dfine-…` and
`rtdetrv2-…`, except for rtdetrv2-r50m, which predicts with its third layer. RT-DETRv4 and DEIM have SiLU in the
decoder's heads, for which transformers has no setting. Its DEIMv2 has a projection in query selection, ReLU in the
heads and query positions that follow the references, none of which the authors' has: `deimv2-…-hf`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rtdetrv4.errors import WeightsError
from rtdetrv4.input_files import read_file
from rtdetrv4.json_text import load_json
from rtdetrv4.models import DecoderLayer, DetectionModel, DistributionDecoder
from rtdetrv4.models.backbone import FrozenNorm
from rtdetrv4.models.decoder import Gate
from rtdetrv4.models.hybrid_encoder import HybridEncoder, LiteEncoder
from rtdetrv4.models.layers import GatedSiLU
from rtdetrv4.weights.catalog import classes_of
from rtdetrv4.weights.convert import counters_of_frozen_norms, require_shared
from rtdetrv4.weights.renaming import CSP, Renaming, Row, prefixed

#: Names of the files in a transformers model folder.
TENSORS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 16 << 20
PROCESSOR_FILE = "preprocessor_config.json"
TRANSFORMERS_FILES = (TENSORS_FILE, CONFIG_FILE, PROCESSOR_FILE)

_BACKBONE = "model.backbone.model."
_HEADS = ("model.decoder.class_embed.", "model.decoder.bbox_embed.")


def _numbered(theirs: str, ours: str) -> list[Row]:
    """Rows for a convolution and its norm, which transformers numbers."""
    return [(theirs + "0.{rest}", ours + "conv.{rest}"), (theirs + "1.{rest}", ours + "norm.{rest}")]


def _named(theirs: str, ours_conv: str, ours_norm: str) -> list[Row]:
    """Rows for a convolution and its norm in a backbone."""
    return [
        (theirs + "convolution.{rest}", ours_conv + ".{rest}"),
        (theirs + "normalization.{rest}", ours_norm + ".{rest}"),
    ]


# transformers has separate matrices for queries, keys and values; `qkv_proj` stands for the three of them stacked.
_LAYER: list[Row] = [
    ("self_attn.qkv_proj.{rest}", "{attention}.in_proj.{rest}"),
    ("self_attn.out_proj.{rest}", "{attention}.out_proj.{rest}"),
    ("self_attn_layer_norm.{rest}", "norm1.{rest}"),
    ("fc1.{rest}", "linear1.{rest}"),
    ("fc2.{rest}", "linear2.{rest}"),
    ("final_layer_norm.{rest}", "{last_norm}.{rest}"),
]

_COMMON: list[Row] = [
    *_numbered("model.encoder_input_proj.{i}.", "hybrid_encoder.projections.{i}."),
    *prefixed(
        "model.encoder.encoder.0.layers.0.", "hybrid_encoder.aifi.", _LAYER, attention="attention", last_norm="norm2"
    ),
    ("model.encoder.lateral_convs.{i}.{rest}", "hybrid_encoder.ccff.laterals.{i}.{rest}"),
    *_numbered("model.decoder_input_proj.{i}.", "memory_projections.{i}."),
    ("model.denoising_class_embed.{rest}", "denoising.class_embedding.{rest}"),
    ("model.enc_output.0.{rest}", "query_selection.projection.{rest}"),
    ("model.enc_output.1.{rest}", "query_selection.norm.{rest}"),
    ("model.enc_score_head.{rest}", "query_selection.score_head.{rest}"),
    ("model.enc_bbox_head.{rest}", "query_selection.box_head.{rest}"),
    ("model.decoder.query_pos_head.{rest}", "decoder.query_position.{rest}"),
    ("model.decoder.class_embed.{i}.{rest}", "decoder.score_heads.{i}.{rest}"),
    ("model.decoder.bbox_embed.{i}.{rest}", "decoder.box_heads.{i}.{rest}"),
    *prefixed(
        "model.decoder.layers.{i}.", "decoder.layers.{i}.", _LAYER, attention="self_attention", last_norm="norm3"
    ),
    ("model.decoder.layers.{i}.encoder_attn.{rest}", "decoder.layers.{i}.cross_attention.{rest}"),
]

_ELAN: list[Row] = [
    ("conv1.{rest}", "split.{rest}"),
    *prefixed("csp_rep1.", "first.0.", CSP),
    ("conv2.{rest}", "first.1.{rest}"),
    *prefixed("csp_rep2.", "second.0.", CSP),
    ("conv3.{rest}", "second.1.{rest}"),
    ("conv4.{rest}", "merge.{rest}"),
]

_DFINE = Renaming(
    [
        *_COMMON,
        *(
            row
            for theirs, ours in (
                ("embedder.{path}.", "backbone.body.stem.{path}."),
                ("encoder.stages.{i}.{path}.", "backbone.body.stages_{i}.{path}."),
            )
            for row in (
                *_named(_BACKBONE + theirs, ours + "conv", ours + "bn"),
                (_BACKBONE + theirs + "lab.{rest}", ours + "lab.{rest}"),
            )
        ),
        *prefixed("model.encoder.fpn_blocks.{i}.", "hybrid_encoder.ccff.top_down.{i}.", _ELAN),
        ("model.encoder.downsample_convs.{i}.conv1.{rest}", "hybrid_encoder.ccff.downsamples.{i}.0.{rest}"),
        ("model.encoder.downsample_convs.{i}.conv2.{rest}", "hybrid_encoder.ccff.downsamples.{i}.1.{rest}"),
        *prefixed("model.encoder.pan_blocks.{i}.", "hybrid_encoder.ccff.bottom_up.{i}.", _ELAN),
        ("model.decoder.layers.{i}.gateway.{rest}", "decoder.layers.{i}.mix.{rest}"),
        ("model.decoder.pre_bbox_head.{rest}", "decoder.pre_box_head.{rest}"),
        ("model.decoder.lqe_layers.{i}.reg_conf.{rest}", "decoder.quality.{i}.mlp.{rest}"),
    ]
)

_RTDETRV2 = Renaming(
    [
        *_COMMON,
        *_named(_BACKBONE + "embedder.embedder.0.", "backbone.body.conv1.0", "backbone.body.conv1.1"),
        *_named(_BACKBONE + "embedder.embedder.1.", "backbone.body.conv1.3", "backbone.body.conv1.4"),
        *_named(_BACKBONE + "embedder.embedder.2.", "backbone.body.conv1.6", "backbone.body.bn1"),
        *(
            row
            for stage in range(4)
            # From the second stage on, shortcuts pool before the convolution, which adds a number to the name.
            for part, conv, norm in (
                *((f"layer.{n}.", f"conv{n + 1}", f"bn{n + 1}") for n in range(3)),
                ("shortcut." if stage == 0 else "shortcut.1.", "downsample.1", "downsample.2"),
            )
            for row in _named(
                f"{_BACKBONE}encoder.stages.{stage}.layers.{{i}}.{part}",
                f"backbone.body.layer{stage + 1}.{{i}}.{conv}",
                f"backbone.body.layer{stage + 1}.{{i}}.{norm}",
            )
        ),
        *prefixed("model.encoder.fpn_blocks.{i}.", "hybrid_encoder.ccff.top_down.{i}.", CSP),
        ("model.encoder.downsample_convs.{i}.{rest}", "hybrid_encoder.ccff.downsamples.{i}.{rest}"),
        *prefixed("model.encoder.pan_blocks.{i}.", "hybrid_encoder.ccff.bottom_up.{i}.", CSP),
        ("model.decoder.layers.{i}.encoder_attn_layer_norm.{rest}", "decoder.layers.{i}.mix.norm.{rest}"),
    ]
)

_LITE_ELAN: list[Row] = [
    ("conv1.{rest}", "split.{rest}"),
    *(
        row
        for number, ours in ((1, "first"), (2, "second"))
        for row in (
            (f"csp_rep{number}.conv2.{{rest}}", f"{ours}.1.{{rest}}"),
            # Both 1×1 convolutions of the block are one in files; see `_split`.
            *prefixed(
                f"csp_rep{number}.",
                f"{ours}.0.",
                (("deep.{rest}", "deep.{rest}"), ("shortcut.{rest}", "shortcut.{rest}")),
            ),
            (f"csp_rep{number}.bottlenecks.{{j}}.conv1.{{rest}}", f"{ours}.0.blocks.{{j}}.conv3x3.{{rest}}"),
            (f"csp_rep{number}.bottlenecks.{{j}}.conv2.{{rest}}", f"{ours}.0.blocks.{{j}}.conv1x1.{{rest}}"),
        )
    ),
    ("conv2.{rest}", "merge.{rest}"),
]
_V2_BACKBONE = "model.conv_encoder.model."

_DEIMV2 = Renaming(
    [
        *(
            row
            for theirs, ours in (
                ("embedder.{path}.", "backbone.body.stem.{path}."),
                ("encoder.stages.{i}.{path}.", "backbone.body.stages_{i}.{path}."),
            )
            for row in (
                *_named(_V2_BACKBONE + theirs, ours + "conv", ours + "bn"),
                (_V2_BACKBONE + theirs + "lab.{rest}", ours + "lab.{rest}"),
            )
        ),
        ("model.conv_encoder.encoder_input_proj.{i}.{rest}", "hybrid_encoder.projections.{i}.{rest}"),
        *(
            (f"model.encoder.aifi.0.layers.0.{theirs}.{{rest}}", f"hybrid_encoder.aifi.{ours}.{{rest}}")
            for theirs, ours in (
                ("self_attn.qkv_proj", "attention.in_proj"),
                ("self_attn.o_proj", "attention.out_proj"),
                ("self_attn_layer_norm", "norm1"),
                ("mlp.layers.0", "linear1"),
                ("mlp.layers.1", "linear2"),
                ("final_layer_norm", "norm2"),
            )
        ),
        ("model.encoder.lateral_convs.{i}.{rest}", "hybrid_encoder.ccff.laterals.{i}.{rest}"),
        *prefixed("model.encoder.fpn_blocks.{i}.", "hybrid_encoder.ccff.top_down.{i}.", _LITE_ELAN),
        ("model.encoder.downsample_convs.{i}.conv1.{rest}", "hybrid_encoder.ccff.downsamples.{i}.0.{rest}"),
        ("model.encoder.downsample_convs.{i}.conv2.{rest}", "hybrid_encoder.ccff.downsamples.{i}.1.{rest}"),
        *prefixed("model.encoder.pan_blocks.{i}.", "hybrid_encoder.ccff.bottom_up.{i}.", _LITE_ELAN),
        ("model.encoder.input_proj.{i}.{rest}", "hybrid_encoder.projections.{i}.{rest}"),
        ("model.encoder.down_conv1.{rest}", "hybrid_encoder.coarse.{rest}"),
        ("model.encoder.bi_fusion_conv.{rest}", "hybrid_encoder.aifi.mix.{rest}"),
        *prefixed("model.encoder.fpn_block.", "hybrid_encoder.top_down.", _LITE_ELAN),
        ("model.encoder.down_conv2.{rest}", "hybrid_encoder.downsample.{rest}"),
        *prefixed("model.encoder.pan_block.", "hybrid_encoder.bottom_up.", _LITE_ELAN),
        *(
            (f"model.decoder.layers.{{i}}.{theirs}.{{rest}}", f"decoder.layers.{{i}}.{ours}.{{rest}}")
            for theirs, ours in (
                ("self_attn.qkv_proj", "self_attention.in_proj"),
                ("self_attn.o_proj", "self_attention.out_proj"),
                ("self_attn_layer_norm", "norm1"),
                ("encoder_attn", "cross_attention"),
                ("gateway", "mix"),
                ("encoder_attn_layer_norm", "mix.norm"),
                ("mlp.gate_up_proj", "linear1"),
                ("mlp.down_proj", "linear2"),
                ("final_layer_norm", "norm3"),
            )
        ),
        *(
            row
            for row in _COMMON
            if row[0].startswith(("model.enc_", "model.denoising", "model.decoder.query_pos_head"))
        ),
        *(row for row in _COMMON if row[0].startswith(_HEADS)),
        ("model.decoder.pre_bbox_head.{rest}", "decoder.pre_box_head.{rest}"),
        ("model.decoder.lqe_layers.{i}.reg_conf.{rest}", "decoder.quality.{i}.mlp.{rest}"),
    ]
)

#: Constants that transformers stores, but ours computes from the input size and the recipe.
CONSTANTS = (
    ".num_points_scale",
    ".n_points_scale",
    "model.decoder.up",
    "model.decoder.reg_scale",
    "model.anchors",
    "model.valid_mask",
)

_IN_MEMORY = (
    (re.compile(r"\.self_attn\.o_proj\."), ".self_attn.out_proj."),
    (re.compile(r"\.mlp\.(fc1|layers\.0)\."), ".fc1."),
    (re.compile(r"\.mlp\.(fc2|layers\.1)\."), ".fc2."),
    (re.compile(r"\.encoder\.aifi\."), ".encoder.encoder."),
)
"""Names that transformers 5 uses in memory, and those in its files."""

#: Settings of a config.json that cannot be seen in the tensors; with other values our models would compute something
#: else. These are transformers' defaults, which a config.json may leave out.
_ASSUMED: Mapping[str, Any] = {
    "activation_function": "silu",
    "decoder_activation_function": "relu",
    "decoder_method": "default",
    "decoder_offset_scale": 0.5,
    "encoder_activation_function": "gelu",
    "eval_idx": -1,
    "normalize_before": False,
    "positional_encoding_temperature": 10000,
    "top_prob_values": 4,
    "up": 0.5,
}


_ENCODER_ASSUMED: Mapping[str, Any] = {
    "batch_norm_eps": 1e-5,
    "encoder_attention_heads": 8,
    "eval_size": None,  # with a size for evaluation, transformers computes AIFI without positions
    "layer_norm_eps": 1e-5,
}
"""The same of models with AIFI."""
_DEIMV2_ASSUMED: Mapping[str, Any] = {
    **_ASSUMED,
    "decoder_activation_function": "silu",
    "encoder_fuse_op": "sum",
    "encoder_has_trailing_conv": True,
    "layer_scale": 1,
    "learn_initial_query": False,
    "lqe_layers": 2,
}
"""As `_ASSUMED`, for DEIMv2."""
_DEIMV2_DEFAULTS: Mapping[str, Any] = {
    **_DEIMV2_ASSUMED,
    "decoder_activation_function": "relu",
    "encoder_type": "hybrid",
    "eval_size": None,
    "share_bbox_head": False,
    "use_gateway": True,
}
"""What transformers takes for settings that a config.json of DEIMv2 leaves out."""

_SHARED_HEAD = re.compile(r"(model\.decoder\.bbox_embed\.)\d+(\..+)")
_V2_STACKS = (
    (re.compile(r"(.+\.csp_rep\d\.)conv1(\..+)"), ("shortcut", "deep")),
    (re.compile(r"(.+\.mlp\.)gate_up_proj(\..+)"), ("gate_proj", "up_proj")),
)
"""What is one tensor in one of the two codes and two in the other."""


def file_name(name: str) -> str:
    """Return the name in transformers' files for a name in a file or in memory."""
    if name.startswith("model.conv_encoder."):
        return name
    for pattern, replacement in _IN_MEMORY:
        name = pattern.sub(replacement, name)
    return name


def looks_transformers(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of transformers' RT-DETR family."""
    return any(name.startswith(("model.encoder_input_proj.", "model.conv_encoder.")) for name in state)


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of transformers' D-FINE, RT-DETRv2 or DEIMv2 under our names.

    Args:
        state: read from a file, or the model's `state_dict()`.

    Raises:
        WeightsError: none of them has a tensor of this name.
    """
    is_deimv2 = any(name.startswith("model.conv_encoder.") for name in state)
    if not is_deimv2:  # whose files have the names in memory
        state = {file_name(name): tensor for name, tensor in state.items()}
    # Heads have two names, of which files may leave one out; the decoder's is the one that predicts.
    tied = {f"model.decoder.{name}": tensor for name, tensor in state.items() if not name.startswith("model.")}
    state = _stacked(tied | {name: tensor for name, tensor in state.items() if name.startswith("model.")})
    if is_deimv2:
        state = _deimv2_parts(state)
        renaming = _DEIMV2
    else:
        renaming = _DFINE if any(name.startswith("model.decoder.lqe_layers.") for name in state) else _RTDETRV2
    ours = {}
    for name, tensor in state.items():
        if name.endswith(CONSTANTS):
            continue
        if (our_name := renaming.to_ours(name)) is None:
            raise WeightsError(
                f'The checkpoint has a tensor "{name}", which no D-FINE, RT-DETRv2 or DEIMv2 with HGNetV2 of '
                "transformers has. Give weights of DFineForObjectDetection, RTDetrV2ForObjectDetection or "
                "Deimv2ForObjectDetection."
            )
        ours[our_name] = tensor
    return ours


def _stacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stack the matrices of queries, keys and values wherever all three are present."""
    stacked = dict(state)
    for name in state:
        parts = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        if ".self_attn.q_proj." in name and all(part in stacked for part in parts):
            stacked[name.replace(".q_proj.", ".qkv_proj.")] = torch.cat([stacked.pop(part) for part in parts])
    return stacked


def _deimv2_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DEIMv2's tensors cut and joined as ours are; a shared box head only once."""
    (stacked, halves), (_, parts) = _V2_STACKS
    is_lite = any(name.startswith("model.encoder.bi_fusion_conv.") for name in state)
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := stacked.fullmatch(name):
            for half, part in zip(halves, tensor.chunk(2) if tensor.ndim else (tensor, tensor), strict=True):
                ours[f"{match[1]}{half}{match[2]}"] = part
        elif f".{parts[0]}." in name:
            other = state[name.replace(parts[0], parts[1])]
            ours[name.replace(parts[0], "gate_up_proj")] = torch.cat((tensor, other))
        elif is_lite and (match := _SHARED_HEAD.fullmatch(name)):
            require_shared(ours.setdefault(f"{match[1]}0{match[2]}", tensor), tensor, name)
        elif f".{parts[1]}." not in name:
            ours[name] = tensor
    return ours


def _deimv2_whole(state: Mapping[str, Tensor], model: DetectionModel) -> dict[str, Tensor]:
    """The inverse of `_deimv2_parts`; also tells apart what has one name here and two there."""
    if isinstance(model.hybrid_encoder, LiteEncoder):
        state = {
            name.replace("conv_encoder.encoder_input_proj.", "encoder.input_proj."): t for name, t in state.items()
        }
    if not isinstance(_first_layer(model).mix, Gate):
        state = {name.replace(".gateway.norm.", ".encoder_attn_layer_norm."): t for name, t in state.items()}
    joined, parts = _V2_STACKS[1]
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".csp_rep" in name and ".shortcut." in name:
            deep = state[name.replace(".shortcut.", ".deep.")]
            theirs[name.replace(".shortcut.", ".conv1.")] = torch.cat((tensor, deep)) if tensor.ndim else tensor
        elif match := joined.fullmatch(name):
            halves = zip(parts, tensor.chunk(2), strict=True)
            theirs |= {f"{match[1]}{part}{match[2]}": half for part, half in halves}
        elif not (".csp_rep" in name and ".deep." in name):
            theirs[name] = tensor
    if not (isinstance(model.decoder, DistributionDecoder) and model.decoder.shares_box_head):
        return theirs
    heads = {match: tensor for name, tensor in theirs.items() if (match := _SHARED_HEAD.fullmatch(name))}
    copies = {
        f"{match[1]}{index}{match[2]}": tensor
        for index in range(len(model.decoder.layers))
        for match, tensor in heads.items()
    }
    return copies | theirs


def to_transformers(model: DetectionModel) -> dict[str, Tensor]:
    """Return the state dict that transformers' files have for this model, constants included.

    `transformers_config` names the transformers model that it is for; `save_transformers` writes both.

    Args:
        model: must not be fused.

    Raises:
        WeightsError: transformers cannot compute what the model computes.
    """
    _require_expressible(model)
    renaming = _DFINE if isinstance(model.decoder, DistributionDecoder) else _RTDETRV2
    if _is_deimv2(model):
        renaming = _DEIMV2
    uncounted = counters_of_frozen_norms(model)
    state: dict[str, Tensor] = {}
    for ours, tensor in model.state_dict().items():
        if ours in uncounted:
            continue
        name = renaming.to_theirs(ours)
        if name is None:
            raise WeightsError(f"transformers has no such model: this one has {ours}, perhaps from another backbone.")
        if ".qkv_proj." in name:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            state |= {name.replace(".qkv_proj.", f".{letter}_proj."): part for letter, part in parts}
        else:
            state[name] = tensor
    if _is_deimv2(model):
        state = _deimv2_whole(state, model)
    heads = {name.removeprefix("model.decoder."): t for name, t in state.items() if name.startswith(_HEADS)}
    return state | heads | dict(_constants(model))


def _first_layer(model: DetectionModel) -> DecoderLayer:
    layer = model.decoder.layers[0]
    assert isinstance(layer, DecoderLayer)
    return layer


def _is_deimv2(model: DetectionModel) -> bool:
    return isinstance(_first_layer(model).act, GatedSiLU)


def _require_expressible(model: DetectionModel) -> None:
    decoder = model.decoder
    if _is_deimv2(model):
        if isinstance(model.query_selection.projection, nn.Identity):
            raise WeightsError(
                "transformers has no such model: this one is DEIMv2 as its authors trained it; transformers' has a "
                "projection in query selection, ReLU in the heads, and query positions that follow the references. "
                "Only deimv2-…-hf can be converted; use this package's format or ONNX for the others."
            )
        return
    if decoder.eval_index != len(decoder.layers) - 1:
        problem = f"predicts with decoder layer {decoder.eval_index + 1}; transformers' always use the last"
    elif not isinstance(decoder.query_position.act, nn.ReLU):
        problem = "has SiLU in the heads of its decoder; transformers' always have ReLU"
    else:
        return
    raise WeightsError(
        f"transformers has no such model: this one {problem}. Only dfine-…, deimv2-…-hf and rtdetrv2-… can be "
        "converted, except for rtdetrv2-r50m; use this package's format or ONNX for the others."
    )


def _constants(model: DetectionModel) -> Iterator[tuple[str, Tensor]]:
    name = "n_points_scale"
    if isinstance(model.decoder, DistributionDecoder):
        name = "num_points_scale"
        yield "model.decoder.up", torch.tensor([0.5])
        yield "model.decoder.reg_scale", torch.tensor([float(model.decoder.reg_scale)])
    for index, layer in enumerate(model.decoder.layers):
        assert isinstance(layer, DecoderLayer)
        yield f"model.decoder.layers.{index}.encoder_attn.{name}", layer.cross_attention.points_share


def transformers_config(model: DetectionModel, names: Sequence[str]) -> dict[str, Any]:
    """Return the config.json that transformers needs to build this model.

    Args:
        model: one that `to_transformers` accepts.
        names: the K class names.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in to_transformers(model).items()}
    decoder, encoder = model.decoder, model.hybrid_encoder
    layer = _first_layer(model)
    num_points = layer.cross_attention.num_points
    levels = len(num_points)
    projection: Any = encoder.projections[0]
    hidden = projection.conv.out_channels
    config = {
        "freeze_backbone_batch_norms": any(isinstance(module, FrozenNorm) for module in model.backbone.modules()),
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "encoder_in_channels": list(model.backbone.channels),
        "feat_strides": list(model.backbone.strides),
        "encode_proj_layers": [levels - 1],
        "encoder_hidden_dim": hidden,
        "d_model": layer.linear1.in_features,
        "decoder_in_channels": [hidden] * levels,
        "decoder_ffn_dim": layer.linear1.out_features,
        "decoder_attention_heads": layer.cross_attention.num_heads,
        "decoder_layers": len(decoder.layers),
        "num_feature_levels": levels,
        "num_queries": model.query_selection.num_queries,
        "num_denoising": 0 if model.denoising is None else model.denoising.num_denoising,
    }
    if isinstance(encoder, HybridEncoder):
        config |= {
            "encoder_ffn_dim": encoder.aifi.linear1.out_features,
            "encoder_attention_heads": encoder.aifi.attention.num_heads,
        }
    block = "model.encoder.fpn_blocks.0." if isinstance(encoder, HybridEncoder) else "model.encoder.fpn_block."
    if isinstance(decoder, DistributionDecoder):
        config |= {
            "architectures": ["DFineForObjectDetection"],
            "model_type": "d_fine",
            "backbone_config": _hgnet_config(shapes, len(model.backbone.strides)),
            "depth_mult": _count(shapes, re.escape(block) + r"csp_rep1\.bottlenecks\.\d+") / 3,
            "decoder_n_points": list(num_points),
            "max_num_bins": len(decoder.weighting) - 1,
            "reg_scale": float(decoder.reg_scale),
        }
        if not _is_deimv2(model):
            return config | {"hidden_expansion": 2 * shapes[block + "conv2.conv.weight"][0] / hidden}
        lite = {} if isinstance(encoder, HybridEncoder) else {"encoder_type": "lite", "encoder_layers": 0}
        return (
            config
            | lite
            | {
                "architectures": ["Deimv2ForObjectDetection"],
                "model_type": "deimv2",
                "hidden_expansion": 2 * shapes[block + "csp_rep1.conv2.conv.weight"][0] / hidden,
                "decoder_activation_function": "silu",
                "use_gateway": isinstance(layer.mix, Gate),
                "share_bbox_head": decoder.shares_box_head,
            }
        )
    return config | {
        "architectures": ["RTDetrV2ForObjectDetection"],
        "model_type": "rt_detr_v2",
        "backbone_config": _resnet_config(shapes, levels),
        "hidden_expansion": shapes[block + "conv1.conv.weight"][0] / hidden,
        "decoder_n_points": num_points[0],
        "decoder_n_levels": levels,
    }


def save_transformers(
    model: DetectionModel, folder: str | Path, names: Sequence[str], image_size: tuple[int, int]
) -> None:
    """Write a folder that transformers' `from_pretrained` can read, with the same preprocessing as our runtime.

    Args:
        model: one that `to_transformers` accepts.
        folder: created if missing.
        names: the K class names.
        image_size: (height, width).

    Raises:
        WeightsError: transformers cannot compute what the model computes.
    """
    # safetensors refuses tensors that share memory or are channels-last, so each is copied.
    kept = torch.contiguous_format
    tensors = {name: tensor.detach().cpu().clone(memory_format=kept) for name, tensor in to_transformers(model).items()}
    processor = {
        "image_processor_type": "RTDetrImageProcessor",
        "do_resize": True,
        "size": {"height": image_size[0], "width": image_size[1]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})
    for name, content in ((CONFIG_FILE, transformers_config(model, names)), (PROCESSOR_FILE, processor)):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_config(path: Path) -> dict[str, Any]:
    """Read what a transformers config.json says about its weights, under the keys of our metadata.

    Args:
        path: need not exist. COCO's classes get COCO's names, because transformers calls the couch a sofa.

    Raises:
        WeightsError: the file is damaged, or for a model that this package does not have.
    """
    try:
        config = load_json(read_file(path, MAX_CONFIG_BYTES))
        labels = {int(index): str(name) for index, name in config.get("id2label", {}).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path} is not a transformers config ({error}).") from error
    if (kind := config.get("model_type")) not in ("d_fine", "rt_detr_v2", "deimv2"):
        raise WeightsError(f'{path} is for a model of type "{kind}"; expected d_fine, rt_detr_v2 or deimv2.')
    given = {
        "decoder_n_points": 4,
        "reg_scale": 4.0,
        "encode_proj_layers": [2],
        **_ENCODER_ASSUMED,
        **(_DEIMV2_DEFAULTS if kind == "deimv2" else _ASSUMED),
        **config,
    }
    for setting, assumed in _assumed_of(given).items():
        if (value := given[setting]) != assumed:
            raise WeightsError(f"{path} has {setting} {value}, which no model of this package has; expected {assumed}.")
    names = [labels[index] for index in sorted(labels)]
    facts: dict[str, Any] = {"num_queries": config["num_queries"]} if "num_queries" in config else {}
    if names and not all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        facts |= {key: list(value) for key, value in classes_of(names)._asdict().items()}
    return facts


def _assumed_of(config: Mapping[str, Any]) -> dict[str, Any]:
    if config["model_type"] == "deimv2":
        is_lite = config["encoder_type"] == "lite"
        shared = {"share_bbox_head": is_lite, "use_gateway": not is_lite}
        return {
            **_DEIMV2_ASSUMED,
            **({} if is_lite else _ENCODER_ASSUMED),
            **shared,
            "decoder_n_points": [4, 2] if is_lite else [6, 6],
            "reg_scale": 4.0,
        }
    encoder = {**_ENCODER_ASSUMED, "encode_proj_layers": [config.get("num_feature_levels", 3) - 1]}
    if config["model_type"] == "rt_detr_v2":
        return {**_ASSUMED, **encoder, "decoder_n_points": 4}
    return {
        **_ASSUMED,
        **encoder,
        "decoder_n_points": [6, 6] if config.get("num_feature_levels") == 2 else [3, 6, 3],
        "reg_scale": 8.0 if config.get("encoder_hidden_dim") == 384 else 4.0,  # of dfine-x, and of the others
    }


def _count(names: Iterable[str], pattern: str) -> int:
    """Count the distinct prefixes of `names` that match `pattern`."""
    matches = (re.match(pattern, name) for name in names)
    return len({match[0] for match in matches if match})


def _out_features(levels: int, count: int = 4) -> list[str]:
    return [f"stage{number}" for number in range(count + 1 - levels, count + 1)]


def _hgnet_config(shapes: Mapping[str, Sequence[int]], levels: int) -> dict[str, Any]:
    """Infer HGNetV2's dimensions from the shapes of its tensors."""
    prefix = _V2_BACKBONE if any(name.startswith(_V2_BACKBONE) for name in shapes) else _BACKBONE
    stem = prefix + "embedder."
    count = _count(shapes, re.escape(prefix) + r"encoder\.stages\.\d+")
    stages = [f"{prefix}encoder.stages.{index}." for index in range(count)]
    is_light = [f"{stage}blocks.0.layers.0.conv1.convolution.weight" in shapes for stage in stages]
    first, spatial = (
        [
            shapes[f"{stage}blocks.0.layers.0.{conv if light else ''}convolution.weight"]
            for stage, light in zip(stages, is_light, strict=True)
        ]
        for conv in ("conv1.", "conv2.")
    )
    out_channels = [shapes[f"{stage}blocks.0.aggregation.1.convolution.weight"][0] for stage in stages]
    return {
        "model_type": "hgnet_v2",
        "hidden_sizes": out_channels,  # D-FINE reads the channels of the pyramid here
        "depths": [1] * count,  # only their number counts
        "out_features": _out_features(levels, count),
        "stem_channels": [3, *(shapes[f"{stem}stem{number}.convolution.weight"][0] for number in (1, 4))],
        "stage_in_channels": [shape[1] for shape in first],
        "stage_mid_channels": [shape[0] for shape in first],
        "stage_out_channels": out_channels,
        "stage_num_blocks": [_count(shapes, re.escape(stage) + r"blocks\.\d+") for stage in stages],
        "stage_downsample": [f"{stage}downsample.convolution.weight" in shapes for stage in stages],
        "stage_light_block": is_light,
        "stage_kernel_size": [shape[-1] for shape in spatial],
        "stage_numb_of_layers": [_count(shapes, re.escape(stage) + r"blocks\.0\.layers\.\d+") for stage in stages],
        "use_learnable_affine_block": stem + "stem1.lab.scale" in shapes,
    }


def _resnet_config(shapes: Mapping[str, Sequence[int]], levels: int) -> dict[str, Any]:
    """Infer the dimensions of a ResNet-d from the shapes of its tensors."""
    stages = [f"{_BACKBONE}encoder.stages.{index}." for index in range(4)]
    is_deep = f"{stages[0]}layers.0.layer.2.convolution.weight" in shapes
    last = 2 if is_deep else 1
    return {
        "model_type": "rt_detr_resnet",
        "layer_type": "bottleneck" if is_deep else "basic",
        "hidden_sizes": [shapes[f"{stage}layers.0.layer.{last}.convolution.weight"][0] for stage in stages],
        "depths": [_count(shapes, re.escape(stage) + r"layers\.\d+") for stage in stages],
        "out_features": _out_features(levels),
    }
