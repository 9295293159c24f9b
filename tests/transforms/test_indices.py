# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
import spyndex
import torch

from torchgeo_sigmae.bands import EUROSAT_BANDS, SENTINEL2_TEN_BANDS
from torchgeo_sigmae.transforms import (
    INDICES,
    SpectralIndex,
    get_index,
    normalized_difference,
    spectral_indices,
)

#: Common names to spyndex's standard band letters.
_LETTERS = {'green': 'G', 'red': 'R', 'nir': 'N', 'swir1': 'S1'}


@pytest.mark.parametrize('name', list(INDICES))
def test_agrees_with_spyndex(name: str) -> None:
    index = INDICES[name]
    a, b = torch.rand(2, 1000, dtype=torch.float64) * 0.6 + 0.01
    params = {_LETTERS[index.positive]: a.numpy(), _LETTERS[index.negative]: b.numpy()}
    expected = torch.as_tensor(spyndex.computeIndex(name, params))
    torch.testing.assert_close(index(a, b), expected)


def test_undefined_is_zero_and_values_are_clamped() -> None:
    a = torch.tensor([0.0, 1e-7, 0.3, -0.2, 0.5])
    b = torch.tensor([0.0, 1e-7, -0.3, 0.3, 0.0])
    torch.testing.assert_close(
        normalized_difference(a, b), torch.tensor([0.0, 0.0, 0.0, -1.0, 1.0])
    )


def test_gradients_are_right_and_finite_where_undefined() -> None:
    a, b = torch.rand(2, 20, dtype=torch.float64).add(0.1).requires_grad_().unbind()
    assert torch.autograd.gradcheck(normalized_difference, (a, b))
    zero = torch.zeros(3, requires_grad=True)
    normalized_difference(zero, zero).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize('shape', [(13, 8, 8), (2, 13, 8, 8), (2, 3, 13, 8, 8)])
def test_bands_are_found_by_name(shape: tuple[int, ...]) -> None:
    image = torch.rand(shape)
    out = spectral_indices(image, EUROSAT_BANDS, ('ndvi', 'NDWI', 'NDBI'))
    green, red, nir, swir = (image.select(-3, i) for i in (2, 3, 7, 10))
    expected = [
        (nir - red) / (nir + red),
        (green - nir) / (green + nir),
        (swir - nir) / (swir + nir),
    ]
    torch.testing.assert_close(out, torch.stack(expected, dim=-3))


def test_an_index_of_ones_own() -> None:
    ndmi = SpectralIndex('NDMI', 'nir', 'swir1', 'Gao, 1996')
    image = torch.rand(2, 8, 8)
    (out,) = spectral_indices(image, ('B08', 'B11'), (ndmi,))
    torch.testing.assert_close(out, ndmi(image[0], image[1]))


def test_missing_index_band_is_named() -> None:
    bands = [band for band in SENTINEL2_TEN_BANDS if band != 'B11']
    with pytest.raises(ValueError, match=r'bands: NDBI needs B11 \(swir1\), B08'):
        spectral_indices(torch.rand(9, 8, 8), bands)


def test_integers_are_refused() -> None:
    image = torch.ones(10, 8, 8, dtype=torch.int32)
    with pytest.raises(TypeError, match=r'image: .*torch.int32. Pass image.float\(\)'):
        spectral_indices(image, SENTINEL2_TEN_BANDS)


def test_channel_count_is_checked() -> None:
    with pytest.raises(ValueError, match='image: 4 channels for 10 bands'):
        spectral_indices(torch.rand(4, 8, 8), SENTINEL2_TEN_BANDS)


def test_unknown_index_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"indices: 'NDXI' is unknown\. Use one of NDVI"
    ):
        get_index('NDXI')
