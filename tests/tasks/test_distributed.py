# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Two gloo processes, as Lightning's ``ddp`` and ``torchrun`` start them.

All families, four processes, kills and more: ``python -m soak.processes``.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import twice
from lightning.pytorch import Trainer

from soak.children import join, start_group
from soak.processes import dies, every_task, masks, refuses_unused, sharded
from torchgeo_sigmae import SIGMAETask, SyntheticSentinel2DataModule

SCRIPT = """
import json, sys
import torch
from lightning.pytorch import Trainer, seed_everything
from torchgeo_sigmae import SIGMAETask, SyntheticSentinel2DataModule

root, out = sys.argv[1:]
torch.set_num_threads(1)
seed_everything(0, verbose=False)
task = SIGMAETask(
    model='sigmae_vit_tiny_patch8', size=32, decoder_dim=32, decoder_depth=1,
    decoder_num_heads=2, predict_ratio=0.5,
)
trainer = Trainer(
    accelerator='cpu', strategy='ddp', devices=2, max_epochs=1, limit_train_batches=2,
    logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=out,
)
datamodule = SyntheticSentinel2DataModule(root=root, batch_size=16)
trainer.fit(task, datamodule)
(optimizer,) = trainer.optimizers
# Both processes get the same images; masks and augmentation must differ all the same.
images = torch.rand(4, 10, 64, 64, generator=torch.Generator().manual_seed(0))
task.log = lambda *args, **kwargs: None
tokens, keep, _, _ = task._draw({'image': images})
record = {
    'drawn': [float(tokens.image.double().sum()), keep.flatten().tolist()],
    'metrics': {k: float(v) for k, v in trainer.callback_metrics.items()},
    'weights': float(sum(p.double().abs().sum() for p in task.parameters())),
    'initial_lr': optimizer.param_groups[0]['initial_lr'],
}
with open(f'{out}/{trainer.global_rank}.json', 'w') as file:
    json.dump(record, file)
"""


def test_ddp_on_two_processes(synthetic_root: Path, tmp_path: Path) -> None:
    script = tmp_path / 'train.py'
    script.write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, str(script), str(synthetic_root), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    records = [json.loads((tmp_path / f'{rank}.json').read_text()) for rank in (0, 1)]
    # The processes hold the same weights and agree on the metrics.
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
    found = records[0]['metrics']['val_baseline_loss']
    assert found == pytest.approx(expected, rel=1e-5)
    # What is random differs between the processes.
    assert records[0]['drawn'][0] != records[1]['drawn'][0]
    assert records[0]['drawn'][1] != records[1]['drawn'][1]
    # base_lr is scaled by the batch of both processes together.
    assert abs(records[0]['initial_lr'] - 1.5e-4 * 32 / 256) < 1e-12


def test_two_processes_are_one_with_twice_the_batch(
    synthetic_root: Path, tmp_path: Path
) -> None:
    """The same masks for every sample, and the same loss."""
    for size in (1, 2):
        group = start_group(size, twice.fit, synthetic_root, tmp_path)
        assert join(group, 300) == [0] * size
    alone, weights = torch.load(tmp_path / '1-0.pt')
    both = [torch.load(tmp_path / f'2-{rank}.pt') for rank in (0, 1)]
    assert len(alone) == 4
    for step, told in enumerate(alone):
        parts = [part[0][step] for part in both]
        for i in range(3):
            found = [
                row
                for rows in zip(*(part[i] for part in parts), strict=True)
                for row in rows
            ]
            assert found == told[i], (step, i)
        # Processes average their losses.
        loss = (parts[0][3] + parts[1][3]) / 2
        assert loss == pytest.approx(told[3], rel=1e-5)
    torch.testing.assert_close(both[0][1], weights, rtol=1e-3, atol=1e-4)
    # Masks change from step to step and from sample to sample.
    masks = {tuple(row) for told in alone for row in told[1]}
    assert len(masks) == 4 * 16


def test_masks_hang_on_the_sample(synthetic_root: Path, tmp_path: Path) -> None:
    """Also those of augmented chips, unless guided by what was augmented."""
    assert masks(synthetic_root, tmp_path, (1, 2), 2)[1] == []


def test_no_parameter_is_left_out(synthetic_root: Path, tmp_path: Path) -> None:
    jobs = {
        's2mae': {'model': 's2mae_vit_tiny_patch8', 'masking': 'spatial'},
        'satmae': {'model': 'satmae_vit_tiny_patch8', 'masking': 'channel'},
    }
    assert every_task(synthetic_root, tmp_path / 'all', jobs)[1] == []
    assert refuses_unused(synthetic_root, tmp_path / 'unused') == []


def test_a_killed_process_ends_the_other(synthetic_root: Path, tmp_path: Path) -> None:
    found, failures = dies(synthetic_root, tmp_path / 'dies', signal.SIGKILL, 1)
    assert failures == []
    assert 'status 1' in found['rank 1 killed']


def test_fsdp(synthetic_root: Path, tmp_path: Path) -> None:
    assert sharded(synthetic_root, tmp_path)[1] == []
