# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.models import utils
from scipy.stats import rankdata

from torchgeo_sigmae.patches import (
    cut_patches,
    patchify,
    rank_patches,
    unpatchify,
    valid_patches,
    valid_values,
)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    nodata=st.sampled_from([None, 0.0, -9999.0]),
    kinds=st.integers(2, 6),
)
def test_valid_values_against_their_definition(
    seed: int, nodata: float | None, kinds: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    odd = torch.tensor([0.0, 0.3, -9999.0, torch.nan, torch.inf, -torch.inf])[:kinds]
    image = odd[torch.randint(0, kinds, (2, 3, 8, 8), generator=generator)]
    valid = valid_values(image, nodata)
    assert valid.shape == image.shape
    for sample, row, column in itertools.product(range(2), range(8), range(8)):
        pixel = image[sample, :, row, column].tolist()
        data = [math.isfinite(value) for value in pixel]
        rest = [value for value in pixel if math.isfinite(value)]
        if nodata is not None and all(value == nodata for value in rest):
            data = [False] * 3
        assert valid[sample, :, row, column].tolist() == data


def test_one_valid_pixel_makes_a_valid_patch() -> None:
    valid = torch.zeros(8, 16, dtype=torch.bool)
    valid[3, 4] = True
    assert valid_patches(valid, 8).tolist() == [[True, False]]


def test_patches_are_views_of_the_image() -> None:
    image = torch.rand(2, 3, 8, 12)
    patches = cut_patches(image, 4)
    assert patches.shape == (2, 3, 2, 3, 4, 4)
    assert patches.data_ptr() == image.data_ptr()
    for row in range(2):
        for column in range(3):
            expected = image[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert torch.equal(patches[:, :, row, column], expected)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    h=st.integers(1, 4),
    w=st.integers(1, 4),
    patch=st.integers(1, 6),
)
def test_patchify_and_back(
    batch: int, channels: int, h: int, w: int, patch: int
) -> None:
    image = torch.rand(batch, channels, h * patch, w * patch)
    patches = patchify(image, patch)
    assert patches.shape == (batch, h * w, channels * patch**2)
    assert torch.equal(unpatchify(patches, patch, (h, w)), image)


def test_layout_is_that_of_a_convolution_kernel() -> None:
    conv = torch.nn.Conv2d(3, 7, 4, stride=4)
    image = torch.rand(2, 3, 16, 12)
    expected = conv(image).flatten(2).transpose(1, 2)
    actual = F.linear(patchify(image, 4), conv.weight.flatten(1), conv.bias)
    torch.testing.assert_close(actual, expected)


def test_same_pixels_as_lightlys_patchify() -> None:
    image = torch.rand(2, 3, 16, 16)
    ours = patchify(image, 4).unflatten(-1, (3, 16)).transpose(-1, -2).flatten(2)
    torch.testing.assert_close(ours, utils.patchify(image, 4))


@pytest.mark.parametrize(
    ('size', 'instead'), [((60, 64), '56 x 64'), ((64, 0), '64 x 8'), ((3, 8), '8 x 8')]
)
def test_sizes_that_do_not_divide_are_refused(
    size: tuple[int, int], instead: str
) -> None:
    message = f'{size[0]} x {size[1]} pixels cannot be cut .*, for example {instead}'
    with pytest.raises(ValueError, match=f'image: {message}'):
        patchify(torch.rand(1, 3, *size), 8)
    with pytest.raises(ValueError, match=f'mask: {message}'):
        cut_patches(torch.rand(size), 8, 'mask')


@settings(deadline=None, max_examples=100)
@given(
    levels=st.integers(1, 12),
    patches=st.integers(1, 20),
    invalid=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_ranks_agree_with_scipy(
    levels: int, patches: int, invalid: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, levels, (4, patches), generator=generator) / 7 - 0.5
    valid = torch.rand(4, patches, generator=generator) >= invalid
    ranks = rank_patches(score, valid)
    assert ranks.dtype == torch.float32
    assert (ranks[~valid] == 1).all()
    for actual, values, some in zip(ranks, score, valid, strict=True):
        expected = rankdata(values[some]) - 1
        expected /= max(some.sum().item() - 1, 1)
        np.testing.assert_allclose(actual[some], expected, rtol=1e-6)
    everything = torch.ones_like(valid)
    assert torch.equal(rank_patches(score), rank_patches(score, everything))


def test_equal_scores_rank_exactly_in_the_middle() -> None:
    for patches in range(2, 300):
        assert (rank_patches(torch.zeros(1, patches)) == 0.5).all()
