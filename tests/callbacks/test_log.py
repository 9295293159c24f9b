# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Logs of runs that were killed while they wrote them."""

import csv
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from torchgeo_sigmae._logs import keep_log
from torchgeo_sigmae.plotting import read_log

LOSSES = {1: 0.5, 2: 0.25, 3: 0.125}


class HalfWriter(csv.DictWriter):
    """Kills its process when half of the last row is in the file."""

    def __init__(self, file: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(file, *args, **kwargs)
        self.file = file

    def writerows(self, rows: Any) -> None:
        super().writerows(rows)
        self.file.flush()
        os.truncate(self.file.name, os.path.getsize(self.file.name) - 4)
        os.kill(os.getpid(), signal.SIGKILL)


class EmptyWriter(csv.DictWriter):
    """Kills its process when the file has been emptied and nothing written."""

    def writeheader(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def killed(call: Callable[[], object]) -> None:
    """Run in a process that kills itself."""
    child = os.fork()
    if not child:
        try:
            call()
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def logged(path: Path, **options: Any) -> CSVLogger:
    logger = CSVLogger(path, name='log', **options)
    for step, loss in LOSSES.items():
        logger.log_metrics({'train_loss': loss}, step)
    logger.save()
    return logger


@pytest.mark.parametrize('writer', [HalfWriter, EmptyWriter])
def test_a_kill_while_the_log_is_written_anew(tmp_path: Path, writer: type) -> None:
    """A metric of a new name makes Lightning empty its file first."""

    def train() -> None:
        logger = logged(tmp_path)
        keep_log(logger)
        csv.DictWriter = writer  # type: ignore[misc]
        logger.log_metrics({'val_loss': 1.0}, 3)
        logger.save()

    killed(train)
    written = tmp_path / 'log' / 'version_0' / 'metrics.csv'
    assert '0.125' not in written.read_text()
    for path in (tmp_path, written.parent, written):
        steps, losses = read_log(path)['train_loss']
        assert dict(zip(steps.tolist(), losses.tolist(), strict=True)) == LOSSES


def test_half_a_row_is_not_read(tmp_path: Path) -> None:
    """It may look whole: step 1 of step 12."""

    def train() -> None:
        logger = CSVLogger(tmp_path, name='log')
        logger.log_metrics({'loss': 9.0}, 1)
        logger.save()
        csv.DictWriter = HalfWriter  # type: ignore[misc]
        logger.log_metrics({'loss': 8.0}, 12345)
        logger.save()

    killed(train)
    written = tmp_path / 'log' / 'version_0' / 'metrics.csv'
    assert written.read_text().splitlines() == ['loss,step', '9.0,1', '8.0,123']
    assert read_log(tmp_path)['loss'][0].tolist() == [1]


def test_a_start_in_the_same_folder_loses_nothing(tmp_path: Path) -> None:
    """Lightning removes the log it finds there."""
    keep_log(logged(tmp_path, version=0))
    again = CSVLogger(tmp_path, name='log', version=0)
    with pytest.warns(UserWarning, match='will be deleted'):
        again.log_metrics({'train_loss': 7.0}, 3)
    assert read_log(tmp_path)['train_loss'][1].tolist() == list(LOSSES.values())
    again.save()
    number = keep_log(again)
    again.log_metrics({'train_loss': 6.0}, 4)
    again.save()
    assert keep_log(again, number) == number == 1
    assert read_log(tmp_path)['train_loss'][1].tolist() == [0.5, 0.25, 7, 6]
    actual = sorted(path.name for path in Path(again.log_dir).glob('*.*'))
    assert actual == ['metrics.csv', 'metrics.kept-0.csv', 'metrics.kept-1.csv']


def test_what_a_killed_copy_left_behind_is_removed(tmp_path: Path) -> None:
    logger = logged(tmp_path)

    def copy() -> None:
        shutil.copyfile = lambda source, target: (
            Path(target).touch(), os.kill(os.getpid(), signal.SIGKILL),
        )  # fmt: skip
        keep_log(logger)

    killed(copy)
    actual = {path.name for path in Path(logger.log_dir).iterdir()}
    assert len(actual) == 2, 'the log and half a copy'
    keep_log(logger)
    actual = {path.name for path in Path(logger.log_dir).iterdir()}
    assert actual == {'metrics.csv', 'metrics.kept-0.csv'}


def test_nothing_to_keep(tmp_path: Path) -> None:
    assert keep_log(CSVLogger(tmp_path)) is None
    assert keep_log(TensorBoardLogger(tmp_path)) is None
    assert not list(tmp_path.rglob('*.csv'))
