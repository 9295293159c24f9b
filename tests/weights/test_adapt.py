# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights for other bands: what channels become, and what the encoder computes."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchgeo_sigmae import SIGMAETask, adapt_bands
from torchgeo_sigmae._compat import ChangeDetection, Classification
from torchgeo_sigmae.bands import (
    EUROSAT_BANDS,
    SENTINEL2,
    SENTINEL2_BANDS,
    SENTINEL2_L2A_BANDS,
    Band,
    BandSet,
    Sensor,
)
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS as TEN
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.models import build_encoder
from torchgeo_sigmae.weights import (
    BandReport,
    Weights,
    load_weights,
    read_weights,
    write_weights,
)
from torchgeo_sigmae.weights.matching import TOLERANCE

pytestmark = pytest.mark.usefixtures('narrow_models')

NAME = 'sigmae_vit_tiny_patch8'
FIRST = 'patch_embed.proj.weight'
LANDSAT = ('B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7')


def hyper_parameters(bands: tuple[str, ...], /, **more: object) -> dict[str, object]:
    return {
        'model': NAME,
        'in_channels': len(bands),
        'bands': list(bands),
        'sensor': 'sentinel2',
        'mean': [100.0 + i for i in range(len(bands))],
        'std': [10.0 + i for i in range(len(bands))],
        'scale': 1e-4,
        'offset': 0.0,
        'size': 32,
        'norm_pix_loss': False,
        'ssl_method': 'sigmae',
        **more,
    }


def save(encoder: torch.nn.Module, path: Path, info: dict[str, object]) -> None:
    write_weights(Weights(encoder.state_dict(), info=info), path)


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of ten bands."""
    path = tmp_path_factory.mktemp('source') / 'encoder.pth'
    torch.manual_seed(1)
    save(build_encoder(NAME, 10, 32), path, hyper_parameters(TEN))
    return path


@pytest.fixture(scope='module')
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of one block, quick to write."""
    path = tmp_path_factory.mktemp('shallow') / 'encoder.pth'
    encoder = build_encoder(NAME, 10, 32)
    encoder.blocks = encoder.blocks[:1]
    save(encoder, path, hyper_parameters(TEN))
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / 'a folder' / 'adapted.pth'


def first_layer(path: Path) -> Tensor:
    return read_weights(path).encoder[FIRST]


def features(path: Path, image: Tensor) -> Tensor:
    encoder = build_encoder(NAME, image.shape[1], 32).eval()
    load_weights(encoder, path)
    with torch.no_grad():
        return encoder.forward_features(image)


def equivalent(image: Tensor, report: BandReport) -> Tensor:
    """What the original ten-band encoder is shown: the report, read as a recipe."""
    shown = torch.zeros(len(image), 10, *image.shape[2:])
    for channel, band in enumerate(report.bands):
        for name, share in band.sources.items():
            shown[:, TEN.index(name)] += share * image[:, channel]
    return shown


