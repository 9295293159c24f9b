# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Packs: what is written, what is read, and what is refused."""

import json
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rasterio.windows import Window
from torch.utils.data import DataLoader, Dataset

from helpers.geotiffs import RGB, numbered, write
from torchgeo_sigmae.bands import BandSet
from torchgeo_sigmae.datasets import PackedChips, RasterScene, SceneChips, find_scenes
from torchgeo_sigmae.datasets.pack_index import PackIndex
from torchgeo_sigmae.datasets.pack_shards import Chip
from torchgeo_sigmae.datasets.pack_sources import DatasetSource, SceneSource
from torchgeo_sigmae.datasets.pack_splits import split_pack
from torchgeo_sigmae.datasets.packed import decode
from torchgeo_sigmae.datasets.packing import check_pack, write_pack


class Arrays:
    """A source of given chips, which may fail."""

    bands = BandSet(RGB)
    scale, offset = 1e-4, 0.0

    def __init__(self, chips: list[np.ndarray], fail_at: int | None = None) -> None:
        self.chips, self.fail_at = chips, fail_at
        self.shape = chips[0].shape
        self.sources: list[dict[str, Any]] = [{'name': 'array'}]
        self.settings: dict[str, Any] = {'count': len(chips)}
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.chips)

    def read(self, start: int, stop: int, skipped: set[str]) -> Iterator[Chip | None]:
        for number in range(start, stop):
            if number == self.fail_at:
                raise OSError(f'chip {number} cannot be read.')
            self.reads.append(number)
            yield Chip(self.chips[number], 0, (0, number))


