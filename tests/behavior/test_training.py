"""What the training loop does and does not do."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import nn

from rtdetrv4.assembly import create_model
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.loader import build_loader
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.distillation import Modulation
from rtdetrv4.errors import NonFiniteError
from rtdetrv4.evaluation import CocoEvaluator
from rtdetrv4.losses import Criterion, HungarianMatcher
from rtdetrv4.training import BatchSheets, Observer, Profiler, default_observers, loop, validate
from rtdetrv4.training.checkpoint import load_checkpoint
from rtdetrv4.training.clock import PHASES
from small_training import (
    CLASSES,
    SIZE,
    WEIGHTS,
    assert_same,
    fixed_score,
    make_detector,
    make_plan,
    make_trainer,
    score_of_weights,
    with_frozen_norms,
    write_images,
)


class Recorder(Observer):
    """Keeps everything it is told."""

    def __init__(self):
        self.steps, self.epochs, self.results = [], [], []

    def run_start(self, info):
        self.info = info

    def step_end(self, report):
        self.steps.append(report)

    def epoch_end(self, report):
        self.epochs.append(report)

    def run_end(self, result):
        self.results.append(result)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 8)


@pytest.fixture(scope="module")
def four_epochs(split, tmp_path_factory):
    recorder = Recorder()
    trainer = make_trainer(split, tmp_path_factory.mktemp("run"), observers=[recorder])
    trainer.run()
    return trainer, recorder


def scores(*values: float):
    """An evaluation that returns these scores in turn."""
    coming = iter(values)

    return lambda detector: fixed_score(detector, next(coming))


def one_epoch(steps: int = 2, **changes):
    return make_plan(epochs=1, steps_per_epoch=steps, refine_from=1, warmup_steps=0, **changes)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# ---- not finite -----------------------------------------------------------------------------------------------------


class Poison:
    """A criterion some of whose steps are not finite."""

    def __init__(self, steps: set[int], kind: str):
        self.criterion, self.steps, self.kind, self.calls = Criterion(HungarianMatcher()), steps, kind, 0

    def __call__(self, output, targets):
        terms = self.criterion(output, targets)
        self.calls += 1
        if self.calls in self.steps:
            if self.kind == "gradient":  # finite value, infinite slope
                terms["bbox"] = terms["bbox"] + (0 * output.boxes.sum()).sqrt()
            else:
                terms["giou"] = terms["giou"] * float(self.kind)
        return terms


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_a_step_that_is_not_finite_is_left_out(split, tmp_path, kind, caplog):
    recorder = Recorder()
    trainer = make_trainer(split, tmp_path, plan=one_epoch(4), batch=2, observers=[recorder])
    trainer.criterion = Poison({2}, kind)
    seen = []
    step = trainer._step

    def watched(*args):
        before = snapshot(trainer.student)
        result = step(*args)
        seen.append(all(torch.equal(before[name], tensor) for name, tensor in trainer.student.named_parameters()))
        return result

    trainer._step = watched
    trainer.run()
    assert seen == [False, True, False, False]
    assert [report.is_finite for report in recorder.steps] == [True, False, True, True]
    assert recorder.epochs[0].num_skipped == 1
    assert math.isfinite(recorder.epochs[0].losses["loss"])
    assert trainer.ema.num_updates == 3
    assert "step 2 skipped: " + ("gradient" if kind == "gradient" else "loss, giou") in caplog.text


def test_nan_images_leave_no_trace_in_the_statistics(split, tmp_path):
    trainer = make_trainer(split, tmp_path, plan=one_epoch(2), evaluate=None)
    calls = []

    def poison(module, inputs):
        calls.append(inputs)
        return inputs[0] * (math.nan if len(calls) == 2 else 1), *inputs[1:]

    trainer.student.detector.backbone.register_forward_pre_hook(poison)
    trainer.run()
    assert trainer.state.position.num_skipped == 1
    assert all(tensor.isfinite().all() for tensor in trainer.student.state_dict().values())
    assert all(tensor.isfinite().all() for tensor in trainer.ema.module.state_dict().values())


def test_too_many_such_steps_in_a_row_end_the_run_with_a_report(split, tmp_path):
    recorder = Recorder()
    trainer = make_trainer(split, tmp_path, plan=one_epoch(4), batch=2, max_skipped=3, observers=[recorder])
    trainer.criterion = Poison({2, 3, 4}, "nan")
    with pytest.raises(NonFiniteError, match=r"3 training steps in a row.* loss, giou.*nonfinite\.json.*amp") as error:
        trainer.run()
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert report["terms_not_finite"] == ["loss", "giou"]
    assert report["losses"]["giou"] == "nan"
    assert (report["epoch"], report["step_of_epoch"]) == (1, 4)
    assert len(report["images"]) == 2
    assert "detector.decoder" in " ".join(report["gradients_not_finite"])
    assert "\n" not in str(error.value)
    assert [result.is_complete for result in recorder.results] == [False]


def test_single_bad_steps_do_not_add_up(split, tmp_path):
    trainer = make_trainer(split, tmp_path, plan=one_epoch(4), batch=2, max_skipped=2)
    trainer.criterion = Poison({1, 3}, "nan")
    trainer.run()
    assert trainer.state.position.num_skipped == 2


# ---- distillation ---------------------------------------------------------------------------------------------------


def test_weight_share_and_raw_loss_of_distillation_are_reported(four_epochs):
    _, recorder = four_epochs
    used = [epoch.distill_weight for epoch in recorder.epochs]
    assert used[0] == 5.0
    assert used[1:] == [epoch.modulation.weight for epoch in recorder.epochs[:-1]]
    assert used[3] == 10.0  # refinement: the default weight
    assert recorder.epochs[2].modulation.reason == "refinement"
    assert all(0 < epoch.modulation.share < 100 for epoch in recorder.epochs)
    for epoch in recorder.epochs:
        steps = [report.losses for report in recorder.steps if report.epoch == epoch.epoch]
        assert epoch.losses["distill"] == pytest.approx(sum(step["distill"] for step in steps) / len(steps))
        assert 0 < epoch.losses["distill"] < 2
        for step in steps:
            weights = WEIGHTS | {"distill": epoch.distill_weight}
            total = sum(weights[name.partition("_")[0]] * value for name, value in step.items() if name != "loss")
            assert step["loss"] == pytest.approx(total, rel=1e-5)


def test_the_teacher_is_not_saved(four_epochs):
    trainer, _ = four_epochs
    state = load_checkpoint(trainer.out / "last.pt")
    assert state["student"].keys() == state["ema"]["module"].keys() == trainer.student.state_dict().keys()
    assert not [name for name in state["student"] if "teacher" in name or "network" in name]
    with safe_open(trainer.out / "weights.safetensors", "pt") as file:
        assert set(file.keys()) == set(trainer.student.detector.state_dict())


def test_without_weight_the_teacher_rests(split, tmp_path):
    trainer = make_trainer(split, tmp_path, plan=one_epoch(), rule="fixed")
    trainer.modulation.weight = 0.0
    trainer.teacher.network = None  # would fail if it were called
    trainer.run()
    assert trainer.student.injector.projector.weight.grad is not None


def test_the_teacher_may_take_part_in_every_second_step_only(split, tmp_path):
    recorder, calls = Recorder(), []
    trainer = make_trainer(split, tmp_path, plan=one_epoch(), rule="fixed", teach_every=2, observers=[recorder])
    trainer.teacher.register_forward_hook(lambda *_: calls.append(None))
    trainer.run()
    assert ["distill" in report.losses for report in recorder.steps] == [True, False]
    assert len(calls) == 1
    assert recorder.epochs[0].losses["distill"] == recorder.steps[0].losses["distill"]  # the mean of those that had it


def test_the_teacher_may_rest_after_some_epochs(split, tmp_path):
    recorder, calls = Recorder(), []
    trainer = make_trainer(split, tmp_path, teach_epochs=2, observers=[recorder])
    trainer.teacher.register_forward_hook(lambda *_: calls.append(None))
    trainer.run()
    taught = [epoch for epoch in recorder.epochs if epoch.modulation is not None]
    assert [epoch.epoch for epoch in taught] == [1, 2]
    assert all(epoch.distill_weight > 0 for epoch in taught)
    assert {epoch.distill_weight for epoch in recorder.epochs[2:]} == {0.0}
    assert len(recorder.epochs) > 2
    assert len(calls) == 2 * trainer.plan.steps_per_epoch
    assert all(("distill" in report.losses) == (report.epoch <= 2) for report in recorder.steps)


def test_a_probe_sets_the_band_of_the_epochs_after_it(split, tmp_path):
    recorder = Recorder()
    trainer = make_trainer(split, tmp_path, observers=[recorder])
    trainer.modulation = Modulation(5.0, rule="auto", probe_epochs=1)
    trainer.run()
    first, second, *_ = (epoch.modulation for epoch in recorder.epochs)
    assert (first.reason, first.weight, first.band) == ("probe", 5.0, None)
    assert second.band == (pytest.approx(0.9 * first.share), pytest.approx(1.1 * first.share))


# ---- where the time goes --------------------------------------------------------------------------------------------


def test_the_time_of_an_epoch_is_divided_among_its_phases(split, tmp_path):
    recorder = Recorder()
    make_trainer(split, tmp_path, plan=one_epoch(), observers=[recorder]).run()
    shares = recorder.epochs[0].shares
    assert tuple(shares) == PHASES
    assert all(share > 0 for share in shares.values())
    assert 0.5 < sum(shares.values()) <= 1


def test_a_profile_names_the_phases_and_the_operators(split, tmp_path, monkeypatch):
    monkeypatch.setattr("rtdetrv4.training.profile.FIRST_STEPS", 1)
    monkeypatch.setattr("rtdetrv4.training.profile.RECORDED_STEPS", 1)
    plan = make_plan(epochs=2, refine_from=1)  # four steps: one warms up, one is recorded
    make_trainer(split, tmp_path, plan=plan, observers=[Profiler(tmp_path / "profile")]).run()
    table = (tmp_path / "profile" / "table.txt").read_text()
    assert "aten::convolution_backward" in table
    for phase in PHASES:
        assert phase in table
    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    assert {event.get("name") for event in events} >= set(PHASES)


def test_without_a_teacher_there_is_no_distillation(split, tmp_path):
    recorder = Recorder()
    make_trainer(split, tmp_path, plan=one_epoch(), distil=False, observers=[recorder]).run()
    assert "distill" not in recorder.steps[0].losses
    assert recorder.epochs[0].modulation is recorder.epochs[0].distill_weight is None
    assert load_checkpoint(tmp_path / "last.pt")["modulation"] is None


# ---- steps ----------------------------------------------------------------------------------------------------------


def test_accumulated_batches_are_one_step(tmp_path):
    # As many boxes in each part as in the other, and no statistics over the batch: then parts add up exactly.
    split = write_images(tmp_path / "images", 1)
    split = split._replace(records=split.records * 4)

    def make(out: str, **options):
        torch.manual_seed(0)
        detector = with_frozen_norms(make_detector(num_denoising=0))
        weights = WEIGHTS | {"ddf": 0.0}  # balanced by counts of the batch
        plan = one_epoch(1)
        return make_trainer(
            split, tmp_path / out, plan=plan, detector=detector, weights=weights, augment=Augmentation(), **options
        )

    recorders = [Recorder(), Recorder()]
    whole = make("whole", observers=recorders[:1])
    parts = make("parts", observers=recorders[1:], accumulate=2)
    before = snapshot(whole.student)
    whole.run()
    parts.run()
    assert parts.ema.num_updates == whole.ema.num_updates == 1
    assert parts.data.loader.batch_size == 2
    one, other = (recorder.steps[0] for recorder in recorders)
    assert other.losses == pytest.approx(one.losses, rel=1e-5)
    assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    assert other.num_images == one.num_images == 4
    gain = parts.student.state_dict()
    for name, expected in whole.student.state_dict().items():
        torch.testing.assert_close(gain[name], expected, rtol=1e-5, atol=1e-6, msg=name)
    assert any(not torch.equal(before[name], gain[name]) for name in before)


def test_gradients_are_clipped_before_the_step(split, tmp_path):
    recorder = Recorder()
    trainer = make_trainer(split, tmp_path, plan=one_epoch(1), clip_norm=0.1, observers=[recorder])
    trainer.run()
    norms = [p.grad.norm() for p in trainer.student.parameters() if p.grad is not None]
    assert recorder.steps[0].grad_norm > 1
    assert torch.stack(norms).norm().item() == pytest.approx(0.1, rel=1e-3)


def test_learning_rates_keep_their_ratio(four_epochs):
    trainer, _ = four_epochs
    assert {(group["lr"], group["initial_lr"]) for group in trainer.optimizer.param_groups} == {
        (5e-4, 1e-3),
        (2.5e-4, 5e-4),
    }


def test_the_forward_pass_is_bf16_and_losses_are_float32(split, tmp_path):
    trainer = make_trainer(split, tmp_path, plan=one_epoch(1), amp="bf16")
    inside, outside = [], []
    trainer.student.detector.hybrid_encoder.aifi.linear1.register_forward_hook(lambda m, i, o: inside.append(o.dtype))
    criterion = trainer.criterion

    def watched(output, targets):
        assert not torch.is_autocast_enabled("cpu")
        outside.extend([output.logits.dtype, output.training.queries.corners.dtype, output.training.f5.dtype])
        return criterion(output, targets)

    trainer.criterion = watched
    trainer.run()
    assert inside[0] == torch.bfloat16
    assert set(outside) == {torch.float32}
    assert {p.dtype for p in trainer.student.parameters()} == {torch.float32}


def test_a_loss_scale_is_taken_out_before_gradients_are_used(split, tmp_path):
    """Fp16 needs a GPU; its scaler does not."""
    recorders = {scale: Recorder() for scale in (None, 1024.0)}
    for scale, recorder in recorders.items():
        trainer = make_trainer(split, tmp_path, plan=one_epoch(2), observers=[recorder])
        if scale is not None:
            with_scaler(trainer, scale)
        trainer.run()
    plain, scaled = recorders.values()
    assert [s.grad_norm for s in scaled.steps] == pytest.approx([s.grad_norm for s in plain.steps], rel=1e-4)
    assert scaled.epochs[0].modulation.share == pytest.approx(plain.epochs[0].modulation.share, rel=1e-4)


def test_an_overflow_lowers_the_scale_and_is_no_alarm(split, tmp_path, caplog):
    trainer = make_trainer(split, tmp_path, plan=one_epoch(2), evaluate=None)
    with_scaler(trainer, 1e38)
    trainer.run()
    assert trainer.accelerator.scaler.get_scale() == pytest.approx(0.25e38)
    assert trainer.state.position.num_skipped == 2
    assert caplog.text == ""
    assert load_checkpoint(tmp_path / "last.pt")["scaler"]["scale"] == pytest.approx(0.25e38)


def with_scaler(trainer, scale: float) -> None:
    """As accelerate sets it up for fp16."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.accelerator.scaler = trainer.optimizer.scaler = scaler
    trainer.accelerator.backward = lambda loss: scaler.scale(loss).backward()
    trainer.accelerator.unscale_gradients = lambda optimizer: scaler.unscale_(optimizer.optimizer)
    trainer.optimizer.__setstate__({})


