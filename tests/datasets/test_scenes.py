# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""GeoTIFF scenes of a user: listed, read by windows, cut into chips."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from helpers.geotiffs import RGB, numbered, write
from torchgeo_sigmae.bands import SENTINEL2_BANDS, SENTINEL2_TEN_BANDS
from torchgeo_sigmae.datasets import RasterScene, SceneChips, find_scenes
from torchgeo_sigmae.plotting.canvas import NODATA_COLOR


def test_bands_follow_their_descriptions_and_are_put_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.tif', numbered(8, 8), ('b8a', 'Red', 'B2'))
    scene = RasterScene.open(str(path), ('B02', 'B04', 'B08A'))
    assert scene.files[0].indexes == (3, 2, 1)
    image = scene.read(Window(0, 0, 2, 2))
    assert image.dtype == np.float32
    assert image[:, 0, 0].tolist() == [20001, 10001, 1]


def test_bands_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.tif', numbered(8, 8), None)
    with pytest.raises(ValueError, match=r'bands_in_file: .*a.tif has no band descr'):
        RasterScene.open(str(path), RGB)
    with pytest.raises(ValueError, match=r'bands_in_file: 2 .* 3 bands of .*a.tif'):
        RasterScene.open(str(path), RGB, ('B02', 'B03'))
    scene = RasterScene.open(str(path), RGB, ('B02', 'B03', 'B04'))
    assert scene.files[0].indexes == (3, 2, 1)


def test_a_missing_band_names_the_file(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', numbered(8, 8))
    write(tmp_path / 'b.tif', numbered(8, 8), ('B04', 'B03', 'B11'))
    with pytest.raises(ValueError, match=r'b\.tif has the bands .*B02 not found'):
        find_scenes(tmp_path, bands=RGB)
    assert len(find_scenes(tmp_path, bands=RGB, exclude='b*')) == 1


def test_a_pattern_without_a_slash_excludes_names_in_every_folder(
    tmp_path: Path,
) -> None:
    for name in ('a.tif', 'sub/a.tif', 'sub/b.tif'):
        write(tmp_path / name, numbered(8, 8))
    actual = find_scenes(tmp_path, bands=RGB, exclude='a*')
    assert [scene.path for scene in actual] == [str(tmp_path / 'sub' / 'b.tif')]
    assert len(find_scenes(tmp_path, bands=RGB, exclude='sub/a*')) == 2
    with pytest.warns(UserWarning, match="exclude: 'c.*' matches no file"):
        find_scenes(tmp_path, bands=RGB, exclude='c*')


def test_nodata_can_be_given(tmp_path: Path) -> None:
    array = numbered(4, 4)
    array[:, 1] = 5
    path = write(tmp_path / 'a.tif', array, nodata=0)
    assert np.isnan(RasterScene.open(str(path), RGB, nodata=5).read()[:, 1]).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(0, 30), st.integers(0, 30),
    st.integers(1, 20),
)  # fmt: skip
def test_windows_hold_what_is_there_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    width: int,
    row: int,
    column: int,
    size: int,
) -> None:
    row, column = min(row, height - 1), min(column, width - 1)
    array = numbered(height, width)
    path = write(tmp_path_factory.mktemp('w') / 'a.tif', array)
    image = RasterScene.open(str(path), RGB).read(Window(column, row, size, size))
    expected = np.full((3, row + size, column + size), np.nan, np.float32)
    inside = array[:, : row + size, : column + size]
    expected[:, : inside.shape[1], : inside.shape[2]] = inside
    np.testing.assert_array_equal(image, expected[:, row:, column:])


@pytest.mark.parametrize(
    ('dtype', 'nodata', 'cached'),
    [
        ('uint16', 0, 'uint16'),
        ('int16', -9999, 'int16'),
        ('float32', np.nan, 'float32'),
        ('float64', -1.0, 'float32'),
        ('int32', 7, 'float32'),
    ],
)
def test_a_cached_scene_is_the_same_scene(
    tmp_path: Path, dtype: str, nodata: float, cached: str
) -> None:
    array = numbered(20, 30).astype(dtype)
    array[:, 3:5] = nodata
    array[1, 6] = nodata
    path = write(tmp_path / 'a.tif', array, nodata=nodata)
    scene = RasterScene.open(str(path), ('B04', 'B02'))
    other = scene.cached()
    assert other.pixels is not None
    assert other.pixels.dtype == cached
    assert other.pixels.nbytes == scene.nbytes
    path.unlink()
    write(path, array, nodata=nodata)
    for window in (None, Window(4, 2, 5, 7), Window(25, 15, 16, 16)):
        np.testing.assert_array_equal(other.read(window), scene.read(window))
    before = other.pixels.copy()
    other.read()[:] = 5
    np.testing.assert_array_equal(other.pixels, before)


