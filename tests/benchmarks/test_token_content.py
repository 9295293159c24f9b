# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What tokens say about their patch, against loops over patches."""

import numpy as np
import pytest
import torch

from benchmarks.token_content import PATCH, SIZE, explained, targets


def test_targets_are_those_of_single_patches() -> None:
    chips = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    wanted = targets(chips)
    side = SIZE // PATCH
    for number, row, column in ((0, 0, 0), (1, 2, 5), (1, 7, 7)):
        top, left = row * PATCH, column * PATCH
        patch = chips[number, :, top : top + PATCH, left : left + PATCH].double()
        quarters = [patch[:, :4, :4], patch[:, :4, 4:], patch[:, 4:, :4]]
        index = (number * side + row) * side + column
        actual = {name: values[index] for name, values in wanted.items()}
        level = patch.mean(dim=(1, 2))
        np.testing.assert_allclose(actual['level'], level, atol=1e-6)
        np.testing.assert_allclose(actual['texture'], patch.std(dim=(1, 2)), atol=1e-6)
        detail = torch.cat([quarter.mean(dim=(1, 2)) - level for quarter in quarters])
        np.testing.assert_allclose(actual['detail'], detail, atol=1e-6)


def test_explained_is_all_or_nothing() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(40 * 64, 6))
    assert explained(tokens, tokens @ rng.normal(size=(6, 2)) + 3) > 0.999
    noise = rng.normal(size=(40 * 64, 2))
    assert explained(tokens, noise) == pytest.approx(0, abs=0.02)
