# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Names of files and bands, and what lies in folders and archives."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

from ..sensors import ETM, LANDSAT8, TM, Band, Sensor, get_sensor

__all__ = (
    'check_satellite',
    'clean_path',
    'file_state',
    'find_band',
    'find_band_files',
    'is_remote',
    'list_files',
    'product_baseline',
    'product_scaling',
)

_RASTER = re.compile(r'\.(?:jp2|tiff?|vrt)$', re.IGNORECASE)

#: The satellite in the name of a Landsat product.
_LANDSAT = re.compile(r'(?:^|[._])L[COTEM]0([4-9])(?=[._])')

#: A band number; the prefixes of Landsat say that it is not one of Sentinel-2.
_CODE = re.compile(
    r'(?<![A-Za-z0-9])((?:SR_|ST_)?B\d+A?)(?![A-Za-z0-9])', re.IGNORECASE
)

#: ``x.zip``, ``/vsizip/x.zip/inner`` and ``zip://x.zip!inner``.
_ZIP = re.compile(r'(?:/vsizip/|zip://)?(.+?\.zip)(?:[!/]+(.*))?', re.IGNORECASE)

#: Beside values of 10,000 per reflectance of 1, products of Sentinel-2 have an offset
#: since processing baseline 04.00, of 25 January 2022.
_QUANTIFICATION = re.compile(r'QUANTIFICATION_VALUE\b[^>]*>\s*(\d+)\s*</')
_OFFSET = re.compile(r'<(?:BOA|RADIO)_ADD_OFFSET\b[^>]*>\s*(-?\d+)\s*</')
_BASELINE = re.compile(r'_N(\d{4})_R\d{3}_')
_FIRST_WITH_OFFSET = 400


def clean_path(path: str | Path) -> str:
    """A path as text; :class:`pathlib.Path` takes a slash from URLs."""
    return re.sub(r'\b(https?|ftp|s3|gs|az):/(?!/)', r'\1://', os.fspath(path))


def is_remote(path: str) -> bool:
    """Return whether GDAL opens a path that is not on a disk: ``s3://``, ``/vsi``."""
    return bool(re.match(r'/vsi|[A-Za-z][A-Za-z0-9+.-]+://', path))


def list_files(path: str) -> list[str] | None:
    """Paths of the files in a folder, in an archive, or in a folder of an archive.

    None for a file, for a file in an archive, and for what cannot be listed.
    """
    if os.path.isdir(path):
        return sorted(str(file) for file in Path(path).rglob('*') if file.is_file())
    archive, inner = _archive(path)
    if archive is None:
        return None
    with ZipFile(archive) as file:
        names = [name for name in file.namelist() if not name.endswith('/')]
    if inner in names:
        return None
    folder = inner.rstrip('/') + '/' if inner else ''
    names = sorted(name for name in names if name.startswith(folder))
    return [f'/vsizip/{archive}/{name}' for name in names]


