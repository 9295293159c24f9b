# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Is one encoder better than another? Both on the same samples, with an interval."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from torchgeo_sigmae.evaluation.probes import Split, fitted

__all__ = ('Difference', 'bootstrap', 'correct', 'decisions')


class Difference(NamedTuple):
    """A difference, and the 95 % confidence interval of it.

    Attributes:
        value: On the samples at hand.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Points, for tables."""
        return (
            f'{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]'
        )


def correct(
    features: np.ndarray,
    labels: np.ndarray,
    splits: Sequence[Split],
    probe: str = 'linear',
) -> np.ndarray:
    """Say how often every sample is classified correctly when it is tested.

    Args:
        features: ``(N, D)``; for ``'attentive'`` tokens ``(N, T, D)``.
        labels: Class of every sample, ``(N,)``.
        splits: What to learn from and to be tested on.
        probe: One of :data:`.PROBES`.

    Returns:
        ``(N,)`` shares in [0, 1], NaN of samples that are never tested. Over folds that
        test every sample once, their mean is the accuracy.

    Raises:
        ValueError: If the probe is unknown.
    """
    right, tested = np.zeros(len(labels)), np.zeros(len(labels))
    for split, classifier in fitted(features, labels, splits, probe):
        found = classifier.predict(features[split.test])
        right[split.test] += found == labels[split.test]
        tested[split.test] += 1
    share: np.ndarray = np.where(tested > 0, right / np.maximum(tested, 1), np.nan)
    return share


def decisions(
    features: np.ndarray, labels: np.ndarray, split: Split, probe: str = 'ridge'
) -> np.ndarray:
    """Say how sure a classifier of two classes is of the second one.

    Args:
        features: ``(N, D)``.
        labels: Class of every sample, ``(N,)``.
        split: What to learn from and to be tested on.
        probe: One of :data:`.PROBES` whose classifier ranks: linear or ridge.

    Returns:
        One value a tested sample, in the order of ``split.test``; what scikit-learn's
        ranking metrics take.

    Raises:
        ValueError: If the probe is unknown.
    """
    ((_, classifier),) = fitted(features, labels, [split], probe)
    found: np.ndarray = classifier.decision_function(features[split.test])
    return found


def bootstrap(
    measure: Callable[[np.ndarray], float],
    groups: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
) -> Difference:
    """Draw whole groups of samples with replacement, and measure each time.

    Neighbours in space are alike, so samples are not independent; their groups (blocks,
    sites) are nearly so. The interval tells what other groups of the kind would have
    said of these two encoders, not what other seeds of pretraining would have given.

    Args:
        measure: Takes the positions of samples, some more than once, to a difference
            between two encoders.
        groups: Group of every sample, ``(N,)``; ``np.arange(N)`` where each stands for
            itself.
        draws: Number of draws.
        seed: Of the draws: the same groups are drawn for every pair of encoders.

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
