"""Class-balanced sampling: images with rare classes more often."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from rtdetrv4.data.records import Split


def repeat_factors(split: Split) -> NDArray[np.float64]:
    """How much more often to draw each image than one that has only the most frequent class, or no object.

    A class in a share f of the images that have objects gets the factor √(F/f), where F is the share of the most
    frequent class; an image gets the largest factor of its classes. A class that is a hundred times rarer is drawn
    ten times as often. Full balance would repeat a few images until the model knows them by heart.

    Returns:
        (M,), at least 1.

    References:
        LVIS, arXiv 1908.03195, repeat factor sampling; its threshold is F here, so that there is nothing to set.
    """
    classes = [np.unique(record.labels[~record.is_crowd]) for record in split.records]
    counts = np.bincount(np.concatenate(classes), minlength=split.classes.num_classes)
    factors = np.sqrt(counts.max() / np.maximum(counts, 1))
    return np.array([factors[own].max(initial=1.0) for own in classes])


def draw_weighted(weights: NDArray[np.float64], rng: Generator) -> NDArray[np.int64]:
    """As many numbers as there are samples, in random order, each sample in proportion to its weight.

    A sample is drawn as often as its share says, rounded up or down at random. The k-th repetition of sample i is
    i + k · M, by which the dataset gives it another augmentation.

    Args:
        weights: (M,), positive.
        rng: source of randomness.

    Returns:
        (M,) in [0, M · largest number of repetitions).
    """
    num_samples = len(weights)
    order = rng.permutation(num_samples)
    # One number falls into each interval of length 1 (systematic sampling).
    ends = np.cumsum(weights[order]) * (num_samples / weights.sum())
    ends[-1] = num_samples
    drawn = np.floor(ends + rng.random()).astype(np.int64)
    times = np.diff(drawn, prepend=0)
    repetition = np.concatenate([np.arange(count) for count in times])
    return rng.permutation(np.repeat(order, times) + repetition * num_samples)
