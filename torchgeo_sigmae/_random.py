# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Randomness that depends on what is computed alone, not on what came before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ('seed_from', 'seeded')


def seed_from(*key: int) -> int:
    """Mix non-negative integers into one well-spread seed in [0, 2**63)."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return int(state[0]) >> 1


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch (CPU) for a while.

    For code of others that draws from them. They are left as they were.
    """
    # NumPy's legacy generator is what other people's datasets draw from.
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    seed = seed_from(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