# ---- epochs ---------------------------------------------------------------------------------------------------------


def test_refinement_begins_with_the_best_weights(split, tmp_path):
    # The second epoch is refinement at a learning rate of zero, so that it ends as it begins: with the best weights.
    plan = make_plan(epochs=3, flat_epoch=1, no_aug_epochs=1, lr_gamma=0.0, refine_from=2, ema_restart_decay=0.7)
    trainer = make_trainer(split, tmp_path, plan=plan, evaluate=scores(0.9, 0.1, 0.2))
    trainer.run()
    best, last = load_checkpoint(tmp_path / "best.pt"), load_checkpoint(tmp_path / "last.pt")
    assert (best["position"]["epoch"], last["position"]["epoch"]) == (1, 3)
    parameters = [name for name, _ in trainer.student.named_parameters()]
    for state in (last["student"], last["ema"]["module"]):
        assert_same(*({name: s[name] for name in parameters} for s in (state, best["ema"]["module"])))
    assert last["ema"]["decay"] == 0.7
    assert last["ema"]["num_updates"] == 6
    assert trainer.student.detector.decoder.layers[0].linear1.weight.requires_grad


def test_refinement_goes_on_without_a_lost_best(split, tmp_path, caplog):
    trainer = make_trainer(split, tmp_path, plan=make_plan(epochs=2, refine_from=1))
    finish = trainer._finish_epoch

    def lose():
        finish()
        (tmp_path / "best.pt").unlink(missing_ok=True)

    trainer._finish_epoch = lose
    trainer.run()
    assert "best.pt does not exist" in caplog.text


