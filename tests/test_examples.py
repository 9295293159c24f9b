# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The example configurations, from the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from torchgeo_sigmae.__main__ import main
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.models import read_encoder
from torchgeo_sigmae.plotting import read_log

EXAMPLES = Path(__file__).parents[1] / 'examples'
FAST = [
    '--trainer.max_epochs=1',
    # The command line reads 1 as 1.0, all of them.
    '--trainer.limit_val_batches=2',
    '--trainer.check_val_every_n_epoch=1',
    '--trainer.accelerator=cpu',
    '--trainer.enable_progress_bar=false',
    '--trainer.enable_model_summary=false',
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
    hparams = read_encoder(path).hyper_parameters
    assert hparams['bands'] == list(SENTINEL2_TEN_BANDS)
    # A training checkpoint tells as much as an exported encoder.
    assert all(isinstance(value, float) for value in hparams['mean'] + hparams['std'])


@pytest.mark.parametrize(
    ('name', 'root', 'settings'),
    [
        ('scenes', 'data.init_args', ['--data.init_args.length=16']),
        ('barkbeetle', 'data.init_args', ['--data.init_args.length=28']),
        ('bigearthnet', 'data.dict_kwargs', []),
    ],
)
def test_pretraining_on_real_data_from_the_example_config(
    real_data: Callable[[str], Path],
    name: str,
    root: str,
    settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        'fit',
        f'--config={EXAMPLES / f"pretrain_{name}.yaml"}',
        f'--{root}.root={real_data(name)}',
        *FAST,
        *settings,
    ]
    main(command)
    output = tmp_path / 'outputs' / f'pretrain_{name}'
    found = list(output.rglob('*.ckpt'))
    assert found
    for path in found:
        assert torch.load(path, weights_only=True)['global_step'] == 1
        hparams = read_encoder(path).hyper_parameters
        assert hparams['bands'] == list(SENTINEL2_TEN_BANDS)
    if name == 'bigearthnet':
        return
    log = read_log(output)
    assert {'train_loss_epoch', 'val_loss', 'val_baseline_loss'} <= set(log)
    # The same command goes on: here there is nothing left to do.
    said: list[str] = []
    monkeypatch.setattr('torchgeo_sigmae.cli.rank_zero_info', said.append)
    main(command)
    assert 'resume/step=000000001.ckpt (step 1)' in said[0]
    assert len(read_log(output)['train_loss_epoch'][0]) == 1
