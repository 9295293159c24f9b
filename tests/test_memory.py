# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Memory and open files, as ``python -m soak.memory`` measures them."""

import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from soak.memory import BOUND, files, judge, resident, slope, write_scenes

STEPS = np.arange(20, 2001, 20)


def rows(growth: float, opened: int = 10, later: int = 10) -> list[list[float]]:
    """A run that starts up, is noisy, and has peaks."""
    rng = np.random.default_rng(0)
    memory = 300 + 80 * (1 - np.exp(-STEPS / 100)) + growth * STEPS / 1000
    memory += rng.normal(0, 1, len(STEPS)) + 50 * (rng.random(len(STEPS)) < 0.1)
    count = np.where(STEPS < 1500, opened, later)
    return np.stack([STEPS, memory, count], 1).tolist()


@pytest.mark.parametrize('growth', [0.0, -3.0, BOUND / 2])
def test_flat_runs(growth: float) -> None:
    _, failures = judge('a', rows(growth))
    assert failures == []
    steps, memory, _ = np.array(rows(growth)).T
    late = steps > 600
    assert slope(steps[late], memory[late]) == pytest.approx(growth, abs=1)


def test_leaks_are_found() -> None:
    found, failures = judge('a', rows(2 * BOUND))
    assert 'MB per 1,000 steps' in found
    assert failures[0].startswith('a: memory grows by ')
    _, failures = judge('a', rows(0.0, 10, 20))
    assert failures == ['a: 10 files open at first, 20 later']


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_what_is_measured(tmp_path: Path) -> None:
    before = resident(os.getpid())
    # From the system itself: after a thousand tests an allocator has pages in store.
    with mmap.mmap(-1, 64_000_000) as held:
        held.write(b'1' * len(held))
        assert resident(os.getpid()) - before == pytest.approx(64, abs=10)
    assert 0 < resident(os.getpid(), own=True) < resident(os.getpid())
    count = files(os.getpid())
    with open(tmp_path / 'file', 'w'):
        assert files(os.getpid()) == count + 1
    assert files(2**22 + 1) == resident(2**22 + 1) == 0


def test_scenes(tmp_path: Path) -> None:
    write_scenes(tmp_path / 'scenes', 1, 64)
    assert [path.name for path in (tmp_path / 'scenes').iterdir()] == ['0.tif']
