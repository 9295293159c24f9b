# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Probes: how well a simple classifier does on features that are not trained.

scikit-learn does the classifying.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.metrics import get_scorer
from sklearn.model_selection import (
    GridSearchCV,
    RepeatedStratifiedKFold,
    StratifiedGroupKFold,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .attentive import AttentiveClassifier

__all__ = (
    'PROBES',
    'TOKEN_PROBES',
    'Score',
    'Split',
    'few_labels',
    'fitted',
    'fixed_split',
    'grouped_folds',
    'repeated_folds',
    'score',
)

#: Known probes, each with what it is.
PROBES: dict[str, str] = {
    'knn': 'majority of the 5 nearest by cosine of standardised features',
    'linear': 'logistic regression on standardised features',
    'ridge': 'ridge regression on standardised features, fast with many samples',
    'attentive': 'one query attends to standardised tokens, a linear layer classifies',
}

#: Of these, what takes the tokens of an image instead of its features.
TOKEN_PROBES = frozenset({'attentive'})

#: Nearest neighbours that vote.
_NEIGHBOURS = 5

#: Regularisation is chosen from these values of C, on so many folds.
_STRENGTHS, _INNER_FOLDS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0), 3

#: Penalties of ridge regression, chosen from by leaving one sample out.
_PENALTIES = (1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4)


class Split(NamedTuple):
    """Positions of the samples to learn from and to be tested on."""

    train: np.ndarray
    test: np.ndarray


class Score(NamedTuple):
    """Accuracy, or another metric, over splits.

    Attributes:
        mean: Its mean.
        std: Its standard deviation over splits; 0 of one split.
        values: Of every split.
    """

    mean: float
    std: float
    values: tuple[float, ...]

    def __str__(self) -> str:
        """Percent, for tables."""
        spread = f' ± {100 * self.std:.1f}' if len(self.values) > 1 else ''
        return f'{100 * self.mean:.1f}{spread}'


def repeated_folds(
    labels: np.ndarray, folds: int = 5, repeats: int = 5, seed: int = 0
) -> list[Split]:
    """Part samples into stratified folds, several times.

    Args:
        labels: Class of every sample, ``(N,)``.
        folds: Number of folds.
        repeats: Number of times.
        seed: Of the folds.

    Returns:
        ``folds * repeats`` splits, the same for every encoder.

    Raises:
        ValueError: If a class has fewer samples than there are folds.
    """
    least = int(np.unique(labels, return_counts=True)[1].min())
    if least < folds:
        raise ValueError(
            f'folds: {folds} folds need as many samples of every class, but one has '
            f'{least}. Use at most {least}.'
        )
    splitter = RepeatedStratifiedKFold(
        n_splits=folds, n_repeats=repeats, random_state=seed
    )
    return [Split(*split) for split in splitter.split(labels, labels)]


def grouped_folds(
    labels: np.ndarray,
    groups: np.ndarray,
    folds: int = 5,
    repeats: int = 5,
    seed: int = 0,
) -> list[Split]:
    """Part samples into folds, several times, and no group with them.

    Neighbours in space are alike; parted, they would be recognised, not classified.

    Args:
        labels: Class of every sample, ``(N,)``.
        groups: Group of every sample, ``(N,)``.
        folds: Number of folds.
        repeats: Number of times.
        seed: Of the folds.

    Returns:
        ``folds * repeats`` splits, stratified as far as groups allow.

    Raises:
        ValueError: If there are fewer groups than folds.
    """
    count = len(np.unique(groups))
    if count < folds:
        raise ValueError(
            f'folds: {folds} folds need as many groups, there are {count}. Use at most '
            f'{count}.'
        )
    return [
        Split(*split)
        for repeat in range(repeats)
        for split in StratifiedGroupKFold(
            folds, shuffle=True, random_state=seed + repeat
        ).split(labels, labels, groups)
    ]


def fixed_split(train: int, test: int) -> list[Split]:
    """Take the dataset's own split, whose samples stand one after the other.

    Args:
        train: Number of samples to learn from.
        test: Number of samples to be tested on.

    Returns:
        One split.
    """
    return [Split(np.arange(train), np.arange(train, train + test))]


