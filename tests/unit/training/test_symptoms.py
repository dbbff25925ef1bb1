from __future__ import annotations

import numpy as np
import pytest

from made_up_run import PLAN, epoch_report, info, step_report
from rtdetrv4.distillation import ModulationReport
from rtdetrv4.training.reports import PseudoLabelReport
from rtdetrv4.training.symptoms import (
    EPOCHS_OUTSIDE,
    WINDOW,
    BandWatch,
    LoaderWatch,
    LossWatch,
    PseudoLabelWatch,
    finds_nothing,
    level,
    rising,
)

# Hundred times bbox + giou of real runs: the model `test` at 64 px on 292 photos of blood cells, from random weights.
# fmt: off
GOOD = (  # lr 1e-3
    120, 118, 117, 117, 118, 118, 118, 117, 113, 117, 117, 114, 118, 115, 112, 113, 121, 108, 110, 106, 107, 113, 108,
    107, 104, 102, 102, 100, 101, 98, 95, 96, 94, 89, 90, 89, 86, 90, 82, 83, 83, 84, 82, 83, 81, 79, 76, 81, 80, 86,
    79, 88, 80, 75, 68, 78, 81, 83, 81, 83, 82, 85, 85, 83, 78, 78, 79, 74, 71, 79, 69, 69, 67, 63,
)
NOISY = (  # lr 1e-2: it soon falls slowly, and one patch of batches is worse
    120, 118, 113, 110, 100, 100, 89, 94, 95, 85, 83, 91, 98, 95, 90, 90, 89, 88, 85, 85, 88, 84, 82, 77, 82, 77, 78,
    70, 70, 78, 65, 77, 76, 73, 74, 81, 74, 76, 71, 73, 74, 82, 82, 86, 79, 74, 74, 75, 66, 74, 73, 74, 69, 72, 71, 78,
    75, 74, 73, 82, 77, 91, 99, 93, 88, 82, 86, 71, 67, 76, 72, 69, 75, 69, 70, 75, 69, 67, 71, 74, 66, 73, 74, 76, 73,
    77, 76, 71, 77,
)
LEVEL = (  # lr 1e-7
    120, 118, 117, 118, 118, 120, 118, 120, 116, 121, 118, 116, 121, 118, 117, 116, 117, 127, 114, 117, 115, 117, 121,
    116, 121, 118, 118, 117, 120, 118, 119, 118, 117, 120, 119, 117, 115, 116, 118, 118, 118, 114, 120, 118, 120, 116,
    116, 120, 116, 116, 121, 118, 114, 117, 115, 121, 114, 117, 119, 120, 120, 121, 114, 119, 114, 118, 115, 122, 116,
    120, 119, 117, 115, 118, 117, 124, 120, 118, 117, 115, 116, 119, 116, 114, 119, 116, 117, 118, 122, 118, 114, 113,
    117, 119, 116, 117, 121, 117, 117, 113, 120, 114, 116, 118, 116, 118, 118, 121, 122, 119, 117, 118, 120, 114, 120,
    119, 117, 118, 119, 118,
)
# fmt: on


