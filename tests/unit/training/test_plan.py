from __future__ import annotations

import dataclasses
import math

import pytest

from golden import RECIPES, table
from rtdetrv4.assembly.training import build_plan
from rtdetrv4.config import load_recipe, override
from rtdetrv4.errors import ConfigError
from rtdetrv4.training.plan import (
    AUGMENTED,
    BASIC,
    DENSE,
    REFINEMENT,
    Plan,
    auto_patience,
    few_steps_advice,
    flat_cosine,
    scale_plan,
    split_batch,
)

COCO_IMAGES = 118_287
S = {
    "epochs": 132,
    "steps_per_epoch": COCO_IMAGES // 32,
    "warmup_steps": 2000,
    "flat_epoch": 64,
    "no_aug_epochs": 12,
    "lr_gamma": 0.5,
    "basic_epochs": 4,
    "mosaic_until": 64,
    "refine_from": 120,
    "ema_decay": 0.9999,
    "ema_warmup": 1000,
    "ema_restart_decay": 0.9998,
}


@pytest.mark.parametrize("row", table("schedules")["flat_cosine"], ids=lambda row: f"{row['total']}-{row['step']}")
def test_flat_cosine_equals_the_released_schedule(row):
    lr = flat_cosine(
        row["step"],
        total=row["total"],
        warmup=row["warmup"],
        flat=row["flat"],
        no_aug=row["no_aug"],
        base_lr=row["base_lr"],
        min_lr=row["min_lr"],
    )
    assert lr == pytest.approx(row["lr"], rel=1e-6, abs=1e-15)


def test_where_phases_and_stages_begin():
    plan = Plan(**S)
    starts = {0: 64, 64: 64, 65: 120, 120: 120, 121: None, 131: None}
    assert {epoch: plan.next_phase(epoch) for epoch in starts} == starts
    assert [epoch for epoch in range(plan.epochs) if plan.starts_stage(epoch)] == [0, 4, 64, 120]
    fractional = dataclasses.replace(plan, flat_epoch=63.5)
    assert fractional.next_phase(0) == 64
    constant = dataclasses.replace(plan, lr_gamma=1.0)
    assert constant.next_phase(0) == 120
    without_refinement = dataclasses.replace(constant, refine_from=200)
    assert without_refinement.next_phase(0) is None


@pytest.mark.parametrize(
    ("epochs", "eval_every", "patience"), [(132, 1, 40), (20, 1, 10), (100, 2, 15), (101, 2, 16), (100, 5, 10)]
)
def test_automatic_patience_is_a_share_of_the_evaluations(epochs, eval_every, patience):
    assert auto_patience(epochs, eval_every) == patience


def test_stages_follow_each_other():
    plan = scale_plan(Plan(**S))
    names = [plan.stage(epoch) for epoch in range(plan.epochs)]
    assert names == [BASIC] * 4 + [DENSE] * 60 + [AUGMENTED] * 56 + [REFINEMENT] * 12
    expected = [(BASIC, range(4)), (DENSE, range(4, 64)), (AUGMENTED, range(64, 120)), (REFINEMENT, range(120, 132))]
    assert plan.stages == expected
    assert Plan(**S | {"basic_epochs": 500, "refine_from": 500}).stages == [(BASIC, range(132))]


def test_refinement_only_flips_and_resizes_at_one_scale():
    assert not any((REFINEMENT.mosaic, REFINEMENT.mixup, REFINEMENT.photometric, REFINEMENT.geometric))
    assert not REFINEMENT.multi_scale
    assert REFINEMENT.refinement


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_schedule_at_its_published_size_is_unchanged(name):
    recipe = RECIPES[name]
    settings = S | {
        "epochs": recipe["epochs"],
        "steps_per_epoch": COCO_IMAGES // recipe["total_batch_size"],
        "warmup_steps": recipe["warmup_iter"],
        "flat_epoch": recipe["flat_epoch"],
        "ema_decay": recipe["ema"]["decay"],
        "ema_warmup": recipe["ema"]["warmups"],
    }
    assert dataclasses.asdict(scale_plan(Plan(**settings))) == settings


