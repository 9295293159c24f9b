# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights of S2MAE and SatMAE for other bands."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torchgeo_sigmae import adapt_bands
from torchgeo_sigmae._compat import Classification
from torchgeo_sigmae.bands import LANDSAT8, SENTINEL2, SENTINEL2_BANDS, BandSet
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS as TEN
from torchgeo_sigmae.models import build_encoder
from torchgeo_sigmae.weights import Weights, load_weights, read_weights, write_weights
from torchgeo_sigmae.weights.tensors import interpolate_spectrum

pytestmark = pytest.mark.usefixtures('narrow_models')

S2MAE, SATMAE = 's2mae_vit_tiny_patch8', 'satmae_vit_tiny_patch8'
FIRST, SPECTRUM = 'patch_embed.proj.weight', 'spectral_embed'
GROUP = 'patch_embed.band_group'
#: Twelve bands: all but cirrus.
TWELVE = tuple(band for band in SENTINEL2_BANDS if band != 'B10')
LANDSAT = ('B2', 'B3', 'B4', 'B5', 'B6', 'B7')


def write(path: Path, name: str) -> Path:
    """A file of ten bands, its two blocks and positions random."""
    encoder = build_encoder(name, 10, 32)
    encoder.blocks = encoder.blocks[:2]
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    info = {
        'model': name,
        'bands': list(TEN),
        'sensor': 'sentinel2',
        'mean': [100.0 + i for i in range(10)],
        'std': [10.0 + i for i in range(10)],
        'scale': 1e-4,
        'offset': 0.0,
        'size': 32,
        'patch_size': 8,
    }
    write_weights(Weights(encoder.state_dict(), info=info), path)
    return path


@pytest.fixture(scope='module')
def s2mae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp('s2mae') / 'encoder.pth', S2MAE)


@pytest.fixture(scope='module')
def satmae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp('satmae') / 'encoder.pth', SATMAE)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / 'adapted.pth'


def tensors(path: Path) -> dict[str, Tensor]:
    return dict(read_weights(path).encoder)


def features(path: Path, image: Tensor) -> Tensor:
    encoder = build_encoder(read_weights(path).info['model'], image.shape[1])
    encoder.blocks = encoder.blocks[:2]
    load_weights(encoder.eval(), path)
    with torch.no_grad():
        return encoder(image)


def centers(bands: tuple[str, ...], sensor: Any, depth: int) -> np.ndarray:
    wavelengths = [sensor.band(band).wavelength for band in bands]
    return np.array(wavelengths).reshape(-1, depth).mean(axis=1)


