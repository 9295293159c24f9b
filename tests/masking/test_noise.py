# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Noise of samples: uniform, independent, and nobody else's business."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, kstest

from torchgeo_sigmae.masking import SampleNoise, saliency_mask
from torchgeo_sigmae.masking.noise import (
    _splitmix64,
    gumbel_noise,
    hashed_noise,
    uniform_noise,
)


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


MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """The published algorithm, on unsigned Python integers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def bits(counter: int) -> int:
    """The counter-th number of the published generator that was seeded with 0."""
    return splitmix64(counter * 0x9E3779B97F4A7C15 & MASK)


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def test_bits_are_those_of_the_published_generator() -> None:
    # The first numbers of its seed 0, as given with its reference implementations.
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [bits(i) for i in range(3)] == first
    counters = [0, 1, 2, 7, 2**40 + 3, 2**62, -1, -(2**63)]
    found = _splitmix64(torch.tensor(counters)).tolist()
    assert found == [signed(bits(counter & MASK)) for counter in counters]


@pytest.mark.parametrize('dtype', [torch.int32, torch.int64])
def test_noise_of_a_release_is_that_of_the_last(dtype: torch.dtype) -> None:
    """A run that is resumed after an update masks as before."""
    index = torch.tensor([0, 5, 70_000], dtype=dtype)
    fixed = [
        [(bits((i << 20) + n) >> 40) / 2**24 for n in range(4)] for i in index.tolist()
    ]
    assert hashed_noise(index, 4).tolist() == fixed
    noise = SampleNoise(2**61 + 1, index)
    for turn in range(3):
        expected = []
        for i in index.tolist():
            row = bits(bits(bits(2**61 + 1) ^ i) + turn & MASK)
            tokens = [bits(row + n & MASK) >> 41 for n in range(4)]
            expected.append([(token + 0.5) / 2**23 for token in tokens])
        assert noise.draw(torch.zeros(3, 4)).tolist() == expected


def test_gumbel_noise_is_that_of_uniform_noise() -> None:
    like = torch.zeros(3, 5)
    uniform = SampleNoise(4, torch.arange(3)).draw(like).double()
    found = gumbel_noise(like, SampleNoise(4, torch.arange(3)))
    torch.testing.assert_close(found.double(), -(-uniform.log()).log())


@pytest.mark.parametrize('make', [uniform_noise, gumbel_noise])
def test_the_global_generator_is_used_without_another(make: object) -> None:
    like = torch.zeros(2, 3)
    torch.manual_seed(5)
    first = make(like, None)  # type: ignore[operator]
    torch.manual_seed(5)
    assert torch.equal(make(like, None), first)  # type: ignore[operator]
    known = torch.Generator().manual_seed(5)
    assert torch.equal(make(like, known), first)  # type: ignore[operator]
    assert not torch.equal(make(like, known), first)  # type: ignore[operator]