def test_best_and_last(split, tmp_path):
    recorder = Recorder()
    plan = make_plan(steps_per_epoch=1, refine_from=4)
    result = make_trainer(split, tmp_path, plan=plan, evaluate=scores(0.2, 0.5, 0.5, 0.3), observers=[recorder]).run()
    assert [epoch.is_best for epoch in recorder.epochs] == [True, True, True, False]
    assert (result.best_epoch, result.best_score, result.best_metrics["ap"]) == (3, 0.5, 0.5)
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["position"]["epoch"] == 3
    assert load_checkpoint(tmp_path / "last.pt")["position"]["epoch"] == 4
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["rtdetrv4"])
        name = "decoder.layers.0.linear1.weight"
        assert torch.equal(file.get_tensor(name), best["ema"]["module"][f"detector.{name}"])
    assert (metadata["epoch"], metadata["metrics"]["ap"], metadata["trained"]) == (3, 0.5, True)


def test_the_average_is_what_is_evaluated(split, tmp_path):
    seen = []

    def evaluate(detector):
        seen.append(detector)
        return score_of_weights(detector)

    trainer = make_trainer(split, tmp_path, plan=one_epoch(), evaluate=evaluate)
    trainer.run()
    assert seen == [trainer.ema.module.detector]


def test_patience(split, tmp_path):
    plan = make_plan(epochs=6, steps_per_epoch=1, refine_from=6)
    trainer = make_trainer(split, tmp_path, plan=plan, evaluate=scores(0.2, 0.5, 0.5, 0.4), patience=2)
    result = trainer.run()
    assert result.is_complete
    assert trainer.position.epoch == 4
    assert result.best_epoch == 3


