"""Any timm network as a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.hgnet import HighPerfGpuStage
from torch import Tensor, nn

from rtdetrv4.errors import ConfigError, WeightsError, did_you_mean, first_line
from rtdetrv4.ops.networks import create_network, fetch_timm_weights, load_pip_weights

PIP_BACKBONE = "efficientnet_lite0"
"""timm's tf_efficientnet_lite0 with ImageNet weights from pip: needs no hub; code and weights are Apache-2.0."""

STRIDES = (8, 16, 32)
"""Strides of the detectors' pyramids; a two-level pyramid has the last two."""

SOME_THAT_FIT = ("resnet50", "convnext_tiny", "regnety_008", "mobilenetv4_conv_small", PIP_BACKBONE)


class FrozenNorm(nn.BatchNorm2d):
    """A batch norm whose statistics stay fixed in train mode and whose affine parameters are not trained."""

    def train(self, mode: bool = True) -> FrozenNorm:
        """Stay in eval mode."""
        del mode
        return super().train(False)


class Normalization(nn.Module):
    """Normalizes images in [0, 1] with the mean and standard deviation of a network's pretraining."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std)).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """B×3×H×W → B×3×H×W."""
        return (images - self.mean) / self.std


class Backbone(nn.Module):
    """A timm network cut into stages; `channels` and `strides` describe its outputs.

    Args:
        name: any timm model with `features_only`, or `PIP_BACKBONE`.
        out_indices: the stages to return; negative indices count from the last.
        pretrained: True loads timm's weights from the hub (those of `PIP_BACKBONE` from its package), a path loads
            them from a file.
        normalize: normalize images as in the network's pretraining. The released detectors do not.
        freeze_stem: do not train the layers before the first stage.
        freeze_norm: keep the loaded statistics and affine parameters of batch norms.
        frozen_stages: number of stages to freeze, counted from the finest; the stem is frozen with them. Their weights
            and batch statistics stay fixed, and they run without gradients, which saves time and memory.
        first_shortcut: give the first block of a ResNet a convolutional shortcut. PaddlePaddle's ResNet-18-d and -34-d,
            and so the released RT-DETRv2, have one; timm's do not.
        last_stage: (channels, blocks, kernel) of a smaller last stage for HGNetV2, as DEIMv2's smallest models have.
            Loaded weights are kept where they fit.

    Raises:
        ConfigError: timm does not know `name`, or the network has fewer than `frozen_stages` stages.
        WeightsError: the weights cannot be fetched or do not fit.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int],
        *,
        pretrained: bool | str | Path = False,
        normalize: bool = False,
        freeze_stem: bool = False,
        freeze_norm: bool = False,
        frozen_stages: int = 0,
        first_shortcut: bool = False,
        last_stage: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(name.partition(".")[0]):
            raise ConfigError(
                f'Backbone "{name}" is not a timm model.{did_you_mean(name, timm.list_models())} '
                "List them with timm.list_models()."
            )
        from_pip = name == PIP_BACKBONE and pretrained is True
        from_hub = pretrained is True and not from_pip
        source = {"file": str(pretrained)} if isinstance(pretrained, str | Path) else None
        try:
            self.body: Any = create_network(
                "tf_efficientnet_lite0" if name == PIP_BACKBONE else name,
                weights=fetch_timm_weights(name, "model.pretrained_backbone") if from_hub else None,
                pretrained=bool(pretrained) and not from_pip,
                features_only=True,
                out_indices=tuple(out_indices),
                pretrained_cfg_overlay=source,
            )
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise WeightsError(
                f'Pretrained weights of the backbone "{name}" could not be loaded ({first_line(error)}). '
                "Check the connection, or give a file with pretrained_backbone=PATH, "
                "or start from scratch with pretrained_backbone=false."
            ) from error
        if from_pip:
            load_pip_weights(self.body, name)
        self.channels: list[int] = self.body.feature_info.channels()
        self.strides: list[int] = self.body.feature_info.reduction()
        config = self.body.pretrained_cfg
        self.normalization: Normalization | nn.Identity = (
            Normalization(config["mean"], config["std"]) if normalize else nn.Identity()
        )
        if first_shortcut:
            width = self.body.layer1[0].conv1.in_channels
            self.body.layer1[0].downsample = nn.Sequential(
                nn.Identity(), nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
            )
        if last_stage is not None:
            name = f"stages_{max(out_indices)}"
            self.body.set_submodule(name, _smaller_stage(self.body.get_submodule(name), *last_stage))
            self.channels[-1] = last_stage[0]
        if freeze_norm:
            _freeze_norms(self.body)
        if freeze_stem:
            for parameter in self._stem_parameters():
                parameter.requires_grad_(False)
        self._frozen = self._first_stages(frozen_stages)
        for module in self._frozen:
            module.eval().requires_grad_(False)

    @classmethod
    def from_timm(
        cls,
        name: str,
        num_levels: int,
        *,
        without_last: bool = False,
        pretrained: bool | str | Path = False,
        frozen_stages: int = 0,
    ) -> Backbone:
        """Build a backbone from any timm network whose last stages have the last `num_levels` of `STRIDES`.

        Args:
            name: see `Backbone`.
            num_levels: 3 or 2; with `without_last` also 1.
            without_last: leave out the stage of stride 32, and count levels from stride 16.
            pretrained: see `Backbone`.
            frozen_stages: see `Backbone`.

        Raises:
            ConfigError: timm does not know `name`, the network has fewer than `frozen_stages` stages, or it cannot make
                such a pyramid from images of any size.
            WeightsError: the weights cannot be fetched or do not fit.
        """
        end = -1 if without_last else 0
        last = range(end - num_levels, end)
        strides: list[int] = [STRIDES[index] for index in last]
        try:
            backbone = cls(name, last, normalize=True)  # without weights: a network may not fit
            problem = _misfit(backbone, strides)
        except ConfigError:
            raise
        except Exception as error:  # networks with a fixed size or without stages raise errors of many kinds
            problem = f"it cannot make such maps from images of any size ({first_line(error)})"
            raise _does_not_fit(name, problem, strides) from error
        if problem is not None:
            raise _does_not_fit(name, problem, strides)
        if not pretrained and not frozen_stages:
            return backbone
        return cls(name, last, pretrained=pretrained, normalize=True, frozen_stages=frozen_stages)

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode of all but the frozen stages, whose batch statistics must not change."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """B×3×H×W → one B×Cs×H/s×W/s map per stage, finest first."""
        maps = self.body(self.normalization(images))
        if getattr(self.body, "output_fmt", "NCHW") == "NHWC":  # such as Swin
            maps = [each.movedim(-1, 1) for each in maps]
        return maps

    def _stem_parameters(self) -> list[nn.Parameter]:
        # What timm calls the layers before the first stage; `conv1` and `bn1` are ResNet's.
        stem = ("stem", "conv1", "bn1", "conv_stem", "patch_embed")
        return [p for name, p in self.body.named_parameters() if name.startswith(stem)]

    def _first_stages(self, number: int) -> list[nn.Module]:
        """The modules up to the end of stage `number`; timm registers modules in the order in which they run."""
        if number == 0:
            return []
        stages = self.body.feature_info.info
        if number > len(stages):
            raise ConfigError(
                f"model.frozen_stages: got {number}, but the backbone has {len(stages)} stages, with "
                f"{_listing([stage['reduction'] for stage in stages])}."
            )
        # When timm lifts a module out of a sequence, it joins the names: stages.1 becomes stages_1.
        prefix = f"{stages[number - 1]['module']}.".replace("_", ".")
        modules = [(f"{name}.".replace("_", "."), module) for name, module in self.body.named_modules() if name]
        end = 1 + max(index for index, (name, _) in enumerate(modules) if name.startswith(prefix))
        return [
            module for name, module in modules[:end] if not any(later.startswith(name) for later, _ in modules[end:])
        ]


def _misfit(backbone: Backbone, strides: list[int]) -> str | None:
    """Why a new backbone does not yield these strides, judged by a run on a small rectangle; None if it does."""
    if backbone.strides != strides:
        found = sorted({stage["reduction"] for stage in backbone.body.feature_info.info})
        return f"its maps have {_listing(found)}"
    with torch.no_grad():
        maps = backbone.eval()(torch.zeros(1, 3, 64, 96))
    backbone.train()
    expected = [(1, width, 64 // s, 96 // s) for width, s in zip(backbone.channels, strides, strict=True)]
    return None if [tuple(each.shape) for each in maps] == expected else "its maps differ from what timm reports"


def _does_not_fit(name: str, problem: str, strides: list[int]) -> ConfigError:
    return ConfigError(
        f'Backbone "{name}" does not fit: {problem}, but the last {len(strides)} stages must have '
        f"{_listing(strides)}. Some that fit: {', '.join(SOME_THAT_FIT)}."
    )


def _listing(strides: Sequence[int]) -> str:
    return f"stride{'s' if len(strides) > 1 else ''} {', '.join(map(str, strides))}"


def _freeze_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenNorm(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen.requires_grad_(False).eval())
        else:
            _freeze_norms(child)


def _smaller_stage(stage: nn.Module, channels: int, num_blocks: int, kernel: int) -> nn.Module:
    """A stage of HGNetV2 with other dimensions, and the weights of the given one where they fit."""
    assert isinstance(stage, HighPerfGpuStage)
    first = next(layer.conv1.conv for layer in stage.blocks[0].layers)  # type: ignore[union-attr]
    smaller = HighPerfGpuStage(
        first.in_channels,
        first.out_channels,
        channels,
        num_blocks,
        len(stage.blocks[0].layers),  # type: ignore[arg-type]
        light_block=True,
        kernel_size=kernel,
        use_lab=True,
        agg="se",
    )
    own, given = smaller.state_dict(), stage.state_dict()
    smaller.load_state_dict(own | {name: given[name] for name in own if given[name].shape == own[name].shape})
    return smaller
