"""Several teachers at once: L_DSI is the mean of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rtdetrv4.assembly import build_detector
from rtdetrv4.assembly.facts import find_teacher
from rtdetrv4.assembly.recipes import without_pretrained
from rtdetrv4.assembly.training import LOGGED_ONLY, build_teacher, loss_weights, weights_metadata
from rtdetrv4.config import load_recipe, override
from rtdetrv4.data.batch import pack, prepare_batch
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.records import Split
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.distillation import (
    DistillationStudent,
    Injector,
    Modulation,
    Tap,
    Teacher,
    alignment_loss,
    combine_teachers,
)
from rtdetrv4.distillation.similarity import similarity
from rtdetrv4.errors import ConfigError
from rtdetrv4.training import ModelEma, Trainer, adamw, make_accelerator, parameter_groups
from rtdetrv4.training.checkpoint import load_checkpoint
from rtdetrv4.training.observers import JsonLog, Observer, read_log
from rtdetrv4.training.teacher_features import TeacherFeatures, alignment
from rtdetrv4.types import Batch, ClassMap, Targets
from rtdetrv4.weights import save_weights
from small_training import WEIGHTS, assert_same, make_detector, make_plan, make_trainer, write_images

RECIPE = without_pretrained(load_recipe("test"))


def seeing(name: str, dim: int, stride: int, seed: int, **given: Any) -> Teacher:
    network = nn.Conv2d(3, dim, stride, stride)
    nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(seed))
    return Teacher(network, name=name, dim=dim, stride=stride, **given)


def two_teachers() -> list[Teacher]:
    return [
        seeing("coarse", 6, 32, seed=1, license="mit"),
        seeing("fine", 10, 16, seed=2, license="apache-2.0", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ]


def test_its_map_is_theirs_side_by_side() -> None:
    apart = two_teachers()
    images = torch.rand(2, 3, 64, 96)
    expected = torch.cat([teacher(images, (2, 3)) for teacher in apart], dim=1)
    combined = combine_teachers(apart)
    torch.testing.assert_close(combined(images, (2, 3)), expected)
    assert (combined.dim, combined.name, combined.license) == (16, "coarse, fine", "mit, apache-2.0")
    assert combined.parts == {"coarse": 6, "fine": 10}
    assert not any(parameter.requires_grad for parameter in combined.parameters())
    with pytest.raises(ConfigError, match="coarse, coarse, expected each once"):
        combine_teachers([apart[0], apart[0]])


def test_each_computes_in_its_own_format() -> None:
    half = seeing("half", 4, 16, seed=3, dtype=torch.bfloat16)
    full = two_teachers()[0]
    images = torch.rand(1, 3, 64, 64)
    expected = full(images, (2, 2)), half(images, (2, 2)).float()
    combined = combine_teachers([half, full])
    assert (half.network.weight.dtype, full.network.weight.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(combined(images, (2, 2)), torch.cat(expected[::-1], dim=1))


def test_the_loss_is_the_mean_of_theirs_for_every_weight() -> None:
    """One linear layer to both maps is a projector for each."""
    apart = two_teachers()
    torch.manual_seed(0)
    one = Injector(8, 16)
    two = [Injector(8, 6), Injector(8, 10)]
    with torch.no_grad():
        for own, rows in zip(two, (slice(0, 6), slice(6, 16)), strict=True):
            own.projector.weight.copy_(one.projector.weight[rows])
            own.projector.bias.copy_(one.projector.bias[rows])
    f5 = [torch.rand(2, 8, 2, 3, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    batch = pack_of(torch.rand(2, 3, 64, 96))
    found = alignment(one(f5[0]), batch, combine_teachers(apart), None, make_accelerator("cpu", "off"))
    losses = [
        alignment_loss(own(f5[1]), teacher(batch.images, (2, 3))) for own, teacher in zip(two, apart, strict=True)
    ]
    torch.testing.assert_close(found["distill"], sum(losses) / 2)
    torch.testing.assert_close([found["teacher_coarse"], found["teacher_fine"]], [loss.detach() for loss in losses])
    found["distill"].backward()
    (sum(losses) / 2).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(f5[0].grad, f5[1].grad)
    torch.testing.assert_close(one.projector.weight.grad, torch.cat([own.projector.weight.grad for own in two]))


def pack_of(images: Tensor) -> Batch:
    """A batch of nothing but images."""
    targets = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,) * len(images))
    return Batch(images, targets, ())


def test_a_tap_takes_several() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 32, 32))
    teachers = two_teachers()
    tap = Tap(model, "0", combine_teachers(teachers), Modulation(3.0), dim=8)
    images = torch.rand(2, 3, 64, 96)
    projected = tap.injector(model(images)).split([6, 10], dim=1)
    apart = [alignment_loss(own, teacher(images, (2, 3))) for own, teacher in zip(projected, teachers, strict=True)]
    torch.testing.assert_close(tap.loss(images), 3 * (apart[0] + apart[1]) / 2)


def test_features_on_disk_are_theirs(tmp_path: Path) -> None:
    split = write_images(tmp_path / "images", 3)
    teacher = combine_teachers(two_teachers())
    features = TeacherFeatures(split, (64, 64), teacher, tmp_path / "features")
    accelerator = make_accelerator("cpu", "off")
    assert features.fill(accelerator, batch=2, workers=0) == 3
    dataset = DetectionDataset(split, (64, 64), Augmentation())
    batch = prepare_batch(pack([dataset[index] for index in range(3)]), (64, 64), "cpu")
    projected = torch.randn(3, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    on_disk, direct = (alignment(projected, batch, teacher, each, accelerator) for each in (features, None))
    assert on_disk.keys() == direct.keys() == {"distill", "teacher_coarse", "teacher_fine"}
    for name, value in direct.items():
        torch.testing.assert_close(on_disk[name], value, rtol=0, atol=2e-3)
    other = TeacherFeatures(split, (64, 64), combine_teachers(two_teachers()[::-1]), tmp_path / "features")
    assert other.folder != features.folder
    function = Teacher(lambda images: images[..., ::32, ::32], name="function", dim=3, stride=32)
    with pytest.raises(ConfigError, match="function is a function"):
        TeacherFeatures(split, (64, 64), combine_teachers([two_teachers()[0], function]), tmp_path)


def test_similarity_is_the_mean_of_theirs() -> None:
    apart = two_teachers()

    class Detector(nn.Module):
        def f5(self, images: Tensor) -> Tensor:
            return images[..., ::32, ::32]

    torch.manual_seed(0)
    student = DistillationStudent(Detector(), Injector(3, 16))
    images = torch.rand(2, 3, 64, 96)
    found = similarity(student, combine_teachers(apart), images)
    projected = student.projected_f5(images).split([6, 10], dim=1)
    cosines = [
        torch.nn.functional.cosine_similarity(own, teacher(images, (2, 3)), dim=1)
        for own, teacher in zip(projected, apart, strict=True)
    ]
    np.testing.assert_allclose(found.cosine, ((cosines[0] + cosines[1]) / 2).detach(), atol=1e-5)


def trainer_of_two(split: Split, out: Path, **given: Any) -> Trainer:
    trainer = make_trainer(split, out, weights=WEIGHTS | LOGGED_ONLY, detector=made_again(), **given)
    teacher = combine_teachers(two_teachers())
    torch.manual_seed(3)
    student = DistillationStudent(trainer.student.detector, Injector(32, teacher.dim))
    settings = {name: getattr(trainer, name) for name in trainer.__dataclass_fields__ if name not in ("student",)}
    settings |= {
        "teacher": teacher,
        "ema": ModelEma(student, trainer.plan.ema_decay, trainer.plan.ema_warmup),
        "optimizer": adamw(parameter_groups(student, lr=1e-3, backbone_lr=5e-4, weight_decay=1e-4)),
    }
    return Trainer(student=student, **settings)


def made_again() -> nn.Module:
    torch.manual_seed(0)
    return make_detector()


def test_a_run_logs_each_and_resumes(tmp_path: Path) -> None:
    split = write_images(tmp_path / "images", 8)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer_of_two(split, whole, plan=make_plan(), observers=[JsonLog(whole / "log.jsonl", 1)]).run()
    epochs = [record["losses"] for record in read_log(whole / "log.jsonl") if record["type"] == "epoch"]
    for losses in epochs:
        mean = (losses["teacher_coarse"] + losses["teacher_fine"]) / 2
        assert losses["distill"] == pytest.approx(mean, abs=1e-5)
        assert losses["teacher_coarse"] != losses["teacher_fine"]
    assert epochs[-1]["distill"] < epochs[0]["distill"]

    class Stop(Observer):
        def epoch_end(self, report: Any) -> None:
            if report.epoch == 2:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        trainer_of_two(split, parts, plan=make_plan(), observers=[Stop()]).run()
    trainer_of_two(split, parts, plan=make_plan()).run(parts / "last.pt")
    assert_same(load_checkpoint(parts / "last.pt"), load_checkpoint(whole / "last.pt"), "last.pt")


def test_by_name_with_commas_between(tmp_path: Path) -> None:
    weights = tmp_path / "a detector, large.safetensors"
    metadata = weights_metadata(RECIPE, ClassMap(("a", "b"), (1, 2)), None)
    save_weights(build_detector(RECIPE, 2).state_dict(), weights, metadata)
    alone = override(RECIPE, {"teacher": str(weights), "distillation.mode": "fixed"})  # a comma in the name of a file
    teacher = build_teacher(alone.distillation, torch.device("cpu"))
    assert teacher is not None
    assert len(teacher.parts) == 1

    other = tmp_path / "other.safetensors"
    weights.rename(other)
    both = override(RECIPE, {"teacher": f"{other}, efficientnet_lite2", "distillation.mode": "fixed"})
    teacher = build_teacher(both.distillation, torch.device("cpu"))
    assert teacher is not None
    assert list(teacher.parts.values()) == [32, 352]
    assert teacher.name.endswith("other.safetensors, efficientnet_lite2")
    assert find_teacher(both) == f"{other}, efficientnet_lite2"
    with pytest.raises(ConfigError, match="teacher_weights and teacher_block need a single teacher"):
        build_teacher(override(both, {"distillation.teacher_block": 1}).distillation, torch.device("cpu"))
    with pytest.raises(ConfigError, match="is not a timm model"):
        build_teacher(override(both, {"teacher": f"{other},"}).distillation, torch.device("cpu"))


def test_only_distill_counts() -> None:
    assert loss_weights(RECIPE.loss)["teacher"] == 0
