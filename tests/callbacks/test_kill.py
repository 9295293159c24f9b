# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""A run that is killed once; tests/slow/test_kills.py has every other kill."""

from pathlib import Path

import torch

from helpers.killed_runs import Run, differences
from helpers.processes import join
from torchgeo_sigmae.callbacks.checkpoint import checkpoints


def test_a_killed_run_ends_like_one_that_was_not(
    synthetic_root: Path, tmp_path: Path
) -> None:
    """Killed while it writes a checkpoint."""
    whole = Run(synthetic_root, tmp_path / 'whole', epochs=2)
    processes = whole.start()
    killed = Run(synthetic_root, tmp_path / 'killed', epochs=2)
    assert killed.survive(['checkpoint']).total() == 1
    assert join(processes) == [0]
    assert differences(killed.folder, whole.folder) == []

    # A difference is reported, in the last bit of a weight and in the log.
    newest = checkpoints(killed.folder / 'resume')[0]
    assert newest.name == 'step=000000008.ckpt'
    content = torch.load(newest, weights_only=True)
    bias = next(v for k, v in content['state_dict'].items() if k.endswith('bias'))
    bias[0] = torch.nextafter(bias[0], torch.tensor(9.0))
    torch.save(content, newest)
    last = max((killed.folder / 'log').glob('version_*/metrics.csv'))
    last.write_text(last.read_text().replace('0.', '0.0', 1))
    actual = differences(killed.folder, whole.folder)
    assert 'state_dict' in actual
    assert len(actual) == 2
