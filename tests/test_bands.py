# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import math

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
    SENTINEL2_L2A_BANDS,
    SENTINEL2_TEN_BANDS,
    Band,
    BandSet,
    Sensor,
    get_sensor,
)


@pytest.mark.parametrize(
    ('spelling', 'name'),
    [
        (' b04 ', 'B04'),
        ('B8a', 'B8A'),
        ('nir', 'B08'),
        ('NIR', 'B08'),
        ('red', 'B04'),
        ('swir1', 'B11'),
        ('swir22', 'B12'),
        ('rededge', 'B05'),
        ('nir08', 'B8A'),
        (' red ', 'B04'),
    ],
)
def test_sentinel2_spellings(spelling: str, name: str) -> None:
    assert BandSet([spelling]) == (name,)


@pytest.mark.parametrize(
    ('spelling', 'name'),
    [('B5', 'B5'), ('B05', 'B5'), ('SR_B5', 'B5'), ('nir', 'B5'), ('swir1', 'B6')],
)
def test_landsat_spellings(spelling: str, name: str) -> None:
    assert BandSet([spelling], 'landsat8') == (name,)
    assert BandSet([spelling], 'Landsat-9') == (name,)


@given(st.sampled_from(SENTINEL2_BANDS), st.booleans(), st.booleans())
def test_every_spelling_of_a_band_is_one_name(
    name: str, lower: bool, padded: bool
) -> None:
    number = name[1:].lstrip('0').rstrip('A')
    spelled = f'B{number.zfill(2) if padded else number}{"A" if "A" in name else ""}'
    assert BandSet([spelled.lower() if lower else spelled]) == (name,)


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
    assert BandSet(EuroSAT.all_band_names) == EUROSAT_BANDS
    assert EUROSAT_BANDS[-1] == 'B8A'
    assert BandSet(OSCD.all_bands) == OSCD_BANDS
    # TorchGeo tells BigEarthNet's order only in its documentation.
    documented = ', '.join(BIGEARTHNET_BANDS)
    text = ' '.join(str(BigEarthNet.__doc__).split())
    assert documented in text
    assert len(SENTINEL2_TEN_BANDS) == 10


