from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn

from rtdetrv4.config.schema import DistillationConfig
from rtdetrv4.distillation import Modulation, next_weight
from rtdetrv4.distillation.modulation import Rule
from rtdetrv4.errors import ConfigError


class Student(nn.Module):
    """With gradients whose absolute values sum to these numbers."""

    def __init__(self, f5: float, rest: float, projector: float) -> None:
        super().__init__()
        self.f5 = nn.Linear(2, 1, bias=False)
        self.rest = nn.Linear(3, 1, bias=False)
        self.projector = nn.Linear(1, 1)
        for module, total in ((self.f5, f5), (self.rest, rest), (self.projector, projector)):
            parameters = list(module.parameters())
            count = sum(parameter.numel() for parameter in parameters)
            for parameter in parameters:
                signs = torch.ones_like(parameter)
                signs.view(-1)[0] = -1
                parameter.grad = signs * total / count


def observe(modulation: Modulation, **gradients: float) -> None:
    student = Student(**gradients)
    modulation.observe(student.f5, student)


def test_share_is_the_part_of_the_l1_norm_with_the_projector_below_only() -> None:
    modulation = Modulation(5.0)
    observe(modulation, f5=2, rest=5, projector=1)
    observe(modulation, f5=0, rest=5, projector=1)
    report = modulation.end_epoch(refinement=False)
    assert report.share == pytest.approx((100 * 2 / 8 + 0) / 2)
    assert report == (5.0, report.share, "fixed", None)


def test_weight_moves_when_the_band_is_left_and_stays_inside() -> None:
    modulation = Modulation(5.0, rho=20, delta=2, default_weight=9.0, rule="gam")
    observe(modulation, f5=20, rest=79, projector=1)
    assert modulation.end_epoch(refinement=False).reason == "inside"
    assert modulation.weight == 5.0
    observe(modulation, f5=10, rest=89, projector=1)
    assert modulation.end_epoch(refinement=False).reason == "below"
    assert modulation.weight == pytest.approx(5 * (22 / 78) / (10 / 90), rel=1e-5)
    observe(modulation, f5=10, rest=89, projector=1)
    assert modulation.end_epoch(refinement=True).reason == "refinement"
    assert modulation.weight == 9.0


def test_paper_rule_scales_by_the_share() -> None:
    band = {"rho": 11, "delta": 1, "default_weight": 20, "refinement": False, "rule": "gam_paper"}
    assert next_weight(5.0, 8.0, **band) == (pytest.approx(5 * 12 / 8), "below")
    assert next_weight(5.0, 16.0, **band) == (pytest.approx(5 * 10 / 16), "above")


def test_steps_that_are_not_finite_do_not_count() -> None:
    modulation = Modulation(5.0)
    observe(modulation, f5=2, rest=7, projector=1)
    observe(modulation, f5=float("nan"), rest=5, projector=1)
    assert modulation.end_epoch(refinement=False).share == pytest.approx(20)


def test_an_epoch_without_steps_resets() -> None:
    modulation = Modulation(5.0, rho=11, delta=1, default_weight=20, rule="gam")
    assert modulation.end_epoch(refinement=False) == (20, 0.0, "reset", (10, 12))


def test_state_survives_in_the_middle_of_an_epoch() -> None:
    first = Modulation(5.0, rho=11, delta=1, default_weight=20, rule="gam")
    observe(first, f5=3, rest=6, projector=1)
    second = Modulation(1.0, rho=11, delta=1, default_weight=20, rule="gam")
    second.load_state_dict(first.state_dict())
    for modulation in (first, second):
        observe(modulation, f5=1, rest=8, projector=1)
    assert first.end_epoch(refinement=False) == second.end_epoch(refinement=False)
    assert first.weight == second.weight != 5.0


