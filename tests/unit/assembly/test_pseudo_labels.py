from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from rtdetrv4.assembly import build_detector
from rtdetrv4.assembly.run_data import pseudo_epochs
from rtdetrv4.assembly.training import build_trainer
from rtdetrv4.config import load_recipe, override
from rtdetrv4.config.schema import PseudoLabelsConfig
from rtdetrv4.data.records import Splits
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.errors import ConfigError
from rtdetrv4.training import Trainer
from small_training import make_plan, make_teacher, write_images


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, range(10, 16)),
        ({"from_epoch": 3}, range(3, 16)),
        ({"until_epoch": 12}, range(10, 12)),
        ({"from_epoch": 0, "until_epoch": 99}, range(20)),
    ],
)
def test_epochs_are_those_of_the_plan_or_given(settings: dict[str, int], expected: range) -> None:
    plan = make_plan(epochs=20, flat_epoch=10, refine_from=16, no_aug_epochs=2)
    assert pseudo_epochs(PseudoLabelsConfig(**settings), plan) == expected  # type: ignore[arg-type]


def trainer(folder: Path, *, teacher: bool = False, validates: bool = True, **settings: Any) -> Trainer:
    mine = {
        "data.unlabeled": [str(folder)],
        "data.workers": 0,
        "pseudo_labels.weight": 2.0,
        "model.pretrained_backbone": False,
        "run.out": str(folder / "run"),
        "run.device": "cpu",
        "run.tracker": "none",
        "schedule.batch": 4,
        "schedule.epochs": 8,
        "schedule.flat_epoch": 4,
        "augment.flip": 0.25,
        "augment.zoom_out": 0.125,
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    recipe = override(load_recipe("test"), mine)
    train, val, unlabeled = (write_images(folder / name, 8) for name in ("train", "val", "unlabeled"))
    splits = Splits(train, val if validates else None, None, unlabeled=unlabeled)
    detector = build_detector(recipe, train.classes.num_classes)
    return build_trainer(recipe, splits, detector, teacher=make_teacher() if teacher else None)


def test_the_student_sees_what_the_recipe_says(tmp_path: Path) -> None:
    strong = trainer(tmp_path).pseudo_labels
    recipe = trainer(tmp_path, pseudo_labels__augment="recipe", augment__photometric=0.0).pseudo_labels
    assert strong is not None
    assert recipe is not None
    assert strong.augment == Augmentation(photometric=0.5, zoom_out=0.5, iou_crop=0.8, flip=0.25)
    assert recipe.augment == Augmentation(photometric=0.0, zoom_out=0.125, iou_crop=0.8, flip=0.25)
    assert (strong.weight, strong.threshold, strong.floor) == (2.0, None, 0.3)


@pytest.mark.parametrize(
    ("share", "accumulate", "size", "per_step"), [(1.0, 1, 4, 1), (0.5, 1, 2, 1), (1.0, 2, 2, 2), (1.5, 2, 2, 4)]
)
def test_batches_are_no_larger_than_those_with_labels(
    tmp_path: Path, share: float, accumulate: int, size: int, per_step: int
) -> None:
    pseudo = trainer(tmp_path, pseudo_labels__share=share, run__accumulate=accumulate).pseudo_labels
    assert pseudo is not None
    assert (pseudo.loader.batch_size, pseudo.per_step) == (size, per_step)


@pytest.mark.parametrize(
    ("weight", "unlabeled_weight", "is_taught"), [(1.0, 5.0, True), (1.0, 0.0, False), (0.0, 5.0, True)]
)
def test_a_teacher_may_leave_the_images_to_pseudo_labels(
    tmp_path: Path, weight: float, unlabeled_weight: float, is_taught: bool
) -> None:
    built = trainer(
        tmp_path, teacher=True, pseudo_labels__weight=weight, distillation__unlabeled_weight=unlabeled_weight
    )
    assert (built.pseudo_labels is not None) == bool(weight)
    assert (built.unlabeled is not None) == is_taught


def test_a_run_too_short_for_any_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pseudo = trainer(tmp_path, pseudo_labels__from_epoch=8).pseudo_labels
    assert pseudo is not None
    assert not pseudo.epochs
    assert "none of the 8 epochs is from epoch 8" in caplog.text


def test_best_thresholds_need_validation_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"threshold: best needs validation images.*Give a number, such as 0\.5"):
        trainer(tmp_path, validates=False)
    pseudo = trainer(tmp_path, validates=False, pseudo_labels__threshold=0.6).pseudo_labels
    assert pseudo is not None
    assert pseudo.thresholds is not None
    assert pseudo.thresholds.tolist() == [0.6, 0.6, 0.6]
