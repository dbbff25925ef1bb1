from __future__ import annotations

import copy
import gc
from pathlib import Path

import pytest
import torch

from rtdetrv4.assembly import create_model
from rtdetrv4.assembly.training import build_criterion, image_memory, loss_weights
from rtdetrv4.config import load_recipe, override
from rtdetrv4.config.variants import VARIANTS
from rtdetrv4.data.formats import read_splits
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.distillation import DistillationStudent
from rtdetrv4.errors import ConfigError
from rtdetrv4.training import make_accelerator
from rtdetrv4.training.fit import (
    STATES_PER_PARAMETER,
    USABLE_SHARE,
    WORKER_BYTES,
    bytes_per_image,
    free_memory,
    parts_that_fit,
    worker_memory,
)
from rtdetrv4.types import Targets
from small_training import make_detector

MB = 10**6


class Small(torch.nn.Linear):
    """A student of 4 MB."""

    def __init__(self) -> None:
        super().__init__(1000, 1000, bias=False)


def count(size: int, num_boxes: int = 3, amp: str = "off") -> int:
    loss = load_recipe("rtdetrv4-s").loss
    torch.manual_seed(0)
    student = DistillationStudent(make_detector())
    return bytes_per_image(
        student,
        build_criterion(loss, VARIANTS["rtdetrv4-s"]),
        loss_weights(loss),
        (size, size),
        num_boxes,
        make_accelerator("cpu", amp),
    )


def test_memory_of_an_image_grows_with_its_area_and_with_its_boxes() -> None:
    small, large = count(64), count(128)
    assert 2.5 * small < large < 4.5 * small
    assert count(64, num_boxes=20) > count(64)


def test_counting_leaves_no_trace() -> None:
    loss = load_recipe("rtdetrv4-s").loss
    student = DistillationStudent(make_detector())
    before, rng = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    criterion = build_criterion(loss, VARIANTS["rtdetrv4-s"])
    bytes_per_image(student, criterion, loss_weights(loss), (64, 64), 2, make_accelerator("cpu", "off"))
    assert torch.equal(torch.get_rng_state(), rng)
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in student.parameters())


def test_where_four_images_do_not_fit_they_are_counted_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = override(load_recipe("test"), {"model.image_size": (256, 128), "augment.multi_scale_repeat": None})
    split = read_splits(write_shapes(tmp_path, num_train=2, num_val=1, image_size=64)).train
    assert split is not None
    student = DistillationStudent(create_model("test", split.classes.num_classes))
    whole = image_memory(recipe, split, student, make_accelerator("cpu", "off"))
    before = copy.deepcopy(student.state_dict())
    forward, sizes = DistillationStudent.forward, list[tuple[int, ...]]()

    def limited(self: DistillationStudent, images: torch.Tensor, targets: Targets) -> object:
        sizes.append(tuple(images.shape))
        if images.numel() > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")
        return forward(self, images, targets)

    monkeypatch.setattr(DistillationStudent, "forward", limited)
    most = 4 * 3 * 128 * 64
    smaller = image_memory(recipe, split, student, make_accelerator("cpu", "off"))
    assert [size[0] for size in sizes] == [2, 2, 4]
    assert [size[2:] for size in sizes] == [(256, 128), (128, 64), (128, 64)]
    assert whole < smaller < 2 * whole, "what does not grow with the area is overestimated"
    most = 2 * 3 * 32 * 32
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        image_memory(recipe, split, student, make_accelerator("cpu", "off"))
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_counting_keeps_no_tensors() -> None:
    def live_bytes() -> int:
        gc.collect()
        found = [each for each in gc.get_objects() if type(each) is torch.Tensor]
        return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in found}.values())

    count(64)  # fills caches
    before = live_bytes()
    assert count(64) > 2**20
    assert live_bytes() - before < 2**16


@pytest.mark.parametrize(("megabytes", "parts"), [(160, 1), (159, 2), (80, 2), (79, 4), (20, 8)])
def test_a_batch_is_cut_into_as_few_parts_as_fit(megabytes: int, parts: int, caplog: pytest.LogCaptureFixture) -> None:
    # 16 images on each of two devices, 10 MB each; the optimizer's state takes its own.
    free = int((megabytes * MB + STATES_PER_PARAMETER * 4 * MB) / USABLE_SHARE) + 1
    caplog.set_level("INFO", "rtdetrv4")
    assert parts_that_fit(32, 2, 10 * MB, Small(), free) == parts
    told = f"10 MB per image: 16 images per step on each of 2 devices, in {parts} parts."
    assert [record.getMessage().endswith(told) for record in caplog.records] == [True] * (parts > 1), "a need to say it"


def test_nothing_fits() -> None:
    with pytest.raises(ConfigError, match=r"10 MB and 4 MB are free.*checkpoint_activations"):
        parts_that_fit(8, 1, 10 * MB, Small(), int(20 * MB / USABLE_SHARE) + 1)


def test_there_is_memory() -> None:
    assert 2**24 < free_memory(make_accelerator("cpu", "off")) < 2**45
    assert free_memory(make_accelerator("cpu", "off"), reserved=2**50) == 0


def test_workers_take_memory_for_images_and_batches() -> None:
    assert worker_memory(0, MB, 4, MB) == 0
    assert worker_memory(3, 36 * MB, 4, 2 * MB) == 3 * (WORKER_BYTES + 288 * MB + 4 * MB)
