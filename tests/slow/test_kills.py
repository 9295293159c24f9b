# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""A run that is interrupted again and again ends like one that was not, bit by bit.

Compared are weights, optimizer, schedule, metrics of epochs and the log, which holds
loss, learning rate, curriculum and a hash of all masks and chips of every step.
"""

import signal
from pathlib import Path

import pytest

from helpers.killed_runs import AIMS, Run, differences
from helpers.processes import join

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

EPOCHS = 24


@pytest.fixture(scope='module')
def whole(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupts."""
    run = Run(synthetic_root, tmp_path_factory.mktemp('whole'), epochs=EPOCHS)
    assert join(run.start()) == [0]
    return run.folder


@pytest.mark.parametrize(
    ('how', 'workers', 'aims'),
    [
        (signal.SIGKILL, 2, [*AIMS, 'checkpoint', 'anywhere', 'anywhere']),
        (signal.SIGKILL, 0, ['start', 'validation', 'epoch end', 'anywhere']),
        (signal.SIGTERM, 0, ['training', 'validation']),
        (signal.SIGINT, 0, ['training', 'validation', 'checkpoint']),
    ],
)
def test_an_interrupted_run_ends_like_one_that_was_not(
    how: signal.Signals,
    workers: int,
    aims: list[str],
    synthetic_root: Path,
    whole: Path,
    tmp_path: Path,
) -> None:
    run = Run(synthetic_root, tmp_path, workers, EPOCHS)
    assert run.survive(aims, how).total() == len(aims)
    assert differences(tmp_path, whole) == []


def test_a_pack_continues_on_two_processes(packed_root: Path, tmp_path: Path) -> None:
    """With two workers each, which map the same files."""
    whole = Run(packed_root, tmp_path / 'whole', 2, 3, processes=2)
    assert join(whole.start()) == [0, 0]
    killed = Run(packed_root, tmp_path / 'killed', 2, 3, processes=2)
    killed.survive(['training'])
    assert differences(killed.folder, whole.folder) == []
