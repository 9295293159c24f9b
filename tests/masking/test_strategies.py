# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import itertools
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchgeo_sigmae.masking import (
    TokenMask,
    channel_mask,
    column_mask,
    fixed_mask,
    group_mask,
    num_masked_tokens,
    random_mask,
    saliency_mask,
    saliency_ranks,
    select_predicted,
)
from torchgeo_sigmae.masking.noise import hashed_noise
from torchgeo_sigmae.masking.spectral import in_columns, mask_channels, mask_groups
from torchgeo_sigmae.masking.strategies import mask_highest
from torchgeo_sigmae.metrics import VisibilityRatio

STRATEGIES = {
    'random': random_mask,
    'saliency': saliency_mask,
    'saliency, beta 0': lambda *args: saliency_mask(*args, beta=0.0),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(2, 150),
    ratio=st.floats(0.001, 0.999),
    strategy=st.sampled_from(list(STRATEGIES)),
    seed=st.integers(0, 2**31),
)
def test_every_mask_is_a_partition(
    tokens: int, ratio: float, strategy: str, seed: int
) -> None:
    score = torch.rand(3, tokens, generator=generator(seed))
    mask = STRATEGIES[strategy](score, ratio, generator(seed))
    assert 1 <= mask.keep.shape[1] < tokens
    assert mask.masked.shape[1] == num_masked_tokens(tokens, ratio)
    both = torch.cat([mask.keep, mask.masked], dim=1).sort(dim=1).values
    assert (both == torch.arange(tokens)).all()


@pytest.mark.parametrize(
    ('tokens', 'ratio', 'count'),
    [(64, 0.9, 58), (144, 0.9, 130), (64, 0.75, 48), (2, 0.99, 1), (64, 0.001, 1)],
)
def test_number_of_masked_tokens(tokens: int, ratio: float, count: int) -> None:
    assert num_masked_tokens(tokens, ratio) == count


@pytest.mark.parametrize('strategy', ['random', 'saliency, beta 0'])
def test_beta_zero_is_uniform(strategy: str) -> None:
    # All C(6, 3) = 20 masks equally often: chi-square with 19 degrees of freedom.
    draws = 20_000
    score = torch.rand(1, 6, generator=generator()).expand(draws, -1)
    keep = STRATEGIES[strategy](score, 0.5, generator(7)).keep
    code = (2**keep).sum(dim=1)
    subsets = [sum(2**i for i in c) for c in itertools.combinations(range(6), 3)]
    observed = torch.tensor([(code == s).sum().item() for s in subsets])
    assert observed.sum() == draws
    expected = draws / len(subsets)
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert chi_square < 43.82  # the 0.1 % point


def test_a_larger_beta_is_not_uniform() -> None:
    score = torch.arange(6.0).expand(20_000, -1)
    keep = saliency_mask(score, 0.5, generator(7), beta=1.0).keep
    seen = torch.bincount(keep.flatten(), minlength=6).float()
    expected = torch.full((6,), 10_000.0)
    assert ((seen - expected) ** 2 / expected).sum() > 43.82
    assert (seen.diff() < 0).all()  # the more salient, the less often seen


def test_fixed_masks_depend_on_the_place_alone() -> None:
    place = torch.arange(20)
    whole = fixed_mask(place, 64, 0.75)
    parts = torch.cat([fixed_mask(p, 64, 0.75).keep for p in place.split(3)])
    assert torch.equal(whole.keep, parts)
    assert torch.equal(fixed_mask(place[5:6].int(), 64, 0.75).keep[0], whole.keep[5])
    valid = torch.rand(20, 64, generator=generator()) > 0.2
    masked = fixed_mask(place, 64, 0.75, valid)
    assert valid.gather(1, masked.keep).all()


def test_fixed_masks_are_uniform() -> None:
    # All C(6, 3) = 20 masks equally often, over places; neighbours are unrelated.
    keep = fixed_mask(torch.arange(20_000), 6, 0.5).keep
    code = (2**keep).sum(dim=1)
    subsets = [sum(2**i for i in c) for c in itertools.combinations(range(6), 3)]
    observed = torch.tensor([(code == s).sum().item() for s in subsets])
    assert ((observed - 1000.0) ** 2 / 1000).sum() < 43.82
    same = (code[1:] == code[:-1]).float().mean()
    assert abs(same - 0.05) < 0.005