def arrays(count: int = 6, size: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(1, 9000, (count, 3, size, size)).astype('float32'))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Six chips in three shards."""
    write_pack(Arrays(arrays()), tmp_path / 'pack', shard_bytes=2 * 4 * 3 * 64)
    return tmp_path / 'pack'


@pytest.mark.parametrize('workers', [0, 2])
def test_chips_are_those_of_scenes(tmp_path: Path, workers: int) -> None:
    """Bit by bit, with what is missing, in one process and in two."""
    image = numbered(64, 96)
    image[:, :20, :10] = 0
    write(tmp_path / 'a_20200930T10.tif', image, nodata=0, east=5e5)
    write(tmp_path / 'b.tif', numbered(20, 50)[:2], RGB[:2], nodata=0)
    scenes = find_scenes(tmp_path, bands=RGB, allow_missing_bands=True)
    source = SceneSource({'': scenes}, 32)
    index = write_pack(source, tmp_path / 'pack', 2**14, num_workers=workers)
    assert [s.dtype for s in index.shards] == ['uint16'] * len(index.shards)
    assert len(index.shards) > 2
    assert check_pack(tmp_path / 'pack') == []
    first, second = index.sources
    assert first['date'] == '2020-09-30'
    assert second['missing_bands'] == [RGB[2]]
    chips = PackedChips(tmp_path / 'pack')
    # Those of SceneDataModule side by side; 50 px are two chips that overlap.
    whole = [*SceneChips(scenes[:1], RGB, 32, random=False)]
    assert len(chips) == len(whole) + 2
    for one, other in zip(chips, whole, strict=False):
        assert one['path'] == other['path']
        assert torch.equal(one['window'], other['window'])
        assert one['image'].dtype == torch.float32
        np.testing.assert_array_equal(one['image'], other['image'])
    for chip, column in zip((chips[6], chips[7]), (0, 18), strict=True):
        wanted = scenes[1].read(Window(column, 0, 32, 32))
        assert np.isnan(wanted[2]).all()
        assert np.isnan(wanted[0, 20:]).all()
        np.testing.assert_array_equal(chip['image'], wanted)
    valid = np.concatenate([chip['image'].reshape(3, -1) for chip in chips], axis=1)
    np.testing.assert_allclose(index.mean, np.nanmean(valid, 1), rtol=1e-6)
    np.testing.assert_allclose(index.std, np.nanstd(valid, 1), rtol=1e-6)


def test_real_scenes(real_data: Any, tmp_path: Path) -> None:
    scenes = find_scenes(real_data('scenes'), 'ssl4eo*', bands=['B02', 'B08', 'B11'])
    index = write_pack(SceneSource({'': scenes}, 64), tmp_path, num_workers=2)
    by_path = {scene.path: scene for scene in scenes}
    chips = PackedChips(tmp_path)
    assert {shard.dtype for shard in index.shards} == {'uint16'}
    for number in range(0, len(chips), 7):
        row, column = chips[number]['window'].tolist()
        wanted = by_path[chips[number]['path']].read(Window(column, row, 64, 64))
        np.testing.assert_array_equal(chips[number]['image'], wanted)


def test_the_type_is_the_smallest_that_is_exact(tmp_path: Path) -> None:
    chips = arrays(8)
    chips[1][0, 0, 0] = np.nan
    chips[2][0, 0, 0] = -5
    chips[2][1, 1, 1] = np.nan
    chips[5][0, 0, 0] = 0.25
    chips[6][0, 0, 0] = 65535
    chips[7][0, 0, 0] = np.inf
    index = write_pack(Arrays(chips), tmp_path, shard_bytes=2 * 4 * 3 * 64)
    types = [shard.dtype for shard in index.shards]
    assert types == ['uint16', 'int16', 'float32', 'float32']
    dataset = PackedChips(tmp_path)
    for one, chip in zip(dataset, chips, strict=True):
        np.testing.assert_array_equal(one['image'], chip)
    # Stored values of one type stay as they are.
    stored = PackedChips(tmp_path, chips=[0, 1], stored=True)
    assert stored.gather([0, 1], 0)[0]['image'].dtype == torch.float32
    codes = torch.tensor([3, 65535], dtype=torch.uint16)
    np.testing.assert_array_equal(decode(codes), [3, np.nan])


@pytest.mark.parametrize('workers', [0, 2])
def test_batches(packed: Path, workers: int) -> None:
    """Any loader takes them: bands by name, in any order, from any shard."""
    chips = np.stack(arrays())
    order = [5, 0, 3, 1, 4]
    for bands, channels in ((None, [0, 1, 2]), (['b02', 'Red'], [2, 0])):
        dataset = PackedChips(packed, bands, chips=order)
        loader = DataLoader(dataset, 2, num_workers=workers)
        batches = list(loader)
        assert [len(batch['path']) for batch in batches] == [2, 2, 1]
        assert batches[0]['window'].tolist() == [[0, 5], [0, 0]]
        image = torch.cat([batch['image'] for batch in batches])
        np.testing.assert_array_equal(image, chips[order][:, channels])


def test_batches_as_stored(packed: Path) -> None:
    dataset = pickle.loads(pickle.dumps(PackedChips(packed, stored=True)))
    image = dataset.gather([5, 0], 0)[0]['image']
    assert image.dtype == torch.uint16
    np.testing.assert_array_equal(decode(image), np.stack(arrays())[[5, 0]])
    # Opened files are no part of a copy.
    assert len(pickle.dumps(dataset)) < 5000


def test_crops_depend_on_key_and_index_alone(packed: Path) -> None:
    dataset = PackedChips(packed, size=4, random=True)
    chips = arrays()
    one = dataset.gather([4, 0, 2], 7)[0]
    other = dataset.gather([2, 5, 4], 7)[0]
    assert torch.equal(one['image'][0], other['image'][2])
    assert torch.equal(one['image'][2], other['image'][0])
    corners = set()
    for key in range(40):
        batch = dataset.gather([3], key)[0]
        row, column = batch['window'][0].tolist()
        corners.add((row, column - 3))
        wanted = chips[3][:, row : row + 4, column - 3 : column + 1]
        np.testing.assert_array_equal(batch['image'][0], wanted)
    # All 25 corners but for chance.
    assert len(corners) > 15
    assert max(corners) <= (4, 4)
    central = PackedChips(packed, size=4)[3]['image']
    np.testing.assert_array_equal(central, chips[3][:, 2:6, 2:6])


def test_an_interrupted_pack_goes_on(tmp_path: Path) -> None:
    chips, shard = arrays(), 2 * 4 * 3 * 64
    whole = write_pack(Arrays(chips), tmp_path / 'whole', shard)
    folder = tmp_path / 'pack'
    with pytest.raises(OSError, match=r'chip 4 cannot be read. 2 of 3 shards .* stay'):
        write_pack(Arrays(chips, fail_at=4), folder, shard)
    with pytest.raises(FileNotFoundError, match=r'not packed to the end. Run the same'):
        PackedChips(folder)
    (folder / '.shard-00002.1.part.npy').write_text('killed')
    (folder / 'shard-00001.npy').write_bytes(b'damaged')
    source = Arrays(chips)
    # The size of shards stays that of the first call.
    assert write_pack(source, folder, 2 * shard).shards == whole.shards
    assert source.reads == [2, 3, 4, 5]
    assert {path.name for path in folder.iterdir()} == {
        *(f'shard-0000{i}.npy' for i in range(3)),
        *('index.json', 'source.npy', 'window.npy'),
    }
    # Nothing is left to do.
    source = Arrays(chips)
    assert write_pack(source, folder) == PackIndex.read(folder)
    assert source.reads == []


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    chips = arrays(6, 64)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Half a shard, which is 2 * 12288 values of 16 bits.
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r'0.npy cannot be written.* 0 of 3'):
            write_pack(Arrays(chips), tmp_path, 2 * 4 * 3 * 64**2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ['packing']
    assert write_pack(Arrays(chips), tmp_path).count == 6


def test_other_folders_are_refused(packed: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in packed.iterdir()}
    with pytest.raises(ValueError, match='holds another pack: count was 6, is 5'):
        write_pack(Arrays(arrays(5)), packed)
    assert {path: path.read_bytes() for path in packed.iterdir()} == before
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'thesis.tex').write_text('')
    with pytest.raises(ValueError, match='other is not empty and no pack'):
        write_pack(Arrays(arrays()), other)
    empty = [np.full((3, 8, 8), np.nan, np.float32)]
    with pytest.raises(ValueError, match='no chip has data'):
        write_pack(Arrays(empty), tmp_path / 'empty')


def test_damage_is_found(packed: Path) -> None:
    shard = packed / 'shard-00001.npy'
    sound = shard.read_bytes()
    assert check_pack(packed) == []

    shard.write_bytes(sound[:-1])
    with pytest.raises(OSError, match=r'shard-00001.npy is damaged: it has 895 bytes'):
        PackedChips(packed)
    assert 'has 895 bytes instead of 896' in check_pack(packed)[0]

    shard.write_bytes(sound[:-1] + b'?')
    assert 'another checksum' in check_pack(packed)[0]

    shard.write_bytes(sound.replace(b"'<u2'", b"'<i2'"))
    with pytest.raises(OSError, match=r'int16 \(2, 3, 8, 8\), and the index says'):
        PackedChips(packed)[2]
    shard.write_bytes(bytes(len(sound)))
    with pytest.raises(OSError, match=r'shard-00001.npy is damaged'):
        PackedChips(packed)[2]

    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r'shard-00001.npy is missing. Copy'):
        PackedChips(packed)
    assert 'is missing' in check_pack(packed)[0]
    shard.write_bytes(sound)
    (packed / 'window.npy').unlink()
    with pytest.raises(FileNotFoundError, match=r'window.npy is missing'):
        PackedChips(packed)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'version': 2}, 'has version 2 of the format'),
        ({'format': 'zarr'}, 'does not belong to a pack'),
        ({'count': 7}, 'numbers of chips or bands do not agree'),
        ({'sensor': 'abacus'}, 'is damaged'),
        ({'more': 1}, 'is damaged'),
    ],
)
def test_other_indices_are_refused(
    packed: Path, change: dict[str, Any], message: str
) -> None:
    path = packed / 'index.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        PackedChips(packed)
    path.write_text('{')
    with pytest.raises(ValueError, match='is damaged'):
        PackedChips(packed)


def test_arguments(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder 'nowhere'"):
        PackedChips('nowhere')
    with pytest.raises(FileNotFoundError, match=r'is no pack: it has no index.json'):
        PackedChips(tmp_path)
    with pytest.raises(ValueError, match=r'B11 not in the pack .*B04, B03, B02 of'):
        PackedChips(packed, ['B11', 'B04'])
    with pytest.raises(ValueError, match=r'have 8 x 8 pixels. Pass size=8 or less'):
        PackedChips(packed, size=9)
    with pytest.raises(IndexError, match='6 of 6 chips'):
        PackedChips(packed)[6]
    assert PackedChips(packed).plot(PackedChips(packed)[0])


class Samples(Dataset[dict[str, Any]]):
    """Two dates of three bands in each sample, and a label of two classes."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = torch.tensor([index % 2, 1 - index % 2])
        return {'image': self.images[index], 'label': label}