@pytest.mark.parametrize("lr_gamma", [0.5, 1.0])
def test_patience_goes_on_with_the_next_phase(split, tmp_path, lr_gamma):
    plan = make_plan(epochs=12, steps_per_epoch=1, flat_epoch=5, refine_from=9, lr_gamma=lr_gamma)
    recorder = Recorder()
    evaluate = scores(0.5, *[0.4] * 11)
    trainer = make_trainer(split, tmp_path, plan=plan, evaluate=evaluate, patience=2, observers=[recorder])
    result = trainer.run()
    falls = (6, 7) if lr_gamma < 1 else ()  # else the learning rate never falls, and refinement is next
    assert [epoch.epoch for epoch in recorder.epochs] == [1, 2, 3, *falls, 10, 11]
    assert [step.step for step in recorder.steps] == [1, 2, 3, *falls, 10, 11]
    assert [epoch.stage for epoch in recorder.epochs][-2:] == ["refinement"] * 2
    for step in recorder.steps:
        assert step.lr == max(plan.lr(step.step - 1, base_lr) for base_lr in (1e-3, 5e-4))
    assert result.is_complete
    assert result.best_epoch == 1


@pytest.mark.parametrize(
    ("deadline", "last_flat", "last"),
    [(121, 6, 12), (101, 5, 12), (91, 4, 12), (69, 2, 11), (65, 1, 12), (10, 1, 11)],
)
def test_a_slow_run_skips_flat_epochs_to_end_in_time(split, tmp_path, monkeypatch, deadline, last_flat, last):
    """Epochs take 10 seconds each, and six come after the flat phase; before 15 % of the time, nothing is decided.

    Where that is too late, the run ends with epoch 11, the first with the lowest learning rate.
    """
    clock = SimpleNamespace(now=0.0)

    def monotonic():
        clock.now += 1e-6
        return clock.now

    def evaluate(detector):
        clock.now += 10
        return fixed_score(detector, 0.5)

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=monotonic))
    plan, recorder = make_plan(epochs=12, steps_per_epoch=1, flat_epoch=6, refine_from=9), Recorder()
    make_trainer(split, tmp_path, plan=plan, evaluate=evaluate, deadline=deadline, observers=[recorder]).run()
    assert [epoch.epoch for epoch in recorder.epochs] == [*range(1, last_flat + 1), *range(7, last + 1)]
    late = ([] if last_flat == 6 else [last_flat]) + ([] if last == 12 else [last])
    assert [epoch.epoch for epoch in recorder.epochs if epoch.is_late] == late