def expected_visibility_ratio(beta: float, ratio: float, tokens: int) -> float:
    """The limit of many tokens: visible where beta * rank + Gumbel < a threshold.

    P(visible | rank) = exp(-c exp(beta (rank - 1/2))), with c such that the mean over
    ranks is the visible share.
    """
    rank = torch.arange(tokens, dtype=torch.float64) / (tokens - 1)
    weight = (beta * (rank - 0.5)).exp()
    low, high = 0.0, 100.0
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if (-c * weight).exp().mean() > 1 - ratio else (low, c)
    visible = (-c * weight).exp()
    return float(visible[rank < 0.1].mean() / visible[rank > 0.9].mean())


@pytest.mark.parametrize('beta', [-1.0, 0.0, 0.5, 1.0])
@pytest.mark.parametrize('ratio', [0.75, 0.9])
def test_visibility_follows_beta(beta: float, ratio: float) -> None:
    score = torch.rand(4000, 144, generator=generator())
    mask = saliency_mask(score, ratio, generator(1), beta=beta)
    metric = VisibilityRatio()
    metric.update(score, mask.keep)
    expected = expected_visibility_ratio(beta, ratio, 144)
    assert metric.compute().item() == pytest.approx(expected, rel=0.1)
    if beta > 0:
        assert expected > 1.5


def test_every_token_keeps_a_chance_to_be_seen() -> None:
    score = torch.arange(64.0).expand(5000, -1)
    keep = saliency_mask(score, 0.9, generator(), beta=1.0).keep
    assert (torch.bincount(keep.flatten(), minlength=64) > 0).all()


def test_only_order_matters_and_ties_are_random() -> None:
    score = torch.rand(8, 30, generator=generator())
    a = saliency_mask(score, 0.5, generator(3), beta=2.0)
    b = saliency_mask(torch.exp(10 * score), 0.5, generator(3), beta=2.0)
    assert torch.equal(a.keep, b.keep)
    flat = saliency_mask(torch.zeros(5000, 10), 0.5, generator(3), beta=5.0).keep
    seen = torch.bincount(flat.flatten(), minlength=10)
    assert seen.min() > 0.9 * 2500


@pytest.mark.parametrize('strategy', list(STRATEGIES))
def test_reproducible_from_a_seed(strategy: str) -> None:
    score = torch.rand(4, 64, generator=generator())
    masks = [STRATEGIES[strategy](score, 0.9, generator(s)) for s in (5, 5, 6)]
    assert torch.equal(masks[0].keep, masks[1].keep)
    assert not torch.equal(masks[0].keep, masks[2].keep)


@pytest.mark.parametrize('strategy', list(STRATEGIES))
def test_invalid_tokens_are_masked_first(strategy: str) -> None:
    score = torch.rand(200, 40, generator=generator())
    valid = torch.rand(200, 40, generator=generator(1)) > 0.3
    mask = STRATEGIES[strategy](score, 0.5, generator(2), valid)
    for kept, ok in zip(mask.keep, valid, strict=True):
        # No invalid token is visible while a valid one is masked.
        if (~ok).sum() <= mask.masked.shape[1]:
            assert ok[kept].all()
    none = STRATEGIES[strategy](score, 0.5, generator(2), torch.zeros_like(valid))
    assert none.keep.shape == mask.keep.shape


@settings(deadline=None, max_examples=60)
@given(
    ratio=st.floats(0.01, 1),
    invalid=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_predicted_are_masked_valid_and_uniformly_counted(
    ratio: float, invalid: float, seed: int
) -> None:
    valid = torch.rand(5, 32, generator=generator(seed)) >= invalid
    mask = random_mask(torch.zeros(5, 32), 0.75, generator(seed), valid)
    index, counts = select_predicted(mask.masked, valid, ratio, generator(seed))
    assert index.shape == counts.shape
    assert index.shape[1] == max(round(ratio * 24), 1)
    for i in range(5):
        chosen = index[i].tolist()
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= set(mask.masked[i].tolist())
        assert valid[i, index[i][counts[i]]].all()
        usable = int(valid[i, mask.masked[i]].sum())
        expected = min(max(round(ratio * usable), 1), usable, len(chosen))
        assert abs(int(counts[i].sum()) - expected) <= 1
        assert bool(counts[i].any()) == (usable > 0)


def test_predicted_share_is_uniform() -> None:
    masked = torch.arange(20).expand(4000, -1)
    index, counts = select_predicted(masked, None, 0.25, generator())
    assert counts.all()
    seen = torch.bincount(index.flatten(), minlength=20).float()
    assert ((seen - 1000) ** 2 / 1000).sum() < 43.82


def test_ranks() -> None:
    score = torch.tensor([[0.3, 0.1, 0.2, 0.9]])
    valid = torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(
        saliency_ranks(score), torch.tensor([[2.0, 0.0, 1.0, 3.0]]) / 3
    )
    torch.testing.assert_close(
        saliency_ranks(score, valid=valid), torch.tensor([[1.0, 0.0, 0.5, 1.0]])
    )


@pytest.mark.parametrize('ratio', [0.0, 1.0, -0.5, 1.5, float('nan')])
@pytest.mark.parametrize('strategy', list(STRATEGIES))
def test_ratio_outside_is_refused(strategy: str, ratio: float) -> None:
    with pytest.raises(ValueError, match=r'mask_ratio: .* is not in \(0, 1\)'):
        STRATEGIES[strategy](torch.rand(1, 8), ratio)


def test_other_bad_input() -> None:
    with pytest.raises(ValueError, match='num_tokens: 1 token cannot be split'):
        random_mask(torch.rand(1, 1), 0.5)
    masked: Tensor = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r'predict_ratio: 0 is not in \(0, 1\]'):
        select_predicted(masked, ratio=0)


