# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchgeo_sigmae.masking import (
    TokenMask,
    independent_group_mask,
    num_masked_tokens,
    random_mask,
    saliency_mask,
    sample_noise,
    select_targets,
    spatial_mask,
    whole_group_mask,
)
from torchgeo_sigmae.masking.masks import mask_highest
from torchgeo_sigmae.metrics import VisibilityRatio

Strategy = Callable[[Tensor, Tensor, float, Tensor | None], TokenMask]

STRATEGIES: dict[str, Strategy] = {
    'random': lambda score, noise, ratio, valid: random_mask(noise, ratio, valid),
    'saliency': lambda score, noise, ratio, valid: saliency_mask(
        score, noise, ratio, 1.0, valid
    ),
    'saliency, beta 0': lambda score, noise, ratio, valid: saliency_mask(
        score, noise, ratio, 0.0, valid
    ),
}
every_strategy = pytest.mark.parametrize('strategy', list(STRATEGIES))


def draw(samples: int, count: int, key: int = 0) -> Tensor:
    return sample_noise(key, torch.arange(samples), count)


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(2, 150),
    ratio=st.floats(0.001, 0.999),
    strategy=st.sampled_from(list(STRATEGIES)),
    key=st.integers(0, 2**31),
)
def test_every_mask_is_a_partition(
    tokens: int, ratio: float, strategy: str, key: int
) -> None:
    score, noise = draw(3, tokens, key), draw(3, tokens, key + 1)
    mask = STRATEGIES[strategy](score, noise, ratio, None)
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
    score = torch.rand(1, 6).expand(draws, -1)
    keep = STRATEGIES[strategy](score, draw(draws, 6, 7), 0.5, None).keep
    code = (2**keep).sum(dim=1)
    subsets = [sum(2**i for i in c) for c in itertools.combinations(range(6), 3)]
    observed = torch.tensor([(code == s).sum().item() for s in subsets])
    assert observed.sum() == draws
    expected = draws / len(subsets)
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert chi_square < 43.82  # the 0.1 % point
    # Samples with neighboring indices are unrelated.
    same = (code[1:] == code[:-1]).float().mean()
    assert abs(same - 0.05) < 0.005


def test_beta_zero_is_the_random_mask() -> None:
    score, noise, valid = draw(50, 144, 1), draw(50, 144), draw(50, 144, 2) > 0.2
    for some in (None, valid):
        expected = random_mask(noise, 0.9, some)
        for values, beta in ((score, 0.0), (torch.zeros_like(score), 3.0)):
            actual = saliency_mask(values, noise, 0.9, beta, some)
            assert torch.equal(actual.keep, expected.keep)
            assert torch.equal(actual.masked, expected.masked)


def test_a_larger_beta_is_not_uniform() -> None:
    score = torch.arange(6.0).expand(20_000, -1)
    keep = saliency_mask(score, draw(20_000, 6), 0.5, 1.0).keep
    seen = torch.bincount(keep.flatten(), minlength=6).float()
    expected = torch.full((6,), 10_000.0)
    assert ((seen - expected) ** 2 / expected).sum() > 43.82
    assert (seen.diff() < 0).all()  # the more salient, the less often seen


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
    score = draw(4000, 144, 1)
    mask = saliency_mask(score, draw(4000, 144), ratio, beta)
    metric = VisibilityRatio()
    metric.update(score, mask.keep)
    expected = expected_visibility_ratio(beta, ratio, 144)
    assert metric.compute().item() == pytest.approx(expected, rel=0.1)
    if beta > 0:
        assert expected > 1.5


def test_every_token_keeps_a_chance_to_be_seen() -> None:
    score = torch.arange(64.0).expand(5000, -1)
    keep = saliency_mask(score, draw(5000, 64), 0.9, 1.0).keep
    assert (torch.bincount(keep.flatten(), minlength=64) > 0).all()


def test_only_the_order_of_scores_matters() -> None:
    score, noise = draw(8, 30, 1), draw(8, 30)
    one = saliency_mask(score, noise, 0.5, 2.0)
    other = saliency_mask(torch.exp(10 * score), noise, 0.5, 2.0)
    assert torch.equal(one.keep, other.keep)


@pytest.mark.parametrize('equal', [10, 5])
def test_equal_scores_are_equally_often_visible(equal: int) -> None:
    score = torch.arange(10.0).clamp(min=equal - 1).expand(5000, -1)
    keep = saliency_mask(score, draw(5000, 10), 0.5, 5.0).keep
    seen = torch.bincount(keep.flatten(), minlength=10)[:equal].float()
    torch.testing.assert_close(seen, seen.mean().expand(equal), rtol=0.06, atol=0)


