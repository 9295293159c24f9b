# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``saliency``, ``embed``, ``similar``, ``reconstruct``: maps from the command line."""

import argparse
from pathlib import Path

import torch

from ..bands import get_sensor
from ..evaluation import FrozenEncoder
from ..tasks import SIGMAETask
from ..transforms import DEFAULT_INDICES
from .arguments import add_scene_arguments, open_colours, open_scene, save, targets
from .embedding import embedding_map, patch_side
from .pictures import (
    embedding_picture,
    reconstruction_picture,
    saliency_picture,
)
from .reconstruction import reconstruction_map
from .regions import check_suffix, salient_regions, write_regions
from .saliency import needed_bands, saliency_map
from .similar import similar_map

__all__ = (
    'add_embed_arguments',
    'add_reconstruct_arguments',
    'add_saliency_arguments',
    'add_similar_arguments',
    'run_embed',
    'run_reconstruct',
    'run_saliency',
    'run_similar',
)


def add_saliency_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``saliency`` to a parser.

    Args:
        parser: The parser.
    """
    add_scene_arguments(parser, 'saliency')
    add = parser.add_argument
    add('--indices', nargs='+', default=list(DEFAULT_INDICES), help='spectral indices')
    add('--patch-size', type=int, default=8, help='side of a patch in pixels')
    add('--alpha', type=float, default=0.5, help='weight of richness, 0 to 1')
    add('--combine', default='minmax', help='minmax, rank or product')
    add('--scale', type=float, default=1e-4, help='reflectance per unit')
    add(
        '--polygons', type=Path, metavar='FILE',
        help='outlines of the salient regions, .geojson or .gpkg; of several scenes, '
        'only the suffix counts',
    )  # fmt: skip
    add(
        '--threshold', type=float, default=0.9,
        help='quantile of saliency that regions lie above: 0.9 for the top tenth',
    )  # fmt: skip
    add('--min-area', type=float, default=0.0, help='of a region, in m2')
    add('--simplify', type=float, default=0.71, help='of outlines, in patches')


def run_saliency(arguments: argparse.Namespace) -> list[Path]:
    """Map the saliency of scenes.

    Args:
        arguments: Of :func:`add_saliency_arguments`.

    Returns:
        The files that were written.

    Raises:
        OSError: If a scene cannot be read, or a map not be written.
        ValueError: If an argument is out of range, or does not fit a scene.
    """
    sensor = get_sensor(arguments.sensor)
    bands = needed_bands(arguments.indices, sensor)
    if arguments.polygons:
        check_suffix(arguments.polygons)
    written = []
    for path, target in targets(arguments, 'saliency'):
        raster = open_scene(path, bands, arguments)
        if arguments.min_area and raster.crs is None:
            raise ValueError(
                f'min_area: {path} has no coordinate reference system, so areas in m2 '
                'are not known. Leave it out, or georeference the scene.'
            )
        saliency_map(
            raster,
            target,
            arguments.patch_size,
            arguments.indices,
            arguments.alpha,
            arguments.combine,
            sensor,
            arguments.scale,
            arguments.window,
        )
        written.append(target)
        regions = None
        if arguments.polygons:
            regions = salient_regions(
                target, arguments.threshold, arguments.min_area, arguments.simplify
            )
            alone = target == arguments.output
            suffix = arguments.polygons.suffix
            written.append(arguments.polygons if alone else target.with_suffix(suffix))
            write_regions(regions, written[-1])
        if arguments.png:
            shown = open_colours(path, raster, arguments)
            figure = saliency_picture(
                shown, target, arguments.patch_size, regions, sensor
            )
            written.append(save(figure, target))
    return written


def add_embed_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``embed`` to a parser.

    Args:
        parser: The parser.
    """
    add_scene_arguments(parser, 'embedding')
    add = parser.add_argument
    add(
        '--weights', default='SIGMAE_Weights.SENTINEL2',
        help='an exported encoder, a training checkpoint or the name of a weight enum',
    )  # fmt: skip
    add('--depth', type=int, help='block whose output is taken, from 1; default: last')
    add('--pca', type=int, help='map so many principal components, not the features')
    add('--size', type=int, default=64, help='side of what the encoder sees, in pixels')
    add('--batch-size', type=int, default=64)
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')


