# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import random

import numpy as np
import torch

from torchgeo_sigmae._random import seed_from, seeded


def test_seeds_are_spread_and_stable() -> None:
    seeds = {
        seed_from(0, e, b, r) for e in range(9) for b in range(9) for r in range(4)
    }
    assert len(seeds) == 9 * 9 * 4
    assert all(0 <= s < 2**63 for s in seeds)
    assert seed_from(1, 2) == 7764949442709860949


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeded_sets_every_generator_and_puts_it_back() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = [draw(), draw()]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    found = [draw()]
    with seeded(3, 4):
        inside = draw()
    found.append(draw())
    assert found == expected
    with seeded(3, 4):
        assert draw() == inside
    with seeded(4, 3):
        assert all(a != b for a, b in zip(draw(), inside, strict=True))