@every_strategy
def test_invalid_tokens_are_masked_first(strategy: str) -> None:
    score, noise = draw(200, 40, 1), draw(200, 40)
    valid = draw(200, 40, 2) > 0.3
    mask = STRATEGIES[strategy](score, noise, 0.5, valid)
    for kept, ok in zip(mask.keep, valid, strict=True):
        # No invalid token is visible while a valid one is masked.
        if (~ok).sum() <= mask.masked.shape[1]:
            assert ok[kept].all()
    none = STRATEGIES[strategy](score, noise, 0.5, torch.zeros_like(valid))
    assert none.keep.shape == mask.keep.shape


@pytest.mark.parametrize('beta', [-1e6, 1e6])
def test_the_strongest_guidance_masks_invalid_tokens_first_too(beta: float) -> None:
    score, valid = draw(200, 40, 1), draw(200, 40, 2) > 0.3
    mask = saliency_mask(score, draw(200, 40), 0.5, beta, valid)
    enough = valid.sum(dim=1) >= 20
    assert enough.sum() > 150
    assert valid.gather(1, mask.keep)[enough].all()
    # Nothing is left to chance among the valid ones.
    order = (score * beta).masked_fill(~valid, torch.inf).argsort(dim=1)
    expected = order[:, :20].sort(dim=1).values
    assert torch.equal(mask.keep.sort(dim=1).values[enough], expected[enough])


def test_one_token_cannot_be_masked() -> None:
    with pytest.raises(ValueError, match='num_tokens: 1 token cannot be split'):
        random_mask(torch.rand(1, 1), 0.5)


def test_highest_keys_are_masked_in_order() -> None:
    keys = torch.tensor([[0.3, 0.9, 0.1, 0.7]])
    mask = mask_highest(keys, 0.5)
    assert mask.masked.tolist() == [[1, 3]]
    assert mask.keep.tolist() == [[0, 2]]
    valid = torch.tensor([[True, True, False, True]])
    assert mask_highest(keys, 0.5, valid).masked.tolist() == [[2, 1]]
    # Equal keys are in the order of the tokens.
    assert mask_highest(torch.zeros(1, 100), 0.5).masked.tolist() == [[*range(50)]]


# ----------------------------------------------------------------------------- targets


@settings(deadline=None, max_examples=60)
@given(ratio=st.floats(0.01, 1), invalid=st.floats(0, 1), key=st.integers(0, 2**31))
def test_targets_are_masked_valid_and_uniformly_counted(
    ratio: float, invalid: float, key: int
) -> None:
    valid = draw(5, 32, key) >= invalid
    mask = random_mask(draw(5, 32, key + 1), 0.75, valid)
    index, counts = select_targets(mask.masked, draw(5, 24, key + 2), ratio, valid)
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


def test_the_share_of_targets_is_uniform() -> None:
    masked = torch.arange(20).expand(4000, -1)
    index, counts = select_targets(masked, draw(4000, 20), 0.25)
    assert counts.all()
    seen = torch.bincount(index.flatten(), minlength=20).float()
    assert ((seen - 1000) ** 2 / 1000).sum() < 43.82


def test_all_masked_tokens_are_targets_at_a_share_of_one() -> None:
    masked = torch.arange(8).expand(2, -1)
    index, counts = select_targets(masked, draw(2, 8), 1)
    assert torch.equal(index, masked)
    assert counts.dtype == torch.bool
    assert counts.all()


@pytest.mark.parametrize('ratio', [-0.1, 0, 1.01, 1.5])
def test_predict_ratio_outside_is_refused(ratio: float) -> None:
    masked = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=rf'predict_ratio: {ratio} is not in \(0, 1\]'):
        select_targets(masked, draw(1, 4), ratio)


def test_of_few_valid_tokens_one_is_predicted() -> None:
    masked = torch.arange(20)[None]
    valid = torch.zeros(1, 20, dtype=torch.bool)
    valid[0, [4, 9, 17]] = True
    index, counts = select_targets(masked, draw(1, 20), 0.1, valid)
    assert index.shape == (1, 2)
    assert counts.tolist() == [[True, False]]
    assert index[0, 0] in (4, 9, 17)


def test_the_share_of_valid_tokens_is_rounded() -> None:
    masked = torch.arange(10)[None]
    valid = (torch.arange(10) < 3)[None]
    _, counts = select_targets(masked, draw(1, 10), 0.4, valid)
    assert counts.tolist() == [[True, False, False, False]]