def run_embed(arguments: argparse.Namespace) -> list[Path]:
    """Map the embeddings of scenes.

    Args:
        arguments: Of :func:`add_embed_arguments`.

    Returns:
        The files that were written.

    Raises:
        OSError: If a scene cannot be read, or a map not be written.
        ValueError: If an argument is out of range, or does not fit a scene.
    """
    encoder = FrozenEncoder.load(arguments.weights, depth=arguments.depth)
    encoder = encoder.to(arguments.device)
    arguments.patch_size = patch_side(encoder)
    if arguments.png and arguments.pca != 3:
        raise ValueError('png: pictures are of three components. Pass --pca 3.')
    written = []
    for path, target in targets(arguments, 'embedding'):
        raster = open_scene(path, encoder.bands, arguments)
        embedding_map(
            raster,
            target,
            encoder,
            arguments.size,
            arguments.pca,
            arguments.batch_size,
            arguments.window,
        )
        written.append(target)
        if arguments.png:
            figure = embedding_picture(raster, target, arguments.patch_size)
            written.append(save(figure, target))
    return written


def add_similar_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``similar`` to a parser.

    Args:
        parser: The parser.
    """
    add = parser.add_argument
    add('embedding', type=Path, help='a map made by embed, without --pca')
    add(
        '--at', nargs=2, type=float, required=True, metavar=('X', 'Y'),
        help='coordinate in the system of the map; column and row where it has none',
    )  # fmt: skip
    add('--crs', help='system of --at, if it is another one, for example EPSG:4326')
    add('-o', '--output', type=Path, required=True, help='the GeoTIFF to be')
    add(
        '--polygons', type=Path, metavar='FILE',
        help='outlines of the most similar patches, .geojson or .gpkg',
    )  # fmt: skip
    add(
        '--threshold', type=float, default=0.99,
        help='quantile of similarity that they lie above: 0.99 for one patch in 100',
    )  # fmt: skip


def run_similar(arguments: argparse.Namespace) -> list[Path]:
    """Map how much alike patches are to that at a coordinate.

    Args:
        arguments: Of :func:`add_similar_arguments`.

    Returns:
        The files that were written.

    Raises:
        OSError: If the map cannot be read, or the other not be written.
        ValueError: If there is no embedding at the coordinate, or another argument is
            out of range.
    """
    target, polygons = arguments.output, arguments.polygons
    if polygons:
        check_suffix(polygons)
    target.parent.mkdir(parents=True, exist_ok=True)
    x, y = arguments.at
    similar_map(arguments.embedding, target, x, y, arguments.crs)
    if not polygons:
        return [target]
    found = salient_regions(target, arguments.threshold, layer='similarity')
    write_regions(found, polygons)
    return [target, polygons]


def add_reconstruct_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``reconstruct`` to a parser.

    Args:
        parser: The parser.
    """
    add_scene_arguments(parser, 'reconstruction')
    add = parser.add_argument
    add('--weights', required=True, help='a training checkpoint of SIGMAETask')
    add('--mask-ratio', type=float, help='share of hidden tokens; default: as trained')
    add('--size', type=int, help='side of chips in pixels; default: as trained')
    add('--batch-size', type=int, default=64)
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')


def run_reconstruct(arguments: argparse.Namespace) -> list[Path]:
    """Map the reconstruction of scenes.

    Args:
        arguments: Of :func:`add_reconstruct_arguments`.

    Returns:
        The files that were written.

    Raises:
        OSError: If a file cannot be read, or a map not be written.
        ValueError: If an argument is out of range, or does not fit a scene.
    """
    task = SIGMAETask.load_from_checkpoint(
        arguments.weights, map_location='cpu', weights_only=True
    )
    task = task.to(arguments.device)
    size = arguments.size or task.model.encoder.patch_embed.img_size[0]
    arguments.patch_size, arguments.sensor = size, task.sensor
    written = []
    for path, target in targets(arguments, 'reconstruction'):
        raster = open_scene(path, task.statistics.data_bands, arguments)
        reconstruction_map(
            raster,
            target,
            task,
            arguments.mask_ratio,
            size,
            arguments.batch_size,
            arguments.window,
        )
        written.append(target)
        if arguments.png:
            known = task.statistics
            figure = reconstruction_picture(
                raster, target, task.bands, task.sensor, known.scale, known.offset
            )
            written.append(save(figure, target))
    return written