def few_labels(
    labels: np.ndarray, splits: Sequence[Split], count: int, draws: int = 5
) -> list[Split]:
    """Learn from a few samples of every class only.

    Args:
        labels: Class of every sample, ``(N,)``.
        splits: Splits to draw from.
        count: Samples of each class.
        draws: Draws in all, at least; every split is drawn from as often.

    Returns:
        The splits.

    Raises:
        ValueError: If a class has fewer samples to learn from.
    """
    each = math.ceil(draws / len(splits))
    return [
        Split(_draw(labels, split.train, count, seed), split.test)
        for seed in range(each)
        for split in splits
    ]


def _draw(labels: np.ndarray, train: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw *count* samples of every class."""
    generator = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        known = train[labels[train] == label]
        if len(known) < count:
            raise ValueError(
                f'labels: class {label} has {len(known)} samples to learn from, not '
                f'{count}. Use at most {len(known)}.'
            )
        drawn.append(generator.choice(known, count, replace=False))
    return np.concatenate(drawn)


def score(
    features: np.ndarray,
    labels: np.ndarray,
    splits: Sequence[Split],
    probe: str = 'linear',
    metric: str = 'accuracy',
) -> Score:
    """Classify frozen features.

    Args:
        features: ``(N, D)``; for ``'attentive'`` tokens ``(N, T, D)``.
        labels: Class of every sample, ``(N,)``.
        splits: What to learn from and to be tested on.
        probe: One of :data:`.PROBES`. How strongly logistic regression is
            regularised is chosen on three folds of what it learns from; with less than
            three samples of a class, it is not chosen (C = 1). Nor do more neighbours
            vote than a class has samples.
        metric: Name of a scorer of scikit-learn, for example ``'accuracy'``,
            ``'balanced_accuracy'``, or of two classes ``'average_precision'``.

    Returns:
        The metric, accuracy by default.

    Raises:
        ValueError: If the probe or the metric is unknown.
    """
    values = tuple(_measure(features, labels, splits, probe, metric))
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return Score(statistics.mean(values), spread, values)


def _measure(
    features: np.ndarray,
    labels: np.ndarray,
    splits: Sequence[Split],
    probe: str,
    metric: str,
) -> Iterator[float]:
    """The metric on every split."""
    measure = get_scorer(metric)
    for split, classifier in fitted(features, labels, splits, probe):
        yield float(measure(classifier, features[split.test], labels[split.test]))


def fitted(
    features: np.ndarray, labels: np.ndarray, splits: Sequence[Split], probe: str
) -> Iterator[tuple[Split, Any]]:
    """Learn from the training samples of every split.

    Args:
        features: ``(N, D)``; for ``'attentive'`` tokens ``(N, T, D)``.
        labels: Class of every sample, ``(N,)``.
        splits: What to learn from.
        probe: One of :data:`.PROBES`.

    Yields:
        Every split, and the classifier.

    Raises:
        ValueError: If the probe is unknown.
    """
    for split in splits:
        classifier = _classifier(probe, labels[split.train])
        yield split, classifier.fit(features[split.train], labels[split.train])


def _classifier(probe: str, labels: np.ndarray) -> Any:
    """Make what learns from samples of these labels."""
    least = int(np.unique(labels, return_counts=True)[1].min())
    model: Any
    match probe:
        case 'knn':
            model = KNeighborsClassifier(min(_NEIGHBOURS, least), metric='cosine')
        case 'linear':
            model = LogisticRegression(max_iter=5000)
            if least >= _INNER_FOLDS:
                model = GridSearchCV(model, {'C': _STRENGTHS}, cv=_INNER_FOLDS)
        case 'ridge':
            model = RidgeClassifierCV(_PENALTIES)
        case 'attentive':
            # Standardises by itself.
            return AttentiveClassifier()
        case _:
            raise ValueError(
                f'probe: {probe!r} is unknown. Use one of {", ".join(PROBES)}.'
            )
    return make_pipeline(StandardScaler(), model)
