# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``torchgeo-sigmae map``: maps of several scenes, with pictures and polygons."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .._files import write_figure
from ..bands import BandSet
from .device import default_device
from .scene_options import SceneOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = (
    'map_embedding',
    'map_reconstruction',
    'map_saliency',
    'map_similarity',
    'map_view',
)


def map_saliency(
    options: SceneOptions,
    *,
    indices: Sequence[str] = ('NDVI', 'NDWI', 'NDBI'),
    patch_size: int = 8,
    alpha: float = 0.5,
    combine: Literal['minmax', 'rank', 'product'] = 'minmax',
    polygons: Path | None = None,
    threshold: float = 0.9,
    min_area: float = 0.0,
    simplify: float = 0.71,
) -> list[Path]:
    """Map spectral indices and saliency of patches, and outline salient regions.

    Args:
        options: The scenes.
        indices: Spectral indices.
        patch_size: Side of a patch in pixels.
        alpha: Weight of richness against heterogeneity, in [0, 1].
        combine: How richness and heterogeneity are made comparable.
        polygons: File of the outlines of salient regions, .geojson or .gpkg; for
            several scenes, only the suffix counts.
        threshold: Quantile of saliency above which regions lie: 0.9 for the top tenth.
        min_area: Smallest area of a region, in m2.
        simplify: Largest distance by which outlines are simplified, in patches.
    """
    from ..maps.pictures import saliency_picture
    from ..maps.regions import check_suffix, salient_regions, write_regions
    from ..maps.saliency import needed_bands, saliency_map

    if polygons:
        check_suffix(polygons)
    bands = needed_bands(indices, options.sensor)
    written = []
    for path, target in options.targets('saliency'):
        scene = options.open(path, bands, patch_size)
        if min_area and scene.crs is None:
            raise ValueError(
                f'min_area: {path} has no coordinate reference system, so areas in m2 '
                'are not known. Leave it out, or georeference the scene.'
            )
        saliency_map(scene, target, patch_size, indices, alpha, combine, options.window)
        written.append(target)
        regions = None
        if polygons:
            regions = salient_regions(target, threshold, min_area, simplify)
            alone = target == options.output
            written.append(polygons if alone else target.with_suffix(polygons.suffix))
            write_regions(regions, written[-1])
        if options.png:
            shown = options.open_rgb(scene, patch_size)
            figure = saliency_picture(shown, target, patch_size, regions)
            written.append(_save(figure, target))
    return written


def map_embedding(
    options: SceneOptions,
    *,
    weights: str = 'SIGMAE_Weights.SENTINEL2',
    bands: Sequence[str] | None = None,
    depth: int | None = None,
    pca: int | None = None,
    size: int = 64,
    batch_size: int = 64,
    device: str | None = None,
) -> list[Path]:
    """Map the embeddings of patches of scenes.

    Args:
        options: The scenes.
        weights: An exported encoder, a training checkpoint or the name of a weight
            enum.
        bands: Bands of the weights in order, where the file does not name them.
        depth: Number of the block whose output is used, from 1; the last by default.
        pca: Number of principal components to map in place of the features themselves.
        size: Side of the chips that the encoder sees, in pixels.
        batch_size: Number of chips that are encoded at a time.
        device: For example cpu or cuda; CUDA by default if there is any.
    """
    from ..evaluation import FrozenEncoder
    from ..maps.embedding import embedding_map, encoder_patch_size
    from ..maps.pictures import embedding_picture

    if options.png and pca != 3:
        raise ValueError('png: pictures show three components. Pass --pca 3.')
    named = None if bands is None else BandSet(bands, options.sensor)
    encoder = FrozenEncoder.load(weights, named, depth=depth)
    encoder = encoder.to(default_device(device))
    patch_size = encoder_patch_size(encoder)
    written = []
    for path, target in options.targets('embedding'):
        scene = options.open(path, encoder.bands, patch_size)
        embedding_map(scene, target, encoder, size, pca, batch_size, options.window)
        written.append(target)
        if options.png:
            figure = embedding_picture(scene, target, patch_size)
            written.append(_save(figure, target))
    return written


