# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchgeo.datasets import OSCD, BigEarthNet, EuroSAT

from torchgeo_sigmae.bands import (
    BIGEARTHNET_BANDS,
    EUROSAT_BANDS,
    LANDSAT8,
    OSCD_BANDS,
    SENTINEL2,
    SENTINEL2_BANDS,
    SENTINEL2_TEN_BANDS,
    band_indices,
    get_sensor,
    normalize_bands,
)


@pytest.mark.parametrize(
    ('spelling', 'name'),
    [
        ('b4', 'B04'),
        ('B4', 'B04'),
        ('B04', 'B04'),
        (' b04 ', 'B04'),
        ('B8a', 'B8A'),
        ('B08A', 'B8A'),
        ('b8a', 'B8A'),
        ('B8', 'B08'),
        ('B12', 'B12'),
        ('nir', 'B08'),
        ('NIR', 'B08'),
        ('red', 'B04'),
        ('swir1', 'B11'),
        ('swir22', 'B12'),
        ('rededge', 'B05'),
        ('nir08', 'B8A'),
    ],
)
def test_sentinel2_spellings(spelling: str, name: str) -> None:
    assert normalize_bands([spelling]) == (name,)


@pytest.mark.parametrize(
    ('spelling', 'name'),
    [('B5', 'B5'), ('B05', 'B5'), ('SR_B5', 'B5'), ('nir', 'B5'), ('swir1', 'B6')],
)
def test_landsat_spellings(spelling: str, name: str) -> None:
    assert normalize_bands([spelling], 'landsat8') == (name,)
    assert normalize_bands([spelling], 'Landsat-9') == (name,)


@given(st.sampled_from(SENTINEL2_BANDS), st.booleans(), st.booleans())
def test_every_spelling_of_a_band_is_one_name(
    name: str, lower: bool, padded: bool
) -> None:
    number = name[1:].lstrip('0').rstrip('A')
    spelled = f'B{number.zfill(2) if padded else number}{"A" if "A" in name else ""}'
    assert normalize_bands([spelled.lower() if lower else spelled]) == (name,)


def test_wavelengths_are_those_of_the_sensor() -> None:
    waves = [band.wavelength for band in SENTINEL2.bands]
    assert waves == sorted(waves)
    assert SENTINEL2.band('B08').wavelength == 833
    assert SENTINEL2.band('B8A').wavelength == 865
    assert LANDSAT8.band('nir').wavelength == 865
    # The same common name is close to the same light on both sensors.
    for common in ('coastal', 'blue', 'green', 'red', 'swir1', 'swir2', 'cirrus'):
        s2, l8 = SENTINEL2.band(common), LANDSAT8.band(common)
        assert abs(s2.wavelength - l8.wavelength) <= 10


def test_orders_match_the_installed_torchgeo() -> None:
    assert normalize_bands(EuroSAT.all_band_names) == EUROSAT_BANDS
    assert EUROSAT_BANDS[-1] == 'B8A'
    assert normalize_bands(OSCD.all_bands) == OSCD_BANDS
    # TorchGeo tells BigEarthNet's order only in its documentation.
    documented = ', '.join(BIGEARTHNET_BANDS)
    text = ' '.join(str(BigEarthNet.__doc__).split())
    assert documented in text
    assert len(SENTINEL2_TEN_BANDS) == 10


def test_indices_follow_names_not_positions() -> None:
    assert band_indices(['B8A', 'nir'], EUROSAT_BANDS) == [12, 7]
    assert band_indices(['B8A', 'nir'], OSCD_BANDS) == [8, 7]
    assert band_indices(['red'], ('VV', 'VH', 'B02', 'B04')) == [3]


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: normalize_bands(['B13']), r"bands: 'B13' is not a band of sentinel2"),
        (lambda: normalize_bands(['reed']), r"Did you mean 'red'\?"),
        (lambda: normalize_bands(['red', 'B4']), r'bands: B04 is given more than once'),
        (lambda: band_indices(['B10'], BIGEARTHNET_BANDS), r'bands: B10 not found in'),
        (lambda: get_sensor('modis'), r"sensor: 'modis' is unknown. Use one of"),
    ],
)
def test_errors_name_argument_value_and_remedy(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_string_is_not_a_sequence_of_bands() -> None:
    with pytest.raises(TypeError, match=r"bands: .*got the string 'B04'"):
        normalize_bands('B04')
