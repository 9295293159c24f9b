# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import numpy as np
import pytest

from torchgeo_sigmae.evaluation import (
    few_labels,
    fixed_split,
    repeated_folds,
    score,
)
from torchgeo_sigmae.evaluation.probes import PROBES, TOKEN_PROBES

LABELS = np.arange(60) % 3


def blobs(distance: float, probe: str = 'linear') -> np.ndarray:
    """Three classes in ten dimensions, so far apart; or four tokens of each sample."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 10)) * distance
    if probe in TOKEN_PROBES:
        return centres[LABELS][:, None] + generator.normal(size=(60, 4, 10))
    return centres[LABELS] + generator.normal(size=(60, 10))


@pytest.mark.parametrize('probe', list(PROBES))
def test_what_is_apart_is_told_apart_and_noise_is_not(probe: str) -> None:
    splits = repeated_folds(LABELS, 5, 2)
    assert score(blobs(20.0, probe), LABELS, splits, probe).mean == 1
    found = score(blobs(0.0, probe), LABELS, splits, probe)
    assert found.mean == pytest.approx(1 / 3, abs=0.15)
    assert found.std == pytest.approx(np.std(found.values, ddof=1))
    assert len(found.values) == 10
    assert str(found) == f'{100 * found.mean:.1f} ± {100 * found.std:.1f}'


def test_attention_finds_the_one_place_that_tells() -> None:
    """The class is in one of sixteen tokens, which are otherwise alike."""
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    tokens = generator.normal(size=(300, 16, 12))
    place = generator.integers(16, size=300)
    telling = np.eye(12)[labels] * 8 + np.eye(12)[3] * 8
    tokens[np.arange(300), place] += telling
    # The same on average in every class, so that the mean does not tell.
    for label in range(3):
        tokens[labels == label, :, label] -= 8 / 16
    splits = fixed_split(240, 60)
    assert score(tokens, labels, splits, 'attentive').mean > 0.8
    assert score(tokens.mean(1), labels, splits, 'linear').mean < 0.6
    again = score(tokens, labels, splits, 'attentive')
    assert again == score(tokens, labels, splits, 'attentive')


def test_neighbours_against_a_loop() -> None:
    features = blobs(0.7)
    (split,) = fixed_split(40, 20)
    learned, labels = features[split.train], LABELS[split.train]
    mean, std = learned.mean(0), learned.std(0)
    hits = 0
    for sample, label in zip(features[split.test], LABELS[split.test], strict=True):
        cosine = []
        for other in learned:
            one, two = (sample - mean) / std, (other - mean) / std
            cosine.append(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
        nearest = labels[np.argsort(cosine)[::-1][:5]]
        hits += np.bincount(nearest, minlength=3).argmax() == label
    found = score(features, LABELS, [split], 'knn')
    assert found.mean == hits / 20
    assert found.std == 0
    assert str(found) == f'{100 * hits / 20:.1f}'


def test_folds_part_all_samples_and_every_class() -> None:
    splits = repeated_folds(LABELS, 5, 3, seed=1)
    assert len(splits) == 15
    for start in (0, 5, 10):
        tested = np.concatenate([s.test for s in splits[start : start + 5]])
        assert sorted(tested) == list(range(60))
    for train, test in splits:
        assert not set(train) & set(test)
        assert len(train) + len(test) == 60
        assert (np.bincount(LABELS[test]) == 4).all()
    again, other = repeated_folds(LABELS, 5, 3, 1), repeated_folds(LABELS, 5, 3, 2)
    assert all(
        np.array_equal(a.test, b.test) for a, b in zip(splits, again, strict=True)
    )
    assert not np.array_equal(splits[0].test, other[0].test)


def test_few_labels_are_as_many_of_every_class() -> None:
    for splits in (fixed_split(40, 20), repeated_folds(LABELS, 5, 5)):
        few = few_labels(LABELS, splits, 2)
        assert len(few) == max(5, len(splits))
        for i, (train, test) in enumerate(few):
            whole = splits[i % len(splits)]
            assert (np.bincount(LABELS[train]) == 2).all()
            assert set(train) <= set(whole.train)
            assert np.array_equal(test, whole.test)
        assert not np.array_equal(few[0].train, few[-1].train)


@pytest.mark.parametrize('count', [1, 2, 5])
@pytest.mark.parametrize('probe', list(PROBES))
def test_one_label_a_class_is_enough_for_what_is_far_apart(
    probe: str, count: int
) -> None:
    splits = few_labels(LABELS, fixed_split(40, 20), count)
    assert score(blobs(20.0, probe), LABELS, splits, probe).mean == 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r'folds: 30 folds need .* Use at most 20'):
        repeated_folds(LABELS, 30)
    with pytest.raises(ValueError, match=r'labels: class 0 has 14 samples .* not 15'):
        few_labels(LABELS, fixed_split(40, 20), 15)
    with pytest.raises(ValueError, match=r"probe: 'tree' is unknown. Use one of knn"):
        score(blobs(1.0), LABELS, fixed_split(40, 20), 'tree')
