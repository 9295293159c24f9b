# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.


from torchgeo_sigmae._random import seed_from


def test_seeds_are_spread_and_stable() -> None:
    seeds = {
        seed_from(0, e, b, r) for e in range(9) for b in range(9) for r in range(4)
    }
    assert len(seeds) == 9 * 9 * 4
    assert all(0 <= s < 2**63 for s in seeds)
    assert seed_from(1, 2) == 7764949442709860949
