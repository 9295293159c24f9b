# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Noise of samples: uniform, independent, and nobody else's business."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, kstest

from torchgeo_sigmae.masking import SampleNoise, saliency_mask
from torchgeo_sigmae.masking.noise import gumbel_noise, uniform_noise


def draw(
    key: int, index: torch.Tensor, count: int = 64, turns: int = 1
) -> torch.Tensor:
    noise = SampleNoise(key, index)
    like = torch.zeros(len(index), count)
    return torch.stack([uniform_noise(like, noise) for _ in range(turns)])


def test_uniform() -> None:
    values = draw(7, torch.arange(2000), 100, 2)
    assert values.dtype == torch.float32
    assert kstest(values.flatten().double().numpy(), 'uniform').pvalue > 1e-3
    # Every bit that float32 can tell apart is as often 0 as 1.
    bits = (values.double() * 2**23).long().flatten()
    for bit in range(23):
        assert ((bits >> bit) & 1).double().mean() == pytest.approx(0.5, abs=4e-3)


def test_ends_are_never_met() -> None:
    """Their logarithms are infinite."""
    values = draw(0, torch.arange(50_000), 200)
    assert values.min() > 0
    assert values.max() < 1
    assert (
        gumbel_noise(torch.zeros(9, 9), SampleNoise(1, torch.arange(9)))
        .isfinite()
        .all()
    )


def test_gumbel() -> None:
    found = gumbel_noise(torch.zeros(1000, 100), SampleNoise(3, torch.arange(1000)))
    assert kstest(found.flatten().double().numpy(), 'gumbel_r').pvalue > 1e-3


@pytest.mark.parametrize('what', ['samples', 'keys', 'draws', 'tokens'])
def test_neighbours_are_independent(what: str) -> None:
    match what:
        case 'samples':
            one, other = draw(5, torch.arange(3000)).squeeze(0).split(1500)
        case 'keys':
            one, other = (draw(key, torch.arange(1500))[0] for key in (5, 6))
        case 'draws':
            one, other = draw(5, torch.arange(1500), turns=2)
        case 'tokens':
            one, other = draw(5, torch.arange(1500), 128)[0].split(64, dim=1)
    table = torch.histogramdd(
        torch.stack([one.flatten(), other.flatten()], 1), [8, 8], [0.0, 1.0, 0.0, 1.0]
    ).hist
    expected = one.numel() / 64
    statistic = ((table - expected) ** 2 / expected).sum().item()
    assert chi2.sf(statistic, 63) > 1e-3


@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=8, unique=True),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
)
def test_a_sample_is_masked_alike_in_any_batch(
    key: int, index: list[int], tokens: int, random: object
) -> None:
    """Alone, in another order, with others."""
    tokens = max(tokens, 2)
    scores = {
        i: torch.rand(tokens, generator=torch.Generator().manual_seed(i)) for i in index
    }

    def masks(of: list[int]) -> dict[int, list[int]]:
        noise = SampleNoise(key, torch.tensor(of))
        score = torch.stack([scores[i] for i in of])
        keep = saliency_mask(score, 0.5, noise, beta=2.0).keep
        return dict(zip(of, keep.tolist(), strict=True))

    together = masks(index)
    shuffled = list(index)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert masks(shuffled) == together
    assert masks(index[:1]) == {index[0]: together[index[0]]}


def test_draws_go_on_and_start_again() -> None:
    first, second = draw(1, torch.arange(3), turns=2)
    assert not (first == second).any()
    assert torch.equal(draw(1, torch.arange(3))[0], first)
    rows = draw(1, torch.tensor([4, 4]))[0]
    assert torch.equal(rows[0], rows[1])


def test_gradients_and_the_global_generator_are_left_alone() -> None:
    before = torch.get_rng_state()
    assert not draw(1, torch.arange(3)).requires_grad
    assert torch.equal(torch.get_rng_state(), before)
