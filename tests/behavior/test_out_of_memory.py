"""Memory that runs out in a step: the step is repeated in smaller parts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdetrv4.data.batch import split_images
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.types import Batch, ImageInfo, Targets
from small_training import (
    ROUNDING,
    assert_same,
    make_detector,
    make_plan,
    make_trainer,
    with_frozen_norms,
    write_images,
)

NO_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")


class Limited(torch.nn.Module):
    """A criterion for which more than a few images are too many."""

    def __init__(self, criterion: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.criterion, self.most = criterion, most

    def forward(self, output: Any, targets: Targets) -> Any:
        if len(targets.counts) > self.most:
            raise NO_MEMORY
        return self.criterion(output, targets)


def train(folder: Path, most: int | None = None, accumulate: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    # Nothing that a failed attempt would leave behind: no noise, no batch statistics.
    detector = with_frozen_norms(make_detector(num_denoising=0))
    trainer = make_trainer(
        write_images(folder / "images"),
        folder / "run",
        plan=make_plan(epochs=2),
        detector=detector,
        distil=False,
        accumulate=accumulate,
        augment=Augmentation(mixup=1.0, flip=0.5),
        evaluate=None,
    )
    if most is not None:
        trainer.criterion = Limited(trainer.criterion, most)  # type: ignore[assignment]
    trainer.run()
    return trainer.student.state_dict()


def test_a_step_that_does_not_fit_is_repeated_in_halves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        halved = train(tmp_path / "halved", most=2)
    assert_same(halved, train(tmp_path / "accumulated", accumulate=2), rounding=ROUNDING)
    (line,) = [record.message for record in caplog.records if "Out of memory" in record.message]
    assert line.startswith("Out of memory in epoch 1, step 1; going on with each batch in 2 parts.")


def test_one_image_that_does_not_fit_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="allocate memory"):
        train(tmp_path, most=0)


def test_parts_of_a_batch_hold_each_image_once_with_its_boxes() -> None:
    counts = (2, 0, 1, 3, 1)
    labels = torch.arange(sum(counts))
    batch = Batch(
        torch.arange(5.0).view(5, 1, 1, 1),
        Targets(labels, labels.float().view(-1, 1).repeat(1, 4), counts),
        tuple(ImageInfo(index, f"{index}.jpg", 8, 8) for index in range(5)),
    )
    parts = split_images(batch, 3)
    assert [len(part.images) for part in parts] == [1, 2, 2]
    assert [part.targets.counts for part in parts] == [(2,), (0, 1), (3, 1)]
    assert [part.targets.labels.tolist() for part in parts] == [[0, 1], [2], [3, 4, 5, 6]]
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert [info for part in parts for info in part.infos] == list(batch.infos)
    assert len(split_images(batch, 8)) == 5
    assert split_images(batch, 1) == [batch]
