# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The example configurations for image pairs and seasons, from the command line."""

from pathlib import Path

import pytest
import torch

from torchgeo_sigmae.__main__ import main
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.models import read_encoder

EXAMPLES = Path(__file__).parents[1] / 'examples'
FAST = [
    '--trainer.max_epochs=1',
    '--trainer.limit_train_batches=1',
    '--trainer.limit_val_batches=1',
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
