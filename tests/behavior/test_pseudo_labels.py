"""Pseudo-labels in a training run: when they count, what they add, and that a run repeats itself with them."""

from __future__ import annotations

import json
import math
import os
import signal

import numpy as np
import pytest
import torch

from rtdetrv4 import Detector
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.loader import build_loader
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.errors import ConfigError
from rtdetrv4.evaluation import CocoEvaluator
from rtdetrv4.training import BatchSheets, Observer, validate
from rtdetrv4.training.batch_sheets import PSEUDO_SHEET
from rtdetrv4.training.checkpoint import load_checkpoint
from rtdetrv4.training.observers import JsonLog, read_log
from small_training import (
    CLASSES,
    SIZE,
    FindsColors,
    KnownLabels,
    assert_same,
    make_detector,
    make_plan,
    make_pseudo_labels,
    make_trainer,
    make_unlabeled,
    with_frozen_norms,
    write_images,
)

STEPS = 2


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 8)


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """Eight images, two of which are empty; an epoch of two steps draws all of them."""
    return write_images(tmp_path_factory.mktemp("more"), 8, empty=(2, 7))


class Record(Observer):
    def __init__(self, action=None, step=None):
        self.steps, self.epochs, self.action, self.step = [], [], action, step

    def step_end(self, report):
        self.steps.append(report)
        if report.step == self.step:
            self.action()

    def epoch_end(self, report):
        self.epochs.append(report)


class PowerCutError(Exception):
    pass


def cut_power():
    raise PowerCutError


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def frozen(seed=0):
    """Images of one kind cannot change the statistics with which the others are normalized."""
    torch.manual_seed(seed)
    return with_frozen_norms(make_detector(num_denoising=0))


def pseudo_steps(record):
    return [report.step for report in record.steps if "pseudo_loss" in report.losses]


def test_they_count_in_their_epochs_only(split, more, tmp_path):
    record = Record()
    pseudo = make_pseudo_labels(more, range(1, 3), STEPS)
    make_trainer(split, tmp_path, pseudo_labels=pseudo, observers=[record, JsonLog(tmp_path / "log.jsonl", 1)]).run()
    assert pseudo_steps(record) == [4, 6]  # six images are one batch, in the second of two steps
    assert [report.pseudo_labels is not None for report in record.epochs] == [False, True, True, False]
    pseudo.label(make_detector(), 1)
    num_boxes = sum(len(each.labels) for each in pseudo.labels.values())
    for report in record.epochs[1:3]:
        assert report.pseudo_labels[:4] == (8, 6, num_boxes, 1)
        assert report.losses["pseudo_boxes"] >= 1 - 1e-6
        assert {"pseudo_mal", "pseudo_bbox", "pseudo_giou", "pseudo_fgl"} < report.losses.keys()
    assert [report.num_images for report in record.steps] == [4, 4, 4, 8, 4, 8, 4, 4]
    logged = [entry["pseudo_labels"] for entry in read_log(tmp_path / "log.jsonl") if entry["type"] == "epoch"]
    assert logged[0] is logged[3] is None
    assert logged[1]["thresholds"] == dict.fromkeys(CLASSES.names, 0.5)


@pytest.mark.parametrize(
    ("epochs", "threshold"),
    [(range(0), 0.5), (range(1, 3), 0.99)],  # none, and above any confidence
)
def test_without_epochs_or_labels_nothing_changes(split, more, tmp_path, epochs, threshold, caplog):
    record = Record()
    pseudo = make_pseudo_labels(more, epochs, STEPS, threshold=threshold)
    make_trainer(split, tmp_path / "beside", pseudo_labels=pseudo, observers=[record]).run()
    make_trainer(split, tmp_path / "alone").run()
    beside, alone = (load_checkpoint(tmp_path / name / "last.pt") for name in ("beside", "alone"))
    assert beside.pop("pseudo_labels")["counts"] == []
    assert alone.pop("pseudo_labels") is None
    assert_same(beside, alone)
    assert not pseudo_steps(record)
    assert ("find too little in the images without labels" in caplog.text) == (threshold == 0.99)


