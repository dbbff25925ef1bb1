"""The linear probe: what a linear classifier can tell from features, cross-validated."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1.0, 0.1, 0.01, 1e-3)
"""Weights of ‖W‖²/2 beside the mean loss on standardized features, from which each fold takes what suits it."""
MAX_ITERATIONS = 100


def cross_validate(features: Tensor, labels: Tensor, folds: Tensor, num_categories: int) -> Tensor:
    """The recall of each category in each fold, predicted by logistic regression on the other folds.

    Every category has the same weight in the loss, however many rows it has. The penalty on the weights is chosen
    within the training folds: one of them is held out to judge each of `PENALTIES` by its loss there.

    Args:
        features: (N, D), on the CPU.
        labels: (N,) int64 in [0, `num_categories`).
        folds: (N,) int64; at least three different numbers, from 0 on.
        num_categories: how many there are.

    Returns:
        (folds, `num_categories`) in [0, 1]; NaN where a fold has no row of a category.
    """
    num_folds = int(folds.max()) + 1
    recalls = torch.full((num_folds, num_categories), torch.nan)
    for fold in range(num_folds):
        held_out = (fold + 1) % num_folds
        inner = (folds != fold) & (folds != held_out)
        penalty = _choose_penalty(features, labels, inner, folds == held_out, num_categories)
        is_tested = folds == fold
        mean, scale = _standardization(features[~is_tested])
        weights = _fit((features[~is_tested] - mean) / scale, labels[~is_tested], num_categories, penalty)
        predicted = _logits((features[is_tested] - mean) / scale, weights).argmax(dim=1)
        truth = labels[is_tested]
        for category in truth.unique().tolist():
            recalls[fold, category] = (predicted[truth == category] == category).float().mean()
    return recalls


def _choose_penalty(
    features: Tensor, labels: Tensor, is_fitted: Tensor, is_judged: Tensor, num_categories: int
) -> float:
    """The penalty whose fit has the least loss on other rows."""
    mean, scale = _standardization(features[is_fitted])
    fitted, judged = ((features[rows] - mean) / scale for rows in (is_fitted, is_judged))
    weights: Tensor | None = None
    losses: dict[float, float] = {}
    for penalty in PENALTIES:  # from strong to weak, each starting from the one before
        weights = _fit(fitted, labels[is_fitted], num_categories, penalty, weights)
        losses[penalty] = _loss(judged, labels[is_judged], weights).item()
    return min(losses, key=losses.__getitem__)


def _standardization(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale of each column; one that is constant but for rounding is not scaled."""
    scale, mean = torch.std_mean(features, dim=0, correction=0)
    return mean, torch.where(scale > 1e-6 * mean.abs(), scale, 1.0)


def _fit(features: Tensor, labels: Tensor, num_categories: int, penalty: float, start: Tensor | None = None) -> Tensor:
    """Multinomial logistic regression, (D + 1, categories): weights, and in the last row the biases."""
    weights = torch.zeros(features.shape[1] + 1, num_categories) if start is None else start.clone()
    weights.requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(features, labels, weights) + penalty / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # pyright: ignore[reportArgumentType] - its annotation says float
    return weights.detach()


def _loss(features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy in which each category that is there has the same share."""
    counts = labels.bincount(minlength=weights.shape[1])
    shares = 1 / (counts.clamp(min=1) * (counts > 0).sum())
    return (F.cross_entropy(_logits(features, weights), labels, reduction="none") * shares[labels]).sum()


def _logits(features: Tensor, weights: Tensor) -> Tensor:
    return torch.addmm(weights[-1], features, weights[:-1])
