"""AdamW and its parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from rtdetrv4.distillation import DistillationStudent

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    backbone_lr: float,
    weight_decay: float,
    backbone_norm_lr: Literal["backbone", "head"] = "head",
    decay_backbone_norm: bool = False,
    decay_bias: bool = True,
) -> list[dict[str, Any]]:
    """Trainable parameters, grouped by learning rate and weight decay: at most four groups.

    A parameter's group depends on its module, not on patterns in its name. The five schemes of the released models:

    | | backbone_norm_lr | decay_backbone_norm | decay_bias |
    |---|---|---|---|
    | RT-DETRv4 S, M; DEIM S, M; DEIM-RT-DETRv2; RT-DETRv2-R18 | head | no | yes |
    | RT-DETRv4 L, X; DEIM L, X | backbone | yes | yes |
    | D-FINE N, S, M; DEIM N | backbone | yes | no |
    | RT-DETRv2-R34 | backbone | no | no |
    | D-FINE L, X; RT-DETRv2-R50, R101: backbone norms are frozen | – | – | yes |

    Args:
        model: a detector, or the student around one. The part named `backbone` is the backbone; everything else,
            including a student's projector, is the head.
        lr: learning rate of the head.
        backbone_lr: learning rate of the backbone.
        weight_decay: decay of weights. Norms of the head never decay.
        backbone_norm_lr: which learning rate the backbone's norms get.
        decay_backbone_norm: whether they decay.
        decay_bias: whether the head's biases decay. The backbone's own biases, such as the learnable affine shift
            of HGNetV2, decay like its weights.

    Returns:
        Groups for a torch optimizer, each with its `initial_lr`, to which `Plan.lr` refers.
    """
    detector = model.detector if isinstance(model, DistillationStudent) else model
    backbone = {id(parameter) for parameter in detector.get_submodule("backbone").parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for module in model.modules():
        is_norm = isinstance(module, NORMS)
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            in_backbone = id(parameter) in backbone
            if in_backbone and is_norm:
                rate, decays = (backbone_lr if backbone_norm_lr == "backbone" else lr), decay_backbone_norm
            elif in_backbone:
                rate, decays = backbone_lr, True
            else:
                rate, decays = lr, not is_norm and (decay_bias or not name.endswith("bias"))
            groups.setdefault((rate, weight_decay if decays else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def adamw(groups: Sequence[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.AdamW:
    """AdamW; one fused kernel per group where every parameter is on a CPU or a GPU."""
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, betas=betas, fused=fused or None)
