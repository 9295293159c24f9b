# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The benchmarks run, on little; what they measure is not tested."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from torchgeo_sigmae import SIGMAETask

ROOT = Path(__file__).parents[1]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    task = SIGMAETask(
        'sigmae_vit_tiny_patch8', mean=1000.0, std=500.0, decoder_dim=16,
        decoder_depth=1, decoder_num_heads=1,
    )  # fmt: skip
    task.export(tmp_path / 'encoder.pth')
    return tmp_path / 'encoder.pth'


def run(*arguments: object) -> str:
    command = [sys.executable, '-m', *map(str, arguments)]
    env = {'PYTHONPATH': f'{ROOT}:{ROOT / "examples"}'}
    return subprocess.run(
        command, cwd=ROOT, env={**env, 'PATH': '/usr/bin:/bin'}, check=True,
        capture_output=True, text=True, timeout=300,
    ).stdout  # fmt: skip


def test_adapt_bands(encoder: Path, eurosat_root: Path) -> None:
    table = run('benchmarks.adapt_bands', encoder, eurosat_root)
    assert '200 chips' in table
    assert table.count('| RGB + B08 |') == 1


def test_finetune(
    encoder: Path, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    table = run(
        'benchmarks.finetune', 'examples/segment_barkbeetle.yaml',
        '--encoder', encoder, '--metrics', 'test_iou_positive', '--seeds', 1,
        '--output', tmp_path / 'out', '--data.init_args.root', real_data('barkbeetle'),
        '--data.init_args.batch_size', 64, '--trainer.max_epochs', 1,
        '--trainer.limit_test_batches', 2, '--trainer.default_root_dir', tmp_path,
    )  # fmt: skip
    assert '| test_iou_positive |' in table
    assert (tmp_path / 'out' / 'segment_barkbeetle.json').exists()
