from __future__ import annotations

import pytest
import torch
from torch import nn

from golden import table
from rtdetrv4.training import ModelEma


@pytest.mark.parametrize("row", table("schedules")["ema_decay"], ids=lambda row: f"{row['warmups']}-{row['update']}")
def test_decay_equals_the_released_one(row):
    ema = ModelEma(nn.Linear(1, 1), row["decay"], row["warmups"])
    assert ema.decay_at(row["update"]) == pytest.approx(row["value"], rel=1e-6)


def test_decay_without_warmup_is_constant():
    assert ModelEma(nn.Linear(1, 1), 0.9, 0).decay_at(1) == 0.9


def test_parameters_and_statistics_are_averaged():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = ModelEma(model, decay=0.75, warmup=0)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 4
    model(torch.randn(8, 2))
    ema.update(model)
    torch.testing.assert_close(ema.module[0].weight, before + 1)
    torch.testing.assert_close(ema.module[1].running_mean, 0.25 * model[1].running_mean)
    assert ema.module[1].num_batches_tracked == 1
    assert ema.num_updates == 1


def test_the_average_is_a_copy_in_eval_mode_without_gradients():
    model = nn.Linear(2, 2)
    ema = ModelEma(model, 0.9, 10)
    assert not ema.module.training
    assert not ema.module.weight.requires_grad
    assert model.training
    assert model.weight.requires_grad


def test_state_goes_on_as_if_uninterrupted():
    torch.manual_seed(0)
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    ema = ModelEma(model, 0.9, 5)
    ema.update(other)
    resumed = ModelEma(other, 0.5, 5)
    resumed.load_state_dict(ema.state_dict())
    ema.update(model)
    resumed.update(model)
    assert torch.equal(resumed.module.weight, ema.module.weight)
    assert (resumed.num_updates, resumed.decay) == (2, 0.9)


def test_a_restart_goes_on_from_the_average_with_another_decay():
    model = nn.Linear(2, 2)
    ema = ModelEma(model, 0.9, 5)
    ema.update(model)
    with torch.no_grad():
        model.weight.zero_()
    ema.restart(model, 0.8)
    assert torch.equal(model.weight, ema.module.weight)
    assert model.weight.abs().sum() > 0
    assert model.weight.requires_grad
    assert (ema.decay, ema.num_updates) == (0.8, 1)


def test_buffers_come_back_from_the_average():
    model = nn.BatchNorm1d(2)
    ema = ModelEma(model, 0.9, 5)
    model(torch.full((4, 2), torch.nan))
    assert model.running_mean.isnan().all()
    ema.restore_buffers(model)
    assert model.running_mean.tolist() == [0, 0]
    assert model.num_batches_tracked == 0
