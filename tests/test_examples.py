# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The example configurations, from the command line; that every example has a test."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from helpers.geotiffs import write
from helpers.training import ONE_EPOCH
from torchgeo_sigmae.bands import (
    OSCD_BANDS,
    SENTINEL2_L2A_BANDS,
    SENTINEL2_TEN_BANDS,
)
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.plotting import read_log
from torchgeo_sigmae.weights import read_weights

pytestmark = pytest.mark.usefixtures('narrow_models')

EXAMPLES = Path(__file__).parents[1] / 'examples'

#: The tests that run each file; a new file needs a new line, and a test.
TESTED = {
    'test_barkbeetle.test_finetuning_from_the_example_config': (
        'barkbeetle.py',
        'change_barkbeetle.yaml',
        'extract_barkbeetle.yaml',
        'segment_barkbeetle.yaml',
    ),
    'cli/test_main.test_finetuning_from_the_example_config': ('classify_eurosat.yaml',),
    'cli/test_main.test_pretraining_from_the_example_config': (
        'pretrain_eurosat.yaml',
        'reconstruct_eurosat.py',
    ),
    'test_own_geotiffs.test_a_newcomer_gets_a_classifier_and_can_use_it': (
        'classify_own_geotiffs.py',
    ),
    'test_examples.test_pretraining_from_the_example_config': (
        'pretrain_oscd.yaml',
        'pretrain_ssl4eo.yaml',
    ),
    'cli/test_pack.test_pretraining_from_the_example_config': ('pretrain_packed.yaml',),
    'test_examples.test_pretraining_on_real_data_from_the_example_config': (
        'pretrain_barkbeetle.yaml',
        'pretrain_bigearthnet.yaml',
        'pretrain_satmae.yaml',
        'pretrain_scenes.yaml',
    ),
    'test_examples.test_progressive_pretraining_from_the_example_configs': (
        'pretrain_s2mae.yaml',
        'pretrain_s2mae_stage2.yaml',
    ),
    'test_examples.test_the_runs_of_the_packaged_weights': (
        'pretrain_sentinel2.yaml',
        'pretrain_sentinel2_stage2.yaml',
        'pretrain_sentinel2_stage3.yaml',
    ),
}

# The command line reads 1 as 1.0, all of them.
FAST = [*ONE_EPOCH, '--trainer.limit_val_batches=2']

# A few chips are not worth reading whole scenes.
FEW = [
    *('--data.init_args.cache=false', '--data.init_args.length=16'),
    '--data.init_args.batch_size=16',
]


