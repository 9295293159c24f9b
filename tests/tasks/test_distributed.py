# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Two gloo processes, as ``torchrun`` and Lightning's ``ddp`` start them."""

import json
import subprocess
import sys
from pathlib import Path

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
record = {
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
    # The processes hold the same weights, and their metrics cover all chips of both.
    assert records[0]['weights'] == records[1]['weights']
    for name in ('val_loss', 'val_baseline_loss', 'val_psnr', 'visibility_ratio'):
        assert records[0]['metrics'][name] == records[1]['metrics'][name], name
    # base_lr is scaled by the batch of both processes together.
    assert abs(records[0]['initial_lr'] - 1.5e-4 * 32 / 256) < 1e-12
    assert 'unused' not in run.stderr
