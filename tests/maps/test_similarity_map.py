# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of cosine similarity, against scikit-learn."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from sklearn.metrics.pairwise import cosine_similarity

from helpers.geotiffs import write
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.maps import similarity_map

NAMES = [f'feature {i}' for i in range(5)]


@pytest.fixture
def values() -> np.ndarray:
    values = np.random.default_rng(0).normal(3, 1, (5, 300, 20)).astype('float32')
    values[:, 7, 3:9] = np.nan
    return values


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        assert file.descriptions == ('similarity',)
        actual: np.ndarray = file.read(1)
    return actual


@pytest.mark.parametrize('system', [None, 'EPSG:4326'])
def test_against_scikit_learn(
    tmp_path: Path, values: np.ndarray, system: str | None
) -> None:
    path = write(tmp_path / 'e.tif', values, NAMES, np.nan, east=5e5)
    # Row 290, column 4.
    x, y = 5e5 + 45, 5_400_000 - 2905
    if system:
        x, y = Transformer.from_crs('EPSG:32632', system, always_xy=True).transform(
            x, y
        )
    similarity_map(path, tmp_path / 's.tif', x, y, system)
    actual = read(tmp_path / 's.tif')
    flat = values.reshape(5, -1).T
    known = np.isfinite(flat[:, 0])
    centered = flat[known] - flat[known].mean(axis=0, dtype=float)
    wanted = np.full(len(flat), np.nan)
    here = np.flatnonzero(known).tolist().index(290 * 20 + 4)
    wanted[known] = cosine_similarity(centered, centered[here : here + 1])[:, 0]
    np.testing.assert_allclose(actual, wanted.reshape(300, 20), atol=1e-5)
    assert actual[290, 4] == pytest.approx(1)


def test_without_a_system_columns_and_rows_count(
    tmp_path: Path, values: np.ndarray
) -> None:
    path = write(tmp_path / 'e.tif', values, NAMES, np.nan)
    main(
        [
            'map',
            'similarity',
            f'{path}',
            '--at',
            '4.5',
            '290.5',
            '-o',
            f'{tmp_path}/new/s.tif',
        ]
    )
    assert read(tmp_path / 'new' / 's.tif')[290, 4] == pytest.approx(1)
    with pytest.raises(ValueError, match=r'crs: .* has no coordinate reference'):
        similarity_map(path, tmp_path / 's.tif', 4, 290, 'EPSG:4326')


def test_the_most_similar_patches(tmp_path: Path, values: np.ndarray) -> None:
    path = write(tmp_path / 'e.tif', values, NAMES, np.nan, east=5e5)
    main(
        ['map', 'similarity', f'{path}', '--at', '500045', '5397095', '-o',
         f'{tmp_path}/s.tif', '--polygons', f'{tmp_path}/p.gpkg', '--threshold',
         '0.999']
    )  # fmt: skip
    actual = gpd.read_file(tmp_path / 'p.gpkg')
    similar = read(tmp_path / 's.tif')
    assert actual.patches.sum() == 6
    assert actual['max'].max() == pytest.approx(1)
    assert actual['mean'].min() >= np.nanquantile(similar, 0.999)


def test_where_there_is_nothing(tmp_path: Path, values: np.ndarray) -> None:
    path = write(tmp_path / 'e.tif', values, NAMES, np.nan, east=5e5)
    with pytest.raises(ValueError, match=r'at: \(1, 2\) lies outside'):
        similarity_map(path, tmp_path / 's.tif', 1, 2)
    with pytest.raises(ValueError, match='has no embedding at'):
        similarity_map(path, tmp_path / 's.tif', 5e5 + 45, 5_400_000 - 75)
    with pytest.raises(OSError, match='cannot be read'):
        similarity_map(tmp_path / 'none.tif', tmp_path / 's.tif', 1, 2)
