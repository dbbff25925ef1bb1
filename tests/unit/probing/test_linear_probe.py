"""What a linear classifier tells from features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rtdetrv4.probing.linear_probe import PENALTIES, _fit, _loss, cross_validate  # pyright: ignore[reportPrivateUsage]

FOLDS = torch.arange(200) % 5


def clouds(labels: Tensor, distance: float, seed: int = 0) -> Tensor:
    """Two noisy columns per category, of which those of the row's own are higher."""
    noise = torch.randn(len(labels), 2 * (int(labels.max()) + 1), generator=torch.Generator().manual_seed(seed))
    return noise + distance * torch.nn.functional.one_hot(labels).repeat_interleave(2, dim=1)


def drawn_labels(num_categories: int) -> Tensor:
    return torch.randint(num_categories, (200,), generator=torch.Generator().manual_seed(1))


def test_clouds_apart_are_told_and_noise_is_not() -> None:
    labels = drawn_labels(3)
    apart = cross_validate(clouds(labels, 8.0), labels, FOLDS, 3)
    assert apart.shape == (5, 3)
    assert apart.min() == 1
    noise = cross_validate(clouds(labels, 0.0), labels, FOLDS, 3)
    assert noise.mean() == pytest.approx(1 / 3, abs=0.1)


def test_what_overlaps_is_told_as_well_as_can_be() -> None:
    """Between clouds at distance d, the best rule is right in Φ(d/2) of the cases."""
    labels = torch.arange(4000) % 2
    features = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0)) + 2.0 * labels[:, None]
    recalls = cross_validate(features, labels, torch.arange(4000) // 2 % 5, 2)
    assert recalls.mean() == pytest.approx(torch.special.ndtr(torch.tensor(1.0)).item(), abs=0.015)


def test_a_rare_category_counts_as_much_as_a_frequent_one() -> None:
    labels = (torch.arange(2000) % 20 == 0).long()
    features = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)) + 2.0 * labels[:, None]
    of_frequent, of_rare = cross_validate(features, labels, torch.arange(2000) // 20 % 5, 2).mean(dim=0).tolist()
    assert of_rare == pytest.approx(of_frequent, abs=0.12)  # 0.3 and 0.99 without weights


def test_the_scale_of_features_does_not_matter_nor_does_a_constant_column() -> None:
    labels = drawn_labels(3)
    features = clouds(labels, 1.5)
    scales = torch.logspace(-4, 4, features.shape[1])
    changed = torch.cat([features * scales + 3 * scales, torch.full((200, 1), 7.0)], dim=1)
    first, second = (cross_validate(each, labels, FOLDS, 3) for each in (features, changed))
    assert (first - second).abs().max() < 0.1  # a row or two of a fold at a border
    assert first.mean() > 0.7


def test_a_fold_without_a_category_measures_nothing_of_it() -> None:
    labels = torch.where(FOLDS == 2, 0, drawn_labels(2))
    recalls = cross_validate(clouds(labels, 8.0), labels, FOLDS, 2)
    assert recalls.isnan().nonzero().tolist() == [[2, 1]]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_fit_is_the_minimum(penalty: float) -> None:
    labels = drawn_labels(3)
    features = clouds(labels, 1.0)
    weights = _fit(features, labels, 3, penalty).requires_grad_()
    loss = _loss(features, labels, weights) + penalty / 2 * weights[:-1].square().sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    assert gradient.abs().max() < 1e-3  # as far as a loss in float32 shows
    away = torch.zeros_like(weights)
    assert loss < _loss(features, labels, away)
