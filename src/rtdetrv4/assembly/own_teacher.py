"""One's own larger detector as a teacher: its F5."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from rtdetrv4.assembly.models import build_detector, find_variant
from rtdetrv4.assembly.recipes import recipe_of_weights, without_pretrained
from rtdetrv4.data.batch import STRIDE
from rtdetrv4.distillation import Teacher
from rtdetrv4.models import SemanticPath
from rtdetrv4.weights import load_weights, read_checkpoint
from rtdetrv4.weights.files import WEIGHTS_SUFFIXES, names_weights


class F5Network(nn.Module):
    """The network of a teacher: F5 of a detector.

    Args:
        path: from images to F5.
    """

    def __init__(self, path: SemanticPath) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        """B×3×H×W, RGB in [0, 1] → B×C×H/32×W/32."""
        return self.path.f5(images)


def is_detector(teacher: str) -> bool:
    """Whether a teacher is named by a detector's weights: a file, or a folder with a slash in its path.

    A single word is a network of timm, even if there is such a folder, as of its weights from the hub.
    """
    return names_weights(teacher) and (
        Path(teacher).suffix in WEIGHTS_SUFFIXES or any(each in teacher for each in ("/", os.sep))
    )


def load_own_teacher(weights: str, *, dtype: torch.dtype | None = None, compile: bool = False) -> Teacher:
    """A teacher from the weights of a detector of this package.

    Args:
        weights: see `rtdetrv4.weights.find_weights`.
        dtype: number format of its weights and of what it computes; None as in the training.
        compile: compile it at its first call.

    Raises:
        WeightsError: the weights cannot be read, or belong to no one model.
    """
    checkpoint = read_checkpoint(weights)
    metadata = checkpoint.metadata
    recipe = without_pretrained(recipe_of_weights(None, metadata))
    detector = build_detector(recipe, metadata.num_classes)
    load_weights(detector, checkpoint)
    own = metadata.facts.get("teacher")
    taught = f"; taught by {own['name']} ({own.get('license', 'unknown')})" if own else ""
    return Teacher(
        F5Network(SemanticPath(detector.backbone, detector.hybrid_encoder)),
        name=f"{recipe.model.name} of {weights}",
        dim=find_variant(recipe.model.name).hidden_dim,
        stride=STRIDE,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        license=f"that of its weights{taught}",
        dtype=dtype,
        compile=compile,
    )