@pytest.mark.parametrize(
    ('name', 'fixture', 'settings', 'dates'),
    [
        ('oscd', 'oscd_root', [], 1),
        ('ssl4eo', 'ssl4eo_root', ['--data.init_args.batch_size=2'], 2),
    ],
)
def test_pretraining_from_the_example_config(
    name: str,
    fixture: str,
    settings: list[str],
    dates: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    main(
        [
            'fit',
            f'--config={EXAMPLES / f"pretrain_{name}.yaml"}',
            f'--data.dict_kwargs.root={request.getfixturevalue(fixture)}',
            f'--trainer.default_root_dir={tmp_path}',
            *FAST,
            *settings,
        ]
    )
    (path,) = tmp_path.rglob('*.ckpt')
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint['global_step'] == 1
    assert checkpoint['statistics']['dates'] == dates
    hparams = read_weights(path).info
    assert hparams['bands'] == list(SENTINEL2_TEN_BANDS)
    # A training checkpoint tells as much as an exported encoder.
    assert all(isinstance(value, float) for value in hparams['mean'] + hparams['std'])


@pytest.mark.parametrize(
    ('name', 'folder', 'root', 'settings'),
    [
        ('scenes', 'scenes', 'data.init_args', FEW),
        ('satmae', 'scenes', 'data.init_args', FEW),
        ('barkbeetle', 'barkbeetle', 'data.init_args', FEW),
        ('sentinel2', '.', 'data.init_args', FEW),
        (
            'bigearthnet',
            'bigearthnet',
            'data.dict_kwargs',
            [
                # What is said at the top of the file.
                '--trainer.max_steps=1',
                '--trainer.devices=1',
                '--trainer.strategy=auto',
                '--data.init_args.batch_size=1',
                '--data.init_args.num_workers=0',
            ],
        ),
    ],
)
def test_pretraining_on_real_data_from_the_example_config(
    real_data: Callable[[str], Path],
    name: str,
    folder: str,
    root: str,
    settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        'fit',
        f'--config={EXAMPLES / f"pretrain_{name}.yaml"}',
        f'--{root}.root={real_data(folder)}',
        *FAST,
        *settings,
    ]
    main(command)
    output = tmp_path / 'outputs' / f'pretrain_{name}'
    actual = list(output.rglob('*.ckpt'))
    assert actual
    for path in actual:
        assert torch.load(path, weights_only=True)['global_step'] == 1
        hparams = read_weights(path).info
        assert hparams['bands'] == list(SENTINEL2_TEN_BANDS)
    log = read_log(output)
    assert {'train_loss_epoch', 'val_loss', 'val_baseline_loss'} <= set(log)
    # The same command goes on: here there is nothing left to do.
    said: list[str] = []
    monkeypatch.setattr('torchgeo_sigmae.cli.fit.rank_zero_info', said.append)
    main(command)
    assert 'resume/step=000000001.ckpt (step 1)' in said[0]
    assert len(read_log(output)['train_loss_epoch'][0]) == 1


def test_progressive_pretraining_from_the_example_configs(
    real_data: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    # One step a stage.
    commands = {
        name: [
            'fit',
            f'--config={EXAMPLES / f"{name}.yaml"}',
            f'--data.init_args.root={real_data(folder)}',
            *FEW,
            *FAST,
        ]
        for name, folder in (
            ('pretrain_s2mae', 'scenes'),
            ('pretrain_s2mae_stage2', 'barkbeetle'),
        )
    }
    actual = {}
    for name, command in commands.items():
        main(command)
        (path,) = (tmp_path / 'outputs' / name / 'resume').glob('*.ckpt')
        assert torch.load(path, weights_only=True)['global_step'] == 1
        actual[name] = read_weights(path)
    first, second = actual.values()
    assert first.info['bands'] == list(SENTINEL2_TEN_BANDS)
    assert second.info['bands'] == list(SENTINEL2_L2A_BANDS)
    stages = second.info['trained_on']
    assert stages[:1] == first.info['trained_on']
    assert [(len(stage['bands']), stage['size']) for stage in stages] == [
        (10, 64),
        (12, 96),
    ]
    assert [Path(stage['root']).name for stage in stages] == ['scenes', 'barkbeetle']
    # Cubes of two bands in both, on 8 x 8 and on 12 x 12 patch positions.
    assert first.encoder['spectral_embed'].shape == (1, 5, 32)
    assert second.encoder['spectral_embed'].shape == (1, 6, 32)
    assert first.encoder['pos_embed'].shape == (1, 1 + 64, 32)
    assert second.encoder['pos_embed'].shape == (1, 1 + 144, 32)
    # It went on: Adam's first step moves a weight by little more than 0.0005 at most.
    moved = [
        (value - first.encoder[key]).abs().max()
        for key, value in second.encoder.items()
        if key.startswith('blocks.') or key == 'patch_embed.proj.weight'
    ]
    assert len(moved) == 12 * 12 + 1
    assert 0 < max(moved) < 6e-4
    # The same command goes on with stage 2, not from stage 1 again.
    said: list[str] = []
    monkeypatch.setattr('torchgeo_sigmae.cli.fit.rank_zero_info', said.append)
    main(commands['pretrain_s2mae_stage2'])
    assert 'resume/step=000000001.ckpt (step 1)' in said[0]


def test_the_runs_of_the_packaged_weights(
    scene: Callable[[int, int], np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    # One step of eight chips, of generated files under the real ones' names.
    for index, name in enumerate(('one', 'nora', 'ravaen', 'dsen2_49JGM', 'T33NZA')):
        path = tmp_path / 'data' / 'scenes' / f'{name}.tif'
        write(path, scene(index, 72), OSCD_BANDS)
    write(tmp_path / 'data' / 'pool' / 'two.tif', scene(5, 72), OSCD_BANDS)
    # A port has five bands.
    port = tmp_path / 'data' / 'partial' / 'port.tif'
    five = ('B02', 'B03', 'B04', 'B08', 'B11')
    chosen = [OSCD_BANDS.index(band) for band in five]
    write(port, scene(6, 72)[chosen], five)
    for year in (2019, 2020):
        path = tmp_path / 'data' / 'barkbeetle' / '102' / f'{year}.tif'
        write(path, scene(year - 2010, 72), OSCD_BANDS)
    config = EXAMPLES / 'pretrain_sentinel2.yaml'
    few = ('--data.init_args.length=8', '--data.init_args.batch_size=8')
    main(['fit', f'--config={config}', *few, *FAST])
    folder = tmp_path / 'outputs' / 'pretrain_sentinel2'
    (path,) = (folder / 'resume').glob('*.ckpt')
    hparams = read_weights(path).info
    assert hparams['band_dropout'] == 0
    assert hparams['trained_on'][0]['steps'] == 1

    main(['pack', str(config), '--size', '64', '--output', 'data/pack'])
    small = ('--model.init_args.size=32', '--data.init_args.size=32')
    for stage in (2, 3):
        name = f'pretrain_sentinel2_stage{stage}'
        main(['fit', f'--config={EXAMPLES / name}.yaml', *few, *small, *FAST])
        (path,) = (tmp_path / 'outputs' / name / 'resume').glob('*.ckpt')
        stages = read_weights(path).info['trained_on']
        assert [one['steps'] for one in stages] == [1] * stage


def test_every_example_has_a_test() -> None:
    # Those of comparison/ are guarded by test_comparison.py.
    files = [path.name for path in EXAMPLES.iterdir() if path.is_file()]
    assert sorted(files) == sorted(name for names in TESTED.values() for name in names)
    for test in TESTED:
        module, name = test.split('.')
        source = (Path(__file__).parent / f'{module}.py').read_text()
        assert f'def {name}(' in source, test


@pytest.mark.parametrize(
    'path',
    sorted((*EXAMPLES.rglob('*.yaml'), *EXAMPLES.rglob('*.py'))),
    ids=lambda path: path.name,
)
def test_every_example_opens_with_what_it_does_needs_and_takes(path: Path) -> None:
    text = path.read_text()
    if path.suffix == '.py':
        header = ast.get_docstring(ast.parse(text)) or ''
    else:
        lines = text.split('\n')
        end = next(i for i, line in enumerate(lines) if not line.startswith('#'))
        header = '\n'.join(line.removeprefix('#').strip() for line in lines[:end])
        assert isinstance(yaml.safe_load(text), dict)
    actual = re.fullmatch(r'(.+?)\bNeeds: (.+?)\bTakes:\s(.+)', header, re.S)
    assert actual, 'What it does. Needs: what. Takes: how long.'
    does, needs, takes = actual.groups()
    assert len(does.split()) >= 4
    assert needs.strip()
    assert re.match(
        r'.*(second|minute|hour|day|nothing|see \w+\.yaml|never run)', takes, re.S
    )
