"""A training step, by default of an S model, as in the training loop but without its bookkeeping."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rtdetrv4.assembly import create_model
from rtdetrv4.assembly.models import find_variant
from rtdetrv4.assembly.training import build_criterion, loss_weights
from rtdetrv4.config import load_recipe
from rtdetrv4.distillation import DistillationStudent, Modulation, alignment_loss
from rtdetrv4.losses import weighted_sum
from rtdetrv4.models import DetectionModel, recompute_activations
from rtdetrv4.training import adamw, parameter_groups
from rtdetrv4.types import Targets

MODEL = "rtdetrv4-s"
NUM_CLASSES, NUM_QUERIES, NUM_DENOISING = 80, 300, 100
NUM_BOXES = 7  # COCO's mean
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-4, 1e-4, 0.1


class TrainingBatch(NamedTuple):
    """The input of a step."""

    images: Tensor
    """B×3×H×W in [0, 1]."""
    targets: Targets


def make_batch(batch: int, size: int, device: torch.device, num_boxes: int = NUM_BOXES) -> TrainingBatch:
    """Make random images with random boxes; their content does not affect timing."""
    torch.manual_seed(0)
    images = torch.rand(batch, 3, size, size)
    targets = []
    for _ in range(batch):
        sides = 0.05 + 0.3 * torch.rand(num_boxes, 2)
        center = sides / 2 + (1 - sides) * torch.rand(num_boxes, 2)
        labels = torch.randint(NUM_CLASSES, (num_boxes,))
        targets.append((labels.to(device), torch.cat((center, sides), dim=1).to(device)))
    return TrainingBatch(images.to(device), Targets.of(targets))


def make_detector(device: torch.device, model: str = MODEL) -> DetectionModel:
    """Make our detector, with random weights, in the memory format used in training."""
    torch.manual_seed(0)
    detector = create_model(model, NUM_CLASSES, num_queries=NUM_QUERIES, num_denoising=NUM_DENOISING).to(device)
    recompute_activations(detector)
    return detector.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def our_step(
    student: DistillationStudent,
    batch: TrainingBatch,
    teacher_map: Tensor | None = None,
    modulation: Modulation | None = None,
    model: str = MODEL,
) -> Callable[[], float]:
    """Make a step: forward, losses, backward, clipping, AdamW; with a `teacher_map` also DSI and GAM."""
    recipe = load_recipe(model)
    criterion, weights = build_criterion(recipe.loss, find_variant(model)), loss_weights(recipe.loss)
    optimizer = adamw(parameter_groups(student, lr=LEARNING_RATE, backbone_lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY))
    parameters = list(student.parameters())
    student.train()

    def step() -> float:
        optimizer.zero_grad()
        output, projected = student(batch.images, batch.targets)
        terms = criterion(output, batch.targets)
        if projected is not None and teacher_map is not None and modulation is not None:
            terms["distill"] = alignment_loss(projected, teacher_map)
            weights["distill"] = modulation.weight
        loss = weighted_sum(terms, weights)
        loss.backward()
        if modulation is not None:
            modulation.observe(student.aifi, student)
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        return loss.item()  # waits for the device

    return step


def count_parameters(model: nn.Module) -> int:
    """Count trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
