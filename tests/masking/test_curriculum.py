# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_sigmae.masking import (
    SCHEDULES,
    Curriculum,
    VisibilityRatio,
    random_mask,
    schedule,
)


@given(st.floats(0, 1), st.floats(-5, 5), st.floats(-5, 5), st.sampled_from(SCHEDULES))
def test_schedules_stay_between_their_ends(
    progress: float, start: float, end: float, shape: str
) -> None:
    value = schedule(progress, start, end, shape)
    assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9
    assert schedule(1, start, end, shape) == pytest.approx(end)
    assert schedule(2, start, end, shape) == pytest.approx(end)
    first = end if shape == 'constant' else start
    assert schedule(0, start, end, shape) == pytest.approx(first)


def test_shapes() -> None:
    assert schedule(0.25, 0, 1, 'linear') == pytest.approx(0.25)
    assert schedule(0.25, 0, 1, 'cosine') == pytest.approx(0.1464466)
    assert schedule(0.25, 0, 1, 'constant') == 1


def test_easy_first_hard_later() -> None:
    curriculum = Curriculum(mask_ratio=(0.5, 0.9), beta=(0.0, 2.0))
    assert curriculum.ratio_at(0) == 0.5
    assert curriculum.ratio_at(0.5) == pytest.approx(0.7)
    assert curriculum.beta_at(0.5) == pytest.approx(1.0)
    score = torch.rand(500, 64)
    ratios = []
    for progress in (0.0, 0.5, 1.0):
        generator = torch.Generator().manual_seed(0)
        mask = curriculum.mask(score, progress, generator)
        metric = VisibilityRatio()
        metric.update(score, mask.keep)
        ratios.append(metric.compute().item())
    assert ratios[0] == pytest.approx(1, abs=0.1)
    assert ratios[0] < ratios[1] < ratios[2]


def test_random_ignores_saliency() -> None:
    score = torch.rand(4, 64)
    curriculum = Curriculum('random', 0.75, (5.0, 5.0))
    assert curriculum.beta_at(1.0) == 0
    found = curriculum.mask(score, 1.0, torch.Generator().manual_seed(1))
    expected = random_mask(score, 0.75, torch.Generator().manual_seed(1))
    assert torch.equal(found.keep, expected.keep)


def test_counting_does_not_disturb_the_masks() -> None:
    score = torch.rand(4, 64)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    metric = VisibilityRatio()
    metric.update(score, torch.zeros(4, 6, dtype=torch.long), torch.ones(4, 64) > 0)
    assert torch.equal(torch.rand(4), expected)


def test_visibility_ignores_invalid_tokens() -> None:
    score = torch.arange(20.0)[None]
    valid = torch.ones(1, 20, dtype=torch.bool)
    valid[0, 10:] = False
    metric = VisibilityRatio()
    metric.update(score, torch.tensor([[0, 15, 16, 9]]), valid)
    assert metric.least == 1
    assert metric.most == 1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'masking': 'block'}, "masking: 'block' is unknown. Use one of random"),
        ({'shape': 'step'}, "curriculum: 'step' is unknown"),
        ({'mask_ratio': 1.0}, r'mask_ratio: 1.0 is not in \(0, 1\)'),
        ({'mask_ratio': (0.1, 0.2, 0.3)}, r'neither a number nor a pair'),
        ({'beta': (0.0, float('nan'))}, 'saliency_start, saliency_end: .* finite'),
        ({'mask_ratio': (0.5, 1.2)}, r'mask_ratio: 1.2 is not in \(0, 1\)'),
    ],
)
def test_bad_settings(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curriculum(**arguments)
