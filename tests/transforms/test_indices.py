# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import re
import sys
import warnings

import kornia.augmentation as K
import numpy as np
import pytest
import spyndex
import torch
from torch import Tensor

from torchgeo_sigmae.bands import EUROSAT_BANDS, SENTINEL2_TEN_BANDS
from torchgeo_sigmae.transforms import (
    INDICES,
    AppendSpectralIndices,
    PatchSaliency,
    SpectralIndex,
    get_index,
    spectral_indices,
)
from torchgeo_sigmae.transforms.indices import _SPYNDEX_BANDS

#: Our common names as spyndex's band letters, and our acronyms where spyndex differs.
_LETTERS = {
    'blue': 'B',
    'green': 'G',
    'red': 'R',
    'rededge1': 'RE1',
    'nir': 'N',
    'swir1': 'S1',
    'swir2': 'S2',
}
_NAMES = {'BSI': 'BI', 'NDRE': 'NDREI'}
_CONSTANTS = {'SAVI': {'L': 0.5}, 'EVI': {'L': 1.0, 'g': 2.5, 'C1': 6.0, 'C2': 7.5}}

#: Values at reflectance blue .05, green .08, red .06, rededge1 .12, nir .35, swir1 .2,
#: swir2 .1, computed by hand.
_VALUES = {
    'NDVI': 0.29 / 0.41,
    'NDWI': -0.27 / 0.43,
    'MNDWI': -0.12 / 0.28,
    'NDBI': -0.15 / 0.55,
    'NDMI': 0.15 / 0.55,
    'NBR': 0.25 / 0.45,
    'NDSI': -0.12 / 0.28,
    'NDRE': 0.23 / 0.47,
    'EVI': 0.725 / 1.335,
    'SAVI': 0.435 / 0.91,
    'BSI': -0.14 / 0.66,
}


def reflectance(index: SpectralIndex, size: int = 1000) -> dict[str, Tensor]:
    return {
        name: torch.rand(size, dtype=torch.float64) * 0.6 + 0.01 for name in index.bands
    }


def test_the_catalogue_is_whole() -> None:
    assert set(_VALUES) == set(INDICES)
    assert all(index.reference for index in INDICES.values())


@pytest.mark.parametrize('name', list(INDICES))
def test_values(name: str) -> None:
    reflectances = {
        'blue': 0.05, 'green': 0.08, 'red': 0.06, 'rededge1': 0.12, 'nir': 0.35,
        'swir1': 0.2, 'swir2': 0.1,
    }  # fmt: skip
    index = INDICES[name]
    bands = {band: torch.tensor(reflectances[band]) for band in index.bands}
    assert index(bands).item() == pytest.approx(_VALUES[name], rel=1e-5)


@pytest.mark.parametrize('name', list(INDICES))
def test_agrees_with_spyndex_before_clamping(name: str) -> None:
    index = INDICES[name]
    bands = reflectance(index)
    params = {_LETTERS[band]: value.numpy() for band, value in bands.items()}
    params |= _CONSTANTS.get(name, {})
    expected = spyndex.computeIndex(_NAMES.get(name, name), params)
    torch.testing.assert_close(index(bands, clamp=False), torch.as_tensor(expected))


@pytest.mark.parametrize('name', list(INDICES))
def test_range(name: str) -> None:
    index = INDICES[name]
    bands = {band: torch.rand(5000) * 3 - 1 for band in index.bands}
    value = index(bands)
    low, high = index.value_range
    assert low <= value.min()
    assert value.max() <= high
    assert not torch.equal(value, index(bands, clamp=False)), 'nothing was clamped'


@pytest.mark.parametrize('name', list(INDICES))
def test_gradients(name: str) -> None:
    index = INDICES[name]
    bands = {k: v[:20].requires_grad_() for k, v in reflectance(index).items()}
    names = list(bands)
    assert torch.autograd.gradcheck(
        lambda *values: index(dict(zip(names, values, strict=True)), clamp=False),
        tuple(bands.values()),
    )
    zeros = {band: torch.zeros(3, requires_grad=True) for band in index.bands}
    index(zeros).sum().backward()
    assert all(zero.grad.isfinite().all() for zero in zeros.values())


def test_undefined_is_zero_and_values_are_clamped() -> None:
    nir = torch.tensor([0.0, 1e-7, 0.3, -0.2, 0.5])
    red = torch.tensor([0.0, 1e-7, -0.3, 0.3, 0.0])
    torch.testing.assert_close(
        INDICES['NDVI']({'nir': nir, 'red': red}),
        torch.tensor([0.0, 0.0, 0.0, -1.0, 1.0]),
    )


def test_the_spyndex_catalogue() -> None:
    """Every index of the catalogue is computed right, or refused with what it needs."""
    letters = {common: letter for letter, common in _SPYNDEX_BANDS.items()}
    refused = []
    for name in set(spyndex.indices) - set(INDICES):
        try:
            index = get_index(name)
        except ValueError as error:
            refused.append(str(error))
            continue
        # Not dark, so that no denominator is near the 1e-6 where ours gives 0.
        bands = {k: 0.1 + 0.8 * v for k, v in reflectance(index, 50).items()}
        params = {letters[band]: value.numpy() for band, value in bands.items()}
        for symbol in spyndex.indices[name].bands:
            if symbol in spyndex.constants:
                params[symbol] = spyndex.constants[symbol].default
        with np.errstate(all='ignore'):
            expected = torch.as_tensor(spyndex.computeIndex(name, params))
        actual = index(bands)
        some = expected.isfinite()
        torch.testing.assert_close(actual[some], expected[some], rtol=1e-6, atol=1e-9)
        assert actual.isfinite().all()
    assert all(re.search(r'of spyndex needs \w+', text) for text in refused)
    assert len(spyndex.indices) - len(refused) > 200