def file_state(path: str) -> tuple[int, int] | None:
    """Size and time of a file or its archive; None for remote files."""
    try:
        status = os.stat(_archive(path)[0] or path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _archive(path: str) -> tuple[str | None, str]:
    """The ZIP archive of a path, None if there is none, and the path in it."""
    match = _ZIP.fullmatch(path)
    for archive in (match[1], f'/{match[1]}') if match else ():
        if os.path.isfile(archive):
            return archive, match[2] or ''  # type: ignore[index]
    return None, ''


def check_satellite(path: str, sensor: Sensor) -> None:
    """Refuse a product that is named after another Landsat than the sensor."""
    match = _LANDSAT.search(os.path.basename(path))
    if match and sensor in (LANDSAT8, ETM, TM):
        satellite = get_sensor(f'landsat{match[1]}')
        if sensor != satellite:
            raise ValueError(
                f'sensor: {path} is of Landsat-{match[1]} by its name, whose bands are '
                f'numbered differently from {sensor.name}. Pass '
                f'sensor={satellite.name!r}.'
            )


def find_band(name: str | None, sensor: Sensor) -> Band | None:
    """Find a band by a description, for example ``'B4, central wavelength 665 nm'``.

    None if there is no such band, or more than one.
    """
    if not name or (band := sensor.find(name)):
        return band if name else None
    codes, words = _CODE.findall(name), re.findall('[A-Za-z0-9]+', name)
    if codes:
        words = []
    for length, candidates in ((1, codes), (3, words), (2, words), (1, words)):
        joined = [
            ''.join(candidates[i : i + length])
            for i in range(len(candidates) - length + 1)
        ]
        bands = {band.name: band for each in joined if (band := sensor.find(each))}
        if bands:
            return bands.popitem()[1] if len(bands) == 1 else None
    return None


def find_band_files(
    folder: str, files: Sequence[str], bands: Sequence[str], sensor: Sensor
) -> dict[str, str]:
    """Find the file of every band that a folder has, at its finest resolution.

    Previews and masks of a Sentinel-2 product (with a folder ``IMG_DATA``) are left
    out. Names in *bands* that are no bands, such as ``'SCL'``, are those of files.

    Raises:
        ValueError: If a band has several files.
    """
    product = [path for path in files if '/IMG_DATA/' in path.replace(os.sep, '/')]
    candidates: dict[str, list[tuple[int, str]]] = {}
    for path in product or files:
        stem, dot, _ = path.replace(os.sep, '/').rpartition('/')[2].rpartition('.')
        if not dot or not _RASTER.search(path):
            continue
        resolution = re.search(r'[_-](\d+)m$', stem)
        stem = stem[: resolution.start()] if resolution else stem
        name = _band_of_file(stem, bands, sensor)
        if name in bands:
            meters = int(resolution[1]) if resolution else 0
            candidates.setdefault(name, []).append((meters, path))
    chosen = {}
    for band in bands:
        paths = candidates.get(band, [])
        finest = min((meters for meters, _ in paths), default=0)
        # Those without a resolution in their name may be of any.
        paths = [(meters, path) for meters, path in paths if meters in (0, finest)]
        if len(paths) > 1:
            raise ValueError(
                f'scene: {folder} has several files of {band}: '
                f'{Path(paths[0][1]).name}, {Path(paths[1][1]).name}. Pass the folder '
                'of one product.'
            )
        if paths:
            chosen[band] = paths[0][1]
    return chosen


def _band_of_file(stem: str, bands: Sequence[str], sensor: Sensor) -> str:
    """Band of a file: its last word (``HLS.S30.v2.0.B8A``), or the only band number."""
    for name in bands:
        if re.fullmatch(rf'(?:.*[._-])?{re.escape(name)}', stem, re.IGNORECASE):
            return name
    codes = _CODE.findall(stem)
    if codes:
        last = codes[-1:] if stem.endswith(codes[-1]) else codes
        band = find_band(' '.join(last), sensor)
    else:
        band = sensor.find(re.split('[._ -]', stem)[-1])
    return band.name if band else ''


def product_baseline(path: str) -> int | None:
    """Processing baseline in the name of a Sentinel-2 product: 400 for ``_N0400_``."""
    match = _BASELINE.search(path)
    # 9999 stands for a product that a user processed.
    return int(match[1]) if match and match[1] != '9999' else None


def product_scaling(
    path: str, files: Sequence[str] | None = None
) -> tuple[float, float] | None:
    """Scale and offset of a Sentinel-2 product: reflectance = value x scale + offset.

    Args:
        path: A folder, a file, or an archive.
        files: The files of a folder or archive.

    Returns:
        As the metadata beside the file or in the folder say (``MTD_MSIL2A.xml``), else
        as the name of a folder says. None without.

    Raises:
        ValueError: If the bands have different offsets.
    """
    inside = [name for name in files or () if Path(name).name.startswith('MTD_MSI')]
    texts = [(name, _text(name)) for name in inside if name.endswith('.xml')]
    if not texts and not is_remote(path):
        # A file has it beside itself. A folder may be one of a product, such as R10m.
        above = list(Path(os.path.abspath(path)).parents[: 1 if files is None else 4])
        metadata = [
            folder / name
            for folder in above
            for name in ('MTD_MSIL2A.xml', 'MTD_MSIL1C.xml')
            if os.path.isfile(folder / name)
        ]
        texts = [(str(file), file.read_text(errors='replace')) for file in metadata[:1]]
    for name, text in texts:
        offsets = {float(value) for value in _OFFSET.findall(text)}
        if len(offsets) > 1:
            raise ValueError(
                f'offset: {name} has several offsets, {sorted(offsets)}. Pass one, '
                'offset=.'
            )
        numbers = {float(value) for value in _QUANTIFICATION.findall(text)} or {1e4}
        scale = 1 / max(numbers)
        return scale, (offsets.pop() if offsets else 0.0) * scale
    baseline = product_baseline(path)
    if files is None or baseline is None:
        return None
    return 1e-4, -0.1 if baseline >= _FIRST_WITH_OFFSET else 0.0


def _text(path: str) -> str:
    """Content of a file, also of one in an archive."""
    archive, inner = _archive(path)
    if archive is None:
        return Path(path).read_text(errors='replace')
    with ZipFile(archive) as file:
        return file.read(inner).decode(errors='replace')
