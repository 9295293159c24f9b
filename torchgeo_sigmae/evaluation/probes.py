# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Probes: simple classifiers on features that are not trained, by scikit-learn."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .attentive import AttentiveClassifier

__all__ = (
    'PROBES',
    'TOKEN_PROBES',
    'Splits',
    'few_labels',
    'make_probe',
    'percent',
    'probe_scores',
)

#: Names of the probes, with descriptions.
PROBES: dict[str, str] = {
    'knn': 'majority of the 5 nearest by cosine of standardized features',
    'linear': 'logistic regression on standardized features',
    'ridge': 'ridge regression on standardized features, fast with many samples',
    'attentive': 'one query attends to standardized tokens, a linear layer classifies',
}

#: Probes that take the tokens of an image instead of its features.
TOKEN_PROBES = frozenset({'attentive'})

#: Pairs of training and test indices, as scikit-learn's splitters yield them.
Splits = Iterable[tuple[np.ndarray, np.ndarray]]

#: Nearest neighbors that vote.
_NEIGHBORS = 5

#: Regularization is chosen from these values of C, on so many folds.
_STRENGTHS, _INNER_FOLDS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0), 3

#: Penalties of ridge regression, chosen from by leaving one sample out.
_PENALTIES = (1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4)


def probe_scores(
    features: np.ndarray,
    labels: np.ndarray,
    splits: Splits,
    probe: str = 'linear',
    metric: str = 'accuracy',
) -> np.ndarray:
    """Classify frozen features; return the metric on every split.

    Args:
        features: ``(N, D)``; for ``'attentive'`` tokens ``(N, T, D)``.
        labels: Class of every sample, ``(N,)``.
        splits: Indices of training and test samples, for example what
            ``RepeatedStratifiedKFold().split(features, labels)`` yields.
        probe: A name in :data:`.PROBES`. The regularization of logistic regression is
            chosen on three folds of the training samples; C = 1 with fewer than three
            samples of a class.
        metric: Name of a scorer of scikit-learn, for example ``'accuracy'``,
            ``'balanced_accuracy'``, or for two classes ``'average_precision'``.
    """
    splits = list(splits)
    least = min(
        int(np.unique(labels[i], return_counts=True)[1].min()) for i, _ in splits
    )
    return cross_validate(
        make_probe(probe, least), features, labels, cv=splits, scoring=metric,
        error_score='raise',
    )['test_score']  # fmt: skip


def make_probe(probe: str, least: int) -> Any:
    """Make a scikit-learn classifier; the smallest class has *least* samples."""
    model: Any
    match probe:
        case 'knn':
            model = KNeighborsClassifier(min(_NEIGHBORS, least), metric='cosine')
        case 'linear':
            model = LogisticRegression(max_iter=5000)
            if least >= _INNER_FOLDS:
                model = GridSearchCV(model, {'C': _STRENGTHS}, cv=_INNER_FOLDS)
        case 'ridge':
            model = RidgeClassifierCV(_PENALTIES)
        case 'attentive':
            # It standardizes tokens itself.
            return AttentiveClassifier()
        case _:
            raise ValueError(
                f'probe: {probe!r} is unknown. Use one of {", ".join(PROBES)}.'
            )
    return make_pipeline(StandardScaler(), model)


def few_labels(
    labels: np.ndarray, splits: Splits, count: int, draws: int = 5
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw a few training samples of every class; test samples stay.

    Args:
        labels: Class of every sample, ``(N,)``.
        splits: Splits to draw training samples from.
        count: Training samples of each class.
        draws: Least number of draws over all splits; all splits have as many.

    Raises:
        ValueError: If a class has fewer training samples.
    """
    splits = list(splits)
    return [
        (_draw(labels, train, count, seed), test)
        for seed in range(math.ceil(draws / len(splits)))
        for train, test in splits
    ]


def _draw(labels: np.ndarray, train: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw *count* samples of every class."""
    generator = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        members = train[labels[train] == label]
        if len(members) < count:
            raise ValueError(
                f'labels: class {label} has {len(members)} training samples, not '
                f'{count}. Use at most {len(members)}.'
            )
        drawn.append(generator.choice(members, count, replace=False))
    return np.concatenate(drawn)


def percent(scores: np.ndarray) -> str:
    """Write scores as percent for a table: '83.4', or '83.4 ± 1.2' of several."""
    spread = f' ± {100 * np.std(scores, ddof=1):.1f}' if len(scores) > 1 else ''
    return f'{100 * np.mean(scores):.1f}{spread}'