def test_datasets(tmp_path: Path) -> None:
    images = np.stack(arrays(10)).reshape(5, 6, 8, 8)
    parts = {'train': Samples(images[:4]), 'test': Samples(images[4:])}
    source = DatasetSource(parts, BandSet(RGB), ['B02', 'B04'], dates=2)
    index = write_pack(source, tmp_path / 'pack', shard_bytes=3 * 4 * 2 * 64)
    chips = PackedChips(tmp_path / 'pack')
    wanted = images.reshape(10, 3, 8, 8)[:, [2, 0]]
    for number, chip in enumerate(chips):
        np.testing.assert_array_equal(chip['image'], wanted[number])
        assert chip['path'] == ('train' if number < 8 else 'test')
    assert chips.gather([1, 2], 0)[0]['label'].tolist() == [[0, 1], [1, 0]]
    splits = split_pack(index, chips.column('source'), chips.column('window'), 0.25)
    assert splits['test'].tolist() == [8, 9]
    # Both dates of a sample.
    assert len(splits['train']) == 6
    assert splits['val'].tolist() in [[2 * i, 2 * i + 1] for i in range(4)]

    # Channels may be no bands of the sensor.
    radar = DatasetSource(parts, BandSet.from_data(['VV', 'B04', 'DEM']), dates=2)
    write_pack(radar, tmp_path / 'radar')
    chips = PackedChips(tmp_path / 'radar', ['DEM', 'VV'])
    assert chips.bands == ('DEM', 'VV')
    np.testing.assert_array_equal(
        chips[3]['image'], images.reshape(10, 3, 8, 8)[3, [2, 0]]
    )
    with pytest.raises(ValueError, match='4 names for the image'):
        DatasetSource(parts, BandSet((*RGB, 'B08')))
    ragged: Any = [{'image': torch.zeros(3, 8, 8)}, {'image': torch.zeros(3, 8, 9)}]
    source = DatasetSource({'train': ragged}, BandSet(RGB))
    with pytest.raises(ValueError, match=r'the image of sample 1 is .1, 3, 8, 9.'):
        list(source.read(0, 2, set()))
    with pytest.raises(TypeError, match='no length and no indices'):
        DatasetSource({'train': iter(())}, BandSet(RGB))  # type: ignore[dict-item]