def longer(losses, steps):
    """A run that stays as it was in its last 50 steps."""
    return [*losses, *(losses[-50:] * (1 + steps // 50))][:steps]


@pytest.mark.parametrize("losses", [GOOD, NOISY], ids=["good", "noisy"])
@pytest.mark.parametrize("steps", [74, 100, 300, 600])
def test_a_good_loss(losses, steps):
    losses = longer(losses, steps)
    for end in range(1, steps, 10):
        assert rising(losses[:end]) is None
        assert level(losses[:end], steps, 0) is None


def test_a_level_loss():
    assert level(LEVEL, 400, 0) == "the loss of the boxes is 118.00 after 120 steps, and was 118.00 at the start"
    assert level(LEVEL, 601, 0) is None  # a fifth of the run is still to come
    assert level(LEVEL, 10_000, 0) is None
    assert level(LEVEL[:99], 99, 0) is None  # too short to tell
    assert level(longer(LEVEL, 300), 10_000, 0) is not None  # no fifth is that long
    assert level(LEVEL, 400, 21) is None  # warm-up is patience's due
    assert rising(LEVEL) is None


def test_without_any_box_nothing_can_fall():
    assert level([0.0] * 300, 300, 0) is None
    assert rising([0.0] * 300) is None


def test_a_rising_loss():
    low = [*GOOD, *[70] * WINDOW]  # what is before a whole number of windows does not count
    assert rising([*low, *[91] * 2 * WINDOW]) is None
    assert rising([*low, *[92] * 2 * WINDOW]) == "the loss of the boxes has risen from 70.00 to 92.00"
    assert rising([*low, *[92] * WINDOW]) is None  # one window may be an accident
    assert rising([*low, *[92] * WINDOW, *[70] * WINDOW]) is None


@pytest.mark.parametrize("steps", [300, 500, 2000, 20_000])
def test_scatter_is_no_rise(steps):
    """Batches of one image: losses of a level run that scatter by 40 %."""
    for seed in range(20):
        losses = np.random.default_rng(seed).gamma(6.25, 16, steps).tolist()
        for end in np.linspace(steps / 2, steps, 5).astype(int):
            assert rising(losses[:end]) is None


@pytest.mark.parametrize(
    ("scores", "step", "total", "fails"),
    [
        ([0.0, 0.004, 0.001], 500, 1000, True),
        ([0.0, 0.0, 0.0], 499, 1000, False),  # before half of a short run
        ([0.0, 0.0, 0.0], 1000, 100_000, True),
        ([0.0, 0.0, 0.0], 999, 100_000, False),
        ([0.0, 0.0, 0.0], 99, 100, False),  # too short to expect anything
        ([0.0, 0.0], 1000, 1000, False),
        ([0.0, 0.005, 0.0], 1000, 1000, False),
    ],
)
def test_nothing_is_found(scores, step, total, fails):
    assert (finds_nothing(scores, step, total) is not None) == fails


def watch(tmp_path, start_ap=None, **plan):
    watch = LossWatch()
    metrics = {} if start_ap is None else {"ap": start_ap, "ap50": start_ap}
    plan = {"epochs": 100, "steps_per_epoch": 100, "basic_epochs": 50, "mosaic_until": 50, "refine_from": 100} | plan
    watch.run_start(info(tmp_path, start_metrics=metrics)._replace(plan=PLAN.__class__(**{**vars(PLAN), **plan})))
    return watch


def show(watch, losses, first=1):
    for step, loss in enumerate(losses, start=first):
        report = step_report(step)._replace(epoch=(step - 1) // 100 + 1, lr=1e-3)
        watch.step_end(report._replace(losses={"loss": 9.0, "bbox": 0.25 * loss, "giou": 0.75 * loss}))


def warnings(caplog):
    return [record.getMessage() for record in caplog.records]


def test_a_failing_run_is_told_once(tmp_path, caplog):
    failing = watch(tmp_path)
    show(failing, longer(LEVEL, 1000))
    show(failing, [400] * 200, first=1001)
    (message,) = warnings(caplog)
    assert message.startswith("This run looks like one that fails: the loss of the boxes is 118.00 after 300 steps")
    assert "train_batch.jpg" in message
    assert "learning rate, now 1.0e-03" in message


def test_a_rising_loss_is_told_with_its_cure(tmp_path, caplog):
    show(watch(tmp_path, start_ap=0.3), [*[70] * WINDOW, *[100] * 2 * WINDOW])
    (message,) = warnings(caplog)
    assert "has risen from 70.00 to 100.00. The learning rate, now 1.0e-03, is probably too high" in message


def test_a_trained_detector_need_not_improve(tmp_path, caplog):
    show(watch(tmp_path, start_ap=0.3), [70] * 1000)
    learned = watch(tmp_path)
    learned.epoch_end(epoch_report(1))
    show(learned, [70] * 1000)
    assert not warnings(caplog)


def test_another_stage_has_another_level(tmp_path, caplog):
    staged = watch(tmp_path, basic_epochs=1)
    show(staged, [*[65] * 100, *[110] * 10, *[100] * 290])
    assert not warnings(caplog)


def test_skipped_steps_do_not_count(tmp_path, caplog):
    skipping = watch(tmp_path)
    for step in range(1, 400):
        skipping.step_end(step_report(step, float("nan"))._replace(epoch=1))
    assert not warnings(caplog)


def test_finding_nothing_is_told(tmp_path, caplog):
    blind = watch(tmp_path)
    for epoch in range(1, 12):
        metrics = {"ap": 0.0, "ap50": 0.0} if epoch != 5 else {}
        blind.epoch_end(epoch_report(epoch)._replace(step=100 * epoch, metrics=metrics))
    (message,) = warnings(caplog)
    assert "AP50 is 0.0 % after 1000 steps" in message
    assert "train_batch.jpg" in message


def test_validation_images_without_objects_say_nothing(tmp_path, caplog):
    blind = watch(tmp_path)
    for epoch in range(1, 30):
        blind.epoch_end(epoch_report(epoch)._replace(step=100 * epoch, metrics={"ap": None, "ap50": None}))
    assert not warnings(caplog)


def test_waiting_for_images_is_told_once(caplog):
    loader = LoaderWatch()
    slow = epoch_report(1)._replace(shares={"data": 0.62, "forward": 0.1}, seconds=60.0)
    loader.epoch_end(slow)
    assert not warnings(caplog)  # the first epoch also starts the workers
    loader.epoch_end(slow._replace(seconds=2.0))
    loader.epoch_end(slow._replace(shares={"data": 0.5}))
    assert not warnings(caplog)
    loader.epoch_end(slow)
    loader.epoch_end(slow)
    (message,) = warnings(caplog)
    assert message.startswith("Training waits for images 62 % of the time.")


def test_ever_fewer_pseudo_labels_are_told_once(caplog):
    watch = PseudoLabelWatch()

    def see(num_images, num_boxes):
        labels = PseudoLabelReport(num_images, num_images, num_boxes, num_steps=7, thresholds={"red": 0.3})
        watch.epoch_end(epoch_report(1)._replace(pseudo_labels=labels))

    watch.epoch_end(epoch_report(1))
    for images, boxes in ((28, 0), (28, 270), (28, 300), (14, 100), (28, 135)):
        see(images, boxes)
    assert not warnings(caplog)
    see(28, 134)
    see(28, 20)
    (message,) = warnings(caplog)
    assert "4.8 per image now and 9.6 when the pseudo-labels began" in message


@pytest.mark.parametrize("side", ["below", "above"])
def test_a_band_out_of_reach_is_told_once(side, caplog):
    def see(reason, band=(10.0, 12.0)):
        weights[:] = [weights[-1], 10 * weights[-1]]
        report = ModulationReport(weights[1], 3.5, reason, band)
        watch.epoch_end(epoch_report(1)._replace(distill_weight=weights[0], modulation=report))

    watch, weights = BandWatch(), [5.0]
    for reason in (*[side] * (EPOCHS_OUTSIDE - 1), "inside", *[side] * (EPOCHS_OUTSIDE - 1)):
        see(reason)
    see("above" if side == "below" else "below")
    see("fixed", band=None)
    assert caplog.text == ""
    weights = [5.0]
    for _ in range(2 * EPOCHS_OUTSIDE):
        see(side)
    (message,) = (record.getMessage() for record in caplog.records)
    assert f"now 3.50 %, has been {side} the target 10.00–12.00 % for 4 epochs, while λ went from 5 to 5e+04" in message
    assert "distillation.mode=auto" in message
