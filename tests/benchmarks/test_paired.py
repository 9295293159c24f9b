# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Intervals of differences between encoders."""

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.datasets import make_classification
from sklearn.model_selection import PredefinedSplit, RepeatedStratifiedKFold

from benchmarks.paired import Difference, bootstrap, correct
from torchgeo_sigmae.evaluation import probe_scores


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    return make_classification(120, 12, n_informative=4, flip_y=0.2, random_state=0)


def test_their_mean_is_the_accuracy(data: tuple[np.ndarray, np.ndarray]) -> None:
    folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=3, random_state=0)
    splits = list(folds.split(*data))
    right = correct(*data, splits, 'ridge')
    expected = probe_scores(*data, splits, 'ridge').mean()
    assert right.mean() == pytest.approx(expected, abs=1e-12)
    assert 0.5 < expected < 1


def test_samples_that_are_never_tested(data: tuple[np.ndarray, np.ndarray]) -> None:
    splits = PredefinedSplit([-1] * 80 + [0] * 40).split()
    right = correct(*data, splits, 'ridge')
    assert np.isnan(right[:80]).all()
    assert set(right[80:]) == {0, 1}


def test_as_scipys_where_each_sample_stands_for_itself() -> None:
    values = np.random.default_rng(1).normal(0.1, 1, 200)
    interval = bootstrap(lambda i: values[i].mean(), np.arange(200), draws=4000)
    expected = scipy_bootstrap(
        (values,), np.mean, n_resamples=4000, method='percentile', rng=0
    ).confidence_interval
    assert interval.value == values.mean()
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=0.01)


def test_groups_are_drawn_whole() -> None:
    """Samples that repeat each other tell no more than one of them."""
    values = np.random.default_rng(1).normal(0, 1, 30)
    alone = bootstrap(lambda i: values[i].mean(), np.arange(30))
    repeated = np.repeat(values, 50)
    shuffled = np.random.default_rng(2).permutation(len(repeated))
    groups = np.repeat(np.arange(30), 50)[shuffled]
    together = bootstrap(lambda i: repeated[shuffled][i].mean(), groups)
    assert together == pytest.approx(alone)


def test_an_encoder_is_no_better_than_itself(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=1, random_state=0)
    right = correct(*data, folds.split(*data), 'ridge')
    same = bootstrap(lambda i: (right - right)[i].mean(), np.arange(120))
    assert same == Difference(0, 0, 0)
    assert str(Difference(0.0123, -0.001, 0.02)) == '+1.2 [-0.1, +2.0]'