# -------------------------------------------------------- several tokens at every place

SPECTRAL = {'column': column_mask, 'group': group_mask, 'channel': channel_mask}
every_spectral = pytest.mark.parametrize('strategy', list(SPECTRAL))


def hidden(mask: TokenMask, groups: int) -> Tensor:
    """Which tokens are masked, ``(B, G, N)``."""
    count = mask.keep.shape[1] + mask.masked.shape[1]
    found = torch.zeros(len(mask.keep), count, dtype=torch.bool)
    return found.scatter(1, mask.masked, True).unflatten(1, (groups, -1))


@settings(deadline=None, max_examples=60)
@given(
    groups=st.integers(2, 6),
    places=st.integers(2, 40),
    ratio=st.floats(0.001, 0.999),
    strategy=st.sampled_from(list(SPECTRAL)),
    invalid=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_every_spectral_mask_is_a_partition(
    groups: int, places: int, ratio: float, strategy: str, invalid: float, seed: int
) -> None:
    score = torch.rand(3, places, generator=generator(seed)).repeat(1, groups)
    valid = torch.rand(3, places, generator=generator(seed + 1)) >= invalid
    valid = valid.repeat(1, groups)
    mask = SPECTRAL[strategy](score, ratio, groups, generator(seed), valid)
    both = torch.cat([mask.keep, mask.masked], dim=1).sort(dim=1).values
    assert (both == torch.arange(groups * places)).all()
    found = hidden(mask, groups)
    if strategy == 'channel':
        assert mask.masked.shape[1] == num_masked_tokens(groups * places, ratio)
    else:
        each = num_masked_tokens(places, ratio)
        assert (found.sum(dim=2) == each).all()
    if strategy == 'column':
        assert (found == found[:, :1]).all()
    # No invalid token is visible while a valid one is masked, in any group.
    if strategy != 'channel':
        seen = ~found & ~valid.unflatten(1, (groups, -1))
        lost = found & valid.unflatten(1, (groups, -1))
        assert not (seen.any(dim=2) & lost.any(dim=2)).any()
    else:
        seen, lost = ~found.flatten(1) & ~valid, found.flatten(1) & valid
        assert not (seen.any(dim=1) & lost.any(dim=1)).any()


@pytest.mark.parametrize(('ratio', 'whole', 'rest'), [(0.5, 2, 0), (0.9, 3, 6)])
def test_channel_masks_hide_whole_groups(ratio: float, whole: int, rest: int) -> None:
    found = hidden(channel_mask(torch.zeros(500, 40), ratio, 4, generator()), 4)
    counts = found.sum(dim=2).sort(dim=1, descending=True).values
    assert (counts[:, :whole] == 10).all()
    assert (counts[:, whole] == rest).all()
    # Every group is chosen equally often, and in the last one every place.
    share = found.float().mean(dim=(0, 2))
    torch.testing.assert_close(share, torch.full((4,), ratio), rtol=0, atol=0.08)
    if rest:
        partly = found[counts[:, whole, None] == found.sum(dim=2)].float().mean(0)
        torch.testing.assert_close(partly, torch.full((10,), 0.6), rtol=0, atol=0.08)


def test_group_masks_differ_between_groups_and_column_masks_do_not() -> None:
    draws = 4000
    found = hidden(group_mask(torch.zeros(draws, 30), 0.5, 3, generator()), 3)
    # Of 10 places 5 are masked: two groups agree on a place by chance alone.
    both = (found[:, 0] & found[:, 1]).float().mean(0)
    torch.testing.assert_close(both, torch.full((10,), 0.25), rtol=0, atol=0.03)
    seen = found.float().mean(0)
    torch.testing.assert_close(seen, torch.full((3, 10), 0.5), rtol=0, atol=0.03)
    column = hidden(column_mask(torch.zeros(draws, 30), 0.5, 3, generator()), 3)
    seen = column.float().mean(0)
    torch.testing.assert_close(seen, torch.full((3, 10), 0.5), rtol=0, atol=0.03)


def test_columns_are_chosen_as_single_tokens_are() -> None:
    score = torch.rand(50, 36, generator=generator())
    expected = saliency_mask(score, 0.75, generator(3), beta=2.0)
    found = column_mask(score.repeat(1, 4), 0.75, 4, generator(3), beta=2.0)
    assert torch.equal(found.keep[:, :9], expected.keep)
    assert torch.equal(found.keep[:, 27:], expected.keep + 3 * 36)
    assert torch.equal(found.masked[:, 27:54], expected.masked + 36)
    # Without guidance, saliency has no say.
    plain = column_mask(score.repeat(1, 4), 0.75, 4, generator(3))
    uniform = random_mask(score, 0.75, generator(4))
    ratios = []
    for mask in (found, plain, TokenMask(uniform.keep, uniform.masked)):
        metric = VisibilityRatio()
        keep = mask.keep[:, :9]
        metric.update(score, keep)
        ratios.append(metric.compute().item())
    assert ratios[0] > 2
    assert ratios[1] == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize('masking', ['spatial', 'group', 'channel'])
def test_fixed_masks_hide_together_what_the_strategy_does(masking: str) -> None:
    place = torch.arange(4000)
    mask = fixed_mask(place, 30, 0.5, masking=masking, groups=3)
    parts = [fixed_mask(p, 30, 0.5, None, masking, 3).keep for p in place.split(7)]
    assert torch.equal(torch.cat(parts), mask.keep)
    found = hidden(mask, 3)
    counts = found.sum(dim=2).sort(dim=1).values
    expected = [0, 5, 10] if masking == 'channel' else [5, 5, 5]
    assert (counts == torch.tensor(expected)).all()
    together = 0.5 if masking == 'spatial' else 0.25
    if masking != 'channel':
        both = (found[:, 0] & found[:, 1]).float().mean(0)
        torch.testing.assert_close(both, torch.full((10,), together), rtol=0, atol=0.03)
    share = found.float().mean(0)
    torch.testing.assert_close(share, torch.full((3, 10), 0.5), rtol=0, atol=0.03)


@pytest.mark.parametrize('masking', ['spatial', 'group', 'channel'])
def test_fixed_masks_hide_invalid_tokens_first(masking: str) -> None:
    valid = torch.rand(300, 20, generator=generator()) > 0.4
    valid = valid.repeat(1, 3)
    mask = fixed_mask(torch.arange(300), 60, 0.75, valid, masking, 3)
    enough = valid[:, :20].sum(dim=1) >= 5  # as many as stay visible in a group
    assert enough.sum() > 250
    assert valid.gather(1, mask.keep)[enough].all()


def test_only_uniform_masks_can_be_fixed() -> None:
    with pytest.raises(ValueError, match="masking: 'saliency' cannot be fixed"):
        fixed_mask(torch.arange(2), 16, 0.5, masking='saliency')


@every_spectral
def test_spectral_masks_are_reproducible_from_a_seed(strategy: str) -> None:
    score = torch.rand(4, 60, generator=generator())
    masks = [SPECTRAL[strategy](score, 0.6, 3, generator(s)) for s in (5, 5, 6)]
    assert torch.equal(masks[0].keep, masks[1].keep)
    assert not torch.equal(masks[0].keep, masks[2].keep)


@every_spectral
def test_spectral_masks_refuse_ratios_outside(strategy: str) -> None:
    for ratio in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match=r'mask_ratio: .* is not in \(0, 1\)'):
            SPECTRAL[strategy](torch.rand(1, 8), ratio, 2)


