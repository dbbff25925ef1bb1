"""Build a detector from a model's name or a recipe: the whole network is one nested constructor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from rtdetrv4.config import Recipe
from rtdetrv4.config.variants import VARIANTS, Variant
from rtdetrv4.errors import ConfigError, did_you_mean
from rtdetrv4.models import (
    AIFI,
    CCFF,
    Backbone,
    BoxDecoder,
    ContrastiveDenoising,
    ConvNorm,
    DecoderLayer,
    DetectionModel,
    DistributionDecoder,
    HybridEncoder,
    LiteEncoder,
    QuerySelection,
)

NUM_HEADS = 8


def find_variant(name: str) -> Variant:
    """The dimensions of a model.

    Raises:
        ConfigError: there is no such model.
    """
    if name not in VARIANTS:
        raise ConfigError(f'There is no model "{name}".{did_you_mean(name, VARIANTS)} Known: {", ".join(VARIANTS)}.')
    return VARIANTS[name]


def create_model(
    name: str = "rtdetrv4-s",
    num_classes: int = 80,
    *,
    backbone: str | None = None,
    pretrained_backbone: bool | str | Path = False,
    frozen_stages: int = 0,
    num_queries: int = 300,
    num_denoising: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
) -> DetectionModel:
    """A detector with fresh heads, in train mode.

    Args:
        name: a key of `VARIANTS`, see `rtdetrv4 models`.
        num_classes: K.
        backbone: a timm network to use instead of the model's own, see `Backbone.from_timm`.
        pretrained_backbone: True loads ImageNet weights from the hub through timm, a path loads them from a file.
        frozen_stages: number of backbone stages that are not trained, see `Backbone`.
        num_queries: Q; no parameter's shape depends on it.
        num_denoising: approximate number of denoising positives per image; 0 trains without denoising.
        label_noise: see `ContrastiveDenoising`.
        box_noise: see `ContrastiveDenoising`.

    Raises:
        ConfigError: there is no such model, or that backbone cannot make its pyramid.
        WeightsError: the backbone's weights cannot be loaded.
    """
    v = find_variant(name)
    dim = v.decoder_dim
    body = _backbone(v, backbone, pretrained_backbone, frozen_stages)
    return DetectionModel(
        body,
        _encoder(v, body.channels),
        QuerySelection(dim, num_classes, num_queries, v.activation, projected=v.projected_selection),
        _decoder(v, num_classes),
        memory_projections=_memory_projections(v, len(body.channels)),
        denoising=ContrastiveDenoising(num_classes, dim, num_denoising, label_noise, box_noise)
        if num_denoising > 0
        else None,
    )


def _backbone(v: Variant, name: str | None, pretrained: bool | str | Path, frozen_stages: int) -> Backbone:
    if name is not None and name != v.backbone:
        return Backbone.from_timm(
            name,
            len(v.out_indices),
            without_last=v.encoder == "lite",
            pretrained=pretrained,
            frozen_stages=frozen_stages,
        )
    return Backbone(
        v.backbone,
        v.out_indices,
        pretrained=pretrained,
        freeze_stem=v.freeze_stem,
        freeze_norm=v.freeze_backbone_norm,
        frozen_stages=frozen_stages,
        first_shortcut=v.backbone in ("resnet18d", "resnet34d"),
        last_stage=v.last_stage,
    )


def _encoder(v: Variant, channels: Sequence[int]) -> HybridEncoder | LiteEncoder:
    depth = round(3 * v.depth_mult)
    if v.encoder == "lite":
        return LiteEncoder(channels, v.hidden_dim, depth=depth, expansion=v.expansion, act="silu")
    return HybridEncoder(
        channels,
        v.hidden_dim,
        aifi=AIFI(v.hidden_dim, NUM_HEADS, v.encoder_ffn),
        ccff=CCFF(
            v.hidden_dim,
            len(channels),
            blocks=v.encoder_blocks,
            depth=depth,
            expansion=v.expansion,
            act="silu",
            summed=v.summed_fusion,
        ),
    )


def _decoder(v: Variant, num_classes: int) -> DistributionDecoder | BoxDecoder:
    distribution = v.head == "distribution"
    layers = [
        DecoderLayer(
            v.decoder_dim,
            NUM_HEADS,
            v.decoder_ffn,
            v.num_points,
            gated=distribution and v.gated,
            project_values=not distribution,
            act=v.activation,
            swiglu=v.swiglu,
        )
        for _ in range(v.decoder_layers)
    ]
    if distribution:
        return DistributionDecoder(
            layers,
            v.decoder_dim,
            num_classes,
            eval_index=v.eval_index,
            reg_max=v.reg_max,
            reg_scale=v.reg_scale,
            act=v.activation,
            position_layers=v.query_position_layers,
            position_act=v.position_activation,
            update_positions=v.update_positions,
            share_box_head=v.share_box_head,
        )
    return BoxDecoder(
        layers,
        v.decoder_dim,
        num_classes,
        eval_index=v.eval_index,
        position_layers=v.query_position_layers,
        act=v.activation,
    )


def _memory_projections(v: Variant, num_levels: int) -> nn.ModuleList | None:
    if v.hidden_dim == v.decoder_dim and v.head == "distribution":
        return None
    return nn.ModuleList(ConvNorm(v.hidden_dim, v.decoder_dim, 1, act="none") for _ in range(num_levels))


def build_detector(recipe: Recipe, num_classes: int) -> DetectionModel:
    """The detector of a recipe."""
    model = recipe.model
    return create_model(
        model.name,
        num_classes,
        backbone=model.backbone,
        pretrained_backbone=model.pretrained_backbone,
        frozen_stages=model.frozen_stages,
        num_queries=model.num_queries,
        num_denoising=model.num_denoising,
        label_noise=model.label_noise,
        box_noise=model.box_noise,
    )
