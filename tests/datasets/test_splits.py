# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Training and validation scenes share no ground, and meet the share asked for."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from affine import Affine
from rasterio import CRS
from rasterio.transform import from_bounds

from helpers.geotiffs import RGB
from torchgeo_sigmae.datasets import RasterScene
from torchgeo_sigmae.datasets.splits import label_places, split_scenes


class Blank(RasterScene):
    """A scene without a file: every pixel is valid."""

    def preview(self, stride: int) -> np.ndarray:
        return np.ones((3, 4, 4), np.float32)


def scene(
    east: float,
    north: float,
    width: int = 64,
    height: int | None = None,
    crs: str | None = 'EPSG:32633',
    pixel: float = 10,
) -> RasterScene:
    transform = Affine(pixel, 0, east, 0, -pixel, north)
    height = width if height is None else height
    return Blank(
        f'{crs} {east} {north}',
        RGB,
        height,
        width,
        transform,
        crs and CRS.from_user_input(crs),
    )


def share(train: Sequence[RasterScene], val: Sequence[RasterScene]) -> float:
    pixels = [sum(each.num_pixels for each in part) for part in (train, val)]
    return pixels[1] / sum(pixels)


def ground(each: RasterScene, grow: float = 0) -> tuple[float, float, float, float]:
    """West, south, east, north."""
    west, north = each.transform @ (0, 0)
    east, south = each.transform @ (each.width, each.height)
    return west - grow, south - grow, east + grow, north + grow


def apart(train: Sequence[RasterScene], val: Sequence[RasterScene], gap: float) -> bool:
    """Whether training scenes keep a distance from validation scenes."""
    for one in val:
        west, south, east, north = ground(one, gap - 1e-6)
        for other in train:
            w, s, e, n = ground(other)
            if max(west, w) < min(east, e) and max(south, s) < min(north, n):
                return False
    return True


def quiet_split(
    scenes: Sequence[RasterScene], fraction: float = 0.1, size: int = 64, seed: int = 0
) -> tuple[list[RasterScene], list[RasterScene]]:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return split_scenes(scenes, fraction, size, seed)


# ----------------------------------------------------------------------------- places


def box(west: float, east: float) -> RasterScene:
    transform = from_bounds(west, 0, east, 2, 4, 4)
    return RasterScene('', RGB, 4, 4, transform, CRS.from_epsg(4326))


def test_scenes_that_overlap_are_one_place() -> None:
    nowhere = RasterScene('', RGB, 4, 4, Affine.identity(), None)
    scenes = [box(0, 2), box(8, 10), box(1, 3), nowhere, box(2.5, 4.5)]
    scenes += [box(10, 12), nowhere]
    # 0 and 4 do not overlap, but both overlap 2; 1 and 5 share a border only.
    assert label_places(scenes).tolist() == [0, 1, 0, 2, 0, 3, 4]


def test_overlap_across_the_date_line() -> None:
    degree = 111_319.49  # in meters of a system centered on 150 degrees east
    over, west, east = (
        replace(box(w * degree, e * degree), crs=CRS.from_epsg(3832))
        for w, e in ((29, 31), (28, 30), (-151, -149))
    )
    assert over.footprint == pytest.approx((179, 0, -179, 0), abs=1e-3)
    assert label_places([over, east, west]).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ('crs', 'east', 'north', 'pixel'),
    [
        ('EPSG:32633', 500_000, 5e6, 10),
        ('EPSG:32633', 300_000.3, 5e6, 10),
        ('EPSG:4326', 15.1, 45.3, 1e-4),
        ('EPSG:3857', 1.67e6, 8.4e6, 20),
        ('LOCAL_CS["mine",UNIT["metre",1]]', 0, 0, 10),
    ],
)
@pytest.mark.parametrize('slack', [0, -0.9])
def test_chips_that_touch_are_different_places(
    crs: str, east: float, north: float, pixel: float, slack: float
) -> None:
    """Also those that overlap by less than a pixel."""
    step = (64 + slack) * pixel
    chips = [
        scene(east + step * i, north - step * j, crs=crs, pixel=pixel)
        for i in range(20)
        for j in range(20)
    ]
    assert label_places(chips).max() == 399
    for seed in range(3):
        train, val = quiet_split(chips, seed=seed)
        assert (len(train), len(val)) == (360, 40)
    nearer = [scene(east + 62 * pixel * i, north, crs=crs, pixel=pixel) for i in (0, 1)]
    assert label_places(nearer).tolist() == [0, 0]


def test_systems_are_compared_on_the_ground() -> None:
    """A UTM scene leans in its neighbor zone: boxes overlap, the ground does not."""
    # 15 degrees east, 18 degrees east is the border of the zones 33 and 34.
    one = scene(700_000, 5_000_000, 1000)
    same = scene(700_000 - 471_160, 5_000_000 + 3_000, 1000, crs='EPSG:32634')
    far = scene(300_000, 5_000_000, 1000, crs='EPSG:32634')
    assert label_places([one, same, far]).tolist() == [0, 0, 1]
    degrees = scene(17.56, 45.12, 100, crs='EPSG:4326', pixel=1e-4)
    assert label_places([one, degrees]).tolist() == [0, 0]
    fiji = [
        scene(810_000, 8_000_000, 1000, crs='EPSG:32760'),
        scene(180_000, 8_000_000, 1000, crs='EPSG:32701'),
    ]
    assert label_places(fiji).tolist() == [0, 0]