def test_they_add_a_weighted_loss_that_gam_does_not_see(split, more, tmp_path):
    records = {}
    for weight in (None, 0.5, 1e6):
        records[weight] = Record()
        pseudo = None if weight is None else make_pseudo_labels(more, range(1), STEPS, weight=weight)
        make_trainer(
            split,
            tmp_path / str(weight),
            plan=make_plan(epochs=1, refine_from=1, basic_epochs=0),
            detector=frozen(),
            rule="fixed",
            clip_norm=1e-12,  # the weights hardly move, so every step has the same balance
            observers=[records[weight]],
            pseudo_labels=pseudo,
        ).run()
    step = pseudo_steps(records[0.5])[0] - 1
    alone = records[None].steps[step].losses
    for weight in (0.5, 1e6):
        losses = records[weight].steps[step].losses
        assert losses["loss"] == pytest.approx(alone["loss"] + weight * losses["pseudo_loss"], rel=1e-4)
        assert losses["giou"] == pytest.approx(alone["giou"], rel=1e-4)
        share = records[weight].epochs[0].modulation.share
        assert share == pytest.approx(records[None].epochs[0].modulation.share, rel=1e-3)
    norms = [records[weight].steps[step].grad_norm for weight in (None, 1e6)]
    assert norms[1] > 2 * norms[0]


def test_the_gradient_is_that_of_labels(split, tmp_path):
    """What is found counts as labels do: with a weight of 1, twice the mean of two batches of which one has labels."""
    first, second = split._replace(records=split.records[:4]), split._replace(records=split.records[4:])
    pseudo = make_pseudo_labels(second, range(1), 1, augment=Augmentation())
    pseudo.label(make_detector(), 0)
    found = [
        record._replace(
            boxes_xyxy_px=boxes, labels=labels, is_crowd=np.zeros(len(labels), dtype=bool), areas=np.ones(len(labels))
        )
        for record, (boxes, labels) in zip(second.records, pseudo.labels.values(), strict=True)
    ]
    steps = []
    for images, options in (
        (first, {"pseudo_labels": pseudo}),
        (split._replace(records=(*first.records, *found)), {"batch": 8, "accumulate": 2}),
    ):
        record = Record()
        make_trainer(
            images,
            tmp_path / str(len(steps)),
            plan=make_plan(epochs=1, steps_per_epoch=1, refine_from=1, basic_epochs=0),
            detector=frozen(),
            distil=False,
            augment=Augmentation(),
            multi_scale_repeat=None,
            shuffle=False,
            observers=[record],
            **options,
        ).run()
        steps += record.steps
    assert steps[0].losses["loss"] == pytest.approx(2 * steps[1].losses["loss"], rel=1e-5)
    assert steps[0].grad_norm == pytest.approx(2 * steps[1].grad_norm, rel=1e-4)


def measured(split, more, evaluate_calls, **options):
    """Pseudo-labels with thresholds from a validation that finds everything, and that validation."""
    evaluator = CocoEvaluator(split.records, split.classes)
    loader = build_loader(DetectionDataset(split, SIZE), 4, 0, shuffle=False)

    def evaluate(detector):
        evaluate_calls.append(detector)
        return validate(FindsColors(), loader, evaluator, image_size=SIZE)

    pseudo = make_pseudo_labels(more, range(1, 3), STEPS, threshold=None, evaluator=evaluator, **options)
    return {"pseudo_labels": pseudo, "evaluate": evaluate}


