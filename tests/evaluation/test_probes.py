# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import numpy as np
import pytest
from sklearn.model_selection import PredefinedSplit, RepeatedStratifiedKFold

from torchgeo_sigmae.evaluation import few_labels, probe_scores
from torchgeo_sigmae.evaluation.probes import PROBES, TOKEN_PROBES, percent

LABELS = np.arange(60) % 3

#: The first 40 samples to learn from, the last 20 to be tested on.
FIXED = list(PredefinedSplit([-1] * 40 + [0] * 20).split())


def folds(repeats: int) -> list[tuple[np.ndarray, np.ndarray]]:
    splitter = RepeatedStratifiedKFold(n_splits=5, n_repeats=repeats, random_state=0)
    return list(splitter.split(LABELS, LABELS))


def blobs(distance: float, probe: str = 'linear') -> np.ndarray:
    """Three classes in ten dimensions, so far apart; or four tokens of each sample."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(3, 10)) * distance
    if probe in TOKEN_PROBES:
        return centers[LABELS][:, None] + generator.normal(size=(60, 4, 10))
    return centers[LABELS] + generator.normal(size=(60, 10))


@pytest.mark.parametrize('probe', list(PROBES))
def test_separate_classes_are_predicted_and_noise_is_not(probe: str) -> None:
    splits = folds(2)
    assert probe_scores(blobs(20.0, probe), LABELS, splits, probe).mean() == 1
    scores = probe_scores(blobs(0.0, probe), LABELS, splits, probe)
    assert scores.mean() == pytest.approx(1 / 3, abs=0.15)
    assert scores.shape == (10,)


def test_percent() -> None:
    assert percent(np.array([0.5, 0.75, 1.0])) == '75.0 ± 25.0'
    assert percent(np.array([0.8345])) == '83.5'


def test_attention_picks_the_informative_token() -> None:
    """The class is in one of sixteen tokens, which are otherwise alike."""
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    tokens = generator.normal(size=(300, 16, 12))
    position = generator.integers(16, size=300)
    telling = np.eye(12)[labels] * 8 + np.eye(12)[3] * 8
    tokens[np.arange(300), position] += telling
    # The same on average in every class, so that the mean does not tell.
    for label in range(3):
        tokens[labels == label, :, label] -= 8 / 16
    splits = list(PredefinedSplit([-1] * 240 + [0] * 60).split())
    attentive = probe_scores(tokens, labels, splits, 'attentive')
    assert attentive > 0.8
    assert probe_scores(tokens.mean(1), labels, splits, 'linear') < 0.6
    assert probe_scores(tokens, labels, splits, 'attentive') == attentive


def test_neighbors_against_a_loop() -> None:
    features = blobs(0.7)
    ((train, test),) = FIXED
    learned, labels = features[train], LABELS[train]
    mean, std = learned.mean(0), learned.std(0)
    hits = 0
    for sample, label in zip(features[test], LABELS[test], strict=True):
        cosine = []
        for other in learned:
            one, two = (sample - mean) / std, (other - mean) / std
            cosine.append(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
        nearest = labels[np.argsort(cosine)[::-1][:5]]
        hits += np.bincount(nearest, minlength=3).argmax() == label
    assert probe_scores(features, LABELS, FIXED, 'knn') == hits / 20


def test_few_labels_are_as_many_of_every_class() -> None:
    for splits in (FIXED, folds(5)):
        few = few_labels(LABELS, splits, 2)
        assert len(few) == max(5, len(splits))
        for i, (train, test) in enumerate(few):
            whole_train, whole_test = splits[i % len(splits)]
            assert (np.bincount(LABELS[train]) == 2).all()
            assert set(train) <= set(whole_train)
            assert np.array_equal(test, whole_test)
        assert not np.array_equal(few[0][0], few[-1][0])


@pytest.mark.parametrize('count', [1, 2, 5])
@pytest.mark.parametrize('probe', list(PROBES))
def test_one_label_a_class_is_enough_for_what_is_far_apart(
    probe: str, count: int
) -> None:
    splits = few_labels(LABELS, FIXED, count)
    assert probe_scores(blobs(20.0, probe), LABELS, splits, probe).mean() == 1


def test_refusals() -> None:
    with pytest.raises(
        ValueError, match=r'labels: class 0 has 14 training samples, not 15'
    ):
        few_labels(LABELS, FIXED, 15)
    with pytest.raises(ValueError, match=r"probe: 'tree' is unknown. Use one of knn"):
        probe_scores(blobs(1.0), LABELS, FIXED, 'tree')
