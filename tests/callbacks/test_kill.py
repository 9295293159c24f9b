# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Runs that are killed at random moments and started again by the same command.

Few kills here, many in ``python -m soak.kills``.
"""

import random
from pathlib import Path

import pytest
import torch

from soak.children import join
from soak.kills import EPOCHS, differences, launch, survive
from torchgeo_sigmae.callbacks.checkpoint import checkpoints


@pytest.mark.parametrize(
    ('workers', 'aims'), [(0, ['checkpoint', 'log']), (2, ['start', 'anywhere'])]
)
def test_a_killed_run_ends_like_one_that_was_not(
    synthetic_root: Path, tmp_path: Path, workers: int, aims: list[str]
) -> None:
    options = (*EPOCHS, '--trainer.max_epochs=8')
    quiet = launch(synthetic_root, tmp_path / 'quiet', 0, options)
    chance, killed = random.Random(workers), tmp_path / 'killed'
    landed = survive(synthetic_root, killed, workers, aims, chance, options)
    assert landed.total() == len(aims)
    assert join(quiet, 300) == [0]
    assert differences(killed, tmp_path / 'quiet') == []

    # That a difference would be found, in the last bit of a weight and in the log.
    newest = checkpoints(killed / 'resume')[0]
    assert newest.name == 'step=000000032.ckpt'
    content = torch.load(newest, weights_only=True)
    bias = next(v for k, v in content['state_dict'].items() if k.endswith('bias'))
    bias[0] = torch.nextafter(bias[0], torch.tensor(9.0))
    torch.save(content, newest)
    last = max((killed / 'log').glob('version_*/metrics.csv'))
    last.write_text(last.read_text().replace('0.', '0.0', 1))
    found = differences(killed, tmp_path / 'quiet')
    assert 'state_dict' in found
    assert len(found) == 2