# ---------------------------------------------------- several tokens per patch position

GroupStrategy = Callable[[Tensor, Tensor, float, int, Tensor | None], TokenMask]

GROUP_STRATEGIES: dict[str, GroupStrategy] = {
    'spatial': lambda score, noise, ratio, groups, valid: spatial_mask(
        score, noise, ratio, 0.0, groups, valid
    ),
    'saliency_spatial': lambda score, noise, ratio, groups, valid: spatial_mask(
        score, noise, ratio, 1.0, groups, valid
    ),
    'group': lambda score, noise, ratio, groups, valid: independent_group_mask(
        noise, ratio, groups, valid
    ),
    'channel': lambda score, noise, ratio, groups, valid: whole_group_mask(
        noise, ratio, groups, valid
    ),
}


def hidden(mask: TokenMask, groups: int) -> Tensor:
    """Which tokens are masked, ``(B, G, N)``."""
    count = mask.keep.shape[1] + mask.masked.shape[1]
    actual = torch.zeros(len(mask.keep), count, dtype=torch.bool)
    return actual.scatter(1, mask.masked, True).unflatten(1, (groups, -1))


@settings(deadline=None, max_examples=60)
@given(
    groups=st.integers(2, 6),
    positions=st.integers(2, 40),
    ratio=st.floats(0.001, 0.999),
    strategy=st.sampled_from(list(GROUP_STRATEGIES)),
    invalid=st.floats(0, 1),
    key=st.integers(0, 2**31),
)
def test_every_mask_of_groups_is_a_partition(
    groups: int, positions: int, ratio: float, strategy: str, invalid: float, key: int
) -> None:
    score = draw(3, positions, key).repeat(1, groups)
    valid = (draw(3, positions, key + 1) >= invalid).repeat(1, groups)
    noise = draw(3, groups * positions, key + 2)
    mask = GROUP_STRATEGIES[strategy](score, noise, ratio, groups, valid)
    both = torch.cat([mask.keep, mask.masked], dim=1).sort(dim=1).values
    assert (both == torch.arange(groups * positions)).all()
    actual = hidden(mask, groups)
    if strategy == 'channel':
        assert mask.masked.shape[1] == num_masked_tokens(groups * positions, ratio)
    else:
        each = num_masked_tokens(positions, ratio)
        assert (actual.sum(dim=2) == each).all()
    if 'spatial' in strategy:
        assert (actual == actual[:, :1]).all()
    # No invalid token is visible while a valid one is masked, in any group.
    if strategy != 'channel':
        seen = ~actual & ~valid.unflatten(1, (groups, -1))
        lost = actual & valid.unflatten(1, (groups, -1))
        assert not (seen.any(dim=2) & lost.any(dim=2)).any()
    else:
        seen, lost = ~actual.flatten(1) & ~valid, actual.flatten(1) & valid
        assert not (seen.any(dim=1) & lost.any(dim=1)).any()


@pytest.mark.parametrize(('ratio', 'whole', 'rest'), [(0.5, 2, 0), (0.9, 3, 6)])
def test_whole_groups_are_masked(ratio: float, whole: int, rest: int) -> None:
    actual = hidden(whole_group_mask(draw(4000, 40), ratio, 4), 4)
    counts = actual.sum(dim=2).sort(dim=1, descending=True).values
    assert (counts[:, :whole] == 10).all()
    assert (counts[:, whole] == rest).all()
    # Every group is chosen equally often, and in the last one every position.
    share = actual.float().mean(dim=(0, 2))
    torch.testing.assert_close(share, torch.full((4,), ratio), rtol=0, atol=0.03)
    if rest:
        partly = actual[counts[:, whole, None] == actual.sum(dim=2)].float().mean(0)
        torch.testing.assert_close(partly, torch.full((10,), 0.6), rtol=0, atol=0.03)


def test_whole_group_masks_are_uniform() -> None:
    # Two groups of four tokens, six masked: which group is whole, and which C(4, 2)
    # tokens are masked in the other one, 12 masks: 11 degrees of freedom.
    draws = 24_000
    keep = whole_group_mask(draw(draws, 8), 0.75, 2).keep
    seen = torch.bincount((2**keep).sum(dim=1))
    seen = seen[seen > 0]
    assert len(seen) == 12
    assert ((seen - draws / 12) ** 2 / (draws / 12)).sum() < 31.26


