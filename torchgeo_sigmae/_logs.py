# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Logs that a kill cannot take back."""

import re
import shutil
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger

from ._files import atomic_path

__all__ = ('keep_log', 'log_files')

_KEPT = re.compile(r'metrics\.kept-(\d+)\.csv')


def keep_log(logger: Logger, number: int | None = None) -> int | None:
    """Copy what a ``CSVLogger`` has written, for a kill while it writes again.

    Lightning's ``CSVLogger`` empties its file and writes it anew whenever a metric of a
    new name comes up, and removes it where a run is started again in the same folder.
    *number* is what the last call returned, to replace that copy. Nothing is done for
    other loggers.
    """
    if not isinstance(logger, CSVLogger):
        return None
    written = Path(logger.log_dir) / 'metrics.csv'
    if not written.is_file():
        return number
    if number is None:
        number = 1 + max(_kept(written.parent), default=-1)
        # A run that was killed in the midst of a copy left it under this name.
        for unfinished in written.parent.glob('.metrics.kept-*.part.csv'):
            unfinished.unlink()
    with atomic_path(written.with_name(f'metrics.kept-{number}.csv'), 'logger') as part:
        shutil.copyfile(written, part)
    return number


def log_files(folder: Path) -> list[Path]:
    """Find the copies of :func:`keep_log`, oldest first, then the log file itself."""
    kept = _kept(folder)
    files = [kept[number] for number in sorted(kept)]
    written = folder / 'metrics.csv'
    return [*files, written] if written.is_file() else files


def _kept(folder: Path) -> dict[int, Path]:
    """The copies in a folder by number."""
    return {
        int(match[1]): path
        for path in folder.glob('metrics.kept-*.csv')
        if (match := _KEPT.fullmatch(path.name))
    }