def test_only_the_window_is_read(tmp_path: Path) -> None:
    """A tiled file with a damaged tile is fine anywhere else."""
    path = write(
        tmp_path / 'a.tif', numbered(64, 64), tiled=True, blockxsize=16, blockysize=16,
        compress='deflate',
    )  # fmt: skip
    with open(path, 'r+b') as file:
        file.seek(path.stat().st_size // 2)
        file.write(b'\xff' * 500)
    scene = RasterScene.open(str(path), RGB, RGB)
    assert scene.read(Window(0, 0, 16, 16))[0, 0, 0] == 1
    with pytest.raises(OSError, match=r'a\.tif cannot be read: .*damaged or truncated'):
        scene.read()


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / 'not a raster.tif').write_bytes(b'II*\0 nonsense')
    with pytest.raises(OSError, match=r'not a raster\.tif cannot be read'):
        find_scenes(tmp_path, bands=RGB)
    (tmp_path / 'not a raster.tif').write_bytes(b'')
    with pytest.raises(OSError, match=r'not a raster\.tif cannot be read'):
        find_scenes(tmp_path, bands=RGB)


def test_no_scenes(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"root: there is no folder '.*nowhere'"
    ):
        find_scenes(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match=r"paths: no file .* \['x/\*\.tif'\]"):
        find_scenes(tmp_path, 'x/*.tif')
    write(tmp_path / 'a.tif', numbered(4, 4))
    with pytest.raises(FileNotFoundError, match=r"and not \['a\*'\]"):
        find_scenes(tmp_path, bands=RGB, exclude='a*')
    with pytest.raises(ValueError, match='scenes: there are none'):
        SceneChips([], RGB)


def test_patterns(tmp_path: Path) -> None:
    for name in ('1/x.tif', '2/x.tif', '2/deep/y.tif', '3/x.png'):
        write(tmp_path / name.replace('png', 'tif'), numbered(4, 4))
    names = [
        Path(scene.path).relative_to(tmp_path).as_posix()
        for scene in find_scenes(tmp_path, ('1/*.tif', '2/**/*.tif'), RGB)
    ]
    assert names == ['1/x.tif', '2/deep/y.tif', '2/x.tif']


# ------------------------------------------------------------------------------ chips


def chips(tmp_path: Path, *shapes: tuple[int, int], **kwargs: object) -> SceneChips:
    for i, shape in enumerate(shapes):
        array = np.full((3, *shape), i + 1, 'uint16')
        write(tmp_path / f'{i}.tif', array)
    return SceneChips(find_scenes(tmp_path, bands=RGB), RGB, **kwargs)


def test_chips_are_balanced_by_area(tmp_path: Path) -> None:
    dataset = chips(tmp_path, (40, 40), (20, 20), (20, 60), size=10, length=320)
    seen = torch.tensor([dataset[i]['image'][0, 0, 0] for i in range(320)])
    # 1600, 400 and 1200 pixels: exactly in proportion, but for the scene borders.
    counts = [int((seen == i).sum()) for i in (1, 2, 3)]
    assert counts == pytest.approx([160, 40, 120], abs=1)


def test_small_scenes_get_their_share_even_in_short_epochs(tmp_path: Path) -> None:
    dataset = chips(tmp_path, (30, 30), (10, 10), size=10, length=2)
    seen = [dataset[i]['image'][0, 0, 0].item() for _ in range(500) for i in range(2)]
    assert seen.count(2) / 1000 == pytest.approx(0.1, abs=0.03)