def test_positions_are_independent_between_groups_or_the_same() -> None:
    noise = draw(4000, 30)
    actual = hidden(independent_group_mask(noise, 0.5, 3), 3)
    # Of 10 positions 5 are masked: two groups agree on a position by chance alone.
    both = (actual[:, 0] & actual[:, 1]).float().mean(0)
    torch.testing.assert_close(both, torch.full((10,), 0.25), rtol=0, atol=0.03)
    seen = actual.float().mean(0)
    torch.testing.assert_close(seen, torch.full((3, 10), 0.5), rtol=0, atol=0.03)
    same = hidden(spatial_mask(torch.zeros(4000, 30), noise, 0.5, 0.0, 3), 3)
    seen = same.float().mean(0)
    torch.testing.assert_close(seen, torch.full((3, 10), 0.5), rtol=0, atol=0.03)


def test_positions_are_chosen_as_single_tokens_are() -> None:
    score, noise = draw(50, 36, 1), draw(50, 4 * 36)
    expected = saliency_mask(score, noise[:, :36], 0.75, 2.0)
    actual = spatial_mask(score.repeat(1, 4), noise, 0.75, 2.0, 4)
    assert torch.equal(actual.keep[:, :9], expected.keep)
    assert torch.equal(actual.keep[:, 27:], expected.keep + 3 * 36)
    assert torch.equal(actual.masked[:, 27:54], expected.masked + 36)
    # Without guidance, saliency has no say.
    plain = spatial_mask(score.repeat(1, 4), noise, 0.75, 0.0, 4)
    assert torch.equal(plain.keep[:, :9], random_mask(noise[:, :36], 0.75).keep)


def test_a_position_is_valid_if_one_of_its_tokens_is() -> None:
    valid = torch.tensor([[True, False, False, False, False, True]])
    noise = torch.tensor([[0.9, 0.1, 0.8, 0.5, 0.5, 0.5]])
    actual = hidden(spatial_mask(torch.zeros(1, 6), noise, 0.34, 0.0, 2, valid), 2)
    assert actual.int().tolist() == [[[0, 1, 0], [0, 1, 0]]]


def test_groups_are_masked_in_the_order_of_their_largest_number() -> None:
    noise = torch.tensor([[0.1, 0.8, 0.7, 0.2, 0.3, 0.9, 0.4, 0.5, 0.6]])
    for ratio, groups in ((1 / 3, [1]), (2 / 3, [0, 1])):
        actual = hidden(whole_group_mask(noise, ratio, 3), 3)
        assert actual.all(dim=2)[0].nonzero().flatten().tolist() == groups
        assert actual.sum() == 3 * len(groups)
    actual = hidden(whole_group_mask(noise, 5 / 9, 3), 3)
    assert actual.int().tolist() == [[[0, 1, 1], [1, 1, 1], [0, 0, 0]]]


def test_every_group_has_its_own_noise() -> None:
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.2, 0.3, 0.8]])
    actual = hidden(independent_group_mask(noise, 0.5, 2), 2)
    assert actual.int().tolist() == [[[1, 0, 1], [0, 1, 1]]]
    valid = torch.tensor([[True, False, True, False, True, True]])
    actual = hidden(independent_group_mask(noise, 0.34, 2, valid), 2)
    assert actual.int().tolist() == [[[0, 1, 0], [1, 0, 0]]]


ALL: dict[str, GroupStrategy] = {
    name: lambda score, noise, ratio, groups, valid, mask=mask: mask(
        score, noise, ratio, valid
    )
    for name, mask in STRATEGIES.items()
} | GROUP_STRATEGIES


@pytest.mark.parametrize('strategy', ALL)
def test_a_mask_is_a_function_of_the_noise_of_its_sample(strategy: str) -> None:
    score, index = draw(100, 30, 1), torch.arange(100)

    def keep(samples: Tensor, key: int = 0) -> Tensor:
        noise = sample_noise(key, samples, 30)
        return ALL[strategy](score[samples], noise, 0.5, 3, None).keep

    whole = keep(index)
    assert torch.equal(keep(index), whole)
    assert not torch.equal(keep(index, key=1), whole)
    assert torch.equal(torch.cat([keep(part) for part in index.split(7)]), whole)


@pytest.mark.parametrize('ratio', [0.0, 1.0, -0.5, 1.5, float('nan')])
@pytest.mark.parametrize('strategy', ALL)
def test_ratio_outside_is_refused(strategy: str, ratio: float) -> None:
    with pytest.raises(ValueError, match=r'mask_ratio: .* is not in \(0, 1\)'):
        ALL[strategy](torch.rand(1, 8), draw(1, 8), ratio, 2, None)