def test_the_second_half_of_a_probe_finds_the_band_under_the_starting_weight() -> None:
    modulation = Modulation(5.0, rho=11, delta=1, default_weight=20, rule="auto", probe_epochs=3)
    for shares in ((30,), (2, 4), (6,)):
        for share in shares:
            observe(modulation, f5=share, rest=99 - share, projector=1)
        report = modulation.end_epoch(refinement=False)
        assert (report.weight, report.reason, report.band) == (5.0, "probe", None)
    assert modulation.rho == pytest.approx(4)  # the mean over steps, not over epochs, and without the first epoch
    assert modulation.delta == pytest.approx(0.4)
    observe(modulation, f5=4.3, rest=94.7, projector=1)
    report = modulation.end_epoch(refinement=False)
    assert report.reason == "inside"
    assert report.band == (pytest.approx(3.6), pytest.approx(4.4))


def test_a_probe_that_saw_nothing_goes_on() -> None:
    modulation = Modulation(5.0, rho=11, delta=1, default_weight=20, rule="auto", probe_epochs=1)
    observe(modulation, f5=float("nan"), rest=5, projector=1)
    assert modulation.end_epoch(refinement=False).reason == "probe"
    observe(modulation, f5=10, rest=89, projector=1)
    assert modulation.end_epoch(refinement=False).reason == "probe"
    assert modulation.rho == pytest.approx(10)


def test_a_probe_goes_on_after_a_resume() -> None:
    first = Modulation(5.0, rho=11, delta=1, default_weight=20, rule="auto", probe_epochs=2)
    observe(first, f5=4, rest=95, projector=1)
    first.end_epoch(refinement=False)
    observe(first, f5=6, rest=93, projector=1)
    second = Modulation(1.0, rho=11, delta=1, default_weight=20, rule="auto", probe_epochs=2)
    second.load_state_dict(first.state_dict())
    for modulation in (first, second):
        observe(modulation, f5=8, rest=91, projector=1)
    assert first.end_epoch(refinement=False) == second.end_epoch(refinement=False)
    assert first.rho == second.rho == pytest.approx(7)
    assert second.state_dict() == first.state_dict()


BAND = {"rho": 11.0, "delta": 1.0}


def test_rules_are_the_modes_of_recipes() -> None:
    modes = get_args(DistillationConfig.model_fields["mode"].annotation)
    assert set(get_args(Rule)) == set(modes) - {"off"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rule": "released"}, 'rule: got "released", expected one of fixed, gam, gam_paper, auto'),
        ({"weight": -5.0}, "weight: got -5.0, expected a finite number"),
        ({"weight": float("inf")}, "weight: got inf"),
        ({"weight": float("nan")}, "weight: got nan"),
        ({"default_weight": -1.0}, "default_weight: got -1.0"),
        ({"rule": "gam"}, r'band of 0.0 ± 0.0, expected one between 0 and 100 percent; rule="auto"'),
        ({"rule": "gam", "rho": 150.0, "delta": 1.0}, "band of 150.0 ± 1.0"),
        ({"rule": "gam_paper", "rho": 11.0, "delta": 12.0}, "band of 11.0 ± 12.0"),
        ({"rule": "gam", "rho": 11.0, "delta": -1.0}, "band of 11.0 ± -1.0"),
        ({"rule": "auto"}, 'probe_epochs: got 0 with rule="auto"'),
        ({"rule": "gam", "probe_epochs": 2, **BAND}, 'probe_epochs: got 2 with rule="gam"'),
    ],
)
def test_mistakes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Modulation(**{"weight": 5.0, **given})


def test_the_rule_of_the_paper_is_followed_only_where_it_is_named() -> None:
    weights = {}
    for rule in ("gam", "gam_paper"):
        modulation = Modulation(5.0, rule=rule, **BAND)
        observe(modulation, f5=5, rest=94, projector=1)
        weights[rule] = modulation.end_epoch(refinement=False).weight
    assert weights == {"gam": pytest.approx(5 * (12 / 88) / (5 / 95)), "gam_paper": pytest.approx(5 * 12 / 5)}
