# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.


import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchgeo_sigmae.masking import (
    MASKINGS,
    SCHEDULES,
    MaskSchedule,
    independent_group_mask,
    random_mask,
    saliency_mask,
    sample_noise,
    spatial_mask,
    whole_group_mask,
)
from torchgeo_sigmae.masking.schedule import interpolate
from torchgeo_sigmae.metrics import VisibilityRatio


def noise_like(score: Tensor, key: int = 0) -> Tensor:
    return sample_noise(key, torch.arange(len(score)), score.shape[1])


def visibility_ratio(schedule: MaskSchedule, score: Tensor, progress: float) -> float:
    metric = VisibilityRatio()
    metric.update(score, schedule.mask(score, noise_like(score), progress).keep)
    return metric.compute().item()


@given(st.floats(0, 1), st.floats(-5, 5), st.floats(-5, 5), st.sampled_from(SCHEDULES))
def test_schedules_stay_between_their_ends(
    progress: float, start: float, end: float, schedule: str
) -> None:
    value = interpolate(progress, start, end, schedule)
    assert min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9
    assert interpolate(1, start, end, schedule) == pytest.approx(end)
    assert interpolate(2, start, end, schedule) == pytest.approx(end)
    first = end if schedule == 'constant' else start
    assert interpolate(0, start, end, schedule) == pytest.approx(first)
    assert interpolate(-1, start, end, schedule) == pytest.approx(first)


def test_shapes_of_schedules() -> None:
    assert interpolate(0.25, 0, 1) == interpolate(0.25, 0, 1, 'linear') == 0.25
    assert interpolate(0.25, 0, 1, 'cosine') == pytest.approx(0.1464466)
    assert interpolate(0.25, 0, 1, 'constant') == 1


def test_easy_first_hard_later() -> None:
    schedule = MaskSchedule(ratio=(0.5, 0.9), strength=(0.0, 2.0))
    assert schedule.ratio_at(0) == 0.5
    assert schedule.ratio_at(0.5) == pytest.approx(0.7)
    assert schedule.strength_at(0.5) == pytest.approx(1.0)
    score = torch.rand(500, 64)
    ratios = [visibility_ratio(schedule, score, p) for p in (0.0, 0.5, 1.0)]
    assert ratios[0] == pytest.approx(1, abs=0.1)
    assert ratios[0] < ratios[1] < ratios[2]


@pytest.mark.parametrize('strategy', list(MASKINGS))
def test_every_strategy_is_its_function(strategy: str) -> None:
    score = torch.rand(6, 20).repeat(1, 3)
    valid = (torch.rand(6, 20) > 0.2).repeat(1, 3)
    noise = noise_like(score)
    schedule = MaskSchedule(strategy, (0.5, 0.75), (0.0, 4.0), groups=3)
    assert schedule.guided == strategy.startswith('saliency')
    assert schedule.strength_at(0.5) == (2.0 if schedule.guided else 0.0)
    expected = {
        'random': lambda: random_mask(noise, 0.75, valid),
        'saliency': lambda: saliency_mask(score, noise, 0.75, 4.0, valid),
        'spatial': lambda: spatial_mask(score, noise, 0.75, 0.0, 3, valid),
        'saliency_spatial': lambda: spatial_mask(score, noise, 0.75, 4.0, 3, valid),
        'group': lambda: independent_group_mask(noise, 0.75, 3, valid),
        'channel': lambda: whole_group_mask(noise, 0.75, 3, valid),
    }
    actual = schedule.mask(score, noise, 1.0, valid)
    for one, other in zip(actual, expected[strategy](), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize('strategy', list(MASKINGS))
def test_fixed_noise_and_no_saliency_make_fixed_masks(strategy: str) -> None:
    """As validation masks: hidden together as in training, but not guided."""
    valid = (torch.rand(50, 20) > 0.2).repeat(1, 3)
    noise = sample_noise(0, torch.arange(50), 60)
    schedule = MaskSchedule(strategy, (0.5, 0.75), (0.0, 4.0), groups=3)
    actual = schedule.mask(torch.zeros(50, 60), noise, 1.0, valid)
    plain = {'saliency': 'random', 'saliency_spatial': 'spatial'}.get(
        strategy, strategy
    )
    unguided = MaskSchedule(plain, 0.75, groups=3)
    expected = unguided.mask(torch.rand(50, 60), noise, 0.0, valid)
    assert torch.equal(actual.keep, expected.keep)
    assert torch.equal(actual.masked, expected.masked)
    hidden = torch.zeros(50, 60, dtype=torch.bool).scatter(1, actual.masked, True)
    groups = hidden.unflatten(1, (3, -1))
    assert (groups == groups[:, :1]).all() == ('spatial' in strategy)


@pytest.mark.parametrize(
    'strategy', ['spatial', 'saliency_spatial', 'group', 'channel']
)
def test_one_token_per_position_has_no_spectrum_to_mask(strategy: str) -> None:
    instead = 'saliency' if 'saliency' in strategy else 'random'
    message = f"masking: '{strategy}' is for models .*one token .*masking='{instead}'"
    with pytest.raises(ValueError, match=message):
        MaskSchedule(strategy)
    MaskSchedule(strategy, groups=2)
    MaskSchedule(instead)


def test_guidance_of_positions_hides_the_salient() -> None:
    score = torch.rand(400, 40).repeat(1, 3)
    plain, guided = (
        visibility_ratio(MaskSchedule(strategy, 0.75, (2.0, 2.0), groups=3), score, 1.0)
        for strategy in ('spatial', 'saliency_spatial')
    )
    assert plain == pytest.approx(1, abs=0.15)
    assert guided > 2


def test_defaults_are_those_of_the_paper_in_our_reading() -> None:
    assert MaskSchedule() == MaskSchedule('saliency', 0.9, (0.0, 1.0), 'linear', 1)
