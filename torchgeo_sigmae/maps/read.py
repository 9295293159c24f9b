# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes to be mapped: GeoTIFFs, folders with a file per band, TorchGeo datasets."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio import CRS
from rasterio.errors import RasterioError
from rasterio.features import geometry_window
from rasterio.transform import array_bounds
from rasterio.windows import Window, WindowError
from shapely.geometry.base import BaseGeometry
from torchgeo.datasets import RasterDataset

from ..bands import BandSet
from ..datasets.scenes import BandFile, RasterScene

__all__ = (
    'crop',
    'dataset_raster',
    'find_band_files',
    'open_raster',
    'radiometric_offset',
)

#: ``T32TQM_..._B8A_20m.jp2``, ``S2A_..._B02.tif``, ``B04.TIF``.
_BAND_FILE = re.compile(
    r'(?:.*_)?(?P<band>B\d{1,2}A?)(?:_(?P<meters>\d+)m)?\.(?:jp2|tiff?)', re.IGNORECASE
)

#: The offset of a band in the metadata of Sentinel-2, Level-2A and Level-1C.
_OFFSET = re.compile(
    r'<(?P<name>BOA_ADD_OFFSET|RADIO_ADD_OFFSET)\b[^>]*>\s*(?P<value>-?\d+)\s*</'
)


def open_raster(
    path: str | Path,
    bands: Sequence[str],
    bands_in_file: Sequence[str] | None = None,
    nodata: float | None = None,
    offset: float | None = None,
) -> RasterScene:
    """Open a scene without reading its pixels.

    Args:
        path: A GeoTIFF with band descriptions; or a folder with one file per band, such
            as a Sentinel-2 ``.SAFE`` product or a patch of BigEarthNet. Coarser bands
            are read on the grid of the finest one, the nearest pixel each.
        bands: Wanted bands, in any spelling.
        bands_in_file: Names of the bands of a GeoTIFF without descriptions, in order.
        nodata: Value of missing pixels; None for the file's own, or else 0.
        offset: Added to raw values; None for the offset in the metadata of a Sentinel-2
            product (-1000 since processing baseline 04.00), or else 0.

    Returns:
        The scene.

    Raises:
        FileNotFoundError: If there is no such file, or no file of a band.
        OSError: If a file cannot be read; the message names it.
        ValueError: If a file lacks a band or band names, the files of a folder do not
            show the same ground, or the geotransform is not usable.
    """
    path, names = Path(path), BandSet(bands)
    if path.is_dir():
        files = [
            BandFile.open(str(file), BandSet([band], names.sensor), [band])
            for band, file in find_band_files(path, names).items()
        ]
        scene = RasterScene.from_files(str(path), names, files, nodata)
        offset = radiometric_offset(path) if offset is None else offset
    elif path.exists():
        scene = RasterScene.open(str(path), names, bands_in_file, nodata)
    else:
        raise FileNotFoundError(f'scene: there is no file or folder {str(path)!r}.')
    transform = scene.transform
    if not np.isfinite(tuple(transform)).all() or transform.is_degenerate:
        raise ValueError(
            f'scene: {path} has the geotransform {tuple(transform)[:6]}, which cannot '
            'be used. Write the file again with a valid one.'
        )
    nodata = 0.0 if scene.nodata is None else scene.nodata
    return replace(scene, nodata=nodata, offset=offset or 0.0)


@dataclass(frozen=True, eq=False)
class _DatasetScene(RasterScene):
    """A scene that a dataset of TorchGeo reads.

    Attributes:
        dataset: The dataset.
        channels: Positions of the bands in its images.
        time: Slice of time.
    """

    dataset: RasterDataset = field(kw_only=True, repr=False)
    channels: tuple[int, ...] = field(kw_only=True)
    time: slice = field(kw_only=True)

    @property
    def paths(self) -> list[str]:
        """The files that the pixels come from."""
        return [str(path) for path in self.dataset.index.filepath]

    def _raw(
        self, window: Window, shape: tuple[int, int], dtype: str = 'float32'
    ) -> np.ndarray:
        """Raw values of a window inside the scene, a new array ``(C, *shape)``."""
        west, north = self.transform @ (window.col_off, window.row_off)
        east, south = self.transform @ (
            window.col_off + window.width,
            window.row_off + window.height,
        )
        x, y = slice(west, east), slice(south, north)
        if shape != (window.height, window.width):
            x = slice(west, east, (east - west) / shape[1])
            y = slice(south, north, (north - south) / shape[0])
        try:
            image = self.dataset[x, y, self.time]['image']
        except RasterioError as error:
            raise OSError(f'{self.path} cannot be read: {error}') from error
        if tuple(image.shape[-2:]) != shape:
            raise ValueError(
                f'{self.path} returned {tuple(image.shape[-2:])} pixels instead of '
                f'{shape}, at x {x}, y {y}.'
            )
        values: np.ndarray = image.numpy()[list(self.channels)].astype(dtype)
        return values


