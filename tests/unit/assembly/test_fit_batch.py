"""Batches that were killed for memory are cut into parts that fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rtdetrv4.assembly import build_detector, training
from rtdetrv4.config import load_recipe, override
from rtdetrv4.distillation import DistillationStudent
from rtdetrv4.training import make_accelerator
from small_training import write_images

GB = 10**9


@pytest.mark.parametrize(
    ("size", "batch", "free", "measured", "parts"),
    [
        # N holds about 95 MB per image at 320 pixels, a third of 22 GB is for them.
        (320, 128, 22 * GB, 320, 2),
        (320, 4, 22 * GB, 320, 1),
        # At 640 it is measured at 320 and counts four times.
        (640, 32, 22 * GB, 320, 2),
    ],
)
def test_batches_on_a_cpu_are_cut_to_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, batch: int, free: int, measured: int, parts: int
) -> None:
    asked: list[tuple[int, int]] = []

    def bytes_per_image(
        student: object, criterion: object, weights: object, size: tuple[int, int], *args: object
    ) -> int:
        asked.append(size)
        return 95_000_000 * size[0] * size[1] // 320**2

    monkeypatch.setattr(training, "bytes_per_image", bytes_per_image)
    monkeypatch.setattr(training, "free_memory", lambda accelerator, reserved: free - reserved)
    changes = {"imgsz": size, "batch": batch, "run.accumulate": "auto", "workers": 1}
    recipe = override(load_recipe("test"), changes)
    student = DistillationStudent(build_detector(recipe, 3))
    split = write_images(tmp_path)
    fitted, found = training._fit_batch(recipe, split, student, make_accelerator("cpu", "off"))
    assert asked == [(measured, measured)]
    assert found == fitted.run.accumulate == parts


def test_an_evaluation_need_not_be_split_evenly(tmp_path: Path) -> None:
    split = write_images(tmp_path)
    for ranks, size in ((3, 10), (64, 1)):
        accelerator: Any = SimpleNamespace(num_processes=ranks, process_index=0)
        recipe = override(load_recipe("test"), {"batch": 32, "workers": 0})
        evaluate: Any = training.build_evaluation(recipe, split, accelerator=accelerator)
        assert evaluate.keywords["loader"].batch_size == size
