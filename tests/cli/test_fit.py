# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What our commands fit, validate, test and predict add to TorchGeo's."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from kornia.augmentation import RandomHorizontalFlip, RandomVerticalFlip
from lightning.pytorch import Trainer
from torchgeo.datamodules import OSCDDataModule

from torchgeo_sigmae import (
    BatchSpec,
    BitemporalAugmentation,
    Guidance,
    ResumableCheckpoint,
)
from torchgeo_sigmae.callbacks.checkpoint import checkpoints
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.datasets import is_resumable

pytestmark = pytest.mark.usefixtures('narrow_models')

CONFIG = Path(__file__).parents[1] / 'conf' / 'resume.yaml'


class Seen:
    """What Trainer.fit was called with."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def fit(self, trainer: Trainer, model: Any, **kwargs: Any) -> None:
        self.calls.append({'trainer': trainer, 'model': model, **kwargs})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Look at the arguments, do not train."""
    seen = Seen()
    original = Trainer.fit

    def fit(
        self: Trainer,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: Any = None,
        weights_only: bool | None = None,
    ) -> None:
        seen.fit(
            self,
            model,
            datamodule=datamodule,
            ckpt_path=ckpt_path,
            weights_only=weights_only,
        )

    fit.__doc__ = original.__doc__
    monkeypatch.setattr(Trainer, 'fit', fit)
    return seen


def kept(trainer: Trainer) -> list[ResumableCheckpoint]:
    return [c for c in trainer.callbacks if isinstance(c, ResumableCheckpoint)]


