# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Runs that are killed at random moments and started again by the same command.

``SIGMAE_KILLS`` sets how often (default 2 for each number of workers).
"""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training

from torchgeo_sigmae.plotting import read_log
from torchgeo_sigmae.resume import newest_checkpoint

CONFIG = Path(__file__).parents[1] / 'conf' / 'resume.yaml'
KILLS = int(os.environ.get('SIGMAE_KILLS', '2'))

# Children are forked from a server that has imported everything.
PROCESSES = multiprocessing.get_context('forkserver')
PROCESSES.set_forkserver_preload(['training'])


def start(root: Path, path: Path, workers: int) -> Any:
    arguments = [
        'fit',
        f'--config={CONFIG}',
        f'--trainer.default_root_dir={path}',
        f'--trainer.logger.init_args.save_dir={path}',
        f'--data.init_args.num_workers={workers}',
        f'--data.dict_kwargs.root={root}',
    ]
    process = PROCESSES.Process(target=training.fit, args=(arguments,))
    process.start()
    return process


@pytest.mark.parametrize('workers', [0, 2])
def test_a_killed_run_ends_like_one_that_was_not(
    synthetic_root: Path, tmp_path: Path, workers: int
) -> None:
    quiet = start(synthetic_root, tmp_path / 'quiet', 0)
    quiet.join(300)
    assert quiet.exitcode == 0

    chance = random.Random(workers)
    folder = tmp_path / 'killed' / 'resume'
    kills = 0
    for _ in range(KILLS):
        process = start(synthetic_root, tmp_path / 'killed', workers)
        # Anywhere from its start to a moment after its second checkpoint.
        wait_for_checkpoints(folder, process, chance.randrange(3))
        process.join(chance.uniform(0, 1))
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        wait_for_workers(process.pid)
        kills += 1
        print(f'kill {kills}: {[path.name for path in folder.glob("*")]}')
    assert kills
    last = start(synthetic_root, tmp_path / 'killed', workers)
    last.join(300)
    assert last.exitcode == 0

    found = newest_checkpoint(folder)
    expected = newest_checkpoint(tmp_path / 'quiet' / 'resume')
    assert found is not None
    assert expected is not None
    assert found[0].name == expected[0].name == 'step=000000064.ckpt'
    for part in ('state_dict', 'optimizer_states', 'lr_schedulers', 'epoch_metrics'):
        assert equal(found[1][part], expected[1][part]), part

    log, quiet_log = (read_log(tmp_path / name / 'log') for name in ('killed', 'quiet'))
    assert set(log) == set(quiet_log)
    assert {'train_loss', 'train_loss_epoch', 'val_loss', 'visibility_ratio'} <= set(
        log
    )
    for name, (steps, values) in quiet_log.items():
        np.testing.assert_array_equal(log[name][0], steps, name)
        np.testing.assert_array_equal(log[name][1], values, name)


def wait_for_checkpoints(folder: Path, process: Any, number: int) -> None:
    before = set(folder.glob('*.ckpt'))
    while len(set(folder.glob('*.ckpt')) - before) < number and process.is_alive():
        process.join(0.05)


def wait_for_workers(group: int) -> None:
    """Workers find out within seconds that their trainer is gone, and leave."""
    for _ in range(300):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    pytest.fail('workers of a killed run are still there after 30 seconds')


def equal(found: Any, expected: Any) -> bool:
    """Whether nested containers hold the same values, bit by bit."""
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, dict):
        return set(found) == set(expected) and all(
            equal(found[key], expected[key]) for key in expected
        )
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(equal, found, expected))
    return bool(found == expected)
