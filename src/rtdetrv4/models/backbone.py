"""Any timm network as a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from rtdetrv4.errors import ConfigError, WeightsError, did_you_mean


class FrozenNorm(nn.BatchNorm2d):
    """A batch norm that keeps its statistics in train mode and whose affine part is not trained."""

    def train(self, mode: bool = True) -> FrozenNorm:
        """Stays in eval mode."""
        del mode
        return super().train(False)


class Backbone(nn.Module):
    """A timm network cut into stages; `channels` and `strides` describe its outputs.

    Args:
        name: any timm model with `features_only`.
        out_indices: which of its stages to return.
        pretrained: True loads timm's weights from the hub, a path loads them from a file.
        freeze_stem: do not train what stands before the first stage.
        freeze_norm: keep batch norms at their loaded statistics and affine parameters.
        first_shortcut: give the first block of a ResNet a convolutional shortcut, as PaddlePaddle's ResNet-18-d and
            -34-d (and so the released RT-DETRv2) have and timm's do not.

    Raises:
        ConfigError: timm does not know `name`.
        WeightsError: the weights cannot be fetched or do not fit.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int],
        *,
        pretrained: bool | str | Path = False,
        freeze_stem: bool = False,
        freeze_norm: bool = False,
        first_shortcut: bool = False,
    ) -> None:
        super().__init__()
        if not timm.is_model(name.partition(".")[0]):
            raise ConfigError(
                f'Backbone "{name}" is not a timm model.{did_you_mean(name, timm.list_models())} '
                "List them with timm.list_models()."
            )
        source = {"file": str(pretrained)} if isinstance(pretrained, str | Path) else None
        try:
            self.body: Any = timm.create_model(
                name,
                pretrained=bool(pretrained),
                features_only=True,
                out_indices=tuple(out_indices),
                pretrained_cfg_overlay=source,
            )
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise WeightsError(
                f'Pretrained weights of the backbone "{name}" could not be loaded ({_first_line(error)}). '
                "Check the connection, or give a file with pretrained_backbone=PATH, "
                "or start from scratch with pretrained_backbone=false."
            ) from error
        self.channels: list[int] = self.body.feature_info.channels()
        self.strides: list[int] = self.body.feature_info.reduction()
        if first_shortcut:
            width = self.body.layer1[0].conv1.in_channels
            self.body.layer1[0].downsample = nn.Sequential(
                nn.Identity(), nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
            )
        if freeze_norm:
            _freeze_norms(self.body)
        if freeze_stem:
            for parameter in self._stem_parameters():
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """B×3×H×W → one B×Cs×H/s×W/s map per stage, finest first."""
        return self.body(images)

    def _stem_parameters(self) -> list[nn.Parameter]:
        # timm names what stands before the first stage either `stem…`, or (ResNet) `conv1`, `bn1`.
        stem = ("stem", "conv1", "bn1", "conv_stem", "patch_embed")
        return [p for name, p in self.body.named_parameters() if name.startswith(stem)]


def _freeze_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenNorm(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen.requires_grad_(False).eval())
        else:
            _freeze_norms(child)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
