# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``saliency``, ``embed``, ``similar``, ``reconstruct``: options of the commands."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..transforms import DEFAULT_INDICES
from .command import SceneOptions

__all__ = (
    'add_embed_arguments',
    'add_reconstruct_arguments',
    'add_saliency_arguments',
    'add_similar_arguments',
    'run_with_options',
)


def run_with_options(
    function: Callable[..., list[Path]], arguments: argparse.Namespace
) -> list[Path]:
    """Call a function of :mod:`.command` with parsed arguments.

    Args:
        function: The function.
        arguments: The arguments; those of :class:`.SceneOptions` become one argument.

    Returns:
        The files that were written.
    """
    values = dict(vars(arguments))
    if 'scene' not in values:
        return function(**values)
    options = {
        field.name: values.pop(field.name)
        for field in fields(SceneOptions)
        if field.name in values
    }
    return function(SceneOptions(**options), **values)


def add_saliency_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``saliency`` to a parser.

    Args:
        parser: The parser.
    """
    _add_scene_arguments(parser, 'saliency')
    add = parser.add_argument
    add('--indices', nargs='+', default=list(DEFAULT_INDICES), help='spectral indices')
    add('--patch-size', type=int, default=8, help='side of a patch in pixels')
    add('--alpha', type=float, default=0.5, help='weight of richness, 0 to 1')
    add('--combine', default='minmax', help='minmax, rank or product')
    add('--scale', type=float, default=1e-4, help='reflectance per unit')
    _add_polygons(
        parser, 0.9, 'outlines of the salient regions, .geojson or .gpkg; for several '
        'scenes, only the suffix counts',
    )  # fmt: skip
    add('--min-area', type=float, default=0.0, help='smallest area of a region, in m2')
    add('--simplify', type=float, default=0.71, help='of outlines, in patches')


def add_embed_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``embed`` to a parser.

    Args:
        parser: The parser.
    """
    _add_scene_arguments(parser, 'embedding')
    add = parser.add_argument
    add(
        '--weights', default='SIGMAE_Weights.SENTINEL2',
        help='an exported encoder, a training checkpoint or the name of a weight enum',
    )  # fmt: skip
    add('--depth', type=int, help='block whose output is used, from 1; default: last')
    add('--pca', type=int, help='number of principal components to map instead')
    add('--size', type=int, default=64, help='side of the chips in pixels')
    _add_device(parser)


def add_similar_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``similar`` to a parser.

    Args:
        parser: The parser.
    """
    add = parser.add_argument
    add('embedding', type=Path, help='a map made by embed, without --pca')
    add(
        '--at', nargs=2, type=float, required=True, metavar=('X', 'Y'),
        help='coordinate in the system of the map; column and row if it has none',
    )  # fmt: skip
    add('--crs', help='system of --at if it is another one, for example EPSG:4326')
    add('-o', '--output', type=Path, required=True, help='the GeoTIFF to write')
    _add_polygons(parser, 0.99, 'outlines of the most similar patches')


def add_reconstruct_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``reconstruct`` to a parser.

    Args:
        parser: The parser.
    """
    _add_scene_arguments(parser, 'reconstruction')
    add = parser.add_argument
    add('--weights', required=True, help='a training checkpoint of SIGMAETask')
    add('--mask-ratio', type=float, help='share of hidden tokens; default: as trained')
    add('--size', type=int, help='side of the chips in pixels; default: as trained')
    _add_device(parser)


def _add_scene_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the options of :class:`.SceneOptions`."""
    options: dict[str, dict[str, Any]] = {
        'scene': {
            'nargs': '+',
            'help': 'GeoTIFFs, folders with a file per band (.SAFE), or patterns',
        },
        '--output': {
            'type': Path,
            'required': True,
            'help': f'the GeoTIFF to write; or a folder, for <scene>_{name}.tif',
        },
        '--png': {'action': 'store_true', 'help': 'draw a picture beside the map'},
        '--aoi': {'type': Path, 'help': 'file of polygons: outside is missing'},
        '--bands-in-file': {
            'nargs': '+',
            'help': 'bands of a file without descriptions: names in order, or one of '
            'eurosat, l1c, l2a, oscd',
        },
        '--sensor': {'default': 'sentinel2', 'help': 'sensor of the bands'},
        '--nodata': {
            'type': float,
            'help': 'missing pixels; default: as in file',
        },
        '--offset': {
            'type': float,
            'help': 'added to raw values; default: as in the metadata of a product',
        },
        '--window': {'type': int, 'help': 'side of the windows that are read, pixels'},
    }
    for option, settings in options.items():
        names = ('-o', option) if option == '--output' else (option,)
        parser.add_argument(*names, **settings)


def _add_polygons(parser: argparse.ArgumentParser, threshold: float, text: str) -> None:
    """Add the options of regions."""
    parser.add_argument('--polygons', type=Path, metavar='FILE', help=text)
    parser.add_argument(
        '--threshold', type=float, default=threshold,
        help='quantile of the map above which regions lie (default: %(default)s)',
    )  # fmt: skip


def _add_device(parser: argparse.ArgumentParser) -> None:
    """Add the options of a model."""
    parser.add_argument('--batch-size', type=int, default=64, help='chips at a time')
    parser.add_argument('--device', help='default: cuda if there is any')
