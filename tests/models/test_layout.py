# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What a token is: cut and put back, against loops over every pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchgeo_sigmae.models import TokenLayout
from torchgeo_sigmae.patches import patchify, unpatchify


@st.composite
def layouts(draw: st.DrawFn) -> TokenLayout:
    """Unequal groups whose channels lie anywhere."""
    membership = draw(st.lists(st.integers(0, 3), min_size=1, max_size=7))
    order = draw(st.permutations(range(len(membership))))
    groups = [tuple(c for c in order if membership[c] == g) for g in range(4)]
    return TokenLayout(draw(st.integers(1, 3)), tuple(filter(None, groups)))


def cut(layout: TokenLayout, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place by place: the tokens, and which of their values are data."""
    p, m = layout.patch_size, max(len(group) for group in layout.groups)
    height, width = image.shape[2] // p, image.shape[3] // p
    places = height * width
    tokens = np.zeros((len(image), len(layout.groups) * places, m * p * p), 'float32')
    data = np.zeros(tokens.shape[1:], bool)
    for g, group in enumerate(layout.groups):
        for n in range(places):
            row, column = divmod(n, width)
            for slot, channel in enumerate(group):
                for y in range(p):
                    for x in range(p):
                        at = slot * p * p + y * p + x
                        pixel = image[:, channel, row * p + y, column * p + x]
                        tokens[:, g * places + n, at] = pixel
                        data[g * places + n, at] = True
    return tokens, data


sizes = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(layout=layouts(), batch=st.integers(1, 2), grid=sizes)
@settings(max_examples=40, deadline=None)
def test_tokens_are_those_of_a_loop_and_come_back(
    layout: TokenLayout, batch: int, grid: tuple[int, int]
) -> None:
    side = layout.patch_size
    shape = (batch, layout.channels, grid[0] * side, grid[1] * side)
    image = torch.arange(float(np.prod(shape))).view(shape)
    tokens = layout.patchify(image)
    expected, data = cut(layout, image.numpy())
    places = grid[0] * grid[1]
    assert tokens.shape == (batch, layout.num_groups * places, layout.token_size)
    assert np.array_equal(tokens.numpy()[:, data], expected[:, data])
    slots = layout.slots()
    assert slots.shape == (layout.num_groups, layout.token_size)
    assert np.array_equal(slots.repeat_interleave(places, 0).numpy(), data)
    assert torch.equal(layout.unpatchify(tokens, grid), image)
    # Padding says nothing.
    padded = torch.where(torch.from_numpy(data), tokens, torch.nan)
    assert torch.equal(layout.unpatchify(padded, grid), image)
    # Masks are cut like images.
    mask = image % 3 == 0
    assert torch.equal(layout.unpatchify(layout.patchify(mask), grid), mask)


@given(channels=st.integers(1, 6), patch=st.integers(1, 3), grid=sizes)
@settings(max_examples=20, deadline=None)
def test_one_token_a_place_is_a_plain_vits(
    channels: int, patch: int, grid: tuple[int, int]
) -> None:
    layout = TokenLayout.whole(patch, channels)
    image = torch.randn(2, channels, grid[0] * patch, grid[1] * patch)
    tokens = patchify(image, patch)
    assert torch.equal(layout.patchify(image), tokens)
    assert torch.equal(layout.unpatchify(tokens, grid), unpatchify(tokens, patch, grid))
    assert layout.slots().all()
    assert layout == TokenLayout.cubes(patch, channels, channels)
    assert layout == TokenLayout.grouped(patch, [0] * channels)


def test_cubes_and_groups() -> None:
    cubes = TokenLayout.cubes(8, 6, 2)
    assert cubes.groups == ((0, 1), (2, 3), (4, 5))
    assert (cubes.num_groups, cubes.group_size, cubes.token_size) == (3, 2, 128)
    assert cubes.padded() == list(range(6))
    grouped = TokenLayout.grouped(4, [1, 0, 1, 1, 2])
    assert grouped.groups == ((1,), (0, 2, 3), (4,))
    assert (grouped.channels, grouped.group_size, grouped.token_size) == (5, 3, 48)
    assert grouped.padded() == [1, 1, 1, 0, 2, 3, 4, 4, 4]
    assert grouped.slots().sum(1).tolist() == [16, 48, 16]


def test_a_patch_that_does_not_divide_is_refused() -> None:
    layout = TokenLayout.cubes(8, 4, 2)
    with pytest.raises(ValueError, match='image: 32 x 30 pixels cannot be cut'):
        layout.patchify(torch.zeros(1, 4, 32, 30))