def dataset_raster(
    dataset: RasterDataset,
    bands: Sequence[str],
    time: slice | None = None,
    nodata: float | None = 0.0,
    offset: float = 0.0,
) -> RasterScene:
    """Use a dataset of TorchGeo as a scene.

    It is read by windows, as with TorchGeo's ``GridGeoSampler``. Files that cover the
    same ground within *time* are merged by the dataset.

    Args:
        dataset: For example ``torchgeo.datasets.Sentinel2``, without transforms.
        bands: Wanted bands, in any spelling.
        time: Slice of time, as in the dataset's ``bounds[2]``; None for all of it.
        nodata: Value of missing pixels; None without.
        offset: Added to raw values; -1000 for digital numbers of Sentinel-2 since
            processing baseline 04.00.

    Returns:
        The scene, in the system and resolution of the dataset.

    Raises:
        ValueError: If the dataset lacks a band.
    """
    bands = BandSet(bands)
    channels = BandSet.from_data(dataset.bands, bands.sensor).channels(bands)
    x, y, t = dataset.bounds
    width, height = (round((s.stop - s.start) / s.step) for s in (x, y))
    return _DatasetScene(
        type(dataset).__name__,
        bands,
        height,
        width,
        Affine(x.step, 0, x.start, 0, -y.step, y.stop),
        CRS.from_user_input(dataset.crs),
        nodata=nodata,
        offset=offset,
        dataset=dataset,
        channels=tuple(channels),
        time=time or t,
    )


def crop(scene: RasterScene, aoi: BaseGeometry, patch_size: int = 1) -> RasterScene:
    """Keep the part of a scene that lies in an area of interest.

    Args:
        scene: The scene.
        aoi: The area, in the scene's system.
        patch_size: The patches stay where they were: rows and columns are cut at
            multiples of this number of pixels.

    Returns:
        The scene around the area; its pixels outside the area are missing.

    Raises:
        ValueError: If the area lies outside the scene.
    """
    try:
        window = geometry_window(scene, [aoi])
    except WindowError as error:
        bounds = array_bounds(scene.height, scene.width, scene.transform)
        raise ValueError(
            f'aoi: the area {_extent(*aoi.bounds)} lies outside {scene.path} '
            f'{_extent(*bounds)}, both in the system of the scene.'
        ) from error
    column, row = (
        int(n // patch_size * patch_size) for n in (window.col_off, window.row_off)
    )
    right, bottom = (
        min(math.ceil(end / patch_size) * patch_size, most)
        for end, most in (
            (window.col_off + window.width, scene.width),
            (window.row_off + window.height, scene.height),
        )
    )
    part = scene.part(row, column, bottom - row, right - column)
    aoi = aoi if scene.aoi is None else scene.aoi.intersection(aoi)
    return replace(part, aoi=aoi)


def find_band_files(folder: Path, bands: BandSet) -> dict[str, Path]:
    """Find the file of every band in a folder and below, at its finest resolution.

    Previews and masks of a Sentinel-2 product (with a folder ``IMG_DATA``) are left
    out.
    """
    candidates: dict[str, list[tuple[int, Path]]] = {}
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    product = [path for path in files if 'IMG_DATA' in path.parts]
    for path in product or files:
        name = _BAND_FILE.fullmatch(path.name)
        band = bands.sensor.find(name['band']) if name else None
        if name and band:
            meters = int(name['meters'] or 0)
            candidates.setdefault(band.name, []).append((meters, path))
    missing = [band for band in bands if band not in candidates]
    if missing:
        raise FileNotFoundError(
            f'scene: {folder} has no file of {", ".join(missing)}. Expected names that '
            f'end in _{missing[0]}.tif, _{missing[0]}.jp2 or _{missing[0]}_20m.jp2'
            + (f'; there are {", ".join(candidates)}.' if candidates else '.')
        )
    chosen = {}
    for wanted in bands:
        finest = min(meters for meters, _ in candidates[wanted])
        paths = [path for meters, path in candidates[wanted] if meters == finest]
        if len(paths) > 1:
            raise ValueError(
                f'scene: {folder} has several files of {wanted}: {paths[0].name}, '
                f'{paths[1].name}. Pass the folder of one product.'
            )
        chosen[wanted] = paths[0]
    return chosen


def radiometric_offset(folder: Path) -> float | None:
    """Read the offset of digital numbers from the metadata of a Sentinel-2 product.

    Since processing baseline 04.00 (25 January 2022) digital numbers are 1000 larger,
    to keep dark ground from becoming negative. The offset undoes that; None without
    metadata.
    """
    for parent in (folder, *folder.resolve().parents[:4]):
        for path in sorted(parent.glob('MTD_MSI*.xml')):
            text = path.read_text(errors='replace')
            values = {float(match['value']) for match in _OFFSET.finditer(text)}
            if len(values) > 1:
                raise ValueError(
                    f'offset: {path} has several offsets, {sorted(values)}. Pass one, '
                    'offset=.'
                )
            return values.pop() if values else None
    return None


def _extent(west: float, south: float, east: float, north: float) -> str:
    """Describe a box."""
    return f'({west:.6g} to {east:.6g}, {south:.6g} to {north:.6g})'