def test_scenes_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', numbered(16, 16), compress='deflate')
    write(tmp_path / 'b.tif', numbered(16, 16), compress='deflate')
    scenes = find_scenes(tmp_path, bands=RGB)
    content = bytearray((tmp_path / 'a.tif').read_bytes())
    content[len(content) // 3 :] = bytes(len(content) - len(content) // 3)
    (tmp_path / 'a.tif').write_bytes(content)
    with pytest.raises(OSError, match=r'a.tif cannot be read'):
        write_pack(SceneSource({'': scenes}, 8), tmp_path / 'raise')
    with pytest.warns(UserWarning, match=r'Skipped: .*a.tif'):
        index = write_pack(
            SceneSource({'': scenes}, 8, on_error='skip'), tmp_path / 'skip'
        )
    assert index.count == 4
    assert index.skipped == [str(tmp_path / 'a.tif')]


def test_splits_share_no_ground(tmp_path: Path) -> None:
    """Whole places, or a strip with a gap, in meters or pixels."""
    # Two dates of one place, one of which is shifted by ten pixels; and another place.
    for name, east, side in (('a', 5e5, 96), ('b', 500_100, 96), ('c', 6e5, 32)):
        write(tmp_path / f'{name}.tif', numbered(side, side), east=east)
    write(tmp_path / 'pixels.tif', numbered(96, 64))
    scenes = find_scenes(tmp_path, bands=RGB)
    for chosen, size, fraction, share in (
        (scenes[:3], 32, 0.05, 1 / 19),
        (scenes[:2], 16, 0.4, 0.4),
        (scenes[3:], 16, 0.2, 0.2),
    ):
        folder = tmp_path / str(fraction)
        index = write_pack(SceneSource({'': chosen}, size), folder)
        chips = PackedChips(folder)
        splits = split_pack(
            index, chips.column('source'), chips.column('window'), fraction
        )
        val, train = splits['val'], splits['train']
        assert len(val) / (len(val) + len(train)) == pytest.approx(share, rel=0.1)
        boxes = [_box(chip, scenes) for chip in chips]
        # A gap of one chip, or another place.
        gap = min(np.abs(boxes[i] - boxes[j]).max() for i in val for j in train)
        assert gap > 19 * size
    one = write_pack(SceneSource({'': scenes[2:3]}, 32), tmp_path / 'one')
    with pytest.raises(ValueError, match='show the same ground'):
        split_pack(one, np.zeros(1, int), np.zeros((1, 2), int), 0.1)


def _box(chip: dict[str, Any], scenes: list[RasterScene]) -> np.ndarray:
    """The upper left corner in meters."""
    transform = next(s.transform for s in scenes if s.path == chip['path'])
    row, column = chip['window'].tolist()
    east, north = transform @ (column, row)
    georeferenced = 10 if transform.is_identity else 1
    return np.array([east, north]) * georeferenced
