# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The embedded default: synthetic Sentinel-2 chips, for demos and tests only."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import rasterio
import torch
from rasterio.crs import CRS
from rasterio.transform import from_origin
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import DatasetNotFoundError
from tqdm import tqdm

from .._files import atomic_path
from ..bands import SENTINEL2_L2A_BANDS, SENTINEL2_TEN_BANDS, BandSet
from .base import ChipDataset
from .resumable import resumable

__all__ = ('MATERIALS', 'SyntheticSentinel2', 'SyntheticSentinel2DataModule')

#: Reflectance of six materials in the twelve bands of ``SENTINEL2_L2A_BANDS``: spectra
#: of the USGS Spectral Library Version 7 (Kokaly et al., 2017, USGS Data Series 1035,
#: doi:10.3133/ds1035, public domain; records splib07a 13635 Seawater_Open_Ocean SW2,
#: 21762 Maple_Leaves DW92-1, 13304 Stonewall_Playa_Dry_Mud, 18568 Concrete GDS375,
#: 18269 Asphalt GDS376, 13518 Melting_snow mSnw01a), read at 443, 490, 560, 665, 705,
#: 740, 783, 842, 865, 945, 1610 and 2190 nm and rounded to 0.001; not convolved with
#: the sensor's response.
MATERIALS: dict[str, tuple[float, ...]] = {
    'water': (
        *(0.045, 0.038, 0.025, 0.021, 0.020, 0.020),
        *(0.020, 0.020, 0.020, 0.020, 0.019, 0.016),
    ),
    'vegetation': (
        *(0.036, 0.037, 0.094, 0.037, 0.133, 0.520),
        *(0.637, 0.641, 0.646, 0.631, 0.361, 0.190),
    ),
    'soil': (
        *(0.230, 0.273, 0.381, 0.486, 0.507, 0.523),
        *(0.533, 0.533, 0.531, 0.534, 0.559, 0.496),
    ),
    'concrete': (
        *(0.219, 0.245, 0.292, 0.315, 0.317, 0.318),
        *(0.318, 0.314, 0.312, 0.310, 0.338, 0.338),
    ),
    'asphalt': (
        *(0.068, 0.074, 0.088, 0.105, 0.110, 0.115),
        *(0.120, 0.125, 0.127, 0.133, 0.195, 0.211),
    ),
    'snow': (
        *(0.834, 0.833, 0.833, 0.819, 0.815, 0.809),
        *(0.780, 0.771, 0.747, 0.672, 0.018, 0.014),
    ),
}

_SPLITS = {'train': 256, 'val': 32, 'test': 32}
_SIZE = 64


