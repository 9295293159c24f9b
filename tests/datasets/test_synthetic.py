# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import hashlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torchgeo.datasets import DatasetNotFoundError

import torchgeo_sigmae.datasets.synthetic as module
from torchgeo_sigmae import SyntheticSentinel2, SyntheticSentinel2DataModule
from torchgeo_sigmae.bands import SENTINEL2_L2A_BANDS
from torchgeo_sigmae.transforms import spectral_indices


def test_chips_are_real_geotiffs(synthetic_root: Path) -> None:
    dataset = SyntheticSentinel2(synthetic_root, 'val')
    assert len(dataset) == 32
    with rasterio.open(dataset.files[5]) as file:
        assert file.dtypes == ('uint16',) * 12
        assert file.shape == (64, 64)
        assert file.crs.to_epsg() == 32632
        assert file.res == (10, 10)
        assert file.nodata == 0
        assert file.descriptions == SENTINEL2_L2A_BANDS
        assert (file.read() > 0).all()


def test_chips_do_not_overlap(synthetic_root: Path) -> None:
    corners = set()
    for split in ('train', 'val', 'test'):
        for path in SyntheticSentinel2(synthetic_root, split).files:
            with rasterio.open(path) as file:
                corners.add(tuple(file.transform)[2:6:3])
    assert len(corners) == 256 + 32 + 32


def test_same_chips_everywhere(synthetic_root: Path, tmp_path: Path) -> None:
    a = SyntheticSentinel2(synthetic_root, 'test')
    b = SyntheticSentinel2(tmp_path, 'test')
    assert torch.equal(a[3]['image'], b[3]['image'])
    digests = {hashlib.sha256(f.read_bytes()).hexdigest() for f in a.files}
    assert len(digests) == 32, 'two chips are the same'


def test_bands_by_name(synthetic_root: Path) -> None:
    chip = SyntheticSentinel2(synthetic_root, 'val', bands=('b4', 'nir', 'B8a'))[0]
    everything = SyntheticSentinel2(synthetic_root, 'val', SENTINEL2_L2A_BANDS)[0]
    torch.testing.assert_close(chip['image'], everything['image'][[3, 7, 8]])
    assert chip['image'].dtype == torch.float32


def test_materials_look_like_what_they_are(synthetic_root: Path) -> None:
    bands = [*SENTINEL2_L2A_BANDS]
    spectra = torch.tensor(list(module.MATERIALS.values())).T[:, :, None]
    ndvi, ndwi, ndbi = spectral_indices(spectra, bands)[..., 0]
    names = list(module.MATERIALS)
    assert ndvi.argmax() == names.index('vegetation')
    assert ndwi[names.index('water')] > 0
    assert ndbi[names.index('asphalt')] > 0
    assert ndbi.argmin() == names.index('snow')


def test_statistics_of_the_datamodule_are_those_of_the_chips(
    synthetic_root: Path,
) -> None:
    datamodule = SyntheticSentinel2DataModule(
        root=synthetic_root, bands=SENTINEL2_L2A_BANDS
    )
    dataset = SyntheticSentinel2(synthetic_root, 'train', SENTINEL2_L2A_BANDS)
    images = torch.stack([sample['image'] for sample in dataset]).double()
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
    np.testing.assert_allclose(datamodule.mean, mean, rtol=1e-3)
    np.testing.assert_allclose(datamodule.std, std, rtol=1e-3)


def test_interrupted_generation_is_completed(tmp_path: Path) -> None:
    dataset = SyntheticSentinel2(tmp_path, 'val')
    expected = dataset[7]['image']
    dataset.files[7].unlink()
    with pytest.raises(DatasetNotFoundError):
        SyntheticSentinel2(tmp_path, 'val', generate=False)
    again = SyntheticSentinel2(tmp_path, 'val')
    assert torch.equal(again[7]['image'], expected)
    assert not list(tmp_path.rglob('*.part*'))


def test_transforms_and_plot(synthetic_root: Path) -> None:
    dataset = SyntheticSentinel2(
        synthetic_root, 'val', transforms=lambda s: {**s, 'more': 1}
    )
    assert dataset[0]['more'] == 1
    figure = dataset.plot(dataset[0], suptitle='One chip')
    assert figure.get_suptitle() == 'One chip'
    assert figure.axes[0].get_title() == 'Image'
    # One band is drawn in gray.
    red = SyntheticSentinel2(synthetic_root, 'val', bands=('B04',))
    shown = np.asarray(red.plot(red[0]).axes[0].images[0].get_array())
    assert np.ptp(shown, axis=-1).max() == 0


def test_bad_split() -> None:
    with pytest.raises(ValueError, match="split: 'all' is unknown"):
        SyntheticSentinel2(split='all')
