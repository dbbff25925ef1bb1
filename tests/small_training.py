"""A whole training run of the smallest model on a few made-up images, for tests of the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.loader import build_list_loader, build_loader
from rtdetrv4.data.records import Record, Split
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.distillation import DistillationStudent, Injector, Modulation, Teacher
from rtdetrv4.distillation.modulation import Rule
from rtdetrv4.evaluation import Metrics
from rtdetrv4.losses import Criterion, HungarianMatcher
from rtdetrv4.models import (
    AIFI,
    CCFF,
    Backbone,
    ContrastiveDenoising,
    DecoderLayer,
    DetectionModel,
    DistributionDecoder,
    HybridEncoder,
    QuerySelection,
)
from rtdetrv4.models.backbone import FrozenNorm
from rtdetrv4.training import (
    ModelEma,
    Plan,
    PseudoLabels,
    Trainer,
    TrainingData,
    UnlabeledData,
    adamw,
    make_accelerator,
    parameter_groups,
    split_batch,
)
from rtdetrv4.types import ClassMap, DetectorOutput, ImageInfo

SIZE = (64, 64)
CLASSES = ClassMap(("red", "green", "blue"), (1, 2, 3))
WEIGHTS = {"mal": 1.0, "bbox": 5.0, "giou": 2.0, "fgl": 0.15, "ddf": 1.5}
ROUNDING = 1e-5
"""By what share of a tensor's largest value two float32 computations of the same numbers may differ.

Other memory, another layout or frozen weights may choose another kernel, which sums in another order: a few units in
the last place (2⁻²³ = 1.2e-7) for each of the few dozen layers of a test model. Bit-for-bit equality is for what is
copied and for runs that are repeated or resumed.
"""
AUGMENT = Augmentation(mosaic=0.5, mixup=0.5, photometric=0.5, zoom_out=0.5, iou_crop=0.8, flip=0.5)


def write_images(folder: Path, num_images: int = 8, empty: tuple[int, ...] = ()) -> Split:
    """Colored rectangles on noise; images whose number is in `empty` have none."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(num_images):
        image = rng.integers(0, 60, (*SIZE, 3), dtype=np.uint8)
        count = 0 if index in empty else 1 + index % 3
        low = rng.integers(0, 32, (count, 2))
        boxes = np.concatenate([low, low + rng.integers(12, 30, (count, 2))], axis=1).astype(np.float32)
        labels = rng.integers(0, 3, count)
        for (left, top, right, bottom), label in zip(boxes.astype(int).tolist(), labels, strict=True):
            image[top:bottom, left:right, 2 - label] = 255
        name = f"{index}.png"
        cv2.imwrite(str(folder / name), image)
        areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).astype(np.float64)
        records.append(Record(ImageInfo(index, name, *SIZE), boxes, labels, np.zeros(count, dtype=bool), areas))
    return Split(folder, tuple(records), CLASSES, "made up", ())


def make_detector(num_denoising: int = 8) -> DetectionModel:
    """Every part of RT-DETRv4 around one of timm's test networks: half the tensors of the `test` model."""
    backbone = Backbone("test_byobnet", (2, 3, 4))
    ccff = CCFF(32, len(backbone.channels), blocks="csp", depth=1, expansion=0.5, act="silu")
    layers = [DecoderLayer(32, 8, 64, [3, 6, 3], gated=True, project_values=False, act="silu") for _ in range(2)]
    return DetectionModel(
        backbone,
        HybridEncoder(backbone.channels, 32, aifi=AIFI(32, 8, 64), ccff=ccff),
        QuerySelection(32, CLASSES.num_classes, 20, "silu"),
        DistributionDecoder(layers, 32, CLASSES.num_classes, eval_index=-1, reg_max=32, reg_scale=4.0, act="silu"),
        denoising=ContrastiveDenoising(CLASSES.num_classes, 32, num_denoising, 0.5, 1.0) if num_denoising else None,
    )


def make_plan(epochs: int = 4, steps_per_epoch: int = 2, **changes: Any) -> Plan:
    """Every stage once, in four epochs."""
    settings: dict[str, Any] = {
        "epochs": epochs,
        "steps_per_epoch": steps_per_epoch,
        "warmup_steps": 2,
        "flat_epoch": 2,
        "no_aug_epochs": 1,
        "lr_gamma": 0.5,
        "basic_epochs": 1,
        "mosaic_until": 2,
        "refine_from": 3,
        "ema_decay": 0.9,
        "ema_warmup": 3,
        "ema_restart_decay": 0.8,
    }
    return Plan(**settings | changes)


def make_teacher(dim: int = 8) -> Teacher:
    """A random patch embedding."""
    network = nn.Conv2d(3, dim, 16, stride=16)
    nn.init.trunc_normal_(network.weight, generator=torch.Generator().manual_seed(1))
    return Teacher(network, name="patches", dim=dim, stride=16)


def with_frozen_norms(detector: DetectionModel) -> DetectionModel:
    """Norms with constant statistics, so that an image's gradient does not depend on the others in its batch."""
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = FrozenNorm
            module.eval()
    return detector


def score_of_weights(detector: nn.Module) -> Metrics:
    """Some number that depends on every weight: it tells whether two models are the same, not whether they are good."""
    total = sum(parameter.double().abs().sum().item() for parameter in detector.parameters())
    return fixed_score(detector, (1e3 * total) % 1)