class SyntheticSentinel2(ChipDataset):
    """Synthetic Sentinel-2 Level-2A chips with water, fields, towns and snow.

    Made from published reflectance of six materials (:data:`.MATERIALS`) with spatial
    structure, sub-pixel mixing, shading and noise, and written as real GeoTIFFs of
    digital numbers (reflectance x 10000, 12 bands, 10 m, UTM 32N, nodata 0). The same
    split and index give the same chip everywhere, up to rounding. It replaces a
    download in demos and tests; it is not for science: its texture and statistics are
    invented.

    Dataset features:

    * 256 training, 32 validation and 32 test chips of 64 x 64 pixels
    * no labels

    .. versionadded:: 0.1
    """

    all_bands = SENTINEL2_L2A_BANDS
    rgb_bands = ('B04', 'B03', 'B02')

    def __init__(
        self,
        root: str | Path = 'data',
        split: str = 'train',
        bands: Sequence[str] = SENTINEL2_TEN_BANDS,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        generate: bool = True,
    ) -> None:
        """Initialize a new SyntheticSentinel2 instance.

        Args:
            root: Folder under which ``synthetic_sentinel2/`` is found or made.
            split: One of 'train', 'val' or 'test'.
            bands: Bands to load, in any spelling and order.
            transforms: A function that takes a sample and returns a changed one.
            generate: Whether to make missing chips.

        Raises:
            ValueError: If *split* or a band is unknown.
            DatasetNotFoundError: If chips are missing and *generate* is False.
        """
        if split not in _SPLITS:
            raise ValueError(
                f'split: {split!r} is unknown. Use one of {", ".join(_SPLITS)}.'
            )
        self.root = root
        self.split = split
        self.bands = tuple(bands)
        self.transforms = transforms
        self.band_indices = BandSet(self.all_bands).channels(bands)
        folder = Path(root) / 'synthetic_sentinel2' / split
        self.files = [folder / f'{i:04}.tif' for i in range(_SPLITS[split])]
        missing = [i for i, file in enumerate(self.files) if not file.exists()]
        if missing and not generate:
            raise DatasetNotFoundError(self)
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            for i in tqdm(missing, f'Making {split} chips', disable=None):
                _write_chip(self.files[i], split, i)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``{'image': (C, 64, 64)}``, digital numbers in float32."""
        with rasterio.open(self.files[index]) as file:
            array = file.read([i + 1 for i in self.band_indices], out_dtype='float32')
        sample: dict[str, Any] = {'image': torch.from_numpy(array)}
        if self.transforms is not None:
            sample = self.transforms(sample)
        return sample

    def __len__(self) -> int:
        """Return the number of chips."""
        return len(self.files)


class SyntheticSentinel2DataModule(NonGeoDataModule):
    """LightningDataModule implementation for the SyntheticSentinel2 dataset.

    .. versionadded:: 0.1
    """

    #: Mean and standard deviation of the training chips, per band, in digital numbers.
    band_statistics: ClassVar[dict[str, tuple[float, float]]] = {
        'B01': (1508.3, 1760.0),
        'B02': (1644.0, 1780.6),
        'B03': (2200.4, 1819.1),
        'B04': (2282.0, 2002.7),
        'B05': (2728.8, 1933.9),
        'B06': (4331.5, 2139.9),
        'B07': (4817.1, 2344.5),
        'B08': (4828.6, 2345.7),
        'B8A': (4829.7, 2337.5),
        'B09': (4738.3, 2261.0),
        'B11': (3408.9, 1835.7),
        'B12': (2542.5, 1485.1),
    }

    def __init__(
        self, batch_size: int = 64, num_workers: int = 0, **kwargs: Any
    ) -> None:
        """Initialize a new SyntheticSentinel2DataModule instance.

        Args:
            batch_size: Size of each mini-batch.
            num_workers: Number of workers for parallel data loading.
            **kwargs: Additional keyword arguments passed to
                :class:`SyntheticSentinel2`.
        """
        bands = kwargs.get('bands', SENTINEL2_TEN_BANDS)
        names = [
            SENTINEL2_L2A_BANDS[i] for i in BandSet(SENTINEL2_L2A_BANDS).channels(bands)
        ]
        self.mean = torch.tensor([self.band_statistics[name][0] for name in names])
        self.std = torch.tensor([self.band_statistics[name][1] for name in names])
        super().__init__(SyntheticSentinel2, batch_size, num_workers, **kwargs)
        resumable(self)

    def prepare_data(self) -> None:
        """Make the chips, once per machine."""
        for split in _SPLITS:
            SyntheticSentinel2(split=split, **self.kwargs)


def _write_chip(path: Path, split: str, index: int) -> None:
    """Write one chip, so that an interrupted run leaves no half file."""
    dn = np.clip(np.round(_reflectance(split, index) * 1e4), 1, 65535)
    column, row = divmod(index, 64)
    east = 500_000 + 640 * column
    north = 5_400_000 + 10_000 * (1 + list(_SPLITS).index(split)) - 640 * row
    with (
        atomic_path(path, 'root', durable=False) as part,
        rasterio.open(
            part,
            'w',
            driver='GTiff',
            width=_SIZE,
            height=_SIZE,
            count=len(SENTINEL2_L2A_BANDS),
            dtype='uint16',
            crs=CRS.from_epsg(32632),
            transform=from_origin(east, north, 10, 10),
            nodata=0,
            compress='deflate',
        ) as file,
    ):
        file.write(dn.astype('uint16'))
        file.descriptions = SENTINEL2_L2A_BANDS


def _reflectance(split: str, index: int) -> np.ndarray:
    """Compose one chip: ``(12, 64, 64)`` reflectance."""
    rng = np.random.default_rng([list(_SPLITS).index(split), index])
    spectra = np.array([MATERIALS[name] for name in MATERIALS])
    shares = _shares(rng)
    blurred = _smooth(shares, 0.7)
    image = np.einsum('mb,mhw->bhw', spectra, blurred / blurred.sum(axis=0))
    # Relief shades all bands alike; texture and noise do not.
    image *= np.exp(0.15 * _field(rng, 12.0))
    image *= 1 + 0.04 * _field(rng, 1.0, len(image))
    image += rng.normal(0, 0.002, image.shape)
    return np.clip(image, 1e-4, 1.2)


def _shares(rng: np.random.Generator) -> np.ndarray:
    """Material shares per pixel: ``(6, 64, 64)``, in the order of MATERIALS."""
    height = _field(rng, rng.uniform(6, 14))
    shares = dict.fromkeys(MATERIALS, np.zeros_like(height))

    # Fields: Voronoi parcels, each with its own vegetation cover.
    seeds = rng.uniform(0, _SIZE, (rng.integers(6, 30), 2))
    grid = np.moveaxis(np.mgrid[:_SIZE, :_SIZE], 0, -1)
    parcel = np.linalg.norm(grid[:, :, None] - seeds, axis=-1).argmin(axis=-1)
    green = rng.beta(0.8, 0.6, len(seeds))[parcel]
    green = np.clip(green + 0.1 * _field(rng, 2.0), 0, 1)
    shares['vegetation'], shares['soil'] = green, 1 - green

    # Towns: streets every few pixels, roofs and gardens between them.
    town = _field(rng, rng.uniform(5, 10)) > rng.uniform(0.2, 2.2)
    step = rng.integers(5, 10)
    street = (grid % step == 0).any(axis=-1)
    garden = rng.uniform(0, 0.5)
    for name, value in (
        ('asphalt', np.where(street, 0.9, 0.2)),
        ('concrete', np.where(street, 0.1, 0.8 - garden)),
        ('vegetation', np.where(street, 0.0, garden)),
        ('soil', np.zeros_like(height)),
    ):
        shares[name] = np.where(town, value, shares[name])

    # Water fills the lowest ground, snow now and then covers the highest.
    water = height < np.quantile(height, max(rng.uniform(-0.3, 0.5), 0))
    snow = height > np.quantile(height, min(rng.uniform(0.5, 3.0), 1))
    for where, material in ((water, 'water'), (snow, 'snow')):
        for name, share in shares.items():
            shares[name] = np.where(where, float(name == material), share)
    return np.stack(list(shares.values()))


def _field(rng: np.random.Generator, length: float, *count: int) -> np.ndarray:
    """Smooth noise ``(64, 64)`` of mean 0 and std 1 with a correlation length in px.

    With a count, so many of them, ``(count, 64, 64)``.
    """
    fields = _smooth(rng.standard_normal((*count, _SIZE, _SIZE)), length)
    fields -= fields.mean(axis=(-2, -1), keepdims=True)
    return fields / fields.std(axis=(-2, -1), keepdims=True)


def _smooth(images: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with a Gaussian, periodic at the borders."""
    rows, columns = np.fft.fftfreq(_SIZE), np.fft.rfftfreq(_SIZE)
    squared = rows[:, None] ** 2 + columns**2
    kernel = np.exp(-2 * (np.pi * sigma) ** 2 * squared)
    return np.fft.irfft2(np.fft.rfft2(images) * kernel)