@pytest.mark.parametrize(
    'bands',
    [
        ('B04', 'B03', 'B02'),
        ('red', 'green', 'blue', 'nir08'),
        ('B02', 'B03', 'B04', 'B8A', 'B11', 'B12'),
        TEN[::-1],
        SENTINEL2_L2A_BANDS,
        SENTINEL2_BANDS,
        EUROSAT_BANDS,
    ],
    ids=len,
)
@pytest.mark.parametrize('method', ['auto', 'name'])
def test_channels_are_picked_by_name(
    source: Path, target: Path, bands: tuple[str, ...], method: str
) -> None:
    names = BandSet(bands)
    new = set(names) - set(TEN)
    if method == 'name' and new:
        with pytest.raises(ValueError, match=f'bands: {sorted(new)[0]}.*not among'):
            adapt_bands(source, bands, target, method=method)
        assert not target.exists()
        return
    report = adapt_bands(source, bands, target, method=method)
    before, after = first_layer(source), first_layer(target)
    assert after.shape == (32, len(bands), 8, 8)
    for channel, name in enumerate(names):
        if name in new:
            assert not after[:, channel].any()
        elif method == 'auto' and name == 'B8A' and 'B08' not in names:
            both = before[:, TEN.index('B8A')] + before[:, TEN.index('B08')]
            torch.testing.assert_close(after[:, channel], both)
        else:
            assert torch.equal(after[:, channel], before[:, TEN.index(name)])
    # All else is untouched.
    old, adapted = read_weights(source).encoder, read_weights(target).encoder
    assert list(adapted) == list(old)
    assert all(torch.equal(adapted[key], old[key]) for key in old if key != FIRST)

    image = torch.randn(2, len(bands), 32, 32)
    torch.testing.assert_close(
        features(target, image),
        features(source, equivalent(image, report)),
        rtol=1e-4,
        atol=1e-4,
    )


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(bands=st.lists(st.sampled_from(TEN), min_size=1, unique=True), data=st.data())
def test_the_order_of_bands_is_free(
    shallow: Path, target: Path, bands: list[str], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(bands))))
    adapt_bands(shallow, bands, target)
    there = first_layer(target)
    adapt_bands(shallow, [bands[i] for i in order], target)
    assert torch.equal(first_layer(target), there[:, order])
    # Everything of the source is used once at most.
    sources = read_weights(target).info['adapted_from']['sources']
    for band in TEN:
        assert sum(shares.get(band, 0) for shares in sources.values()) in (0, 1)


def test_back_and_forth(source: Path, target: Path, tmp_path: Path) -> None:
    adapt_bands(source, EUROSAT_BANDS, target)
    adapt_bands(target, TEN, tmp_path / 'back.pth')
    first, back = read_weights(source), read_weights(tmp_path / 'back.pth')
    for key, value in first.encoder.items():
        assert torch.equal(back.encoder[key], value)
    for key in ('bands', 'mean', 'std', 'scale', 'sensor', 'in_channels', 'model'):
        assert back.info[key] == first.info[key]


@pytest.mark.parametrize('sensor', ['landsat8', 'Landsat-9'])
def test_landsat_is_matched_by_wavelength(
    source: Path, target: Path, sensor: str
) -> None:
    """The numbers of Landsat mean other light: its B5 is near infrared."""
    bands = (*LANDSAT, 'pan', 'B9', 'B10')
    report = adapt_bands(source, bands, target, sensor=sensor)
    assert {band.band: list(band.sources) for band in report.bands} == {
        'B1': [],
        'B2': ['B02'],
        'B3': ['B03'],
        'B4': ['B04'],
        'B5': ['B08', 'B8A'],
        'B6': ['B11'],
        'B7': ['B12'],
        'B8': [],
        'B9': [],
        'B10': [],
    }
    assert report.left_out == ('B05', 'B06', 'B07')
    image = torch.randn(2, 10, 32, 32)
    torch.testing.assert_close(
        features(target, image),
        features(source, equivalent(image, report)),
        rtol=1e-4,
        atol=1e-4,
    )
    info = read_weights(target).info
    assert info['sensor'] == 'landsat8'
    assert info['mean'] == info['std'] == [None] * 10
    assert info['scale'] is info['offset'] is None
    with pytest.raises(ValueError, match='B2, B3 of landsat8 not among'):
        adapt_bands(source, ('B2', 'B3'), target, sensor=sensor, method='name')


def test_landsats_cirrus_and_coastal_bands_have_counterparts(
    tmp_path: Path, target: Path
) -> None:
    path = tmp_path / 'thirteen.pth'
    encoder = build_encoder(NAME, 13, 32)
    save(encoder, path, hyper_parameters(SENTINEL2_BANDS))
    report = adapt_bands(path, ('coastal', 'cirrus'), target, sensor='landsat8')
    assert [list(band.sources) for band in report.bands] == [['B01'], ['B10']]


def test_the_tolerance_tells_sentinel2s_bands_apart() -> None:
    close = {
        (one.name, other.name)
        for one in SENTINEL2.bands
        for other in SENTINEL2.bands
        if one.wavelength < other.wavelength
        and other.wavelength - one.wavelength <= TOLERANCE * other.wavelength
    }
    assert close == {('B08', 'B8A')}


