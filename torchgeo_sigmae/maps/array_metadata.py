# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Bands, units and georeference of xarray objects, from their coordinates and tags."""

from collections.abc import Sequence

import rioxarray  # noqa: F401  registers .rio
import xarray
from affine import Affine
from rasterio import CRS

from ..bands import BandSet
from ..datasets.band_files import UNIT

__all__ = (
    'check_chunks',
    'read_crs',
    'read_nodata',
    'read_scaling',
    'read_transform',
    'select_bands',
)


def select_bands(
    data: xarray.DataArray | xarray.Dataset, bands: BandSet
) -> tuple[xarray.DataArray, list[xarray.DataArray]]:
    """The wanted bands as an array, and the arrays whose attributes describe them."""
    if isinstance(data, xarray.Dataset):
        names = [str(name) for name in data.data_vars]
    elif 'band' not in data.dims:
        raise ValueError(
            f"data: no dimension 'band' among {data.dims}. Rename the dimension of the "
            "bands: data.rename(channel='band'); select one band as band=['red']."
        )
    elif 'band' not in data.coords or data['band'].dtype.kind not in 'OUST':
        labels = (
            data['band'].values[:3].tolist() if 'band' in data.coords else 'nothing'
        )
        raise ValueError(
            f"data: the coordinate 'band' holds {labels}, no names of bands. Call "
            "data.assign_coords(band=['B02', 'B03', ...])."
        )
    else:
        names = [str(name) for name in data['band'].values]
    given = BandSet.from_data(names, bands.sensor)
    if missing := [name for name in bands if name not in given]:
        common = {band.name: band.common for band in bands.bands}
        lack = ', '.join(f'{name} ({common[name]})' for name in missing)
        raise ValueError(
            f"data: no band {lack} among {names}. Load it, or rename yours to a band's "
            f'name or common name of {bands.sensor.name}.'
        )
    if twice := [name for name in bands if given.count(name) > 1]:
        both = [n for n, name in zip(names, given, strict=True) if name == twice[0]]
        raise ValueError(
            f'data: {both} are all {twice[0]}. Select one of them for each band.'
        )
    channels = [given.index(name) for name in bands]
    if isinstance(data, xarray.DataArray):
        return data.isel(band=channels), [data]
    variables = [data[list(data.data_vars)[i]] for i in channels]
    chosen = data[[variable.name for variable in variables]]
    return chosen.to_dataarray('band'), variables


def read_nodata(variables: Sequence[xarray.DataArray]) -> float:
    """The nodata value of arrays, or else 0."""
    values = [variable.rio.nodata for variable in variables]
    if len({str(value) for value in values}) > 1:
        raise ValueError(
            f'nodata: the bands have different values, {values}. Pass nodata=.'
        )
    return 0.0 if values[0] is None else float(values[0])


def read_scaling(
    variables: Sequence[xarray.DataArray], scale: float | None, offset: float | None
) -> tuple[float, float] | None:
    """Scale and offset: as given, or those of arrays; None if neither."""
    if scale is not None and not scale > 0:
        raise ValueError(f'scale: {scale} is not positive. Pass 1e-4 or so.')
    scalings = {
        (
            float(variable.attrs.get('scale_factor', 1)),
            float(variable.attrs.get('add_offset', 0)),
        )
        for variable in variables
    }
    if len(scalings) > 1 and (scale is None or offset is None):
        raise ValueError(
            f'scale, offset: the bands have different ones, {sorted(scalings)}. '
            'Convert them to reflectance, and pass scale=1 and offset=0.'
        )
    tag = scalings.pop()
    if tag == (1, 0):
        if scale is None and offset is None:
            return None
        tag = UNIT, 0.0
    return tag[0] if scale is None else scale, tag[1] if offset is None else offset


def read_crs(data: xarray.DataArray | xarray.Dataset) -> CRS | None:
    """The system of rioxarray or odc, or the code of stackstac."""
    crs: CRS | None = data.rio.crs
    if crs is None and 'epsg' in data.coords and data['epsg'].ndim == 0:
        return CRS.from_epsg(int(data['epsg']))
    return crs


def read_transform(data: xarray.DataArray | xarray.Dataset, x: str, y: str) -> Affine:
    """From columns and rows to coordinates."""
    if (
        x not in data.coords
        or y not in data.coords
        or min(data[x].size, data[y].size) < 2
    ):
        return data.rio.transform(recalc=False)
    (left, width), (top, height) = (
        (float(v[0]), float(v[-1] - v[0]) / (len(v) - 1))
        for v in (data[x].values, data[y].values)
    )
    # Coordinates of stackstac are corners of pixels, but for xy_coords='center'.
    tag, shift = data.attrs.get('transform'), 0.5
    if isinstance(tag, Affine):
        column = (~tag @ (left, top))[0]
        shift = 0.0 if abs(column - round(column)) < 0.25 else 0.5
    return Affine(width, 0, left - shift * width, 0, height, top - shift * height)


def check_chunks(array: xarray.DataArray, patch_size: int) -> None:
    """Refuse chunks that cut patches into pieces."""
    y, x = array.dims[-2:]
    height, width = (max(sides) for sides in array.chunks[-2:])
    if height < min(patch_size, array.sizes[y]) or width < min(
        patch_size, array.sizes[x]
    ):
        raise ValueError(
            f'data: its chunks of {height} x {width} pixels are smaller than a patch '
            f'of {patch_size}. Call data.chunk({{{y!r}: 1024, {x!r}: 1024}}), or load '
            'it with such chunks.'
        )
