# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Whatever writes a file writes it whole or not at all, and says what went wrong."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from affine import Affine
from matplotlib.figure import Figure
from rasterio.windows import Window
from shapely.geometry import box

from helpers.faults import file_size_limit
from helpers.training import small_task
from torchgeo_sigmae import SIGMAE_Weights
from torchgeo_sigmae._files import (
    atomic_path,
    require_writable,
    write_figure,
    write_text,
)
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.datasets.synthetic import _write_chip
from torchgeo_sigmae.maps import write_regions
from torchgeo_sigmae.maps.windows import Grid
from torchgeo_sigmae.maps.write import write_geoparquet, write_map
from torchgeo_sigmae.weights import adapt_bands

#: The names files are hard to write under.
ODD = 'a #%?& ü name'

VALUES = np.random.default_rng(0).normal(size=(2, 64, 64)).astype('float32')
WINDOW = Window(0, 0, 64, 64)
GRID = Grid(64, 64, Affine.identity(), None)


def regions(path: Path) -> None:
    shapes = [box(i, 0, i + 1, 1) for i in range(200)]
    write_regions(gpd.GeoDataFrame(geometry=shapes, crs='EPSG:32632'), path)


def picture(path: Path) -> None:
    figure = Figure()
    figure.subplots().imshow(VALUES[0])
    write_figure(path, figure)


#: What writes a file, by its suffix: one for every place in the package that does.
WRITERS: dict[str, Callable[[Path], object]] = {
    'export.pth': lambda path: small_task().export(path),
    'adapt_bands.pth': lambda path: adapt_bands(
        SIGMAE_Weights.SENTINEL2, ['B04', 'B03', 'B02'], path
    ),
    'map.tif': lambda path: write_map(path, [(WINDOW, VALUES)], GRID, ['a', 'b'], {}),
    'embedding.parquet': lambda path: write_geoparquet(
        path, [(WINDOW, VALUES)], GRID, {}
    ),
    'chip.tif': lambda path: _write_chip(path, 'train', 0),
    'picture.png': picture,
    'regions.geojson': regions,
    'regions.gpkg': regions,
    'report.md': lambda path: write_text(path, 'ü' * 1000),
}


def list_all(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob('*')}


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> tuple[str, Callable[[Path], object]]:
    if request.param.endswith('.parquet'):
        pytest.importorskip('pyarrow')
    return request.param, WRITERS[request.param]


def test_any_name_will_do_and_folders_are_made(
    writer: tuple[str, Callable[[Path], object]], tmp_path: Path
) -> None:
    name, write = writer
    target = tmp_path / f'{ODD} folder' / f'{ODD} {name}'
    write(target)
    assert target.stat().st_size
    assert os.listdir(target.parent) == [target.name]


def test_a_full_disk_leaves_the_old_file_and_no_other(
    writer: tuple[str, Callable[[Path], object]], tmp_path: Path
) -> None:
    name, write = writer
    target = tmp_path / name
    target.write_text('before')
    with (
        file_size_limit(20),
        pytest.raises(OSError, match=re.escape(str(target))) as error,
    ):
        write(target)
    assert 'cannot be written' in str(error.value)
    assert list_all(tmp_path) == {name}
    assert target.read_text() == 'before'


@pytest.mark.parametrize('place', ['file', '/proc'])
def test_where_nobody_may_write(
    writer: tuple[str, Callable[[Path], object]], place: str, tmp_path: Path
) -> None:
    name, write = writer
    (tmp_path / 'file').write_text('')
    # Nobody may write to the second one, not even root.
    target = tmp_path / place / name
    with pytest.raises(OSError, match=rf'{re.escape(str(target))} cannot be written'):
        write(target)
    assert list_all(tmp_path) == {'file'}


def test_an_interrupted_file_is_not_there(tmp_path: Path) -> None:
    target = tmp_path / 'x.txt'
    write_text(target, 'before')

    def interrupted() -> None:
        with atomic_path(target) as part:
            part.write_text('half')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == 'before'
    assert list_all(tmp_path) == {'x.txt'}


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / 'folder').mkdir()
    os.mkfifo(tmp_path / 'pipe')
    for name in ('folder', 'pipe'):
        for function in (require_writable, lambda path: write_text(path, '')):
            with pytest.raises(
                OSError, match=rf'output: .*{name}.* not a regular file'
            ):
                function(tmp_path / name)
    require_writable(tmp_path / 'new' / 'x')
    assert list_all(tmp_path) == {'folder', 'pipe', 'new'}


def test_probe_says_so_before_it_computes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ['resnet18', '--root', str(tmp_path), '-o', '/proc/probe.json']
    with pytest.raises(SystemExit):
        main(['evaluate', 'features', *arguments])
    assert 'output: /proc/probe.json cannot' in capsys.readouterr().err