def test_thresholds_follow_every_validation(split, more, tmp_path):
    for eval_every, num_calls in ((1, 4), (2, 3)):  # with 2, the weights are evaluated before the second epoch, too
        calls, record = [], Record()
        options = measured(split, more, calls)
        make_trainer(split, tmp_path / str(eval_every), eval_every=eval_every, observers=[record], **options).run()
        assert len(calls) == num_calls
        thresholds = record.epochs[1].pseudo_labels.thresholds
        # Right detections have a confidence of 0.982, wrong ones 0.018: the middle between them.
        assert thresholds == dict.fromkeys(CLASSES.names, pytest.approx(0.5, abs=0.01))
        assert [bool(report.metrics) for report in record.epochs] == [
            number % eval_every == 0 for number in (1, 2, 3, 4)
        ]


def test_weights_that_are_not_good_enough_label_nothing(split, more, tmp_path, caplog):
    options, record = measured(split, more, []), Record()
    options["pseudo_labels"].evaluator = None
    options["pseudo_labels"].thresholds = np.full(len(CLASSES.names), math.inf)
    options["pseudo_labels"].measure = lambda: None  # as if no validation were
    make_trainer(split, tmp_path, observers=[record], **options).run()
    assert not pseudo_steps(record)
    assert "No pseudo-labels yet" in caplog.text


@pytest.mark.parametrize(
    ("action", "step", "options"),
    [
        (press_ctrl_c, 3, {}),  # in the first epoch with pseudo-labels
        (cut_power, 4, {}),  # last.pt is from the end of the epoch before
        (press_ctrl_c, 5, {"accumulate": 2, "amp": "bf16", "workers": 1}),
    ],
)
def test_a_run_resumes_bit_for_bit(split, more, tmp_path, action, step, options):
    def trainer(name, *observers):
        kinds = measured(split, more, [], per_step=options.get("accumulate", 1), batch=2)
        log = JsonLog(tmp_path / name / "log.jsonl", 1)
        unlabeled = {"unlabeled": make_unlabeled(more), "unlabeled_weight": 3.0}
        return make_trainer(split, tmp_path / name, observers=[*observers, log], **kinds, **unlabeled, **options)

    record = Record()
    trainer("whole", record).run()
    assert {3, 4} & set(pseudo_steps(record))
    assert {5, 6} & set(pseudo_steps(record))
    with pytest.raises((KeyboardInterrupt, PowerCutError)):
        trainer("cut", Record(action, step)).run()
    trainer("cut").run(resume=tmp_path / "cut" / "last.pt")
    assert_same(*(load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "cut")))
    logs = [
        [entry["losses"] for entry in read_log(tmp_path / name / "log.jsonl") if "losses" in entry]
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1]


def test_ctrl_c_while_images_are_labeled(split, more, tmp_path):
    class Interrupted(KnownLabels):
        def label(self, detector, epoch):
            if epoch == 2:
                press_ctrl_c()
            super().label(detector, epoch)

    make_trainer(split, tmp_path / "whole", pseudo_labels=make_pseudo_labels(more, range(1, 3), STEPS)).run()
    interrupted = make_pseudo_labels(more, range(1, 3), STEPS, kind=Interrupted)
    with pytest.raises(KeyboardInterrupt, match="epoch 3 of 4 after 0 of 2 steps"):
        make_trainer(split, tmp_path / "cut", pseudo_labels=interrupted).run()
    last = tmp_path / "cut" / "last.pt"
    make_trainer(split, tmp_path / "cut", pseudo_labels=make_pseudo_labels(more, range(1, 3), STEPS)).run(resume=last)
    assert_same(*(load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "cut")))


def test_a_step_that_is_not_finite_is_left_out(split, more, tmp_path):
    record = Record()
    pseudo = make_pseudo_labels(more, range(1, 3), STEPS)
    trainer = make_trainer(split, tmp_path, pseudo_labels=pseudo, observers=[record], distil=False)
    criterion, calls = trainer.criterion, []

    def poisoned(output, targets):
        calls.append(targets)
        terms = criterion(output, targets)
        is_pseudo = len(calls) == 5  # four steps of labels, the last of which has pseudo-labels, too
        return {**terms, "giou": terms["giou"] * math.nan} if is_pseudo else terms

    trainer.criterion = poisoned
    trainer.run()
    bad = [report.step for report in record.steps if not report.is_finite]
    assert bad == [4]
    assert math.isnan(record.steps[3].losses["pseudo_giou"])
    assert math.isfinite(record.steps[3].losses["giou"])