def map_similarity(
    embedding: Path,
    *,
    at: tuple[float, float],
    output: Path,
    crs: str | None = None,
    polygons: Path | None = None,
    threshold: float = 0.99,
) -> list[Path]:
    """Map the similarity of patches to the patch at a coordinate.

    Args:
        embedding: A map of embeddings, made without --pca.
        at: Coordinate in the system of the map; column and row if it has none.
        output: The GeoTIFF to write.
        crs: System of *at* if it is another one, for example EPSG:4326.
        polygons: File of the outlines of the most similar patches, .geojson or .gpkg.
        threshold: Quantile of similarity above which they lie: 0.99 for one in 100.
    """
    from ..maps.regions import check_suffix, salient_regions, write_regions
    from ..maps.similarity import similarity_map

    if polygons:
        check_suffix(polygons)
    similarity_map(embedding, output, *at, crs)
    if not polygons:
        return [output]
    regions = salient_regions(output, threshold, layer='similarity')
    write_regions(regions, polygons)
    return [output, polygons]


def map_reconstruction(
    options: SceneOptions,
    *,
    weights: str,
    mask_ratio: float | None = None,
    size: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
) -> list[Path]:
    """Mask scenes, and map their reconstruction.

    Args:
        options: The scenes; the sensor is that of the model.
        weights: Weights that hold a decoder: a training checkpoint, an exported encoder
            with its decoder, or the name of a weight enum.
        mask_ratio: Share of masked tokens in (0, 1); as in training by default.
        size: Side of the chips in pixels; as in training by default.
        batch_size: Number of chips that are reconstructed at a time.
        device: For example cpu or cuda; CUDA by default if there is any.
    """
    from ..maps.pictures import reconstruction_picture
    from ..maps.reconstruction import reconstruction_map
    from ..tasks import restore_task

    task = restore_task(weights).to(default_device(device))
    size = size or task.size
    written = []
    for path, target in options.targets('reconstruction'):
        scene = options.open(path, task.bands, size)
        reconstruction_map(
            scene, target, task, mask_ratio, size, batch_size, options.window
        )
        written.append(target)
        if options.png:
            unit = task.statistics.scale, task.statistics.offset
            figure = reconstruction_picture(scene, target, task.bands, *unit)
            written.append(_save(figure, target))
    return written


def map_view(
    options: SceneOptions,
    *,
    weights: str = 'SIGMAE_Weights.SENTINEL2',
    bands: Sequence[str] | None = None,
    mask_ratios: Sequence[float] = (0.5, 0.75, 0.9),
    max_side: int = 768,
    browser: bool = False,
    batch_size: int = 64,
    device: str | None = None,
) -> list[Path]:
    """Write one page to look at a scene: saliency, reconstructions, similar patches.

    The page is one HTML file that works offline: panels zoom and pan together, a slider
    changes the mask ratio, and a click on a patch shows similar ones. Reconstructions
    need weights that hold a decoder.

    Args:
        options: The scenes; the output is an .html file or a folder.
        weights: A training checkpoint, an exported encoder (with its decoder for
            reconstructions) or the name of a weight enum.
        bands: Bands of the weights in order, where the file does not name them.
        mask_ratios: Shares of masked tokens to choose from, in (0, 1).
        max_side: Largest side of what is shown, in pixels: only the middle of a larger
            scene is. Choose another part with --aoi.
        browser: Open the page in the browser.
        batch_size: Number of chips that are encoded at a time.
        device: For example cpu or cuda; CUDA by default if there is any.
    """
    from ..evaluation import FrozenEncoder
    from ..maps.embedding import encoder_patch_size
    from ..maps.view import view_scene
    from ..tasks import restore_task
    from ..weights import read_weights

    if options.png:
        raise ValueError('png: a page holds its pictures. Leave --png out.')
    if options.window:
        raise ValueError('window: a page is read at once. Pass --max-side instead.')
    named = None if bands is None else BandSet(bands, options.sensor)
    device = default_device(device)
    encoder = FrozenEncoder.load(weights, named).to(device)
    source = read_weights(weights, named)
    task = restore_task(weights, named).to(device) if source.decoder else None
    patch_size = encoder_patch_size(encoder)
    written = []
    for path, target in options.targets('view', '.html'):
        scene = options.open(path, encoder.bands, patch_size)
        view_scene(
            scene, target, encoder, task, mask_ratios, source.info.get('size') or 64,
            batch_size, max_side, browser,
        )  # fmt: skip
        written.append(target)
    return written


def _save(figure: 'Figure', target: Path) -> Path:
    """Save a picture beside a map."""
    path = target.with_suffix('.png')
    write_figure(path, figure)
    return path
