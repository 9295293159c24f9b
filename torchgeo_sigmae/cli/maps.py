# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``torchgeo-sigmae map``: maps of several scenes, with pictures and polygons."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .._files import write_figure
from ..bands import (
    EUROSAT_BANDS,
    OSCD_BANDS,
    SENTINEL2_BANDS,
    SENTINEL2_L2A_BANDS,
    BandSet,
    Sensor,
)
from .device import default_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..datasets.scenes import RasterScene

__all__ = (
    'SceneOptions',
    'map_embedding',
    'map_reconstruction',
    'map_saliency',
    'map_similarity',
    'map_view',
)

#: Band orders that have a name, for files without band descriptions.
_ORDERS = {
    'eurosat': EUROSAT_BANDS,
    'l1c': SENTINEL2_BANDS,
    'l2a': SENTINEL2_L2A_BANDS,
    'oscd': OSCD_BANDS,
}


@dataclass(frozen=True)
class SceneOptions:
    """Which scenes are mapped, how they are read, and where their maps go.

    Attributes:
        scene: GeoTIFFs, folders with a file per band (.SAFE), or patterns of them.
        output: The GeoTIFF to write; or a folder, for a map of every scene.
        png: Draw a picture beside every map.
        aoi: File of polygons, in any coordinate reference system: pixels outside are
            missing.
        bands_in_file: Bands of a file without band descriptions: names in order, or one
            of eurosat, l1c, l2a, oscd.
        sensor: Sensor of the bands.
        nodata: Value of missing pixels; by default the file's own, or else 0.
        scale: Reflectance is value x scale + offset; by default as the file tells, or
            else 1e-4.
        offset: Reflectance of the value 0; by default as the file tells, or else 0.
        mask_band: SCL or QA_PIXEL: a band whose clouds are missing.
        window: Side of the windows that are read, in pixels; about 1024 by default.
    """

    scene: Sequence[str]
    _: KW_ONLY
    output: Path
    png: bool = False
    aoi: Path | None = None
    bands_in_file: Sequence[str] | None = None
    sensor: str | Sensor = 'sentinel2'
    nodata: float | None = None
    scale: float | None = None
    offset: float | None = None
    mask_band: str | None = None
    window: int | None = None

    def targets(self, name: str, suffix: str = '.tif') -> Iterator[tuple[str, Path]]:
        """Pair scenes with their maps.

        Args:
            name: What the maps show.
            suffix: Suffix of the files in a folder.

        Yields:
            A scene, and the map to write.

        Raises:
            ValueError: If several scenes would have one map, or a map would replace its
                scene.
        """
        from ..datasets.paths import clean_path

        paths = dict.fromkeys(
            clean_path(path)
            for pattern in self.scene
            for path in sorted(glob.glob(pattern, recursive=True)) or [pattern]
        )
        if self.output.is_dir() or not self.output.suffix:
            maps = {
                path: self.output / f'{Path(path).stem}_{name}{suffix}'
                for path in paths
            }
        elif len(paths) == 1:
            maps = dict.fromkeys(paths, self.output)
        else:
            raise ValueError(
                f'output: {str(self.output)!r} is one file, but there are {len(paths)} '
                'scenes. Pass a folder.'
            )
        twice = [str(path) for path, n in Counter(maps.values()).items() if n > 1]
        if twice:
            raise ValueError(f'output: several scenes would become {twice[0]}.')
        for path, target in maps.items():
            if target.exists() and os.path.exists(path) and target.samefile(path):
                raise ValueError(f'output: {target} is the scene itself.')
            yield path, target

    def open(self, path: str, bands: BandSet, patch_size: int) -> 'RasterScene':
        """Open a scene, and crop it to the area of interest.

        Args:
            path: The scene.
            bands: Wanted bands.
            patch_size: Side of the patches in pixels.

        Returns:
            The scene.
        """
        from ..maps.read import crop, open_raster
        from ..maps.regions import read_aoi

        names = self.bands_in_file
        if names and len(names) == 1:
            names = _ORDERS.get(names[0].lower(), names)
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f'scale: {self.scale} is not positive. Pass 1e-4 or so.')
        scene = open_raster(
            path, bands, names, self.nodata, self.scale, self.offset, self.mask_band
        )
        if self.aoi:
            scene = crop(scene, read_aoi(self.aoi, scene.crs), patch_size)
        return scene

    def open_rgb(self, scene: 'RasterScene', patch_size: int) -> 'RasterScene':
        """Open a scene again, to draw it.

        Args:
            scene: The scene in other bands.
            patch_size: Side of the patches in pixels.

        Returns:
            The scene in red, green and blue, or *scene* if it lacks one of them.
        """
        try:
            rgb = BandSet(('red', 'green', 'blue'), scene.bands.sensor)
            return self.open(scene.path, rgb, patch_size)
        except (ValueError, FileNotFoundError):
            return scene


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

    Returns:
        The files that were written.

    Raises:
        OSError: If a scene cannot be read, or a map cannot be written.
        ValueError: If an argument is out of range, or does not fit a scene.
    """
    from ..maps.pictures import saliency_picture
    from ..maps.regions import check_suffix, salient_regions, write_regions
    from ..maps.saliency import needed_bands, saliency_map

    if polygons:
        check_suffix(polygons)
    bands = needed_bands(indices, options.sensor)
    written = []
    for path, target in options.targets('saliency'):
        scene = _announced(options.open(path, bands, patch_size))
        if min_area and scene.crs is None:
            raise ValueError(
                f'min_area: {path} has no coordinate reference system, so areas in m2 '
                'are not known. Leave it out, or georeference the scene.'
            )
        saliency_map(
            scene, target, patch_size, indices, alpha, combine, options.window,
        )  # fmt: skip
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
        bands: Bands of the weights in order, where the file does not tell them.
        depth: Number of the block whose output is used, from 1; the last by default.
        pca: Number of principal components to map in place of the features themselves.
        size: Side of the chips that the encoder sees, in pixels.
        batch_size: Number of chips that are encoded at a time.
        device: For example cpu or cuda; CUDA by default if there is any.

    Returns:
        The files that were written.

    Raises:
        OSError: If a scene cannot be read, or a map cannot be written.
        ValueError: If an argument is out of range, or does not fit a scene.
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
        scene = _announced(options.open(path, encoder.bands, patch_size))
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

    Returns:
        The files that were written.

    Raises:
        OSError: If the map cannot be read, or the other cannot be written.
        ValueError: If there is no embedding at the coordinate, or another argument is
            out of range.
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
        weights: A training checkpoint of SIGMAETask.
        mask_ratio: Share of masked tokens in (0, 1); as in training by default.
        size: Side of the chips in pixels; as in training by default.
        batch_size: Number of chips that are reconstructed at a time.
        device: For example cpu or cuda; CUDA by default if there is any.

    Returns:
        The files that were written.

    Raises:
        OSError: If a file cannot be read, or a map cannot be written.
        ValueError: If an argument is out of range, or does not fit a scene.
    """
    from ..maps.pictures import reconstruction_picture
    from ..maps.reconstruction import reconstruction_map
    from ..tasks import SIGMAETask

    task = SIGMAETask.load_from_checkpoint(
        weights, map_location='cpu', weights_only=True
    )
    task = task.to(default_device(device))
    size = size or int(task.model.encoder.patch_embed.img_size[0])
    statistics = task.statistics
    bands = BandSet.from_data(statistics.data_bands, task.bands.sensor)
    written = []
    for path, target in options.targets('reconstruction'):
        scene = _announced(options.open(path, bands, size))
        reconstruction_map(
            scene, target, task, mask_ratio, size, batch_size, options.window
        )
        written.append(target)
        if options.png:
            figure = reconstruction_picture(
                scene, target, task.bands, statistics.scale, statistics.offset
            )  # fmt: skip
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
        bands: Bands of the weights in order, where the file does not tell them.
        mask_ratios: Shares of masked tokens to choose from, in (0, 1).
        max_side: Largest side of what is shown, in pixels: only the middle of a larger
            scene is. Choose another part with --aoi.
        browser: Open the page in the browser.
        batch_size: Number of chips that are encoded at a time.
        device: For example cpu or cuda; CUDA by default if there is any.

    Returns:
        The pages that were written.

    Raises:
        OSError: If a file cannot be read, or a page cannot be written.
        ValueError: If an argument is out of range, or does not fit a scene.
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
        scene = _announced(options.open(path, encoder.bands, patch_size))
        view_scene(
            scene, target, encoder, task, mask_ratios, source.info.get('size') or 64,
            batch_size, max_side, browser,
        )  # fmt: skip
        written.append(target)
    return written


def _announced(scene: 'RasterScene') -> 'RasterScene':
    """Say so if a scene has no georeference, or implausible values."""
    from lightning.pytorch.utilities import rank_zero_info

    from ..datasets.units import check_reflectance, sample_values

    check_reflectance(sample_values(scene), scene.bands, scene.path, scene.unit)
    if scene.crs is None:
        rank_zero_info(f'{scene.path} has no georeference: its map is in pixels.')
    return scene


def _save(figure: 'Figure', target: Path) -> Path:
    """Save a picture beside a map."""
    path = target.with_suffix('.png')
    write_figure(path, figure)
    return path
