# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The files of a scene: one with all bands, or one per band in a folder."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np

from ..bands import BandSet, Sensor
from .band_files import MASK_BANDS, BandFile
from .paths import check_satellite, find_band_files, list_files, product_scaling

__all__ = ('ReadingOptions', 'open_files')


class ReadingOptions(TypedDict, total=False):
    """Arguments of :meth:`.RasterScene.open` that say how a file is read."""

    bands_in_file: Sequence[str] | None
    nodata: float | None
    scale: float | None
    offset: float | None
    allow_missing_bands: bool
    mask_band: str | None


def open_files(
    path: str,
    bands: BandSet,
    bands_in_file: Sequence[str] | None = None,
    nodata: float | None = None,
    scale: float | None = None,
    offset: float | None = None,
    allow_missing_bands: bool = False,
    mask_band: str | None = None,
) -> tuple[list[BandFile], BandFile | None]:
    """Read the headers of the files of a scene, and of its cloud mask.

    Arguments and errors are those of :meth:`.RasterScene.open`.
    """
    sensor = bands.sensor
    if mask_band is not None and mask_band not in MASK_BANDS:
        raise ValueError(
            f'mask_band: {mask_band!r} is unknown. Use one of {", ".join(MASK_BANDS)}.'
        )
    check_satellite(path, sensor)
    mask: BandFile | None = None
    single, inside = _contents(path)
    if inside is None:
        files = [
            BandFile.open(
                single, bands, sensor, bands_in_file, nodata, scale, offset,
                allow_missing_bands,
            )
        ]  # fmt: skip
        if mask_band:
            mask = _mask_of_file(single, mask_band, sensor)
    else:
        by_band = _files_by_band(path, inside, bands, mask_band, allow_missing_bands)
        if offset is None and (product := product_scaling(path, inside)):
            scale = product[0] if scale is None else scale
            offset = product[1]
        if mask_band:
            file = by_band.pop(mask_band)
            mask = BandFile.open(file, [mask_band], sensor, [mask_band])
        files = [
            replace(
                BandFile.open(file, [band], sensor, [band], nodata, scale, offset),
                channels=(bands.index(band),),
            )
            for band, file in by_band.items()
        ]
    finest = max(files, key=lambda file: file.height * file.width)
    for each in (*files, *([mask] if mask else [])):
        if not _same_ground(each, finest):
            raise ValueError(
                f'scene: {each.path} does not show the same ground as {finest.path}. '
                'Keep the bands of one product in a folder.'
            )
    return files, mask


def _contents(path: str) -> tuple[str, list[str] | None]:
    """The one file of a scene, and None; or the path, and the files in it."""
    inside = list_files(path)
    rasters = [name for name in inside or () if re.search(r'\.tiff?$', name, re.I)]
    if inside is not None and not os.path.isdir(path) and len(rasters) == 1:
        # An archive of one GeoTIFF.
        return rasters[0], None
    return path, inside


def _files_by_band(
    path: str,
    inside: Sequence[str],
    bands: BandSet,
    mask_band: str | None,
    allow_missing_bands: bool,
) -> dict[str, str]:
    """The files of a folder that hold the wanted bands and the mask."""
    wanted = [*bands, *([mask_band] if mask_band else [])]
    files = find_band_files(path, inside, wanted, bands.sensor)
    missing = [name for name in wanted if name not in files]
    if mask_band in missing or (missing and not (allow_missing_bands and files)):
        raise FileNotFoundError(
            f'scene: {path} has no file of {", ".join(missing)}. Expected names that '
            f'end in _{missing[0]}.tif, _{missing[0]}.jp2 or _{missing[0]}_20m.jp2'
            + (f'; there are {", ".join(files)}.' if files else '.')
        )
    return files


def _same_ground(file: BandFile, finest: BandFile) -> bool:
    """Return whether corners agree to half a pixel of the finer file."""
    if file is finest:
        return True
    corners, wanted = (
        (one.transform @ (0, 0), one.transform @ (one.width, one.height))
        for one in (file, finest)
    )
    half = max(abs(finest.transform.a), abs(finest.transform.b)) / 2
    near = np.allclose(corners, wanted, rtol=0, atol=half)
    return near and bool(file.crs == finest.crs)


def _mask_of_file(path: str, mask_band: str, sensor: Sensor) -> BandFile:
    """The band of a file that shows clouds, or that of a file beside it."""
    stem, suffix = os.path.splitext(path)
    beside = f'{stem}_{mask_band}{suffix}'
    if os.path.isfile(beside):
        return BandFile.open(beside, [mask_band], sensor, [mask_band])
    try:
        return BandFile.open(path, [mask_band], sensor)
    except ValueError as error:
        raise ValueError(
            f'mask_band: {path} has no band {mask_band}, and there is no file '
            f'{beside}. Leave out mask_band=, or exclude the file.'
        ) from error
