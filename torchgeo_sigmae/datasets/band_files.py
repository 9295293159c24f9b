# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""One raster file: which bands it has, what its values mean, and which are missing."""

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import rasterio
from affine import Affine
from rasterio import CRS
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from ..sensors import Sensor, sensors_with
from .paths import find_band, product_baseline, product_scaling

__all__ = ('MASK_BANDS', 'UNIT', 'BandFile', 'change_unit', 'opened')

#: Reflectance per unit of the values that scenes return, where it is known.
UNIT = 1e-4

#: Pixel types that a cached scene keeps; all others become float32.
_SMALL_TYPES = {'int8', 'uint8', 'int16', 'uint16'}

#: Bands that show clouds, and where they do. Sentinel-2's SCL counts no data, saturated
#: or defective, cloud shadow, medium and high cloud probability, thin cirrus (ESA,
#: Level-2A); Landsat's QA_PIXEL bits 0 to 4, which are fill, dilated cloud, cirrus,
#: cloud and cloud shadow (USGS, Collection 2).
MASK_BANDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'SCL': lambda values: np.isin(values, (0, 1, 3, 8, 9, 10)),
    'QA_PIXEL': lambda values: values.astype('int64') & 0b11111 != 0,
}


@dataclass(frozen=True)
class BandFile:
    """The wanted bands of one file, as its header describes them.

    Attributes:
        path: The file.
        indexes: Positions of the bands in the file, from 1.
        channels: Positions of the bands in the scene, from 0.
        height: Height in pixels.
        width: Width in pixels.
        dtype: Smallest type that holds all pixels exactly, or ``'float32'``.
        nodata: Value of missing pixels of every band, or None.
        transform: From columns and rows to coordinates.
        crs: Coordinate reference system, or None.
        scales: Reflectance per unit of every band; None if the file does not say.
        offsets: Reflectance at 0 of every band.
        others: Positions of spectral bands that are not wanted.
        masked: Whether GDAL has a mask beside nodata: an internal one, ``.msk``.
        alpha: Position of an alpha band; 0 for none.
        baseline: Processing baseline of Sentinel-2, 400 for 04.00, or None.
        gcps: Ground control points: row, column, x, y, z.
        gcps_crs: Their coordinate reference system, or None.
        sharing: Whether reads share decoded blocks with the same file, if this thread
            holds it open.
    """

    path: str
    indexes: tuple[int, ...]
    channels: tuple[int, ...]
    height: int
    width: int
    dtype: str
    nodata: tuple[float | None, ...]
    transform: Affine
    crs: CRS | None
    scales: tuple[float, ...] | None = None
    offsets: tuple[float, ...] | None = None
    others: tuple[int, ...] = ()
    masked: bool = False
    alpha: int = 0
    baseline: int | None = None
    gcps: tuple[tuple[float, ...], ...] = ()
    gcps_crs: CRS | None = None
    sharing: bool = False

    @classmethod
    def open(
        cls,
        path: str,
        bands: Sequence[str],
        sensor: Sensor,
        bands_in_file: Sequence[str] | None = None,
        nodata: float | None = None,
        scale: float | None = None,
        offset: float | None = None,
        allow_missing_bands: bool = False,
    ) -> 'BandFile':
        """Read the header of a file, see :meth:`.RasterScene.open`.

        Other names in *bands* than those of the sensor are descriptions (``'SCL'``).
        """
        with opened(path) as file:
            alpha = [
                i
                for i, kind in enumerate(file.colorinterp)
                if kind == ColorInterp.alpha
            ]
            names = _names(path, file, alpha, bands_in_file)
            positions = _positions(path, names, bands, sensor)
            missing = [band for band in bands if band not in positions]
            if missing and not (allow_missing_bands and positions):
                raise _lacks_bands(path, names, missing, sensor)
            channels = [i for i, band in enumerate(bands) if band in positions]
            wanted = [positions[bands[i]] for i in channels]
            types = {file.dtypes[i] for i in wanted}
            if any(kind.startswith('complex') for kind in types):
                raise ValueError(
                    f'{path} holds complex numbers, whose imaginary part would be '
                    'lost. Write amplitudes, or exclude the file.'
                )
            # Four bands of 8 bits get an alpha band that nobody asked for.
            spectral = {i for i, name in enumerate(names) if find_band(name, sensor)}
            named = set() if sensor.any_name else spectral
            alpha = [i for i in alpha if i not in named.union(wanted)]
            scales, offsets = _scaling(path, file, wanted, scale, offset)
            points, points_crs = file.gcps
            flags, nodatavals = file.mask_flag_enums, file.nodatavals
            return cls(
                path,
                tuple(i + 1 for i in wanted),
                tuple(channels),
                file.height,
                file.width,
                types.pop() if len(types) == 1 and types <= _SMALL_TYPES else 'float32',
                tuple(nodatavals[i] if nodata is None else nodata for i in wanted),
                file.transform,
                file.crs,
                scales,
                offsets,
                tuple(i + 1 for i in sorted(spectral.difference(wanted, alpha))),
                any(_is_masked(flags[i]) for i in wanted),
                alpha[0] + 1 if alpha else 0,
                _baseline(path, file),
                tuple((p.row, p.col, p.x, p.y, p.z or 0.0) for p in points),
                points_crs if points else None,
            )

    def read(
        self, window: Window, shape: tuple[int, int], dtype: str = 'float32'
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read raw values of a window, resampled to *shape*, and what is missing.

        Returns:
            Values ``(C, H, W)``; missing ones, boolean ``(C, H, W)``: those that equal
            a nodata value other than 0, or lie outside the mask; and where all bands
            that the file has are 0 and 0 is nodata, ``(H, W)``.

        """
        with opened(self.path, self.sharing) as file:
            at = {'window': window, 'out_shape': shape}
            many = {'window': window, 'out_shape': (len(self.indexes), *shape)}
            values = file.read(self.indexes, out_dtype=dtype, **many)
            missing = np.zeros(values.shape, bool)
            if self.masked:
                missing |= file.read_masks(self.indexes, **many) == 0
            if self.alpha:
                missing |= file.read(self.alpha, **at) == 0
            dark = np.zeros(shape, bool)
            zero = [nodata == 0 for nodata in self.nodata]
            if any(zero):
                dark = (values[zero] == 0).all(0)
                # Another band may have a value where the wanted ones are 0.
                if self.others and dark.any():
                    for index in self.others:
                        dark &= file.read(index, **at) == 0
            for channel, nodata in enumerate(self.nodata):
                if nodata and not math.isnan(nodata):
                    with np.errstate(over='ignore'):  # of float64, as the pixels
                        missing[channel] |= values[channel] == np.float32(nodata)
        return values, missing, dark


def _lacks_bands(
    path: str, names: Sequence[str | None], missing: Sequence[str], sensor: Sensor
) -> ValueError:
    """Say which bands a file lacks, and whether it is of another sensor."""
    given = [name or '' for name in names]
    others = [each.name for each in sensors_with(given)]
    hint = ''
    if others and sensor.name not in others:
        hint = f'Pass sensor={" or ".join(map(repr, others))}. '
    return ValueError(
        f'bands: {path} has the bands {given}, {", ".join(missing)} not found. {hint}'
        'Leave them out of bands=, exclude the file, or read them as missing values by '
        'SceneDataModule(allow_missing_bands=True).'
    )


def change_unit(
    values: np.ndarray, old: tuple[float, float], new: tuple[float, float]
) -> None:
    """Change values in place, so that value x scale + offset stays the same."""
    if old != new:
        values *= np.float32(old[0] / new[0])
        values += np.float32((old[1] - new[1]) / new[0])


@contextmanager
def opened(path: str, sharing: bool = False) -> Iterator[rasterio.DatasetReader]:
    """Open a raster file; errors name the file, and no georeference is needed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with rasterio.open(path, sharing=sharing) as file:
                yield file
    # Damaged headers ask for any amount of memory, or hold names in no encoding.
    except (RasterioError, CPLE_BaseError, MemoryError, UnicodeError) as error:
        raise OSError(
            f'{path} cannot be read: {error}. The file may be damaged or truncated. '
            'Replace it, or exclude it.'
        ) from error


def _names(
    path: str,
    file: rasterio.DatasetReader,
    alpha: Sequence[int],
    bands_in_file: Sequence[str] | None,
) -> list[str | None]:
    """Names of the bands of a file; an alpha band needs none."""
    if not bands_in_file:
        if not any(file.descriptions):
            raise ValueError(
                f'bands_in_file: {path} has no band descriptions. Pass '
                f'bands_in_file= with the names of its {file.count} bands in order.'
            )
        return list(file.descriptions)
    if len(bands_in_file) == file.count:
        return list(bands_in_file)
    if len(bands_in_file) != file.count - len(alpha):
        raise ValueError(
            f'bands_in_file: {len(bands_in_file)} names {list(bands_in_file)} for the '
            f'{file.count - len(alpha)} bands of {path}. Pass one name per band, '
            'or exclude the file.'
        )
    names = iter(bands_in_file)
    return [None if i in alpha else next(names) for i in range(file.count)]


def _positions(
    path: str, names: Sequence[str | None], bands: Sequence[str], sensor: Sensor
) -> dict[str, int]:
    """Positions of wanted bands in a file, from 0."""
    exact: dict[str, list[int]] = {}
    similar: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if not name:
            continue
        if name.upper() in MASK_BANDS:
            exact.setdefault(name.upper(), []).append(i)
        elif band := sensor.find(name):
            exact.setdefault(band.name, []).append(i)
        elif band := find_band(name, sensor):
            similar.setdefault(band.name, []).append(i)
    positions = {}
    for band_name in bands:
        matches = exact.get(band_name) or similar.get(band_name, [])
        if len(matches) > 1:
            one, other = (f'band {i + 1}, {names[i]!r}' for i in matches[:2])
            raise ValueError(
                f'bands: {path} has {band_name} more than once: {one}, and {other}. '
                'Pass bands_in_file= with a name of its own for each, or exclude the '
                'file.'
            )
        if matches:
            positions[band_name] = matches[0]
    return positions


def _scaling(
    path: str,
    file: rasterio.DatasetReader,
    wanted: Sequence[int],
    scale: float | None,
    offset: float | None,
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Scale and offset of bands: as given, in the file's tags, or its metadata."""
    scales, offsets = file.scales, file.offsets
    tags = [(scales[i], offsets[i]) for i in wanted]
    if all(tag == (1, 0) for tag in tags):
        product = None
        if offset is None:
            product = product_scaling(path)
        if product is None and scale is None and offset is None:
            return None, None
        tags = [product or (UNIT, 0.0)] * len(wanted)
    return (
        tuple(tag[0] if scale is None else scale for tag in tags),
        tuple(tag[1] if offset is None else offset for tag in tags),
    )


def _baseline(path: str, file: rasterio.DatasetReader) -> int | None:
    """Processing baseline of Sentinel-2 in the tags or the name of a file."""
    tag = re.fullmatch(r'(\d\d)\.(\d\d)', file.tags().get('PROCESSING_BASELINE', ''))
    return int(tag[1] + tag[2]) if tag else product_baseline(path)


def _is_masked(flags: Sequence[MaskFlags]) -> bool:
    """Return whether a mask is more than a nodata value or an alpha band."""
    if MaskFlags.alpha in flags:
        # Read as a band, because GDAL prefers nodata to it.
        return False
    return not {MaskFlags.all_valid, MaskFlags.nodata}.intersection(flags) or (
        MaskFlags.per_dataset in flags and MaskFlags.all_valid not in flags
    )
