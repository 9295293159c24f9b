# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import copy
import pickle

import pytest
import torch
from torchgeo.datasets import EnMAP

from torchgeo_sigmae.bands import Band, BandSet, Sensor, get_sensor
from torchgeo_sigmae.sensors import BUILT_IN
from torchgeo_sigmae.transforms import spectral_indices

#: Red and near infrared as their operators number them.
RED_NIR = {
    'sentinel2': ('B4', 'B8'),
    'HLS-S30': ('B04', 'B08'),
    'HLS_L30': ('B04', 'B05'),
    'landsat8': ('SR_B4', 'SR_B5'),
    'landsat9': ('B4', 'B5'),
    'landsat7': ('SR_B3', 'SR_B4'),
    'landsat5': ('SR_B3', 'SR_B4'),
    'landsat4': ('B3', 'B4'),
    'planetscope': ('red', 'nir'),
    'naip': ('R', 'N'),
    'enmap': ('B48', 'B71'),
}


@pytest.mark.parametrize('sensor', list(RED_NIR))
def test_vegetation_is_green_on_every_sensor(sensor: str) -> None:
    bands = BandSet(RED_NIR[sensor], sensor)
    image = torch.tensor([0.03, 0.45]).view(2, 1, 1)
    ndvi = spectral_indices(image, bands, ['NDVI'])
    assert ndvi.item() == pytest.approx(0.42 / 0.48, abs=1e-6)


def test_wavelengths_rise_with_the_numbers_but_for_pan_and_thermal_bands() -> None:
    for sensor in BUILT_IN.values():
        waves = [
            band.wavelength or 0
            for band in sensor.bands
            if band.common not in ('pan', 'cirrus', 'nir09')
            and 'lwir' not in band.common
        ]
        if sensor.name not in ('naip', 'sentinel1'):
            assert waves == sorted(waves), sensor.name


def test_a_name_that_says_landsat_is_never_a_band_of_sentinel2() -> None:
    with pytest.raises(
        ValueError, match=r"'SR_B5' is not a band of sentinel2.*landsat5"
    ):
        BandSet(['SR_B5'])
    assert BandSet(['SR_B5'], 'landsat8').bands[0].common == 'nir'
    assert BandSet(['SR_B5'], 'landsat7').bands[0].common == 'swir1'
    with pytest.raises(ValueError, match="Or pass sensor='sentinel1'"):
        BandSet(['VV', 'B04'])


@pytest.mark.parametrize(
    ('names', 'sensor'),
    [
        (['VV', 'VH'], 'sentinel1'),
        (['red', 'nir'], 'sentinel2'),
        (['green_i', 'yellow'], 'planetscope'),
        (['SR_B4', 'ST_B10'], 'landsat8'),
    ],
)
def test_names_of_one_sensor_alone_select_it(names: list[str], sensor: str) -> None:
    assert BandSet(names).sensor == get_sensor(sensor)


def test_bands_of_enmap_have_its_wavelengths() -> None:
    enmap = get_sensor('EnMAP')
    assert len(enmap.bands) == 224
    for common, micrometers in (('red', 0.665), ('nir', 0.833), ('swir1', 1.614)):
        name = enmap.band(common).name
        assert EnMAP.wavelengths[name] == pytest.approx(micrometers, abs=0.006)
    assert BandSet(EnMAP.default_bands, 'enmap').wavelengths[0] == pytest.approx(
        418.416
    )


def test_any_sensor_takes_names_of_any_kind() -> None:
    bands = BandSet(['VV', 'slope', 'b17'], 'any')
    assert bands == ('VV', 'slope', 'b17')
    assert bands.wavelengths == [None, None, None]
    assert bands.channels(['slope']) == [1]
    image = torch.tensor([0.03, 0.45]).view(2, 1, 1)
    assert spectral_indices(image, BandSet(['red', 'nir'], 'any'), ['NDVI']) > 0.8


@pytest.mark.parametrize('name', [*BUILT_IN, 'enmap'])
def test_built_in_sensors_are_stored_by_name(name: str) -> None:
    sensor = get_sensor(name)
    assert isinstance(sensor.plain(), str)
    assert get_sensor(sensor.plain()) is sensor


def test_a_custom_sensor_is_stored_whole() -> None:
    sensor = Sensor(
        'custom', (Band('X', 'red', 500.0), Band('H', 'height')), {'rot': 'red'}
    )
    stored = sensor.plain()
    assert isinstance(stored, dict)
    assert get_sensor(stored) == sensor
    # One that borrows a built-in name is not taken for it.
    twin = Sensor('landsat8', sensor.bands)
    assert get_sensor(twin.plain()) == twin


def test_bands_survive_pickling_and_copying() -> None:
    bands = BandSet(['B4', 'B5'], 'landsat8')
    for other in (pickle.loads(pickle.dumps(bands)), copy.deepcopy(bands)):
        assert bands.matches(other)
    assert not bands.matches(BandSet(['B4', 'B5'], 'landsat7'))
    assert BandSet(bands) is bands
    assert repr(bands) == "BandSet(['B4', 'B5'], 'landsat8')"
