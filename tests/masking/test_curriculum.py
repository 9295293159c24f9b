# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchgeo_sigmae.masking import (
    SCHEDULES,
    Curriculum,
    channel_mask,
    column_mask,
    fixed_mask,
    group_mask,
    random_mask,
    saliency_mask,
    schedule,
)
from torchgeo_sigmae.masking.curriculum import MASKINGS
from torchgeo_sigmae.metrics import VisibilityRatio


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


@pytest.mark.parametrize('masking', list(MASKINGS))
def test_every_masking_is_its_strategy(masking: str) -> None:
    score = torch.rand(6, 20).repeat(1, 3)
    valid = (torch.rand(6, 20) > 0.2).repeat(1, 3)
    curriculum = Curriculum(masking, (0.5, 0.75), (0.0, 4.0), groups=3)
    assert curriculum.guided == masking.startswith('saliency')
    assert curriculum.beta_at(0.5) == (2.0 if curriculum.guided else 0.0)
    generator = torch.Generator()
    expected = {
        'random': lambda: random_mask(score, 0.75, generator, valid),
        'saliency': lambda: saliency_mask(score, 0.75, generator, valid, 4.0),
        'spatial': lambda: column_mask(score, 0.75, 3, generator, valid),
        'saliency_spatial': lambda: column_mask(score, 0.75, 3, generator, valid, 4.0),
        'group': lambda: group_mask(score, 0.75, 3, generator, valid),
        'channel': lambda: channel_mask(score, 0.75, 3, generator, valid),
    }
    generator.manual_seed(1)
    found = curriculum.mask(score, 1.0, generator, valid)
    generator.manual_seed(1)
    for one, other in zip(found, expected[masking](), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize('masking', list(MASKINGS))
def test_fixed_masks_follow_the_strategy_but_not_its_guidance(masking: str) -> None:
    place = torch.arange(50)
    valid = (torch.rand(50, 20) > 0.2).repeat(1, 3)
    curriculum = Curriculum(masking, (0.5, 0.75), (0.0, 4.0), groups=3)
    found = curriculum.fixed_mask(place, 60, valid)
    kind = {'saliency': 'random', 'saliency_spatial': 'spatial'}.get(masking, masking)
    expected = fixed_mask(place, 60, 0.75, valid, kind, 3)
    assert torch.equal(found.keep, expected.keep)
    assert torch.equal(found.masked, expected.masked)
    hidden = torch.zeros(50, 60, dtype=torch.bool).scatter(1, found.masked, True)
    columns = hidden.unflatten(1, (3, -1))
    assert (columns == columns[:, :1]).all() == ('spatial' in masking)


@pytest.mark.parametrize('masking', ['spatial', 'saliency_spatial', 'group', 'channel'])
def test_one_token_a_place_has_no_spectrum_to_mask(masking: str) -> None:
    instead = 'saliency' if 'saliency' in masking else 'random'
    message = f"masking: '{masking}' is for models .*one token .*masking='{instead}'"
    with pytest.raises(ValueError, match=message):
        Curriculum(masking)
    Curriculum(masking, groups=2)
    Curriculum(instead)


def test_guidance_of_whole_columns_hides_the_salient() -> None:
    score = torch.rand(400, 40).repeat(1, 3)
    ratios = []
    for masking in ('spatial', 'saliency_spatial'):
        curriculum = Curriculum(masking, 0.75, (2.0, 2.0), groups=3)
        mask = curriculum.mask(score, 1.0, torch.Generator().manual_seed(0))
        metric = VisibilityRatio()
        metric.update(score, mask.keep)
        ratios.append(metric.compute().item())
    assert ratios[0] == pytest.approx(1, abs=0.15)
    assert ratios[1] > 2


def test_nothing_is_extrapolated() -> None:
    for shape in SCHEDULES:
        assert schedule(-1, 2.0, 5.0, shape) == schedule(0, 2.0, 5.0, shape)
        assert schedule(3, 2.0, 5.0, shape) == 5.0
    assert schedule(0.25, 0, 1) == 0.25


def test_defaults_are_those_of_the_paper_in_our_reading() -> None:
    assert Curriculum() == Curriculum('saliency', 0.9, (0.0, 1.0), 'linear', 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Curriculum().groups = 2
    with pytest.raises(ValueError, match=r'mask_ratio: 1.2 is not in'):
        Curriculum(mask_ratio=(1.2, 0.5))
    with pytest.raises(ValueError, match='saliency_start, saliency_end'):
        Curriculum(beta=(float('inf'), 0.0))


def test_without_guidance_all_else_stays() -> None:
    one = Curriculum('saliency_spatial', 0.5, (0.0, 2.0), 'cosine', 3)
    assert one.unguided() == Curriculum('spatial', 0.5, (0.0, 2.0), 'cosine', 3)
    assert one.unguided(shape='linear').shape == 'linear'
    assert Curriculum('group', groups=2).unguided() == Curriculum('group', groups=2)
    assert Curriculum().unguided().masking == 'random'