def test_a_short_run_gets_a_short_warmup_and_a_short_memory():
    small = S | {"epochs": 50, "steps_per_epoch": 18, "flat_epoch": 24, "no_aug_epochs": 5, "refine_from": 45}
    plan = scale_plan(Plan(**small))
    assert plan.warmup_steps == 45  # 5 % of 900
    assert 1 / (1 - plan.ema_decay) == pytest.approx(90)  # 10 % of 900
    assert 1 / (1 - plan.ema_restart_decay) == pytest.approx(90)
    assert plan.ema_warmup * (1 / (1 - plan.ema_decay)) ** -1 == pytest.approx(1000 / 10_000)


@pytest.mark.parametrize("scaling", ["auto", "published"])
def test_the_plan_of_a_recipe_has_its_numbers(scaling):
    settings = {"schedule.epochs": 50, "ema.restart_decay": 0.9998, "schedule.scaling": scaling}
    recipe = override(load_recipe("rtdetrv4-s"), settings)
    schedule, ema = recipe.schedule, recipe.ema
    written = Plan(
        epochs=schedule.epochs,
        steps_per_epoch=18,
        warmup_steps=schedule.warmup_steps,
        flat_epoch=schedule.flat_epoch,
        no_aug_epochs=schedule.no_aug_epochs,
        lr_gamma=schedule.lr_gamma,
        basic_epochs=schedule.basic_epochs,
        mosaic_until=schedule.mosaic_until,
        refine_from=schedule.refine_from,
        ema_decay=ema.decay,
        ema_warmup=ema.warmup,
        ema_restart_decay=ema.restart_decay,
    )
    assert scale_plan(written) != written
    assert build_plan(recipe, 18) == (written if scaling == "published" else scale_plan(written))


def test_only_the_longer_ema_horizon_is_cut():
    plan = scale_plan(
        Plan(**S | {"steps_per_epoch": 500})
    )  # 66 000 steps: horizons of 10 000 and of 5 000, at most 6600
    assert 1 / (1 - plan.ema_decay) == pytest.approx(6600)
    assert plan.ema_restart_decay == 0.9998


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (2, 1), (3, 5)])
def test_the_shortest_runs_learn_at_every_step(epochs, steps):
    ends = {"flat_epoch": 0, "no_aug_epochs": 0, "basic_epochs": 0, "mosaic_until": 0, "refine_from": epochs}
    plan = scale_plan(Plan(**S | ends | {"epochs": epochs, "steps_per_epoch": steps}))
    rates = [plan.lr(step, 1.0) for step in range(plan.total_steps)]
    assert all(0.5 <= rate <= 1 for rate in rates)
    assert plan.warmup_steps == 0
    assert 0 <= plan.ema_decay < 1
    assert math.isfinite(plan.ema_warmup)


def test_the_rate_rises_stays_falls_and_stays():
    plan = scale_plan(Plan(**S))
    per_epoch = plan.steps_per_epoch
    assert plan.lr(0, 1.0) == pytest.approx(1 / 2000**2)
    assert plan.lr(1999, 1.0) == 1
    assert plan.lr(64 * per_epoch - 1, 1.0) == 1
    assert 0.5 < plan.lr(100 * per_epoch, 1.0) < 1
    assert plan.lr(120 * per_epoch, 1.0) == 0.5
    assert plan.lr(plan.total_steps - 1, 1.0) == 0.5


def test_a_run_without_steps_is_refused():
    with pytest.raises(ConfigError, match="0 steps per epoch"):
        Plan(**S | {"steps_per_epoch": 0})


def test_a_batch_is_split_over_ranks_and_parts():
    assert split_batch(32, ranks=4, accumulate=2) == 4
    with pytest.raises(ConfigError, match="multiple of 6, such as 30 or 36"):
        split_batch(32, ranks=3, accumulate=2)
    with pytest.raises(ConfigError, match="such as 8"):
        split_batch(4, ranks=8)


def test_few_steps_are_told_unless_the_recipe_is_for_a_short_run():
    plan = Plan(**S | {"epochs": 50, "steps_per_epoch": 18})
    advice = few_steps_advice(plan, recipe_warmup=2000, batch=16)
    assert advice is not None
    assert "900 optimizer steps are few" in advice
    assert "batch=8 makes 1800 from the same images." in advice
    assert few_steps_advice(plan, recipe_warmup=45, batch=16) is None
    assert few_steps_advice(Plan(**S | {"epochs": 50, "steps_per_epoch": 20}), recipe_warmup=2000, batch=16) is None
