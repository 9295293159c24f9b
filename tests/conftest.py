# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Shared fixtures, and an honest count of what ran on real data."""

import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin
from torch.utils.data import DataLoader
from torchgeo.datasets import SSL4EOS12

from helpers.training import narrow_encoders
from torchgeo_sigmae.bands import OSCD_BANDS
from torchgeo_sigmae.datasets import (
    SyntheticSentinel2,
    SyntheticSentinel2DataModule,
    find_scenes,
)
from torchgeo_sigmae.datasets.pack_sources import SceneSource
from torchgeo_sigmae.datasets.packing import write_pack

mpl.use('Agg')

_DATA = Path(
    os.environ.get('SIGMAE_DATA', Path(__file__).parents[1].parent / 'shared' / 'data')
)


#: Methods that Lightning replaces for a while; None where the class has none itself.
_LOADER = {
    name: DataLoader.__dict__.get(name)
    for name in ('__init__', '__setattr__', '__delattr__')
}


@pytest.fixture(autouse=True)
def plain_loaders() -> Iterator[None]:
    """Restore DataLoader, which Lightning leaves wrapped where a loader's hook raises.

    The next positional ``DataLoader(dataset, 16)`` of the process would fail.
    """
    yield
    for name, plain in _LOADER.items():
        if plain is not None:
            setattr(DataLoader, name, plain)
        elif name in DataLoader.__dict__:
            delattr(DataLoader, name)
        if f'__old{name}' in DataLoader.__dict__:
            delattr(DataLoader, f'__old{name}')


@pytest.fixture(scope='session')
def real_data() -> Callable[[str], Path]:
    """Find a folder of the real data; whoever asks for it is counted."""
    return _find


def _find(folder: str) -> Path:
    path = _DATA / folder
    if not path.is_dir():
        reason = f'no real data at {path}; set SIGMAE_DATA to the folder that holds it'
        if os.environ.get('SIGMAE_REQUIRE_DATA') == '1':
            pytest.fail(f'SIGMAE_REQUIRE_DATA=1, but {reason}')
        pytest.skip(reason)
    return path


@pytest.fixture(scope='session')
def eurosat_root(real_data: Callable[[str], Path]) -> Path:
    return real_data('eurosat')


@pytest.fixture(scope='session')
def bigearthnet_root(real_data: Callable[[str], Path]) -> Path:
    return real_data('bigearthnet')


@pytest.fixture(scope='session')
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real GeoTIFFs of the embedded default, generated once per session."""
    root = tmp_path_factory.mktemp('synthetic')
    for split in ('train', 'val', 'test'):
        SyntheticSentinel2(root, split)
    return root


@pytest.fixture(scope='session')
def packed_root(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of the same chips, in five shards."""
    root = tmp_path_factory.mktemp('packed')
    folder = synthetic_root / 'synthetic_sentinel2'
    splits = {name: find_scenes(folder / name) for name in ('train', 'val', 'test')}
    shard = 64 * 4 * 10 * 64**2
    write_pack(SceneSource(splits, 64), root, shard, saliency=True)
    return root


@pytest.fixture
def synthetic(synthetic_root: Path) -> SyntheticSentinel2DataModule:
    return SyntheticSentinel2DataModule(root=synthetic_root, batch_size=32)


@pytest.fixture(scope='session')
def scene(synthetic_root: Path) -> Callable[[int, int], np.ndarray]:
    """Smooth digital numbers (13, size, size) in OSCD's band order, from our chips."""
    chips = SyntheticSentinel2(synthetic_root, 'val', SyntheticSentinel2.all_bands)

    def make(index: int, size: int) -> np.ndarray:
        chip = chips[index]['image']
        cirrus = 10 + chip[9:10] / 500
        image = torch.cat([chip[:10], cirrus, chip[10:]])[None]
        image = torch.nn.functional.interpolate(image, (size, size), mode='bilinear')
        return image[0].round().numpy().astype('uint16')

    return make