def test_bands_equally_near_share(source: Path, target: Path) -> None:
    """Of a sensor of one's own: two bands of one color are averaged."""
    twin = Sensor(
        'twin',
        (
            Band('R1', 'red', 660.0),
            Band('R2', 'red2', 670.0),
            Band('X', 'x', 5000.0),
        ),
        {},
    )
    report = adapt_bands(source, ('R1', 'R2', 'X'), target, sensor=twin)
    assert [band.sources for band in report.bands] == [{'B04': 0.5}, {'B04': 0.5}, {}]
    half = first_layer(source)[:, TEN.index('B04')] / 2
    after = first_layer(target)
    assert torch.equal(after[:, 0], half)
    assert torch.equal(after[:, 1], half)
    assert str(report.bands[0]) == 'R1 from 0.5 x B04.'

    again = target.with_name('again.pth')
    adapt_bands(target, ('R2',), again, sensor=twin)
    # R1 is left out, and R2 is near enough to stand in for it.
    assert torch.equal(first_layer(again)[:, 0], 2 * half)
    # The file tells the wavelengths of that sensor.
    adapt_bands(target, ('B04',), again)
    assert torch.equal(first_layer(again)[:, 0], 2 * half)
    # One of the first edition tells only its name.
    save(build_encoder(NAME, 1, 32), target, hyper_parameters(('R1',), sensor='twin'))
    with pytest.raises(ValueError, match=r"sensor 'twin', whose wavelengths .*Pass"):
        adapt_bands(target, ('B04',), again)


@pytest.mark.parametrize('dates', [2, 4])
def test_equal_dates_give_the_activations_of_one(
    source: Path, target: Path, dates: int
) -> None:
    bands = ('B04', 'B03', 'B02', 'B10')
    adapt_bands(source, bands, target)
    image = torch.randn(2, 4, 32, 32)
    expected = features(target, image)
    adapt_bands(source, bands, target, dates=dates)
    after = first_layer(target)
    assert after.shape == (32, 4 * dates, 8, 8)
    assert torch.equal(after[:, :4], after[:, 4:8])
    torch.testing.assert_close(
        features(target, image.repeat(1, dates, 1, 1)), expected, rtol=1e-4, atol=1e-4
    )
    info = read_weights(target).info
    assert info['in_channels'] == 4 * dates
    assert info['dates'] == dates
    assert info['bands'] == list(bands)
    with pytest.raises(ValueError, match=f"already adapted to {dates}.*'encoder.pth'"):
        adapt_bands(target, bands, target.with_name('x.pth'))
    with pytest.raises(ValueError, match=f'already adapted to {dates} dates'):
        SIGMAETask(NAME, str(target), bands=('B04', 'B03', 'B02', 'B10'), size=32)


