# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Packs on the web and in object storage, read through a cache of limited size."""

import hashlib
import importlib.util
import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from helpers.faults import file_size_limit
from helpers.processes import join, kill, start
from helpers.training import SMALL, quiet_trainer
from helpers.web import Server, read_all, serve
from torchgeo_sigmae import PackedDataModule, ResumableCheckpoint, SIGMAETask
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.datasets import PackedChips, find_scenes
from torchgeo_sigmae.datasets.pack_index import PackIndex
from torchgeo_sigmae.datasets.pack_sources import SceneSource
from torchgeo_sigmae.datasets.packing import write_pack
from torchgeo_sigmae.datasets.remote import RemotePack

pytestmark = pytest.mark.usefixtures('narrow_models')


@pytest.fixture(scope='module')
def pack(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chips of 32 pixels in shards of twelve: 22 for training, 6 for validation."""
    root = tmp_path_factory.mktemp('pack')
    folder = synthetic_root / 'synthetic_sentinel2'
    splits = {
        name: find_scenes(folder / name)[:count]
        for name, count in (('train', 66), ('val', 18))
    }
    write_pack(SceneSource(splits, 32), root, shard_bytes=12 * 4 * 10 * 32**2)
    return root


@pytest.fixture
def server(pack: Path) -> Iterator[Server]:
    with serve(pack) as server:
        yield server


def gib(pack: Path, shards: float) -> float:
    """The size of so many shards."""
    return shards * PackIndex.read(pack).shards[0].bytes / 2**30


@contextmanager
def watched(limit: float | None) -> Iterator[list[int]]:
    """Check the size of the cache whenever a file is about to come."""
    sizes: list[int] = []
    download = RemotePack._download

    def checked(self: RemotePack, file: str, part: Path) -> None:
        used = sum(path.stat().st_size for path in self.folder.glob('shard*'))
        sizes.append(used + self._bytes.get(file, 0))
        assert limit is None or sizes[-1] <= limit * 2**30
        download(self, file, part)

    with mock.patch.object(RemotePack, '_download', checked):
        yield sizes


@pytest.mark.parametrize('workers', [0, 2])
def test_chips_are_those_of_the_folder(
    pack: Path, server: Server, tmp_path: Path, workers: int
) -> None:
    local = PackedChips(pack)
    chips = PackedChips(server.url, remote=RemotePack(server.url, tmp_path))
    (names,) = {tuple(batch['path']) for batch in DataLoader(chips, len(chips))}
    assert names == tuple(local.gather(range(len(local)), 0)[0]['path'])
    both = (DataLoader(each, 7, num_workers=workers) for each in (local, chips))
    for one, other in zip(*both, strict=True):
        np.testing.assert_array_equal(one['image'], other['image'])
    # Every file once.
    assert sorted(server.requests) == sorted(path.name for path in pack.iterdir())
    # A second run asks for the index alone.
    server.requests.clear()
    again = PackedChips(server.url, remote=RemotePack(f'{server.url}/', tmp_path))
    again = pickle.loads(pickle.dumps(again))
    assert torch.equal(again[5]['image'], local[5]['image'])
    assert server.requests == ['index.json']


def test_another_pack_at_the_same_url(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of the first are not taken for the second; the cache has a default."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    shutil.copytree(pack, tmp_path / 'pack')
    with serve(tmp_path / 'pack') as server:
        first = PackedChips(server.url)[0]
        index = json.loads((pack / 'index.json').read_text())
        index['shards'] = index['shards'][:3]
        index['count'] = sum(shard['count'] for shard in index['shards'])
        for name, file in index['columns'].items():
            column = np.load(pack / file)[: index['count']]
            np.save(tmp_path / 'pack' / file, column + (name == 'window'))
            content = (tmp_path / 'pack' / file).read_bytes()
            index['checksums'][file] = hashlib.sha256(content).hexdigest()
        (tmp_path / 'pack' / 'index.json').write_text(json.dumps(index))
        second = PackedChips(server.url)[0]
    assert torch.equal(first['window'] + 1, second['window'])
    assert len(list((tmp_path / 'torch' / 'hub' / 'packs').iterdir())) == 2


def fit(
    root: str | Path,
    cache: Path,
    size: float | None = None,
    checkpoint: Path | None = None,
    workers: int = 0,
    **kwargs: Any,
) -> tuple[dict[str, torch.Tensor], PackedDataModule]:
    torch.manual_seed(5)
    data = PackedDataModule(
        root, None, 24, 8, workers, cache=cache, cache_size=size, seed=3
    )
    task = SIGMAETask(**{**SMALL, 'size': 24})
    trainer = quiet_trainer(cache, **{'num_sanity_val_steps': 0, **kwargs})
    trainer.fit(task, data, ckpt_path=checkpoint)
    return task.state_dict(), data


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


@pytest.mark.parametrize('workers', [0, 2])
def test_training_is_that_of_the_folder(
    pack: Path, server: Server, tmp_path: Path, workers: int
) -> None:
    """To the last bit, where the cache holds all, with the validation."""
    kwargs = {'max_epochs': 1, 'limit_train_batches': 3}
    local, _ = fit(pack, tmp_path / 'a', workers=workers, **kwargs)
    # Too large a limit is none.
    far, _ = fit(server.url, tmp_path / 'b', 1.0, workers=workers, **kwargs)
    assert equal(local, far)


@pytest.mark.parametrize(('shards', 'mixed'), [(1, 1), (2.5, 1), (7, 2), (12.2, 4)])
def test_a_small_cache(
    pack: Path, server: Server, tmp_path: Path, shards: float, mixed: int
) -> None:
    """It never holds more; an epoch has every chip once, from few shards at a time."""
    limit = gib(pack, shards)
    with watched(limit) as sizes:
        _, data = fit(server.url, tmp_path, limit, max_epochs=1, max_steps=4)
        data.trainer = None
        dataset, loader = data.train_dataset, data.train_dataloader()
        sampler: Any = loader.sampler
        order = sampler.order(0)
        assert sorted(order) == list(range(len(dataset)))
        assert list(order) != list(sampler.order(1))
        seen = data.index.shard_of(dataset.chips[order])
        for i in range(0, len(seen), 12 * mixed):
            # A last shard is smaller, so that groups do not end here.
            assert len(np.unique(seen[i : i + 12 * mixed])) <= 2 * mixed
        groups = np.array_split(np.arange(len(seen)), -(-22 // mixed))
        assert len(groups) >= 22 // mixed
        server.requests.clear()
        positions = [position for _, position in loader.sampler]
        chips = [dataset.chips[position] for position in positions]
        for start in range(0, len(chips), 8):
            dataset.gather(positions[start : start + 8], 0)
            assert len(dataset._shards) <= mixed
    assert sorted(chips) == list(data._splits['train'])
    assert max(sizes) <= limit * 2**30
    # Once each, but for those still there, and those of the next epoch.
    asked = [name for name in server.requests if name.startswith('shard')]
    assert len(asked) <= 22 + 3 * mixed


def test_the_next_shards_come_meanwhile(
    pack: Path, server: Server, tmp_path: Path
) -> None:
    """In the background, in the order of need, and not more than have room."""
    data = PackedDataModule(server.url, cache=tmp_path, cache_size=gib(pack, 7))
    data.setup('fit')
    sampler: Any = data.train_dataloader().sampler
    chips = data.train_dataset.chips[sampler.order(0)]
    needed = list(dict.fromkeys(data.index.shard_of(chips).tolist()))
    names = [data.index.shards[number].file for number in needed]
    order = iter(sampler)
    (folder,) = tmp_path.iterdir()
    # Two are mixed.
    for before, first in enumerate(names[:4]):
        while True:
            position = next(order)[1]
            chip = data.train_dataset.chips[position]
            if data.index.shards[int(data.index.shard_of(chip))].file == first:
                break
        wanted = names[: before + 3]
        for _ in range(500):
            present = {path.name for path in folder.glob('shard*')}
            if present == set(wanted):
                break
            time.sleep(0.02)
        time.sleep(0.1)
        assert {path.name for path in folder.glob('shard*')} == set(wanted)
    order.close()


def test_evaluation_in_a_small_cache(
    pack: Path, server: Server, tmp_path: Path
) -> None:
    """Validation uses few shards, which stay while others come and go."""
    limit = gib(pack, 7)
    _, data = fit(server.url, tmp_path, limit, max_epochs=2, max_steps=66)
    numbers = np.unique(data.index.shard_of(data.val_dataset.chips))
    names = {data.index.shards[number].file for number in numbers}
    assert len(names) == 2
    assert {server.requests.count(name) for name in names} == {1}
    kinds = {name: server.requests.count(name) for name in server.requests}
    assert max(kinds.values()) <= 4


def test_weights_of_sources(pack: Path, server: Server, tmp_path: Path) -> None:
    data = PackedDataModule(
        server.url, length=5000, source_weights={'*/000*': 3.0}, cache=tmp_path,
        cache_size=gib(pack, 7),
    )  # fmt: skip
    data.setup('fit')
    drawn = [index for _, index in data.train_dataloader().sampler]
    assert len(drawn) == 5000
    names = [data.train_dataset._names[i] for i in data.train_dataset.column('source')]
    many = np.array(['/000' in names[chip] for chip in data.train_dataset.chips])
    counts = np.bincount(drawn, minlength=len(many))
    assert counts[many].mean() / counts[~many].mean() == pytest.approx(3, rel=0.2)


def test_processes_share_the_order(pack: Path, server: Server, tmp_path: Path) -> None:
    """Every process has its part, of the same few shards."""
    size, parts = gib(pack, 7), []
    for rank in (0, 1):
        data = PackedDataModule(
            server.url, batch_size=8, cache=tmp_path, cache_size=size
        )
        data.setup('fit')
        data.trainer = SimpleNamespace(
            world_size=2, global_rank=rank, limit_train_batches=1.0,
            accelerator=None, state=SimpleNamespace(fn='validate'),
        )  # fmt: skip
        sampler: Any = data.train_dataloader().sampler
        parts.append(sampler.order(0))
    both = np.stack(parts, axis=1)
    assert sorted(both.flatten()) == list(range(both.size))
    shards = data.index.shard_of(data.train_dataset.chips[both])
    assert np.mean(shards[:, :1] == shards[:, 1:]) > 0.3


@pytest.mark.parametrize('workers', [0, 2])
def test_resuming_in_the_middle(
    pack: Path, server: Server, tmp_path: Path, workers: int
) -> None:
    """Exact, on a machine with an empty cache; another cache size is noticed."""
    limit = gib(pack, 7)
    kwargs: dict[str, Any] = {
        'workers': workers,
        'max_steps': 6,
        'limit_train_batches': 4,
        'limit_val_batches': 1,
    }
    callback = ResumableCheckpoint(every_n_train_steps=1, keep=9)
    whole, _ = fit(server.url, tmp_path / 'a', limit, callbacks=[callback], **kwargs)
    for step, cache in ((3, 'b'), (4, 'c')):
        (checkpoint,) = (tmp_path / 'a').rglob(f'step={step:09}.ckpt')
        kwargs |= {'checkpoint': checkpoint}
        callback = ResumableCheckpoint(every_n_train_steps=99)
        resumed, _ = fit(
            server.url, tmp_path / cache, limit, callbacks=[callback], **kwargs
        )
        assert equal(whole, resumed)
    callback = ResumableCheckpoint(every_n_train_steps=99)
    with pytest.warns(UserWarning, match=r"'mixed shards': 2.*and cache_size"):
        fit(server.url, tmp_path / 'd', callbacks=[callback], **kwargs)


@pytest.mark.slow
def test_two_processes(pack: Path, server: Server, tmp_path: Path) -> None:
    """They share what fits, and each other's room does not disturb them."""
    wanted = [PackedChips(pack)[i]['image'].double().sum() for i in range(0, 336, 16)]
    size = gib(pack, 3)
    with serve(pack) as other:
        jobs = (
            (server.url, tmp_path / 'all', None),
            (other.url, tmp_path / 'few', size),
        )
        files = [tmp_path / f'{rank}.npy' for rank in range(2)]
        processes = [
            start(read_all, jobs, rank, file) for rank, file in enumerate(files)
        ]
        assert join(processes, 120) == [0, 0]
    for file in files:
        np.testing.assert_array_equal(np.load(file), [wanted, wanted])
    # Once for both, but for the index.
    names = [name for name in server.requests if name != 'index.json']
    assert len(names) == len(set(names)) > 20
    (folder,) = (tmp_path / 'few').iterdir()
    used = sum(path.stat().st_size for path in folder.glob('shard*'))
    assert used <= size * 2**30
    assert not (folder / 'part').exists()


@pytest.mark.slow
def test_a_killed_download_leaves_nothing(
    pack: Path, server: Server, tmp_path: Path
) -> None:
    server.stalled = Event()
    process = start(read_all, [(server.url, tmp_path, None)], 0, tmp_path / '0.npy')
    assert server.stalled.wait(120)
    (folder,) = tmp_path.iterdir()
    part = folder / 'part'
    while not part.exists() or not part.stat().st_size:
        time.sleep(0.01)
    kill(process)
    server.stalled = None
    assert part.stat().st_size > 0
    assert not list(folder.glob('shard*'))
    chips = PackedChips(server.url, remote=RemotePack(server.url, tmp_path))
    assert torch.equal(chips[0]['image'], PackedChips(pack)[0]['image'])
    assert not part.exists()


def test_the_network_goes(pack: Path, server: Server, tmp_path: Path) -> None:
    """A few failures do not matter; then the run stops, and goes on later."""
    remote = RemotePack(server.url, tmp_path)
    chips = PackedChips(server.url, remote=remote)
    server.cut, server.damaged = 1, 2
    assert torch.equal(chips[0]['image'], PackedChips(pack)[0]['image'])
    assert server.requests.count('shard-00000.npy') == 3
    for fault, message in (
        ('damaged', r'it came damaged: \d+ bytes with another checksum'),
        ('cut', r'ClientPayloadError'),
    ):
        setattr(server, fault, 99)
        server.requests.clear()
        # In the background once, for whoever needs the file does not wait for that.
        with pytest.raises(OSError, match=message):
            remote.path('shard-00001.npy', patient=False)
        assert len(server.requests) == 1
        with pytest.raises(OSError, match=message) as caught:
            chips[20]
        assert len(server.requests) == 5
        setattr(server, fault, 0)
        assert f'{server.url}/shard-00001.npy cannot be fetched' in str(caught.value)
        assert 'run the same command again: it goes on' in str(caught.value)
        assert not (remote.folder / 'part').exists()
    assert torch.equal(chips[20]['image'], PackedChips(pack)[20]['image'])
    # A copy of another size is fetched again; one that is gone on the server is named.
    os.truncate(remote.folder / 'shard-00001.npy', 1000)
    again = PackedChips(server.url, remote=remote)
    assert torch.equal(again[20]['image'], PackedChips(pack)[20]['image'])
    server.requests.clear()
    with (
        mock.patch.object(
            RemotePack, '_open', return_value=(fsspec.filesystem('file'), '/no')
        ),
        pytest.raises(
            OSError, match=r'shard-00002.npy cannot be fetched: FileNotFound'
        ),
    ):
        chips[30]


def test_a_full_disk(pack: Path, server: Server, tmp_path: Path) -> None:
    chips = PackedChips(server.url, remote=RemotePack(server.url, tmp_path))
    with (
        file_size_limit(100_000),
        pytest.raises(
            OSError, match=r'cache: .* cannot be written: .* smaller cache_s'
        ),
    ):
        chips[0]
    assert server.requests.count('shard-00000.npy') == 1
    assert chips[0]['image'].isfinite().all()


def test_wrong_arguments(pack: Path, server: Server, tmp_path: Path) -> None:
    size = gib(pack, 0.9)
    for root, kind, message in (
        (f'{server.url}/other', FileNotFoundError, r'root: there is no pack at http'),
        ('http://127.0.0.1:9/pack', OSError, r'cannot be read: .* Check the URL, the'),
        ('what://bucket/pack', ValueError, r'what://bucket/pack cannot be opened'),
        (server.url, ValueError, r'but a shard of .* Pass cache_size=\S+ or more'),
    ):
        with pytest.raises(kind, match=message):
            PackedDataModule(root, cache=tmp_path, cache_size=size).setup('fit')
    if importlib.util.find_spec('gcsfs') is None:
        with pytest.raises(ImportError, match=r'gs://a/b needs .* pip install gcsfs'):
            RemotePack('gs://a/b', tmp_path)
    # The names of files come from the server.
    shutil.copytree(pack, tmp_path / 'pack')
    index = json.loads((pack / 'index.json').read_text())
    index['shards'][0]['file'] = '../x.npy'
    (tmp_path / 'pack' / 'index.json').write_text(json.dumps(index))
    with (
        serve(tmp_path / 'pack') as other,
        pytest.raises(ValueError, match=r"'../x.npy' is no name of a file of a pack"),
    ):
        RemotePack(other.url, tmp_path)


def test_commands_are_local(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (['s3://bucket/pack', '--check'], 's3://bucket/pack is remote. Copy the pack'),
        (['EuroSAT', '--output', 's3://bucket/pack'], 'output: s3://bucket/pack is'),
    ):
        with pytest.raises(SystemExit):
            main(['pack', *arguments])
        assert message in capsys.readouterr().err


def test_memory(pack: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem('memory')
    store.put(f'{pack}/', '/bucket/pack/', recursive=True)
    data = PackedDataModule('memory://bucket/pack', cache=tmp_path)
    data.setup('fit')
    chips = data.val_dataset
    assert torch.equal(chips[3]['image'], PackedChips(pack)[22 * 12 + 3]['image'])
    store.rm('/bucket', recursive=True)
    assert chips[11]['image'].isfinite().all()
    with pytest.raises(OSError, match=r'shard-00023.npy cannot be fetched: FileNotF'):
        chips[12]


def test_object_storage(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3, by an emulator: bit by bit as the folder, and without a bucket."""
    pytest.importorskip('s3fs', reason='pip install s3fs')
    moto = pytest.importorskip('moto.server', reason="pip install 'moto[s3]' flask")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ('AWS_ENDPOINT_URL', f'http://{host}:{port}'),
        ('AWS_ACCESS_KEY_ID', 'x'),
        ('AWS_SECRET_ACCESS_KEY', 'x'),
        ('AWS_DEFAULT_REGION', 'us-east-1'),
    ):
        monkeypatch.setenv(name, value)
    store = fsspec.filesystem('s3')
    store.mkdir('bucket')
    store.put(f'{pack}/', 's3://bucket/pack/', recursive=True)
    kwargs = {'max_epochs': 1, 'limit_train_batches': 3, 'limit_val_batches': 1}
    local, _ = fit(pack, tmp_path / 'a', **kwargs)
    far, _ = fit('s3://bucket/pack', tmp_path / 'b', **kwargs)
    assert equal(local, far)
    limit = gib(pack, 7)
    with watched(limit):
        fit('s3://bucket/pack', tmp_path / 'c', limit, workers=2, **kwargs)
    for root in ('s3://bucket/other', 's3://nowhere/pack'):
        with pytest.raises(FileNotFoundError, match=f'there is no pack at {root}'):
            RemotePack(root, tmp_path)
    chips = PackedChips(
        's3://bucket/pack', remote=RemotePack('s3://bucket/pack', tmp_path / 'd')
    )
    server.stop()
    with (
        mock.patch('torchgeo_sigmae.datasets.remote._WAITS', ()),
        pytest.raises(OSError, match=re.escape('s3://bucket/pack/shard-00000.npy')),
    ):
        chips[0]
