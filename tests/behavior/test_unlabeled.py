"""Images without labels beside labeled ones: only L_DSI counts on them, and nothing else changes."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from rtdetrv4 import Detector
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.errors import ConfigError
from rtdetrv4.training.checkpoint import load_checkpoint
from rtdetrv4.training.observers import Observer, read_log
from small_training import (
    assert_same,
    make_detector,
    make_plan,
    make_teacher,
    make_trainer,
    make_unlabeled,
    write_images,
)

PLAIN = Augmentation(flip=0.5)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 8)


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("more"), 6)


class Record(Observer):
    def __init__(self):
        self.steps, self.epochs = [], []

    def step_end(self, report):
        self.steps.append(report)

    def epoch_end(self, report):
        self.epochs.append(report)


def run(split, out, unlabeled=None, weight=0.0, **options):
    torch.manual_seed(0)
    record = Record()
    plan = make_plan(epochs=1, steps_per_epoch=2, refine_from=1, basic_epochs=0)
    trainer = make_trainer(
        split,
        out,
        plan=plan,
        detector=make_detector(),  # with batch norms, whose statistics are those of the labeled images
        augment=PLAIN,
        multi_scale_repeat=None,
        observers=[record],
        unlabeled=unlabeled,
        unlabeled_weight=weight,
        **options,
    )
    trainer.run()
    return trainer, record


def test_without_weight_nothing_changes(split, more, tmp_path):
    alone, _ = run(split, tmp_path / "alone")
    beside, record = run(split, tmp_path / "beside", make_unlabeled(more), 0.0)
    assert_same(beside.student.state_dict(), alone.student.state_dict(), rounding=1e-6)
    assert all(0 < report.losses["distill_unlabeled"] < 2 for report in record.steps)


def test_with_weight_l_dsi_counts_and_gam_does_not_see_it(split, more, tmp_path):
    _, alone = run(split, tmp_path / "alone", rule="fixed")
    _, beside = run(split, tmp_path / "beside", make_unlabeled(more), 50.0, rule="fixed")
    first, other = alone.steps[0], beside.steps[0]
    assert other.grad_norm > 1.5 * first.grad_norm
    assert other.losses["distill"] == pytest.approx(first.losses["distill"], rel=1e-5)
    expected = first.losses["loss"] + 50 * other.losses["distill_unlabeled"]
    assert other.losses["loss"] == pytest.approx(expected, rel=1e-5)


def test_gam_measures_the_labeled_images_alone(split, more, tmp_path):
    options = {"rule": "fixed", "clip_norm": 1e-12}  # the weights hardly move, so every step has the same balance
    shares = [
        run(split, tmp_path / name, unlabeled, 1000.0, **options)[1].epochs[0].modulation.share
        for name, unlabeled in (("alone", None), ("beside", make_unlabeled(more)))
    ]
    assert shares[1] == pytest.approx(shares[0], rel=1e-2)


def test_only_steps_with_the_teacher_take_some(split, more, tmp_path):
    _, record = run(split, tmp_path, make_unlabeled(more, per_step=2), 1.0, teach_every=2)
    assert ["distill_unlabeled" in report.losses for report in record.steps] == [True, False]
    assert [report.num_images for report in record.steps] == [4 + 8, 4]


def test_a_stopped_run_resumes_bit_for_bit(split, more, tmp_path):
    class Stop(Observer):
        def step_end(self, report):
            if report.step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    def trainer(out, *observers):
        return make_trainer(split, out, observers=observers, unlabeled=make_unlabeled(more), unlabeled_weight=3.0)

    trainer(tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "cut", Stop()).run()
    trainer(tmp_path / "cut").run(resume=tmp_path / "cut" / "last.pt")
    assert_same(*(load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "cut")))


def test_train_leaves_validation_images_out(tmp_path):
    shapes = write_shapes(tmp_path / "shapes", num_train=8, num_val=3, image_size=64)
    detector = Detector("test", weights="none", device="cpu")
    overrides = {"data.unlabeled": [str(shapes)], "distillation.unlabeled_share": 0.5, "run.log_every": 1}
    options = {"epochs": 1, "batch": 4, "imgsz": 64, "workers": 0, "tracker": "none", "amp": "off"}
    with pytest.raises(ConfigError, match=r"data\.unlabeled: .*name a teacher"):
        detector.train(shapes, out=tmp_path / "none", teacher="none", overrides=overrides, **options)
    result = detector.train(shapes, out=tmp_path / "run", teacher=make_teacher(), overrides=overrides, **options)
    record = json.loads((result.out / "run.json").read_text())
    assert record["data"]["unlabeled"]["images"] == 8
    steps = [entry for entry in read_log(result.out / "log.jsonl") if entry["type"] == "step"]
    assert all(step["num_images"] == 6 and step["losses"]["distill_unlabeled"] > 0 for step in steps)
