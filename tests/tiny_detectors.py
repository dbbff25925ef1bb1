"""The smallest detectors of transformers, one of each family, with random weights, and how each is tapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    Deimv2Config,
    Deimv2ForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    HGNetV2Config,
    LwDetrConfig,
    LwDetrForObjectDetection,
    LwDetrViTConfig,
    ResNetConfig,
    RfDetrConfig,
    RfDetrDinov2Config,
    RfDetrForObjectDetection,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

from rtdetrv4.distillation import Modulation, Tap, Teacher, tokens_of_stride

DIM = 32
NUM_CLASSES = 5

_HYBRID = {
    "freeze_backbone_batch_norms": False,
    "encoder_hidden_dim": DIM,
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "d_model": DIM,
    "decoder_in_channels": [DIM] * 3,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "hidden_expansion": 0.5,
    "num_queries": 10,
    "num_denoising": 4,
    "num_labels": NUM_CLASSES,
}
_PLAIN = {
    "dropout": 0.0,
    "d_model": DIM,
    "encoder_layers": 2,
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_layers": 2,
    "decoder_ffn_dim": 32,
    "decoder_attention_heads": 4,
    "num_queries": 10,
    "num_labels": NUM_CLASSES,
}
_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "out_features": ["stage1", "stage2"]}
_OVER_A_VIT = {
    "dropout": 0.0,
    "d_model": DIM,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4,
    "decoder_n_points": 2,
    "num_queries": 10,
    "group_detr": 2,
    "c2f_num_blocks": 1,
    "num_labels": NUM_CLASSES,
}


def _hgnet() -> HGNetV2Config:
    return HGNetV2Config(
        hidden_sizes=[16, 16, 32, 32],
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 16, 16, 32],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[16, 16, 32, 32],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )


def _resnet(kind: type, *stages: str) -> Any:
    return kind(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=list(stages),
    )


_STAGES = "stage2", "stage3", "stage4"


def make_dfine() -> nn.Module:
    config = DFineConfig(
        backbone_config=_hgnet(),
        encoder_in_channels=[16, 32, 32],
        depth_mult=0.34,
        decoder_n_points=[2, 2, 2],
        **_HYBRID,
    )
    return DFineForObjectDetection(config)


def make_deimv2() -> nn.Module:
    config = Deimv2Config(
        backbone_config=_hgnet(),
        encoder_in_channels=[16, 32, 32],
        depth_mult=0.34,
        decoder_n_points=[2, 2, 2],
        **_HYBRID,
    )
    return Deimv2ForObjectDetection(config)


def make_rtdetr() -> nn.Module:
    backbone = _resnet(RTDetrResNetConfig, *_STAGES)
    config = RTDetrConfig(backbone_config=backbone, encoder_in_channels=[16, 16, 32], decoder_n_points=2, **_HYBRID)
    return RTDetrForObjectDetection(config)


def make_rtdetrv2() -> nn.Module:
    backbone = _resnet(RTDetrResNetConfig, *_STAGES)
    config = RTDetrV2Config(backbone_config=backbone, encoder_in_channels=[16, 16, 32], decoder_n_points=2, **_HYBRID)
    return RTDetrV2ForObjectDetection(config)


def make_detr() -> nn.Module:
    return DetrForObjectDetection(DetrConfig(backbone_config=_resnet(ResNetConfig, "stage4"), **_PLAIN))


def make_conditional_detr() -> nn.Module:
    config = ConditionalDetrConfig(backbone_config=_resnet(ResNetConfig, "stage4"), **_PLAIN)
    return ConditionalDetrForObjectDetection(config)


def make_deformable_detr() -> nn.Module:
    config = DeformableDetrConfig(backbone_config=_resnet(ResNetConfig, *_STAGES), **_PLAIN)
    return DeformableDetrForObjectDetection(config)


def make_lw_detr() -> nn.Module:
    backbone = LwDetrViTConfig(image_size=64, num_windows=4, window_block_indices=[0], **_VIT)
    return LwDetrForObjectDetection(
        LwDetrConfig(backbone_config=backbone, projector_scale_factors=[1.0], **_OVER_A_VIT)
    )


def make_rf_detr() -> nn.Module:
    backbone = RfDetrDinov2Config(image_size=64, patch_size=16, num_windows=2, **_VIT)
    return RfDetrForObjectDetection(RfDetrConfig(backbone_config=backbone, **_OVER_A_VIT))


def last_map(output: Any, image_hw: tuple[int, int]) -> Tensor:
    """F5 of a layer that returns several maps, the coarsest last."""
    return output[-1]


class Family(NamedTuple):
    """How a detector is made and tapped."""

    make: Callable[[], nn.Module]
    layer: str
    select: Callable[..., Tensor] | None = None
    takes_mask: bool = False
    stride: int = 32


_AIFI = "model.encoder.aifi.0"
FAMILIES = {
    "D-FINE": Family(make_dfine, _AIFI),
    "DEIMv2": Family(make_deimv2, _AIFI),
    "RT-DETRv2": Family(make_rtdetrv2, _AIFI),
    "RT-DETR": Family(make_rtdetr, _AIFI),
    "DETR": Family(make_detr, "model.encoder.layers.1", takes_mask=True),
    "Conditional DETR": Family(make_conditional_detr, "model.encoder.layers.1", takes_mask=True),
    "Deformable DETR": Family(
        make_deformable_detr, "model.encoder.layers.1", tokens_of_stride(32, (8, 16, 32, 64)), takes_mask=True
    ),
    "LW-DETR": Family(make_lw_detr, "model.backbone.projector", last_map, takes_mask=True, stride=16),
    "RF-DETR": Family(make_rf_detr, "model.backbone.projector", takes_mask=True, stride=16),
}


def tap_of(family: Family, model: nn.Module, teacher: Teacher, modulation: Modulation) -> Tap:
    return Tap(model, family.layer, teacher, modulation, dim=DIM, select=family.select)


def labels_for(images: Tensor) -> list[dict[str, Tensor]]:
    """Two boxes in every image."""
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.3, 0.4]])
    return [{"class_labels": torch.tensor([0, 3]), "boxes": boxes.clone()} for _ in images]
