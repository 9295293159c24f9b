# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The reconstruction report, from a checkpoint and GeoTIFFs."""

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from helpers.geotiffs import write
from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import SyntheticSentinel2
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.evaluation.reconstruction import reconstruction_report
from torchgeo_sigmae.plotting import plot_mask_ratios

pytestmark = pytest.mark.usefixtures('narrow_models')


def checkpoint(path: Path, family: str = 'sigmae', **arguments: object) -> Path:
    """A training checkpoint of a task that was never trained."""
    task = small_task(family, **arguments)
    trainer = quiet_trainer(path, max_steps=0)
    trainer.fit(task, DataLoader([{'image': torch.rand(10, 32, 32)}] * 2, 2))
    trainer.save_checkpoint(path / 'last.ckpt')
    return path / 'last.ckpt'


def scenes(path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ('a', 'b'):
        values = generator.integers(500, 4000, (10, 70, 100), dtype='uint16')
        values[:, :40, :9] = 0
        write(path / f'{name}.tif', values, SENTINEL2_TEN_BANDS, nodata=0)
    return path


@pytest.mark.parametrize(
    ('family', 'options'),
    [
        ('sigmae', {}),
        ('sigmae', {'norm_pix_loss': True}),
        ('s2mae', {'masking': 'spatial'}),
        ('satmae', {'masking': 'saliency_spatial'}),
    ],
)
def test_the_command(
    family: str,
    options: dict[str, object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = checkpoint(tmp_path, family, **options)
    output = tmp_path / 'a folder' / 'report'
    main(
        [
            'evaluate', 'reconstruction', str(made), '--data',
            str(scenes(tmp_path / 'scenes')), '--mask-ratios', '0.5', '0.75',
            '-o', str(output),
        ]
    )  # fmt: skip
    table = capsys.readouterr().out
    assert (output / 'report.md').read_text().strip() in table
    assert '12 chips of 32 px from 2 scenes.' in table
    assert (output / 'report.png').read_bytes()[:4] == b'\x89PNG'
    actual = json.loads((output / 'report.json').read_text())
    assert list(actual) == ['0.5', '0.75']
    oracle = 'oracle_' * bool(options.get('norm_pix_loss'))
    assert ('kept their own mean' in table) == bool(oracle)
    for values in actual.values():
        assert {f'{oracle}{name}' for name in ('psnr', 'ssim', 'rmse_B08')} < {*values}
        assert 0 < values['baseline_loss'] < np.inf


def test_what_is_hidden_is_what_is_measured(synthetic_root: Path) -> None:
    task = small_task(normalize=True, masking='saliency')
    before = task.mask_schedule
    chips = SyntheticSentinel2(synthetic_root, 'val')
    loader = DataLoader(
        [{'image': chips[i]['image'][:, :32, :32]} for i in range(8)], 4
    )
    seen = []
    forward = task.model.forward

    def look(image: torch.Tensor, keep: torch.Tensor, *rest: torch.Tensor) -> object:
        seen.append(keep.shape[1])
        return forward(image, keep, *rest)

    task.model.forward = look
    actual = reconstruction_report(task, loader, (0.25, 0.5, 0.75))
    # Of sixteen patches.
    assert seen == [12, 12, 8, 8, 4, 4]
    assert task.mask_schedule is before
    # Other masks, other pixels.
    assert len({values['baseline_loss'] for values in actual.values()}) == 3
    with pytest.raises(ValueError, match=r'mask_ratio: 1.5'):
        reconstruction_report(task, loader, (1.5,))
    assert task.mask_schedule is before


def test_on_real_scenes(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    root = real_data('scenes')
    main(
        [
            'evaluate', 'reconstruction', str(checkpoint(tmp_path)), '--data',
            str(root), '--paths', 'nora*', '--chips', '6', '--mask-ratios', '0.9',
            '-o', str(tmp_path / 'r'),
        ]
    )  # fmt: skip
    (values,) = json.loads((tmp_path / 'r' / 'report.json').read_text()).values()
    assert values['psnr'] > 0


def test_the_command_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = str(checkpoint(tmp_path))
    rgb = tmp_path / 'rgb'
    write(rgb / 'a.tif', np.ones((3, 64, 64), 'uint16'))
    for arguments, message in (
        (['nothing.ckpt', '--data', str(rgb)], 'nothing.ckpt'),
        ([made, '--data', str(rgb)], 'B08'),
        ([made, '--data', str(tmp_path / 'empty')], 'empty'),
        ([made, '--data', str(scenes(tmp_path / 's')), '--mask-ratios', '2'], '2'),
    ):
        with pytest.raises(SystemExit):
            main(
                ['evaluate', 'reconstruction', *arguments, '-o', str(tmp_path / 'out')]
            )
        assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
    # Before anything is measured.
    write(
        tmp_path / 's' / 'a.tif', np.ones((10, 64, 64), 'uint16'), SENTINEL2_TEN_BANDS
    )
    arguments = [made, '--data', str(tmp_path / 's'), '-o', '/proc/out']
    with pytest.raises(SystemExit), mock.patch.object(Trainer, 'validate') as validate:
        main(['evaluate', 'reconstruction', *arguments])
    assert 'output: /proc/out/report.md cannot' in capsys.readouterr().err
    validate.assert_not_called()


def test_figure_of_more_images_than_fit() -> None:
    task = small_task()
    images = 3000 * torch.rand(5, 10, 32, 32)
    images[0, :, 0] = torch.nan
    predictions = {0.5: task.reconstruct(images), 0.75: task.reconstruct(images)}
    figure = plot_mask_ratios(predictions, task.bands, oracle=True)
    assert [axis.get_title() for axis in figure.axes[:3]] == [
        'Image (B04, B03, B02)', '50% masked', '75% masked',
    ]  # fmt: skip
    assert len(figure.axes) == 18
    assert figure.get_supxlabel() == (
        'magenta: no data; hidden patches keep their true mean and standard deviation'
    )
