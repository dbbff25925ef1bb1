"""The dimensions of every model, and what has been published about it.

Sizes are those of the released models. rtdetrv4-n was never released: it is the N architecture of DEIM. `deimv2-…` are
DEIMv2 as its authors trained it, and `deimv2-…-hf` as transformers computes it; see docs/divergences.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model as plain values.

    Attributes:
        backbone: a timm model.
        out_indices: the stages of it that go into the pyramid, finest first.
        last_stage: (channels, blocks, kernel) of a smaller last stage than the timm model has; None: as it is.
        freeze_stem: whether the layers before the backbone's first stage are not trained.
        freeze_backbone_norm: whether the backbone's batch norms keep their pretrained statistics and weights.
        hidden_dim: channels of the hybrid encoder.
        encoder: "hybrid", with AIFI and one level per stage of the backbone; "lite", with global average pooling
            instead, and two levels from one stage (DEIMv2's smallest).
        encoder_ffn: inner width of AIFI's feed-forward network; of no use to "lite".
        encoder_blocks: fusion blocks of D-FINE ("elan") or RT-DETR ("csp").
        summed_fusion: maps are added before a fusion block (DEIMv2) instead of concatenated.
        depth_mult: depth of the fusion blocks, relative to three RepVGG blocks.
        expansion: inner width of the fusion blocks.
        decoder_dim: channels of the decoder; another `hidden_dim` is projected to it.
        decoder_ffn: inner width of the decoder's feed-forward networks.
        decoder_layers: decoder layers in training.
        eval_index: the layer whose predictions count at inference; layers after it are dropped on deployment.
        num_points: sampling points of the cross-attention per pyramid level, finest first.
        head: D-FINE's edge distributions, or RT-DETR's plain boxes (with value and output projections in the
            cross-attention, and a residual sum instead of a gate).
        gated: the cross-attention is merged through a gate instead of a residual sum; only for "distribution".
        swiglu: RMSNorm and SwiGLU in the decoder's layers (DEIMv2).
        share_box_head: one box head for all decoder layers; only for "distribution".
        projected_selection: a linear layer and a norm before the heads of query selection.
        update_positions: query positions follow the references from layer to layer; only for "distribution".
        reg_max: bins of an edge distribution minus one; only for "distribution".
        reg_scale: curvature of the bins' weighting W(n); only for "distribution".
        activation: of the decoder's feed-forward networks and MLPs.
        position_activation: of the MLP that turns references into query positions; None: `activation`.
        query_position_layers: layers of that MLP.
        image_size: (height, width) the model was published with.
        num_parameters: after deployment, with 80 classes, as counted in the released code; of DEIMv2, as deployed here.
        coco_ap: AP on COCO val2017 in percent, as published; None where we know of no number.
        latency_ms: on a T4 with TensorRT FP16 at batch 1, as published.
    """

    backbone: str
    out_indices: tuple[int, ...] = (1, 2, 3)
    last_stage: tuple[int, int, int] | None = None
    freeze_stem: bool = False
    freeze_backbone_norm: bool = False
    hidden_dim: int = 256
    encoder: Literal["hybrid", "lite"] = "hybrid"
    encoder_ffn: int = 1024
    encoder_blocks: Literal["elan", "csp"] = "elan"
    summed_fusion: bool = False
    depth_mult: float = 1.0
    expansion: float = 1.0
    decoder_dim: int = 256
    decoder_ffn: int = 1024
    decoder_layers: int
    eval_index: int = -1
    num_points: tuple[int, ...] = (3, 6, 3)
    head: Literal["distribution", "box"] = "distribution"
    gated: bool = True
    swiglu: bool = False
    share_box_head: bool = False
    projected_selection: bool = True
    update_positions: bool = True
    reg_max: int = 32
    reg_scale: float = 4.0
    activation: Literal["silu", "relu"] = "silu"
    position_activation: Literal["silu", "relu"] | None = None
    query_position_layers: int = 2
    image_size: tuple[int, int] = (640, 640)
    num_parameters: int | None = None
    coco_ap: float | None = None
    latency_ms: float | None = None


# D-FINE's architecture with SiLU, which DEIM and RT-DETRv4 share: the sizes N to X.
_N = Variant(
    backbone="hgnetv2_b0",
    out_indices=(2, 3),
    hidden_dim=128,
    encoder_ffn=512,
    depth_mult=0.5,
    expansion=0.34,
    decoder_dim=128,
    decoder_ffn=512,
    decoder_layers=3,
    num_points=(6, 6),
    num_parameters=3_753_799,
)
_S = Variant(backbone="hgnetv2_b0", depth_mult=0.34, expansion=0.5, decoder_layers=3, num_parameters=10_237_491)
_M = Variant(backbone="hgnetv2_b2", depth_mult=0.67, decoder_layers=4, num_parameters=19_248_189)
_L = Variant(backbone="hgnetv2_b4", decoder_layers=6, num_parameters=30_769_891)
_X = Variant(
    backbone="hgnetv2_b5",
    hidden_dim=384,
    encoder_ffn=2048,
    decoder_layers=6,
    reg_scale=8.0,
    num_parameters=61_695_555,
)

