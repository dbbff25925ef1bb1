"""The sheet of the stages shows what the run itself will see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.loader import build_loader
from rtdetrv4.data.records import Split
from rtdetrv4.errors import DatasetError
from rtdetrv4.training import BatchSheets, TrainingData
from rtdetrv4.training.batch_sheets import draw_sample
from rtdetrv4.training.plan import AUGMENTED, BASIC, DENSE, REFINEMENT
from rtdetrv4.training.stage_sheet import MARGIN, WIDTH, describe_stage, draw_stage_sheet, samples_in_run
from rtdetrv4.types import Batch
from small_training import AUGMENT, SIZE, make_plan, make_trainer, write_images

NUM_IMAGES = 10


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return write_images(tmp_path_factory.mktemp("images"), NUM_IMAGES, empty=(3,))


@pytest.fixture
def data(split: Split) -> TrainingData:
    """Batches of two, of which a plan with two steps of two batches leaves out the fifth."""
    loader = build_loader(DetectionDataset(split, SIZE, AUGMENT), 2, workers=0, shuffle=True, drop_last=True)
    return TrainingData(loader=loader, augment=AUGMENT, image_size=SIZE, multi_scale_repeat=3)


class Recorder(BatchSheets):
    """Keeps the batches that the loop would draw."""

    def begin(self, stage: str, *, is_first: bool) -> None:
        pass

    def add(self, batch: Batch) -> None:
        self.__dict__.setdefault("batches", []).append(batch)


def test_a_sample_is_the_one_that_the_loop_gives_to_the_model(split: Split, data: TrainingData, tmp_path: Path) -> None:
    plan = make_plan(epochs=4, steps_per_epoch=2)
    recorder = Recorder(tmp_path, ())
    make_trainer(split, tmp_path, plan=plan, batch=4, accumulate=2, distil=False, evaluate=None, sheets=recorder).run()
    seen: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    for number, batch in enumerate(recorder.__dict__["batches"]):
        for image, (labels, boxes), info in zip(batch.images, batch.targets.split(), batch.infos, strict=True):
            seen[number // 4, info.image_id] = image, labels, boxes
    assert len(seen) == 4 * 8, "two of ten images are left out of each epoch"
    for stage, epochs in plan.stages:
        for index in range(NUM_IMAGES):
            found = list(samples_in_run(data, plan, index, stage, epochs, accumulate=2))
            assert [epoch for epoch, _ in found] == [epoch for epoch in epochs if (epoch, index) in seen]
            for epoch, batch in found:
                image, labels, boxes = seen[epoch, index]
                assert torch.equal(batch.images[0], image)
                assert torch.equal(batch.targets.labels, labels)
                assert torch.equal(batch.targets.boxes, boxes)


def test_a_row_for_each_image_and_columns_for_the_stages(
    split: Split, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(epochs=40, steps_per_epoch=4, basic_epochs=10, mosaic_until=20, refine_from=30)
    draw_stage_sheet(split, data, plan, tmp_path / "sheet.png", num_images=3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 5 * (WIDTH + 6) - 6 + 2 * MARGIN

    cells: list[np.ndarray] = []
    monkeypatch.setattr(
        "rtdetrv4.training.stage_sheet.contact_sheet", lambda pictures, *_, **__: cells.extend(pictures)
    )
    draw_stage_sheet(split, data, plan, tmp_path / "sheet.png", num_images=NUM_IMAGES)
    assert len(cells) == 5 * (1 + NUM_IMAGES)
    order = [index for index in np.random.default_rng(0).permutation(NUM_IMAGES).tolist() if index != 3]
    for row, index in enumerate([*order, 3], start=1):  # those with boxes come first
        for column, (stage, epochs) in enumerate(plan.stages, start=1):
            _, batch = next(samples_in_run(data, plan, index, stage, epochs, 1))
            expected = draw_sample(batch.images[0], *batch.targets.split()[0], split.classes.names, WIDTH)
            cell = cells[5 * row + column]
            assert np.array_equal(cell[:WIDTH], expected)
            assert (cell[WIDTH:] < 128).any(), "there is a caption"


def test_few_stages_show_several_epochs(
    split: Split, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells: list[np.ndarray] = []
    monkeypatch.setattr(
        "rtdetrv4.training.stage_sheet.contact_sheet", lambda pictures, *_, **__: cells.extend(pictures)
    )
    for basic, epochs, columns in ((40, 40, 3), (2, 2, 2), (1, 40, 3)):
        cells.clear()
        plan = make_plan(epochs=epochs, basic_epochs=basic, mosaic_until=basic, refine_from=epochs)
        draw_stage_sheet(split, data, plan, tmp_path / "sheet.png", num_images=2)
        assert len(cells) == 3 * (1 + columns)


def test_stages_say_what_they_do(data: TrainingData) -> None:
    # 64 px are scaled to 48 … 80, but in steps of 32: 32 or 64.
    scales = ", scaled so that the longer side is 32–64 px"
    assert describe_stage(BASIC, range(1), data) == f"epoch 1: flip 50 %; 64×64 px{scales}"
    dense = "epochs 2–9: mosaic 50 %, mixup 50 %, colors 50 %, zoom-out 50 %, crop 80 %, flip 50 %; 64×64 px"
    assert describe_stage(DENSE, range(1, 9), data) == dense + scales
    augmented = "epochs 2–3: colors 50 %, zoom-out 50 %, crop 80 %, flip 50 %; 64×64 px"
    assert describe_stage(AUGMENTED, range(1, 3), data) == augmented + scales
    assert describe_stage(REFINEMENT, range(8, 12), data) == "epochs 9–12: flip 50 %; 64×64 px"


def test_images_that_cannot_be_read_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = write_images(tmp_path / "images", 4)
    loader = build_loader(DetectionDataset(split, SIZE, AUGMENT), 1, workers=0, shuffle=True, drop_last=True)
    data = TrainingData(loader=loader, augment=AUGMENT._replace(mosaic=0), image_size=SIZE)
    plan = make_plan(steps_per_epoch=4)
    (tmp_path / "images" / "2.png").write_bytes(b"")
    rows: list[int] = []
    monkeypatch.setattr(
        "rtdetrv4.training.stage_sheet.contact_sheet",
        lambda pictures, *_, columns, **__: rows.append(len(pictures) // columns),
    )
    draw_stage_sheet(split, data, plan, tmp_path / "sheet.png", num_images=4)
    assert rows == [1 + 3]
    assert "2.png" in caplog.text
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    with pytest.raises(DatasetError, match=r"None of the 4 training images in .* can be read"):
        draw_stage_sheet(split, data, plan, tmp_path / "sheet.png", num_images=4)
