# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps from the command line."""

import warnings
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from matplotlib.figure import Figure
from PIL import Image
from rasterio.control import GroundControlPoint
from shapely import box

from helpers.geotiffs import write
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.maps import open_raster
from torchgeo_sigmae.maps.pictures import embedding_picture, saliency_picture


@pytest.fixture
def scene_file(scene: Callable[[int, int], np.ndarray], tmp_path: Path) -> Path:
    """Ten bands of 90 x 120 pixels."""
    image = scene(1, 120)[[1, 2, 3, 4, 5, 6, 7, 8, 11, 12], :90]
    return write(tmp_path / 'a scene.tif', image, SENTINEL2_TEN_BANDS, east=5e5)


def test_saliency_of_one_scene(
    scene_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'new' / 'saliency.tif'
    regions = tmp_path / 'regions.gpkg'
    main(
        [
            'map', 'saliency', str(scene_file), '-o', str(out), '--png', '--indices',
            'NDVI', 'EVI', '--polygons', str(regions), '--threshold', '0.8',
        ]
    )  # fmt: skip
    png = out.with_suffix('.png')
    assert capsys.readouterr().out == f'Wrote {out}, {regions}, {png}.\n'
    with rasterio.open(out) as file:
        assert file.shape == (12, 15)
        assert file.descriptions[:2] == ('NDVI', 'EVI')
        assert file.crs.to_epsg() == 32632
    assert gpd.read_file(regions).patches.sum() == 36
    with Image.open(png) as picture:
        assert picture.width > 800
    assert {path.name for path in out.parent.iterdir()} == {out.name, png.name}


def test_ground_control_points_stay(scene_file: Path, tmp_path: Path) -> None:
    """A scene that has nothing else: its maps say where they are as well."""
    with rasterio.open(scene_file) as file:
        array, names = file.read(), file.descriptions
    path = write(tmp_path / 'gcp.tif', array, names)
    corners = ((0, 0), (0, 120), (90, 0), (90, 120))
    points = [
        GroundControlPoint(row, column, 15 + column * 1e-4, 45 - row * 1e-4)
        for row, column in corners
    ]
    with rasterio.open(path, 'r+') as file:
        file.gcps = points, rasterio.CRS.from_epsg(4326)
    saliency, embedding, similar = (tmp_path / f'{n}.tif' for n in 'abc')
    main(['map', 'saliency', str(path), '-o', str(saliency)])
    main(['map', 'embedding', str(path), '-o', str(embedding)])
    main(['map', 'similarity', str(embedding), '--at', '3', '3', '-o', str(similar)])
    for made in (saliency, embedding, similar):
        with rasterio.open(made) as file:
            actual, crs = file.gcps
        assert crs == 'EPSG:4326'
        for point, (row, column) in zip(actual, corners, strict=True):
            assert (point.row, point.col) == (row / 8, column / 8)
            assert (point.x, point.y) == (15 + column * 1e-4, 45 - row * 1e-4)


def test_implausible_values_warn(scene_file: Path, tmp_path: Path) -> None:
    with rasterio.open(scene_file) as file:
        array, names = file.read(), file.descriptions
    path = str(write(tmp_path / 'x.tif', array * np.float32(1e-4), names, east=5e5))
    with pytest.warns(UserWarning, match=r'scale, offset: the reflectance of .*x\.tif'):
        main(['map', 'saliency', path, '-o', str(tmp_path / 'a.tif')])
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='scale, offset')
        main(['map', 'saliency', path, '-o', str(tmp_path / 'b.tif'), '--scale', '1'])
        main(['map', 'saliency', str(scene_file), '-o', str(tmp_path / 'c.tif')])
    with (
        rasterio.open(tmp_path / 'b.tif') as scaled,
        rasterio.open(tmp_path / 'c.tif') as plain,
    ):
        np.testing.assert_allclose(scaled.read(1), plain.read(1), atol=1e-5)


def test_several_scenes_in_an_area(scene_file: Path, tmp_path: Path) -> None:
    with rasterio.open(scene_file) as file:
        write(tmp_path / 'b.tif', file.read(), file.descriptions, east=5e5)
    aoi = tmp_path / 'aoi.geojson'
    area = gpd.GeoSeries(
        [box(500_100, 5_399_500, 500_500, 5_399_900)], crs='EPSG:32632'
    )
    area.to_crs('EPSG:4326').to_file(aoi)
    out = tmp_path / 'out'
    main(
        ['map', 'saliency', f'{tmp_path}/*.tif', '-o', str(out), '--aoi', str(aoi),
         '--polygons', 'any.geojson']
    )  # fmt: skip
    names = {'a scene_saliency', 'b_saliency'}
    assert {path.stem for path in out.iterdir()} == names
    assert {path.suffix for path in out.iterdir()} == {'.tif', '.geojson'}
    with rasterio.open(out / 'b_saliency.tif') as file:
        assert file.shape == (6, 6)