def fixed_score(detector: nn.Module, score: float) -> Metrics:
    """An evaluation that knows its result."""
    del detector
    numbers = dict.fromkeys(("ap50", "ap75", "ap_small", "ap_medium", "ap_large"), score)
    recalls = dict.fromkeys(("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"), math.nan)
    return Metrics(ap=score, **numbers, **recalls, per_class={"red": score}, per_class_ap50={}, num_images=8)


def make_trainer(
    split: Split,
    out: Path,
    *,
    plan: Plan | None = None,
    batch: int = 4,
    accumulate: int = 1,
    distil: bool = True,
    rule: Rule = "gam",
    detector: nn.Module | None = None,
    augment: Augmentation = AUGMENT,
    multi_scale_repeat: int | None = 3,
    shuffle: bool = True,
    workers: int = 0,
    amp: str = "off",
    weights: Mapping[str, float] = WEIGHTS,
    evaluate: Callable[[nn.Module], Metrics] | None = score_of_weights,
    **options: Any,
) -> Trainer:
    """A run that is the same each time it is made, unless a `detector` is given."""
    torch.manual_seed(0)
    accelerator = make_accelerator("cpu", amp)  # type: ignore[arg-type]
    ranks, rank = accelerator.num_processes, accelerator.process_index
    plan = plan or make_plan()
    detector = detector or make_detector()
    teacher = make_teacher() if distil else None
    student = DistillationStudent(detector, Injector(32, teacher.dim) if teacher else None).to(accelerator.device)
    dataset = DetectionDataset(split, SIZE, augment, seed=0)
    loader = build_loader(
        dataset,
        split_batch(batch, ranks=ranks, accumulate=accumulate),
        workers,
        shuffle,
        rank=rank,
        world_size=ranks,
        drop_last=True,
    )
    groups = parameter_groups(student, lr=1e-3, backbone_lr=5e-4, weight_decay=1e-4)
    return Trainer(
        student=student,
        ema=ModelEma(student, plan.ema_decay, plan.ema_warmup),
        optimizer=adamw(groups),
        plan=plan,
        data=TrainingData(
            loader=loader, augment=augment, image_size=SIZE, multi_scale_repeat=multi_scale_repeat, rank=rank
        ),
        criterion=Criterion(HungarianMatcher()),
        weights=weights,
        evaluate=evaluate,
        accelerator=accelerator,
        out=out,
        teacher=teacher,
        modulation=Modulation(5.0, rho=3, delta=0.5, default_weight=10.0, rule=rule) if distil else None,
        accumulate=accumulate,
        **options,
    )


def make_unlabeled(split: Split, *, batch: int = 4, per_step: int = 1, features: Any = None) -> UnlabeledData:
    """The images of a split without their labels, flipped at random."""
    accelerator = make_accelerator("cpu", "off")
    flips = Augmentation(flip=0.5)
    loader = build_loader(
        DetectionDataset(split, SIZE, flips, seed=1),
        batch // accelerator.num_processes,
        0,
        shuffle=True,
        seed=1,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        drop_last=True,
    )
    return UnlabeledData(loader=loader, augment=flips, per_step=per_step, features=features)


class FindsColors(nn.Module):
    """A detector that needs no training: one query for each channel, the bounds of what is bright in it.

    Args:
        logit: of what it finds; of what is not there, the negative.
    """

    def __init__(self, logit: float = 4.0) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, images: Tensor) -> DetectorOutput:
        height, width = images.shape[-2:]
        boxes = images.new_full((len(images), 3, 4), 0.5)
        logits = images.new_full((len(images), 3, 3), -self.logit.item())
        for sample, query in (images > 0.75).flatten(2).any(dim=-1).nonzero().tolist():
            rows, columns = (images[sample, query] > 0.75).nonzero(as_tuple=True)
            low = torch.stack([columns.min() / width, rows.min() / height])
            high = torch.stack([(columns.max() + 1) / width, (rows.max() + 1) / height])
            boxes[sample, query] = torch.cat([(low + high) / 2, high - low])
            logits[sample, query, query] = self.logit.item()
        return DetectorOutput(logits, boxes)


class KnownLabels(PseudoLabels):
    """Labels of `FindsColors` instead of those of a detector that is trained too little to find anything."""

    def label(self, detector: nn.Module, epoch: int) -> None:
        del detector
        super().label(FindsColors(), epoch)


def make_pseudo_labels(
    split: Split,
    epochs: range,
    steps_per_epoch: int,
    *,
    batch: int = 4,
    augment: Augmentation = AUGMENT,
    workers: int = 0,
    kind: type[PseudoLabels] = KnownLabels,
    **options: Any,
) -> PseudoLabels:
    """The images of a split without their labels, but with those that are found."""
    accelerator = make_accelerator("cpu", "off")
    ranks = accelerator.num_processes
    augment = augment._replace(mosaic=0.0, mixup=0.0)
    return kind(
        loader=build_list_loader(DetectionDataset(split, SIZE, augment, seed=2), batch // ranks, workers),
        plain=build_list_loader(DetectionDataset(split, SIZE), batch // ranks, workers),
        augment=augment,
        names=CLASSES.names,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        rank=accelerator.process_index,
        ranks=ranks,
        **{"threshold": 0.5, **options},
    )


def assert_same(one: Any, other: Any, where: str = "state", *, rounding: float = 0.0) -> None:
    """Two nested states are equal, tensors bit for bit unless `rounding` allows a share of their largest value."""
    if isinstance(one, Tensor) and rounding:
        largest = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=rounding * largest, msg=lambda text: f"{where}: {text}")
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}", rounding=rounding)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{index}]", rounding=rounding)
    else:
        assert one == other, where
