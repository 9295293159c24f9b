# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Two gloo processes, as ``torchrun`` starts them.

All families, four processes, kills and FSDP are in tests/slow/test_processes.py.
"""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from helpers.distributed import fit_and_draw, fit_group, samples
from helpers.processes import join, start_group
from torchgeo_sigmae import Guidance, SIGMAETask, SyntheticSentinel2DataModule


def test_ddp_on_two_processes(synthetic_root: Path, tmp_path: Path) -> None:
    processes = start_group(2, fit_and_draw, 2, synthetic_root, tmp_path)
    assert join(processes) == [0, 0]
    records = [json.loads((tmp_path / f'{rank}.json').read_text()) for rank in (0, 1)]
    # The processes have the same weights and metrics.
    assert records[0]['weights'] == records[1]['weights']
    for name in ('val_loss', 'val_baseline_loss', 'val_psnr', 'visibility_ratio'):
        assert records[0]['metrics'][name] == records[1]['metrics'][name], name
    # The metrics cover the chips of both, under the masks one process would draw: the
    # baseline does not depend on the weights.
    alone = Trainer(accelerator='cpu', logger=False, enable_progress_bar=False)
    task = SIGMAETask(
        'sigmae_vit_tiny_patch8', size=32, decoder_dim=32, decoder_num_heads=2
    )
    datamodule = SyntheticSentinel2DataModule(root=synthetic_root, batch_size=32)
    expected = alone.validate(task, datamodule, verbose=False)[0]['val_baseline_loss']
    actual = records[0]['metrics']['val_baseline_loss']
    assert actual == pytest.approx(expected, rel=1e-5)
    # What is random differs between the processes.
    assert records[0]['drawn'][0] != records[1]['drawn'][0]
    assert records[0]['drawn'][1] != records[1]['drawn'][1]
    # base_lr is scaled by the batch of both processes together.
    assert abs(records[0]['initial_lr'] - 1.5e-4 * 32 / 256) < 1e-12


#: Tasks whose masks do not depend on the number of processes. Augmentation is drawn for
#: the batch of a process, and saliency sees what is augmented.
COMPARED = {
    'random, augmented': {'masking': 'random', 'predict_ratio': 0.5},
    'saliency, not augmented': {
        'masking': 'saliency',
        'guidance': Guidance((1.0, 1.0)),
        'predict_ratio': 0.5,
        'augment': False,
    },
}


def test_two_processes_are_one_with_twice_the_batch(
    synthetic_root: Path, packed_root: Path, tmp_path: Path
) -> None:
    """The same chips under the same masks in every step, and the same loss."""
    packed = {'chips': packed_root, 'masking': 'random', 'augment': False}
    jobs = {**COMPARED, 'packed': packed}
    alone, both = (
        fit_group(size, synthetic_root, tmp_path / str(size), jobs, limit=4)
        for size in (1, 2)
    )
    for job in jobs:
        rows = samples(tmp_path / '1' / job)
        assert samples(tmp_path / '2' / job) == rows
        # Each sample has its own mask.
        assert len({mask for *_, mask in rows}) == len(rows) == 4 * 16
        (one,), (first, second) = alone[job], both[job]
        assert torch.equal(first.weights, second.weights)
        if jobs[job].get('augment', True):
            continue
        # Processes average their losses.
        pairs = zip(first.losses, second.losses, strict=True)
        assert [sum(pair) / 2 for pair in pairs] == pytest.approx(one.losses, rel=1e-5)
        torch.testing.assert_close(first.weights, one.weights, rtol=1e-3, atol=1e-4)