def test_scenes_without_georeference_are_named(
    scene_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr('lightning.pytorch.utilities.rank_zero_info', said.append)
    with rasterio.open(scene_file) as file:
        bare = write(tmp_path / 'bare.tif', file.read(), file.descriptions)
    main(
        [
            'map',
            'saliency',
            f'{scene_file}',
            f'{bare}',
            '-o',
            f'{tmp_path}/out',
            '--png',
        ]
    )
    assert said == [f'{bare} has no georeference: its map is in pixels.']
    with rasterio.open(tmp_path / 'out' / 'bare_saliency.tif') as file:
        assert file.crs is None
        assert file.bounds == (0, 96, 120, 0)


def test_embed(
    scene_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'e.tif'
    main(['map', 'embedding', str(scene_file), '-o', str(out), '--pca', '3', '--png'])
    assert capsys.readouterr().out == f'Wrote {out}, {out.with_suffix(".png")}.\n'
    with rasterio.open(out) as file:
        assert (file.count, *file.shape) == (3, 12, 15)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('saliency none.tif', "no file or folder 'none.tif'"),
        ('saliency SCENE b.tif', 'there are 2 scenes'),
        ('saliency SCENE -o SCENE', 'is the scene itself'),
        ('saliency SCENE --indices NDXI', 'NDXI'),
        ('saliency SCENE --polygons x.shp', 'should end in'),
        ('saliency SCENE --aoi no.gpkg', 'aoi: there is no'),
        ('saliency BARE --min-area 1', 'min_area: '),
        ('embedding SCENE --png', 'Pass --pca 3'),
        ('embedding SCENE --weights none.pth', 'none.pth'),
        ('embedding RGB', 'B05'),
        ('saliency SCENE --scale 0', 'scale: 0.0 is not positive'),
    ],
)
def test_what_is_wrong_is_said(
    scene_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with rasterio.open(scene_file) as file:
        pixels = file.read()
    write(tmp_path / 'bare.tif', pixels, SENTINEL2_TEN_BANDS)
    write(tmp_path / 'rgb.tif', pixels[:3], east=5e5)
    places = {'SCENE': 'a scene.tif', 'BARE': 'bare.tif', 'RGB': 'rgb.tif'}
    words = [places.get(word, word) for word in arguments.split()]
    words += [] if '-o' in words else ['-o', 'x.tif']
    with pytest.raises(SystemExit) as stop:
        main(['map', *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error.replace('\n', ' ')
    assert 'Traceback' not in error
    assert not (tmp_path / 'x.tif').exists()


def test_offset_is_in_reflectance(scene_file: Path, tmp_path: Path) -> None:
    with rasterio.open(scene_file) as file:
        newer = write(
            tmp_path / 'newer.tif', file.read() + 1000, file.descriptions, east=5e5
        )
    shift = ['--scale', '1e-4', '--offset', '-0.1']
    maps = []
    for path, options in ((scene_file, []), (newer, shift)):
        main(['map', 'saliency', str(path), '-o', f'{tmp_path}/out', *options])
        with rasterio.open(tmp_path / 'out' / f'{path.stem}_saliency.tif') as file:
            maps.append(file.read())
    np.testing.assert_allclose(*maps, atol=1e-6)


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def inside(figure: Figure) -> bool:
    """Whether all that is written lies on the page."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    page = figure.bbox
    texts = [figure._suptitle, *(axis.title for axis in figure.axes)]
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    return all(page.x0 <= b.x0 and b.x1 <= page.x1 and b.y1 <= page.y1 for b in boxes)


def test_pictures(scene_file: Path, tmp_path: Path) -> None:
    long = tmp_path / f'{"S2B_MSIL2A_20200223T032739_" * 4}.tif'
    scene_file.rename(long)
    main(
        [
            'map',
            'saliency',
            str(long),
            '-o',
            f'{tmp_path}/s.tif',
            '--polygons',
            f'{tmp_path}/x.gpkg',
        ]
    )
    raster = open_raster(long, ('B02', 'B03', 'B04'))
    regions = gpd.read_file(tmp_path / 'x.gpkg')
    figure = saliency_picture(raster, tmp_path / 's.tif', 8, regions)
    assert titles(figure) == [
        'Image (B04, B03, B02)', 'Patch saliency', 'Semantic richness', 'Heterogeneity',
    ]  # fmt: skip
    assert inside(figure)
    # Outlines go around whole patches of the image as shown.
    (lines,) = figure.axes[0].collections
    corners = np.concatenate([path.vertices for path in lines.get_paths()]) + 0.5
    np.testing.assert_allclose(corners % 8, 0, atol=1e-6)
    main(['map', 'embedding', str(long), '-o', f'{tmp_path}/e.tif', '--pca', '3'])
    figure = embedding_picture(raster, tmp_path / 'e.tif', 8)
    assert titles(figure)[0] == 'Image (B04, B03, B02)'
    assert titles(figure)[1].startswith('Embeddings (')
    assert inside(figure)