def test_report(source: Path, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger('lightning.pytorch.utilities.rank_zero')
    logger.addHandler(caplog.handler)
    # By name: benchmarks that ran in this process before may have quietened it.
    with caplog.at_level(logging.INFO, logger=logger.name):
        report = adapt_bands(source, ('b8', 'b4', 'b10'), target, dates=2)
    logger.removeHandler(caplog.handler)
    lines = [
        'B08 from B08 + B8A.',
        'B04 from B04.',
        'B10: new, starts at zero.',
        'Left out, seen at their mean: B02, B03, B05, B06, B07, B11, B12.',
        'Every weight 1/2, once for each date.',
    ]
    assert str(report).splitlines() == lines
    said = list(dict.fromkeys(record.getMessage() for record in caplog.records))
    assert said == lines
    info = read_weights(target).info
    assert info['mean'] == [106.0, 102.0, None]
    assert info['std'] == [16.0, 12.0, None]
    assert info['scale'] == 1e-4
    assert info['ssl_method'] == 'sigmae'
    assert info['adapted_from'] == {
        'weights': 'encoder.pth',
        'bands': list(TEN),
        'sensor': 'sentinel2',
        'method': 'auto',
        'sources': {'B08': {'B08': 1.0, 'B8A': 1.0}, 'B04': {'B04': 1.0}, 'B10': {}},
        'left_out': ['B02', 'B03', 'B05', 'B06', 'B07', 'B11', 'B12'],
    }


def test_other_channels_start_at_zero_where_allowed(source: Path, target: Path) -> None:
    bands = ('B04', 'VV', 'VH', 'b03')
    report = adapt_bands(source, bands, target, method='zero')
    assert [band.band for band in report.bands] == ['B04', 'VV', 'VH', 'B03']
    assert not first_layer(target)[:, 1:3].any()
    with pytest.raises(ValueError, match=r"'VV' is not a band .*method='zero'"):
        adapt_bands(source, bands, target)
    with pytest.raises(ValueError, match='more than once'):
        adapt_bands(source, ('B04', 'VV', 'VV'), target, method='zero')
    with pytest.raises(ValueError, match='B04 is given more than once'):
        adapt_bands(source, ('B04', 'b4', 'VV'), target, method='zero')
    with pytest.raises(ValueError, match=r"none of \['VV'\] has a counterpart"):
        adapt_bands(source, ('VV',), target, method='zero')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'bands': ('B10', 'B01')}, r"none of \['B10', 'B01'\] has a counterpart"),
        ({'bands': ()}, 'no band is given'),
        ({'bands': ('B04', 'red')}, 'B04 is given more than once'),
        ({'method': 'mean'}, "method: 'mean' is unknown"),
        ({'dates': 0}, 'dates: 0 must be at least 1'),
        ({'sensor': 'modis'}, "sensor: 'modis' is unknown"),
    ],
)
def test_wrong_arguments(
    source: Path, target: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        adapt_bands(
            **{'weights': source, 'bands': ('B04',), 'path': target} | arguments
        )
    assert not target.exists()


def test_one_string_is_no_sequence_of_bands(source: Path, target: Path) -> None:
    for method in ('auto', 'zero'):
        with pytest.raises(TypeError, match='expected a sequence of names'):
            adapt_bands(source, 'B04', target, method=method)


def test_weights_that_cannot_be_adapted(source: Path, target: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(ValueError, match='is the file of the weights themselves'):
        adapt_bands(source, ('B04',), source.parent / '.' / source.name)
    assert source.read_bytes() == before
    with pytest.raises(FileNotFoundError, match='neither a file nor the name'):
        adapt_bands('nothing.pth', ('B04',), target)

    other = target.with_name('other.pth')
    for info in ({'bands': None}, {'sensor': None}):
        save(build_encoder(NAME, 10, 32), other, hyper_parameters(TEN, **info))
        with pytest.raises(ValueError, match='does not name its bands'):
            adapt_bands(other, ('B04',), target)
    save(build_encoder(NAME, 4, 32), other, hyper_parameters(TEN))
    with pytest.raises(ValueError, match='takes 4 channels, but it names 10 bands'):
        adapt_bands(other, ('B04',), target)
    save(torch.nn.Linear(2, 2), other, hyper_parameters(TEN))
    with pytest.raises(ValueError, match='there is no first layer'):
        adapt_bands(other, ('B04',), target)


def test_statistics_that_are_not_those_of_bands_are_dropped(
    tmp_path: Path, target: Path
) -> None:
    path = tmp_path / 'encoder.pth'
    save(build_encoder(NAME, 10, 32), path, hyper_parameters(TEN, mean=0.0))
    adapt_bands(path, ('B04',), target)
    assert read_weights(target).info['mean'] == [None]
    assert read_weights(target).info['std'] == [12.0]


def test_torchgeo_loads_adapted_files_and_refuses_others(
    source: Path, target: Path
) -> None:
    adapt_bands(source, ('B04', 'B03', 'B02'), target)
    task = Classification(
        model=NAME, weights=str(target), in_channels=3, num_classes=10
    )
    loaded = task.model.state_dict()
    for key, value in read_weights(target).encoder.items():
        assert key == 'pos_embed' or torch.equal(loaded[key], value)
    with (
        pytest.warns(UserWarning, match='input channels 3 != input channels'),
        pytest.raises(ValueError, match=r'\(32, 3, 8, 8\).*adapt_bands'),
    ):
        Classification(model=NAME, weights=str(source), in_channels=3, num_classes=10)
    model = timm.create_model(NAME, in_chans=3, num_classes=0)
    with pytest.raises(ValueError, match=r'in_channels=10 .*adapt_bands'):
        model.load_state_dict(read_weights(source).encoder)


def test_torchgeos_early_fusion_takes_two_dates(source: Path, target: Path) -> None:
    adapt_bands(source, ('B04', 'B03', 'B02'), target, dates=2)
    task = ChangeDetection(
        model='unet', backbone=NAME, weights=str(target), in_channels=3
    ).eval()
    loaded = dict(task.model.encoder.named_parameters())
    assert any(torch.equal(tensor, first_layer(target)) for tensor in loaded.values())
    first, second = torch.randn(2, 1, 3, 64, 64)
    dates = torch.stack([torch.cat([first, second], 1), torch.cat([second, first], 1)])
    with torch.no_grad():
        assert task(dates[0]).shape == (1, 1, 64, 64)
        there, back = map(task.model.encoder, dates)
    # The first layer starts with the mean of both dates, as the docs say: tokens, in
    # front of the pixels, are equal.
    for one, other in zip(there[1:], back[1:], strict=True):
        torch.testing.assert_close(one[:, :32], other[:, :32], rtol=1e-4, atol=1e-4)
    adapt_bands(source, ('B04', 'B03', 'B02'), target)
    with pytest.raises(ValueError, match='dates=2'):
        ChangeDetection(model='unet', backbone=NAME, weights=str(target), in_channels=3)


def test_our_task_takes_adapted_files_and_adapts_others(
    source: Path, target: Path
) -> None:
    bands = ('B04', 'B08', 'B11', 'B03')
    adapt_bands(source, bands, target)
    task = SIGMAETask(NAME, str(target), bands=bands, size=32)
    assert torch.equal(task.model.encoder.patch_embed.proj.weight, first_layer(target))
    task = SIGMAETask(NAME, str(source), bands=bands, size=32)
    for key, value in read_weights(target).encoder.items():
        assert torch.equal(task.model.encoder.state_dict()[key], value), key
    with pytest.raises(ValueError, match=r"none of \['B10', 'B01'\] has a counterpart"):
        SIGMAETask(NAME, str(source), bands=('B10', 'B01'), size=32, indices=())
    with pytest.raises(ValueError, match=r'differently shaped .*adapt_bands'):
        load_weights(build_encoder(NAME, 4, 32), source)


def test_one_name_on_two_sensors_is_not_one_band(source: Path, target: Path) -> None:
    """B5 is near infrared on Landsat and red edge on Sentinel-2."""
    adapt_bands(source, ('B3', 'B4', 'B5', 'B6'), target, sensor='landsat8')
    encoder = build_encoder(NAME, 4, 32)
    load_weights(encoder, target, ('B03', 'B04', 'B05', 'B06'))
    kernel = encoder.patch_embed.proj.weight
    assert torch.equal(kernel[:, :2], first_layer(target)[:, :2])
    assert not kernel[:, 2:].any()
    load_weights(encoder, target, BandSet(('B3', 'B4', 'B5', 'B6'), 'landsat9'))
    assert torch.equal(encoder.patch_embed.proj.weight, first_layer(target))
    # A file that does not name its bands is checked by its shape alone.
    save(encoder, target, {'model': NAME})
    load_weights(encoder, target, ('B03', 'B04', 'B05', 'B06'))
    sensor = Sensor('own', (Band('A', 'a', 660.0),), {})
    save(build_encoder(NAME, 1, 32), target, hyper_parameters(('A',), sensor='own'))
    load_weights(build_encoder(NAME, 1, 32), target, BandSet(('A',), sensor))


def test_from_the_command_line(
    source: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            *('adapt-bands', str(source), '--bands', 'B4', 'B5', '-o', str(target)),
            *('--dates', '2', '--sensor', 'landsat8'),
        ]
    )
    assert f'Wrote {target}' in capsys.readouterr().out
    info = read_weights(target).info
    assert (info['in_channels'], info['sensor']) == (4, 'landsat8')
    with pytest.raises(SystemExit):
        main(['adapt-bands', str(source), '--bands', 'VV', '-o', str(target)])
    assert "'VV' is not a band of sentinel2" in capsys.readouterr().err