def test_noise_is_drawn_where_the_generator_is() -> None:
    """A seed on the CPU gives one mask, on whatever device the tokens are."""
    score = torch.zeros(2, 12, device='meta')
    with mock.patch('torch.rand', wraps=torch.rand) as rand:
        channel_mask(score, 0.5, 3, generator())
    devices = {torch.device(call.kwargs['device']).type for call in rand.mock_calls}
    assert devices == {'cpu'}


# ------------------------------------------------------------------------ small numbers


def test_defaults() -> None:
    score = torch.rand(20, 30, generator=generator())
    found = saliency_mask(score, 0.5, generator(1)).keep
    assert torch.equal(found, saliency_mask(score, 0.5, generator(1), beta=1.0).keep)
    masked = torch.arange(8).expand(2, -1)
    index, counts = select_predicted(masked)
    assert torch.equal(index, masked)
    assert counts.dtype == torch.bool
    assert counts.all()
    plain = column_mask(score, 0.5, 3, generator(1)).keep
    assert torch.equal(plain, column_mask(score, 0.5, 3, generator(1), None, 0.0).keep)


@pytest.mark.parametrize('ratio', [-0.1, 1.01, 1.5])
def test_predict_ratio_outside_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf'predict_ratio: {ratio} is not in'):
        select_predicted(torch.zeros(1, 4, dtype=torch.long), ratio=ratio)