@pytest.mark.parametrize(
    ("deadline", "steps", "num_epochs"),
    [(1000, 20, 10), (167.5, 17, 9), (166, 16, 8), (0, 12, 6)],
    ids=["in time", "within an epoch", "after an epoch", "at the first lowest step"],
)
def test_a_slow_run_ends_in_time_at_the_lowest_learning_rate(split, tmp_path, monkeypatch, deadline, steps, num_epochs):
    """A step takes 5 seconds, an evaluation 10, saving 1; from the 12th of 20 steps on, the rate is lowest."""
    clock, recorder = SimpleNamespace(now=0.0), Recorder()

    def evaluate(detector):
        clock.now += 10
        return fixed_score(detector, 0.5)

    def step_end(report):
        clock.now += 5
        recorder.steps.append(report)

    def epoch_end(report):
        clock.now += 1
        recorder.epochs.append(report)

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock.now + 1e-9 * len(recorder.steps)))
    monkeypatch.setattr(recorder, "step_end", step_end)
    monkeypatch.setattr(recorder, "epoch_end", epoch_end)
    plan = make_plan(epochs=10, flat_epoch=1, no_aug_epochs=4, refine_from=10, lr_gamma=0.5)
    trainer = make_trainer(split, tmp_path, plan=plan, evaluate=evaluate, deadline=deadline, observers=[recorder])
    result = trainer.run()
    assert len(recorder.steps) == steps
    assert recorder.steps[-1].lr == recorder.steps[11].lr < recorder.steps[10].lr
    assert len(recorder.epochs) == num_epochs
    assert recorder.epochs[-1].step == steps
    assert recorder.epochs[-1].is_late == (steps < 20)
    assert recorder.epochs[-1].metrics  # what was trained last counts
    assert result.is_complete
    assert trainer.position.epoch == 10


