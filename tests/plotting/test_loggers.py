# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Figures in the loggers' own files, as their own readers find them."""

import inspect
import io
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import (
    CometLogger,
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import DataLoader
from torchgeo.datamodules import EuroSATDataModule

from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import SIGMAETask
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.plotting import log_figure, takes_figures

SIZE = (400, 300)


@pytest.fixture
def figure() -> Figure:
    drawn = Figure(figsize=(4, 3), dpi=100)
    drawn.subplots().imshow([[0, 1], [2, 3]])
    return drawn


def wandb_logger(folder: Path, monkeypatch: pytest.MonkeyPatch) -> WandbLogger:
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    for name in ('WANDB_DIR', 'WANDB_CACHE_DIR', 'WANDB_CONFIG_DIR', 'WANDB_DATA_DIR'):
        monkeypatch.setenv(name, str(folder))
    return WandbLogger(save_dir=folder, project='test', offline=True)


def wandb_pictures(folder: Path) -> list[Path]:
    import wandb

    wandb.finish()
    return sorted(folder.rglob('files/media/images/*.png'))


def mlflow_logger(folder: Path, monkeypatch: pytest.MonkeyPatch) -> MLFlowLogger:
    pytest.importorskip('mlflow')
    # A folder is enough here; newer versions want it said.
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    monkeypatch.setenv('MLFLOW_DISABLE_TELEMETRY', 'true')
    return MLFlowLogger('test', tracking_uri=(folder / 'mlruns').as_uri())


def tensorboard_images(folder: Path) -> list[tuple[str, int, tuple[int, int]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={'images': 0})
    events.Reload()
    return [
        (tag, event.step, Image.open(io.BytesIO(event.encoded_image_string)).size)
        for tag in events.Tags()['images']
        for event in events.Images(tag)
    ]


def test_tensorboard(figure: Figure, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name='', version='run')
    assert takes_figures(logger)
    log_figure(logger, 'picture', figure, 7)
    logger.finalize('success')
    assert tensorboard_images(tmp_path / 'run') == [('picture', 7, SIZE)]


def test_mlflow(
    figure: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = mlflow_logger(tmp_path, monkeypatch)
    assert takes_figures(logger)
    for step in (7, 12):
        log_figure(logger, 'picture', figure, step)
    client = logger.experiment
    paths = [file.path for file in client.list_artifacts(logger.run_id, 'picture')]
    assert paths == ['picture/00000007.png', 'picture/00000012.png']
    local = client.download_artifacts(logger.run_id, paths[0], str(tmp_path))
    assert Image.open(local).size == SIZE


def test_wandb(figure: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = wandb_logger(tmp_path, monkeypatch)
    assert takes_figures(logger)
    log_figure(logger, 'picture', figure, 7)
    assert logger.experiment.summary['trainer/global_step'] == 7
    assert logger.experiment.summary['picture']['count'] == 1
    (path,) = wandb_pictures(tmp_path)
    assert path.name.startswith('picture_')
    assert Image.open(path).size == SIZE


class Comet:
    """What comet_ml's experiments have, with the signature of its reference."""

    def __init__(self) -> None:
        self.figures: list[tuple[object, ...]] = []

    def log_figure(
        self,
        figure_name: str | None = None,
        figure: Figure | None = None,
        overwrite: bool = False,
        step: int | None = None,
    ) -> None:
        self.figures.append((figure_name, figure, overwrite, step))


def test_comet(figure: Figure) -> None:
    logger = CometLogger.__new__(CometLogger)
    logger._experiment = experiment = Comet()
    assert takes_figures(logger)
    log_figure(logger, 'picture', figure, 7)
    assert experiment.figures == [('picture', figure, False, 7)]


def test_comets_signature() -> None:
    comet = pytest.importorskip('comet_ml')
    named = inspect.signature(comet.CometExperiment.log_figure).parameters
    expected = inspect.signature(Comet.log_figure).parameters
    assert list(named)[:3] == list(expected)[:3]
    assert 'step' in named


def test_other_loggers_get_none(figure: Figure, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    assert not takes_figures(logger)
    log_figure(logger, 'picture', figure, 7)
    assert not list(tmp_path.rglob('*.png'))


@pytest.mark.parametrize('real', [False, True])
def test_a_run_reaches_all_of_its_loggers(
    real: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    loggers: list[Logger] = [
        CSVLogger(tmp_path, name='', version='csv'),
        TensorBoardLogger(tmp_path, name='', version='board'),
        mlflow_logger(tmp_path, monkeypatch),
        wandb_logger(tmp_path, monkeypatch),
    ]
    trainer = quiet_trainer(
        tmp_path, logger=loggers, max_steps=2, num_sanity_val_steps=1,
        val_check_interval=1, log_every_n_steps=1,
    )  # fmt: skip
    if real:
        root = request.getfixturevalue('eurosat_root')
        datamodule = EuroSATDataModule(
            root=root, bands=SENTINEL2_TEN_BANDS, batch_size=2
        )
        trainer.fit(SIGMAETask('sigmae_vit_tiny_patch8', size=64), datamodule)
    else:
        samples = [{'image': 3000 + 500 * torch.randn(10, 32, 32)} for _ in range(4)]
        loader = DataLoader(samples, batch_size=2)
        trainer.fit(small_task(), loader, loader)
    board, mlflow = loggers[1], loggers[2]
    board.finalize('success')
    steps = [step for _, step, _ in tensorboard_images(tmp_path / 'board')]
    assert steps == [1, 2]
    assert isinstance(mlflow, MLFlowLogger)
    files = mlflow.experiment.list_artifacts(mlflow.run_id, 'reconstruction')
    assert [int(Path(file.path).stem) for file in files] == [1, 2]
    assert len(wandb_pictures(tmp_path)) == 2
    assert (tmp_path / 'csv' / 'metrics.csv').exists()