def test_ranks_with_few_valid_tokens() -> None:
    score = torch.tensor([[3.0, 2.0, 1.0]])
    one = torch.tensor([[False, True, False]])
    assert saliency_ranks(score, valid=one)[0, 1] == 0
    two = saliency_ranks(score, valid=~one)
    assert two[0, [2, 0]].tolist() == [0, 1]
    none = saliency_ranks(score, valid=torch.zeros_like(one))
    assert none.isfinite().all()
    assert ((none >= 0) & (none <= 1)).all()
    assert saliency_ranks(score).tolist() == [[1.0, 0.5, 0.0]]


def test_a_small_share_is_one_token() -> None:
    masked = torch.arange(6).expand(50, -1)
    index, counts = select_predicted(masked, None, 0.01, generator())
    assert index.shape == (50, 1)
    assert counts.all()
    assert len(index.unique()) == 6


def test_of_few_valid_tokens_one_is_predicted() -> None:
    masked = torch.arange(20)[None]
    valid = torch.zeros(1, 20, dtype=torch.bool)
    valid[0, [4, 9, 17]] = True
    index, counts = select_predicted(masked, valid, 0.1, generator())
    assert index.shape == (1, 2)
    assert counts.tolist() == [[True, False]]
    assert index[0, 0] in (4, 9, 17)


def test_the_share_of_valid_tokens_is_rounded() -> None:
    masked = torch.arange(10)[None]
    valid = (torch.arange(10) < 3)[None]
    _, counts = select_predicted(masked, valid, 0.4, generator())
    assert counts.tolist() == [[True, False, False, False]]


def test_groups_are_hidden_in_the_order_of_their_chance() -> None:
    chance = torch.tensor([[0.5, 0.9, 0.1]])
    noise = torch.rand(1, 12, generator=generator())
    for ratio, groups in ((1 / 3, [1]), (2 / 3, [0, 1])):
        found = hidden(mask_channels(noise, chance, ratio, None), 3)
        assert found.all(dim=2)[0].nonzero().flatten().tolist() == groups
        assert found.sum() == 4 * len(groups)


def test_every_group_has_its_own_noise() -> None:
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.2, 0.3, 0.8]])
    found = hidden(mask_groups(noise, 0.5, 2, None), 2)
    assert found.int().tolist() == [[[1, 0, 1], [0, 1, 1]]]
    valid = torch.tensor([[True, False, True, False, True, True]])
    found = hidden(mask_groups(noise, 0.34, 2, valid), 2)
    assert found.int().tolist() == [[[0, 1, 0], [1, 0, 0]]]


def test_highest_keys_are_masked_in_order() -> None:
    keys = torch.tensor([[0.3, 0.9, 0.1, 0.7]])
    mask = mask_highest(keys, 0.5, None)
    assert mask.masked.tolist() == [[1, 3]]
    assert mask.keep.tolist() == [[0, 2]]
    invalid = torch.tensor([[True, True, False, True]])
    assert mask_highest(keys, 0.5, invalid).masked.tolist() == [[2, 1]]


@pytest.mark.parametrize('masking', ['random', 'spatial', 'group', 'channel'])
def test_fixed_masks_are_made_of_the_noise_of_a_place(masking: str) -> None:
    place = torch.tensor([3, 40])
    noise = hashed_noise(place, 15)
    tokens, chance = noise[:, :12], noise[:, 12:]
    expected = {
        'random': mask_highest(tokens, 0.5, None),
        'spatial': in_columns(mask_highest(tokens[:, :4], 0.5, None), 3),
        'group': mask_groups(tokens, 0.5, 3, None),
        'channel': mask_channels(tokens, chance, 0.5, None),
    }
    found = fixed_mask(place, 12, 0.5, None, masking, 3)
    for one, other in zip(found, expected[masking], strict=True):
        assert torch.equal(one, other)
