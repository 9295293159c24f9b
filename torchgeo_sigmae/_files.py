# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Files that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = (
    'atomic_path',
    'require_writable',
    'write_figure',
    'write_folder',
    'write_text',
)


@contextmanager
def atomic_path(
    path: str | Path,
    argument: str = 'output',
    errors: tuple[type[BaseException], ...] = (),
    remedy: str = 'Check free disk space and write permission.',
    durable: bool = True,
) -> Iterator[Path]:
    """Write a file whole or not at all: yield a name beside *path* to write to.

    Only when all of that is on the disk does it take the place of *path*; whatever goes
    wrong leaves the file of that name as it was, and no other.

    Args:
        path: The file to write; missing folders are created.
        argument: Name of the argument that *path* comes from, for the message.
        errors: Further errors that mean that a file cannot be written.
        remedy: Advice at the end of the message.
        durable: Whether to wait for the disk, so that the file survives a power cut.
            That takes 20 ms, which is too much for hundreds that can be made again.

    Raises:
        OSError: If it cannot be written; the message names *path*.
    """
    path = Path(path)
    part = path.with_name(f'.{path.stem}.{os.getpid()}.part{path.suffix}')
    failures: tuple[type[BaseException], ...] = (OSError, *errors)
    try:
        if path.exists() and not path.is_file():
            # The superuser would replace /dev/null.
            raise OSError('the path exists and is not a regular file')
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if durable:
            with part.open('rb+') as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    except failures as error:
        raise OSError(
            f'{argument}: {path} cannot be written: {error}. {remedy}'
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_text(path: str | Path, text: str, argument: str = 'output') -> None:
    """Write a text whole or not at all."""
    with atomic_path(path, argument) as part:
        part.write_text(text, encoding='utf-8')


def write_figure(path: str | Path, figure: 'Figure') -> None:
    """Write a picture at 120 dots per inch, whole or not at all."""
    with atomic_path(path) as part:
        figure.savefig(part, dpi=120)


def write_folder(
    folder: str | Path,
    files: Mapping[str, bytes],
    argument: str = 'path',
    obsolete: Iterable[str] = (),
) -> None:
    """Write the files of a folder; if one cannot be written, the old ones stay.

    *files* are contents by name; a name may have a folder in front. Files named in
    *obsolete* are removed, others stay.
    """
    folder = Path(folder)
    beside = folder if folder.is_dir() else folder.parent
    part = beside / f'.{folder.name}.{os.getpid()}.part'
    try:
        part.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (part / name).parent.mkdir(exist_ok=True)
            with (part / name).open('wb') as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.is_dir():
            for name in obsolete:
                (folder / name).unlink(missing_ok=True)
            for name in files:
                (folder / name).parent.mkdir(exist_ok=True)
                os.replace(part / name, folder / name)
        else:
            os.replace(part, folder)
    except OSError as error:
        raise OSError(
            f'{argument}: {folder} cannot be written: {error}. Is there space, and may '
            'you write there?'
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def require_writable(path: str | Path, argument: str = 'output') -> None:
    """Refuse a file that cannot be written at once, not after hours of work."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f'{argument}: {path} exists and is not a regular file.')
    trial = path.with_name(f'.{path.name}.{os.getpid()}.trial')
    try:
        write_text(trial, '', argument)
        trial.unlink()
    except OSError as error:
        raise OSError(f'{argument}: {path} cannot be written: {error}') from error