def test_the_best_of_equal_scores_knows_its_epoch_when_others_are_skipped(split, tmp_path):
    plan = make_plan(epochs=9, steps_per_epoch=1, flat_epoch=5, refine_from=9)
    make_trainer(split, tmp_path, plan=plan, evaluate=scores(0.5, 0.5, 0.4), patience=1).run()
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["rtdetrv4"])["epoch"] == 2
    assert load_checkpoint(tmp_path / "last.pt")["position"]["epoch"] == 6


def test_each_phase_has_patience_of_its_own(split, tmp_path):
    plan = make_plan(epochs=6, steps_per_epoch=1, flat_epoch=2, refine_from=4)
    recorder = Recorder()
    evaluate = scores(0.5, *[0.4] * 5)
    make_trainer(split, tmp_path, plan=plan, evaluate=evaluate, patience=2, observers=[recorder]).run()
    assert [epoch.epoch for epoch in recorder.epochs] == [1, 2, 3, 4, 5, 6]


def test_the_starting_weights_are_evaluated_before_the_first_step(split, tmp_path):
    recorders = Recorder(), Recorder()
    for evaluate_start, recorder in zip((True, False), recorders, strict=True):
        out = tmp_path / str(evaluate_start)
        trainer = make_trainer(
            split,
            out,
            plan=one_epoch(2),
            evaluate_start=evaluate_start,
            sheets=BatchSheets(out, CLASSES.names) if evaluate_start else None,
            observers=[recorder],
        )
        start = score_of_weights(trainer.ema.module.detector).to_dict()
        trainer.run()
        assert recorder.info.start_metrics == (start if evaluate_start else {})
    # Neither this nor the pictures of batches change anything.
    assert recorders[0].steps == recorders[1].steps
    assert_same(*(load_checkpoint(tmp_path / name / "last.pt") for name in ("True", "False")))
    assert (tmp_path / "True" / "train_batch.jpg").is_file()


