# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Folders with a file a band: Sentinel-2 products, patches of BigEarthNet."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..bands import Sensor, get_sensor

__all__ = ('find_band_files', 'radiometric_offset')

#: ``T32TQM_..._B8A_20m.jp2``, ``S2A_..._B02.tif``, ``B04.TIF``.
_BAND_FILE = re.compile(
    r'(?:.*_)?(?P<band>B\d{1,2}A?)(?:_(?P<metres>\d+)m)?\.(?:jp2|tiff?)', re.IGNORECASE
)

#: The offset of a band in metadata of Sentinel-2, Level-2A and Level-1C.
_OFFSET = re.compile(
    r'<(?P<name>BOA_ADD_OFFSET|RADIO_ADD_OFFSET)\b[^>]*>\s*(?P<value>-?\d+)\s*</'
)


def find_band_files(
    folder: Path, bands: Sequence[str], sensor: str | Sensor
) -> dict[str, Path]:
    """Find the file of every band, at its finest resolution.

    Args:
        folder: The folder, searched with what is below it. Of a Sentinel-2 product
            (``IMG_DATA`` is in it) previews and masks are left out.
        bands: Canonical names of the wanted bands.
        sensor: The sensor they belong to.

    Returns:
        The files by band, in the order of *bands*.

    Raises:
        FileNotFoundError: If a band has no file.
        ValueError: If a band has several.
    """
    sensor = get_sensor(sensor)
    found: dict[str, list[tuple[int, Path]]] = {}
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    product = [path for path in files if 'IMG_DATA' in path.parts]
    for path in product or files:
        name = _BAND_FILE.fullmatch(path.name)
        band = sensor.find(name['band']) if name else None
        if name and band:
            metres = int(name['metres'] or 0)
            found.setdefault(band.name, []).append((metres, path))
    missing = [band for band in bands if band not in found]
    if missing:
        raise FileNotFoundError(
            f'scene: {folder} has no file of {", ".join(missing)}. Expected names that '
            f'end in _{missing[0]}.tif, _{missing[0]}.jp2 or _{missing[0]}_20m.jp2'
            + (f'; found are {", ".join(found)}.' if found else '.')
        )
    chosen = {}
    for wanted in bands:
        finest = min(metres for metres, _ in found[wanted])
        paths = [path for metres, path in found[wanted] if metres == finest]
        if len(paths) > 1:
            raise ValueError(
                f'scene: {folder} has several files of {wanted}: {paths[0].name}, '
                f'{paths[1].name}. Pass the folder of one product.'
            )
        chosen[wanted] = paths[0]
    return chosen


def radiometric_offset(folder: Path) -> float | None:
    """Find the offset of digital numbers that a Sentinel-2 product tells.

    Since processing baseline 04.00 (25 January 2022) digital numbers are 1000 larger,
    so that dark ground does not become negative. The offset takes that away again.

    Args:
        folder: Folder of the product, or one inside it.

    Returns:
        The offset, in digital numbers; None where no metadata tell one.

    Raises:
        ValueError: If bands have different offsets.
    """
    for place in (folder, *folder.resolve().parents[:4]):
        for path in sorted(place.glob('MTD_MSI*.xml')):
            text = path.read_text(errors='replace')
            values = {float(found['value']) for found in _OFFSET.finditer(text)}
            if len(values) > 1:
                raise ValueError(
                    f'offset: {path} tells several, {sorted(values)}. Pass the offset.'
                )
            return values.pop() if values else None
    return None
