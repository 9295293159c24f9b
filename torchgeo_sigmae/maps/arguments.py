# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What the commands that make maps have in common: scenes in, maps and pictures out."""

import argparse
import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure

from .._files import write_figure
from ..bands import (
    EUROSAT_BANDS,
    OSCD_BANDS,
    SENTINEL2_BANDS,
    SENTINEL2_L2A_BANDS,
)
from .raster import Raster, open_raster
from .regions import read_area

__all__ = ('add_scene_arguments', 'open_colours', 'open_scene', 'save', 'targets')

#: Orders of bands that have a name, for files that do not describe theirs.
_ORDERS = {
    'eurosat': EUROSAT_BANDS,
    'l1c': SENTINEL2_BANDS,
    'l2a': SENTINEL2_L2A_BANDS,
    'oscd': OSCD_BANDS,
}


def add_scene_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add what all of them have to a parser.

    Args:
        parser: The parser.
        name: What the map shows.
    """
    add = parser.add_argument
    add(
        'scene', nargs='+',
        help='GeoTIFFs, folders with a file a band (.SAFE), or patterns of them',
    )  # fmt: skip
    add(
        '-o', '--output', type=Path, required=True,
        help=f'the GeoTIFF to be; or a folder, where <scene>_{name}.tif is made',
    )  # fmt: skip
    add('--png', action='store_true', help='draw it too, beside the map')
    add('--aoi', help='file of polygons, in any system: what is outside is missing')
    add(
        '--file-bands', nargs='+',
        help='bands of a file without descriptions: names in order, or one of '
        f'{", ".join(_ORDERS)}',
    )  # fmt: skip
    add('--sensor', default='sentinel2', help='sensor of the bands')
    add('--nodata', type=float, help='of missing pixels; default: what the file says')
    add(
        '--offset', type=float,
        help='added to raw values; default: what the metadata of a product say, or 0',
    )  # fmt: skip
    add('--window', type=int, help='side of what is read at a time, in pixels')


def targets(arguments: argparse.Namespace, name: str) -> Iterator[tuple[Path, Path]]:
    """Find the scenes, and where their maps go.

    Args:
        arguments: Of :func:`add_scene_arguments`.
        name: What the maps show.

    Yields:
        A scene, and its map to be, whose folder is made.

    Raises:
        ValueError: If several scenes would become one file, or a map its own scene.
    """
    paths = dict.fromkeys(
        Path(path)
        for pattern in arguments.scene
        for path in sorted(glob.glob(pattern, recursive=True)) or [pattern]
    )
    output = arguments.output
    if output.is_dir() or not output.suffix:
        maps = {path: output / f'{path.stem}_{name}.tif' for path in paths}
        output.mkdir(parents=True, exist_ok=True)
    elif len(paths) == 1:
        maps = dict.fromkeys(paths, output)
        output.parent.mkdir(parents=True, exist_ok=True)
    else:
        raise ValueError(
            f'output: {str(output)!r} is one file, but there are {len(paths)} scenes. '
            'Pass a folder.'
        )
    twice = [str(path) for path, n in Counter(maps.values()).items() if n > 1]
    if twice:
        raise ValueError(f'output: several scenes would become {twice[0]}.')
    for path, target in maps.items():
        if target.exists() and path.exists() and target.samefile(path):
            raise ValueError(f'output: {target} is the scene itself.')
        yield path, target


def open_scene(
    path: Path, bands: Sequence[str], arguments: argparse.Namespace
) -> Raster:
    """Open a scene, and cut out the area asked for; say so if it has no georeference.

    Args:
        path: The scene.
        bands: Wanted bands.
        arguments: Of :func:`add_scene_arguments`, and ``patch_size``.

    Returns:
        The image.
    """
    raster = _open(path, bands, arguments)
    if raster.crs is None:
        rank_zero_info(f'{path} has no georeference: its map is in pixels.')
    return raster


def open_colours(path: Path, raster: Raster, arguments: argparse.Namespace) -> Raster:
    """Open a scene once more, to be shown.

    Args:
        path: The scene.
        raster: What :func:`open_scene` made of it.
        arguments: Of :func:`add_scene_arguments`, and ``patch_size``.

    Returns:
        The image in red, green and blue; as it was where the scene lacks one.
    """
    try:
        return _open(path, ('red', 'green', 'blue'), arguments)
    except (ValueError, FileNotFoundError):
        return raster


def save(figure: Figure, target: Path) -> Path:
    """Save a picture beside a map, whole or not at all.

    Args:
        figure: The picture.
        target: The map.

    Returns:
        Its file.
    """
    path = target.with_suffix('.png')
    write_figure(path, figure)
    return path


def _open(path: Path, bands: Sequence[str], arguments: argparse.Namespace) -> Raster:
    """Open a scene, and cut out the area asked for."""
    names = arguments.file_bands
    if names and len(names) == 1:
        names = _ORDERS.get(names[0].lower(), names)
    raster = open_raster(
        path, bands, names, arguments.sensor, arguments.nodata, arguments.offset
    )
    if arguments.aoi:
        area = read_area(arguments.aoi, raster.crs)
        raster = raster.cropped(area, arguments.patch_size)
    return raster