def test_memory_that_runs_out_cuts_them_too(split, tmp_path):
    record = Record()
    pseudo = make_pseudo_labels(split, range(1), 1, augment=Augmentation())
    plan = make_plan(epochs=1, steps_per_epoch=1, refine_from=1)
    trainer = make_trainer(
        split, tmp_path, plan=plan, pseudo_labels=pseudo, observers=[record], distil=False, detector=frozen()
    )
    criterion, sizes = trainer.criterion, []

    def limited(output, targets):
        if len(targets.counts) > 2:
            raise torch.OutOfMemoryError
        sizes.append(len(targets.counts))
        return criterion(output, targets)

    trainer.criterion = limited
    trainer.run()
    assert sizes == [2, 2, 2, 2]
    assert record.steps[0].num_images == 8
    assert record.steps[0].losses["pseudo_boxes"] == pytest.approx(
        sum(len(each.labels) for each in pseudo.labels.values()) / 4
    )


def test_a_picture_shows_what_was_labeled(split, more, tmp_path):
    pseudo = make_pseudo_labels(more, range(1, 3), STEPS)
    sheets = BatchSheets(tmp_path, CLASSES.names, PSEUDO_SHEET)
    make_trainer(split, tmp_path, pseudo_labels=pseudo, pseudo_sheets=sheets).run()
    assert [path.name for path in tmp_path.glob("*.jpg")] == ["pseudo_batch.jpg"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=3, image_size=64)


OPTIONS = {"epochs": 4, "batch": 4, "imgsz": 64, "workers": 0, "tracker": "none", "amp": "off", "teacher": "none"}


def test_train_needs_no_teacher(shapes, tmp_path):
    settings = {"weight": 1.0, "threshold": 0.0, "from_epoch": 1, "until_epoch": 3}
    overrides = {"data.unlabeled": str(shapes), "run.log_every": 1, "pseudo_labels": settings}
    detector = Detector("test", weights="none", device="cpu")
    result = detector.train(shapes, out=tmp_path / "run", overrides=overrides, **OPTIONS)
    log = read_log(result.out / "log.jsonl")
    epochs = [entry for entry in log if entry["type"] == "epoch"]
    assert [entry["pseudo_labels"] is not None for entry in epochs] == [False, True, True, False]
    assert epochs[1]["pseudo_labels"]["num_images"] == 8  # without those that validate
    steps = [entry["epoch"] for entry in log if entry["type"] == "step" and "pseudo_loss" in entry["losses"]]
    assert steps == [2, 2, 3, 3]
    assert (result.out / "pseudo_batch.jpg").is_file()
    curves = json.loads((result.out / "report.json").read_text(encoding="utf-8"))["curves"]["losses"]
    assert [value is None for value in curves["pseudo-labels, weighted"]] == [True, False, False, True]


def test_what_contradicts_is_told_in_a_line(shapes, tmp_path):
    detector = Detector("test", weights="none", device="cpu")

    def train(**settings):
        overrides = {name.replace("__", "."): value for name, value in settings.items()}
        detector.train(shapes, out=tmp_path / "run", overrides=overrides, **OPTIONS)

    with pytest.raises(ConfigError, match=r"data\.unlabeled: .*name a teacher.*pseudo_labels\.weight=1"):
        train(data__unlabeled=str(shapes))
    with pytest.raises(ConfigError, match=r"pseudo_labels\.weight: expected 0 without images.*data\.unlabeled=photos"):
        train(pseudo_labels__weight=1.0)
    with pytest.raises(ConfigError, match=r"until_epoch: expected more than from_epoch \(5\), got 5"):
        train(pseudo_labels__from_epoch=5, pseudo_labels__until_epoch=5)
