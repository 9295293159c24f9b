# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The benchmarks run, on little; what they measure is not tested.

That their arguments are parsed is tested in every run, by tests/docs.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torchgeo.datamodules import EuroSATDataModule

from benchmarks import finetune, weights_check, weights_release
from helpers.geotiffs import write
from helpers.processes import run
from torchgeo_sigmae import BatchSpec, SIGMAETask
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.weights import read_weights

pytestmark = pytest.mark.slow

#: What is no share of the time of a loop.
NOT_PARTS = ('source', 'workers', 'images_per_second')


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    task = SIGMAETask(
        'sigmae_vit_tiny_patch8', batch=BatchSpec(mean=1000.0, std=500.0),
        decoder_dim=16, decoder_depth=1, decoder_num_heads=1,
    )  # fmt: skip
    task.export(tmp_path / 'encoder.pth')
    return tmp_path / 'encoder.pth'


def test_adapt_bands(encoder: Path, eurosat_root: Path) -> None:
    table = run('benchmarks.adapt_bands', encoder, eurosat_root)
    assert '200 chips' in table
    assert table.count('| RGB + B08 |') == 1


def test_weights_check(
    encoder: Path, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    card = tmp_path / 'card.md'
    card.write_text('Before.\n' + '\n'.join(weights_check.MARKS) + '\nAfter.\n')
    run(
        'benchmarks.weights_check', '--weights', encoder, '--card', card, '--write',
        '--data', real_data('eurosat').parent, '--repeats', 1, '--labels', 1,
        '--blocks', 2,
    )  # fmt: skip
    text = card.read_text()
    assert text.startswith('Before.\n')
    assert text.endswith('\nAfter.\n')
    rows = [line for line in text.splitlines() if line.startswith('| ')]
    names = ['encoder.pth, block 2', 'sigmae_vit_tiny_patch8, untrained, block 2']
    names.append('band mean and std')
    assert [row.split(' | ')[0][2:] for row in rows] == [
        'features', *names, 'encoder.pth, block 2, minus', *names[1:]
    ]  # fmt: skip
    # The card is as measured; a figure that is not is found.
    (figures,) = text.split(weights_check.MARKS[0])[1].split(weights_check.MARKS[1])[:1]
    assert weights_check.compare(figures, figures, 0) == []
    (number,) = weights_check.NUMBER.findall(rows[3])[:1]
    changed = rows[3].replace(f' {number} ', f' {float(number) + 0.7:.1f} ', 1)
    other = figures.replace(rows[3], changed)
    assert len(weights_check.compare(other, figures, 0.5)) == 1
    assert weights_check.compare(other, figures, 0.75) == []
    renamed = figures.replace('band mean and std', 'band mean')
    assert len(weights_check.compare(renamed, figures, 9)) == 2
    shorter = figures.replace(rows[-1], '')
    assert 'rows' in weights_check.compare(shorter, figures, 9)[0]


def test_weights_release(tmp_path: Path) -> None:
    task = SIGMAETask(
        'sigmae_vit_tiny_patch8', size=32, batch=BatchSpec(mean=1000.0, std=500.0)
    )
    task.history = [{'root': str(tmp_path / 'data'), 'steps': 1}]
    trainer = Trainer(accelerator='cpu', logger=False, default_root_dir=tmp_path)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(tmp_path / 'x.ckpt')
    arguments = argparse.Namespace(
        checkpoint=tmp_path / 'x.ckpt', name='here', folder=tmp_path
    )
    weights_release.main(arguments)
    (file,) = tmp_path.glob('sigmae_vit_tiny_patch8_here-*.pth')
    assert hashlib.sha256(file.read_bytes()).hexdigest().startswith(file.stem[-8:])
    stages = read_weights(file).info['trained_on']
    assert stages[0] == {'root': 'data', 'steps': 1}
    assert SIGMAETask('sigmae_vit_tiny_patch8', weights=str(file), size=32)


def test_maps(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).integers(1, 5000, (10, 40, 40)).astype('uint16')
    scene = write(tmp_path / 's.tif', bands, SENTINEL2_TEN_BANDS)
    table = run(
        'benchmarks.maps', '--scene', scene, '--side', 64, '--only', 'saliency',
        '--output', tmp_path / 'maps.md',
    )  # fmt: skip
    assert '| 64 x 64 x 10 | seconds | peak GB | map, MB |' in table
    *_, row = re.findall(r'^\| saliency \| \d+ \| (\S+) \| 0 \|$', table, re.M)
    assert 0.3 < float(row) < 4


def test_few_labels_to_fine_tune_with(real_data: Callable[[str], Path]) -> None:
    datamodules = []
    for seed in (0, 0, 1):
        data = EuroSATDataModule(root=real_data('eurosat'), batch_size=2)
        finetune.draw_labels(data, 3, seed)
        data.setup('fit')
        labels = [int(sample['label']) for sample in data.train_dataset]
        assert sorted(labels) == sorted(3 * list(range(10)))
        datamodules.append(data.train_dataset.indices)
    assert datamodules[0] == datamodules[1] != datamodules[2]


def test_finetune(
    encoder: Path, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    command = (
        'benchmarks.finetune', 'examples/segment_barkbeetle.yaml', '--frozen',
        '--encoder', encoder, '--seeds', 1,
        '--metrics', 'val_iou_positive', 'test_iou_positive',
        '--output', tmp_path / 'out', '--data.init_args.root', real_data('barkbeetle'),
        '--data.init_args.batch_size', 64, '--trainer.max_epochs', 1,
        '--trainer.limit_train_batches', 1, '--trainer.limit_val_batches', 2,
        '--trainer.limit_test_batches', 2, '--trainer.default_root_dir', tmp_path,
    )  # fmt: skip
    first = run(*command)
    table = (tmp_path / 'out' / 'segment_barkbeetle-frozen.md').read_text()
    assert table.strip() in first
    assert table.count('±') == 4
    # With another encoder, what does not use it is not run again.
    other = torch.load(encoder, weights_only=True)
    next(iter(other['state_dict'].values())).add_(1)
    torch.save(other, tmp_path / 'other.pth')
    second = run(*(tmp_path / 'other.pth' if a is encoder else a for a in command))
    assert second.count('finished before') == 1


def test_pretrain_step(tmp_path: Path) -> None:
    table = run(
        'benchmarks.pretrain_step', '--data', tmp_path, '--output', tmp_path,
        '--model', 'sigmae_vit_tiny_patch8', '--batch-size', 2, '--repetitions', 2,
        '--warm-up', 0, '--threads', 1,
    )  # fmt: skip
    assert '2 synthetic chips' in table
    found = json.loads((tmp_path / 'pretrain_step.json').read_text())['steps']
    peers = 'torchgeo.tasks.MAE' in table
    assert len(found) == 18 + 2 * peers
    by_name = {(row['table'], row['name']): row for row in found}
    for row in found:
        assert len(row['seconds']) == 2
        assert row['flop'] > 0
        assert row['bytes'] is None or row['bytes'] > 0
    ours, large = (
        by_name['defaults', name]['flop']
        for name in ('SIGMAETask', 'with decoder 512 x 8')
    )
    assert large > 2 * ours
    # Equal work is equal work: all matrices but the class token's in the decoder.
    one, other = (row['flop'] for row in found if row['table'] == 'model')
    assert one == pytest.approx(other, rel=0.1)
    # SatMAE has three tokens at a position and S2MAE five: so much more work.
    families = {row['name']: row for row in found if row['table'] == 'families'}
    assert [row['tokens'] for row in families.values()] == [144, 144, 432, 432, 720]
    for row in families.values():
        tokens = row['tokens'] / 144
        assert row['flop'] == pytest.approx(
            tokens * families['SIGMAE, random']['flop'], rel=0.15
        )
    small, *_, large = (row for row in found if row['table'] == 'sizes')
    assert large['tokens'] == small['tokens'] * 6.25
    assert large['flop'] == pytest.approx(6.25 * small['flop'], rel=0.2)


def test_pretrain_step_on_real_chips(
    real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    table = run(
        'benchmarks.pretrain_step', '--data', real_data('scenes').parent, '--output',
        tmp_path, '--model', 'sigmae_vit_tiny_patch8', '--batch-size', 2, '--size', 32,
        '--repetitions', 1, '--warm-up', 0, '--threads', 1, '--only', 'families',
    )  # fmt: skip
    assert '2 real Sentinel-2 chips' in table


def test_encoders(tmp_path: Path) -> None:
    names = ('sigmae_vit_tiny_patch16', 'vit_tiny_patch16_224', 'resnet18')
    table = run(
        'benchmarks.encoders', '--data', tmp_path, '--output', tmp_path, '--models',
        *names, '--size', 32, '--batch-size', 2, '--repetitions', 2, '--warm-up', 0,
        '--threads', 1,
    )  # fmt: skip
    for name in names:
        assert table.count(f'| {name} |') == 1
    for row in json.loads((tmp_path / 'encoders.json').read_text())['encoders']:
        assert len(row['inference']) == len(row['tuning']) == 2


def test_loop(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ('eurosat', 'bigearthnet', 'scenes'):
        data = real_data(name).parent
    table = run(
        'benchmarks.loop', '--data', data, '--output', tmp_path, '--workers', 0,
        '--model', 'sigmae_vit_tiny_patch16', '--size', 32, '--batch-size', 2,
        '--steps', 2, '--skip', 1, '--threads', 1, '--one-by-one',
    )  # fmt: skip
    for name in ('scenes in memory', 'pack'):
        assert table.count(f'| {name} | 0 |') == 1
    for row in json.loads((tmp_path / 'loop.json').read_text())['loops']:
        parts = [value for name, value in row.items() if name not in NOT_PARTS]
        assert all(value > -0.01 for value in parts), row
        assert sum(parts) == pytest.approx(1)


def test_loading(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    table = run(
        'benchmarks.loading', '--data', real_data('eurosat').parent, '--output',
        tmp_path, '--chips', 64, '--sizes', 32, '--batch-size', 16, '--batches', 2,
        '--repetitions', 1, '--warm-up', 0, '--workers', 0, 1,
    )  # fmt: skip
    for name, count in {'pack': 2, 'gather': 2, 'eurosat, 64 px': 1}.items():
        assert table.count(f'\n| {name} |') == count


def test_packing(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    table = run(
        'benchmarks.loading', '--packing', '--data', real_data('bigearthnet').parent,
        '--output', tmp_path, '--repetitions', 1, '--warm-up', 0,
    )  # fmt: skip
    for name in ('scenes and pool', 'bigearthnet'):
        assert table.count(f'\n| {name} |') == 1


def test_scaling(tmp_path: Path) -> None:
    command = (
        'benchmarks.scaling', '--data', tmp_path, '--output', tmp_path, '--model',
        'sigmae_vit_tiny_patch8', '--size', 32, '--read-seconds', 0, '--batch-size',
        99999,
    )  # fmt: skip
    assert 'Assumed: 0 ms (files) to read' in run(*command)
    rows = json.loads((tmp_path / 'scaling.json').read_text())['predicted'][:7]
    hours = [row['hours'] for row in rows]
    assert hours == sorted(hours, reverse=True)
    # Without a second GPU there is nothing to add up; more GPUs help less.
    assert rows[0]['longest'] == 'compute'
    assert hours[0] < 64 * hours[-1]
    run(*command, '--link', 1e18)
    found = json.loads((tmp_path / 'scaling.json').read_text())['predicted'][:7]
    assert found[-1]['hours'] == pytest.approx(hours[0] / 64, rel=1e-3)


def test_recipe(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    command = (
        'benchmarks.recipe', '--data', real_data('eurosat').parent, '--output',
        tmp_path, '--steps', 1, '--seeds', 1, '--depths', 12, '--repeats', 1,
        '--only', 'lr',
    )  # fmt: skip
    # Processes share the rows, and each writes what all have finished.
    assert run(*command, '--part', 1, 3).count('seed 0: land cover') == 1
    table = run(*command, '--part', 0, 3)
    assert '[1/3] default, seed 0' in table
    assert '[2/3]' not in table
    for name, count in (('0.001', 1), ('0.0005', 1), ('0.002', 0)):
        assert table.count(f'| {name} |') == count
    again = run(*command, '--part', 1, 3)
    assert again.count('finished before') == 1
    assert again.count('| lr, block 12 |') == 1


def test_dense_probe(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    data = real_data('barkbeetle').parent
    real_data('landcover')
    table = run(
        'benchmarks.dense_probe', 'sigmae_vit_tiny_patch8', '--depths', 1,
        '--data', data, '--output', tmp_path / 'table.md',
    )  # fmt: skip
    assert table.count('| sigmae_vit_tiny_patch8, block 1 |') == 2
    assert '| all of these together |' in table
    assert (tmp_path / 'table.md').read_text().strip() in table
