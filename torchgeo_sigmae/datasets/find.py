# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes in a folder, searched by name."""

import glob
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

from tqdm import tqdm

from ..bands import SENTINEL2_TEN_BANDS, BandSet
from .paths import clean_path, is_remote
from .scene_files import ReadingOptions
from .scenes import RasterScene
from .units import check_baselines

__all__ = ('GEOTIFFS', 'check_on_error', 'find_scenes', 'skip_on_error')

#: GeoTIFFs in a folder and below.
GEOTIFFS = ('**/*.tif', '**/*.tiff')


def find_scenes(
    root: str | Path,
    paths: str | Sequence[str] = GEOTIFFS,
    bands: Sequence[str] = SENTINEL2_TEN_BANDS,
    exclude: str | Sequence[str] = (),
    on_error: str = 'raise',
    skipped: set[str] | None = None,
    **reading: Unpack[ReadingOptions],
) -> list[RasterScene]:
    """Find scenes and read their headers.

    Args:
        root: Folder of the scenes.
        paths: Patterns of file names under *root*, as in :mod:`glob`; ``**`` stands for
            any number of folders. The letters of the suffix may be upper or lower case.
            ``*.SAFE`` matches products that are folders. Remote paths (``s3://``,
            ``/vsizip/``) are taken as they are.
        bands: Wanted bands.
        exclude: Patterns of files to leave out; one without a slash matches names in
            every folder.
        on_error: What happens to a file that cannot be read, or lacks a band:
            ``'raise'``, or ``'skip'`` to leave it out with a warning.
        skipped: The names of files that are left out are added to this set.
        **reading: Further arguments of :meth:`RasterScene.open`.

    Returns:
        The scenes, by name.

    Raises:
        FileNotFoundError: If there is no such folder, or no file in it matches.
        OSError: If a file cannot be read, or with ``on_error='skip'`` none of them.
        ValueError: If a file lacks a band or band names.
    """
    check_on_error(on_error)
    remote = {clean_path(path) for path in _patterns(paths) if is_remote(path)}
    if not remote and not os.path.isdir(root):
        raise FileNotFoundError(f'root: there is no folder {os.fspath(root)!r}.')
    names = sorted((_match(root, paths) | remote) - _excluded(root, exclude))
    if not names:
        raise FileNotFoundError(
            f'paths: no file under {os.fspath(root)!r} matches {_patterns(paths)}'
            + (f' and not {_patterns(exclude)}.' if exclude else '.')
        )
    # A wrong band is an error of the argument, not of every file.
    bands = BandSet(bands)
    skipped = set() if skipped is None else skipped
    scenes = []
    for name in tqdm(names, 'Opening scenes', disable=None, delay=2):
        path = name if name in remote else os.path.join(root, name)
        with skip_on_error(path, on_error, skipped):
            scenes.append(RasterScene.open(path, bands, **reading))
    if not scenes:
        raise OSError(
            f'root: none of the {len(names)} files under {os.fspath(root)!r} can be '
            'used, see the warnings above.'
        )
    check_baselines(scenes)
    return scenes


@contextmanager
def skip_on_error(path: str, on_error: str, skipped: set[str]) -> Iterator[None]:
    """Warn if a file fails for the first time and add it to *skipped*, or raise."""
    try:
        yield
    except (OSError, ValueError) as error:
        if on_error == 'raise':
            raise
        if path not in skipped:
            warnings.warn(f'Skipped: {error}', stacklevel=2)
        skipped.add(path)


def check_on_error(on_error: str) -> None:
    """Refuse other values of *on_error* than ``'raise'`` and ``'skip'``."""
    if on_error not in ('raise', 'skip'):
        raise ValueError(
            f"on_error: {on_error!r} is unknown. Use 'raise' to stop at a file that "
            "cannot be read, or 'skip' to leave it out with a warning."
        )


def _match(root: str | Path, patterns: str | Sequence[str]) -> set[str]:
    """Names of files and products under *root* that match any of the patterns."""
    return {
        name
        for pattern in _patterns(patterns)
        if not is_remote(pattern)
        for name in glob.glob(_any_case(pattern), root_dir=root, recursive=True)
        if os.path.isfile(path := os.path.join(root, name))
        or path.lower().endswith('.safe')
    }


def _excluded(root: str | Path, patterns: str | Sequence[str]) -> set[str]:
    """Names to leave out; a pattern that matches nothing is probably mistyped."""
    excluded = set()
    for pattern in _patterns(patterns):
        names = _match(root, pattern if '/' in pattern else f'**/{pattern}')
        if not names:
            warnings.warn(
                f'exclude: {pattern!r} matches no file under {os.fspath(root)!r}.',
                stacklevel=3,
            )
        excluded |= names
    return excluded


def _any_case(pattern: str) -> str:
    """Let the letters of a suffix be upper or lower case: ``*.[tT][iI][fF]``."""
    stem, dot, suffix = pattern.rpartition('.')
    if suffix.isalnum():
        either = (f'[{c.lower()}{c.upper()}]' if c.isalpha() else c for c in suffix)
        suffix = ''.join(either)
    return stem + dot + suffix


def _patterns(patterns: str | Sequence[str]) -> list[str]:
    """One pattern or several, as a list."""
    return [patterns] if isinstance(patterns, str) else list(patterns)
