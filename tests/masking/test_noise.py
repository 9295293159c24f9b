# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Noise of samples: uniform, independent, and a function of its arguments alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, kstest

from torchgeo_sigmae.masking import saliency_mask, sample_noise
from torchgeo_sigmae.masking.noise import _splitmix64, gumbel


def test_uniform() -> None:
    values = sample_noise(7, torch.arange(2000), 200)
    assert values.dtype == torch.float32
    assert kstest(values.flatten().double().numpy(), 'uniform').pvalue > 1e-3
    # Every bit that float32 can tell apart is as often 0 as 1.
    bits = (values.double() * 2**23).long().flatten()
    for bit in range(23):
        assert ((bits >> bit) & 1).double().mean() == pytest.approx(0.5, abs=4e-3)


def test_ends_are_never_met() -> None:
    """Their logarithms are infinite."""
    values = sample_noise(0, torch.arange(50_000), 200)
    assert values.min() > 0
    assert values.max() < 1
    ends = torch.tensor([0.5, 2**23 - 0.5]) / 2**23
    assert gumbel(ends).isfinite().all()


def test_gumbel() -> None:
    noise = sample_noise(3, torch.arange(1000), 100)
    actual = gumbel(noise)
    assert kstest(actual.flatten().double().numpy(), 'gumbel_r').pvalue > 1e-3
    expected = -(-noise.double().log()).log()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


def test_gumbel_noise_is_in_the_order_of_uniform_noise() -> None:
    """All values there are: without guidance, masks are those of uniform noise."""
    every = (torch.arange(2**23) + 0.5) / 2**23
    assert (gumbel(every).diff() > 0).all()


@pytest.mark.parametrize('neighbors', ['samples', 'keys', 'tokens'])
def test_neighbors_are_independent(neighbors: str) -> None:
    index = torch.arange(1500)
    match neighbors:
        case 'samples':
            one, other = sample_noise(5, torch.arange(3000), 64).split(1500)
        case 'keys':
            one, other = (sample_noise(key, index, 64) for key in (5, 6))
        case 'tokens':
            one, other = sample_noise(5, index, 128).split(64, dim=1)
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
        noise = sample_noise(key, torch.tensor(of), tokens)
        score = torch.stack([scores[i] for i in of])
        keep = saliency_mask(score, noise, 0.5, 2.0).keep
        return dict(zip(of, keep.tolist(), strict=True))

    together = masks(index)
    shuffled = list(index)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert masks(shuffled) == together
    assert masks(index[:1]) == {index[0]: together[index[0]]}


def test_equal_arguments_give_equal_noise() -> None:
    first = sample_noise(1, torch.arange(3), 64)
    assert torch.equal(sample_noise(1, torch.arange(3), 64), first)
    assert not (sample_noise(2, torch.arange(3), 64) == first).any()
    rows = sample_noise(1, torch.tensor([4, 4]), 64)
    assert torch.equal(rows[0], rows[1])
    # More numbers begin with the same.
    assert torch.equal(sample_noise(1, torch.arange(3), 99)[:, :64], first)


def test_gradients_and_the_global_generator_are_left_alone() -> None:
    before = torch.get_rng_state()
    assert not sample_noise(1, torch.arange(3), 64).requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_made_where_the_indices_are() -> None:
    noise = sample_noise(1, torch.arange(3, device='meta'), 5)
    assert noise.device.type == 'meta'
    assert noise.shape == (3, 5)


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
    actual = _splitmix64(torch.tensor(counters)).tolist()
    assert actual == [signed(bits(counter & MASK)) for counter in counters]


@pytest.mark.parametrize('dtype', [torch.int32, torch.int64])
@pytest.mark.parametrize('key', [0, 2**61 + 1])
def test_noise_of_a_release_is_that_of_the_last(dtype: torch.dtype, key: int) -> None:
    """A run that is resumed after an update masks as before."""
    index = torch.tensor([0, 5, 70_000], dtype=dtype)
    expected = []
    for i in index.tolist():
        row = bits(bits(key) ^ i)
        tokens = [bits(row + n & MASK) >> 41 for n in range(4)]
        expected.append([(token + 0.5) / 2**23 for token in tokens])
    assert sample_noise(key, index, 4).tolist() == expected