def test_ten_thousand_chips_take_seconds() -> None:
    chips = [
        scene(300_000 + 640 * i, 5e6 - 640 * j) for i in range(100) for j in range(100)
    ]
    start = time.monotonic()
    train, val = quiet_split(chips)
    assert time.monotonic() - start < 10
    assert (len(train), len(val)) == (9000, 1000)


# ----------------------------------------------------------------------------- shares


@pytest.mark.parametrize('fraction', [0.05, 0.1, 0.2, 0.5, 0.8])
@pytest.mark.parametrize('seed', range(3))
def test_one_scene_is_cut(fraction: float, seed: int) -> None:
    for one in (scene(0, 0, 1098), scene(3e5, 5e6, 700, 2100, crs=None)):
        train, val = quiet_split([one], fraction, seed=seed)
        assert share(train, val) == pytest.approx(fraction, rel=0.1)
        assert apart(train, val, 640)
        for part in (*train, *val):
            assert min(part.height, part.width) >= 64
            assert part.transform == one.transform @ Affine.translation(
                part.column, part.row
            )
            assert 0 <= part.row <= one.height - part.height
            assert 0 <= part.column <= one.width - part.width


def test_blocks_differ_with_the_seed_only() -> None:
    def corners(seed: int) -> list[tuple[int, int]]:
        _, val = quiet_split([scene(0, 0, 1000)], seed=seed)
        return [(part.row, part.column) for part in val]

    assert corners(1) == corners(1)
    assert len({str(corners(seed)) for seed in range(12)}) > 2


def test_two_places_of_unequal_size() -> None:
    scenes = [scene(0, 0, 1000), scene(1e5, 0, 200)]
    for seed in range(4):
        train, val = quiet_split(scenes, seed=seed)
        assert share(train, val) == pytest.approx(0.1, rel=0.1)
        assert apart(train, val, 640)
        assert sum(part.num_pixels for part in train) > 800_000


def test_dates_of_one_place_are_cut_alike() -> None:
    dates = [scene(0, 0, 512) for _ in range(6)]
    # A coarser one, and one shifted by some pixels.
    dates += [scene(0, 0, 256, pixel=20), scene(50, 30, 512)]
    train, val = quiet_split(dates, size=32)
    assert share(train, val) == pytest.approx(0.1, rel=0.1)
    assert apart(train, val, 640)
    assert len(val) == 8


def test_neighboring_tiles_that_overlap() -> None:
    tiles = [
        scene(3e5 + 1e5 * c, 5e6 - 1e5 * r, 1098, pixel=100)
        for r in range(3)
        for c in range(4)
    ]
    assert label_places(tiles).max() == 0
    train, val = quiet_split(tiles)
    assert share(train, val) == pytest.approx(0.1, rel=0.1)
    assert apart(train, val, 6400)


def test_overlapping_chips_are_kept_whole() -> None:
    chips = [scene(320 * i, -320 * j) for i in range(40) for j in range(40)]
    train, val = quiet_split(chips)
    assert share(train, val) == pytest.approx(0.1, rel=0.1)
    assert apart(train, val, 640)
    assert {(part.height, part.width) for part in (*train, *val)} == {(64, 64)}


def test_a_scene_of_another_system_does_not_leak() -> None:
    one = scene(700_000, 5_000_000, 1000)
    other = scene(700_000 - 471_160, 5_000_000 + 3_000, 1000, crs='EPSG:32634')
    train, val = split_scenes([one, other], 0.1, 64)
    assert {part.path for part in val} == {one.path}
    for part in train:
        if part.path == other.path:
            assert all(label_places([part, block]).max() for block in val)


def test_several_places_and_a_block() -> None:
    scenes = [scene(1e5 * i, 0, 1000) for i in range(3)]
    train, val = quiet_split(scenes, 0.5)
    assert share(train, val) == pytest.approx(0.5, rel=0.1)
    assert apart(train, val, 640)


def test_a_share_that_cannot_be_met_warns() -> None:
    scenes = [scene(1e5 * i, 0, 64) for i in range(3)]
    with pytest.warns(
        UserWarning, match=r'val_fraction: 0\.1 was asked for, and 0\.333'
    ):
        train, val = split_scenes(scenes, 0.1, 64)
    assert (len(train), len(val)) == (2, 1)
    with pytest.raises(ValueError, match=r'val_fraction: 0\.1, but the 1 scenes'):
        split_scenes(scenes[:1], 0.1, 64)


def test_a_block_without_data_is_not_used() -> None:
    class Half(Blank):
        def preview(self, stride: int) -> np.ndarray:
            left = self.column + self.width / 2 < 500
            return np.full((3, 4, 4), np.nan if left else 1, np.float32)

    one = scene(0, 0, 1000)
    half = Half(one.path, RGB, 1000, 1000, one.transform, one.crs)
    for seed in range(8):
        _, val = quiet_split([half], seed=seed)
        assert val[0].column >= 400