def test_indices_follow_names_not_positions() -> None:
    assert BandSet(EUROSAT_BANDS).channels(['B8A', 'nir']) == [12, 7]
    assert BandSet(OSCD_BANDS).channels(['B8A', 'nir']) == [8, 7]
    assert BandSet.from_data(('VV', 'VH', 'B02', 'B04')).channels(['red']) == [3]


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: BandSet(['B13']), r"bands: 'B13' is not a band of sentinel2"),
        (lambda: BandSet(['reed']), r"Did you mean 'red'\?"),
        (lambda: BandSet(['red', 'B4']), r'bands: B04 is given more than once'),
        (
            lambda: BandSet(BIGEARTHNET_BANDS).channels(['B10']),
            r'bands: B10 not found in',
        ),
        (lambda: get_sensor('modis'), r"sensor: 'modis' is unknown. Use one of"),
    ],
)
def test_errors_name_argument_value_and_remedy(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_string_is_not_a_sequence_of_bands() -> None:
    with pytest.raises(TypeError, match=r"bands: .*got the string 'B04'"):
        BandSet('B04')


#: As published, in nm: ESA's table for Sentinel-2A; Barsi et al. (2014) for OLI, the
#: middle of USGS's ranges for TIRS.
PUBLISHED = {
    'sentinel2': {
        'B01': ('coastal', 442.7), 'B02': ('blue', 492.4), 'B03': ('green', 559.8),
        'B04': ('red', 664.6), 'B05': ('rededge1', 704.1), 'B06': ('rededge2', 740.5),
        'B07': ('rededge3', 782.8), 'B08': ('nir', 832.8), 'B8A': ('nir08', 864.7),
        'B09': ('nir09', 945.1), 'B10': ('cirrus', 1373.5), 'B11': ('swir1', 1613.7),
        'B12': ('swir2', 2202.4),
    },
    'landsat8': {
        'B1': ('coastal', 442.96), 'B2': ('blue', 482.04), 'B3': ('green', 561.41),
        'B4': ('red', 654.59), 'B5': ('nir', 864.67), 'B6': ('swir1', 1608.86),
        'B7': ('swir2', 2200.73), 'B8': ('pan', 589.5), 'B9': ('cirrus', 1373.43),
        'B10': ('lwir11', (10600 + 11190) / 2), 'B11': ('lwir12', (11500 + 12510) / 2),
    },
}  # fmt: skip

ALIASES = {
    'sentinel2': {
        'aerosol': 'B01', 'rededge': 'B05', 'rededge071': 'B05', 'rededge075': 'B06',
        'rededge078': 'B07', 'narrow_nir': 'B8A', 'water_vapour': 'B09',
        'swir16': 'B11', 'swir22': 'B12',
    },
    'landsat8': {
        'aerosol': 'B1', 'nir08': 'B5', 'swir16': 'B6', 'swir22': 'B7',
        'panchromatic': 'B8',
    },
}  # fmt: skip


@pytest.mark.parametrize('sensor', list(PUBLISHED))
def test_bands_are_as_published(sensor: str) -> None:
    published = get_sensor(sensor)
    assert published.name == sensor
    actual = {band.name: (band.common, band.wavelength) for band in published.bands}
    assert actual == {
        name: (common, math.floor(wave + 0.5))
        for name, (common, wave) in PUBLISHED[sensor].items()
    }
    assert {name: published.band(name).name for name in published.aliases} == ALIASES[
        sensor
    ]


def test_sensors_have_several_names() -> None:
    for name in ('sentinel2', 'sentinel-2', 'Sentinel-2'):
        assert get_sensor(name) is SENTINEL2
    for name in ('landsat8', 'landsat-8', 'landsat9', 'Landsat-9'):
        assert get_sensor(name) is LANDSAT8
    custom = Sensor('custom', (Band('X', 'x', 500.0),), {})
    assert get_sensor(custom) is custom
    assert BandSet(['x'], custom) == ('X',)


def test_names_a_sensor_does_not_know_stay_as_they_are() -> None:
    assert BandSet.from_data(['b4', 'VV', 'nir']) == ('B04', 'VV', 'B08')
    assert SENTINEL2.find('VV') is None


def test_names_of_other_kinds_are_spelled_freely_too() -> None:
    sensor = Sensor('radar', (Band('VV', 'copolarised', 5.5e7),), {})
    for name in ('VV', ' vv ', 'Copolarised'):
        assert sensor.band(name).name == 'VV'


def test_advice_names_all_there_is() -> None:
    names = ', '.join(PUBLISHED['landsat8'])
    commons = [common for common, _ in PUBLISHED['landsat8'].values()]
    commons += list(ALIASES['landsat8'])
    for wrong, hint in (('REED', "Did you mean 'red'? "), ('SR_B12', ''), ('??', '')):
        with pytest.raises(ValueError, match='is not a band of landsat8') as caught:
            LANDSAT8.band(wrong)
        advice = f'Use one of {names}, or a common name: {", ".join(commons)}.'
        assert str(caught.value).endswith(advice)
        if hint or wrong == '??':
            assert str(caught.value).endswith(f'landsat8. {hint}{advice}')
    with pytest.raises(ValueError, match=r"Did you mean 'B8A'\?"):
        SENTINEL2.band('b8aa')


def test_band_orders() -> None:
    assert tuple(PUBLISHED['sentinel2']) == SENTINEL2_BANDS
    assert set(SENTINEL2_BANDS) - set(SENTINEL2_L2A_BANDS) == {'B10'}
    assert set(SENTINEL2_BANDS) - set(SENTINEL2_TEN_BANDS) == {'B01', 'B09', 'B10'}
    for order in (SENTINEL2_L2A_BANDS, SENTINEL2_TEN_BANDS, EUROSAT_BANDS[:-1]):
        assert list(order) == [band for band in SENTINEL2_BANDS if band in order]