#: Bands of one sensor, whose number is a multiple of two, in any order.
pairs = st.lists(
    st.sampled_from(SENTINEL2_BANDS), min_size=2, max_size=12, unique=True
).map(lambda bands: tuple(bands[: len(bands) // 2 * 2]))


@given(source=pairs, data=st.data(), landsat=st.booleans())
@settings(max_examples=80, deadline=None)
def test_interpolation_is_numpys(
    source: tuple[str, ...], data: st.DataObject, landsat: bool
) -> None:
    if landsat:
        names, sensor = ('B1', *LANDSAT, 'B9'), LANDSAT8
        target = tuple(data.draw(st.permutations(names)))
    else:
        target, sensor = data.draw(pairs), SENTINEL2
    share = interpolate_spectrum(BandSet(source), BandSet(target, sensor), 2)
    assert share.shape == (len(target) // 2, len(source) // 2)
    assert (share >= 0).all()
    torch.testing.assert_close(share.sum(1), torch.ones(len(share)).double())
    given, wanted = centers(source, SENTINEL2, 2), centers(target, sensor, 2)
    order = given.argsort()
    # Two cubes of one mean wavelength make a step, where any of both is right.
    if len(set(given)) == len(given):
        for values in (np.arange(len(given)), given):
            actual = share.numpy() @ values
            expected = np.interp(wanted, given[order], values[order])
            np.testing.assert_allclose(actual, expected, atol=1e-9)
        # Longer waves lie further along the cubes of the source.
        places = share.numpy() @ order.argsort()
        assert (np.diff(places[wanted.argsort()]) >= -1e-9).all()


def test_cubes_of_the_weights_keep_their_positions() -> None:
    share = interpolate_spectrum(BandSet(TEN), BandSet(TEN), 2)
    assert torch.equal(share, torch.eye(5).double())
    turned = TEN[2:4] + TEN[:2]
    share = interpolate_spectrum(BandSet(TEN), BandSet(turned), 2)
    assert torch.equal(share, torch.eye(5).double()[[1, 0]])
    # By the bands, not by the mean of their wavelengths: these cubes have one mean.
    twice = ('B02', 'B04', 'B04', 'B02')
    share = interpolate_spectrum(BandSet.from_data(twice), BandSet.from_data(twice), 2)
    assert torch.equal(share, torch.eye(2).double())
    # Beyond the ends, the first and the last.
    ends = ('B01', 'B01', 'B12', 'B12')
    inner = ('B03', 'B04', 'B08', 'B8A')
    share = interpolate_spectrum(BandSet(inner), BandSet.from_data(ends), 2)
    assert torch.equal(share, torch.eye(2).double())


@pytest.mark.parametrize(
    ('bands', 'sensor'),
    [
        (TEN, 'sentinel2'),
        (TWELVE, 'sentinel2'),
        (TEN[::-1], 'sentinel2'),
        (('B04', 'B08'), 'sentinel2'),
        (('red', 'green', 'blue', 'nir'), 'sentinel2'),
        (LANDSAT, 'landsat8'),
    ],
    ids=['same', 'twelve', 'reversed', 'two', 'four', 'landsat'],
)
def test_cubes_keep_their_kernel_and_move_in_the_spectrum(
    s2mae: Path, target: Path, bands: tuple[str, ...], sensor: str
) -> None:
    report = adapt_bands(s2mae, bands, target, sensor=sensor)
    before, after = tensors(s2mae), tensors(target)
    assert list(after) == list(before)
    for key, value in before.items():
        assert key == SPECTRUM or torch.equal(after[key], value), key
    target_sensor = LANDSAT8 if sensor == 'landsat8' else SENTINEL2
    names = BandSet(bands, target_sensor)
    expected = torch.stack(
        [
            torch.from_numpy(
                np.interp(
                    centers(names, target_sensor, 2),
                    centers(TEN, SENTINEL2, 2),
                    before[SPECTRUM][0, :, i].double().numpy(),
                )
            )
            for i in range(32)
        ],
        dim=1,
    )
    torch.testing.assert_close(after[SPECTRUM][0].double(), expected)
    if names == TEN:
        assert torch.equal(after[SPECTRUM], before[SPECTRUM])
    assert [band.band for band in report.bands] == list(names)
    assert all(sum(b.sources.values()) == pytest.approx(1) for b in report.bands)

    image = torch.randn(2, len(bands), 32, 32)
    assert features(target, image).shape == (2, 32)
    if len(bands) == 10 and names == TEN:
        assert torch.equal(features(target, image), features(s2mae, image))


def test_satmaes_bands_join_groups(satmae: Path, target: Path) -> None:
    assert tensors(satmae)[GROUP].tolist() == [0, 0, 0, 1, 1, 1, 0, 1, 2, 2]
    adapt_bands(satmae, TEN, target)
    before, after = tensors(satmae), tensors(target)
    assert all(torch.equal(after[key], value) for key, value in before.items())

    # B01 is nearest to blue, B09 to B8A, cirrus to B11; they start at zero.
    report = adapt_bands(satmae, SENTINEL2_BANDS, target)
    after = tensors(target)
    groups = dict(zip(SENTINEL2_BANDS, after[GROUP].tolist(), strict=True))
    previous = dict(zip(TEN, before[GROUP].tolist(), strict=True))
    assert groups == {**previous, 'B01': 0, 'B09': 1, 'B10': 2}
    assert torch.equal(after[SPECTRUM], before[SPECTRUM])
    for channel, band in enumerate(report.bands):
        if band.sources:
            expected = before[FIRST][:, TEN.index(band.band)]
            assert torch.equal(after[FIRST][:, channel], expected)
        else:
            assert not after[FIRST][:, channel].any()
    # So nothing changes until they are trained.
    image = torch.randn(2, 13, 32, 32)
    ten = [SENTINEL2_BANDS.index(band) for band in TEN]
    torch.testing.assert_close(
        features(target, image), features(satmae, image[:, ten]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ('bands', 'sensor', 'groups', 'kept'),
    [
        (('B12', 'B04'), 'sentinel2', [1, 0], [0, 2]),
        (('B05', 'B06', 'B8A'), 'sentinel2', [0, 0, 0], [1]),
        (('B11', 'B8A', 'B08', 'B02'), 'sentinel2', [2, 1, 0, 0], [0, 1, 2]),
        (LANDSAT, 'landsat8', [0, 0, 0, 0, 1, 1], [0, 2]),
    ],
)
def test_groups_without_a_band_are_dropped(
    satmae: Path,
    target: Path,
    bands: tuple[str, ...],
    sensor: str,
    groups: list[int],
    kept: list[int],
) -> None:
    adapt_bands(satmae, bands, target, sensor=sensor)
    before, after = tensors(satmae), tensors(target)
    assert after[GROUP].tolist() == groups
    assert torch.equal(after[SPECTRUM], before[SPECTRUM][:, kept])
    assert after[FIRST].shape == (32, len(bands), 8, 8)
    assert features(target, torch.randn(2, len(bands), 32, 32)).shape == (2, 32)


def test_satmaes_bands_stand_in_within_their_group(satmae: Path, target: Path) -> None:
    """B8A is near B08, but the kernel of B08 belongs to another token."""
    bands = tuple(band for band in TEN if band != 'B08')
    report = adapt_bands(satmae, bands, target)
    assert report.left_out == ('B08',)
    place = bands.index('B8A'), TEN.index('B8A')
    adapted, original = tensors(target)[FIRST], tensors(satmae)[FIRST]
    assert torch.equal(adapted[:, place[0]], original[:, place[1]])
    # Which changes nothing that an encoder without B08 sees.
    image = torch.randn(2, 10, 32, 32)
    image[:, TEN.index('B08')] = 0
    chosen = image[:, [TEN.index(band) for band in bands]]
    torch.testing.assert_close(features(target, chosen), features(satmae, image))


@pytest.mark.parametrize(
    ('family', 'order'),
    [
        ('satmae', [3, 8, 0, 6, 9, 1, 5, 2, 7, 4]),
        ('s2mae', [8, 9, 0, 1, 6, 7, 4, 5, 2, 3]),  # whole cubes
    ],
)
def test_the_order_of_bands_is_free(
    family: str, order: list[int], target: Path, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(family)
    adapt_bands(source, [TEN[i] for i in order], target)
    image = torch.randn(2, 10, 32, 32)
    torch.testing.assert_close(
        features(target, image[:, order]), features(source, image), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('family', ['s2mae', 'satmae'])
def test_two_dates_are_tokens_of_their_own(
    family: str, target: Path, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(family)
    adapt_bands(source, TWELVE, target)
    single = tensors(target)
    report = adapt_bands(source, TWELVE, target, dates=2)
    double = tensors(target)
    groups = single[SPECTRUM].shape[1]
    assert double[SPECTRUM].shape == (1, 2 * groups, 32)
    for half in double[SPECTRUM].chunk(2, dim=1):
        assert torch.equal(half, single[SPECTRUM])
    if family == 's2mae':
        assert torch.equal(double[FIRST], single[FIRST])
    else:
        for half in double[FIRST].chunk(2, dim=1):
            assert torch.equal(half, single[FIRST])
        first, second = double[GROUP].chunk(2)
        assert torch.equal(first, single[GROUP])
        assert torch.equal(second, first + groups)
    info = read_weights(target).info
    assert (info['in_channels'], info['dates']) == (24, 2)
    assert str(report).splitlines()[-1] == 'Every token, once for each date.'
    assert 'seen at their mean' not in str(report)

    # The dates are not told apart: swapped, they give the same mean.
    image = torch.randn(2, 24, 32, 32)
    swapped = torch.cat(image.chunk(2, dim=1)[::-1], dim=1)
    torch.testing.assert_close(
        features(target, image), features(target, swapped), rtol=1e-4, atol=1e-5
    )
    equal = image[:, :12].repeat(1, 2, 1, 1)
    assert features(target, equal).shape == (2, 32)
    with pytest.raises(ValueError, match='already adapted to 2 dates'):
        adapt_bands(target, TEN, target.with_name('x.pth'))


@pytest.mark.parametrize('family', ['s2mae', 'satmae'])
@pytest.mark.parametrize('dates', [1, 2])
def test_torchgeo_loads_adapted_files(
    family: str, dates: int, tmp_path: Path, target: Path
) -> None:
    name = {'s2mae': S2MAE, 'satmae': SATMAE}[family]
    encoder = build_encoder(name, 10, 32)
    nn.init.normal_(encoder.spectral_embed)
    info = {'model': name, 'bands': list(TEN), 'sensor': 'sentinel2'}
    write_weights(Weights(encoder.state_dict(), info=info), tmp_path / 'encoder.pth')
    bands = ('B02', 'B03', 'B04', 'B08', 'B11', 'B12')
    adapt_bands(tmp_path / 'encoder.pth', bands, target, dates=dates)
    task = Classification(
        model=name, weights=str(target), in_channels=6 * dates, num_classes=2
    )
    loaded = task.model.state_dict()
    for key, value in tensors(target).items():
        assert key == 'pos_embed' or torch.equal(loaded[key], value), key
    assert task(torch.randn(1, 6 * dates, 32, 32)).shape == (1, 2)
    # Cubes are counted by the encoder; of groups TorchGeo drops the first layer.
    cubes = family == 's2mae'
    message = f'Pass in_channels={6 * dates} and data' if cubes else 'adapt_bands'
    noticed = pytest.warns(UserWarning, match='input channels')
    with (
        nullcontext() if cubes else noticed,
        pytest.raises(ValueError, match=message),
    ):
        Classification(
            model=name, weights=str(target), in_channels=12 // dates, num_classes=2
        )


def test_what_is_carried_along(s2mae: Path, target: Path) -> None:
    report = adapt_bands(s2mae, ('b4', 'b8', 'b12', 'b1'), target)
    info = read_weights(target).info
    assert info['bands'] == ['B04', 'B08', 'B12', 'B01']
    assert info['mean'] == [102.0, 106.0, 109.0, None]
    assert (info['model'], info['size'], info['patch_size']) == (S2MAE, 32, 8)
    assert info['adapted_from']['left_out'] == list(report.left_out)
    assert report.left_out == ('B02', 'B03', 'B05', 'B06', 'B07', 'B8A', 'B11')
    assert 'from' in str(report).splitlines()[0]
    assert 'the cube of' in str(report)


@pytest.mark.parametrize(
    ('bands', 'arguments', 'message'),
    [
        (
            ('B04', 'B03', 'B02'),
            {},
            r'3 bands cannot be cut .*of 2 .*Pass 2 or 4 bands',
        ),
        (('B04',), {}, r'1 bands cannot be cut .*Pass 2 bands'),
        (('B04', 'VV'), {'method': 'zero'}, "'VV' is not a band of sentinel2"),
        (('B04', 'VV'), {}, "'VV' is not a band of sentinel2"),
        (('B04', 'B01'), {'method': 'name'}, 'bands: B01 of sentinel2 not among'),
        (('B2', 'B3'), {'sensor': 'landsat8', 'method': 'name'}, 'not among'),
    ],
)
def test_cubes_that_cannot_be_made(
    s2mae: Path,
    target: Path,
    bands: tuple[str, ...],
    arguments: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        adapt_bands(s2mae, bands, target, **arguments)
    assert not target.exists()


def test_bands_without_wavelength_join_the_last_group(
    satmae: Path, target: Path
) -> None:
    adapt_bands(satmae, ('B04', 'VV', 'B12'), target, method='zero')
    after = tensors(target)
    assert after[GROUP].tolist() == [0, 1, 1]
    assert not after[FIRST][:, 1].any()


def test_a_file_whose_bands_are_not_its_cubes_is_refused(
    tmp_path: Path, target: Path
) -> None:
    info = {'model': S2MAE, 'bands': list(TWELVE), 'sensor': 'sentinel2'}
    write_weights(
        Weights(build_encoder(S2MAE, 10, 32).state_dict(), info=info),
        tmp_path / 'x.pth',
    )
    with pytest.raises(ValueError, match='takes 10 channels, but it names 12 bands'):
        adapt_bands(tmp_path / 'x.pth', TEN, target)
