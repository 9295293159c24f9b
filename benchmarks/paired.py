# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Is one encoder better than another? Both on the same samples, with an interval."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from torchgeo_sigmae.evaluation.probes import Splits, make_probe

__all__ = ('Difference', 'bootstrap', 'correct')


class Difference(NamedTuple):
    """A difference in [-1, 1], with the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Points, for tables."""
        return (
            f'{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]'
        )


def correct(
    features: np.ndarray, labels: np.ndarray, splits: Splits, probe: str = 'linear'
) -> np.ndarray:
    """How often every sample is classified correctly when it is tested.

    Returns ``(N,)`` shares in [0, 1], NaN for samples that are never tested. Over folds
    that test every sample equally often, their mean is the accuracy.
    """
    right, tested = np.zeros(len(labels)), np.zeros(len(labels))
    for train, test in splits:
        least = int(np.unique(labels[train], return_counts=True)[1].min())
        model = make_probe(probe, least).fit(features[train], labels[train])
        right[test] += model.predict(features[test]) == labels[test]
        tested[test] += 1
    return np.where(tested > 0, right / np.maximum(tested, 1), np.nan)


def bootstrap(
    measure: Callable[[np.ndarray], float],
    groups: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
) -> Difference:
    """Draw whole groups of samples with replacement, and measure each time.

    Neighbors in space are alike, so samples are not independent; their groups (blocks,
    sites) nearly are. The interval covers other groups of the same kind for these two
    encoders. It does not cover other seeds of pretraining.

    Args:
        measure: Takes the indices of samples, some more than once, and returns the
            difference between two encoders.
        groups: Group of every sample, ``(N,)``; ``np.arange(N)`` for independent ones.
        draws: Number of draws.
        seed: Seed of the draws: the same groups are drawn for every pair of encoders.

    Returns:
        The difference on all samples, and the 2.5th and 97.5th percentile over draws.
    """
    order = np.argsort(groups, kind='stable')
    _, starts = np.unique(groups[order], return_index=True)
    members = np.split(order, starts[1:])
    generator = np.random.default_rng(seed)
    values = [
        measure(np.concatenate([members[i] for i in drawn]))
        for drawn in generator.integers(len(members), size=(draws, len(members)))
    ]
    low, high = np.percentile(values, (2.5, 97.5))
    return Difference(measure(np.arange(len(groups))), float(low), float(high))