def test_groups_of_arguments_from_files_and_options(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ('guidance.schedule=cosine', 'batch.scale=1', 'batch.bands=[B02, B03]')
    main(
        ['fit', f'--config={CONFIG}']
        + [f'--model.init_args.{option}' for option in options]
    )
    task = seen.calls[0]['model']
    assert task.guidance == Guidance((0.0, 2.0), 'cosine')
    assert task.batch == BatchSpec(['B02', 'B03'], scale=1.0)
    assert task.hparams['guidance'] == {
        'strength': (0.0, 2.0),
        'schedule': 'cosine',
        'richness_weight': 0.5,
        'combination': 'minmax',
    }


def test_torchgeos_datamodules_become_resumable(seen: Seen, tmp_path: Path) -> None:
    arguments = [
        'fit',
        '--model=SIGMAETask',
        '--model.model=sigmae_vit_tiny_patch16',
        '--data=OSCDDataModule',
        '--seed_everything=7',
        f'--trainer.default_root_dir={tmp_path}',
    ]
    main(arguments)
    (call,) = seen.calls
    assert isinstance(call['datamodule'], OSCDDataModule)
    assert is_resumable(call['datamodule'])
    assert call['datamodule'].resumable_seed == 7
    assert isinstance(call['datamodule'].aug, BitemporalAugmentation)
    assert call['ckpt_path'] is None
    assert kept(call['trainer']) == []
    main([*arguments, '--resume=true'])
    assert len(kept(seen.calls[1]['trainer'])) == 1
    assert kept(seen.calls[1]['trainer'])[0].folder(seen.calls[1]['trainer']) == (
        tmp_path / 'resume'
    )


def run(tmp_path: Path, *arguments: str) -> None:
    main(
        [
            'fit',
            f'--config={CONFIG}',
            f'--trainer.default_root_dir={tmp_path}',
            f'--trainer.logger.init_args.save_dir={tmp_path}',
            *arguments,
        ]
    )


def checkpoint(path: Path, **hyper_parameters: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {'state_dict': {}, 'loops': {}, 'global_step': 5}
    torch.save({**content, 'hyper_parameters': hyper_parameters}, path)


def test_the_newest_checkpoint_is_continued(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr('torchgeo_sigmae.cli.fit.rank_zero_info', said.append)
    path = tmp_path / 'resume' / 'step=000000005.ckpt'
    checkpoint(path, mask_ratio=0.9)
    run(tmp_path)
    (call,) = seen.calls
    assert call['ckpt_path'] == str(path)
    assert call['weights_only'] is True
    # The one in the configuration, not a second one.
    assert [keep.every_n_train_steps for keep in kept(call['trainer'])] == [3]
    assert 'step 5' in said[0]
    assert 'to start anew' in said[0]
    run(tmp_path, '--resume=false')
    assert seen.calls[1]['ckpt_path'] is None


def test_other_arguments_are_pointed_out(seen: Seen, tmp_path: Path) -> None:
    path = tmp_path / 'resume' / 'step=000000005.ckpt'
    checkpoint(path, mask_ratio=0.5, lr=0.001, _class_path='x', gone=1)
    with pytest.warns(
        UserWarning, match=r'other arguments: mask_ratio was 0\.5, is 0\.9'
    ):
        run(tmp_path)
    assert seen.calls[0]['ckpt_path'] == str(path)


def test_a_finished_run_is_not_run_again(synthetic_root: Path, tmp_path: Path) -> None:
    arguments = [f'--data.dict_kwargs.root={synthetic_root}', '--trainer.max_epochs=1']
    run(tmp_path, *arguments)
    (first, *_) = checkpoints(tmp_path / 'resume')
    before = first.read_bytes()
    run(tmp_path, *arguments)
    assert checkpoints(tmp_path / 'resume')[0] == first
    assert first.read_bytes() == before


def test_geographic_sampling_cannot_be_resumed(seen: Seen, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match='resume: .* samples in space and cannot'):
        main(
            [
                'fit',
                '--resume=true',
                '--model=SIGMAETask',
                '--data=NAIPChesapeakeDataModule',
                f'--trainer.default_root_dir={tmp_path}',
            ]
        )
    assert len(seen.calls) == 1


def test_the_environment_stays_as_it_is(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDAL's EMPTY_DIR would hide sidecar files."""
    monkeypatch.setenv('AWS_NO_SIGN_REQUEST', 'NO')
    monkeypatch.delenv('GDAL_DISABLE_READDIR_ON_OPEN', raising=False)
    # Set by seed_everything.
    seeds = ('PL_GLOBAL_SEED', 'PL_SEED_WORKERS')
    before = {k: v for k, v in os.environ.items() if k not in seeds}
    run(tmp_path)
    assert {k: v for k, v in os.environ.items() if k not in seeds} == before


def test_augmentations_as_a_list(seen: Seen, tmp_path: Path) -> None:
    names = ('RandomHorizontalFlip', 'RandomVerticalFlip')
    flips = [{'class_path': f'kornia.augmentation.{name}'} for name in names]
    config = yaml.safe_load(CONFIG.read_text())
    config['model']['init_args']['transform'] = flips
    (tmp_path / 'flips.yaml').write_text(yaml.safe_dump(config))
    run(tmp_path, f'--config={tmp_path / "flips.yaml"}')
    task = seen.calls[0]['model']
    kinds = [type(flip) for flip in task.transform.children()]
    assert kinds == [RandomHorizontalFlip, RandomVerticalFlip]
    image = torch.rand(2, 1, 8, 8)
    flipped, valid = task.transform(image, image, data_keys=['input', 'mask'])
    assert torch.equal(flipped, valid)


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('--trainer.max_epoch=1', "Did you mean '--trainer.max_epochs'?"),
        ('--model.init_args.bnads=[B02]', "no argument 'bnads'. Did you mean 'bands'?"),
        ('--model.init_args.bands=[B99]', "bands: 'B99' is not a band of sentinel2"),
        ('--config=none.yaml', "--config: File does not exist: '"),
        ('--trainer.max_epochs=abc', '--trainer.max_epochs: Expected a int'),
    ],
)
def test_mistakes_take_one_line(
    option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, option)
    assert stop.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if 'error: ' in x]
    assert line.startswith('torchgeo-sigmae')
    assert message in line
    assert 'Union' not in line