def test_spyndex_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'spyndex', None)
    with pytest.raises(ValueError, match=r"pip install 'torchgeo-sigmae\[spyndex\]'"):
        get_index('ARI')


@pytest.mark.parametrize('shape', [(13, 8, 8), (2, 13, 8, 8), (2, 3, 13, 8, 8)])
def test_bands_are_looked_up_by_name(shape: tuple[int, ...]) -> None:
    image = torch.rand(shape)
    out = spectral_indices(image, EUROSAT_BANDS, ('ndvi', 'NDWI', 'NDBI'))
    green, red, nir, swir = (image.select(-3, i) for i in (2, 3, 7, 10))
    expected = [
        (nir - red) / (nir + red),
        (green - nir) / (green + nir),
        (swir - nir) / (swir + nir),
    ]
    torch.testing.assert_close(out, torch.stack(expected, dim=-3))


def test_a_custom_index() -> None:
    ratio = SpectralIndex('SR', 'nir / red', 'Jordan, 1969', (0, 30))
    image = torch.rand(2, 8, 8) + 0.1
    (out,) = spectral_indices(image, ('B08', 'B04'), (ratio,))
    torch.testing.assert_close(out, image[0] / image[1])


@pytest.mark.parametrize('shape', [(10, 16, 16), (2, 10, 16, 16)])
def test_append_to_raw_images(shape: tuple[int, ...]) -> None:
    transform = AppendSpectralIndices(('EVI', 'ndvi'), SENTINEL2_TEN_BANDS)
    image = (torch.rand(shape) * 5000 + 100).requires_grad_()
    out = transform(image)
    assert out.shape == (*shape[:-3], 12, 16, 16)
    torch.testing.assert_close(out.narrow(-3, 0, 10), image)
    expected = spectral_indices(image * 1e-4, SENTINEL2_TEN_BANDS, ('EVI', 'NDVI'))
    torch.testing.assert_close(out.narrow(-3, 10, 2), expected)
    # EVI of digital numbers is something else: the scale matters, and is applied.
    wrong = spectral_indices(image, SENTINEL2_TEN_BANDS, ('EVI',))
    assert not torch.allclose(wrong, expected.narrow(-3, 0, 1), atol=0.05)
    out.narrow(-3, 10, 2).sum().backward()
    assert image.grad.abs().sum() > 0


def test_append_inside_a_sequence_of_augmentations() -> None:
    sequence = K.AugmentationSequential(
        AppendSpectralIndices(('SAVI',), SENTINEL2_TEN_BANDS),
        K.RandomHorizontalFlip(p=1.0),
        data_keys=None,
        keepdim=True,
    )
    image = torch.rand(2, 10, 16, 16) * 5000
    out = sequence({'image': image, 'mask': torch.ones(2, 1, 16, 16)})
    assert out['image'].shape == (2, 11, 16, 16)
    torch.testing.assert_close(out['image'][:, :10], image.flip(-1))


def test_append_names_a_missing_band_at_once() -> None:
    with pytest.raises(ValueError, match=r'bands: EVI needs B02 \(blue\), B08'):
        AppendSpectralIndices(('EVI',), ('B04', 'B08'))


def test_missing_index_band_is_named() -> None:
    bands = [band for band in SENTINEL2_TEN_BANDS if band != 'B11']
    with pytest.raises(
        ValueError, match=r'bands: NDBI needs B08 \(nir\), B11 \(swir1\)'
    ):
        spectral_indices(torch.rand(9, 8, 8), bands)


def test_channel_count_is_checked() -> None:
    with pytest.raises(ValueError, match='image: 4 channels for 10 bands'):
        spectral_indices(torch.rand(4, 8, 8), SENTINEL2_TEN_BANDS)


def test_unknown_index_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"indices: 'NDXI' is unknown\. Use one of NDVI"
    ):
        get_index('NDXI')


@pytest.mark.parametrize('factor', [1.0, 1e-4, 1e-2])
def test_images_that_are_not_normalized_say_nothing(factor: float) -> None:
    raw = (1000 + 700 * torch.randn(2, 10, 16, 16)).clamp(min=-5) * factor
    raw[0, :, :4] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        AppendSpectralIndices(['NDVI'], SENTINEL2_TEN_BANDS)(raw)
        PatchSaliency(SENTINEL2_TEN_BANDS, 8)({'image': raw[1]})


@pytest.mark.parametrize('scale', [(0.0, 1.0), (-0.5, 0.5)])
@pytest.mark.parametrize('batched', [False, True])
def test_indices_of_normalized_images_warn(
    scale: tuple[float, float], batched: bool
) -> None:
    mean, std = scale
    image = mean + std * torch.randn(2, 10, 16, 16)
    image = image if batched else image[0]
    append = AppendSpectralIndices(['NDVI'], SENTINEL2_TEN_BANDS)
    with pytest.warns(UserWarning, match='Put AppendSpectralIndices before the norm'):
        append(image)
    saliency = PatchSaliency(SENTINEL2_TEN_BANDS, 8)
    with pytest.warns(UserWarning, match='Put PatchSaliency before the norm'):
        saliency({'image': image})
    with warnings.catch_warnings():  # once
        warnings.simplefilter('error')
        append(image)
        saliency({'image': image})