def test_a_resumed_run_has_left_its_start_behind(split, tmp_path):
    make_trainer(split, tmp_path, plan=make_plan(epochs=2, steps_per_epoch=1)).run()
    recorder = Recorder()
    trainer = make_trainer(
        split,
        tmp_path,
        plan=make_plan(epochs=2, steps_per_epoch=1),
        evaluate_start=True,
        sheets=BatchSheets(tmp_path, CLASSES.names),
        observers=[recorder],
    )
    trainer.run(resume=tmp_path / "last.pt")
    assert recorder.info.start_metrics == {}
    assert not list(tmp_path.glob("train_batch*"))


def test_each_stage_leaves_a_picture_of_its_batches(split, tmp_path):
    make_trainer(split, tmp_path, plan=make_plan(steps_per_epoch=1), sheets=BatchSheets(tmp_path, CLASSES.names)).run()
    assert {path.name for path in tmp_path.glob("*.jpg")} == {
        "train_batch.jpg",
        "train_batch-dense.jpg",
        "train_batch-augmented.jpg",
        "train_batch-refinement.jpg",
    }


def test_evaluations_may_be_rarer_than_epochs(split, tmp_path):
    recorder = Recorder()
    plan = make_plan(epochs=3, steps_per_epoch=1, refine_from=3)
    make_trainer(split, tmp_path, plan=plan, eval_every=2, evaluate=scores(0.2, 0.1), observers=[recorder]).run()
    assert [bool(epoch.metrics) for epoch in recorder.epochs] == [False, True, True]
    assert [epoch.is_best for epoch in recorder.epochs] == [False, True, False]


def test_without_validation_the_last_weights_are_the_best(split, tmp_path):
    plan = make_plan(epochs=2, steps_per_epoch=1, refine_from=1)
    trainer = make_trainer(split, tmp_path, plan=plan, evaluate=None)
    result = trainer.run()
    assert (result.best_epoch, result.best_score) == (2, None)
    assert_same(load_checkpoint(tmp_path / "best.pt"), load_checkpoint(tmp_path / "last.pt"))


def test_images_without_boxes_are_learned_from(tmp_path):
    split = write_images(tmp_path / "images", 4, empty=(0, 1, 2, 3))
    recorder = Recorder()
    make_trainer(split, tmp_path, plan=one_epoch(1), observers=[recorder]).run()
    assert recorder.steps[0].is_finite
    assert recorder.steps[0].losses["mal"] > 0


def test_everything_together_on_one_short_run(split, tmp_path, caplog):
    """The real `test` model, real validation, all observers."""
    dataset = DetectionDataset(split, SIZE)
    loader = build_loader(dataset, 3, 0, shuffle=False)
    evaluator = CocoEvaluator(split.records, CLASSES)

    def evaluate(detector):
        return validate(detector, loader, evaluator, image_size=SIZE)

    observers = default_observers(tmp_path, log_every=1)
    detector = create_model("test", num_classes=3, num_queries=20, num_denoising=8)
    trainer = make_trainer(split, tmp_path, detector=detector, plan=one_epoch(), evaluate=evaluate, observers=observers)
    result = trainer.run()
    assert {path.name for path in tmp_path.iterdir()} == {
        "best.pt",
        "curves.png",
        "last.pt",
        "log.jsonl",
        "weights.safetensors",
    }
    assert evaluate(trainer.ema.module.detector).to_dict() == result.best_metrics
    assert result.best_metrics["num_images"] == 8
    assert caplog.text == ""


@pytest.mark.parametrize("event", ["run_start", "step_end", "epoch_end", "run_end"])
def test_an_observer_that_fails_ends_the_run_and_the_others_are_told(split, tmp_path, event):
    class Broken(Observer):
        pass

    def fail(report):
        raise KeyError(f"in {event}")

    before, broken, after = Recorder(), Broken(), Recorder()
    setattr(broken, event, fail)
    trainer = make_trainer(split, tmp_path, plan=one_epoch(), observers=[before, broken, after])
    with pytest.raises(KeyError, match=f"in {event}"):
        trainer.run()
    assert [result.is_complete for result in before.results] == [event == "run_end"]
    assert len(after.results) == (event != "run_start")
    assert (tmp_path / "last.pt").is_file() == (event in ("epoch_end", "run_end"))
