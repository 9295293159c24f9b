# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Every checkpoint of a run continues to the same end, bit by bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torchgeo.datamodules import NonGeoDataModule

from helpers.training import SMALL, quiet_trainer
from torchgeo_sigmae import (
    PackedDataModule,
    ResumableCheckpoint,
    SceneDataModule,
    SIGMAETask,
    SyntheticSentinel2DataModule,
    resumable,
)
from torchgeo_sigmae.callbacks.checkpoint import checkpoints
from torchgeo_sigmae.plotting import read_log

pytestmark = pytest.mark.usefixtures('narrow_models')


def fit(
    root: Path,
    path: Path,
    workers: int,
    checkpoint: Path | None = None,
    **kwargs: Any,
) -> tuple[dict[str, torch.Tensor], dict[tuple[str, int], float]]:
    """Final tensors, and what was logged by name and step."""
    # The state of the global generators must not matter.
    torch.manual_seed(0 if checkpoint is None else 1)
    datamodule: NonGeoDataModule
    if (root / 'index.json').exists():
        # Crops at random.
        datamodule = PackedDataModule(root, None, 48, 8, workers)
    else:
        datamodule = resumable(
            SyntheticSentinel2DataModule(root=root, batch_size=8, num_workers=workers)
        )
    torch.manual_seed(5)
    task = SIGMAETask(**SMALL, predict_ratio=0.5)
    trainer = quiet_trainer(
        path,
        logger=CSVLogger(path, name='log'),
        # A resumed run writes its end only.
        callbacks=[
            ResumableCheckpoint(every_n_train_steps=99 if checkpoint else 1, keep=99)
        ],
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        **kwargs,
    )
    trainer.fit(task, datamodule, ckpt_path=checkpoint)
    log = {
        (name, step): value
        for name, (steps, values) in read_log(path).items()
        for step, value in zip(steps.tolist(), values.tolist(), strict=True)
    }
    return task.state_dict(), log


@pytest.mark.parametrize(
    ('data', 'workers', 'kwargs', 'written'),
    [
        ('packed_root', 0, {'max_epochs': 2, 'limit_train_batches': 2}, [1, 2, 3, 4]),
        ('packed_root', 2, {'max_steps': 3, 'limit_train_batches': 2}, [1, 2, 3]),
        (
            'synthetic_root',
            0,
            {'max_epochs': 2, 'limit_train_batches': 3},
            [1, 2, 3, 4, 5, 6],
        ),
        (
            'synthetic_root',
            2,
            {'max_steps': 5, 'limit_train_batches': 3},
            [1, 2, 3, 4, 5],
        ),
        # An epoch of one batch has no inside.
        ('synthetic_root', 0, {'max_epochs': 3, 'limit_train_batches': 1}, [1, 2, 3]),
        (
            'synthetic_root',
            0,
            {'max_epochs': 2, 'limit_train_batches': 4, 'accumulate_grad_batches': 2},
            [1, 2, 3, 4],
        ),
        (
            'synthetic_root',
            2,
            {'max_epochs': 2, 'limit_train_batches': 4, 'val_check_interval': 2},
            [1, 2, 3, 4, 5, 6, 7, 8],
        ),
    ],
)
def test_every_checkpoint_continues_to_the_same_end(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    data: str,
    workers: int,
    kwargs: dict[str, Any],
    written: list[int],
) -> None:
    root = request.getfixturevalue(data)
    state, log = fit(root, tmp_path / 'whole', workers, **kwargs)
    actual = checkpoints(tmp_path / 'whole' / 'resume')[::-1]
    assert [path.name for path in actual] == [f'step={i:09}.ckpt' for i in written]
    assert ('train_loss_epoch', max(step for _, step in log)) in log
    for path in actual[:-1]:
        folder = tmp_path / path.stem
        resumed, rest = fit(root, folder, workers, path, **kwargs)
        assert list(resumed) == list(state)
        for key, value in state.items():
            assert torch.equal(resumed[key], value), (path.name, key)
        # What was logged before the checkpoint is in the log of the interrupted run.
        step = int(path.stem.split('=')[1])
        assert {**log, **rest} == log
        assert {(name, at) for name, at in log if at >= step} <= set(rest)
        assert not any(at < step - 1 for _, at in rest)


@pytest.mark.parametrize('data', ['synthetic_root', 'packed_root'])
def test_the_number_of_workers_does_not_matter(
    request: pytest.FixtureRequest, tmp_path: Path, data: str
) -> None:
    root = request.getfixturevalue(data)
    limits = {'max_epochs': 2, 'limit_train_batches': 2}
    state, log = fit(root, tmp_path / '0', 0, **limits)
    other, other_log = fit(root, tmp_path / '2', 2, **limits)
    assert log == other_log
    assert all(torch.equal(other[key], value) for key, value in state.items())


def test_scenes_continue_too(synthetic_root: Path, tmp_path: Path) -> None:
    """Windows are drawn at random, and the statistics are those kept beside the run."""

    def fit_scenes(path: Path, checkpoint: Path | None = None) -> SIGMAETask:
        torch.manual_seed(0 if checkpoint is None else 1)
        datamodule = SceneDataModule(
            synthetic_root / 'synthetic_sentinel2',
            size=32,
            batch_size=8,
            num_workers=2,
            paths='test/*',
            val_paths='val/000*',
            length=24,
            crop_scale=(0.5, 1.0),
            seed=3,
        )
        torch.manual_seed(5)
        task = SIGMAETask(**SMALL)
        quiet_trainer(
            path,
            callbacks=[ResumableCheckpoint(every_n_train_steps=2, keep=9)],
            max_epochs=2,
        ).fit(task, datamodule, ckpt_path=checkpoint)
        return task

    whole = fit_scenes(tmp_path)
    actual = checkpoints(tmp_path / 'resume')
    assert [path.name for path in actual[::-1]] == [
        *('step=000000002.ckpt', 'step=000000004.ckpt', 'step=000000006.ckpt')
    ]
    resumed = fit_scenes(tmp_path, actual[1])
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