@pytest.fixture(scope='session')
def oscd_root(
    scene: Callable[[int, int], np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """OSCD as its archives unpack: five training and two test regions of 80 px.

    The second date is the first plus 20 DN, plus another 500 where the label says
    change. Region 0 has no data on the first date in columns 36 to 43, which is in
    every crop of 64 px.
    """
    root = tmp_path_factory.mktemp('oscd')
    name = 'Onera Satellite Change Detection dataset - '
    for index in range(7):
        region = f'region{index}'
        images = root / f'{name}Images' / region
        split = 'Train' if index < 5 else 'Test'
        label = root / f'{name}{split} Labels' / region / 'cm' / 'cm.png'
        first = scene(index, 80)
        change = np.zeros((80, 80), bool)
        change[12 + 5 * index : 30 + 5 * index, 20:50] = True
        second = first + 20 + 500 * change.astype('uint16')
        if index == 0:
            first[:, :, 36:44] = 0
        for date, image in enumerate((first, second), start=1):
            for band, array in zip(OSCD_BANDS, image, strict=True):
                _write(images / f'imgs_{date}_rect' / f'T32TQM_{band}.tif', array)
        (images / 'dates.txt').write_text('date_1: 20160914\ndate_2: 20180412\n')
        label.parent.mkdir(parents=True)
        Image.fromarray(change.astype('uint8') * 255).save(label)
    return root


@pytest.fixture(scope='session')
def ssl4eo_files(
    scene: Callable[[int, int], np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """SSL4EO-S12 as its archives unpack: three places on two dates.

    264 px at 10 m, 132 at 20 m, 44 at 60 m. Place 0 has no data on the first date in
    the northernmost 24 px.
    """
    root = tmp_path_factory.mktemp('ssl4eo')
    sizes = {'B1': 44, 'B9': 44, 'B10': 44, 'B2': 264, 'B3': 264, 'B4': 264, 'B8': 264}
    for split in ('s2c', 's2a'):
        for place in range(3):
            for date in range(2):
                when = f'2020{3 * date + 3:02}07T101559'
                folder = root / split / f'{place:07}' / f'{when}_{when}_T32TQM'
                image = scene(10 + 2 * place + date, 264)
                if (place, date) == (0, 0):
                    image[:, :24] = 0
                for band, array in zip(OSCD_BANDS, image, strict=True):
                    name = band.replace('B0', 'B')
                    if name in SSL4EOS12.metadata[split]['bands']:
                        step = 264 // sizes.get(name, 132)
                        _write(folder / f'{name}.tif', array[::step, ::step])
    return root


def _write(path: Path, array: np.ndarray) -> None:
    """Write one band as a GeoTIFF of 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        width=array.shape[1],
        height=array.shape[0],
        count=1,
        dtype='uint16',
        crs='EPSG:32632',
        transform=from_origin(500_000, 5_400_000, 10, 10),
    ) as file:
        file.write(array, 1)


@pytest.fixture
def ssl4eo_root(ssl4eo_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, where the dataset counts three places and takes dates in order."""
    # TorchGeo's dataset always has the length of the full archive, as its tests know.
    monkeypatch.setattr(SSL4EOS12, '__len__', lambda self: 3)
    monkeypatch.setattr('random.sample', lambda names, count: sorted(names)[:count])
    return ssl4eo_files


@pytest.fixture(scope='module')
def narrow_models() -> Iterator[None]:
    """Narrow encoders in every test of a module that asks for them once."""
    with narrow_encoders():
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for real data."""
    for item in items:
        if 'real_data' in getattr(item, 'fixturenames', ()):
            item.add_marker('real_data')


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> None:
    """Say how much ran on real data, and on what."""
    counts = {
        outcome: sum(
            # What could not even be collected has none.
            'real_data' in getattr(report, 'keywords', ())
            for report in terminalreporter.stats.get(outcome, [])
            if getattr(report, 'when', '') == 'call' or outcome in ('skipped', 'error')
        )
        for outcome in ('passed', 'failed', 'error', 'skipped')
    }
    ran = counts['passed'] + counts['failed']
    terminalreporter.section('environment')
    terminalreporter.line(
        f'real-data tests: {ran} ran, {counts["skipped"]} skipped, '
        f'{counts["error"]} could not start (data: {_DATA})'
    )
    packages = ('torchgeo', 'torch', 'lightning', 'kornia', 'timm')
    versions = ', '.join(f'{name} {version(name)}' for name in packages)
    terminalreporter.line(f'Python {platform.python_version()}, {versions}')