def test_windows_are_uniform(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', numbered(12, 14))
    dataset = SceneChips(find_scenes(tmp_path, bands=RGB), RGB, size=10, length=1)
    seen = [int(dataset[0]['image'][0, 0, 0]) for _ in range(1500)]
    counts = np.array([seen.count(100 * r + c + 1) for r in range(3) for c in range(5)])
    assert counts.sum() == 1500
    chi2 = ((counts - 100) ** 2 / 100).sum()
    assert chi2 < 40  # 14 degrees of freedom: exceeded once in 4000 times


def test_windows_are_drawn_from_the_global_generator(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', numbered(60, 60))
    dataset = SceneChips(find_scenes(tmp_path, bands=RGB), RGB, size=10)
    torch.manual_seed(3)
    first = dataset[1]['image']
    assert not torch.equal(dataset[1]['image'], first)
    torch.manual_seed(3)
    assert torch.equal(dataset[1]['image'], first)


def test_evaluation_windows_lie_side_by_side(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', numbered(25, 34))
    write(tmp_path / 'b.tif', numbered(10, 10))
    scenes = find_scenes(tmp_path, bands=RGB)
    dataset = SceneChips(scenes, RGB, size=10, random=False)
    corners = [
        int(sample['image'][0, 0, 0]) for sample in map(dataset.__getitem__, range(7))
    ]
    assert len(dataset) == 7
    assert corners == [1, 11, 21, 1001, 1011, 1021, 1]
    some = SceneChips(scenes, RGB, size=10, random=False, length=3)
    assert [int(some[i]['image'][0, 0, 0]) for i in range(3)] == [1, 21, 1011]
    with pytest.raises(IndexError, match='index 7 of 7 chips'):
        dataset[7]


def test_small_scenes_are_padded_with_nan(tmp_path: Path) -> None:
    dataset = chips(tmp_path, (6, 16), (20, 20), size=16, random=False)
    image = dataset[0]['image']
    assert image.shape == (3, 16, 16)
    assert image[:, :6].isfinite().all()
    assert image[:, 6:].isnan().all()


def test_no_scene_is_large_enough(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r'size: no scene .* 32 x 32 .*has 20 x 30.*20'
    ):
        chips(tmp_path, (20, 30), (16, 40), size=32)
    assert len(chips(tmp_path, (20, 30), (16, 40), size=32, random=False)) == 2
    with pytest.raises(ValueError, match='size: 0 must be positive'):
        chips(tmp_path, (20, 30), size=0)


def test_nearly_empty_windows_are_drawn_again(tmp_path: Path) -> None:
    array = np.zeros((3, 10, 1000), 'uint16')
    array[:, :, :200] = 5
    write(tmp_path / 'a.tif', array, nodata=0)
    dataset = SceneChips(find_scenes(tmp_path, bands=RGB), RGB, size=10, length=100)
    share = [float(dataset[i]['image'].isfinite().float().mean()) for i in range(100)]
    # One draw would hit data in 20 of 100 times.
    assert sum(s >= 0.25 for s in share) > 60


def test_transforms_and_the_first_epoch_has_room_for_all(tmp_path: Path) -> None:
    dataset = chips(
        tmp_path, (25, 25), size=10, transforms=lambda s: {**s, 'seen': True}
    )
    assert len(dataset) == 7  # 6.25 chips of ground
    assert dataset[0]['seen'] is True


def test_plot(tmp_path: Path) -> None:
    array = numbered(20, 20)
    array[:, :5] = 0
    write(tmp_path / 'a.tif', array, nodata=0)
    dataset = SceneChips(find_scenes(tmp_path, bands=RGB), RGB, size=20, random=False)
    figure = dataset.plot(dataset[0], suptitle='A scene')
    (axis,) = figure.axes
    assert axis.get_title() == 'Image'
    assert figure.get_suptitle() == 'A scene'
    (drawn,) = axis.get_images()
    color = [int(NODATA_COLOR[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    np.testing.assert_allclose(drawn.get_array()[2, 2], color)
    assert not dataset.plot(dataset[0], show_titles=False).axes[0].get_title()


# -------------------------------------------------------------------------- footprint


def test_footprints_are_in_degrees(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', numbered(10, 10), east=500_000)
    (scene,) = find_scenes(tmp_path, bands=RGB)
    assert scene.footprint == pytest.approx((9, 48.75, 9.0014, 48.754), abs=0.01)


# ------------------------------------------------------------------------- real scenes


def test_real_scenes(real_data: Callable[[str], Path]) -> None:
    """L1C and L2A together: the ten bands stand elsewhere in each."""
    scenes = find_scenes(real_data('scenes'))
    assert len(scenes) == 25
    orders = {scene.files[0].indexes for scene in scenes}
    ten = tuple(SENTINEL2_BANDS.index(band) + 1 for band in SENTINEL2_TEN_BANDS)
    without_b10 = tuple(i - (i > SENTINEL2_BANDS.index('B10') + 1) for i in ten)
    assert orders == {ten, without_b10}
    scene = next(scene for scene in scenes if 'ravaen' in scene.path)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with rasterio.open(scene.path) as file:
            raw = file.read()[[i - 1 for i in ten]]
    dataset = SceneChips([scene], size=64, random=False)
    np.testing.assert_array_equal(dataset[4]['image'], raw[:, 64:128, 64:128])