# RT-DETRv2: ResNet-d backbones, RT-DETR's fusion blocks, plain boxes.
_R18 = Variant(
    backbone="resnet18d",
    out_indices=(2, 3, 4),
    encoder_blocks="csp",
    expansion=0.5,
    decoder_layers=3,
    num_points=(4, 4, 4),
    head="box",
    activation="relu",
    num_parameters=19_980_176,
)
_R34 = replace(_R18, backbone="resnet34d", decoder_layers=4, num_parameters=31_237_380)
# From R50 on, the released RT-DETRv2 models keep stem and batch norms as ImageNet left them.
_R50 = replace(_R18, backbone="resnet50d", expansion=1.0, decoder_layers=6, num_parameters=42_092_652)
_R50_FROZEN = replace(_R50, freeze_stem=True, freeze_backbone_norm=True)
_R50M = replace(_R50_FROZEN, expansion=0.5, eval_index=2, num_parameters=36_389_484)
_R101 = replace(_R50_FROZEN, backbone="resnet101d", hidden_dim=384, encoder_ffn=2048, num_parameters=74_768_364)

# DEIMv2 with HGNetV2 backbones, arXiv 2509.20787; its larger models have DINOv3 backbones.
_V2N = replace(
    _N,
    summed_fusion=True,
    swiglu=True,
    projected_selection=False,
    update_positions=False,
    query_position_layers=3,
    num_parameters=None,
)
_PICO = replace(
    _V2N,
    out_indices=(2,),
    encoder="lite",
    hidden_dim=112,
    decoder_dim=112,
    decoder_ffn=320,
    num_points=(4, 2),
    gated=False,
    share_box_head=True,
)
_FEMTO = replace(_PICO, last_stage=(512, 1, 5), hidden_dim=96, decoder_dim=96, decoder_ffn=256, image_size=(416, 416))
_ATTO = replace(_PICO, last_stage=(256, 1, 3), hidden_dim=64, decoder_dim=64, decoder_ffn=160, image_size=(320, 320))


def _as_in_transformers(v: Variant, num_parameters: int) -> Variant:
    return replace(
        v,
        projected_selection=True,
        update_positions=True,
        activation="relu",
        position_activation="silu",
        num_parameters=num_parameters,
    )


_VARIANTS = {
    "rtdetrv4-n": _N,
    "rtdetrv4-s": replace(_S, coco_ap=49.7, latency_ms=3.66),
    "rtdetrv4-m": replace(_M, coco_ap=53.5, latency_ms=5.91),
    "rtdetrv4-l": replace(_L, coco_ap=55.4, latency_ms=8.07),
    "rtdetrv4-x": replace(_X, coco_ap=57.0, latency_ms=12.90),
    "deim-n": _N,
    "deim-s": _S,
    "deim-m": _M,
    "deim-l": _L,
    "deim-x": _X,
    "dfine-n": replace(_N, activation="relu"),
    "dfine-s": replace(_S, activation="relu"),
    "dfine-m": replace(_M, activation="relu"),
    # The released code does not count frozen norms, so these two have fewer parameters than DEIM's.
    "dfine-l": replace(_L, activation="relu", freeze_stem=True, freeze_backbone_norm=True, num_parameters=30_724_195),
    "dfine-x": replace(_X, activation="relu", freeze_stem=True, freeze_backbone_norm=True, num_parameters=61_601_635),
    "rtdetrv2-r18": _R18,
    "rtdetrv2-r34": _R34,
    "rtdetrv2-r50m": _R50M,
    "rtdetrv2-r50": _R50_FROZEN,
    "rtdetrv2-r101": _R101,
    "deim-rtdetrv2-r18": replace(_R18, activation="silu", query_position_layers=3, num_parameters=19_979_152),
    "deim-rtdetrv2-r50": replace(_R50, activation="silu", query_position_layers=3, num_parameters=42_144_876),
    "deimv2-atto": replace(_ATTO, num_parameters=486_997, coco_ap=23.8, latency_ms=1.10),
    "deimv2-femto": replace(_FEMTO, num_parameters=952_077, coco_ap=31.0, latency_ms=1.45),
    "deimv2-pico": replace(_PICO, num_parameters=1_501_555, coco_ap=38.5, latency_ms=2.13),
    "deimv2-n": replace(_V2N, num_parameters=3_554_765, coco_ap=43.0, latency_ms=2.32),
    "deimv2-atto-hf": _as_in_transformers(_ATTO, 491_285),
    "deimv2-femto-hf": _as_in_transformers(_FEMTO, 961_581),
    "deimv2-pico-hf": _as_in_transformers(_PICO, 1_514_435),
    "deimv2-n-hf": _as_in_transformers(_V2N, 3_571_533),
    # For tests and demonstrations: the same parts, as small as they go.
    "test": Variant(
        backbone="hgnetv2_b0",
        hidden_dim=32,
        encoder_ffn=64,
        depth_mult=0.34,
        expansion=0.5,
        decoder_dim=32,
        decoder_ffn=64,
        decoder_layers=2,
        image_size=(64, 64),
    ),
}

DEFAULT_MODEL = "rtdetrv4-s"
VARIANTS: Mapping[str, Variant] = MappingProxyType(_VARIANTS)
"""Every model by name."""
