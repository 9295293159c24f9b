# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Data of the tutorials: real where they are, else a generated stand-in.

Real data are looked for in ``SIGMAE_DATA``, default ``../shared/data`` beside the
repository. Stand-ins have the layout of the real ones and are made of
:class:`torchgeo_sigmae.SyntheticSentinel2`: everything runs, and no figure means
anything.
"""

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio

from torchgeo_sigmae import SyntheticSentinel2
from torchgeo_sigmae.bands import EUROSAT_BANDS, SENTINEL2_L2A_BANDS, BandSet

_DATA = Path(__file__).resolve().parents[3] / 'shared' / 'data'
_STAND_INS = Path('outputs', 'stand_ins')
_TIF = Path('ds/images/remote_sensing/otherDatasets/sentinel_2/tif')


def eurosat() -> Path:
    """Find EuroSAT in TorchGeo's layout.

    Returns:
        Its root: the real one, or a stand-in of 72 chips of three classes.
    """
    return _find('eurosat', _make_eurosat)


def barkbeetle() -> Path:
    """Find image pairs of forest sites, see ``examples/barkbeetle.py``.

    Returns:
        Their root: the real one, or a stand-in of 30 sites.
    """
    return _find('barkbeetle', _make_barkbeetle)


def quiet() -> None:
    """Leave out what Lightning says about loggers, workers and devices."""
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    for module in (
        'lightning',
        'torch',
        'torchmetrics',
        'torchgeo',
        'segmentation_models_pytorch',
    ):
        warnings.filterwarnings('ignore', module=rf'{module}\.')


def _find(name: str, make: Callable[[Path], None]) -> Path:
    """The real folder, or the stand-in, made once."""
    real = Path(os.environ.get('SIGMAE_DATA', _DATA)) / name
    if real.is_dir():
        return real
    root = _STAND_INS / name
    if not root.is_dir():
        part = root.with_suffix(f'.{os.getpid()}')
        make(part)
        os.replace(part, root)
    print(f'No data in SIGMAE_DATA: a generated stand-in for {name} is used.')
    return root


def _make_eurosat(root: Path) -> None:
    """Chips of 13 bands, B8A last, in a folder per class, and lists of the splits."""
    for split, count in (('train', 48), ('val', 12), ('test', 12)):
        chips = SyntheticSentinel2(_STAND_INS, split, SENTINEL2_L2A_BANDS)
        names = []
        for index in range(count):
            chip = chips[index]['image'].numpy()
            kind = _cover(chip)
            names.append(f'{kind}_{split}{index}')
            path = root / _TIF / kind / f'{names[-1]}.tif'
            # L2A has no cirrus band.
            cirrus = np.full_like(chip[:1], 10)
            order = [
                (*SENTINEL2_L2A_BANDS, 'B10').index(band) for band in EUROSAT_BANDS
            ]
            _write(path, np.concatenate([chip, cirrus])[order])
        (root / f'eurosat-{split}.txt').write_text('.jpg\n'.join(names) + '.jpg\n')


def _cover(chip: np.ndarray) -> str:
    """What most of a chip is."""
    green, red, nir = chip[
        BandSet(SENTINEL2_L2A_BANDS).channels(('green', 'red', 'nir'))
    ]
    if ((green - nir) / (green + nir) > 0).mean() > 0.3:
        return 'SeaLake'
    return 'Forest' if ((nir - red) / (nir + red) > 0.3).mean() > 0.6 else 'Industrial'


def _make_barkbeetle(root: Path) -> None:
    """Pairs whose second image has bare ground in a disc, and the discs."""
    soil = np.array(
        [1200, 1500, 1900, 2300, 2600, 2800, 2900, 3000, 3100, 3100, 3600, 2900]
    )
    chips = SyntheticSentinel2(_STAND_INS, 'train', SENTINEL2_L2A_BANDS)
    rows, columns = np.mgrid[:64, :64]
    for index in range(30):
        before = chips[index]['image'].numpy()
        row, column, radius = np.random.default_rng(index).integers(12, 40, 3)
        mask = (rows - row) ** 2 + (columns - column) ** 2 < (radius / 2) ** 2
        after = np.where(mask, soil[:, None, None], before * 1.05)
        site = root / str(100 + index)
        for name, array in (('2019', before), ('2020', after)):
            _write(site / f'{name}.tif', array, SENTINEL2_L2A_BANDS)
        _write(site / 'mask.tif', mask[None])


def _write(path: Path, array: np.ndarray, bands: tuple[str, ...] = ()) -> None:
    """Write a GeoTIFF ``(C, H, W)`` of 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        count=count,
        height=height,
        width=width,
        dtype='uint16',
        crs='EPSG:32632',
        transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5.4e6),
    ) as file:
        file.write(array.astype('uint16'))
        if bands:
            file.descriptions = bands
